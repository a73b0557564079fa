"""Arrays in `npz` files, and names by which arrays are known again."""

import hashlib
from pathlib import Path

import numpy as np

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an `npz` file by name.

    Raises:
        Error: The file does not exist or is no `npz` file of arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise Error(f"{path}: no such file") from None
    except Exception as problem:  # a damaged zip or header raises errors of many kinds
        raise Error(f"{path}: not an npz file of arrays ({problem})") from None


def write_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays to an `npz` file, of which there is all or nothing."""

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    write_atomic(path, write)


def fingerprint(*arrays: np.ndarray) -> str:
    """Returns a short name of arrays, by which a run knows its data again."""
    digest = hashlib.sha256()
    for each in arrays:
        digest.update(each.tobytes())
    return digest.hexdigest()[:16]
