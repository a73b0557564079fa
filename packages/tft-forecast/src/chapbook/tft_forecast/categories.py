"""Categories as indices, fitted on training rows alone; what they have not seen is unknown."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.tft_forecast.frames import read_parquet
from chapbook.tft_forecast.schema import Schema, is_category

UNKNOWN, MISSING = 0, -1


@dataclasses.dataclass(frozen=True, eq=False)
class Categories:
    """The values of each categorical column that were seen in training.

    Attributes:
        frame: A row per column and value, `variable`, `value` (as text), `index`, `count`, and
            `fitted_until`, the last time that was seen. Index 0, whose value is null, is the
            unknown category.
    """

    frame: pl.DataFrame

    @classmethod
    def fit(cls, frame: Any, schema: Schema, *, until: Any = None) -> "Categories":
        """Finds the categories of a table.

        Args:
            frame: A path, or any frame that `read_frame` takes.
            schema: The roles of its columns.
            until: The first time that is no longer training; all rows are if not given.

        Raises:
            TableError: A time cannot be read.
            Error: A column is not there.
        """
        table = schema.read(frame).select(schema.columns)
        if until is not None:
            table = table.filter(pl.col(schema.time) < until)
        last = table.get_column(schema.time).max()
        parts = [
            _counted(table[name])
            for name in schema.inputs
            if name in schema.categorical or name in schema.id or is_category(table.schema[name])
        ]
        empty = {"variable": pl.String, "value": pl.String, "index": pl.Int32, "count": pl.UInt32}
        found = pl.concat([pl.DataFrame(schema=empty), *parts])
        until_ = pl.lit(last, dtype=table.schema[schema.time]).alias("fitted_until")
        return cls(found.with_columns(until_))

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """How many indices each categorical column has, the unknown one among them."""
        counts = self.frame.group_by("variable", maintain_order=True).len()
        return dict(counts.iter_rows())

    @property
    def fitted_until(self) -> Any:
        """The last time that was seen; None if there is no categorical column."""
        return self.frame["fitted_until"].max()

    def encode(self, name: str, column: pl.Series) -> Int[np.ndarray, " rows"]:
        """Returns the index of each value: 0 if it is unknown, -1 if it is missing."""
        texts = _texts(column)
        codes = texts.to_frame("value").join(
            self._lookup(name), on="value", how="left", maintain_order="left"
        )["index"]
        codes = codes.fill_null(UNKNOWN).to_numpy().copy()
        codes[texts.is_null().to_numpy()] = MISSING
        return codes.astype(np.int32)

    def decode(self, name: str, codes: Int[np.ndarray, " rows"]) -> pl.Series:
        """Returns the values of indices as text; null where unknown or missing."""
        values = self.frame.filter(pl.col("variable") == name).sort("index")["value"]
        return values.gather(pl.Series(np.maximum(codes, 0))).rename(name)

    def save(self, path: str | Path) -> None:
        """Writes the categories to a parquet file, whole or not at all."""
        write_atomic(path, self.frame.write_parquet)

    @classmethod
    def load(cls, path: str | Path) -> "Categories":
        """Reads the categories from a parquet file.

        Raises:
            Error: The file is none that `save` wrote.
            OSError: The file cannot be read.
        """
        frame = read_parquet(path)
        wanted = ["variable", "value", "index", "count", "fitted_until"]
        if frame.columns != wanted:
            raise Error(f"{path} has columns {', '.join(frame.columns)}, not {', '.join(wanted)}")
        return cls(frame)

    def _lookup(self, name: str) -> pl.DataFrame:
        rows = (pl.col("variable") == name) & pl.col("value").is_not_null()
        return self.frame.filter(rows).select("value", "index")


def _counted(column: pl.Series) -> pl.DataFrame:
    """Returns the values of a column, in order, after the unknown one."""
    values = column.drop_nulls().drop_nans() if column.dtype.is_float() else column.drop_nulls()
    counts = values.value_counts(name="count").sort(column.name)
    texts = [None, *_texts(counts[column.name])]
    return pl.DataFrame(
        {
            "variable": [column.name] * len(texts),
            "value": pl.Series(texts, dtype=pl.String),
            "index": pl.int_range(len(texts), dtype=pl.Int32, eager=True),
            "count": pl.Series([0, *counts["count"]], dtype=pl.UInt32),
        }
    )


def _texts(column: pl.Series) -> pl.Series:
    """Returns values as text; a whole number is the same whatever type its column has."""
    if column.dtype.is_float():
        column = column.fill_nan(None)
        texts = column.cast(pl.Int64, strict=False).cast(pl.String)
        return texts.zip_with((column == column.round()).fill_null(True), column.cast(pl.String))
    return column.cast(pl.String)
