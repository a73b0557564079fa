"""Whether one forecaster beats another, or whether the difference may be chance.

Notable choices:

- Errors of one origin go together: of neighbours, of steps, of whatever hit that month. The
  bootstrap therefore draws whole origins, and both forecasters keep the same ones.
- Both sides' q-Risk is a ratio of sums over the drawn origins, as the reported figure is.
- The Diebold-Mariano statistic looks along time instead: its series is the difference in loss,
  averaged over what is forecast for the same time.
"""

import math
from collections.abc import Mapping

import numpy as np
import polars as pl
from jaxtyping import Float

from chapbook.core.errors import Error, TableError
from chapbook.tft_forecast.metrics import column, levels, pinball

UNCLEAR = "not distinguishable"


def compare(
    ours: pl.DataFrame,
    others: Mapping[str, pl.DataFrame],
    *,
    time: str,
    draws: int = 10_000,
    block: int = 1,
    confidence: float = 0.95,
    seed: int = 0,
) -> pl.DataFrame:
    """Compares forecasts with others of the same values, at each level that both have.

    Args:
        ours: A forecast frame with `y`.
        others: Forecast frames by name. Only rows that both frames have are compared.
        time: The column of times.
        draws: Of the bootstrap.
        block: Neighbouring origins that are drawn together; where windows overlap, horizon over
            stride, rounded up.
        confidence: Of the interval.
        seed: Of the bootstrap.

    Returns:
        One row per other and level: `other`, `level`, `ours` and `theirs` (q-Risk), `difference`
        (below 0 where ours is better), its interval from `low` to `high`, the Diebold-Mariano
        statistic `dm` and its two-sided `p_value`, `verdict` (`better`, `worse`, or `not
        distinguishable` where the interval covers 0), the number of `origins`, of `rows` compared,
        and of rows of either that were `left_out`.

    Raises:
        Error: The frames do not share two origins or a level, or disagree about y.

    Reference:
        Künsch (1989), "The jackknife and the bootstrap for general stationary observations", for
        blocks; `diebold_mariano` for the statistic.
    """
    rows = []
    for name, theirs in others.items():
        shared = sorted({*levels(ours.columns)} & {*levels(theirs.columns)})
        if not shared:
            raise Error(f"{name} has none of our quantiles")
        paired = _paired(ours, theirs, shared, time, name)
        left_out = ours.height + theirs.height - 2 * paired.height
        horizon = int(paired["step"].to_numpy().max())
        for level in shared:
            losses = (pl.col(f"loss {level:g}"), pl.col(f"loss {level:g} theirs"))
            sums = paired.group_by("origin").agg(
                ours=losses[0].sum(), theirs=losses[1].sum(), size=pl.col("y").abs().sum()
            )
            a, b, size = sums.sort("origin").drop("origin").cast(pl.Float64).to_numpy().T
            drawn = bootstrap(a, b, size, draws=draws, block=block, seed=seed)
            low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
            series = paired.group_by(time).agg((losses[0] - losses[1]).mean()).sort(time)[:, 1]
            enough = len(series) > horizon
            dm = diebold_mariano(series.to_numpy(), horizon) if enough else (None, None)
            found = 2 * a.sum() / size.sum(), 2 * b.sum() / size.sum()
            rows.append(
                {
                    "other": name, "level": level, "ours": found[0], "theirs": found[1],
                    "difference": found[0] - found[1], "low": low, "high": high,
                    "dm": dm[0], "p_value": dm[1],
                    "verdict": "better" if high < 0 else "worse" if low > 0 else UNCLEAR,
                    "origins": len(a), "rows": paired.height, "left_out": left_out,
                }
            )  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None)


