"""Tables in and out, by suffix and strictly.

Notable choices:

- Reading is one native Polars scan with the wanted types. Only when that fails does a second,
  slower pass look for the file, line and value to name in the error.
- The second pass reads all as text and converts column by column: the first cell that becomes
  null is at fault.
"""

# ruff: noqa: A002 (format is the word that users know)

import bz2
import csv
import dataclasses
import difflib
import functools
import glob
import gzip
import io
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from chapbook.core.errors import Error, TableError
from chapbook.core.io import write_atomic

Schema = Mapping[str, Any]  # Polars types by column
Names = Sequence[str]

_FORMATS = ("csv", "tsv", "parquet", "ipc", "jsonl", "json", "xlsx")
_ALIASES = {"arrow": "ipc", "feather": "ipc", "ndjson": "jsonl"}
_TEXT = ("csv", "tsv", "jsonl", "json")
_SEPARATOR = {"csv": ",", "tsv": "\t"}
_SCAN = {
    "parquet": pl.scan_parquet,
    "ipc": pl.scan_ipc,
    "jsonl": functools.partial(pl.scan_ndjson, infer_schema_length=None),
    "json": lambda source: pl.read_json(source, infer_schema_length=None).lazy(),
    "xlsx": lambda source: pl.read_excel(source).lazy(),
}
_TROUBLE = (pl.exceptions.PolarsError, ValueError, RuntimeError, zlib.error, EOFError)


@dataclasses.dataclass(frozen=True)
class _File:
    """A table's path, its format, and what Polars reads: the path, several, or unpacked bytes."""

    path: str
    kind: str
    source: Any
    private: Names = ()

    def check(self) -> None:
        """Raises the first line of a text file that is malformed."""
        if self.kind in _TEXT:
            for _ in self.lines():
                pass

    def lines(self) -> Iterator[int]:
        """Yields the line on which each row of a text file starts, as far as it is well formed."""
        data = self.source if isinstance(self.source, bytes) else Path(self.path).read_bytes()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as problem:
            raise self.error(f": byte {problem.start} is not UTF-8; save it as UTF-8") from None
        return self._records(text) if self.kind in _SEPARATOR else self._objects(text)

    def _records(self, text: str) -> Iterator[int]:
        csv.field_size_limit(sys.maxsize)
        reader = csv.reader(io.StringIO(text, ""), delimiter=_SEPARATOR[self.kind], strict=True)
        line = 1
        try:
            header = next(reader, [])
            line = reader.line_num + 1
            for record in reader:
                if len(record or [""]) != len(header):
                    what = f"has {len(record)} fields, the header has {len(header)}"
                    raise self.error(f":{line}: the line {what if record else 'is blank'}", line)
                yield line
                line = reader.line_num + 1
        except csv.Error as problem:
            raise self.error(f":{line}: {problem} (is a quote left open?)", line) from None

    def _objects(self, text: str) -> Iterator[int]:
        for line, part in enumerate(text.split("\n") if self.kind == "jsonl" else [text], 1):
            try:
                if part.strip():
                    json.loads(part)
                    yield line
            except json.JSONDecodeError as problem:
                place = line + problem.lineno - 1
                raise self.error(f":{place}: not JSON: {problem.msg}", place) from None

    def error(self, what: str, row: int | None = None, column: str | None = None) -> TableError:
        return TableError(f"{self.path}{what}", path=self.path, row=row, column=column)

    def bad(self, what: str, column: str, row: int, value: Any = None) -> TableError:
        """Returns the error of one cell; the value of a private column is left out."""
        place, where = row, f": row {row}"
        if self.kind in (*_SEPARATOR, "jsonl"):
            place = next(itertools.islice(self.lines(), row, None))
            where = f":{place}"
        shown = value is not None and column not in self.private
        text = f" {json.dumps(value, default=str)}" if shown else ""
        return self.error(f"{where}: {column}{text} {what}", place, column)


