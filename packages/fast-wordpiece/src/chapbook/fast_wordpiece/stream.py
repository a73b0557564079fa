"""Whole files of any size to ids: in order, in bounded memory, and resumed after a kill.

Notable choices:

- Every block of documents becomes a block of rows, by itself, so that neither the size of the
  blocks nor a resumption changes what is written.
- Because of that, rows are padded to a fixed length or not at all.
- A part is finished when so many bytes of text are in it, and the journal then says where reading
  goes on.
"""

import contextlib
import dataclasses
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from chapbook.core.errors import Error, TableError
from chapbook.fast_wordpiece import _core, documents, token_files
from chapbook.fast_wordpiece.documents import Block, Input, Place, Reading, Spans
from chapbook.fast_wordpiece.encoding import EncodingBatch
from chapbook.fast_wordpiece.settings import SettingsError, Truncation
from chapbook.fast_wordpiece.tokenizer import OWN, OffsetUnit, Tokenizer, _threads

PART_BYTES = 32 << 20
TOLD = 20  # faults that a report repeats

Progress = Callable[["Report"], object]


@dataclass(frozen=True)
class Output:
    """What is written of each document.

    Args:
        offsets: Where each token stands in its text.
        offset_unit: What offsets count, characters or bytes of UTF-8.
        word_ids: Which word of its text each token is of, -1 for special tokens.
        max_length: The most tokens of a row; None means as the tokenizer's own truncation has it.
        stride: How many tokens neighbouring windows share; None means that what is beyond the
            length is cut off instead of becoming windows.
        pad: Whether short rows are filled up to the length.
        special: Whether the template's special tokens are added.
        dtype: Of the ids, `int32` or `uint16`.
    """

    offsets: bool = False
    offset_unit: OffsetUnit = "char"
    word_ids: bool = False
    max_length: int | None = None
    stride: int | None = None
    pad: bool = False
    special: bool = True
    dtype: Literal["int32", "uint16"] = "int32"

    def __post_init__(self):
        for name, value, known in (
            ("dtype", self.dtype, ("int32", "uint16")),
            ("offset-unit", self.offset_unit, ("char", "byte")),
        ):
            if value not in known:
                raise Error(f"--{name} {value} is unknown; it is {' or '.join(known)}")


@dataclass
class Report:
    """What has been done.

    Attributes:
        documents: How many documents there were, those rejected included.
        rows: How many rows were written, windows included.
        tokens: How many ids were written, padding included.
        bytes: Bytes of text that were encoded.
        rejected: How many documents, and rests of files, were left out or became null.
        faults: What was wrong with the first of them.
        seconds: How long it took, resumptions not included.
        read: Bytes of the inputs that have been read.
        total: Bytes of the inputs; None if unknown.
        resumed: How many documents had been encoded before.
        was_whole: Whether the output was finished before.
    """

    documents: int = 0
    rows: int = 0
    tokens: int = 0
    bytes: int = 0
    rejected: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    read: int = 0
    total: int | None = None
    resumed: int = 0
    was_whole: bool = False

    def add(self, block: Block, rows: int, tokens: int) -> None:
        """Counts a block in."""
        self.documents += block.documents
        self.rows += rows
        self.tokens += tokens
        self.bytes += block.size
        self.read = block.read
        self.reject(block.rejected)

    def reject(self, faults: Iterable[str]) -> None:
        """Counts faults, and keeps the first."""
        for fault in faults:
            self.rejected += 1
            if len(self.faults) < TOLD:
                self.faults.append(fault)


# ---------------------------------------------------------------------------------------- encode


