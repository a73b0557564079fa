"""Tables in and out, run folders, and writes that a kill cannot tear.

Notable choices:

- Reading is one native Polars read with the wanted types. Only when that fails does a second,
  slower pass look for the file, line and value to name in the error.
- Nothing is written in place: `write_atomic` writes beside the target and renames.
- A run folder belongs to one process at a time. Its lock names the process, so that a lock left
  by a killed one is taken over.
"""

# ruff: noqa: A002 (format is the word that users know)

import bz2
import contextlib
import csv
import dataclasses
import difflib
import glob
import gzip
import io
import itertools
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl

from chapbook.core.errors import Error, TableError

Schema = Mapping[str, Any]  # Polars types by column
Names = Sequence[str]

try:
    import fcntl
except ImportError:  # not on Windows, where a dead holder's lock is left to the user
    fcntl = None

# ------------------------------------------------------------------------------------ writing


def write_atomic(path: str | Path, content: bytes | Callable[[Path], Any]) -> None:
    """Writes a file whole or not at all, even when the process is killed on the way.

    Args:
        path: The file to write or replace. What is no regular file, such as `/dev/null`, is
            written to directly.
        content: The bytes, or a function that writes the file whose path it is given. That path
            lies in the same folder and ends in the same suffix.

    Raises:
        OSError: The file cannot be written; `filename` is `path`, and nothing is left behind.
    """
    target = Path(os.path.realpath(path))
    direct = target.exists() and not target.is_file()
    part = target if direct else target.with_name(f".{secrets.token_hex(6)}{target.suffix}")
    try:
        content(part) if callable(content) else part.write_bytes(content)
        if not direct:
            _sync(part)
            part.replace(target)
            _sync(target.parent)
    except (OSError, pl.exceptions.PolarsError) as problem:
        # Polars gives the system's number only in its text.
        told = re.search(r"os error (\d+)", str(problem))
        number = int(told[1]) if told else getattr(problem, "errno", None)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from problem
    finally:
        if not direct:
            part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_jsonl(path: str | Path, row: Mapping[str, Any]) -> None:
    """Appends one whole line of JSON, after removing a last line that a kill has torn."""
    line = json.dumps(row, default=_plain) + "\n"
    with Path(path).open("ab+") as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode())


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a file that may be missing or end in a torn line."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _plain(value: Any) -> Any:
    """Returns the JSON form of a path, an enum or a NumPy scalar."""
    return value.item() if hasattr(value, "item") else str(value)


# --------------------------------------------------------------------------------------- runs


@contextlib.contextmanager
def lock(path: Path, what: str, wait: float = 0.0) -> Iterator[None]:
    """Holds a lock file that names this process; one left by a dead process is taken over.

    Args:
        path: The lock file.
        what: What is locked, for the error.
        wait: Seconds to wait for another process to release it.

    Raises:
        Error: Another process still holds the lock.
    """
    deadline = time.monotonic() + wait
    while holder := _take(path):
        if time.monotonic() >= deadline:
            raise Error(
                f"{what} is in use by pid {holder['pid']} since {holder['since']}",
                f"if that process is gone from {holder['host']}, delete {path}",
            )
        time.sleep(0.05)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take(path: Path) -> dict[str, Any] | None:
    """Takes the lock and returns None, or returns who holds it."""
    me = {"pid": os.getpid(), "host": platform.node(), "born": _born(os.getpid())}
    text = json.dumps(me | {"since": time.strftime("%Y-%m-%d %H:%M")})
    try:
        with path.open("x") as file:
            file.write(text)
        return None
    except FileExistsError:
        pass
    with contextlib.suppress(FileNotFoundError), path.open("r+") as file:
        # Of several processes that find a dead holder, the file lock lets one take over; the next
        # then reads its name.
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        holder = json.loads(file.read() or '{"pid": "?", "host": "its machine", "since": "now"}')
        if _alive(holder) or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return holder
        file.seek(0)
        file.truncate()
        file.write(text)
        return None
    return _take(path)  # it has been released just now


def _alive(holder: dict[str, Any]) -> bool:
    """Whether the process may still run; of one on another machine nothing else is known."""
    if holder["host"] != platform.node() or fcntl is None:
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return holder["born"] in (
        None,
        _born(holder["pid"]),
    )  # else the pid has been given to a new process


