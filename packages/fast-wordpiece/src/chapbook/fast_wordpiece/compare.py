"""Two tokenizers on the same documents: where they differ first, and by how much."""

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chapbook.core.errors import Error, MissingExtra
from chapbook.fast_wordpiece import documents
from chapbook.fast_wordpiece.documents import Input, Reading
from chapbook.fast_wordpiece.tokenizer import Tokenizer

AROUND = 12  # characters of context beside a difference


class Row(NamedTuple):
    """What a tokenizer gives for a document."""

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]
    type_ids: list[int]
    attention_mask: list[int]


@dataclass(frozen=True)
class Difference:
    """The first tokens of a document that differ.

    Attributes:
        file: The document's file.
        document: Its number in the file, from 0.
        start: Where the difference begins in the text, in characters.
        end: Where it ends.
        text: The text there, with a little around it.
        left: The tokens of one tokenizer there, with their places.
        right: Those of the other.
        fields: What differs in the row: ids, offsets, word_ids and so on.
    """

    file: str
    document: int
    start: int
    end: int
    text: str
    left: list[str]
    right: list[str]
    fields: list[str]


@dataclass
class Comparison:
    """How two tokenizers differ.

    Attributes:
        documents: How many documents were compared.
        differing: How many of them differ.
        left_tokens: How many tokens one gives.
        right_tokens: How many the other gives.
        left_unknown: How many of them are unknown tokens.
        right_unknown: How many of the others are.
        rejected: How many documents could not be read.
        differences: The first ones.
    """

    documents: int = 0
    differing: int = 0
    left_tokens: int = 0
    right_tokens: int = 0
    left_unknown: int = 0
    right_unknown: int = 0
    rejected: int = 0
    differences: list[Difference] = field(default_factory=list)


def compare(
    left: Tokenizer,
    right: Tokenizer,
    inputs: Sequence[str | Path],
    reading: Reading | None = None,
    *,
    shown: int = 10,
    progress: Callable[[int], object] | None = None,
) -> Comparison:
    """Compares how two tokenizers cut the same documents.

    Pieces and their places are compared, not ids, which two vocabularies may number otherwise.

    Args:
        left: One tokenizer.
        right: The other.
        inputs: Files and patterns.
        reading: How they are read.
        shown: How many differences to keep.
        progress: Called with the number of documents so far.

    Returns:
        The comparison.
    """
    unknown = left.light_settings.unk_token, right.light_settings.unk_token
    fields = ("tokens", "offsets")
    return _compare(_ours(left), _ours(right), inputs, reading, fields, unknown, shown, progress)


def verify(
    path: str | Path,
    inputs: Sequence[str | Path],
    reading: Reading | None = None,
    *,
    shown: int = 10,
    progress: Callable[[int], object] | None = None,
) -> Comparison:
    """Compares this package with Hugging Face's `tokenizers` on documents.

    Args:
        path: The tokenizer's file or folder. A `tokenizer.json` is read by both libraries; any
            other is handed to the other library as this one reads it.
        inputs: Files and patterns.
        reading: How they are read.
        shown: How many differences to keep.
        progress: Called with the number of documents so far.

    Returns:
        The comparison; ids, offsets, word ids, type ids and attention masks must be equal. Those
        of this package are on the left.

    Raises:
        MissingExtra: `tokenizers` is not installed.
    """
    if importlib.util.find_spec("tokenizers") is None:
        raise MissingExtra(
            "this compares with Hugging Face's tokenizers, which is not installed",
            "pip install tokenizers",
        )
    tokenizer = Tokenizer.from_file(path)
    theirs = _theirs(hugging_face(path, tokenizer))
    fields = ("ids", "offsets", "word_ids", "type_ids", "attention_mask")
    unknown = tokenizer.light_settings.unk_token, tokenizer.light_settings.unk_token
    return _compare(_ours(tokenizer), theirs, inputs, reading, fields, unknown, shown, progress)


def hugging_face(path: str | Path, tokenizer: Tokenizer) -> Any:
    """Returns the `tokenizers.Tokenizer` of a file that has been read here.

    Args:
        path: The file or folder.
        tokenizer: What was read from it.
    """
    from tempfile import TemporaryDirectory

    from tokenizers import Tokenizer as HuggingFace

    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.suffix == ".json" and file.exists():
        return HuggingFace.from_file(str(file))
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "tokenizer.json"
        tokenizer.save(copy)
        return HuggingFace.from_file(str(copy))


