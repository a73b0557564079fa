"""Frozen dataclasses from a TOML file and from `name=value` texts."""

import dataclasses
import difflib
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
        cls: A frozen dataclass; fields that are dataclasses themselves are TOML tables, and
            `table.name=value` in texts.
        file: A TOML file.
        sets: Texts such as `learning_rate=0.01`; what is no TOML value is taken as text.
        base: What unnamed fields keep; None takes the defaults.

    Raises:
        Error: A name is unknown, a value has the wrong type, or one that is needed is missing.
    """
    changes: dict[str, Any] = {}
    if file is not None:
        try:
            changes = tomllib.loads(Path(file).read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
            raise Error(f"{file}: {problem}") from None
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            raise Error(f"{text!r} is not name=value")
        table = changes
        *outer, last = name.strip().split(".")
        for key in outer:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise Error(f"{text}: {key} is given a value too")
        table[last] = _value(value.strip())
    return _build(cls, base, changes, "")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _build(cls: Any, base: Any, changes: dict[str, Any], prefix: str) -> Any:
    """Returns the base, or an instance of defaults, with the changes made."""
    hints = typing.get_type_hints(cls)
    fields = [field.name for field in dataclasses.fields(cls) if field.init]
    values = {} if base is None else {name: getattr(base, name) for name in fields}
    for name, value in changes.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            fix = f" Did you mean {prefix}{near[0]}?" if near else ""
            raise Error(f"unknown name {prefix}{name}; known are {', '.join(fields)}.{fix}")
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            value = _build(hints[name], values.get(name), value, f"{prefix}{name}.")
        values[name] = _fitted(value, hints[name], prefix + name)
    try:
        return cls(**values)
    except (TypeError, ValueError) as problem:
        raise Error(f"{cls.__name__}: {problem}") from None


def _fitted(value: Any, hint: Any, name: str) -> Any:
    """Returns a value in the type of its field, where nothing is lost by it."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    wanted = typing.get_args(hint) if union else (hint,)
    for want in wanted:
        kind, args = typing.get_origin(want) or want, typing.get_args(want)
        if kind is Any or (kind is typing.Literal and value in args):
            return value
        if kind is float and type(value) is int:
            return float(value)
        if kind is Path and isinstance(value, str):
            return Path(value)
        if kind is types.NoneType and value in (None, "none"):
            return None
        if kind in (tuple, list) and isinstance(value, list | tuple):
            inner = [arg for arg in args if arg is not ...] or [Any]
            of = inner if len(inner) == len(value) else inner[:1] * len(value)
            return kind(_fitted(v, t, name) for v, t in zip(value, of, strict=True))
        # A bool is an int to Python, but not to the user.
        if (
            isinstance(kind, type)
            and isinstance(value, kind)
            and (kind is bool) is (value is True or value is False)
        ):
            return value
    shown = " or ".join(str(want) if typing.get_args(want) else want.__name__ for want in wanted)
    raise Error(f"{name}={value} is not {shown.replace('typing.', '')}")
