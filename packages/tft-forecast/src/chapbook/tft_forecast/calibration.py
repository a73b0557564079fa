"""Intervals that cover what they say: conformalised quantile regression of forecast frames.

Notable choices:

- Each central interval [l, u] has its own correction c, and becomes [l - c, u + c]. What a pair of
  quantiles has to cover is u's level less l's.
- After correction an inner interval stays inside the outer ones, and the median inside them all: an
  interval that would break this is widened, which never costs coverage.
- A panel's series differ in size. With `unit="width"` corrections are multiples of the interval's
  own width, so that small series are not given the errors of large ones.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from chapbook.core.errors import Error, TableError
from chapbook.core.tables import read_table, write_table
from chapbook.tft_forecast.metrics import column, pairs, score
from chapbook.tft_forecast.schema import require

UNITS = ("target", "width")
COLUMNS = {
    "lower": pl.Float64,
    "upper": pl.Float64,
    "correction": pl.Float64,
    "rows": pl.Int64,
    "unit": pl.String,
}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What intervals are widened by, or narrowed where it is negative.

    Args:
        table: One row per group and interval: the columns of the groups, `lower` and `upper`
            levels, `correction`, the `rows` it was fitted on, and its `unit`.
    """

    table: pl.DataFrame

    @classmethod
    def fit(
        cls, frame: pl.DataFrame, by: Sequence[str] = ("step",), *, unit: str = "target"
    ) -> "Calibration":
        """Fits corrections to forecasts whose actual values are known.

        With n rows in a group and the scores `E = max(l - y, y - u)`, the correction of an interval
        of nominal coverage 1 - α is the ⌈(n + 1)(1 - α)⌉-th smallest score. On exchangeable rows
        the corrected interval covers a new value with probability 1 - α or more.

        Args:
            frame: A forecast frame with `y`, of origins that the model was not fitted to; rows
                without y or forecast are left out.
            by: Columns whose groups are corrected apart.
            unit: What corrections are counted in: `target`, or the interval's own `width`.

        Raises:
            Error: A group has too few rows for the nominal coverage, the frame has no pair of
                quantiles that mirror each other, or too many intervals have no width.

        Reference:
            Romano, Patterson and Candès (2019), "Conformalized Quantile Regression", theorem 1;
            for widths Kivaranovic, Johnson and Leeb (2020), "Adaptive, distribution-free
            prediction intervals for deep networks".
        """
        if unit not in UNITS:
            raise Error(f'unit="{unit}" is none of {", ".join(UNITS)}')
        for name in ("y", *by):
            require(frame, name)
        parts = [_fit(frame, list(by), pair, unit) for pair in _pairs(frame)]
        table = pl.concat(parts).with_columns(pl.lit(unit).alias("unit"))
        return cls(table.select(*by, *COLUMNS))

    @property
    def by(self) -> list[str]:
        """The columns whose groups are corrected apart."""
        return [name for name in self.table.columns if name not in COLUMNS]

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Returns a forecast frame with its intervals corrected; all else is as it was.

        Raises:
            Error: A group or a column of quantiles is not there.
        """
        bounds = self.table.select("lower", "upper").unique().sort("lower", descending=True).rows()
        named = [(column(low), column(high)) for low, high in bounds]
        for name in (*self.by, *itertools.chain(*named)):
            require(frame, name)
        wide = self._wide(bounds)
        joined = frame.join(wide, on=self.by, how="left", maintain_order="left", nulls_equal=True) \
            if self.by else frame.join(wide, how="cross")  # fmt: skip
        if joined["correction 0"].null_count():
            row = joined.row(joined["correction 0"].is_null().arg_max() or 0, named=True)
            group = ", ".join(f"{name}={row[name]}" for name in self.by)
            raise Error(f"the calibration has no rows of {group}; fit it on a frame that has them")
        # From the inside out: each bound stays outside of the one before.
        center = pl.col("q0.5") if "q0.5" in frame.columns else sum(map(pl.col, named[0])) / 2
        low, high = center, center
        made = {}
        for place, (lower, upper) in enumerate(named):
            correction = pl.col(f"correction {place}")
            if self.table["unit"][0] == "width":
                correction = correction * (pl.col(upper) - pl.col(lower))
            there = pl.col(lower).is_not_null() & pl.col(upper).is_not_null()
            low = pl.when(there).then(pl.min_horizontal(pl.col(lower) - correction, low))
            high = pl.when(there).then(pl.max_horizontal(pl.col(upper) + correction, high))
            made |= {lower: low, upper: high}
        return joined.with_columns(**made).select(frame.columns)

    def report(self, frame: pl.DataFrame, by: Sequence[str] = ()) -> pl.DataFrame:
        """Returns coverage, mean width and interval score before and after the correction.

        Args:
            frame: A forecast frame with `y`; other rows than those of the fit, or coverage is
                flattered.
            by: Columns whose groups are shown apart.

        Returns:
            The columns of `score`, of which `level` is the nominal coverage, with `value` split
            into `before` and `after`.
        """
        metrics = ["coverage", "width", "winkler"]
        before, after = (score(part, by, metrics) for part in (frame, self.apply(frame)))
        return before.rename({"value": "before"}).with_columns(after=after["value"]).select(
            *by, "metric", "level", "before", "after", "rows", "missing"
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Writes the table."""
        write_table(self.table, path)

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Reads the table.

        Raises:
            TableError: It holds no calibration.
        """
        return cls(read_table(path, COLUMNS))

    def _wide(self, bounds: Sequence[tuple[float, float]]) -> pl.DataFrame:
        """Returns one row per group, with a column for each interval."""
        each = [
            pl.col("correction").filter(lower=low, upper=high).first().alias(f"correction {place}")
            for place, (low, high) in enumerate(bounds)
        ]
        return self.table.group_by(self.by).agg(each) if self.by else self.table.select(each)


def _fit(frame: pl.DataFrame, by: list[str], pair: tuple[float, float], unit: str) -> pl.DataFrame:
    low, high = (pl.col(column(level)) for level in pair)
    y, wanted = pl.col("y"), round(pair[1] - pair[0], 12)
    beyond = pl.max_horizontal(low - y, y - high)
    if unit == "width":
        # What lies in an interval of no width needs no multiple of it; all else an infinite one.
        beyond = pl.when(beyond == 0).then(0.0).otherwise(beyond / (high - low))
    there = pl.all_horizontal(part.is_not_nan().fill_null(False) for part in (y, low, high))
    # A rounding error must not ask for one row more than (n + 1)(1 - α) does.
    rank = ((pl.len() + 1) * wanted - 1e-9).ceil().cast(pl.Int64)
    scores = frame.filter(there).with_columns(beyond.alias("beyond"))
    aggregated = (
        pl.col("beyond").sort().get(rank - 1, null_on_oob=True).alias("correction"),
        pl.len().cast(pl.Int64).alias("rows"),
    )
    table = scores.group_by(by).agg(aggregated).sort(by) if by else scores.select(aggregated)
    need = math.ceil(wanted / (1 - wanted) - 1e-9)
    if not table.height:
        raise Error(f"no row has y and a forecast; the {wanted:.0%} interval needs {need} or more")
    short = table.sort("rows", maintain_order=True).row(0, named=True)
    if short["rows"] < need:
        group = ", ".join(f"{name}={short[name]}" for name in by) or "the frame"
        needed = f"the {wanted:.0%} interval needs {need} or more"
        raise Error(
            f"{group} has {short['rows']} rows with y; {needed}",
            "calibrate on more origins, or in fewer groups",
        )
    if table["correction"].is_infinite().any():
        raise Error(
            f"{column(pair[0])} and {column(pair[1])} are equal in too many rows to be corrected",
            'calibrate with unit="target"',
        )
    levels = (pl.lit(pair[0]).alias("lower"), pl.lit(pair[1]).alias("upper"))
    return table.with_columns(*levels)


def _pairs(frame: pl.DataFrame) -> tuple[tuple[float, float], ...]:
    found = pairs(frame.columns)
    if not found:
        raise TableError("no two quantiles mirror each other, such as q0.1 and q0.9")
    return found
