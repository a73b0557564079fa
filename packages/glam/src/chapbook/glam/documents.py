"""Documents out of files of text and into tables, in batches that fit into memory.

Notable choices:

- A txt file is one document; of a jsonl, csv, tsv or parquet file, each row is one.
- Text is UTF-8 without NUL. What is not is an error that names the place, or becomes U+FFFD.
- Text formats are read as a stream of decoded lines rather than by Polars, which would take packed
  files whole and cannot tell where a byte is wrong.
"""

import codecs
import csv
import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl
import zstandard
from polars.io.plugins import register_io_source

from chapbook.core.errors import Error, TableError
from chapbook.core.io import write_atomic
from chapbook.core.tables import scan_table, write_table

Paths = str | Path | Sequence[str | Path]
Faults = Literal["strict", "replace"]

BLOCK = 1 << 20  # bytes that are decoded at once
BATCH_ROWS, BATCH_CHARACTERS = 8192, 1 << 23  # a batch ends when it holds either

_SEPARATOR = {"csv": ",", "tsv": "\t"}
_KINDS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv",
          ".parquet": "parquet"}  # fmt: skip
_PACKED = (".gz", ".zst")
_KNOWN = "txt, jsonl, csv and tsv, also packed as gz or zst, and parquet"


def read_documents(
    paths: Paths, *, text: str = "text", errors: Faults = "strict"
) -> Iterator[pl.DataFrame]:
    """Reads documents batch by batch, in an order that does not change.

    A batch holds up to 8,192 documents or about 8 million characters; one document is never split.

    Args:
        paths: Files, folders (all files below them that are of a known kind, by name) or patterns
            such as `web/*.jsonl.zst`. A txt file is one document; a row of a jsonl, csv, tsv or
            parquet file is one. All but parquet may be packed by gz or zst.
        text: The column of the text, where there are columns.
        errors: Whether bytes that are not UTF-8, and NULs, are errors or become U+FFFD.

    Returns:
        Frames with `id` and `text`, String both, and then the further columns of the file: those
        of csv are text, those of jsonl are typed batch by batch. The id is the file's own column
        `id`, or a hash of the file's path below the deepest folder that all files share, and of
        the row. So the whole corpus may move, yet a corpus with an `id` may also be regrouped.

    Raises:
        Error: There is no document, or a file is of no known kind.
        TableError: A file does not hold what it should; the message names the line or the byte.
    """
    return _batches(find_files(paths), text, errors)


def write_documents(batches: Iterable[pl.DataFrame], path: str | Path) -> int:
    """Writes frames as they come, whole or not at all, and returns the number of rows.

    Args:
        batches: Frames; in jsonl they may differ in their columns, elsewhere they may not.
        path: A jsonl file, which may be packed as gz or zst, or another table: parquet, csv, ipc.

    Raises:
        Error: There is no row, or the frames differ in their columns.
    """
    file, rows = Path(path), 0
    started = iter(batches)
    first = next(started, pl.DataFrame())

    def counted() -> Iterator[pl.DataFrame]:
        nonlocal rows
        for batch in itertools.chain([first], started):
            rows += batch.height
            yield batch

    def as_lines(part: Path) -> None:
        opened = {".gz": gzip.open, ".zst": zstandard.open}.get(part.suffix, Path.open)
        with opened(part, "wb") as lines:
            for batch in counted():
                lines.write(batch.write_ndjson().encode())

    def alike(*_: Any) -> Iterator[pl.DataFrame]:
        for batch in counted():
            if batch.schema != first.schema:
                then, now = (
                    _listed(f"{n} {t}" for n, t in b.schema.items()) for b in (first, batch)
                )
                told = f"{file}: after columns {then} came {now}"
                raise Error(told, "write jsonl, or name fewer columns in the source")
            yield batch

    if not first.width:
        raise Error(f"{file}: there are no documents to write")
    if _kind(file) == "jsonl":
        write_atomic(file, as_lines)
    else:
        write_table(register_io_source(alike, schema=first.schema), file)
    return rows


def find_files(paths: Paths) -> list[Path]:
    """Returns the files that hold documents, in order.

    Args:
        paths: As for `read_documents`.

    Raises:
        Error: A path does not exist, is of no known kind, or is there twice; a folder or pattern
            has no file of a known kind.
    """
    found: list[Path] = []
    for each in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(each)
        if path.is_dir():
            below = sorted(path.rglob("*"))
            files = [p for p in below if p.is_file() and _kind(p) and not p.name.startswith(".")]
        elif not path.exists() and glob.has_magic(str(path)):
            files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        else:
            files = [path]
        if not files:
            raise Error(f"{path}: no documents there; known are {_KNOWN}")
        found += files
    if not found:
        raise Error("no files of documents were given")
    for path in found:
        if not path.exists():
            raise Error(f"{path}: no such file or folder")
        if not _kind(path):
            raise Error(f"{path}: no kind of document that is known; known are {_KNOWN}")
    absolute = [path.absolute() for path in found]
    if len(set(absolute)) < len(absolute):
        twice = next(path for i, path in enumerate(absolute) if path in absolute[:i])
        raise Error(f"{twice} is given twice")
    return found