def read_table(
    path: str | Path,
    schema: Schema | None = None,
    columns: Names | None = None,
    key: str | Sequence[str] = (),
    rows: int | None = None,
    *,
    format: str | None = None,
    private: Names = (),
) -> pl.DataFrame:
    """Reads a table and holds it to a schema, strictly: nothing becomes null unasked.

    Args:
        path: A csv, tsv, parquet, ipc (arrow, feather), jsonl (ndjson), json or xlsx file; csv,
            tsv, jsonl and json may be packed by gz, bz2 or zst. A pattern such as `data/*.csv`
            reads many files as one table, `-` reads stdin.
        schema: The types of the columns that must be there without nulls, or that may be missing
            or hold nulls if the name ends in `?`: `{"label": pl.Int64, "weight?": pl.Float64}`.
            Further columns pass through.
        columns: The columns to read, in this order; None reads all.
        key: The columns, among those that are read, that together must be unique.
        rows: The number of rows to read at most.
        format: The format by name, where no suffix tells it.
        private: Columns whose values no error may show.

    Returns:
        The table, with the columns of the schema in their types.

    Raises:
        TableError: The file does not hold what it should; the message names line and column.
        OSError: The file cannot be read.
    """
    keys = [key] if isinstance(key, str) else list(key)
    first, *others = expand(path, format=format)
    if others:
        options = {"format": format, "private": private}
        parts = [read_table(p, schema, columns, keys, rows, **options) for p in (first, *others)]
        table = pl.concat(parts, how="vertical_relaxed")[:rows]
        return _unique(_File(str(path), "parquet", None, private), table, keys)
    file = _open(first, format, private)
    schema = {**dict.fromkeys(keys), **(schema or {})}
    scan = functools.partial(_scan, file, columns, rows)
    table = trouble = None
    try:
        table = scan(schema).collect()
    except _TROUBLE as problem:
        trouble = problem  # left before the next error, which else would show its private values
    if table is None:
        table = _second_look(file, scan, schema, str(trouble).partition("\n")[0])
    for name, want in _types(schema, table.columns).items():
        if table.schema[name] != want:
            table = table.with_columns(_converted(file, table[name], want))
    if file.kind in _SEPARATOR and table.width and table[:, -1].null_count():
        file.check()  # Polars fills a line that is too short with nulls
    for name in schema:
        if name in table.columns and table[name].null_count():
            raise file.bad("is empty", name, table[name].is_null().arg_max() or 0)
    return _unique(file, table, keys)


def _open(path: str | Path, format: str | None, private: Names = ()) -> _File:
    """Takes stdin, and unpacks a packed file; leaves any other file to Polars."""
    path = str(path)
    kind, packed = _kind(path, format)
    data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes() if packed else None
    if not (Path(path).stat().st_size if data is None else data):
        raise TableError(f"{path} is empty", path=path)
    if data is None:  # a scan expands patterns itself, and this is the name of one file
        source = path if kind in ("json", "xlsx") else glob.escape(path)
        return _File(path, kind, source, private)
    try:
        return _File(path, kind, _unpacked(data, packed), private)
    except (OSError, *_TROUBLE):
        raise TableError(f"{path} is not a whole {packed[1:]} file", path=path) from None


def _kind(path: str, format: str | None) -> tuple[str, str]:
    """Returns the format of a path, and the suffix of its packing or an empty string."""
    suffixes = ["", *(suffix.lower() for suffix in Path(path).suffixes)]
    packed = suffixes.pop() if suffixes[-1] in (".gz", ".bz2", ".zst") else ""
    name = format or suffixes[-1][1:]
    kind = _ALIASES.get(name, name)
    if kind not in _FORMATS:
        known = ", ".join([*_FORMATS, *_ALIASES])
        raise Error(f"{path}: {name or 'no suffix'} is no table format; known are {known}")
    if packed and kind in ("parquet", "ipc", "xlsx"):
        raise Error(f"{path}: {name} is packed inside; leave {packed} away")
    return kind, packed


def _unpacked(data: bytes, packed: str) -> bytes:
    if packed != ".zst":
        return {"": bytes, ".gz": gzip.decompress, ".bz2": bz2.decompress}[packed](data)
    # Python brings no zstd, but Polars unpacks csv, and any text is a csv of one wide column.
    raw: dict[str, Any] = {"separator": "\x01", "quote_char": None, "infer_schema": False}
    lines = pl.read_csv(data, has_header=False, **raw).to_series()
    return "\n".join([*lines.fill_null(""), ""]).encode()