def bootstrap(
    ours: Float[np.ndarray, " origins"],
    theirs: Float[np.ndarray, " origins"],
    size: Float[np.ndarray, " origins"],
    *,
    draws: int = 10_000,
    block: int = 1,
    seed: int = 0,
) -> Float[np.ndarray, " draws"]:
    """Draws the difference in q-Risk, `2 Σ (ours - theirs) / Σ size`, by origins with replacement.

    Args:
        ours: The sum of our losses at each origin, in order of time.
        theirs: The sum of theirs.
        size: The sum of |y|.
        draws: How many differences to draw.
        block: Neighbouring origins that are drawn together; the last is followed by the first.
        seed: Of the draws.

    Raises:
        Error: There are fewer than two origins, or no longer than a block.
    """
    count = len(size)
    if count < 2 or not 1 <= block < count:
        raise Error(f"{count} origins cannot be drawn in blocks of {block}; forecast at more")
    rng, loss = np.random.default_rng(seed), ours - theirs
    blocks = -(-count // block)
    found = np.empty(draws)
    for begin in range(0, draws, 1000):  # a bound on memory
        some = min(1000, draws - begin)
        first = rng.integers(0, count, (some, blocks, 1))
        drawn = ((first + np.arange(block)) % count).reshape(some, -1)[:, :count]
        found[begin : begin + some] = 2 * loss[drawn].sum(1) / size[drawn].sum(1)
    return found


def diebold_mariano(difference: Float[np.ndarray, " times"], horizon: int) -> tuple[float, float]:
    """Tests whether a difference in loss has the mean 0.

    `S = mean(d) / sqrt(V / n)`, where V is the long-run variance with the Bartlett weights
    1 - j/h of the autocovariances up to lag h - 1 (errors of h steps ahead overlap so far), times
    the small-sample factor `sqrt((n + 1 - 2h + h(h - 1)/n) / n)`; it is compared with Student's t
    of n - 1 degrees of freedom.

    Args:
        difference: Of the losses at each time, in order.
        horizon: Steps ahead that were forecast at most, h.

    Returns:
        The statistic, below 0 where the first loss is lower, and the two-sided p-value.

    Raises:
        Error: There are no more times than steps.

    Reference:
        Diebold and Mariano (1995), "Comparing predictive accuracy"; Harvey, Leybourne and Newbold
        (1997), "Testing the equality of prediction mean squared errors", for the factor.
    """
    from scipy.special import stdtr

    n, h = len(difference), horizon
    if n <= h:
        raise Error(f"{n} times are too few for a test of forecasts {h} steps ahead")
    mean, centered = difference.mean(), difference - difference.mean()
    variance = centered @ centered / n
    for lag in range(1, h):
        variance += 2 * (1 - lag / h) * (centered[lag:] @ centered[:-lag]) / n
    if not mean:
        return 0.0, 1.0
    if not variance > 0:
        return math.copysign(math.inf, mean), 0.0
    factor = math.sqrt((n + 1 - 2 * h + h * (h - 1) / n) / n)
    statistic = float(factor * mean / math.sqrt(variance / n))
    return statistic, float(2 * stdtr(n - 1, -abs(statistic)))


def _paired(
    ours: pl.DataFrame, theirs: pl.DataFrame, shared: list[float], time: str, name: str
) -> pl.DataFrame:
    """Returns the rows that both frames have, with the losses of both."""
    keys = [
        each
        for each in ours.columns
        if each in theirs.columns and each not in ("y", "point") and not levels([each])
    ]
    if missing := [each for each in ("origin", time, "step") if each not in keys]:
        raise TableError(f'{name} and ours do not share the column "{missing[0]}"')
    there = pl.all_horizontal(pl.col("y", *map(column, shared)).is_not_nan().fill_null(False))
    losses = [pinball(level).alias(f"loss {level:g}") for level in shared]
    parts = []
    for whose, frame in (("our frame", ours), (name, theirs)):
        if "y" not in frame.columns:
            raise TableError(f'{whose} has no column "y"', column="y")
        part = frame.filter(there).select(*keys, "y", *losses)
        if not part.select(keys).is_unique().all():
            raise TableError(f"{whose} has more than one forecast for some {', '.join(keys)}")
        parts.append(part)
    paired = parts[0].join(parts[1], on=keys, suffix=" theirs")
    if not paired.height:
        raise TableError(f"{name} and ours share no row of the same {', '.join(keys)}")
    wrong = paired.filter((pl.col("y") - pl.col("y theirs")).abs() > 1e-6 * pl.col("y").abs())
    if wrong.height:
        row = wrong.row(0, named=True)
        where = ", ".join(f"{key}={row[key]}" for key in keys)
        raise TableError(f"y is {row['y']} in ours and {row['y theirs']} in {name} ({where})")
    return paired