def _kind(path: Path) -> str | None:
    """Returns the kind of a file by its suffix, or None if it holds no documents."""
    packed = path.suffix in _PACKED
    kind = _KINDS.get(path.with_suffix("").suffix if packed else path.suffix)
    return None if packed and kind == "parquet" else kind


def _batches(files: list[Path], text: str, errors: Faults) -> Iterator[pl.DataFrame]:
    root = os.path.commonpath([path.absolute().parent for path in files])
    count = 0
    for kind, group in itertools.groupby(files, _kind):
        if kind == "txt":
            batches = _texts(group, root, errors)
        else:
            read = {"jsonl": _jsonl, "parquet": _parquet}.get(kind or "", _csv)
            batches = (
                _framed(path, root, rows, text, errors)
                for path in group
                for rows in read(path, text, errors)
            )
        for batch in batches:
            count += batch.height
            yield batch
    if not count:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        raise Error(f"{files[0]}{more}: no documents there")


def _texts(paths: Iterable[Path], root: str, errors: Faults) -> Iterator[pl.DataFrame]:
    ids: list[str] = []
    texts: list[str] = []
    size = 0
    for path in paths:
        ids.append(_id(path, root, 0))
        texts.append("".join(_decoded(path, errors)))
        size += len(texts[-1])
        if len(texts) == BATCH_ROWS or size >= BATCH_CHARACTERS:
            yield pl.DataFrame({"id": ids, "text": texts})
            ids, texts, size = [], [], 0
    if texts:
        yield pl.DataFrame({"id": ids, "text": texts})


class _Rows:
    """Some rows of a file as a frame: the number of the first, and their lines if it has lines."""

    def __init__(self, table: pl.DataFrame, first: int, lines: Sequence[int] | None = None):
        self.table, self.first, self.lines = table, first, lines

    def error(self, path: Path, row: int, column: str, what: str) -> TableError:
        place = self.lines[row] if self.lines else self.first + row
        where = f":{place}" if self.lines else f": row {place}"
        return TableError(f"{path}{where}: {column} {what}", path=path, column=column, row=place)


def _framed(path: Path, root: str, rows: _Rows, text: str, errors: Faults) -> pl.DataFrame:
    """Returns rows as `id`, `text` and the rest, after looking at the values."""
    table = rows.table
    if text != "text" and "text" in table.columns:
        raise TableError(f"{path}: it has a column text beside {text}", path=path, column=text)
    for name in (text, "id"):
        if name in table.columns and table[name].null_count():
            raise rows.error(path, table[name].is_null().arg_max() or 0, name, "is empty")
    nul = table[text].str.contains("\0", literal=True)
    if nul.any():
        if errors == "strict":
            raise rows.error(path, nul.arg_max() or 0, text, "holds a NUL")
        table = table.with_columns(pl.col(text).str.replace_all("\0", "\ufffd", literal=True))
    if "id" in table.columns:
        ids = table["id"].cast(pl.String)
    else:
        ids = pl.Series("id", [_id(path, root, rows.first + i) for i in range(table.height)])
    found = table.drop(text, "id", strict=False)
    return pl.DataFrame([ids, table[text].alias("text")]).hstack(found)


def _id(path: Path, root: str, row: int) -> str:
    name = path.absolute().relative_to(root).as_posix()
    return hashlib.blake2b(os.fsencode(f"{name}:{row}"), digest_size=12).hexdigest()


def _parquet(path: Path, text: str, errors: Faults) -> Iterator[_Rows]:
    del errors  # its text is UTF-8 by the format
    first = 0
    try:
        lazy = scan_table(path, schema={text: pl.String})
        for table in lazy.collect_batches(chunk_size=BATCH_ROWS):
            yield _Rows(table, first)
            first += table.height
    except pl.exceptions.PolarsError as problem:
        why = str(problem).partition("\n")[0]
        raise TableError(f"{path} is not a whole parquet file: {why}", path=path) from problem


def _jsonl(path: Path, text: str, errors: Faults) -> Iterator[_Rows]:
    def parsed() -> Iterator[tuple[int, dict[str, Any]]]:
        for line, content in enumerate(_lines(path, errors), 1):
            if not content.strip():
                continue
            row, what = {}, None
            try:
                row = json.loads(content)
                if not isinstance(row, dict):
                    what = "no JSON object"
                elif text not in row:
                    what = f'no column "{text}"; it has {_listed(row)}'
                elif not isinstance(row[text], str):
                    what = f"{text} is not text"
                else:
                    row[text] = _without_surrogates(row[text], errors)
            except json.JSONDecodeError as problem:
                what = f"not JSON: {problem.msg}"
            except UnicodeEncodeError:
                what = f"{text} holds half of a surrogate pair"
            if what:
                raise TableError(f"{path}:{line}: {what}", path=path, column=text, row=line)
            yield line, row

    first = 0
    for lines, rows in _gathered(parsed(), lambda row: len(row[text])):
        try:
            table = pl.from_dicts(rows, infer_schema_length=None)
        except (TypeError, ValueError, pl.exceptions.PolarsError) as problem:
            why = str(problem).partition("\n")[0]
            told = f"{path}: lines {lines[0]} to {lines[-1]} do not fit in one table: {why}"
            raise TableError(told, path=path, row=lines[0]) from problem
        yield _Rows(table, first, lines)
        first += len(rows)