def _scan(
    file: _File, columns: Names | None, rows: int | None, schema: Schema, **options: Any
) -> pl.LazyFrame:
    """Scans a table; raises the first column that it lacks. Those of csv come in their types."""
    if separator := _SEPARATOR.get(file.kind):
        scan = functools.partial(pl.scan_csv, file.source, separator=separator)
        # Polars before 2 mistakes the types of columns that the file has not for a header.
        held = scan(n_rows=0, infer_schema=False).collect_schema().names()
        lazy = scan(schema_overrides=_types(schema, held), n_rows=rows, **options)
    else:
        lazy = _SCAN[file.kind](file.source)
        held = lazy.collect_schema().names()
    for name in [*(n for n in schema if not n.endswith("?")), *(columns or ())]:
        if name not in held:
            near = difflib.get_close_matches(name, held, 1, 0.5)
            option = f"--{name.replace('_', '-')}-column"
            fix = f" Did you mean {near[0]}? Pass {option} {near[0]}" if near else ""
            known = ", ".join(held[:20]) + (" ..." if len(held) > 20 else "")
            raise file.error(f': no column "{name}"; it has {known}.{fix}', column=name)
    lazy = lazy if rows is None else lazy.head(rows)
    return lazy if columns is None else lazy.select(columns)


def _types(schema: Schema, held: Names) -> dict[str, Any]:
    """Returns the types of the columns that are there."""
    types = {name.rstrip("?"): dtype for name, dtype in schema.items() if dtype is not None}
    return {name: dtype for name, dtype in types.items() if name in held}


def _second_look(file: _File, scan: Callable, schema: Schema, why: str) -> pl.DataFrame:
    """Raises why a table cannot be read, or reads a csv whose types show only in later rows."""
    file.check()
    why = "" if file.private else f": {why}"
    if file.kind not in _TEXT:
        raise file.error(f" is not a whole {file.kind} file{why}")
    try:
        if file.kind in _SEPARATOR:
            table = scan({}, infer_schema_length=None).collect()
            texts = scan({}, infer_schema=False).collect()
            wanted = _types(schema, texts.columns).items()
            return table.with_columns([_converted(file, texts[n], want) for n, want in wanted])
    except _TROUBLE:
        pass
    raise file.error(f" cannot be read as {file.kind}{why}")


def _converted(file: _File, column: pl.Series, want: Any) -> pl.Series:
    """Returns a column in its wanted type, or raises the first value that does not fit."""
    name, have = column.name, column.dtype
    if not _alike(have, want):
        raise file.error(f': column "{name}" is {have}, not {_noun(want)}', column=name)
    if have == pl.String and (want.is_numeric() or want.is_temporal() or want == pl.Boolean):
        # Through csv, so that every format has one grammar of values.
        text = column.to_frame().write_csv(quote_style="always").encode()
        new = pl.read_csv(text, schema_overrides={name: want}, ignore_errors=True)[name]
    else:
        new = column.cast(want, strict=False)
    wrong = new.is_null() & column.is_not_null()
    if (have.is_float() and want.is_integer()) or have.is_temporal():
        wrong |= (new.cast(have) != column).fill_null(False)  # a fraction, a time of day
    if wrong.any():
        row = wrong.arg_max() or 0
        raise file.bad(f"is not {_noun(want)}", name, row, column[row])
    return new


def _alike(have: Any, want: Any) -> bool:
    """Whether values of one type can be meant as values of another."""
    alike = have.is_numeric() == want.is_numeric() and have.is_temporal() == want.is_temporal()
    return alike or have == pl.Null or pl.String in (have, want)


def _noun(want: Any) -> str:
    if want.is_integer():
        return "an integer" if want == pl.Int64 else f"an integer of type {want}"
    nouns = {pl.Boolean: "true or false", pl.Date: "a date", pl.Datetime: "a date and time"}
    return "a number" if want.is_float() else nouns.get(want.base_type(), f"of type {want}")


