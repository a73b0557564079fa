"""Frozen dataclasses from a TOML file and from `name=value` texts."""

import difflib
import inspect
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from chapbook.core.errors import Error

Config = TypeVar("Config")


def configure(
    cls: type[Config],
    file: str | Path | None = None,
    sets: Sequence[str] = (),
    base: Config | None = None,
) -> Config:
    """Returns a config: the base or the defaults, then the file's values, then the texts'.

    Args:
        cls: A frozen dataclass.
        file: A TOML file.
        sets: Texts such as `learning_rate=0.01`; what is no TOML value is taken as text.
        base: What unnamed fields keep; None takes the defaults.

    Raises:
        Error: A name is unknown, a value has the wrong type, or one that is needed is missing.
    """
    try:
        changes = {} if file is None else tomllib.loads(Path(file).read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise Error(f"{file}: {problem}") from None
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            raise Error(f"{text!r} is not name=value")
        changes[name.strip()] = _value(value.strip())
    known = list(inspect.signature(cls).parameters)
    hints = typing.get_type_hints(cls)
    for name, value in changes.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            fix = f" Did you mean {near[0]}?" if near else ""
            raise Error(f"unknown name {name}; known are {', '.join(known)}.{fix}")
        changes[name] = _fitted(value, hints[name], name)
    try:
        return cls(**{name: getattr(base, name) for name in known if base} | changes)
    except (TypeError, ValueError) as problem:
        raise Error(f"{cls.__name__}: {problem}") from None


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _fitted(value: Any, hint: Any, name: str) -> Any:
    """Returns a value in the type of its field, where nothing is lost by it."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    wanted = typing.get_args(hint) if union else (hint,)
    for want in wanted:
        kind, args = typing.get_origin(want) or want, typing.get_args(want)
        if kind is Any or (kind is typing.Literal and value in args):
            return value
        if kind is types.NoneType and value in (None, "none"):
            return None
        if kind is float and type(value) is int:
            return float(value)
        if kind is Path and isinstance(value, str):
            return Path(value)
        if kind in (tuple, list) and isinstance(value, list | tuple):
            alike = args[1:] in ((), (...,))
            each = (args[:1] or (Any,)) * len(value) if alike else args
            if len(each) == len(value):
                items = [_fitted(v, t, name) for v, t in zip(value, each, strict=True)]
                return items if kind is list else tuple(items)
        if type(value) is kind:  # a bool is an int to Python, but not to the user
            return value
    shown = " or ".join(str(want) if typing.get_args(want) else want.__name__ for want in wanted)
    raise Error(f"{name}={value} is not {shown.replace('typing.', '')}")