def encode_files(
    inputs: Sequence[str | Path],
    output: str | Path,
    tokenizer: Tokenizer,
    reading: Reading | None = None,
    wanted: Output | None = None,
    *,
    format: str | None = None,  # noqa: A002
    shard: tuple[int, int] = (0, 1),
    resume: bool = False,
    num_threads: int | None = None,
    part_bytes: int = PART_BYTES,
    progress: Progress | None = None,
) -> Report:
    """Encodes the documents of files into a file of ids.

    Args:
        inputs: Files and patterns; `-` is stdin.
        output: A parquet, ipc or jsonl file, or a folder that keeps its parts; `-` is stdout.
        tokenizer: The tokenizer; its own truncation and fixed padding hold.
        reading: How the inputs are read.
        wanted: What is written.
        format: Of the output, where its suffix does not say it; `bin` is a folder of flat arrays.
        shard: Which share of the inputs, of how many. The outputs of all shares are the whole.
        resume: Whether to go on after the last part that was finished.
        num_threads: Threads to use; None means one for each processor at hand.
        part_bytes: Bytes of text in a part, which stays in memory until it is finished.
        progress: Called after each block with the report so far.

    Returns:
        What has been done.

    Raises:
        Error: Something that is asked for does not go together; the output is there already; an
            input cannot be read and `on_error` is `fail`.
        OSError: A file cannot be opened or written.
    """
    reading, wanted = reading or Reading(), wanted or Output()
    kind, _ = token_files.kind_of(Path(output), format)
    files = documents.expand(inputs)
    encoder = _Encoder(tokenizer, reading, wanted, len(files) > 1, num_threads)
    encoder.check(kind)
    shares = documents.shard(files, *shard, reading) if shard != (0, 1) else [*map(Input, files)]
    if resume and Path("-") in files:
        raise Error("--resume cannot read stdin again", "encode a file")
    facts = {
        "tokenizer": tokenizer.fingerprint,
        "inputs": _identity(shares, reading),
        "reading": dataclasses.asdict(reading),
        "options": dataclasses.asdict(wanted),
    }
    return _write(encoder, shares, Path(output), format, facts, resume, part_bytes, progress)


