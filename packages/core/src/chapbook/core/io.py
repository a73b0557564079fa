"""Tables in and out, run folders, and writes that a kill cannot tear.

Notable choices:

- Reading is one native Polars read with the wanted types. Only when that fails does a second,
  slower pass look for the file, line and value to name in the error.
- Nothing is written in place: `write_atomic` writes beside the target and renames.
- A run folder belongs to one process at a time. Its lock names the process, so that a lock left
  by a killed one is taken over.
"""

import contextlib
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl

from chapbook.core.errors import Error

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
    except OSError as problem:
        problem.filename, problem.filename2 = str(path), None
        raise
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
            was, now = ({n: of.get(n) for n in different} for of in (held, self.config))
            then = ", ".join(f"{name}={value}" for name, value in was.items())
            given = ", ".join(str(value) for value in now.values())
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


def write_table(table: pl.DataFrame, path: str | Path) -> None:
    """Writes a table atomically, in the format that the suffix names."""
    writers = {
        ".parquet": table.write_parquet,
        ".csv": table.write_csv,
        ".ipc": table.write_ipc,
        ".jsonl": table.write_ndjson,
    }
    write_atomic(path, writers[Path(path).suffix])
