"""From ids back to text: Hugging Face's WordPiece decoder, and TF Text's words."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chapbook.fast_wordpiece.settings import Settings

# In this order: each replacement sees what the ones before it have left.
_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
_MAY_CLEAN = re.compile("[.?!,']|n't|do not")


@dataclass(frozen=True)
class Spellings:
    """How each id is written, worked out once per tokenizer.

    Attributes:
        pieces: The piece of each id as the vocabulary spells it.
        first: What each id adds to a text when it comes first.
        later: What each id adds to a text after another.
        special: The ids of special added tokens.
        mark: What continuations begin with.
    """

    pieces: Mapping[int, str]
    first: Mapping[int, str]
    later: Mapping[int, str]
    special: frozenset[int]
    mark: str


def spellings(settings: Settings) -> Spellings:
    """Works out how each id is written.

    Args:
        settings: The tokenizer.

    Returns:
        The tables that the other functions of this module read.
    """
    pieces = {number: piece for piece, number in settings.vocab.items()}
    pieces |= {token.id: token.content for token in settings.added_tokens}
    mark = settings.mark
    later = {
        number: piece[len(mark) :] if piece.startswith(mark) else " " + piece
        for number, piece in pieces.items()
    }
    first = dict(pieces)
    if settings.cleanup:
        for number, piece in pieces.items():
            # Every replacement needs one of these, and few pieces hold any.
            if _MAY_CLEAN.search(piece):
                first[number] = cleaned(piece)
                later[number] = cleaned(later[number])
    special = frozenset(token.id for token in settings.added_tokens if token.special)
    return Spellings(pieces, first, later, special, mark)


def cleaned(text: str) -> str:
    """Takes out the spaces that English does not write before punctuation and contractions.

    Args:
        text: What one token adds to a text, the space before it included.

    Returns:
        The text after Hugging Face's eleven replacements.
    """
    for old, new in _CLEANUP:
        text = text.replace(old, new)
    return text


def decode(
    spelled: Spellings, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True
) -> str:
    """Joins pieces to a text, exactly as Hugging Face's WordPiece decoder does.

    A space comes before every piece without the mark, except the first; the mark is dropped from
    every piece except the first. Ids that no piece has are left out. An added token is written as
    it stands in its file; Hugging Face writes the normalised form of those with `normalized`, and
    does not skip them where it differs.

    Args:
        spelled: From `spellings`.
        ids: The ids of one text.
        skip_special_tokens: Whether to leave out special added tokens such as `[CLS]`.

    Returns:
        The text.

    Raises:
        ValueError: An id is negative, such as the -100 of labels that count for nothing.
    """
    first, later = spelled.first, spelled.later
    ids = _list(ids)
    kept = [number for number in ids if number in later]
    if len(kept) < len(ids) and min(ids) < 0:
        raise ValueError(f"ids hold {min(ids)}, and no id is negative")
    if skip_special_tokens:
        kept = [number for number in kept if number not in spelled.special]
    if not kept:
        return ""
    return first[kept[0]] + "".join([later[number] for number in kept[1:]])


def decode_batch(
    spelled: Spellings,
    rows: Iterable[Sequence[int] | np.ndarray] | np.ndarray,
    skip_special_tokens: bool = True,
) -> list[str]:
    """Joins the pieces of many rows to texts.

    Args:
        spelled: From `spellings`.
        rows: A list of rows or a (rows, width) array; see `split_rows` for flat ids.
        skip_special_tokens: Whether to leave out special added tokens such as `[CLS]`.

    Returns:
        One text per row.

    Raises:
        ValueError: An id is negative.
    """
    if isinstance(rows, np.ndarray):
        rows = rows.tolist()
    return [decode(spelled, row, skip_special_tokens) for row in rows]


def split_rows(
    ids: Sequence[int] | np.ndarray, row_offsets: Sequence[int] | np.ndarray
) -> list[Sequence[int]]:
    """Cuts flat ids into rows.

    Args:
        ids: The ids of all rows, one after another.
        row_offsets: Where each row begins in them, and where the last one ends.

    Returns:
        The rows.

    Raises:
        ValueError: The row offsets do not fit the ids.
    """
    flat, bounds = _list(ids), _list(row_offsets)
    fits = len(bounds) > 0 and bounds[0] >= 0 and bounds[-1] <= len(flat)
    if not fits or any(a > b for a, b in itertools.pairwise(bounds)):
        raise ValueError(
            f"row_offsets must rise from 0 to at most {len(flat)}, the number of ids, and hold one"
            " more entry than there are rows"
        )
    return [flat[a:b] for a, b in itertools.pairwise(bounds)]


def detokenize_words(spelled: Spellings, ids: Sequence[int] | np.ndarray) -> list[str]:
    """Joins pieces to words as TF Text does.

    A continuation is joined to the word before it; one that comes first keeps its mark. Ids that no
    piece has are left out.

    Args:
        spelled: From `spellings`.
        ids: The ids of one text.

    Returns:
        The words.

    Reference: `FastWordpieceTokenizer.detokenize` of TF Text.
    """
    words: list[list[str]] = []
    mark = spelled.mark
    for number in _list(ids):
        piece = spelled.pieces.get(number)
        if piece is None:
            continue
        if words and piece.startswith(mark):
            words[-1].append(piece[len(mark) :])
        else:
            words.append([piece])
    return ["".join(word) for word in words]


def _list(ids: Sequence[int] | np.ndarray) -> Sequence[int]:
    # Python integers are looked up several times faster than NumPy's.
    return ids.tolist() if isinstance(ids, np.ndarray) else ids
