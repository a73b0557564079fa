"""How good forecasts are: metrics of a forecast frame, as Polars expressions and as a tidy table.

A forecast frame has a row per entity, origin and step, a column per quantile (`q0.1`, `q0.5`, ...)
and the actual value `y`. Each metric is an aggregation in original units, so that it works in
`select`, in `group_by(...).agg` and on lazy frames alike:

    frame.select(q_risk(0.5)).item()
    frame.group_by("step").agg(coverage(0.1, 0.9))

Rows whose `y` is null count in none of them.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

import polars as pl

from chapbook.core.errors import Error, TableError
from chapbook.tft_forecast.schema import require

Y = pl.col("y")
POINT = pl.col("q0.5")
LEAST_GRID = 9  # quantiles that a CRPS needs; fewer leave out too much of the distribution


def levels(columns: Iterable[str]) -> tuple[float, ...]:
    """Returns the levels of the quantile columns among the names, rising."""
    found = []
    for name in columns:
        try:
            level = float(name[1:]) if name[:1] == "q" else math.nan
        except ValueError:
            continue
        if 0 < level < 1 and name == column(level):
            found.append(level)
    return tuple(sorted(found))


def column(level: float) -> str:
    """Returns the name of the column that holds a quantile."""
    return f"q{level:g}"


def pairs(columns: Iterable[str]) -> tuple[tuple[float, float], ...]:
    """Returns the pairs of quantiles that bound a central interval, from the inner to the outer."""
    known = levels(columns)
    found = [(low, high) for low in known for high in known if math.isclose(low + high, 1)]
    return tuple(sorted(((low, high) for low, high in found if low < high), reverse=True))


def pinball(level: float) -> pl.Expr:
    """The loss of each row, `QL = q·max(y - f, 0) + (1 - q)·max(f - y, 0)`."""
    error = Y - pl.col(column(level))
    return pl.max_horizontal(level * error, (level - 1) * error)


def q_risk(level: float) -> pl.Expr:
    """Normalised quantile loss, `2 Σ QL / Σ |y|`: one ratio of sums over all rows.

    It is not finite where all y are 0.

    Reference:
        Lim et al. (2021), equation 27.
    """
    loss = pinball(level)
    return 2 * loss.sum() / pl.when(loss.is_not_null()).then(Y.abs()).sum()


def wql(levels: Sequence[float]) -> pl.Expr:
    """Weighted quantile loss: the mean of `q_risk` over the levels."""
    return pl.sum_horizontal(q_risk(level) for level in levels) / len(levels)


def crps(levels: Sequence[float]) -> pl.Expr:
    """Continuous ranked probability score, as `2 · mean QL` over an even grid of levels.

    Args:
        levels: At least nine, evenly spaced from end to end, such as 0.1, 0.2, ..., 0.9.

    Raises:
        Error: The levels are too few or not even.
    """
    if not _even(levels):
        found = ", ".join(f"{level:g}" for level in levels)
        raise Error(f"crps needs {NEEDS['crps']}; there are {found}")
    return 2 * pl.mean_horizontal(pinball(level) for level in levels).mean()


def winkler(low: float, high: float) -> pl.Expr:
    """Interval score, `mean(u - l + 2/α · max(l - y, y - u, 0))` with α = 1 - high + low.

    Reference:
        Gneiting and Raftery (2007), "Strictly Proper Scoring Rules", equation 43.
    """
    lower, upper = pl.col(column(low)), pl.col(column(high))
    outside = pl.max_horizontal(lower - Y, Y - upper, 0.0)
    return pl.when(Y.is_not_null()).then(upper - lower + 2 / (1 - high + low) * outside).mean()


def coverage(low: float, high: float) -> pl.Expr:
    """Share of y in the closed interval between two quantiles."""
    return Y.is_between(pl.col(column(low)), pl.col(column(high))).mean()


def width(low: float, high: float) -> pl.Expr:
    """Mean width of the interval between two quantiles."""
    return pl.when(Y.is_not_null()).then(pl.col(column(high)) - pl.col(column(low))).mean()


def below(level: float) -> pl.Expr:
    """Share of y at or below a quantile; its level if the forecasts are reliable."""
    return (pl.col(column(level)) >= Y).mean()


def mae() -> pl.Expr:
    """Mean absolute error of the median."""
    return (Y - POINT).abs().mean()


def rmse() -> pl.Expr:
    """Root of the mean squared error of the median."""
    return (Y - POINT).pow(2).mean().sqrt()


def mase() -> pl.Expr:
    """Mean absolute scaled error of the median, `mean(|y - f| / scale)`.

    Rows count only where the column `scale`, of `in_sample_scale`, is above 0.

    Reference:
        Hyndman and Koehler (2006), "Another look at measures of forecast accuracy".
    """
    scale = pl.col("scale")
    return pl.when(scale > 0).then((Y - POINT).abs() / scale).mean()


def smape() -> pl.Expr:
    """Symmetric relative error of the median, `mean(2 |y - f| / (|y| + |f|))`, from 0 to 2."""
    error, size = (Y - POINT).abs(), Y.abs() + POINT.abs()
    return pl.when(size > 0).then(2 * error / size).otherwise(error).mean()


def bias() -> pl.Expr:
    """Mean of median minus y: above 0 where forecasts are too high."""
    return (POINT - Y).mean()


def in_sample_scale(
    frame: pl.DataFrame, *, by: Sequence[str], time: str, target: str, season: int = 1
) -> pl.DataFrame:
    """Returns what `mase` divides by, `mean |y_t - y_{t-season}|` of each series.

    Args:
        frame: The rows that a model was trained on, a row per series and step, without gaps.
        by: The columns that tell series apart.
        time: The column of times.
        target: The column of values.
        season: Steps of a season.

    Returns:
        The columns of `by`, and `scale`: null for a series that is shorter than a season.
    """
    change = (pl.col(target) - pl.col(target).shift(season)).abs()
    return frame.sort(time).group_by(by).agg(change.mean().alias("scale")).sort(by)


def score(
    frame: pl.DataFrame,
    by: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    *,
    scale: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Scores forecasts.

    Args:
        frame: A forecast frame with `y`. With several targets, `by` should hold `target`.
        by: Columns to score apart, such as `["step"]`.
        metrics: Names, among `q_risk`, `wql`, `crps`, `coverage`, `width`, `winkler`, `below`,
            `mae`, `rmse`, `mase`, `smape` and `bias`; None takes all that the columns allow.
        scale: For `mase`: a column `scale`, and the columns that tell series apart.

    Returns:
        One row per group, metric and level, in columns `by`, `metric`, `level` (of the quantile, or
        the nominal coverage of the interval; else null), `value`, `rows` that were scored, and
        `missing`: rows without y, without a forecast or, for `mase`, without a scale above 0.

    Raises:
        Error: A metric is unknown, or the columns do not allow it.
    """
    by = list(by)
    for name in ("y", *by):
        require(frame, name)
    known = levels(frame.columns)
    if not known:
        raise TableError("the frame of forecasts has no column of a quantile, such as q0.5")
    if scale is not None:
        series = [name for name in scale.columns if name != "scale"]
        require(scale, "scale")
        for name in series:
            require(frame, name)
        frame = frame.join(scale, on=series, how="left", maintain_order="left")
    rows = _chosen(metrics, known, "scale" in frame.columns)
    there = pl.all_horizontal(pl.col("y", *map(column, known)).is_not_nan().fill_null(False))
    frame = frame.with_columns(pl.when(there).then(Y).alias("y"))
    cells = []
    for place, (name, _, expression) in enumerate(rows):
        counts = (Y.is_not_null() & (pl.col("scale") > 0)) if name == "mase" else Y.is_not_null()
        count = counts.sum().cast(pl.Int64)
        # No row, no value: a sum of nothing would be 0.
        value = pl.when(count > 0).then(expression)
        missing = pl.len().cast(pl.Int64) - count
        cells.append(pl.struct(value=value, rows=count, missing=missing).alias(str(place)))
    wide = frame.group_by(by).agg(cells).sort(by, nulls_last=True) if by else frame.select(cells)
    named = [(str(place), name, level) for place, (name, level, _) in enumerate(rows)]
    schema = {"place": pl.String, "metric": pl.String, "level": pl.Float64}
    # The index keeps groups in order.
    long = wide.with_row_index("group").unpivot(
        index=["group", *by], variable_name="place", value_name="found"
    )
    return (
        long.join(pl.DataFrame(named, schema, orient="row"), on="place")
        .unnest("found")
        .sort("group", pl.col("place").cast(pl.Int64))
        .select(*by, "metric", "level", "value", "rows", "missing")
    )


