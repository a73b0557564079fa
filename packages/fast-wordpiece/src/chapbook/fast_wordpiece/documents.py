"""Documents out of files of any size, in blocks, in order, and from any place on.

Notable choices:

- A line of plain text never becomes a Python string: a block of the file is a buffer, and its
  documents are spans of it.
- A block ends where a record ends. Polars parses blocks of csv and jsonl; only a block with which
  something is wrong is gone through record by record, to name each fault and to leave it out.
- Polars unpacks zst, which Python before 3.14 cannot, line by line: CR LF becomes LF.
"""

import contextlib
import csv
import difflib
import functools
import glob
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import polars as pl

from chapbook.core.errors import Error, TableError
from chapbook.fast_wordpiece import _core
from chapbook.fast_wordpiece.tokenizer import Errors

OnError = Literal["fail", "skip", "null"]

KINDS = {
    **dict.fromkeys(("txt", "text"), "txt"),
    **dict.fromkeys(("jsonl", "ndjson"), "jsonl"),
    **{name: name for name in ("csv", "tsv", "parquet")},
    **dict.fromkeys(("ipc", "arrow", "feather"), "ipc"),
}
TABLES = {"parquet": pl.scan_parquet, "ipc": pl.scan_ipc}
SEPARATORS = {"csv": ",", "tsv": "\t"}
# What a file of another kind begins with.
_STRANGERS = {
    b"\x1f\x8b": "packed by gzip; its name must end in .gz",
    b"\x28\xb5\x2f\xfd": "packed by zstd; its name must end in .zst",
    b"PAR1": "a parquet file",
    b"ARROW1": "an Arrow file",
    b"PK\x03\x04": "a zip archive",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"%PDF": "a PDF file",
    b"\x7fELF": "a program",
}
# Polars reads numbers, lists and objects as their text; a text that may be one is looked at again.
_MAYBE_NO_STRING = r"^(?:[\[{\-0-9]|true$|false$)"
_LONGEST_OPEN_QUOTE = 1 << 28
_TROUBLE = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    OSError,
    EOFError,
    zlib.error,
    RuntimeError,
)


class Place(NamedTuple):
    """Where reading goes on.

    Attributes:
        file: The number of the file among the inputs.
        at: Its first byte (after unpacking) that has not been read, or its first row of a table.
        row: How many documents, or lines of jsonl, of the file come before.
    """

    file: int = 0
    at: int = 0
    row: int = 0


class Input(NamedTuple):
    """A file, or the rows of a parquet or ipc file from `first` to before `last`."""

    path: Path
    first: int = 0
    last: int | None = None


