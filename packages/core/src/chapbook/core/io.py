"""Files that a kill cannot tear: nothing is written in place, and lines are whole or absent."""

import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


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
    except Exception as problem:
        # Libraries such as Polars give the system's number only in their text.
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


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Writes an indented JSON object, whole or not at all."""
    write_atomic(path, (json.dumps(values, indent=2, default=plain) + "\n").encode())


def append_jsonl(path: str | Path, row: Mapping[str, Any]) -> None:
    """Appends one whole line of JSON, after removing a last line that a kill has torn."""
    line = json.dumps(row, default=plain) + "\n"
    with Path(path).open("ab+") as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode())


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a file that may be missing or end in a torn line."""
    lines = Path(path).read_bytes().split(b"\n")[:-1] if Path(path).exists() else []
    return [json.loads(line) for line in lines]


def plain(value: Any) -> Any:
    """Returns the JSON form of a path, an enum or a NumPy scalar."""
    return value.item() if hasattr(value, "item") else str(value)