def _born(pid: int) -> str | None:
    """Returns when a process started, in the kernel's own count, where /proc tells it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


class Run:
    """One run's folder: its config, metrics, events, results, checkpoints and plots.

    A folder is a run from the moment that its `config.json` appears, whole. The same folder opened
    again with the same config continues it. Leaving the context writes `metrics.parquet`.

    Args:
        path: The folder; made when missing.
        config: Every option that decides what the run computes, as plain values.
        fresh: Empty the folder first, if it holds a run.
        may_change: Options that may differ when a run is continued, such as its number of steps.
        writer: False in the processes that only read, that is all but process 0.

    Attributes:
        path: The folder.
        config: The options as read back from JSON.
        resumed: Whether the folder held this run already.
        writer: Whether this process writes.

    Raises:
        Error: The folder is in use, holds another run, or holds something that is no run.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        fresh: bool = False,
        may_change: tuple[str, ...] = (),
        writer: bool = True,
    ):
        self.path = Path(path)
        self.config: dict[str, Any] = json.loads(json.dumps(dict(config), default=_plain))
        self.resumed = False
        self.writer = writer
        self._fresh, self._may_change = fresh, may_change
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as stack:
            if self.writer:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock(self.path / "lock", "run"))
            facts = self._facts()
            others = [p for p in self.path.glob("*") if p.name != "lock"]
            if others and not facts:
                raise Error(f"{self.path} is not empty and holds no run; use another --run")
            if self._fresh and self.writer:
                for old in others:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
                facts = {}
            self._compare(facts.get("options", self.config))
            self.resumed = bool(facts)
            if self.writer:
                self.describe(**{"started": _now()} | facts | _surroundings())
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._open:
            if self.writer and (rows := self.rows()):
                table = pl.from_dicts(rows, infer_schema_length=None)
                write_table(table, self.path / "metrics.parquet")

    def _facts(self) -> dict[str, Any]:
        path = self.path / "config.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def _compare(self, held: dict[str, Any]) -> None:
        names = [n for n in held | self.config if n not in self._may_change]
        different = [n for n in names if held.get(n) != self.config.get(n)]
        if different:
            then = ", ".join(f"{name}={held.get(name)}" for name in different)
            given = ", ".join(str(self.config.get(name)) for name in different)
            raise Error(
                f"run folder holds a run with {then}, you gave {given}; "
                "use --fresh or another --run"
            )

    @property
    def checkpoints(self) -> Path:
        """The folder for training state."""
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        """The folder for figures and their numbers."""
        return self.path / "plots"

    def describe(self, **fields: Any) -> None:
        """Adds facts to config.json that are known only later, such as the kind of device."""
        if self.writer:
            facts = self._facts() | fields | {"options": self.config}
            _write_json(self.path / "config.json", facts)

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends one row to metrics.jsonl."""
        if self.writer:
            append_jsonl(self.path / "metrics.jsonl", row)

    def event(self, kind: str, **fields: Any) -> None:
        """Appends one line to events.jsonl, with the time."""
        if self.writer:
            append_jsonl(self.path / "events.jsonl", {"kind": kind, "time": _now(), **fields})

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl."""
        return _read_jsonl(self.path / "metrics.jsonl")

    def cut(self, step: int) -> None:
        """Drops the metrics and events after a step, before the run goes on from there."""
        for path in (self.path / "metrics.jsonl", self.path / "events.jsonl"):
            if self.writer and path.exists():
                kept = [row for row in _read_jsonl(path) if row.get("step", step) <= step]
                write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def results(self, values: Mapping[str, Any]) -> None:
        """Writes results.json."""
        if self.writer:
            _write_json(self.path / "results.json", values)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_atomic(path, (json.dumps(values, indent=2, default=_plain) + "\n").encode())


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _surroundings() -> dict[str, Any]:
    """Returns what else decides a result: versions, git revision, command line."""
    names = {d.name for d in metadata.distributions() if d.name.startswith(("chapbook-", "jax"))}
    git = shutil.which("git") and subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
    )
    return {
        "command": sys.argv,
        "versions": {name: metadata.version(name) for name in sorted(names)},
        "python": platform.python_version(),
        "git": (git and git.stdout.strip()) or None,
    }


# ------------------------------------------------------------------------------------- tables