Encode = Callable[[list[str], list[str] | None], list[Row]]


def _ours(tokenizer: Tokenizer) -> Encode:
    def encode(texts: list[str], pairs: list[str] | None) -> list[Row]:
        batch = tokenizer.encode_batch(texts, pairs, offsets=True, word_ids=True)
        words = [None if word < 0 else word for word in batch.word_ids.tolist()]
        ids, spans = batch.ids.tolist(), [(a, b) for a, b in batch.offsets.tolist()]
        tokens = tokenizer.tokens_of(batch.ids)
        columns: tuple[list[Any], ...] = (
            ids,
            tokens,
            spans,
            words,
            batch.type_ids.tolist(),
            batch.attention_mask.tolist(),
        )
        ends = batch.row_offsets.tolist()
        rows: list[Any] = [[column[a:b] for column in columns] for a, b in itertools.pairwise(ends)]
        return [Row(*row) for row in rows]

    return encode


def _theirs(tokenizer: Any) -> Encode:
    def encode(texts: list[str], pairs: list[str] | None) -> list[Row]:
        given = texts if pairs is None else list(zip(texts, pairs, strict=True))
        return [
            Row(
                each.ids,
                each.tokens,
                each.offsets,
                each.word_ids,
                each.type_ids,
                each.attention_mask,
            )
            for each in tokenizer.encode_batch(given)
        ]

    return encode


def _compare(
    left: Encode,
    right: Encode,
    inputs: Sequence[str | Path],
    reading: Reading | None,
    fields: Sequence[str],
    unknown: tuple[str | None, str | None],
    shown: int,
    progress: Callable[[int], object] | None,
) -> Comparison:
    reading = reading or Reading()
    found = Comparison()
    files = documents.expand(inputs)
    if not files:
        raise Error("no input is given")
    for block in documents.documents([*map(Input, files)], reading):
        found.rejected += len(block.rejected)
        firsts = block.strings()
        seconds = None if block.pairs is None else block.pairs.to_list()
        rows = [
            row
            for row, text in enumerate(firsts)
            if text is not None and (seconds is None or seconds[row] is not None)
        ]
        texts = [firsts[row] or "" for row in rows]
        pairs = None if seconds is None else [seconds[row] for row in rows]
        for number, one, other in zip(rows, left(texts, pairs), right(texts, pairs), strict=True):
            found.left_tokens += len(one.ids)
            found.right_tokens += len(other.ids)
            found.left_unknown += one.tokens.count(unknown[0] or "")
            found.right_unknown += other.tokens.count(unknown[1] or "")
            unlike = [name for name in fields if getattr(one, name) != getattr(other, name)]
            found.differing += bool(unlike)
            if unlike and len(found.differences) < shown:
                file, text = str(files[block.place.file]), firsts[number] or ""
                place = int(np.asarray(block.numbers)[number])
                found.differences.append(_difference(one, other, unlike, text, file, place))
        found.documents += len(rows)
        if progress:
            progress(found.documents)
    return found


def _difference(
    one: Row, other: Row, unlike: list[str], text: str, file: str, document: int
) -> Difference:
    """Finds the stretch of the text from the first difference to where both agree again."""
    both = [
        list(zip(*(getattr(row, name) for name in unlike), strict=True)) for row in (one, other)
    ]
    least = min(map(len, both))
    first = next((i for i in range(least) if both[0][i] != both[1][i]), least)
    left, right = [_cells(row, first) for row in (one, other)]
    ends = {end for _, _, end in left} & {end for _, _, end in right} - {0}
    spans = [(start, end) for _, start, end in (*left, *right) if end > start]
    start = min((start for start, _ in spans), default=0)
    end = min((end for end in ends if end > start), default=max((e for _, e in spans), default=0))
    near = text[max(0, start - AROUND) : end + AROUND]
    return Difference(
        file,
        document,
        start,
        end,
        near,
        [f"{token} ({a}, {b})" for token, a, b in left if a < end and (b or not spans)][:8],
        [f"{token} ({a}, {b})" for token, a, b in right if a < end and (b or not spans)][:8],
        unlike,
    )


def _cells(row: Row, first: int) -> list[tuple[str, int, int]]:
    spans = zip(row.tokens[first:], row.offsets[first:], strict=True)
    return [(token, start, end) for token, (start, end) in spans]
