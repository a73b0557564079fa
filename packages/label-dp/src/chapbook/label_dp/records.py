"""Keyed hashes of records: enough to see that a record comes again, useless without the key."""

import hashlib
import os
import secrets
from pathlib import Path

import numpy as np
import polars as pl
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from jaxtyping import UInt64


def record_hashes(columns: pl.DataFrame, key: bytes) -> UInt64[np.ndarray, " rows"]:
    """Hashes each row of a frame to 64 bits under a key of 32 bytes.

    `h = AES(... AES(AES(block_1) xor block_2) ... xor block_columns)`, the CBC-MAC of one block of
    16 bytes per column, cut to 64 bits. Integers, dates and booleans are their own block; text and
    everything else is first hashed to a block by keyed BLAKE2b. Two of 10^8 records share a hash
    with probability 3e-4; the ledger then charges one of them too much, never too little.

    Args:
        columns: The columns that identify a record; never its label, which the hash would give
            away to whoever holds the key.
        key: The secret key.
    """
    encrypt = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    state = np.zeros((columns.height, 2), np.uint64)
    for series in columns:
        state ^= _blocks(series, key)
        state = np.frombuffer(encrypt.update(state.tobytes()), np.uint64).reshape(-1, 2).copy()
    return state[:, 0].copy()


def _blocks(series: pl.Series, key: bytes) -> np.ndarray:
    """Returns 16 bytes per value: equal values of one type, and only those, have equal blocks."""
    blocks = np.zeros((len(series), 2), np.uint64)
    dtype = series.dtype
    if (dtype.is_integer() and dtype != pl.UInt64) or dtype.is_temporal() or dtype == pl.Boolean:
        numbers = series.to_physical().cast(pl.Int64)
        blocks[:, 1] = 1
        if series.null_count():
            numbers = numbers.fill_null(0)
            blocks[:, 1] -= series.is_null().to_numpy()
        blocks[:, 0] = numbers.to_numpy().astype(np.int64, copy=False).view(np.uint64)
        return blocks
    keyed = hashlib.blake2b(key=key, digest_size=16, person=b"chapbook record")
    out = bytearray()
    for value in series.cast(pl.String):
        if value is None:
            out += bytes(16)
        else:
            text = keyed.copy()
            text.update(value.encode())
            out += text.digest()
    return np.frombuffer(out, np.uint64).reshape(-1, 2)


class RecordHashes:
    """The hashes of many records, gathered block by block and sorted on disk.

    Args:
        key: The ledger's key.
        folder: Where the file lies while it grows; None keeps everything in memory.
    """

    def __init__(self, key: bytes, folder: Path | None = None):
        self.key = key
        self._hashes = _Column("<u8", folder)
        self._epsilons: _Column | None = None
        self._folder = folder

    def __len__(self) -> int:
        return self._hashes.length

    def add(self, columns: pl.DataFrame, epsilons: np.ndarray | None = None) -> None:
        """Adds the records of a block of rows.

        Args:
            columns: The columns that identify a record.
            epsilons: What each of them spends, where they differ; in every block or in none.
        """
        self._hashes.append(record_hashes(columns, self.key))
        if epsilons is not None:
            self._epsilons = self._epsilons or _Column("<f8", self._folder)
            self._epsilons.append(epsilons)

    def sorted(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the hashes in order, and the epsilons in the same order where there are any."""
        hashes = self._hashes.array()
        if self._epsilons is None:
            hashes.sort()
            return hashes, None
        epsilons, order = self._epsilons.array(), np.argsort(hashes, kind="stable")
        epsilons[:] = epsilons[order]
        hashes[:] = hashes[order]
        return hashes, epsilons

    def repeated(self) -> UInt64[np.ndarray, " repeated"]:
        """Returns the hashes that occur more than once."""
        hashes = self.sorted()[0]
        return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])

    def keep(self, hashes: Path, epsilons: Path) -> None:
        """Gives the files their lasting names, durably."""
        self._hashes.keep(hashes)
        if self._epsilons is not None:
            self._epsilons.keep(epsilons)

    def discard(self) -> None:
        """Deletes the files that were not kept."""
        self._hashes.discard()
        if self._epsilons is not None:
            self._epsilons.discard()


class _Column:
    """Numbers appended to a file, or to a list, and then seen as one array."""

    def __init__(self, dtype: str, folder: Path | None):
        self.dtype, self.length = dtype, 0
        self._path = None if folder is None else folder / f".{secrets.token_hex(6)}"
        self._parts: list[np.ndarray] = []
        self._array: np.ndarray | None = None

    def append(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, self.dtype)
        self.length += len(values)
        self._array = None
        if self._path is None:
            self._parts.append(values)
        else:
            with self._path.open("ab") as file:
                file.write(values.data)

    def array(self) -> np.ndarray:
        if self._array is None:
            if self._path is None or self.length == 0:
                self._array = np.concatenate([np.empty(0, self.dtype), *self._parts])
            else:
                self._array = np.memmap(self._path, self.dtype, "r+")
        return self._array

    def keep(self, path: Path) -> None:
        assert self._path is not None
        self._array = None  # the map is flushed by the fsync of its file
        with self._path.open("ab") as file:
            os.fsync(file.fileno())
        self._path.replace(path)

    def discard(self) -> None:
        self._array = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