class Spans(NamedTuple):
    """Documents in a buffer of UTF-8, each from its start to its end; null where not valid."""

    data: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    valid: np.ndarray | None = None


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        column: The column of texts, of files that have columns.
        pair_column: The column of second texts.
        keep: Columns that are carried along. From csv they come as strings.
        separator: What stands between the documents of plain text.
        format: Of all files: txt, jsonl, csv, tsv, parquet or ipc; None means by their suffixes.
        errors: `strict`, or `replace` to read what is not UTF-8 as U+FFFD.
        on_error: What happens to a document that cannot be read: the whole ends (`fail`), it is
            left out (`skip`), or it becomes null. What cannot be read of a file that breaks off
            is left out by both.
        batch_bytes: Roughly how many bytes are read at a time.
    """

    column: str = "text"
    pair_column: str | None = None
    keep: tuple[str, ...] = ()
    separator: str = "\n"
    format: str | None = None
    errors: Errors = "strict"
    on_error: OnError = "fail"
    batch_bytes: int = 1 << 20

    def __post_init__(self):
        for name, value, known in (
            ("errors", self.errors, ("strict", "replace")),
            ("on-error", self.on_error, ("fail", "skip", "null")),
            ("input-format", self.format, (None, *KINDS)),
        ):
            if value not in known:
                raise Error(f"--{name} {value} is unknown; it is {', '.join(filter(None, known))}")
        if not self.separator:
            raise Error("--separator is empty; it is what stands between two documents")
        if self.batch_bytes < 1:
            raise Error(f"--batch-bytes {self.batch_bytes} must be at least 1")

    @property
    def columns(self) -> list[str]:
        """The columns to read, each once."""
        pair = [] if self.pair_column is None else [self.pair_column]
        return list(dict.fromkeys([self.column, *pair, *self.keep]))


@dataclass(frozen=True)
class Block:
    """Some documents, one behind the other in a file.

    Attributes:
        texts: The documents.
        size: Bytes of text.
        place: Where reading goes on after them.
        read: Bytes of all inputs that have been read so far, as they lie on the disk.
        documents: How many documents there were, those left out included.
        numbers: The number of each document within its file.
        pairs: The second texts.
        kept: The columns that are carried along.
        rejected: What is wrong with documents that are left out or null.
    """

    texts: Spans | pl.Series
    size: int
    place: Place
    read: int
    documents: int
    numbers: np.ndarray
    pairs: pl.Series | None = None
    kept: pl.DataFrame = field(default_factory=pl.DataFrame)
    rejected: tuple[str, ...] = ()

    def strings(self) -> list[str | None]:
        """Returns the documents as Python strings."""
        if isinstance(self.texts, pl.Series):
            return self.texts.to_list()
        data, starts, ends, valid = self.texts
        raw = data.tobytes()
        places = zip(starts.tolist(), ends.tolist(), strict=True)
        if valid is None:
            return [raw[a:b].decode() for a, b in places]
        rows = zip(places, valid.tolist(), strict=True)
        return [raw[a:b].decode() if is_valid else None for (a, b), is_valid in rows]


class _Broken(Exception):  # noqa: N818 - it never leaves this module
    """The rest of a file cannot be read."""


# ----------------------------------------------------------------------------------------- files


def expand(patterns: Sequence[str | Path]) -> list[Path]:
    """Returns the files that are named, patterns such as `data/*.txt` by the files they match.

    Args:
        patterns: Files and patterns; `-` is stdin.

    Raises:
        Error: A pattern matches nothing, a folder is named, or stdin and something else.
    """
    files: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if glob.has_magic(str(pattern)) and not path.exists():
            found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))  # noqa: PTH207
            if not found:
                raise Error(f"{pattern}: no file matches")
            files += [each for each in found if not each.is_dir()]
        elif path.is_dir():
            raise Error(f"{path} is a folder", f"name its files, such as {path}/*.parquet")
        else:
            files.append(path)
    if len(files) > 1 and Path("-") in files:
        raise Error("stdin (-) cannot be read beside other files")
    return files


def kind_of(path: Path, format: str | None = None) -> tuple[str, str]:  # noqa: A002
    """Returns the kind of a file, and the suffix of its packing or an empty string.

    Raises:
        Error: The suffix is unknown, or the kind cannot be packed.
    """
    suffixes = ["", *(suffix.lower() for suffix in path.suffixes)]
    packed = suffixes.pop() if suffixes[-1] in (".gz", ".zst") else ""
    name = format or ("txt" if str(path) == "-" else suffixes[-1][1:])
    if name not in KINDS:
        known = ", ".join(KINDS)
        raise Error(
            f"{path}: {name or 'no suffix'} is no known kind of file; known are {known}",
            "say it with --input-format",
        )
    kind = KINDS[name]
    if kind in TABLES and (packed or str(path) == "-"):
        what = f"packed by {packed}" if packed else "from stdin"
        raise Error(f"{path}: {kind} cannot be read {what}; name the file itself")
    return kind, packed


def shard(inputs: Sequence[Path], number: int, count: int, reading: Reading) -> list[Input]:
    """Returns one of several shares of the inputs; all shares, in order, are the whole.

    Args:
        inputs: The files.
        number: Which share, from 0.
        count: How many shares there are. Each is some of the files if there are as many; else
            each is some of the rows of every file, which must be parquet or ipc.
        reading: How the files are read.

    Raises:
        Error: There is no such share, or there are too few files that cannot be divided.
    """
    if not 0 <= number < count:
        raise Error(f"--shard {number}/{count}: the shares are 0/{count} to {count - 1}/{count}")
    size = len(inputs)
    if size >= count:
        return [
            Input(path) for path in inputs[number * size // count : (number + 1) * size // count]
        ]
    rows = []
    for path in inputs:
        kind, _ = kind_of(path, reading.format)
        if kind not in TABLES:
            raise Error(
                f"--shard {number}/{count} needs {count} files or files with rows; {path} has none",
                "give as many files as shares, or parquet or ipc files",
            )
        with _readable(path):
            rows.append(_height(_scan(path, kind)))
    # The rows of all files in one line; a share is a piece of it.
    first, last = (number * sum(rows) // count, (number + 1) * sum(rows) // count)
    share, before = [], 0
    for path, height in zip(inputs, rows, strict=True):
        start, stop = max(first - before, 0), min(last - before, height)
        if start < stop:
            share.append(Input(path, start, stop))
        before += height
    return share


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what readers raise into an error that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except _TROUBLE as problem:
        raise Error(f"{path} cannot be read: {_reason(problem)}") from None


# ------------------------------------------------------------------------------------- documents


def documents(
    inputs: Sequence[Input],
    reading: Reading,
    start: Place = Place(),  # noqa: B008 - immutable
) -> Iterator[Block]:
    """Reads documents in order.

    Args:
        inputs: The files.
        reading: How they are read.
        start: The place of an earlier block, to go on after it.

    Yields:
        Blocks of documents.

    Raises:
        Error: A document or a file cannot be read, and `on_error` is `fail`; a column is missing.
        OSError: A file cannot be opened, and `on_error` is `fail`.
    """
    schema: dict[str, Any] = {}
    if start != Place() and reading.keep and str(inputs[0].path) != "-":
        # The types of kept columns of jsonl are those that the first file begins with.
        next(_blocks(inputs[:1], replace(reading, on_error="skip"), Place(), schema), None)
    yield from _blocks(inputs, reading, start, schema)


def _blocks(
    inputs: Sequence[Input], reading: Reading, start: Place, schema: dict[str, Any]
) -> Iterator[Block]:
    """Yields blocks of documents; the types of columns of jsonl are left in the schema."""
    before = sum(_size(each.path) for each in inputs[: start.file])
    for number in range(start.file, len(inputs)):
        each = inputs[number]
        kind, packed = kind_of(each.path, reading.format)
        place = start if number == start.file else Place(number)
        try:
            if kind in TABLES:
                blocks = _table_blocks(each, kind, reading, place)
            else:
                blocks = _text_blocks(each.path, kind, packed, reading, place, schema)
            for block in blocks:
                yield replace(block, read=before + block.read)
                place = block.place
        except (_Broken, FileNotFoundError, PermissionError) as problem:
            if reading.on_error == "fail":
                if isinstance(problem, OSError):
                    raise
                raise Error(str(problem), "--on-error skip goes on with what can be read") from None
            text = str(problem)
            if isinstance(problem, OSError):
                text = f"{each.path}: {problem.strerror}"
            yield _nothing(reading, Place(number + 1), before + _size(each.path), text)
        before += _size(each.path)


def _nothing(reading: Reading, place: Place, read: int, why: str) -> Block:
    """A block without documents that tells of a file, or of the rest of one, that is left out."""
    empty = pl.Series([], dtype=pl.String)
    pairs = None if reading.pair_column is None else empty
    return Block(empty, 0, place, read, 0, np.zeros(0, np.int64), pairs, rejected=(why,))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _reason(problem: BaseException) -> str:
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return (str(problem) or type(problem).__name__).partition("\n")[0]


# ---------------------------------------------------------------------------------------- tables


def _scan(path: Path, kind: str) -> pl.LazyFrame:
    options: dict[str, Any] = {"glob": False} if kind == "parquet" else {}
    source = str(path) if kind == "parquet" else glob.escape(str(path))
    return TABLES[kind](source, hive_partitioning=False, **options)


def _height(lazy: pl.LazyFrame) -> int:
    return lazy.select(pl.len()).collect().item()


def _table_blocks(each: Input, kind: str, reading: Reading, place: Place) -> Iterator[Block]:
    path = each.path
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    try:
        lazy = _scan(path, kind)
        schema = dict(lazy.collect_schema())
        _require(path, reading, list(schema))
        height = _height(lazy)
    except _TROUBLE as problem:
        raise _Broken(f"{path} is not a whole {kind} file: {_reason(problem)}") from None
    for name in reading.columns:
        text = name in (reading.column, reading.pair_column)
        if text and schema[name] not in (pl.String, pl.Binary, pl.Categorical, pl.Null, pl.Enum):
            raise TableError(
                f'{path}: column "{name}" is {schema[name]}, not text', path=path, column=name
            )
    last = height if each.last is None else each.last
    first = max(place.at, each.first)
    average = max(1, _size(path) // max(1, height))
    rows = min(max(reading.batch_bytes // average, 64), 1 << 16)
    part = lazy.select(reading.columns).slice(first, last - first)
    done = first
    try:
        for frame in part.collect_batches(chunk_size=rows, maintain_order=True):
            for at in range(0, frame.height, rows):
                some = frame[at : at + rows]
                done += some.height
                read = _size(path) * (done - each.first) // max(1, last - each.first)
                yield _table_block(path, some, done - some.height, reading, place.file, read)
    except _TROUBLE as problem:
        raise _Broken(f"{path} cannot be read after row {done}: {_reason(problem)}") from None


def _table_block(
    path: Path, frame: pl.DataFrame, first: int, reading: Reading, file: int, read: int
) -> Block:
    bad: dict[int, str] = {}
    for name in dict.fromkeys(filter(None, (reading.column, reading.pair_column))):
        column = frame[name]
        texts = _texts(column, reading)
        for row in (texts.is_null() & column.is_not_null()).arg_true().to_list():
            bad[row] = f'{path}: row {first + row}: column "{name}" is not UTF-8'
        frame = frame.with_columns(texts)
    height = frame.height
    numbers = np.arange(first, first + height)
    if bad:
        frame, numbers = _without(bad, frame, numbers, reading)
    place = Place(file, first + height, first + height)
    return _framed(frame, reading, place, read, height, numbers, bad)


def _texts(column: pl.Series, reading: Reading) -> pl.Series:
    """Returns a column as strings, null where its bytes are not UTF-8."""
    if column.dtype != pl.Binary or reading.errors == "strict":
        return column.cast(pl.String, strict=False)
    texts = [None if raw is None else raw.decode("utf-8", "replace") for raw in column]
    return pl.Series(column.name, texts, pl.String)


def _without(
    bad: dict[int, str], frame: pl.DataFrame, numbers: np.ndarray, reading: Reading
) -> tuple[pl.DataFrame, np.ndarray]:
    """Returns a table without its bad rows, or with null in the place of their texts."""
    if reading.on_error == "fail":
        raise Error(bad[min(bad)], _MENDS)
    good = np.ones(frame.height, bool)
    good[list(bad)] = False
    mask = pl.Series(good)
    if reading.on_error == "skip":
        return frame.filter(mask), numbers[good]
    names = dict.fromkeys(filter(None, (reading.column, reading.pair_column)))
    nulls = [pl.when(mask).then(pl.col(name)).alias(name) for name in names]
    return frame.with_columns(nulls), numbers


_MENDS = "mend it, or pass --on-error skip or null"


def _framed(
    frame: pl.DataFrame,
    reading: Reading,
    place: Place,
    read: int,
    count: int,
    numbers: np.ndarray,
    bad: dict[int, str],
) -> Block:
    texts = frame[reading.column]
    pairs = None if reading.pair_column is None else frame[reading.pair_column]
    size = int(texts.str.len_bytes().sum() or 0)
    if pairs is not None:
        size += int(pairs.str.len_bytes().sum() or 0)
    kept = frame.select(list(reading.keep))
    told = tuple(bad[number] for number in sorted(bad))
    return Block(texts, size, place, read, count, numbers, pairs, kept, told)


def _require(path: Path, reading: Reading, held: list[str]) -> None:
    for name in reading.columns:
        if name not in held:
            near = difflib.get_close_matches(name, held, 1, 0.5)
            option = "--column" if name == reading.column else "--keep"
            option = "--pair-column" if name == reading.pair_column else option
            fix = f". Did you mean {near[0]}? Pass {option} {near[0]}" if near else ""
            shown = ", ".join(held[:20]) + (" ..." if len(held) > 20 else "")
            raise TableError(
                f'{path}: no column "{name}"; it has {shown}{fix}', path=path, column=name
            )


# ------------------------------------------------------------------------------------ text files


class _ZstFile:
    """The lines of a zst file, to be read like a file."""

    def __init__(self, path: Path):
        if not hasattr(pl, "scan_lines"):
            raise Error(f"{path}: zst needs Polars 1.38 or newer", "pip install 'polars>=1.38'")
        lines = pl.scan_lines(str(path), name="line", glob=False)
        self._frames = iter(lines.collect_batches(chunk_size=4096, maintain_order=True))
        self._held = bytearray()

    def read(self, size: int) -> bytes:
        """Returns so many bytes, and fewer only at the end."""
        while len(self._held) < size:
            frame = next(self._frames, None)
            if frame is None:
                break
            if frame.height:
                self._held += frame["line"].str.join("\n")[0].encode() + b"\n"
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken


def _text_blocks(
    path: Path, kind: str, packed: str, reading: Reading, place: Place, schema: dict[str, Any]
) -> Iterator[Block]:
    """Yields the blocks of a file of text."""
    parser = _Parser(path, kind, reading, schema)
    if str(path) == "-":
        yield from _stream_blocks(parser, sys.stdin.buffer, None, place)
        return
    with path.open("rb") as raw:
        if packed == ".gz":
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield from _stream_blocks(parser, unpacked, raw, place)
        elif packed:
            yield from _stream_blocks(parser, _ZstFile(path), None, place)
        else:
            yield from _stream_blocks(parser, raw, raw, place)


def _stream_blocks(
    parser: "_Parser", stream: Any, raw: BinaryIO | None, place: Place
) -> Iterator[Block]:
    path, kind, reading = parser.path, parser.kind, parser.reading
    separator = reading.separator.encode() if kind == "txt" else b"\n"
    ends = _csv_end if kind in SEPARATORS else functools.partial(_end, separator)
    held = _read(path, stream, reading.batch_bytes)
    _check_kind(path, held)
    at = 3 if held.startswith(b"\xef\xbb\xbf") else 0
    held = held[at:]
    if kind in SEPARATORS:
        held, at = parser.take_header(stream, held, at)
    if place.at > at:
        held, at = _skipped(path, stream, held, at, place.at), place.at
    row = place.row
    while True:
        end = ends(held)
        if not end:
            # A record that is longer than a block: twice as much is read each time.
            data = _read(path, stream, max(reading.batch_bytes, len(held)))
            held += data
            if data and (kind not in SEPARATORS or len(held) < _LONGEST_OPEN_QUOTE):
                continue
            if data:
                raise _Broken(f"{path}: record {row + 1} does not end (is a quote left open?)")
            end = len(held)
        if not end:
            return
        made = parser.parse(held[:end], separator, Place(place.file, at, row))
        at, row, held = at + end, made.place.row, held[end:]
        yield replace(made, place=Place(place.file, at, row), read=raw.tell() if raw else 0)


def _read(path: Path, stream: Any, size: int) -> bytes:
    try:
        return stream.read(size)
    except (OSError, EOFError, zlib.error, pl.exceptions.PolarsError) as problem:
        raise _Broken(f"{path} cannot be read to its end: {_reason(problem)}") from None


def _skipped(path: Path, stream: Any, held: bytes, at: int, goal: int) -> bytes:
    """Goes on to a byte of a stream, and returns what is held of it from there."""
    if goal - at <= len(held):
        return held[goal - at :]
    left = goal - at - len(held)
    if isinstance(stream, io.BufferedReader):
        stream.seek(goal)
        return b""
    while left > 0:
        data = _read(path, stream, min(left, 1 << 20))
        if not data:
            raise Error(f"{path} is shorter than it was; encode it anew")
        left -= len(data)
    return b""


def _check_kind(path: Path, head: bytes) -> None:
    for magic, what in _STRANGERS.items():
        if head.startswith(magic):
            raise _Broken(f"{path} is {what}")
    nulls = head[:4096].count(0)
    if nulls > len(head[:4096]) // 10 + 1:
        raise _Broken(f"{path} holds binary data ({nulls} of its first 4096 bytes are 0)")


def _end(separator: bytes, block: bytes) -> int:
    """Returns where the last whole record of a block ends."""
    found = block.rfind(separator)
    return found + len(separator) if found >= 0 else 0


def _csv_ends(block: bytes) -> np.ndarray:
    """Returns where the records of csv end: at line feeds outside of quotes."""
    data = np.frombuffer(block, np.uint8)
    lines, quotes = np.flatnonzero(data == 10), np.flatnonzero(data == 34)
    return lines[np.searchsorted(quotes, lines) % 2 == 0] + 1


def _csv_end(block: bytes) -> int:
    ends = _csv_ends(block)
    return int(ends[-1]) if len(ends) else 0


def _spans(block: bytes, separator: bytes, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the records of a block start and end, without what separates them."""
    if kind in SEPARATORS:
        ends = _csv_ends(block) - 1
    elif len(separator) == 1:
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == separator[0])
    else:
        found = re.finditer(re.escape(separator), block)
        ends = np.array([each.start() for each in found], np.int64)
    starts = np.concatenate([[0], ends + len(separator)])
    if starts[-1] == len(block):
        starts = starts[:-1]
    else:
        ends = np.append(ends, len(block))
    if separator == b"\n":
        data = np.frombuffer(block, np.uint8)
        ends = ends - ((ends > starts) & (data[ends - 1] == 13))
    return starts.astype(np.int64), ends.astype(np.int64)


