"""Why a text was cut as it was: every stretch of it, what became of it, and its pieces."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from chapbook.fast_wordpiece import _unicode
from chapbook.fast_wordpiece.reference import Char, decomposed, is_in, normalized, words
from chapbook.fast_wordpiece.settings import AddedToken, Normalizer, Settings
from chapbook.fast_wordpiece.tokenizer import Tokenizer

if TYPE_CHECKING:
    import polars as pl


class Stretch(NamedTuple):
    """A piece of the text that was treated as one.

    Attributes:
        start: Its first character in the text.
        end: Behind its last.
        original: The text there.
        normalized: What the normaliser makes of it; empty where nothing is left.
        reason: What happened to it, and why.
        pieces: Its pieces.
        ids: Their ids.
    """

    start: int
    end: int
    original: str
    normalized: str
    reason: str
    pieces: list[str]
    ids: list[int]


def explain(tokenizer: Tokenizer, text: str) -> "pl.DataFrame":
    """Explains the tokens of a text: for each word, added token or deleted stretch one row.

    The pieces are those that the tokenizer gives; truncation, padding and special tokens of the
    template are left out. The forms between are worked out by the plain normaliser.

    Args:
        tokenizer: The tokenizer.
        text: The text.

    Returns:
        Columns `start`, `end` (characters), `original`, `normalized`, `reason`, `pieces`, `ids`.

    Raises:
        ValueError: The text holds a lone surrogate.
        SettingsError: A word needs the unknown token, which the vocabulary lacks.
    """
    import polars as pl

    rows = sorted(_stretches(tokenizer, text), key=lambda row: (row.start, row.end))
    lists = {"pieces": pl.List(pl.String), "ids": pl.List(pl.Int64)}
    integers = {"start": pl.Int64, "end": pl.Int64}
    schema = {name: {**lists, **integers}.get(name, pl.String) for name in Stretch._fields}
    return pl.DataFrame([row._asdict() for row in rows], schema=schema)


def _stretches(tokenizer: Tokenizer, text: str) -> Iterator[Stretch]:
    plain = tokenizer.no_truncation().no_padding()
    settings = plain.settings
    row = plain.encode_batch([text], add_special_tokens=False, offsets=True, word_ids=True)
    ids, word_of, spans = row.ids.tolist(), row.word_ids.tolist(), row.offsets.tolist()
    found = words(settings, text)
    covered = [False] * len(text)
    at = 0
    for number, (chars, token) in enumerate(found):
        first = at
        while at < len(ids) and word_of[at] == number:
            at += 1
        start, end = spans[first][0], spans[at - 1][1]
        own = ids[first:at]
        covered[start:end] = [True] * (end - start)
        form = "".join(char.char for char in chars)
        original = text[start:end]
        reason = _reason(settings, original, form, token, own)
        yield Stretch(start, end, original, form, reason, plain.tokens_of(own), own)
    if at != len(ids):
        raise AssertionError(f"{len(ids) - at} tokens of {text!r} belong to no word")
    yield from _deleted(settings.normalizer, text, covered)


def _reason(
    settings: Settings, original: str, form: str, token: AddedToken | None, ids: list[int]
) -> str:
    """Says what happened to a word on its way to its pieces."""
    if token is not None:
        kind = "special added token" if token.special else "added token"
        return f"{kind} {token.content!r}" + " in the normalised text" * token.normalized
    told = _changes(settings.normalizer, original, form)
    unknown = settings.vocab.get(settings.unk_token or "")
    if len(form) > settings.max_input_chars_per_word:
        most = settings.max_input_chars_per_word
        told.append(f"too long: {len(form)} characters, at most {most} are cut")
    elif ids == [unknown] and form != settings.unk_token:
        told.append(f"no piece for {_stuck(settings, form)!r}")
    elif len(ids) > 1:
        told.append(f"cut into {len(ids)} pieces")
    else:
        told.append("in the vocabulary")
    return ", ".join(told)


def _changes(normalizer: Normalizer, original: str, form: str) -> list[str]:
    """Says what the normaliser did to the characters of a word."""
    told = []
    if normalizer.clean_text and any(_is_deleted(char) for char in original):
        told.append("deleted control")
    table = _unicode.CJK_HF if normalizer.compat == "hf" else _unicode.CJK_TF_TEXT
    if len(form) == 1 and is_in(_unicode.PUNCTUATION, form):
        told.append("punctuation isolated")
    if normalizer.handle_chinese_chars and any(is_in(table, char) for char in original):
        told.append("ideograph isolated")
    if normalizer.strips_accents:
        chars = decomposed([Char(char, i, i + 1) for i, char in enumerate(original)])
        if any(is_in(_unicode.MARK, char.char) for char in chars):
            told.append("accent stripped")
        elif [char.char for char in chars] != list(original):
            told.append("decomposed")
    if normalizer.lowercase and any(ord(char) in _unicode.LOWER for char in original):
        told.append("lower-cased")
    return told


def _is_deleted(char: str) -> bool:
    return is_in(_unicode.CONTROL, char)


def _stuck(settings: Settings, form: str) -> str:
    """Returns the rest of a word where no piece of the vocabulary begins it."""
    start = 0
    while start < len(form):
        mark = settings.mark if start else ""
        ends = range(len(form), start, -1)
        end = next((end for end in ends if mark + form[start:end] in settings.vocab), None)
        if end is None:
            return mark + form[start:]
        start = end
    raise AssertionError(f"{form!r} can be spelled, and was not")


def _deleted(normalizer: Normalizer, text: str, covered: list[bool]) -> Iterator[Stretch]:
    """Tells of the stretches that no token covers, white space left aside."""
    start = 0
    while start < len(text):
        what = None if covered[start] else _lost(normalizer, text[start])
        end = start + 1
        while end < len(text) and not covered[end] and what == _lost(normalizer, text[end]):
            end += 1
        if what is not None:
            yield Stretch(start, end, text[start:end], "", what, [], [])
        start = end


def _lost(normalizer: Normalizer, char: str) -> str | None:
    """Says why nothing is left of a character that no token covers; None for white space."""
    if normalizer.clean_text and _is_deleted(char):
        return f"deleted control U+{ord(char):04X}"
    left = normalized([Char(char, 0, 1)], normalizer)
    if not left:
        return "accent stripped"
    if all(is_in(_unicode.WHITE_SPACE, each.char) for each in left):
        return None
    return "deleted"
