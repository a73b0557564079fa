"""Location and scale of what a network sees, fitted on training steps alone.

Notable choices:

- Everything is z = (x - location) / scale, so that one table of statistics serves all methods.
- Statistics are those of targets after `target_transform`.
- An entity of which training shows fewer than two values takes the statistics of all entities;
  so does one that training has not seen.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.tft_forecast.frames import read_parquet
from chapbook.tft_forecast.panels import Panel, Values

METHODS = ("entity", "entity_robust", "entity_mean", "window", "global", "none")
_STATISTICS = ("role", "variable", "location", "scale", "count", "method", "fitted_until")
_FEWEST = 2  # values that make a scale


class Scaled(NamedTuple):
    """The values of a panel, scaled; NaN and -1 where missing."""

    static: Values
    observed: Values
    known: Values


@dataclasses.dataclass(frozen=True, eq=False)
class Scalers:
    """Location and scale of each target and real input.

    Attributes:
        frame: A row per entity and variable, and one per variable for all entities, whose ids are
            null: the ids, `role` (`static`, `observed` or `known`; targets are observed),
            `variable`, `location`, `scale`, `count` (values that were seen), `method` and
            `fitted_until`, the last time that was seen.
    """

    frame: pl.DataFrame

    @classmethod
    def fit(cls, panel: Panel, method: str, until: int | None = None) -> "Scalers":
        """Finds the statistics of a panel.

        Args:
            panel: The panel.
            method: How targets are scaled: by each entity's mean and standard deviation
                (`entity`), median and range between quartiles (`entity_robust`) or mean absolute
                value (`entity_mean`); by the mean and standard deviation of all (`global`); in
                each window by those of its past half (`window`, which leaves them alone here);
                or not (`none`). Other reals take means and standard deviations: of each entity
                under the entity methods, of all otherwise and where static.
            until: The first step that is no longer training; all steps are if not given.

        Raises:
            Error: There is no such method, or no step before `until`.
        """
        if method not in METHODS:
            raise Error(f'scaling="{method}" is none of {", ".join(METHODS)}')
        stop = len(panel.times) if until is None else min(until, len(panel.times))
        if stop < 1 or not panel.present[:, :stop].any():
            raise Error(f"there is no row before step {until} to fit scalers on")
        rows = []
        targets = len(panel.schema.target)
        layout = panel.schema.layout(panel.categories)
        names = {"observed": layout.observed.real, "known": layout.known.real}
        by_entity = method.startswith("entity")
        for role, values in (("observed", panel.observed.real), ("known", panel.known.real)):
            for i in range(values.shape[-1]):
                x = values[:, :stop, i]
                kind = method if role == "observed" and i < targets else "entity"
                every = _statistics(x.reshape(1, -1), kind)
                own = _statistics(x, kind) if by_entity else None
                rows.append(_rows(panel, role, names[role][i], every, own))
        seen = panel.present[:, :stop].any(1)
        for i, name in enumerate(layout.static.real):
            rows.append(_rows(panel, "static", name, _statistics(panel.static.real[seen, i][None])))
        # A panel may have rows for some entities only before `until`.
        last = panel.times[int(np.flatnonzero(panel.present[:, :stop].any(0)).max())]
        frame = pl.concat(rows).with_columns(
            pl.lit(method).alias("method"),
            pl.lit(last, dtype=panel.times.dtype).alias("fitted_until"),
        )
        if method == "none":
            frame = frame.with_columns(location=pl.lit(0.0), scale=pl.lit(1.0))
        return cls(frame)

    @functools.cached_property
    def method(self) -> str:
        """How targets are scaled."""
        return self.frame["method"][0]

    @property
    def fitted_until(self) -> Any:
        """The last time that was seen."""
        return self.frame["fitted_until"].max()

    def transform(self, panel: Panel, *, add_scale_inputs: bool = False) -> Scaled:
        """Returns (x - location) / scale of every real variable of a panel.

        Args:
            panel: A panel with the variables of the one that was fitted on.
            add_scale_inputs: Whether each target's location and the logarithm of its scale are
                appended to the static variables, themselves scaled over the fitted entities.

        Raises:
            Error: A variable was not fitted on.
        """
        layout = panel.schema.layout(panel.categories)
        scaled = []
        for role, values, names in (
            ("static", panel.static, layout.static.real),
            ("observed", panel.observed, layout.observed.real),
            ("known", panel.known, layout.known.real[: panel.known.real.shape[-1]]),
        ):
            real = values.real.copy()
            for i, name in enumerate(names):
                location, scale = self._of(panel.ids, role, name)
                shape = (-1,) + (1,) * (real.ndim - 2)
                real[..., i] = (real[..., i] - location.reshape(shape)) / scale.reshape(shape)
            scaled.append(Values(real, values.categorical))
        result = Scaled(*scaled)
        if not add_scale_inputs:
            return result
        static = np.concatenate([result.static.real, self._scale_inputs(panel)], -1)
        return result._replace(static=Values(static, panel.static.categorical))

    def target(
        self, panel: Panel
    ) -> tuple[Float[np.ndarray, "entities targets"], Float[np.ndarray, "entities targets"]]:
        """Returns the location and the scale of each entity's targets."""
        parts = [self._of(panel.ids, "observed", name) for name in panel.schema.target]
        location, scale = (np.stack(each, -1) for each in zip(*parts, strict=True))
        return location, scale

    def invert(
        self, panel: Panel, entity: Int[np.ndarray, " rows"], values: Float[np.ndarray, "rows ..."]
    ) -> Float[np.ndarray, "rows ..."]:
        """Returns scaled targets in the units of the table, before `target_transform`.

        Args:
            panel: The panel.
            entity: The entity of each row.
            values: Scaled targets; the targets are the second axis from the end, or the last of
                two, as in (rows, targets), (rows, targets, quantiles) and
                (rows, horizon, targets, quantiles).
        """
        location, scale = (part[entity] for part in self.target(panel))
        axis = 1 if values.ndim == 2 else values.ndim - 2
        shape = [len(entity)] + [1] * (values.ndim - 1)
        shape[axis] = location.shape[1]
        return panel.schema.restored(values * scale.reshape(shape) + location.reshape(shape))

    def save(self, path: str | Path) -> None:
        """Writes the statistics to a parquet file, whole or not at all."""
        write_atomic(path, self.frame.write_parquet)

    @classmethod
    def load(cls, path: str | Path) -> "Scalers":
        """Reads the statistics from a parquet file.

        Raises:
            Error: The file is none that `save` wrote.
            OSError: The file cannot be read.
        """
        frame = read_parquet(path)
        if lacks := [name for name in _STATISTICS if name not in frame.columns]:
            raise Error(f"{path} holds no statistics: there is no column {lacks[0]}")
        return cls(frame)

    def _of(self, ids: pl.DataFrame, role: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the location and the scale of a variable for each of some entities."""
        rows = self.frame.filter((pl.col("role") == role) & (pl.col("variable") == name))
        if not rows.height:
            raise Error(f"the scalers were not fitted on the {role} variable {name}")
        every = rows.filter(pl.all_horizontal(pl.col(ids.columns).is_null()))
        for column in ids.columns:
            have, want = ids.schema[column], rows.schema[column]
            if have != want and not (have.is_integer() and want.is_integer()):
                raise Error(f"id column {column} is {have}; the scalers were fitted on {want}")
        wide = [pl.col(c).cast(pl.Int64) for c in ids.columns if ids.schema[c].is_integer()]
        own = ids.with_columns(wide).join(
            rows.with_columns(wide), on=ids.columns, how="left", maintain_order="left"
        )
        location, scale = (
            own[part].fill_null(every[part][0]).to_numpy() for part in ("location", "scale")
        )
        return location, scale

    def _scale_inputs(self, panel: Panel) -> np.ndarray:
        columns = []
        for name in panel.schema.target:
            fitted = self.frame.filter(
                (pl.col("role") == "observed") & (pl.col("variable") == name)
            )
            location, scale = self._of(panel.ids, "observed", name)
            for own, all_ in (
                (location, fitted["location"].to_numpy()),
                (np.log(scale), np.log(fitted["scale"].to_numpy())),
            ):
                middle, spread, _ = (part[0] for part in _statistics(all_[None]))
                columns.append((own - middle) / spread)
        return np.stack(columns, -1)


def _statistics(x: np.ndarray, kind: str = "entity") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns location, scale and count of each row of values, NaN being no value."""
    there = ~np.isnan(x)
    count = there.sum(1)
    some = np.maximum(count, 1)
    zero, one = np.zeros(len(x)), np.ones(len(x))
    if kind in ("window", "none"):
        return zero, one, count
    if kind == "entity_mean":
        size = np.where(there, np.abs(x), 0).sum(1) / some
        return zero, np.where(size > 0, size, 1), count
    mean = np.where(there, x, 0).sum(1) / some
    deviation = np.sqrt((np.where(there, x - mean[:, None], 0) ** 2).sum(1) / some)
    # What rounding leaves of a constant is no scale.
    deviation = np.where(deviation > 1e-12 * np.abs(mean), deviation, 1)
    if kind != "entity_robust":
        return mean, deviation, count
    low, median, high = _quartiles(x, count)
    # Half of a sparse series may be one value; its other values still have a scale.
    return median, np.where(high > low, high - low, deviation), count


def _quartiles(x: np.ndarray, count: np.ndarray) -> list[np.ndarray]:
    """Returns the quartiles of each row by linear interpolation, 0 for rows without values."""
    ordered = np.sort(x, 1)  # NaN come last
    rows = np.arange(len(x))
    found = []
    for share in (0.25, 0.5, 0.75):
        place = share * np.maximum(count - 1, 0)
        below = np.floor(place).astype(np.int64)
        above = np.minimum(below + 1, np.maximum(count - 1, 0))
        low, high = ordered[rows, below], ordered[rows, above]
        found.append(np.where(count > 0, low + (high - low) * (place - below), 0))
    return found


def _rows(
    panel: Panel,
    role: str,
    name: str,
    every: tuple[np.ndarray, ...],
    own: tuple[np.ndarray, ...] | None = None,
) -> pl.DataFrame:
    """Returns the rows of one variable: of all entities, then of each that has enough values."""

    def frame(ids: pl.DataFrame, statistics: tuple[np.ndarray, ...]) -> pl.DataFrame:
        location, scale, count = statistics
        return ids.with_columns(
            pl.lit(role).alias("role"),
            pl.lit(name).alias("variable"),
            pl.Series("location", location, pl.Float64),
            pl.Series("scale", scale, pl.Float64),
            pl.Series("count", count, pl.Int64),
        )

    all_ = frame(panel.ids.clear(1), every)
    if own is None:
        return all_
    enough = own[2] >= _FEWEST
    return pl.concat([all_, frame(panel.ids.filter(enough), tuple(part[enough] for part in own))])