_KINDS = {
    "csv": "csv",
    "tsv": "tsv",
    "parquet": "parquet",
    "ipc": "ipc",
    "arrow": "ipc",
    "feather": "ipc",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "json",
    "xlsx": "xlsx",
}
_PACKED = {".gz": gzip, ".bz2": bz2, ".zst": None}
_SEPARATOR = {"csv": ",", "tsv": "\t"}
_TROUBLE = (pl.exceptions.PolarsError, ValueError, RuntimeError, zlib.error, EOFError)


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table to be read: its file, its format, its bytes unless Polars opens it, the wishes."""

    path: str
    kind: str
    data: bytes | None = None
    types: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    required: Sequence[str] = ()
    columns: list[str] | None = None
    rows: int | None = None
    private: Names = ()

    @property
    def source(self) -> Any:
        return self.path if self.data is None else io.BytesIO(self.data)

    def text(self) -> str:
        """Returns the whole text, or raises the place where it is not UTF-8."""
        data = Path(self.path).read_bytes() if self.data is None else self.data
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as problem:
            raise self.error(f": byte {problem.start} is not UTF-8; save it as UTF-8") from None

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Yields the records of csv text with the line on which each starts."""
        csv.field_size_limit(sys.maxsize)
        lines = self.text().splitlines(keepends=True)
        reader = csv.reader(lines, delimiter=_SEPARATOR[self.kind], strict=True)
        line = 1
        try:
            for record in reader:
                yield line, record
                line = reader.line_num + 1
        except csv.Error as problem:
            raise self.error(f":{line}: {problem} (is a quote left open?)", line) from None

    def line(self, row: int) -> int | None:
        """Returns the line of a row (from 0) in a text file."""
        if self.kind in _SEPARATOR:
            return next(line for line, _ in itertools.islice(self.records(), row + 1, None))
        full = (n for n, line in enumerate(self.text().split("\n"), 1) if line.strip())
        return next(itertools.islice(full, row, None))

    def error(self, what: str, row: int | None = None, column: str | None = None) -> TableError:
        return TableError(f"{self.path}{what}", path=self.path, row=row, column=column)

    def bad(self, what: str, column: str, row: int, value: Any = None) -> TableError:
        """Returns the error of one cell; the value of a private column is left out."""
        text = self.kind in (*_SEPARATOR, "jsonl")
        place = self.line(row) if text else row
        shown = (
            "" if value is None or column in self.private else f" {json.dumps(value, default=str)}"
        )
        return self.error(
            f":{'' if text else ' row '}{place}: {column}{shown} {what}", place, column
        )


def read_table(
    path: str | Path,
    schema: Schema | None = None,
    columns: Names | None = None,
    key: str | Sequence[str] = (),
    rows: int | None = None,
    *,
    format: str | None = None,
    nulls: Names = (),
    private: Names = (),
) -> pl.DataFrame:
    """Reads a table and holds it to a schema, strictly: nothing becomes null unasked.

    Args:
        path: A csv, tsv, parquet, ipc (arrow, feather), jsonl (ndjson), json or xlsx file; csv,
            tsv, jsonl and json may be packed by gz, bz2 or zst. A pattern such as `data/*.csv`
            reads many files as one table, `-` reads stdin.
        schema: The types of the columns that must be there, or that may be there if the name ends
            in `?`: `{"label": pl.Int64, "weight?": pl.Float64}`. Further columns pass through.
        columns: The columns to read; None reads all.
        key: The columns, among those that are read, that together must be unique.
        rows: The number of rows to read at most.
        format: The format by name, where no suffix tells it.
        nulls: Columns that must be there but may hold nulls; optional columns always may.
        private: Columns whose values no error may show.

    Returns:
        The table, with the columns of the schema in their types.

    Raises:
        TableError: The file does not hold what it should; the message names line and column.
        OSError: The file cannot be read.
    """
    keys = [key] if isinstance(key, str) else list(key)
    if (paths := _matches(path)) is not None:
        wishes = {"format": format, "nulls": nulls, "private": private}
        parts = [read_table(p, schema, columns, keys, rows, **wishes) for p in paths]
        _agree(paths, [part.schema for part in parts])
        whole = _Table(str(path), "parquet", private=private)
        return _unique(whole, pl.concat(parts)[:rows], keys)
    ask = _ask(path, schema, columns, rows, format, private)
    ask = dataclasses.replace(ask, required=list(dict.fromkeys([*ask.required, *keys])))
    table = trouble = None
    try:
        table = _native(ask)
    except ModuleNotFoundError as problem:
        raise Error(f"{path}: this needs {problem.name}", f"pip install {problem.name}") from None
    except _TROUBLE as problem:
        trouble = problem  # left before the next error, which else would show its private values
    if table is None:
        table = _second_look(ask, trouble)
    for name, dtype in _present(ask, table.columns).items():
        if table.schema[name] != dtype:
            table = table.with_columns(_converted(ask, table[name]))
    if ask.kind in _SEPARATOR and table.width and table[:, -1].null_count():
        _check_csv(ask)  # Polars fills a line that is too short with nulls
    for name in ask.required:
        if name not in nulls and table[name].null_count():
            raise ask.bad("is empty", name, table[name].is_null().arg_max() or 0)
    return _unique(ask, table, keys)


