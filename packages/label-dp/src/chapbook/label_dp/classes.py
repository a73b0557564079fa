"""The declared classes: label values in a column to class indices and back, naming no value."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int, Integer

from chapbook.core.errors import Error
from chapbook.label_dp.stream import Source

MISSING, UNKNOWN = -1, -2


class Classes:
    """The classes that labels may have, declared and never taken from the labels themselves.

    Names that are all integers, or all numbers, are compared as numbers, and come back as such.

    Args:
        names: The classes in order; the order is that of a prior's columns.
        with_missing: Whether a missing label is a class of its own, the last; it comes back as
            null.

    Raises:
        Error: There are fewer than two classes, or one of them twice.
    """

    def __init__(self, names: Sequence[object], *, with_missing: bool = False):
        self.names = tuple(str(name) for name in names)
        self.with_missing = with_missing
        if len(self) < 2:
            raise Error(f"{len(self)} class declared; there must be two or more")
        if "" in self.names:
            raise Error("an empty class name is declared")
        self._values = _numbers(self.names)
        self.dtype: pl.DataType = pl.String()
        if self._values is not None:
            self.dtype = pl.Int64() if self._values.dtype.kind == "i" else pl.Float64()
        distinct = self.names if self._values is None else self._values.tolist()
        if len(set(distinct)) < len(self.names):
            twice = [n for n, v in zip(self.names, distinct, strict=True) if distinct.count(v) > 1]
            raise Error(f"class {twice[0]} is declared twice")

    def __len__(self) -> int:
        return len(self.names) + self.with_missing

    def encode(self, column: pl.Series) -> Int[np.ndarray, " rows"]:
        """Returns the index of each label's class, `MISSING` (-1) or `UNKNOWN` (-2)."""
        missing = column.is_null()
        if column.dtype == pl.String:
            missing = missing | (column == "").fill_null(value=False)
        elif column.dtype.is_float():
            missing = missing | column.is_nan().fill_null(value=False)
        codes = self._codes(column)
        codes[missing.to_numpy()] = len(self.names) if self.with_missing else MISSING
        return codes

    def decode(self, codes: Integer[np.ndarray, " rows"], name: str) -> pl.Series:
        """Returns the labels of class indices as a column."""
        values = self.names if self._values is None else self._values
        lookup = pl.Series(name, values, dtype=self.dtype).extend_constant(None, 1)
        return lookup.gather(pl.Series(codes, dtype=pl.UInt32))

    def _codes(self, column: pl.Series) -> np.ndarray:
        if self._values is None or column.dtype == pl.String:
            enum = column.cast(pl.String, strict=False).cast(pl.Enum(self.names), strict=False)
            codes = enum.to_physical().cast(pl.Int32)
            # A number that is spelled otherwise than its class, 3.0 for 3, is found below.
            if self._values is None or not codes.null_count():
                return codes.fill_null(UNKNOWN).to_numpy().copy()
        if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Boolean)):
            return np.full(len(column), UNKNOWN, np.int32)
        if column.dtype == pl.String:
            column = column.str.strip_chars()
        numbers = column.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
        order = np.argsort(self._values, kind="stable")
        place = np.searchsorted(self._values[order], numbers)
        place = order[np.minimum(place, len(order) - 1)]
        return np.where(self._values[place] == numbers, place, UNKNOWN).astype(np.int32)


def _numbers(names: Sequence[str]) -> np.ndarray | None:
    """Returns names as numbers, if all are plain numbers (and not codes: 007)."""
    if all(re.fullmatch(r"-?(0|[1-9]\d{0,14})", name) for name in names):
        return np.array([int(name) for name in names], np.int64)
    if all(re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?(e[-+]?\d+)?", name) for name in names):
        return np.array([float(name) for name in names])
    return None


def read_classes(path: str | Path) -> list[str]:
    """Returns the classes of a public file: one per line, or the one column of a table.

    Raises:
        Error: The file is empty, or a table of several columns.
    """
    path = Path(path)
    if path.suffix in ("", ".txt", ".list"):
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    else:
        from chapbook.core.tables import read_table

        table = read_table(path)
        if table.width != 1:
            raise Error(f"{path}: the classes must be one column; it has {table.width}")
        names = [str(value) for value in table.to_series().drop_nulls()]
    if not names:
        raise Error(f"{path}: the file holds no classes")
    return names


def observed_classes(path: str | Path, label: str) -> list[str]:
    """Returns the distinct labels of a table, sorted: this shows which ones occur.

    Raises:
        Error: The table has no such column.
    """
    source = Source.file(path, label)
    source.require(label)
    column = pl.col(label).cast(pl.String)
    found = source.lazy.select(column.filter(column != "").unique().sort())
    return found.collect(engine="streaming").to_series().to_list()
