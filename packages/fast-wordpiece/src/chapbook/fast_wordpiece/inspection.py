"""What a tokenizer is made of: its components, its vocabulary, and what is wrong with that."""

import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from chapbook.fast_wordpiece.reference import words
from chapbook.fast_wordpiece.settings import Settings
from chapbook.fast_wordpiece.tokenizer import Tokenizer

_UNUSED = re.compile(r"\[unused\d+\]")
_PLAIN = re.compile("[a-z0-9]+")


def inspect(tokenizer: Tokenizer) -> dict[str, Any]:
    """Describes a tokenizer.

    Args:
        tokenizer: The tokenizer.

    Returns:
        Plain values: `fingerprint`, `normalizer`, `added_tokens`, `template`, `truncation`,
        `padding` and other components, and `vocabulary`, whose `unreachable` counts the pieces
        that no text can give.
    """
    settings = tokenizer.settings
    components = asdict(tokenizer.light_settings)
    del components["vocab"]
    ids = settings.vocab.values()
    lengths = Counter(len(piece.removeprefix(settings.mark)) for piece in settings.vocab)
    lost = unreachable(settings)
    return {
        "fingerprint": tokenizer.fingerprint,
        **components,
        "vocabulary": {
            "pieces": len(settings.vocab),
            "continuations": sum(piece.startswith(settings.mark) for piece in settings.vocab),
            "single_characters": lengths[1],
            "longest": max(lengths, default=0),
            "mean_length": sum(n * k for n, k in lengths.items()) / max(1, lengths.total()),
            "largest_id": max(ids, default=None),
            "ids_without_piece": max(ids, default=-1) + 1 - len(settings.vocab),
            "unused": sum(bool(_UNUSED.fullmatch(piece)) for piece in settings.vocab),
            "unknown_id": settings.vocab.get(settings.unk_token or ""),
            "unreachable": len(lost),
        },
    }


def unreachable(settings: Settings) -> dict[str, str]:
    """Finds the pieces that no text can give, because no normalised word can hold them.

    A piece such as `New` of a tokenizer that lower-cases, or `it's` of one that isolates
    punctuation, costs a row of every embedding and is never used. Added tokens are left out.

    Args:
        settings: The tokenizer.

    Returns:
        The pieces, each with the reason.
    """
    added = {token.content for token in settings.added_tokens}
    bare = replace(settings, added_tokens=())
    lost: dict[str, str] = {}
    for piece in settings.vocab:
        if piece in added or piece == settings.unk_token:
            continue
        # What continues a word cannot stand alone; a letter before it makes it a word.
        inside = bool(settings.mark) and piece.startswith(settings.mark)
        text = "a" + piece[len(settings.mark) :] if inside else piece
        if len(text) > settings.max_input_chars_per_word:
            lost[piece] = "longer than the longest word that is cut"
        elif not _PLAIN.fullmatch(text):
            forms = ["".join(char.char for char in chars) for chars, _ in words(bare, text)]
            if forms != [text]:
                lost[piece] = _why(text, forms)
    return lost


def _why(text: str, forms: list[str]) -> str:
    if not forms:
        return "nothing is left of it once it is normalised"
    if "".join(forms) == "".join(text.split()):
        return f"always cut into the words {' '.join(forms)}"
    return f"normalised to {' '.join(forms)}"


def duplicate_lines(path: str | Path) -> dict[str, list[int]]:
    """Finds the pieces of a `vocab.txt` that are there more than once.

    Args:
        path: The file, or a folder that holds one; other files have no lines of pieces.

    Returns:
        The numbers of the lines of each such piece, from 1; the last one gives the id.
    """
    path = Path(path)
    path = path / "vocab.txt" if path.is_dir() else path
    if path.suffix in (".json", ".fwp") or not path.exists():
        return {}
    places: dict[str, list[int]] = {}
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1):
        places.setdefault(line.rstrip(), []).append(number)
    return {piece: lines for piece, lines in places.items() if len(lines) > 1 and piece}