def _ask(
    path: str | Path,
    schema: Schema | None,
    columns: Names | None,
    rows: int | None,
    format: str | None,
    private: Names = (),
) -> _Table:
    """Gathers what is asked; unpacks a packed file, and takes stdin."""
    path = str(path)
    kind, packed = _kind(path, format)
    types = {name.rstrip("?"): dtype for name, dtype in (schema or {}).items()}
    required = [name for name in schema or {} if not name.endswith("?")]
    wanted = None if columns is None else list(columns)
    if wanted is not None:  # a schema may tell of more columns than are asked for
        types = {name: types[name] for name in wanted if name in types}
        required = [name for name in required if name in wanted]
    if path == "-":
        data = sys.stdin.buffer.read()
    else:
        with Path(path).open("rb") as file:
            data = file.read(1)
    if not data:
        raise TableError(f"{path} is empty", path=path)
    try:
        data = _unpacked(path, packed) if packed else data if path == "-" else None
    except (OSError, *_TROUBLE):
        raise TableError(f"{path} is not a whole {packed[1:]} file", path=path) from None
    return _Table(path, kind, data, types, required, wanted, rows, private)


def _kind(path: str, format: str | None) -> tuple[str, str]:
    """Returns the format of a path, and the suffix of its packing or an empty string."""
    suffixes = ["", *(suffix.lower() for suffix in Path(path).suffixes)]
    packed = suffixes.pop() if suffixes[-1] in _PACKED else ""
    name = format or suffixes[-1][1:]
    if name not in _KINDS:
        known = ", ".join(_KINDS)
        raise Error(f"{path}: {name or 'no suffix'} is no table format; known are {known}")
    if packed and _KINDS[name] in ("parquet", "ipc", "xlsx"):
        raise Error(f"{path}: {name} is packed inside; leave {packed} away")
    return _KINDS[name], packed


def _unpacked(path: str, packed: str) -> bytes:
    if module := _PACKED[packed]:
        return module.decompress(Path(path).read_bytes())
    # Python brings no zstd, but Polars unpacks csv, and any text is a csv of one wide column.
    lines = pl.read_csv(
        path, has_header=False, separator="\x01", quote_char=None, infer_schema=False
    )
    return "\n".join([*lines.to_series().fill_null(""), ""]).encode()


def _native(ask: _Table, infer: int | None = 100) -> pl.DataFrame:
    """Reads a table by Polars alone."""
    if ask.kind in _SEPARATOR:
        options = {"separator": _SEPARATOR[ask.kind], "columns": ask.columns, "n_rows": ask.rows}
        types = _present(ask, _header(ask))
        return pl.read_csv(ask.source, schema_overrides=types, infer_schema_length=infer, **options)
    if ask.kind in ("parquet", "ipc"):
        names = (pl.read_parquet_schema if ask.kind == "parquet" else pl.read_ipc_schema)(
            ask.source
        )
        _present(ask, list(names))
        read = pl.read_parquet if ask.kind == "parquet" else pl.read_ipc
        return read(ask.source, columns=ask.columns, n_rows=ask.rows)
    if ask.kind == "xlsx":
        table = pl.read_excel(ask.source)
    else:
        read = pl.read_ndjson if ask.kind == "jsonl" else pl.read_json
        table = read(ask.source, infer_schema_length=None)
    _present(ask, table.columns)
    return table.select(pl.all() if ask.columns is None else ask.columns)[: ask.rows]


def _header(ask: _Table) -> list[str]:
    separator = _SEPARATOR[ask.kind]
    return pl.read_csv(ask.source, separator=separator, n_rows=0, infer_schema=False).columns


