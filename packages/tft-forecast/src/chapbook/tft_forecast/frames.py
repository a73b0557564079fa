"""Any kind of table in, and the same kind out."""

from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

from chapbook.core.errors import Error, MissingExtra


def read_frame(frame: Any) -> tuple[pl.DataFrame, str]:
    """Returns a table as a Polars frame, and what errors about it begin with.

    Args:
        frame: A path that `chapbook.core.tables.read_table` reads, or a frame that narwhals knows:
            Polars (eager or lazy), pandas, PyArrow, DuckDB and others.

    Returns:
        The frame, and `path: ` or an empty text.

    Raises:
        Error: It is none of these.
        MissingExtra: It is a pandas frame, and pyarrow is not installed.
    """
    if isinstance(frame, str | Path):
        from chapbook.core.tables import read_table

        return read_table(frame), f"{frame}: "
    if isinstance(frame, pl.DataFrame):
        return frame, ""
    if isinstance(frame, pl.LazyFrame):
        return frame.collect(), ""
    try:
        held = nw.from_native(frame)
    except TypeError:
        kind = type(frame).__name__
        raise Error(
            f"{kind} is no table; pass a path, or a Polars, pandas or PyArrow frame"
        ) from None
    try:
        return (held.collect() if isinstance(held, nw.LazyFrame) else held).to_polars(), ""
    except ImportError:
        raise MissingExtra(
            f"{type(frame).__module__} frames are read through PyArrow, which is not installed",
            "pip install pyarrow",
        ) from None


def like(frame: Any, table: pl.DataFrame) -> Any:
    """Returns a Polars frame as the kind of table that another one is.

    Args:
        frame: What came in; for a path the result stays a Polars frame.
        table: What is to be returned.
    """
    if isinstance(frame, str | Path | pl.DataFrame):
        return table
    if isinstance(frame, pl.LazyFrame):
        return table.lazy()
    kind = nw.from_native(frame)
    return nw.from_arrow(table.to_arrow(), backend=kind.implementation).to_native()


def read_parquet(path: str | Path) -> pl.DataFrame:
    """Reads a parquet file of a model's folder.

    Raises:
        Error: It is no parquet file, or not a whole one.
        OSError: It cannot be read.
    """
    try:
        return pl.read_parquet(path)
    except pl.exceptions.PolarsError as problem:
        raise Error(f"{path} is no whole parquet file: {problem}") from None