def _chosen(
    metrics: Sequence[str] | None, known: tuple[float, ...], scaled: bool
) -> list[tuple[str, float | None, pl.Expr]]:
    """Returns name, level and expression of each metric that is wanted, or allowed."""
    central = [(round(high - low, 12), low, high) for low, high in pairs(map(column, known))]
    median = 0.5 in known
    allowed: dict[str, list[tuple[float | None, pl.Expr]]] = {
        "q_risk": [(level, q_risk(level)) for level in known],
        "wql": [(None, wql(known))],
        "crps": [(None, crps(known))] if _even(known) else [],
        "coverage": [(share, coverage(low, high)) for share, low, high in central],
        "width": [(share, width(low, high)) for share, low, high in central],
        "winkler": [(share, winkler(low, high)) for share, low, high in central],
        "below": [(level, below(level)) for level in known],
        "mae": [(None, mae())] if median else [],
        "rmse": [(None, rmse())] if median else [],
        "mase": [(None, mase())] if median and scaled else [],
        "smape": [(None, smape())] if median else [],
        "bias": [(None, bias())] if median else [],
    }
    for name in metrics or ():
        if name not in allowed:
            raise Error(f'there is no metric "{name}"; there are {", ".join(allowed)}')
        if not allowed[name]:
            found = ", ".join(map(column, known))
            raise Error(
                f"{name} needs {NEEDS.get(name, 'the median, q0.5')}; the frame has {found}"
            )
    names = allowed if metrics is None else metrics
    return [(name, level, made) for name in names for level, made in allowed[name]]


NEEDS = {
    "crps": f"at least {LEAST_GRID} evenly spaced quantiles, such as 0.1, 0.2, ..., 0.9",
    **dict.fromkeys(("coverage", "width", "winkler"), "two quantiles that mirror each other"),
    "mase": "the median, q0.5, and `scale`, a frame that in_sample_scale makes",
}


def _even(levels: Sequence[float]) -> bool:
    """Whether levels are an even grid that leaves out no more at its ends than between two."""
    if len(levels) < LEAST_GRID:
        return False
    step = (levels[-1] - levels[0]) / (len(levels) - 1)
    even = all(math.isclose(b - a, step, rel_tol=1e-6) for a, b in itertools.pairwise(levels))
    mirrored = math.isclose(levels[0] + levels[-1], 1)
    return even and mirrored and levels[0] <= step * (1 + 1e-6)