class _Parser:
    """Makes documents of the blocks of one file of text."""

    def __init__(self, path: Path, kind: str, reading: Reading, schema: dict[str, Any]):
        self.path, self.kind, self.reading, self.schema = path, kind, reading, schema
        self.header = b""
        self.names: list[str] = []
        self.is_checked = False
        if kind == "txt" and (reading.keep or reading.pair_column):
            raise Error(f"{path} is plain text and has no columns to keep or to pair")

    def take_header(self, stream: Any, held: bytes, at: int) -> tuple[bytes, int]:
        """Reads the first record of csv; returns what is held after it, and where that begins."""
        while not len(ends := _csv_ends(held)):
            data = _read(self.path, stream, max(1 << 16, len(held)))
            held += data
            if not data:
                held += b"\n" * bool(held)
                break
        if not held:
            raise _Broken(f"{self.path} is empty")
        ends = ends if len(ends) else _csv_ends(held)
        if not len(ends):
            raise _Broken(f"{self.path}: the header does not end (is a quote left open?)")
        end = int(ends[0])
        self.header = held[:end]
        try:
            text = self.header.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise _Broken(f"{self.path}: the header is not UTF-8") from None
        self.names = next(csv.reader([text], delimiter=SEPARATORS[self.kind]), [])
        _require(self.path, self.reading, self.names)
        return held[end:], at + end

    def parse(self, block: bytes, separator: bytes, place: Place) -> Block:
        """Makes documents of whole records.

        Args:
            block: The records.
            separator: What stands between them.
            place: Where they begin.
        """
        if self.reading.errors == "replace":
            block = block.decode("utf-8", "replace").encode()
        data = np.frombuffer(block, np.uint8)
        starts, ends = _spans(block, separator, self.kind)
        bad = self._not_utf8(data, starts, place)
        if self.kind == "txt":
            return self._plain(data, starts, ends, bad, place)
        if self.kind == "jsonl":
            full = np.array(
                [bool(block[a:b].strip()) for a, b in zip(starts, ends, strict=True)], bool
            )
        else:
            full = (ends > starts) | (len(self.names) == 1)
        if self.kind == "jsonl" and not self.is_checked:
            self._learn(block, starts, ends, bad)
        frame = None
        if not bad and (self.kind == "jsonl" or self._is_even(data, starts[full], ends[full])):
            frame = self._fast(block, int(full.sum()))
        if frame is None:
            bad |= self._faults(block, starts, ends, full, bad, place)
            block = self._mended(block, starts, ends, full, bad)
            frame = self._frame(block)
        numbers = np.flatnonzero(full)
        count = len(numbers)
        told = {row: bad[record] for row, record in enumerate(numbers.tolist()) if record in bad}
        if bad:
            if self.reading.on_error == "fail":
                raise Error(bad[min(bad)], _MENDS)
            if self.reading.on_error == "skip":
                numbers = np.delete(numbers, list(told))
        after = Place(place.file, place.at, place.row + len(starts))
        return _framed(frame, self.reading, after, 0, count, numbers + place.row, told)

    def _not_utf8(self, data: np.ndarray, starts: np.ndarray, place: Place) -> dict[int, str]:
        """Returns the records that are not UTF-8."""
        bad: dict[int, str] = {}
        at = 0
        while (found := _core.first_invalid_utf8(data[at:])) >= 0:
            record = int(np.searchsorted(starts, at + found, "right")) - 1
            byte = place.at + at + found
            bad[record] = f"{self._where(place, record)}: byte {byte} of the file is not UTF-8"
            if record + 1 == len(starts):
                break
            at = int(starts[record + 1])
        return bad

    def _where(self, place: Place, record: int) -> str:
        row = place.row + record + 1
        if self.kind == "txt" and self.reading.separator != "\n":
            return f"{self.path}, document {row}"
        return f"{self.path}, record {row}" if self.kind in SEPARATORS else f"{self.path}:{row}"

    def _plain(
        self,
        data: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        bad: dict[int, str],
        place: Place,
    ) -> Block:
        count = len(starts)
        numbers = np.arange(place.row, place.row + count)
        valid = None
        if bad:
            if self.reading.on_error == "fail":
                hint = f"{_MENDS}, or --errors replace to read on"
                raise Error(bad[min(bad)], hint)
            valid = np.ones(count, bool)
            valid[list(bad)] = False
            if self.reading.on_error == "skip":
                starts, ends, numbers, valid = starts[valid], ends[valid], numbers[valid], None
        size = int((ends - starts).sum())
        told = tuple(bad[record] for record in sorted(bad))
        after = Place(place.file, place.at, place.row + count)
        spans = Spans(data, starts, ends, valid)
        return Block(spans, size, after, 0, count, numbers, rejected=told)

    # -------------------------------------------------------------------------- csv and jsonl

    def _learn(
        self, block: bytes, starts: np.ndarray, ends: np.ndarray, bad: dict[int, str]
    ) -> None:
        """Takes the columns and their types from the first whole record of jsonl."""
        for record, (a, b) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            if record in bad:
                continue
            try:
                first = json.loads(block[a:b])
            except ValueError:
                continue
            if isinstance(first, dict):
                _require(self.path, self.reading, list(first))
                break
        else:
            return
        self.is_checked = True
        if self.schema:
            return
        self.schema.update(dict.fromkeys(self.reading.columns, pl.String()))
        if self.reading.keep:
            try:
                held = pl.read_ndjson(block, infer_schema_length=None).schema
            except pl.exceptions.PolarsError:
                held = pl.read_ndjson(block[a:b]).schema
            for name in self.reading.keep:
                if name not in (self.reading.column, self.reading.pair_column):
                    self.schema[name] = held[name]

    def _frame(self, block: bytes) -> pl.DataFrame:
        if self.kind == "jsonl":
            schema = self.schema or dict.fromkeys(self.reading.columns, pl.String())
            return pl.read_ndjson(block, schema=schema)
        return pl.read_csv(
            self.header + block,
            separator=SEPARATORS[self.kind],
            columns=self.reading.columns,
            infer_schema=False,
        )

    def _is_even(self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> bool:
        """Whether every record of csv has as many fields as the header.

        Polars fills those that are too short with nulls, and cuts those that are too long.
        """
        between = np.flatnonzero(data == ord(SEPARATORS[self.kind]))
        quotes = np.flatnonzero(data == ord('"'))
        between = between[np.searchsorted(quotes, between) % 2 == 0]
        fields = np.searchsorted(between, ends) - np.searchsorted(between, starts) + 1
        return bool((fields == len(self.names)).all())

    def _fast(self, block: bytes, count: int) -> pl.DataFrame | None:
        """Parses a block; returns None where something may be wrong with it."""
        if self.kind == "jsonl" and re.search(rb"\\u[dD][89a-fA-F]", block):
            return None  # half a surrogate pair perhaps, which Polars reads as something else
        try:
            frame = self._frame(block)
        except pl.exceptions.PolarsError:
            return None
        if frame.height != count:
            return None
        if self.kind == "jsonl":
            names = dict.fromkeys(filter(None, (self.reading.column, self.reading.pair_column)))
            odd = pl.any_horizontal(pl.col(*names).str.contains(_MAYBE_NO_STRING)).any()
            return None if frame.select(odd).item() else frame
        return frame

    def _faults(
        self,
        block: bytes,
        starts: np.ndarray,
        ends: np.ndarray,
        full: np.ndarray,
        bad: dict[int, str],
        place: Place,
    ) -> dict[int, str]:
        """Goes through a block record by record and returns what is wrong with which."""
        check: Callable[[str], str | None]
        check = self._json_fault if self.kind == "jsonl" else self._csv_fault
        faults: dict[int, str] = {}
        for record in np.flatnonzero(full).tolist():
            if record in bad:
                continue
            if fault := check(block[starts[record] : ends[record]].decode()):
                faults[record] = f"{self._where(place, record)}: {fault}"
        return faults

    def _json_fault(self, line: str) -> str | None:
        try:
            values = json.loads(line)
        except ValueError as problem:
            return f"not JSON: {problem}"
        if not isinstance(values, dict):
            return "not a JSON object"
        for name in filter(None, (self.reading.column, self.reading.pair_column)):
            text = values.get(name)
            if text is not None and not isinstance(text, str):
                return f"{name} is {json.dumps(text)[:40]}, not a string"
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "half a surrogate pair, which no text can hold"
        try:
            if self.schema:
                self._frame(line.encode())
        except pl.exceptions.PolarsError as problem:
            return _reason(problem)
        return None

    def _csv_fault(self, record: str) -> str | None:
        csv.field_size_limit(sys.maxsize)
        try:
            lines = io.StringIO(record, "")
            fields = next(csv.reader(lines, delimiter=SEPARATORS[self.kind], strict=True), [""])
        except csv.Error as problem:
            return f"{problem} (is a quote left open?)"
        if len(fields or [""]) != len(self.names):
            return f"{len(fields)} fields, the header has {len(self.names)}"
        return None

    def _mended(
        self,
        block: bytes,
        starts: np.ndarray,
        ends: np.ndarray,
        full: np.ndarray,
        bad: dict[int, str],
    ) -> bytes:
        """Returns a block without its bad records, or with empty ones in their place."""
        if self.reading.on_error == "null":
            empty = b"{}" if self.kind == "jsonl" else self._empty_record()
        else:
            empty = None
        records = []
        for record in np.flatnonzero(full).tolist():
            if record not in bad:
                records.append(block[starts[record] : ends[record]])
            elif empty is not None:
                records.append(empty)
        return b"".join(record + b"\n" for record in records)

    def _empty_record(self) -> bytes:
        return SEPARATORS[self.kind].encode() * (len(self.names) - 1)
