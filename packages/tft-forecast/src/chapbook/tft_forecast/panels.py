"""A long table as a panel: every series on one regular axis of time, what is missing masked.

Notable choices:

- All is done on whole columns; there is no Python loop over rows or series.
- A row that is not there is not dropped but a step that is not `present`; nothing is filled in.
- Rows are counted from 0 in errors, within the table that they came from.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from chapbook.core.errors import Error, TableError
from chapbook.tft_forecast.categories import Categories
from chapbook.tft_forecast.frames import read_frame
from chapbook.tft_forecast.grid import Grid, fit_grid, infer_freq, zone_of
from chapbook.tft_forecast.rows import (
    Part,
    checked,
    index_name,
    label,
    labels,
    located,
    merged,
    missing_values,
)
from chapbook.tft_forecast.schema import Schema, require

Duplicates = Literal["error", "sum", "mean", "last"]
_SHOWN = 3
_MOST_EMPTY = 1000  # cells per row, above which a wrong time is likelier than a sparse panel


class Values(NamedTuple):
    """One group of variables over the grid.

    Attributes:
        real: In the units of the table, NaN where missing; what is static has no steps.
        categorical: Indices of categories: 0 is unknown, -1 missing.
    """

    real: Float[np.ndarray, "*cells reals"]
    categorical: Int[np.ndarray, "*cells categoricals"]


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """Series on one regular axis of time.

    Attributes:
        schema: The roles of the table's columns.
        categories: By which categorical columns were encoded.
        ids: The id columns, a row per entity, sorted.
        grid: The axis of time; `grid.times` gives times beyond the panel, too.
        times: The times of the steps, in the type of the table's column.
        present: Which steps have a row, (entity, time).
        static: What does not change in time, (entity, variable).
        observed: The targets after `target_transform`, then what else is seen up to the origin,
            (entity, time, variable).
        known: What is known ahead, (entity, time, variable).
        weight: Of each step in the loss, 0 where missing, (entity, time); None if there is none.
        report: What was found, as JSON values: `rows`, `entities`, `steps`, `ignored` columns,
            `duplicates` that were merged, `missing` values per column, `gaps` (missing steps per
            entity that has some), `longest_gap`, `unseen` categories per column, `constant`
            targets, and `notices` for the user.
    """

    schema: Schema
    categories: Categories
    ids: pl.DataFrame
    grid: Grid
    times: pl.Series
    present: Bool[np.ndarray, "entities steps"]
    static: Values
    observed: Values
    known: Values
    weight: Float[np.ndarray, "entities steps"] | None
    report: dict[str, Any]

    @property
    def targets(self) -> Float[np.ndarray, "entities steps targets"]:
        """The targets, after `target_transform`; NaN where missing."""
        return self.observed.real[..., : len(self.schema.target)]

    @property
    def seen(self) -> Bool[np.ndarray, "entities steps"]:
        """Which steps have a target."""
        return np.asarray(~np.isnan(self.targets).all(-1))


def panel(
    frame: Any,
    schema: Schema,
    categories: Categories | None = None,
    *,
    duplicates: Duplicates = "error",
    max_gap: int | None = None,
    future: Any = None,
) -> Panel:
    """Puts a long table on a regular axis of time.

    Args:
        frame: A path, or any frame that `read_frame` takes; one row per id and time.
        schema: The roles of its columns.
        categories: Fitted on training rows; fitted on the whole table if not given, which is
            right for looking at it only.
        duplicates: What becomes of rows whose id and time an earlier row has: they are refused,
            or merged, so that targets and weights are summed or averaged and of every other
            column the last value is kept, or of all columns (`last`).
        max_gap: How many steps in a row a series may miss between its rows; any number if not
            given.
        future: A table of what is known after the history: ids, time and known columns. It starts
            one step after the last row of its entity, or of the whole history.

    Returns:
        The panel. Rows of the future are present, and their targets missing.

    Raises:
        Error: The table lacks a column, a gap is too long, or rows repeat.
        TableError: A value is wrong; row and column are named.
    """
    if duplicates not in ("error", "sum", "mean", "last"):
        raise Error(f'duplicates="{duplicates}" is none of error, sum, mean, last')
    read, where = read_frame(frame)
    if not read.height:
        raise Error(f"{where}the table has no rows")
    for name in schema.columns:
        require(read, name, where)
    fitted = Categories.fit(read, schema) if categories is None else categories
    parts = [checked(read.select(schema.columns), schema, fitted, where)]
    if future is not None:
        ahead, where = read_frame(future)
        for name in (*schema.id, schema.time, *schema.known):
            require(ahead, name, where)
        kept = [n for n in (*schema.id, schema.time, *schema.static, *schema.known) if n in ahead]
        where = where or "future frame: "
        if ahead.height:
            like = parts[0].table.schema
            parts.append(
                checked(ahead.select(list(dict.fromkeys(kept))), schema, fitted, where, like)
            )
    used = {*schema.columns}
    report = {
        "rows": read.height,
        "ignored": [name for name in read.columns if name not in used],
        "missing": missing_values(parts[0].table, schema),
        "notices": _notices(parts[0].table[schema.time], schema),
    }
    if report["ignored"]:
        names = ", ".join(report["ignored"])
        report["notices"].append(f"columns without a role in the schema are ignored: {names}")
    return _on_grid(parts, schema, fitted, duplicates, max_gap, report)


def check_future(
    panel: Panel,
    origin: int | Int[np.ndarray, " entities"],
    horizon: int,
    entities: Int[np.ndarray, " chosen"] | None = None,
) -> None:
    """Raises an error if what must be known ahead is not.

    Args:
        panel: The panel, with the rows of the future.
        origin: The last step that is observed, of all entities or of each that is chosen.
        horizon: How many steps after it must be known.
        entities: Which entities to look at; all if not given.

    Raises:
        TableError: A row or a known value is missing; entity, column and first time are listed.
    """
    if not panel.schema.known:
        return
    chosen = np.arange(len(panel.ids)) if entities is None else np.asarray(entities)
    steps = np.broadcast_to(np.asarray(origin), len(chosen))[:, None] + np.arange(1, horizon + 1)
    inside = (steps >= 0) & (steps < len(panel.times))
    cells = chosen[:, None], np.clip(steps, 0, len(panel.times) - 1)
    rows = panel.present[cells] & inside
    reals = tuple(n for n in panel.schema.known if n not in panel.categories.sizes)
    texts = tuple(n for n in panel.schema.known if n in panel.categories.sizes)
    empty = np.concatenate(
        [np.isnan(panel.known.real[cells]), panel.known.categorical[cells] < 0], -1
    )
    # What is not there, as one more column before the others: the row itself.
    lacks = np.concatenate([~rows[..., None], empty & rows[..., None]], -1)
    if not lacks.any():
        return
    names = ("no row", *(f"{name} is missing" for name in reals + texts))
    found = np.argwhere(lacks.any(1))
    listed = []
    for entity, column in found[:_SHOWN]:
        step = int(steps[entity, lacks[entity, :, column].argmax()])
        time = panel.grid.times(np.array([step]))[0]
        listed.append(f"{label(panel.ids, int(chosen[entity]))}: {names[column]} at {time}")
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise TableError(
        f"what is known ahead must be there for {horizon} steps: {'; '.join(listed)}{more}",
        column=(None, *reals, *texts)[found[0, 1]],
        hint="add it to the table or to the future frame; it is never filled in",
    )


def _notices(times: pl.Series, schema: Schema) -> list[str]:
    zone = zone_of(times)
    if zone is None or zone == "UTC":
        return []
    if schema.freq.endswith(("d", "w", "mo", "q", "y")):
        return [f"{schema.time} is in {zone}: steps of {schema.freq} are its calendar's"]
    return [f"{schema.time} is in {zone}: steps of {schema.freq} are counted in UTC"]


def _counts(report: dict[str, Any]) -> list[str]:
    """Returns a line for each kind of untidiness that was dealt with."""
    gaps, told = report["gaps"], []
    if report["duplicates"]:
        told.append(f"{report['duplicates']} rows were merged into others of their id and time")
    if gaps:
        told.append(
            f"{len(gaps)} series lack {sum(gaps.values())} steps, which are masked;"
            f" the longest gap is {report['longest_gap']}"
        )
    for name, count in report["missing"].items():
        told.append(f"{name}: {count} missing values are masked")
    for name, count in report["unseen"].items():
        told.append(f"{name}: {count} values that training has not seen are taken as unknown")
    if constant := report["constant"]:
        more = f" and {len(constant) - _SHOWN} more" if len(constant) > _SHOWN else ""
        told.append(f"targets that never change: {', '.join(constant[:_SHOWN])}{more}")
    return told


def _on_grid(
    parts: Sequence[Part],
    schema: Schema,
    categories: Categories,
    duplicates: str,
    max_gap: int | None,
    report: dict[str, Any],
) -> Panel:
    """Returns the panel of checked tables: the history and, perhaps, the future."""
    history = parts[0].table.height
    table = pl.concat([part.table for part in parts], how="diagonal")
    times = table[schema.time]
    ids = table.select(schema.id).unique().sort(schema.id)
    numbered = ids.with_row_index(" entity")
    entity = table.select(schema.id).join(
        numbered, on=schema.id, how="left", maintain_order="left"
    )[" entity"].to_numpy().astype(np.int64)  # fmt: skip
    grid = fit_grid(times, schema.freq, parts[0].where)
    if not (good := grid.on_grid(times)).all():
        raise _off_grid(parts, schema, grid, good)
    step = grid.index(times)
    first = step.min()
    grid, step = grid.from_step(int(first)), step - first
    steps = int(step.max()) + 1
    if len(ids) * steps > _MOST_EMPTY * max(table.height, 10_000):
        raise Error(
            f"{parts[0].where}from {times.min()} to {times.max()} there are {steps} steps of"
            f" {schema.freq} for {table.height} rows of {len(ids)} series; is a time or freq wrong?"
        )
    if len(parts) > 1:
        _check_start(parts, schema, grid, ids, entity, step, history)
    cell = entity * steps + step
    table, cell, report["duplicates"] = merged(table, cell, parts, schema, duplicates)
    entity, step = np.divmod(cell, steps)

    present = np.zeros((len(ids), steps), bool)
    present.reshape(-1)[cell] = True
    report |= _gaps(present, ids, grid, parts[0].where, max_gap)
    texts = [name for name in schema.inputs if name in categories.sizes]
    codes = {n: table[index_name(n)].fill_null(-1).to_numpy() for n in texts}
    report["unseen"] = {n: int((c == 0).sum()) for n, c in codes.items() if (c == 0).any()}

    def dense(names: tuple[str, ...]) -> Values:
        reals = [name for name in names if name not in codes]
        texts = [name for name in names if name in codes]
        real = np.full((len(ids) * steps, len(reals)), np.nan)
        categorical = np.full((len(ids) * steps, len(texts)), -1, np.int32)
        for i, name in enumerate(reals):
            real[cell, i] = table[name].to_numpy()
        for i, name in enumerate(texts):
            categorical[cell, i] = codes[name]
        shape = (len(ids), steps, -1)
        return Values(
            real.reshape(*shape[:2], len(reals)), categorical.reshape(*shape[:2], len(texts))
        )

    observed = dense(schema.target + schema.observed)
    count = len(schema.target)
    observed.real[..., :count] = schema.transformed(observed.real[..., :count])
    weight = None
    if schema.weight is not None:
        weight = np.nan_to_num(dense((schema.weight,)).real[..., 0])
    report |= {"entities": len(ids), "steps": steps}
    report["constant"] = _constant(observed.real[..., :count], ids, schema)
    report["notices"] += _counts(report)
    return Panel(
        schema, categories, ids, grid,
        grid.times(np.arange(steps)).rename(schema.time), present,
        _static(table, entity, codes, ids, parts[0], schema, categories), observed,
        dense(schema.known),
        weight, report,
    )  # fmt: skip


def _off_grid(
    parts: Sequence[Part], schema: Schema, grid: Grid, good: Bool[np.ndarray, " rows"]
) -> TableError:
    part, row = located(parts, int(np.argmin(good)))
    times = part.table[schema.time]
    before = grid.index(times[row : row + 1])
    around = grid.times(np.array([before[0], before[0] + 1]))
    looks = infer_freq(part.table.select(*schema.id, schema.time))
    several = (~good).mean() > 0.25 and looks != schema.freq
    fix = f"; the commonest step is {looks}" if several else ""
    who = label(part.table.select(schema.id), row)
    count = int((~good).sum())
    return TableError(
        f"{part.where}row {row}: {schema.time} {times[row]} of {who} lies between the steps"
        f" {around[0]} and {around[1]} of freq={schema.freq} (rows like it: {count}{fix});"
        " set freq, or bring the rows to one frequency",
        column=schema.time,
        row=row,
    )


def _check_start(
    parts: Sequence[Part],
    schema: Schema,
    grid: Grid,
    ids: pl.DataFrame,
    entity: np.ndarray,
    step: np.ndarray,
    history: int,
) -> None:
    """Raises an error if the future of an entity does not start right after its history."""
    last = np.full(len(ids), -1, np.int64)
    np.maximum.at(last, entity[:history], step[:history])
    first = np.full(len(ids), np.iinfo(np.int64).max)
    np.minimum.at(first, entity[history:], step[history:])
    whole = last.max()
    seen = first < np.iinfo(np.int64).max
    wrong = seen & (first != last + 1) & (first != whole + 1)
    wrong |= seen & (first <= last)
    if wrong.any():
        at = int(wrong.argmax())
        end = last[at] if last[at] >= 0 else whole
        begins, ends = (grid.times(np.array([t]))[0] for t in (first[at], end))
        raise TableError(
            f"{parts[1].where}{label(ids, at)} starts at {begins}, but its history ends at {ends};"
            f" the future must start one step of {schema.freq} after that",
            column=schema.time,
        )


def _gaps(
    present: np.ndarray, ids: pl.DataFrame, grid: Grid, where: str, max_gap: int | None
) -> dict[str, Any]:
    """Returns the missing steps between the first and the last row of each entity."""
    steps = present.shape[1]
    first, last = present.argmax(1), steps - 1 - present[:, ::-1].argmax(1)
    missing = last - first + 1 - present.sum(1)
    entity, step = np.nonzero(present)
    jump = np.diff(step)
    jump[np.diff(entity) > 0] = 1
    longest = int(jump.max(initial=1)) - 1
    if max_gap is not None and longest > max_gap:
        at = int((jump - 1 > max_gap).argmax())
        before, after = grid.times(step[at : at + 2])
        raise TableError(
            f"{where}{label(ids, entity[at])} has no rows between {before} and {after}, which is"
            f" {jump[at] - 1} steps; at most {max_gap} may be missing (--max-gap)"
        )
    some = np.flatnonzero(missing)
    gaps = dict(zip(labels(ids[some]).to_list(), missing[some].tolist(), strict=True))
    return {"gaps": gaps, "longest_gap": longest}


def _constant(targets: np.ndarray, ids: pl.DataFrame, schema: Schema) -> list[str]:
    low = np.fmin.reduce(targets, axis=1)
    same = (low == np.fmax.reduce(targets, axis=1)).nonzero()
    names = [f" {name}" if len(schema.target) > 1 else "" for name in schema.target]
    entity, target = same
    return [who + names[t] for who, t in zip(labels(ids[entity]), target, strict=True)]


def _static(
    table: pl.DataFrame,
    entity: np.ndarray,
    codes: dict[str, np.ndarray],
    ids: pl.DataFrame,
    part: Part,
    schema: Schema,
    categories: Categories,
) -> Values:
    """Returns what each entity has; raises an error where that changes in time."""

    def fill(out: np.ndarray, values: np.ndarray, there: np.ndarray, name: str) -> None:
        rows = np.flatnonzero(there)
        out[entity[rows[::-1]]] = values[rows[::-1]]  # the first row comes last, and stays
        wrong = values[rows] != out[entity[rows]]
        if not wrong.any():
            return
        row = int(rows[wrong.argmax()])
        pair = np.array([out[entity[row]], values[row]])
        shown = categories.decode(name, pair) if name in codes else pair
        raise TableError(
            f"{part.where}{name} of {label(ids, entity[row])} changes from {shown[0]} to"
            f" {shown[1]} though it is static; make it known or observed",
            column=name,
        )

    reals = [name for name in schema.static if name not in codes]
    texts = [name for name in schema.static if name in codes]
    real = np.full((len(ids), len(reals)), np.nan)
    categorical = np.full((len(ids), len(texts)), -1, np.int32)
    for i, name in enumerate(reals):
        values = table[name].to_numpy()
        fill(real[:, i], values, ~np.isnan(values), name)
    for i, name in enumerate(texts):
        fill(categorical[:, i], codes[name], codes[name] >= 0, name)
    return Values(real, categorical)
