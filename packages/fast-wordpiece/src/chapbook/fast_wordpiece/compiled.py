"""The compiled form of a tokenizer: settings in, tries and tables out, and the `.fwp` file.

A `.fwp` file is the block of memory that the core works on. It is mapped, checked and used as it
lies there, so that loading costs no parsing; the spelling of the vocabulary is read on demand.
"""

import json
import mmap
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.fast_wordpiece.settings import (
    AddedToken,
    Normalizer,
    Padding,
    Settings,
    SettingsError,
    Template,
    Truncation,
)

try:
    from chapbook.fast_wordpiece import _core
except ImportError as problem:  # pragma: no cover - needs a broken installation
    raise ImportError(
        "the compiled core of chapbook-fast-wordpiece cannot be loaded: reinstall the package with"
        " `pip install --force-reinstall chapbook-fast-wordpiece`; from source this needs a C++20"
        f" compiler ({problem})"
    ) from problem

STRATEGIES = {"longest_first": 0, "only_first": 1, "only_second": 2}


def compile_settings(
    settings: Settings, *, literal_marks: bool = False, packed: bytes = b""
) -> _core.Model:
    """Builds the tries and tables of a tokenizer.

    Args:
        settings: The tokenizer.
        literal_marks: Whether pieces that carry the mark also match at the start of a word, as they
            are spelled. It makes a difference only where the mark reaches the matcher: BERT's
            pre-tokeniser isolates every `#`.
        packed: What the model is to tell of its settings; only a file needs it.

    Returns:
        The model.

    Raises:
        SettingsError: A piece is too long, or an id too large.
    """
    vocab = settings.vocab
    normalizer = settings.normalizer
    unknown = settings.unk_token
    try:
        return _core.compile(
            list(vocab),
            np.fromiter(vocab.values(), np.int32, len(vocab)),
            settings.mark,
            _core.NO_ID if unknown is None else vocab.get(unknown, _core.NO_ID),
            min(settings.max_input_chars_per_word, 2**32 - 1),
            (
                normalizer.clean_text,
                normalizer.handle_chinese_chars,
                normalizer.strips_accents,
                normalizer.lowercase,
                normalizer.compat == "tf-text",
            ),
            packed,
            literal_marks,
        )
    except (ValueError, OverflowError) as problem:
        raise SettingsError(f"the vocabulary cannot be compiled: {problem}") from None


def encoder(
    model: _core.Model, settings: Settings, truncation: Truncation | None, isa: str
) -> _core.Encoder:
    """Makes what encodes: a model with added tokens, a template and a truncation.

    Args:
        model: The compiled vocabulary.
        settings: The tokenizer; its vocabulary is not looked at.
        truncation: How rows are shortened, if they are.
        isa: The instruction set, or `auto`.

    Returns:
        The encoder. Its template lacks special tokens that the vocabulary lacks: ask
        `Template.added` first, which names them.
    """
    template = settings.template

    def pieces(is_pair: bool) -> list[tuple[int, int]]:
        if template is None:
            return [(1, 0), (2, 0)][: 1 + is_pair]
        found: list[tuple[int, int]] = []
        for piece in template.pair if is_pair else template.single:
            if len(piece) == 2:
                found.append((1 if piece[0] == "A" else 2, 0))
            else:
                found.extend((0, number) for number in piece[1])
        return found

    return _core.Encoder(
        model,
        [
            (
                token.content,
                token.id,
                token.normalized,
                token.single_word,
                token.lstrip,
                token.rstrip,
                token.special and settings.encode_special_tokens,
            )
            for token in settings.added_tokens
        ],
        pieces(False),
        pieces(True),
        truncation
        and (
            truncation.max_length,
            truncation.stride,
            STRATEGIES[truncation.strategy],
            truncation.direction == "left",
        ),
        template is not None and template.trim_offsets,
        template is not None and template.add_prefix_space,
        isa,
    )


def save(settings: Settings, path: str | Path) -> None:
    """Writes a `.fwp` file, whole or not at all.

    Args:
        settings: The tokenizer.
        path: Where to.

    Raises:
        OSError: The file cannot be written.
    """
    write_atomic(path, compile_settings(settings, packed=_packed(settings)).block)


def load(path: str | Path) -> _core.Model:
    """Maps a `.fwp` file after checking that it is whole.

    Args:
        path: The file.

    Returns:
        The model.

    Raises:
        Error: The file is none of this version, of another machine's byte order, or damaged.
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return _core.open(mapped)
        except ValueError as problem:
            raise Error(
                f"{path} cannot be used: {problem}",
                hint="Make it again with `fast-wordpiece convert`.",
            ) from None


def settings_of(model: _core.Model) -> tuple[Settings, Callable[[], Settings]]:
    """Reads the settings of a model that comes out of a file.

    Args:
        model: The compiled tokenizer.

    Returns:
        The settings with an empty vocabulary, which cost little; and what returns them whole.
    """
    packed = model.settings
    size = int.from_bytes(packed[:8], "little")
    head = json.loads(packed[8 : 8 + size])
    template, truncation, padding = head["template"], head["truncation"], head["padding"]
    light = Settings(
        **{
            **head,
            "vocab": {},
            "normalizer": Normalizer(**head["normalizer"]),
            "added_tokens": tuple(AddedToken(**token) for token in head["added_tokens"]),
            "template": template
            and Template(
                **{
                    **template,
                    "single": tuple(map(_piece, template["single"])),
                    "pair": tuple(map(_piece, template["pair"])),
                }
            ),
            "truncation": truncation and Truncation(**truncation),
            "padding": padding and Padding(**padding),
        }
    )

    def whole() -> Settings:
        pieces, ids = json.loads(packed[8 + size :])
        return replace(light, vocab=dict(zip(pieces, ids, strict=True)))

    return light, whole


def _packed(settings: Settings) -> bytes:
    """Writes settings as two JSON texts: all but the vocabulary, after its length; and that."""
    head = asdict(replace(settings, vocab={}))
    del head["vocab"]
    first = json.dumps(head).encode()
    vocabulary = (list(settings.vocab), list(settings.vocab.values()))
    return len(first).to_bytes(8, "little") + first + json.dumps(vocabulary).encode()


def _piece(piece: list) -> tuple:
    """Turns a piece of a template back into tuples."""
    return tuple(tuple(part) if isinstance(part, list) else part for part in piece)