def count_files(
    inputs: Sequence[str | Path],
    tokenizer: Tokenizer,
    reading: Reading | None = None,
    *,
    output: str | Path | None = None,
    format: str | None = None,  # noqa: A002
    special: bool = True,
    max_length: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> "Counts":
    """Counts the tokens of the documents of files, without keeping the tokens.

    Args:
        inputs: Files and patterns; `-` is stdin.
        tokenizer: The tokenizer; its own truncation and padding are left out.
        reading: How the inputs are read.
        output: A file for the number of tokens of each document.
        format: Of the output, where its suffix does not say it.
        special: Whether the template's special tokens count.
        max_length: What rows would be cut off at.
        num_threads: Threads to use; None means one for each processor at hand.
        progress: Called after each block with the report so far.

    Returns:
        The counts.

    Raises:
        Error: As for `encode_files`.
        OSError: A file cannot be opened or written.
    """
    reading = reading or Reading()
    files = documents.expand(inputs)
    plain = tokenizer.no_truncation().no_padding()
    encoder = _Encoder(plain, reading, Output(special=special), len(files) > 1, num_threads)
    counter = _Counter(encoder, max_length)
    shares = [*map(Input, files)]
    facts = {"tokenizer": tokenizer.fingerprint, "inputs": _identity(shares, reading)}
    place = None if output is None else Path(output)
    report = _write(counter, shares, place, format, facts, False, PART_BYTES, progress)
    lengths = np.array(sorted(counter.lengths), np.int64)
    return Counts(
        report, lengths, np.array([counter.lengths[n] for n in lengths.tolist()], np.int64)
    )


@dataclass(frozen=True)
class Counts:
    """How many tokens documents have.

    Attributes:
        report: What has been read; its `tokens` are those of all documents.
        lengths: The numbers of tokens that there are, rising, shape (distinct,).
        documents: How many documents have each, shape (distinct,).
    """

    report: Report
    lengths: np.ndarray
    documents: np.ndarray

    @property
    def mean(self) -> float:
        """Tokens of a document on average; 0 without documents."""
        total = int(self.documents.sum())
        return float((self.lengths * self.documents).sum() / total) if total else 0.0

    def quantile(self, share: float) -> int:
        """Returns the number of tokens that so large a share of the documents do not exceed."""
        if not len(self.lengths):
            return 0
        ends = np.cumsum(self.documents)
        return int(self.lengths[np.searchsorted(ends, share * ends[-1])])

    def longer_than(self, length: int) -> int:
        """Returns how many documents have more tokens."""
        return int(self.documents[self.lengths > length].sum())


def _write(
    maker: "_Encoder | _Counter",
    shares: Sequence[Input],
    output: Path | None,
    format: str | None,  # noqa: A002
    facts: dict[str, Any],
    resume: bool,
    part_bytes: int,
    progress: Progress | None,
) -> Report:
    """Writes the table of each block to the output, if there is one."""
    report = Report(total=_total(shares))
    started = time.perf_counter()
    tell = progress or (lambda report: None)
    if output is None or str(output) == "-":
        _pass_through(maker, shares, report, tell, shown=output is not None)
    else:
        kind, keeps_parts = token_files.kind_of(output, format)
        with token_files.parts(
            output, kind, facts, keeps_parts=keeps_parts, resume=resume
        ) as parts:
            _restore(parts, report)
            report.was_whole = parts.is_published
            if not parts.is_done:
                _write_parts(maker, shares, parts, report, part_bytes, tell)
            parts.finish()
    report.seconds = time.perf_counter() - started
    return report


def _restore(parts: token_files.Parts, report: Report) -> None:
    """Takes into the report what finished parts tell."""
    for row in parts.journal:
        for name in ("documents", "rows", "tokens", "bytes", "rejected"):
            setattr(report, name, getattr(report, name) + row[name])
        report.faults = [*report.faults, *row["faults"]][:TOLD]
        report.read = row["read"]
    report.resumed = report.documents


def _write_parts(
    maker: "_Encoder | _Counter",
    shares: Sequence[Input],
    parts: token_files.Parts,
    report: Report,
    part_bytes: int,
    tell: Progress,
) -> None:
    """Makes tables of what is left of the inputs, and parts of the tables."""
    last = parts.journal[-1] if parts.journal else {"place": Place(), "columns": None}
    place, columns = Place(*last["place"]), last["columns"]
    part, tables = Report(), []

    def finish() -> None:
        table = pl.concat(tables) if tables else maker.empty()
        told = ("documents", "tokens", "bytes", "rejected", "faults")
        facts = {name: getattr(part, name) for name in told}
        parts.add(table, {**facts, "read": report.read, "place": place, "columns": columns})

    for block in documents.documents(shares, maker.reading, place):
        table = maker.table(block, _path(shares, block))
        if table is not None:
            told = {name: str(dtype) for name, dtype in table.schema.items()}
            columns = columns or told
            _same_columns(columns, told)
            tables.append(table)
        place = block.place
        for each in (part, report):
            each.add(block, 0 if table is None else table.height, maker.tokens)
        tell(report)
        if part.bytes >= part_bytes:
            finish()
            part, tables = Report(), []
    if part.documents or part.rejected or not parts.journal:
        finish()


def _same_columns(columns: dict[str, str], told: dict[str, str]) -> None:
    for name, dtype in told.items():
        if columns.get(name) != dtype:
            raise TableError(
                f'column "{name}" is {columns.get(name)} in one file and {dtype} in another',
                column=name,
                hint="give it one type, or leave it out of --keep",
            )


def _pass_through(
    maker: "_Encoder | _Counter",
    shares: Sequence[Input],
    report: Report,
    tell: Progress,
    *,
    shown: bool,
) -> None:
    """Makes tables of the inputs, and writes them to stdout or nowhere."""
    for block in documents.documents(shares, maker.reading):
        table = maker.table(block, _path(shares, block))
        if table is not None and shown:
            sys.stdout.buffer.write(table.write_ndjson().encode())
        report.add(block, 0 if table is None else table.height, maker.tokens)
        tell(report)


def _path(shares: Sequence[Input], block: Block) -> Path:
    # What tells of a file that cannot be read goes on behind the last file.
    return shares[min(block.place.file, len(shares) - 1)].path


def _total(shares: Sequence[Input]) -> int | None:
    """Returns how many bytes the inputs have, if they are files."""
    if any(str(each.path) == "-" for each in shares):
        return None
    return sum(each.path.stat().st_size for each in shares if each.path.is_file())


def _identity(shares: Sequence[Input], reading: Reading) -> str:
    """Returns a hash that changes with the names, sizes and times of change of the inputs.

    Raises:
        FileNotFoundError: A file is not there, and `on_error` is `fail`.
    """
    facts: list[Any] = []
    for path, first, last in shares:
        facts.append([str(path), first, last])
        if str(path) != "-":
            with contextlib.ExitStack() as stack:
                if reading.on_error != "fail":
                    stack.enter_context(contextlib.suppress(FileNotFoundError))
                stat = path.stat()
                facts[-1] += [stat.st_size, stat.st_mtime_ns]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _limited(tokenizer: Tokenizer, wanted: Output) -> Tokenizer:
    """Returns the tokenizer with the limits that are wanted instead of its own."""
    settings = tokenizer.light_settings
    truncation, padding = settings.truncation, settings.padding
    if wanted.max_length is not None or (wanted.stride is not None and truncation is not None):
        own = truncation or Truncation(wanted.max_length or 0)
        length = own.max_length if wanted.max_length is None else wanted.max_length
        truncation = dataclasses.replace(own, max_length=length, stride=wanted.stride or 0)
        tokenizer = tokenizer.with_truncation(**dataclasses.asdict(truncation))
    if truncation is None and (wanted.stride is not None or wanted.pad):
        raise Error(f"--{'pad' if wanted.pad else 'stride'} needs --max-length")
    if wanted.pad and truncation is not None:
        return tokenizer.with_padding(truncation.max_length)
    # The longest row of a batch says nothing in a stream.
    return tokenizer if padding is not None and padding.length else tokenizer.no_padding()


class _Encoder:
    """Makes tables of ids of blocks of documents.

    Attributes:
        tokens: How many tokens the last table holds.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        reading: Reading,
        wanted: Output,
        many: bool,
        num_threads: int | None,
    ):
        self.reading, self.wanted, self.many = reading, wanted, many
        self.threads = _threads(num_threads)
        self.tokens = 0
        self.is_pair = reading.pair_column is not None
        self.tokenizer = _limited(tokenizer, wanted)
        # Where rows and documents are not one to one, each row says what it is of.
        self.is_numbered = wanted.stride is not None or reading.on_error == "skip"
        self.encoder = self.tokenizer._ready(self.is_pair, wanted.special, OWN)
        with _told("these options cannot work"):
            self.tokenizer.encode_batch(
                [""], [""] if self.is_pair else None, add_special_tokens=wanted.special
            )

    def check(self, kind: str) -> None:
        """Raises what of the options does not go together with a kind of output."""
        largest = max(self.tokenizer.get_vocab().values(), default=0)
        if self.wanted.dtype == "uint16" and largest > 65_535:
            raise Error(
                f"--dtype uint16 holds ids up to 65535, and the vocabulary has {largest}",
                "use --dtype int32",
            )
        more = {*self.empty().columns, *self.reading.keep} - {"ids"}
        if kind == "bin" and more:
            raise Error(
                f"--format bin holds ids alone, and no {', '.join(sorted(more))}",
                "write parquet to have more",
            )
        if taken := {*self.empty().columns} & {*self.reading.keep}:
            raise Error(f"--keep {min(taken)}: the output has a column of that name already")

    def empty(self) -> pl.DataFrame:
        """Returns a table without rows, of the columns that every table has."""
        ids = pl.UInt16 if self.wanted.dtype == "uint16" else pl.Int32
        schema: dict[str, Any] = {"ids": pl.List(ids)}
        if self.is_pair:
            schema["type_ids"] = pl.List(pl.Int8)
        if self.tokenizer.light_settings.padding is not None:
            schema["attention_mask"] = pl.List(pl.Int8)
        if self.wanted.offsets:
            span = pl.Struct({"start": pl.UInt32, "end": pl.UInt32})
            schema["offsets"] = pl.List(span)
        if self.wanted.word_ids:
            schema["word_ids"] = pl.List(pl.Int32)
        if self.is_numbered:
            schema["document"] = pl.Int64
            if self.many:
                schema["file"] = pl.String
        return pl.DataFrame(schema=schema)

    def table(self, block: Block, path: Path) -> pl.DataFrame | None:
        """Encodes a block; None if it has no documents."""
        self.tokens = 0
        if not len(block.numbers):
            return None
        batch, valid = self.encode(block)
        is_valid = None if valid is None else valid[batch.samples]

        def lists(values: np.ndarray) -> pl.Series:
            return pl.Series(_core.ArrowList(values, batch.row_offsets, is_valid))

        columns: dict[str, Any] = {}
        for name, dtype in self.empty().schema.items():
            if name == "ids":
                columns[name] = lists(batch.ids)
            elif name in ("type_ids", "attention_mask", "word_ids"):
                columns[name] = lists(getattr(batch, name).astype(np.int32, copy=False))
            elif name == "offsets":
                columns[name] = lists(batch.offsets)
            elif name == "document":
                columns[name] = block.numbers[batch.samples]
            else:
                columns[name] = pl.repeat(str(path), len(batch), eager=True)
            columns[name] = pl.Series(name, columns[name]).cast(dtype)
        kept = block.kept
        if kept.width and self.wanted.stride is not None:
            kept = kept[batch.samples]
        self.tokens = int(columns["ids"].list.len().sum())
        return pl.DataFrame([*kept.get_columns(), *columns.values()])

    def encode(self, block: Block) -> tuple[EncodingBatch, np.ndarray | None]:
        """Encodes the documents; also returns which are not null, or None if none is."""
        wanted = self.wanted
        with _told(f"near document {int(block.numbers[0])} of its file"):
            options = (
                wanted.special,
                wanted.offsets,
                wanted.word_ids,
                wanted.offset_unit == "byte",
                wanted.stride is not None,
                self.threads,
            )
            if block.pairs is not None:
                rows, valid = self._pairs(block, options)
            elif isinstance(block.texts, Spans):
                rows = self.encoder.encode_flat(*block.texts, *options)
                valid = block.texts.valid
            else:
                *rows, valid = _core.encode_arrow(self.encoder, block.texts, *options)
            return self.tokenizer._batch(rows, self.is_pair, wanted.special, OWN), valid

    def _pairs(
        self, block: Block, options: tuple[Any, ...]
    ) -> tuple[Sequence[Any], np.ndarray | None]:
        """Encodes pairs; a pair is null where either of its texts is."""
        assert block.pairs is not None
        firsts, seconds = block.strings(), block.pairs.to_list()
        valid = np.array(
            [a is not None and b is not None for a, b in zip(firsts, seconds, strict=True)]
        )
        rows = self.encoder.encode_batch(
            [text or "" for text in firsts], [text or "" for text in seconds], False, *options
        )
        return rows, None if valid.all() else valid


class _Counter:
    """Makes tables of numbers of tokens of blocks of documents, and counts these numbers."""

    def __init__(self, encoder: _Encoder, max_length: int | None):
        self.encoder, self.max_length = encoder, max_length
        self.reading = encoder.reading
        self.tokens = 0
        self.lengths: Counter[int] = Counter()
        if "tokens" in self.reading.keep:
            raise Error("--keep tokens: the output has a column of that name already")

    def empty(self) -> pl.DataFrame:
        """Returns a table without rows."""
        numbered = {"document": pl.Int64} if self.encoder.is_numbered else {}
        return pl.DataFrame(schema={"tokens": pl.Int64, **numbered})

    def table(self, block: Block, path: Path) -> pl.DataFrame | None:
        """Counts the tokens of each document of a block; None if it has no documents."""
        self.tokens = 0
        if not len(block.numbers):
            return None
        batch, valid = self.encoder.encode(block)
        lengths = batch.lengths
        is_valid = np.ones(len(lengths), bool) if valid is None else valid
        found, documents = np.unique(lengths[is_valid], return_counts=True)
        self.lengths.update(dict(zip(found.tolist(), documents.tolist(), strict=True)))
        if self.max_length is not None:
            lengths = np.minimum(lengths, self.max_length)
        self.tokens = int(lengths[is_valid].sum())
        tokens = pl.Series("tokens", lengths)
        if valid is not None:
            tokens = pl.select(pl.when(pl.Series(valid)).then(tokens)).to_series().alias("tokens")
        columns = [*block.kept.get_columns(), tokens]
        if self.encoder.is_numbered:
            columns.append(pl.Series("document", block.numbers))
        return pl.DataFrame(columns)


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Turns what the core says of a call into an error that the user can mend."""
    try:
        yield
    except SettingsError:
        raise
    except ValueError as problem:
        raise Error(f"{problem} ({where})") from None