def _second_look(ask: _Table, problem: Exception | None) -> pl.DataFrame:
    """Finds out why the native read failed and raises it, or reads again with more patience."""
    why = "" if ask.private else ": " + str(problem).partition("\n")[0]
    if ask.kind in _SEPARATOR:
        _check_csv(ask)
        try:
            for name in _present(ask, _header(ask)):
                texts = dataclasses.replace(ask, types={name: pl.String}, columns=[name])
                _converted(ask, _native(texts)[name])
            return _native(ask, infer=None)  # a type that was guessed from the first rows
        except _TROUBLE:
            raise ask.error(f" cannot be read as {ask.kind}{why}") from None
    if ask.kind not in ("jsonl", "json"):
        raise ask.error(f" is not a whole {ask.kind} file{why}")
    whole = ask.text()
    for line, text in enumerate(whole.split("\n") if ask.kind == "jsonl" else [whole], 1):
        try:
            json.loads(text or "{}")
        except json.JSONDecodeError as found:
            place = line + found.lineno - 1
            raise ask.error(f":{place}: not JSON: {found.msg}", place) from None
    raise ask.error(f" cannot be read as {ask.kind}{why}")


def _check_csv(ask: _Table) -> None:
    """Raises the first line that has more or fewer fields than the header."""
    records = ask.records()
    _, header = next(records, (1, []))
    for line, record in records:
        if len(record or [""]) != len(header):
            what = f"has {len(record)} fields, the header has {len(header)}"
            raise ask.error(f":{line}: the line {what if record else 'is blank'}", line)


def _present(ask: _Table, names: Names) -> dict[str, Any]:
    """Returns the types of the columns that are there; raises the first missing one."""
    for name in [*ask.required, *(ask.columns or ())]:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, 0.5)
            option = f"--{name.replace('_', '-')}-column"
            fix = f" Did you mean {near[0]}? Pass {option} {near[0]}" if near else ""
            held = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
            raise ask.error(f': no column "{name}"; it has {held}.{fix}', column=name)
    return {name: dtype for name, dtype in ask.types.items() if name in names}


def _converted(ask: _Table, column: pl.Series) -> pl.Series:
    """Returns a column in its wanted type, or raises the first value that does not fit."""
    have, want = column.dtype, pl.Series([], dtype=ask.types[column.name]).dtype
    if have == pl.String:
        if not _parses(column, want):
            row, part = 0, column
            while len(part) > 1:  # halving, since only the parser itself knows what it takes
                half = len(part) // 2
                good = _parses(part[:half], want)
                row, part = (row + half, part[half:]) if good else (row, part[:half])
            raise ask.bad(f"is not {_noun(want)}", column.name, row, part[0])
        return _parsed(column, want)
    alike = (have.is_numeric() and want.is_numeric()) or (have.is_temporal() and want.is_temporal())
    if not (alike or want == pl.String or have == pl.Null or have.is_nested()):
        raise ask.error(
            f': column "{column.name}" is {have}, not {_noun(want)}', column=column.name
        )
    new = column.cast(want, strict=False)
    wrong = new.is_null() & column.is_not_null()
    if (have.is_float() and want.is_integer()) or have.is_temporal():
        wrong |= (new.cast(have) != column).fill_null(False)  # a fraction or a time would be lost
    if wrong.any():
        row = wrong.arg_max() or 0
        raise ask.bad(f"is not {_noun(want)}", column.name, row, column[row])
    return new


def _parsed(texts: pl.Series, want: Any) -> pl.Series:
    """Returns texts as Polars reads them from csv: one grammar of values for every format."""
    # The row number keeps a null from being a blank line.
    buffer = io.BytesIO()
    texts.to_frame().with_row_index("#").write_csv(buffer)
    buffer.seek(0)
    return pl.read_csv(buffer, schema_overrides={texts.name: want})[texts.name]


def _parses(texts: pl.Series, want: Any) -> bool:
    try:
        return _parsed(texts, want).dtype == want
    except pl.exceptions.PolarsError:
        return False


def _noun(want: Any) -> str:
    if want.is_integer():
        return "an integer" if want == pl.Int64 else f"an integer of type {want}"
    nouns = {pl.Boolean: "true or false", pl.Date: "a date", pl.Datetime: "a date and time"}
    return "a number" if want.is_float() else nouns.get(want.base_type(), f"of type {want}")


