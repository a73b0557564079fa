"""The rows of a long table, checked: times are times, numbers finite, categories indices."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from chapbook.core.errors import TableError
from chapbook.tft_forecast.categories import Categories
from chapbook.tft_forecast.grid import parse_times
from chapbook.tft_forecast.schema import Schema

_SHOWN = 3


class Part(NamedTuple):
    """A table, and what errors about it begin with: the path of its file, or nothing."""

    table: pl.DataFrame
    where: str

    def error(self, row: int, column: str, what: str) -> TableError:
        """Returns the error of one value."""
        return TableError(f"{self.where}row {row}: {column} {what}", column=column, row=row)


def checked(
    table: pl.DataFrame,
    schema: Schema,
    categories: Categories,
    where: str,
    like: Any = None,
) -> Part:
    """Returns a table whose times are times and whose real columns are finite or null.

    Categories are columns of indices, null where missing, whose names `index_name` gives.
    """
    part = Part(table, where)
    times = parse_times(table[schema.time], where)
    if like is not None and times.dtype != like[schema.time]:
        have, want = times.dtype, like[schema.time]
        raise TableError(f"{where}{schema.time} is {have}, but {want} in the history")
    columns = [times.rename(schema.time)]
    for name in table.columns:
        column = table[name]
        if name in schema.id:
            if column.null_count():
                raise part.error(column.is_null().arg_max() or 0, name, "is missing")
            if like is not None and column.dtype != like[name]:
                columns.append(_same_id(part, column, like[name]))
        if name in categories.sizes:
            codes = pl.Series(index_name(name), categories.encode(name, column))
            columns.append(codes.set(codes < 0, None))
        elif name not in (*schema.id, schema.time):
            columns.append(_real(part, column))
            if name in schema.target:
                _check_transform(part, columns[-1], schema.target_transform)
            elif name == schema.weight and (columns[-1] < 0).any():
                row = (columns[-1] < 0).arg_max() or 0
                raise part.error(row, name, f"is {column[row]}; a weight is 0 or more")
    texts = [n for n in table.columns if n in categories.sizes and n not in schema.id]
    return part._replace(table=table.with_columns(columns).drop(texts))


def index_name(name: str) -> str:
    """Returns the name of the column that holds the indices of a categorical column."""
    return f"{name} as an index"


def _same_id(part: Part, column: pl.Series, want: Any) -> pl.Series:
    try:
        return column.cast(want)
    except pl.exceptions.PolarsError:
        what = f"{part.where}{column.name} is {column.dtype}, but {want} in the history"
        raise TableError(what, column=column.name) from None


def _real(part: Part, column: pl.Series) -> pl.Series:
    """Returns a column of numbers, NaN as null."""
    name, dtype = column.name, column.dtype
    if dtype == pl.Null or dtype.is_numeric() or dtype == pl.Boolean:
        numbers = column.cast(pl.Float64).fill_nan(None)
        if (wrong := numbers.is_infinite().fill_null(value=False)).any():
            row = wrong.arg_max() or 0
            raise part.error(row, name, f"is {column[row]}; it must be finite, or missing")
        return numbers
    if dtype == pl.String:
        wrong = column.cast(pl.Float64, strict=False).is_null() & column.is_not_null()
        row = (wrong if wrong.any() else column.is_not_null()).arg_max() or 0
        raise part.error(
            row, name, f'"{column[row]}" is text; it must be a number, or listed as categorical'
        )
    row = column.is_not_null().arg_max() or 0
    raise part.error(row, name, f"{column[row]} is {dtype}; it must be a number")


def _check_transform(part: Part, column: pl.Series, transform: str) -> None:
    if transform == "none":
        return
    log = transform == "log1p"
    wrong = column < 0 if log else (column <= 0) | (column >= 1)
    if (wrong := wrong.fill_null(value=False)).any():
        row = wrong.arg_max() or 0
        need = "0 or more under log1p" if log else "between 0 and 1 under logit"
        raise part.error(row, column.name, f"is {column[row]:g}; a target must be {need}")


def missing_values(table: pl.DataFrame, schema: Schema) -> dict[str, int]:
    """Returns how many values each column of a checked table lacks, where any."""
    coded = {
        n: index_name(n) if index_name(n) in table else n for n in (*schema.target, *schema.inputs)
    }
    counts = {name: table[column].null_count() for name, column in coded.items()}
    return {name: count for name, count in counts.items() if count}


def merged(
    table: pl.DataFrame, cell: np.ndarray, parts: Sequence[Part], schema: Schema, how: str
) -> tuple[pl.DataFrame, np.ndarray, int]:
    """Returns one row per cell, and how many rows were merged into others."""
    place = pl.Series(" cell", cell)
    if not (repeated := place.is_duplicated()).any():
        return table, cell, 0
    later = repeated & ~place.is_first_distinct()
    if how == "error":
        keys = table.select(*schema.id, schema.time)
        part, first = located(parts, int(later.arg_max() or 0))
        rows = [(located(parts, row)[1], label(keys, row)) for row in later.arg_true()[:_SHOWN]]
        shown = [f"row {row}, {who}" for row, who in rows]
        more = ", ..." if later.sum() > _SHOWN else ""
        count = int(later.sum())
        raise TableError(
            f"{part.where}{count} row{'s have' if count > 1 else ' has'} an id and time that an"
            f" earlier row has: {'; '.join(shown)}{more}",
            column=schema.time,
            row=first,
            hint="merge them with --duplicates sum, mean or last (`duplicates=`)",
        )
    table = table.with_columns(place)
    twins = table.filter(repeated).group_by(" cell", maintain_order=True)
    if how == "last":
        single = twins.last()
    else:
        added = [*schema.target, *([schema.weight] if schema.weight else [])]
        others = [n for n in table.columns if n not in (*added, " cell")]
        totals = [
            # A sum of nothing is missing, not 0.
            pl.when(pl.col(name).count() > 0).then(getattr(pl.col(name), how)()).alias(name)
            for name in added
        ]
        single = twins.agg(*totals, pl.col(others).drop_nulls().last())
    table = pl.concat([table.filter(~repeated), single.select(table.columns)])
    return table.drop(" cell"), table[" cell"].to_numpy(), int(later.sum())


def located(parts: Sequence[Part], row: int) -> tuple[Part, int]:
    """Returns the table that a row of both, one after the other, came from, and its row there."""
    history = parts[0].table.height
    return (parts[0], row) if row < history else (parts[1], row - history)


def label(ids: pl.DataFrame, entity: int | np.integer) -> str:
    """Returns an entity as text, such as `store=1 item=7`."""
    return labels(ids[int(entity) : int(entity) + 1])[0]


def labels(ids: pl.DataFrame) -> pl.Series:
    """Returns entities as texts, such as `store=1 item=7`."""
    parts = [pl.lit(f"{name}=") + pl.col(name).cast(pl.String) for name in ids.columns]
    return ids.select(pl.concat_str(parts, separator=" ").alias("entity")).to_series()
