"""The write-ahead store: a label that was drawn is on disk before anything reads it.

A second draw for one record is a second use of its label, and costs its privacy budget again. So a
program that may be killed between "drawn" and "used" keeps what it drew here first, and finds it
here when it starts again.
"""

import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chapbook.core.errors import Error

PLAN = "plan.json"


class DrawnLabels:
    """A folder of drawn arrays, each written once and never drawn again.

    A part (a block of rows, a stage, a histogram) is either absent or whole: it is written to a
    temporary file, fsynced, and linked to its name, so that a kill at any point leaves one or the
    other, and of two processes that draw the same part the first one to finish wins.

    Args:
        folder: Where the parts are kept; made if it does not exist.
        plan: What is drawn here, as JSON values (mechanism, epsilon, fingerprint of the records).
            A folder that was begun for another plan is refused. None opens any folder.

    Raises:
        Error: The folder was begun for another plan.
    """

    def __init__(self, folder: str | Path, plan: Mapping[str, Any] | None = None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        _sync_folder(self.folder.parent)
        if plan is not None:
            self._begin(json.loads(json.dumps(plan)))

    def get(self, part: str | int) -> dict[str, np.ndarray] | None:
        """Returns the arrays of a part, or None if it has not been drawn.

        Raises:
            Error: The part is there and cannot be read.
        """
        path = self._path(part)
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None
        except Exception as problem:  # a damaged zip or header raises errors of many kinds
            raise Error(
                f"{path}: drawn labels that cannot be read ({problem})",
                "restore the file; drawing its labels again spends their epsilon again",
            ) from None

    def put(self, part: str | int, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Keeps the arrays of a part; on return they have been fsynced.

        Returns:
            The arrays that stand: those given, or those of another process that was faster.
        """
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})
        if write_once(self._path(part), buffer.getbuffer()):
            return dict(arrays)
        kept = self.get(part)
        assert kept is not None
        return kept

    def once(
        self, part: str | int, draw: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Returns a part that was drawn before, else draws and keeps it."""
        kept = self.get(part)
        return kept if kept is not None else self.put(part, draw())

    def parts(self) -> list[str]:
        """Returns the names of the parts drawn so far, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.npz"))

    def __contains__(self, part: object) -> bool:
        return isinstance(part, str | int) and self._path(part).exists()

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts())

    def plan(self) -> dict[str, Any] | None:
        """Returns the plan that the folder was begun for, or None."""
        try:
            return json.loads((self.folder / PLAN).read_text())
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        """Deletes the folder: only once what it held has been published and charged.

        It loses its name first, so that a kill leaves either all of it or nothing to go on with.
        """
        rest = self.folder.with_name(self.folder.name + ".removed")
        shutil.rmtree(rest, ignore_errors=True)
        self.folder.rename(rest)
        _sync_folder(self.folder.parent)
        shutil.rmtree(rest)

    def _path(self, part: str | int) -> Path:
        name = f"{part:08d}" if isinstance(part, int) else part
        return self.folder / f"{name}.npz"

    def _begin(self, plan: dict[str, Any]) -> None:
        text = json.dumps(plan, indent=1, sort_keys=True)
        if write_once(self.folder / PLAN, text.encode()):
            return
        begun = self.plan() or {}
        if begun != plan:
            names = sorted(k for k in begun.keys() | plan.keys() if begun.get(k) != plan.get(k))
            changes = ", ".join(f"{k}={begun.get(k)!r} now {plan.get(k)!r}" for k in names)
            raise Error(
                f"{self.folder} holds labels drawn for another plan: {changes}",
                "finish it with the options it was begun with; deleting it and drawing again"
                " spends the epsilon of its records again",
            )


def write_once(path: Path, data: bytes | memoryview) -> bool:
    """Writes a new file atomically and durably; returns False if the file was there already."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> bool:
    """Gives a finished and fsynced file its name, unless the name is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    temporary.unlink()
    _sync_folder(path.parent)
    return True


def _sync_folder(folder: Path) -> None:
    """Makes renames and new names in a folder survive a power cut."""
    if os.name == "nt":  # Windows offers no handle on a folder to sync
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