def _unique(ask: _Table, table: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Returns the table, or raises the first row whose key an earlier row has already."""
    if keys and table.height:
        first = table.select(pl.struct(keys).is_first_distinct()).to_series()
        if not first.all():
            row = first.arg_min() or 0
            value = ", ".join(str(table[name][row]) for name in keys if name not in ask.private)
            raise ask.bad(
                "is there already; it must be unique", ", ".join(keys), row, value or None
            )
    return table


def _matches(path: str | Path) -> list[Path] | None:
    """Returns the files of a pattern, or None for the path of one file."""
    if not glob.has_magic(str(path)) or Path(path).exists():
        return None
    paths = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207
    if not paths:
        raise TableError(f"{path}: no file matches", path=path)
    return paths


def _agree(paths: Sequence[Path], schemas: Sequence[Mapping[str, Any]]) -> None:
    for path, schema in zip(paths, schemas, strict=True):
        if list(schema.items()) != list(schemas[0].items()):
            one, two = (", ".join(f"{n} {t}" for n, t in s.items()) for s in (schemas[0], schema))
            raise TableError(f"{paths[0]} has {one}, but {path} has {two}", path=path)


def expand(pattern: str | Path) -> list[Path]:
    """Returns the files of a pattern such as `data/*.parquet`, in order of their names.

    Raises:
        TableError: No file matches, or two files differ in the names, order or types of their
            columns (of text files only the names and their order are compared).
    """
    paths = _matches(pattern)
    if paths is None:
        return [Path(pattern)]
    schemas = [scan_table(path).collect_schema() for path in paths]
    if _kind(str(paths[0]), None)[0] not in ("parquet", "ipc"):
        schemas = [dict.fromkeys(schema, "") for schema in schemas]
    _agree(paths, schemas)
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
        schema: As in `read_table`; nulls are not looked for.
        columns: The columns to keep; None keeps all.
        format: As in `read_table`.

    Raises:
        TableError: A column is missing or holds another type.
        OSError: The file cannot be read.
    """
    paths = _matches(path) or [Path(path)]
    kind, packed = _kind(str(paths[0]), format)
    if packed or str(path) == "-" or kind in ("json", "xlsx"):
        optional = [name.rstrip("?") for name in schema or {}]
        return read_table(path, schema, columns, format=format, nulls=optional).lazy()
    ask = dataclasses.replace(_ask(paths[0], schema, columns, None, format), path=str(path))
    if kind in _SEPARATOR:
        types = _present(ask, _header(dataclasses.replace(ask, path=str(paths[0]))))
        lazy = pl.scan_csv(paths, separator=_SEPARATOR[kind], schema_overrides=types)
    elif kind == "jsonl":
        lazy = pl.scan_ndjson(paths, infer_schema_length=None)
    else:
        lazy = pl.scan_parquet(paths) if kind == "parquet" else pl.scan_ipc(paths)
    held = lazy.collect_schema()
    for name, want in _present(ask, held.names()).items():
        have: Any = held[name]
        widens = have.is_numeric() and want.is_numeric() and not have.is_float() > want.is_float()
        if have != want and not (widens or want == pl.String):
            what = f': column "{name}" is {have}, not {_noun(want)}'
            raise ask.error(what, column=name)
        if have != want:
            lazy = lazy.with_columns(pl.col(name).cast(want))
    return lazy if columns is None else lazy.select(columns)


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
    options = {"separator": "\t"} if kind == "tsv" else {}
    if isinstance(table, pl.LazyFrame) and (kind in ("json", "xlsx") or str(path) == "-"):
        table = table.collect()
    write = getattr(table, f"{'sink' if isinstance(table, pl.LazyFrame) else 'write'}_{name}")
    if str(path) == "-":
        buffer = io.BytesIO()
        write(buffer, **options)
        sys.stdout.buffer.write(buffer.getvalue())
    elif packed == ".zst":
        sink = getattr(table.lazy(), f"sink_{name}")
        write_atomic(path, lambda part: sink(part, compression="zstd", **options))
    elif packed:
        write_atomic(path, lambda part: _pack(part, packed, lambda to: write(to, **options)))
    else:
        write_atomic(path, lambda part: write(part, **options))


def _pack(part: Path, packed: str, write: Callable[[Path], Any]) -> None:
    """Writes a file beside the packed one, and packs it."""
    plain = part.with_suffix(".plain")
    try:
        write(plain)
        # Without a name and a time, the same table gives the same bytes.
        opened = bz2.open if packed == ".bz2" else lambda f, _: gzip.GzipFile("", "wb", 6, f, 0)
        with plain.open("rb") as source, part.open("wb") as file, opened(file, "wb") as pack:
            shutil.copyfileobj(source, pack)
    finally:
        plain.unlink(missing_ok=True)