def _without_surrogates(text: str, errors: Faults) -> str:
    r"""Returns text without the halves of pairs that JSON can escape (`\ud800`) and UTF-8 not."""
    if errors == "replace":
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if not text.isascii():
        text.encode()
    return text


def _csv(path: Path, text: str, errors: Faults) -> Iterator[_Rows]:
    csv.field_size_limit(sys.maxsize)
    separator = _SEPARATOR[_kind(path) or ""]
    reader = csv.reader(_lines(path, errors), delimiter=separator, strict=True)
    header = next(reader, [])
    if not header:
        return
    if text not in header:
        told = f'{path}: no column "{text}"; it has {_listed(header)}'
        raise TableError(told, path=path, column=text)
    if len(set(header)) < len(header):
        raise TableError(f"{path}: two columns have one name: {_listed(header)}", path=path)
    place = header.index(text)

    def records() -> Iterator[tuple[int, list[str]]]:
        line = reader.line_num + 1
        try:
            for record in reader:
                if len(record) != len(header):
                    what = f"the line has {len(record)} fields, the header has {len(header)}"
                    raise TableError(f"{path}:{line}: {what}", path=path, row=line)
                yield line, record
                line = reader.line_num + 1
        except csv.Error as problem:
            told = f"{path}:{line}: {problem} (is a quote left open?)"
            raise TableError(told, path=path, row=line) from None

    first = 0
    for lines, rows in _gathered(records(), lambda record: len(record[place])):
        table = pl.DataFrame(rows, schema=dict.fromkeys(header, pl.String), orient="row")
        yield _Rows(table, first, lines)
        first += len(rows)


def _gathered(rows: Iterator[tuple[int, Any]], size: Any) -> Iterator[tuple[list[int], list[Any]]]:
    """Gathers rows and their lines to batches of bounded size."""
    lines: list[int] = []
    batch: list[Any] = []
    characters = 0
    for line, row in rows:
        lines.append(line)
        batch.append(row)
        characters += size(row)
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield lines, batch
            lines, batch, characters = [], [], 0
    if batch:
        yield lines, batch


def _listed(names: Iterable[str]) -> str:
    shown = [str(name) for name in itertools.islice(names, 21)]
    return ", ".join(shown[:20]) + (" ..." if len(shown) > 20 else "")


def _lines(path: Path, errors: Faults) -> Iterator[str]:
    """Yields lines with their ends; only a line feed ends one."""
    rest = ""
    for piece in _decoded(path, errors):
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            yield line + "\n"
    if rest:
        yield rest


def _decoded(path: Path, errors: Faults) -> Iterator[str]:
    """Yields the text of a file, unpacked, piece by piece."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors)
    start = 0  # of the block, among the unpacked bytes
    for block in itertools.chain(_blocks(path), [b""]):
        pending = len(decoder.getstate()[0])
        try:
            piece = decoder.decode(block, final=not block)
        except UnicodeDecodeError as problem:
            place = start - pending + problem.start
            told = f"{path}: byte {place} is not UTF-8"
            raise TableError(told, path=path, hint="save it as UTF-8, or replace errors") from None
        if "\0" in piece:
            if errors == "strict":
                told = f"{path}: byte {start + block.index(0)} is NUL"
                raise TableError(told, path=path, hint="is it text? if it is, replace errors")
            piece = piece.replace("\0", "\ufffd")
        start += len(block)
        if piece:
            yield piece


def _blocks(path: Path) -> Iterator[bytes]:
    """Yields the bytes of a file, unpacked."""
    with path.open("rb") as raw:
        file: Any = raw
        if path.suffix == ".gz":
            file = gzip.GzipFile(fileobj=raw)
        elif path.suffix == ".zst":
            file = _Zstandard(raw)
        while block := _read(file, path):
            yield block


def _read(file: Any, path: Path) -> bytes:
    try:
        return file.read(BLOCK)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError):
        raise TableError(f"{path} is not a whole {path.suffix[1:]} file", path=path) from None


class _Zstandard:
    """Unpacks frame after frame; unlike the package's own reader, it tells when the last is cut."""

    def __init__(self, file: io.BufferedReader):
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._fresh, self._rest = True, b""

    def read(self, size: int) -> bytes:
        """Returns some bytes; empty ones at the end."""
        while True:
            packed = self._rest or self._file.read(min(size, 1 << 17))
            if not packed:
                if not self._fresh:
                    raise EOFError
                return b""
            self._fresh = False
            data = self._frame.decompress(packed)
            self._rest = self._frame.unused_data
            if self._frame.eof:
                self._frame, self._fresh = zstandard.ZstdDecompressor().decompressobj(), True
            if data:
                return data