def _unique(file: _File, table: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Returns the table, or raises the first row whose key an earlier row has already."""
    if keys and table.height:
        first = table.select(pl.struct(keys).is_first_distinct()).to_series()
        if not first.all():
            row = first.arg_min() or 0
            value = ", ".join(str(table[name][row]) for name in keys if name not in file.private)
            what = "is there already; it must be unique"
            raise file.bad(what, ", ".join(keys), row, value or None)
    return table


def expand(pattern: str | Path, *, format: str | None = None) -> list[Path]:
    """Returns the files of a pattern such as `data/*.parquet`, in order of their names.

    Args:
        pattern: The pattern, or the path of one file.
        format: The format by name, where no suffix tells it.

    Raises:
        TableError: No file matches, or two files differ in the names, order or types of their
            columns (of text files only the names and their order are compared).
    """
    if not glob.has_magic(str(pattern)) or Path(pattern).exists():
        return [Path(pattern)]
    paths = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))  # noqa: PTH207
    if not paths:
        raise TableError(f"{pattern}: no file matches", path=pattern)
    first = ""
    for path in paths:
        held = scan_table(path, format=format).collect_schema().items()
        typed = _kind(str(path), format)[0] not in _TEXT
        shown = ", ".join(f"{name} {dtype}" if typed else name for name, dtype in held)
        first = first or shown
        if shown != first:
            raise TableError(f"{paths[0]} has {first}, but {path} has {shown}", path=path)
    return paths


def scan_table(
    path: str | Path,
    schema: Schema | None = None,
    columns: Names | None = None,
    *,
    format: str | None = None,
) -> pl.LazyFrame:
    """Returns a table as a lazy frame: the columns are checked now, the values when it runs.

    Text values that do not fit then raise Polars' own error, which shows the value. Formats that
    Polars cannot scan (packed text, json, xlsx, stdin) are read at once, as `read_table` does.

    Args:
        path: As in `read_table`.
        schema: As in `read_table`; nulls are not looked for in what is scanned.
        columns: The columns to keep; None keeps all.
        format: As in `read_table`.

    Raises:
        TableError: A column is missing or holds another type.
        OSError: The file cannot be read.
    """
    kind, packed = _kind(str(path), format)
    if packed or str(path) == "-" or kind in ("json", "xlsx"):
        return read_table(path, schema, columns, format=format).lazy()
    paths = expand(path, format=format)
    source = [glob.escape(str(each)) for each in paths]
    file = dataclasses.replace(_open(paths[0], format), path=str(path), source=source)
    lazy = _scan(file, columns, None, schema or {})
    held = lazy.collect_schema()
    for name, want in _types(schema or {}, held.names()).items():
        have: Any = held[name]
        if not _alike(have, want) or (have.is_float() and want.is_integer()):
            what = f': column "{name}" is {have}, not {_noun(want)}'
            raise file.error(what, column=name)
        if have != want:
            lazy = lazy.with_columns(pl.col(name).cast(want))
    return lazy


def write_table(
    table: pl.DataFrame | pl.LazyFrame, path: str | Path, *, format: str | None = None
) -> None:
    """Writes a table atomically in the format that the suffix, or `format`, names.

    Args:
        table: The table; a lazy frame is streamed into formats that Polars can stream into.
        path: The file, packed if its suffix is gz, bz2 or zst; `-` is stdout.
        format: The format by name, where no suffix tells it.
    """
    kind, packed = _kind(str(path), format)
    name = {"tsv": "csv", "jsonl": "ndjson", "xlsx": "excel"}.get(kind, kind)
    options: dict[str, Any] = {"separator": "\t"} if kind == "tsv" else {}
    buffered = str(path) == "-" or packed in (".gz", ".bz2")
    if packed == ".zst":
        table, options = table.lazy(), {**options, "compression": "zstd"}
    elif buffered or kind in ("json", "xlsx"):
        table = table.lazy().collect()
    verb = "sink" if isinstance(table, pl.LazyFrame) else "write"
    write = functools.partial(getattr(table, f"{verb}_{name}"), **options)
    if not buffered:
        write_atomic(path, write)
        return
    buffer = io.BytesIO()
    write(buffer)
    if str(path) == "-":
        sys.stdout.buffer.write(buffer.getvalue())
    else:
        pack = gzip.compress if packed == ".gz" else bz2.compress
        write_atomic(path, pack(buffer.getvalue()))
