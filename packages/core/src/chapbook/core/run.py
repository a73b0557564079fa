"""Run folders: one per run, held by one process at a time, never half-written.

Notable choices:

- A folder is a run from the moment that its `config.json` appears, whole.
- Its lock names the process, so that a lock left by a killed one is taken over.
"""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl

from chapbook.core.errors import Error
from chapbook.core.io import append_jsonl, plain, read_jsonl, write_atomic, write_json
from chapbook.core.tables import write_table


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
    with contextlib.suppress(FileNotFoundError), path.open("a+") as file:
        # Only who holds the kernel's lock on the file reads or writes the name in it. A kill frees
        # that lock, so that a file without a name was left by a dead process too.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        holder = json.loads(file.read() or "null")
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            if holder and _alive(holder):
                return holder
            file.truncate(0)
            file.write(text)
            return None
    return _take(path)  # it has been released just now


def _alive(holder: dict[str, Any]) -> bool:
    """Whether the process may still run; of one on another machine nothing else is known."""
    if holder["host"] != platform.node():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # With another start, it is a new process that was given the old one's number.
    return holder["born"] in (None, _born(holder["pid"]))


def _born(pid: int) -> str | None:
    """Returns when a process started, in the kernel's own count, where /proc tells it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


class Run:
    """One run's folder: its config, metrics, events, results, checkpoints and plots.

    The same folder opened again with the same config continues it. Leaving the context writes
    `metrics.parquet`.

    Args:
        path: The folder; made when missing.
        config: Every option that decides what the run computes, as plain values.
        fresh: Empty the folder first, if it holds a run.
        may_change: Options that may differ when a run is continued, such as its number of steps.
        writer: False in the processes that only read, that is all but process 0.

    Attributes:
        path: The folder.
        checkpoints: The folder for training state.
        plots: The folder for figures and their numbers.
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
        self.checkpoints, self.plots = self.path / "checkpoints", self.path / "plots"
        self.config: dict[str, Any] = json.loads(json.dumps(dict(config), default=plain))
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
            others = [path for path in self.path.glob("*") if path.name != "lock"]
            if others and not facts:
                raise Error(f"{self.path} is not empty and holds no run; use another --run")
            if self._fresh and self.writer:
                for old in others:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
                facts = {}
            self._compare(facts.get("options", self.config))
            self.resumed = bool(facts)
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
        names = [name for name in held | self.config if name not in self._may_change]
        different = [name for name in names if held.get(name) != self.config.get(name)]
        if different:
            then = ", ".join(f"{name}={held.get(name)}" for name in different)
            given = ", ".join(str(self.config.get(name)) for name in different)
            raise Error(
                f"run folder holds a run with {then}, you gave {given}; "
                "use --fresh or another --run"
            )

    def describe(self, **fields: Any) -> None:
        """Adds facts to config.json that are known only later, such as the kind of device."""
        if self.writer:
            facts = self._facts() | fields | {"options": self.config}
            write_json(self.path / "config.json", facts)

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
        return read_jsonl(self.path / "metrics.jsonl")

    def cut(self, step: int) -> None:
        """Drops the metrics and events after a step, before the run goes on from there."""
        for path in (self.path / "metrics.jsonl", self.path / "events.jsonl"):
            if self.writer and path.exists():
                kept = [row for row in read_jsonl(path) if row.get("step", step) <= step]
                write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def results(self, values: Mapping[str, Any]) -> None:
        """Writes results.json."""
        if self.writer:
            write_json(self.path / "results.json", values)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _surroundings() -> dict[str, Any]:
    """Returns what else decides a result: versions, git revision, command line."""
    names = {d.name for d in metadata.distributions() if d.name.startswith(("chapbook-", "jax"))}
    git = None
    if shutil.which("git"):
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
        git = done.stdout.strip() or None
    return {
        "command": sys.argv,
        "versions": {name: metadata.version(name) for name in sorted(names)},
        "python": platform.python_version(),
        "git": git,
    }
