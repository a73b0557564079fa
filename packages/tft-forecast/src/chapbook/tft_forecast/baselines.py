"""What a forecaster has to beat: naive rules, classical models per series, and boosted trees.

Every function takes a table, its schema, the origins (the last observed times), the horizon and
the quantiles, and returns a forecast frame of all entities and origins with the actual values `y`.

Notable choices:

- Naive rules give a point, which is their median. Other quantiles are those of the errors that the
  same rule made on the same series shortly before the first origin.
- Classical models are fitted anew at each origin; trees once, on targets before the first origin.
- Trees learn the ratio to the recent mean, so that one model serves series of all sizes.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from chapbook.core.errors import Error
from chapbook.tft_forecast import forecasts
from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.panels import Panel, panel
from chapbook.tft_forecast.schema import Schema

DECILES = (0.1, 0.5, 0.9)
BASELINES = ("seasonal-naive", "last-weeks", "ets", "autoarima", "lightgbm")
# Steps of a year, in whole weeks where a step is a day or shorter.
YEARS = {"30m": 17_472, "1h": 8_736, "1d": 364, "1bd": 260, "1w": 52, "1mo": 12, "1q": 4}
SEASONS = 4  # seasons of the recent mean, and lags of one season, that trees look at


class _Task(NamedTuple):
    """What is to be forecast; a series is an entity's target."""

    panel: Panel
    values: Float[np.ndarray, "series steps"]
    origins: Int[np.ndarray, " origins"]
    horizon: int
    quantiles: tuple[float, ...]

    def at(self, index: np.ndarray) -> np.ndarray:
        """Returns each series' values at steps of the grid, NaN beyond it."""
        steps = self.values.shape[1]
        there = (index >= 0) & (index < steps)
        return np.where(there, self.values[:, np.clip(index, 0, steps - 1)], np.nan)

    def frame(self, found: Float[np.ndarray, "series origins horizon quantiles"]) -> pl.DataFrame:
        """Returns the forecast frame, quantiles rising; null where one of them is missing."""
        whole, count = self.panel, len(self.origins)
        targets = len(whole.schema.target)
        ahead = self.origins[:, None] + np.arange(1, self.horizon + 1)

        def windows(x: np.ndarray) -> np.ndarray:
            """(entity x target, origin, step, ...) to (entity x origin, step, target, ...)."""
            split = x.reshape(-1, targets, *x.shape[1:])
            moved = np.moveaxis(split, 1, 3)
            return moved.reshape(-1, *moved.shape[2:])

        entity = np.repeat(np.arange(whole.ids.height), count)
        whole_rows = np.isfinite(found).all(-1, keepdims=True)
        made = forecasts.frame(
            windows(np.where(whole_rows, np.sort(found, -1), np.nan)),
            whole.ids[entity],
            whole.grid.times(np.tile(self.origins, whole.ids.height)),
            whole.grid.times(np.tile(ahead.ravel(), whole.ids.height)).rename(whole.schema.time),
            TFTConfig(horizon=self.horizon, quantiles=self.quantiles),
            whole.schema.target,
        )
        y = pl.Series("y", windows(self.at(ahead)).ravel())
        return made.with_columns(y).with_columns(pl.col(pl.Float64).fill_nan(None))


def forecast(
    name: str,
    frame: Any,
    schema: Schema,
    origins: Sequence[Any],
    horizon: int,
    quantiles: Sequence[float] = DECILES,
    *,
    season: int,
    jobs: int = 1,
    seed: int = 0,
) -> pl.DataFrame:
    """Forecasts by a baseline's name, with settings for common panels.

    Classical models are fitted to the last 52 seasons; trees see last year's values, if `freq` is a
    common one and the horizon is shorter than a year.

    Args:
        name: One of `BASELINES`.
        frame: A long table, or the panel of one.
        schema: The roles of its columns.
        origins: The last observed times.
        horizon: Steps to forecast.
        quantiles: Levels to forecast, rising.
        season: Steps of a season.
        jobs: Processes or threads.
        seed: Of the rows that trees learn from.

    Returns:
        A forecast frame with `y`.
    """
    common = (frame, schema, origins, horizon, quantiles)
    match name:
        case "seasonal-naive":
            return seasonal_naive(*common, season=season)
        case "last-weeks":
            return last_weeks(*common, season=season)
        case "ets":
            return ets(*common, season=season, history=52 * season, jobs=jobs)
        case "autoarima":
            return autoarima(*common, season=season, history=52 * season, jobs=jobs)
        case "lightgbm":
            year = YEARS.get(schema.freq, 0)
            year = year if year > horizon + season // 2 else None
            return lightgbm(*common, season=season, year=year, jobs=jobs, seed=seed)
    raise Error(f'there is no baseline "{name}"; there are {", ".join(BASELINES)}')


def seasonal_naive(
    frame: Any,
    schema: Schema,
    origins: Sequence[Any],
    horizon: int,
    quantiles: Sequence[float] = DECILES,
    *,
    season: int,
    count: int = 1,
    calibration: int = 13,
    errors: str | None = None,
) -> pl.DataFrame:
    """Forecasts the value of one season before, or the mean of the last values of the season.

    Args:
        frame: A long table, or the panel of one.
        schema: The roles of its columns.
        origins: The last observed times.
        horizon: Steps to forecast.
        quantiles: Levels to forecast, rising.
        season: Steps of a season: 7 for the same weekday, 364 for that of a year ago.
        count: Last seasons to average.
        calibration: Origins whose errors give the quantiles, each a horizon before the next; the
            last one's forecasts end at the first of `origins`.
        errors: Whether forecasts are multiplied by quantiles of the `ratio` y / point of the same
            series, or shifted by those of the `difference` y - point; ratios if all points are
            positive, if not given.

    Returns:
        A forecast frame with `y`; null where the history is too short, or has no such errors.

    Raises:
        Error: Ratios are asked for where points are not positive, or nothing gives errors.
    """
    if errors not in (None, "ratio", "difference"):
        raise Error(f'errors="{errors}" is none of ratio, difference')
    if season < 1 or count < 1 or calibration < 1:
        raise Error(
            f"season={season}, count={count} and calibration={calibration} must be 1 or more"
        )
    task = _task(frame, schema, origins, horizon, quantiles)
    before = task.origins.min() - horizon * np.arange(1, calibration + 1)
    before = before[before >= 0]
    steps = np.arange(1, horizon + 1)
    past, points = (_same_season(task, o, season, count) for o in (before, task.origins))
    actual = task.at(before[:, None] + steps)
    positive = not ((past <= 0).any() or (points <= 0).any())
    if errors is None:
        errors = "ratio" if positive else "difference"
    if errors == "ratio" and not positive:
        raise Error(
            "some values to repeat are not positive, so that errors are no ratios",
            'pass errors="difference"',
        )
    made = actual / past if errors == "ratio" else actual - past
    made = made.reshape(len(made), -1)
    known = np.isfinite(made).any(1)
    if not known.any():
        raise Error("no forecast before the first origin has a value to compare with")
    found = np.full((len(made), len(task.quantiles)), np.nan)
    found[known] = np.nanquantile(made[known], task.quantiles, axis=1).T
    found[:, [level == 0.5 for level in task.quantiles]] = 1 if errors == "ratio" else 0
    found, points = found[:, None, None], points[..., None]
    return task.frame(points * found if errors == "ratio" else points + found)


def last_weeks(
    frame: Any,
    schema: Schema,
    origins: Sequence[Any],
    horizon: int,
    quantiles: Sequence[float] = DECILES,
    *,
    season: int = 7,
    errors: str | None = None,
) -> pl.DataFrame:
    """Forecasts the mean of the last four values of the same season: `seasonal_naive(count=4)`."""
    return seasonal_naive(
        frame, schema, origins, horizon, quantiles, season=season, count=SEASONS, errors=errors
    )


def ets(
    frame: Any,
    schema: Schema,
    origins: Sequence[Any],
    horizon: int,
    quantiles: Sequence[float] = DECILES,
    *,
    season: int,
    history: int | None = None,
    jobs: int = 1,
) -> pl.DataFrame:
    """Forecasts by exponential smoothing, its form chosen per series and origin (statsforecast).

    Args:
        frame: A long table, or the panel of one.
        schema: The roles of its columns.
        origins: The last observed times.
        horizon: Steps to forecast.
        quantiles: Levels to forecast, which are read off the model's normal intervals.
        season: Steps of a season.
        history: Last steps to fit to; all of them if not given. Gaps are filled in by a line.
        jobs: Processes; -1 takes all cores.

    Returns:
        A forecast frame with `y`; null where the history is shorter than two seasons.
    """
    from statsforecast.models import AutoETS

    task = _task(frame, schema, origins, horizon, quantiles)
    return _classical(task, AutoETS(season_length=season), season, history, jobs)


def autoarima(
    frame: Any,
    schema: Schema,
    origins: Sequence[Any],
    horizon: int,
    quantiles: Sequence[float] = DECILES,
    *,
    season: int,
    history: int | None = None,
    jobs: int = 1,
) -> pl.DataFrame:
    """Forecasts by ARIMA, its order chosen per series and origin (statsforecast); see `ets`.

    Orders are compared by an approximate likelihood, and the chosen one is fitted exactly. It is
    slow: seconds per series and origin for a year of days, so give a `history`.
    """
    from statsforecast.models import AutoARIMA

    task = _task(frame, schema, origins, horizon, quantiles)
    return _classical(
        task, AutoARIMA(season_length=season, approximation=True), season, history, jobs
    )


def lightgbm(
    frame: Any,
    schema: Schema,
    origins: Sequence[Any],
    horizon: int,
    quantiles: Sequence[float] = DECILES,
    *,
    season: int,
    year: int | None = None,
    until: Any = None,
    rows: int = 128_000,
    trees: int = 220,
    leaves: int = 63,
    learning_rate: float = 0.05,
    seed: int = 0,
    jobs: int = 0,
) -> pl.DataFrame:
    """Forecasts by boosted trees with the pinball loss, one model per quantile (LightGBM).

    The trees learn the ratio to the mean of the last four seasons. They see the step, what is
    static, what is known of the target's time, the last four values of its season and means of the
    past, all as ratios, and the same of one and two years before.

    Args:
        frame: A long table, or the panel of one.
        schema: The roles of its columns.
        origins: The last observed times.
        horizon: Steps to forecast.
        quantiles: Levels to forecast.
        season: Steps of a season.
        year: Steps of a year, better a whole number of seasons; no features of it if not given.
        until: The last time whose values are learned from; the first origin if not given.
        rows: Random windows' steps to learn from.
        trees: In each model.
        leaves: Of a tree.
        learning_rate: Of the boosting.
        seed: Of the rows.
        jobs: Threads; 0 takes all cores.

    Returns:
        A forecast frame with `y`; null where there is no recent mean, or it is not above 0.

    Raises:
        Error: There are no rows to learn from, or a year is no longer than the horizon.
    """
    import lightgbm as gbm

    task = _task(frame, schema, origins, horizon, quantiles)
    if year is not None and year <= horizon + season // 2:  # its means would reach past the origin
        raise Error(f"year={year} is not longer than horizon={horizon} and half a season")
    end = (
        int(task.origins.min())
        if until is None
        else int(forecasts.steps_of(task.panel, [until])[0])
    )
    if end > task.origins.min():
        raise Error(f"until={until} is after the first origin: what is to be forecast is learned")
    rng = np.random.default_rng(seed)
    step = rng.integers(1, horizon + 1, rows)
    first = season * SEASONS - 1
    if end - horizon < first:
        raise Error(f"the history until {task.panel.times[end]} is too short to learn from")
    origin = rng.integers(first, end - step + 1)
    series = rng.integers(0, len(task.values), rows)
    x, scale = _features(task, series, origin, step, season, year)
    y = task.values[series, origin + step] / scale
    there = np.isfinite(y)
    if not there.any():
        raise Error(f"no series has positive values until {task.panel.times[end]} to learn from")
    count, ahead = len(task.origins), np.arange(1, horizon + 1)
    # The rows of what is forecast: each series at each origin and step.
    shape = (len(task.values), count, horizon)
    series, place, step = (axis.ravel() for axis in np.indices(shape))
    test, size = _features(task, series, task.origins[place], ahead[step], season, year)
    categories = _categories(task.panel)
    places = list(range(test.shape[1] - categories, test.shape[1]))
    found = np.empty((len(test), len(task.quantiles)))
    for place, level in enumerate(task.quantiles):
        settings = {
            "objective": "quantile", "alpha": level, "num_leaves": leaves, "verbose": -1,
            "learning_rate": learning_rate, "num_threads": jobs, "seed": seed,
            "deterministic": True, "force_col_wise": True,
        }  # fmt: skip
        data = gbm.Dataset(x[there], y[there], categorical_feature=places)
        model = gbm.train(settings, data, trees)
        found[:, place] = np.asarray(model.predict(test, num_threads=jobs)) * size
    return task.frame(found.reshape(-1, count, horizon, len(task.quantiles)))


def _task(
    frame: Any, schema: Schema, origins: Sequence[Any], horizon: int, quantiles: Sequence[float]
) -> _Task:
    if horizon < 1 or not len(origins):
        raise Error(f"{len(origins)} origins and a horizon of {horizon} give no forecasts")
    whole = frame if isinstance(frame, Panel) else panel(frame, schema)
    targets = whole.schema.restored(whole.targets)
    values = np.moveaxis(targets, 2, 1).reshape(-1, targets.shape[1])
    return _Task(whole, values, forecasts.steps_of(whole, origins), horizon, tuple(quantiles))


def _same_season(
    task: _Task, origins: np.ndarray, season: int, count: int
) -> Float[np.ndarray, "series origins horizon"]:
    """Returns the mean of the last values of each step's season, as far as they are there."""
    step = np.arange(1, task.horizon + 1)
    last = origins[:, None] + step - season * -(-step // season)
    found = np.stack([task.at(last - season * back) for back in range(count)])
    there = np.isfinite(found)
    total = np.where(there, found, 0).sum(0)
    return np.where(there.any(0), total / np.maximum(there.sum(0), 1), np.nan)


def _classical(
    task: _Task, model: Any, season: int, history: int | None, jobs: int
) -> pl.DataFrame:
    """Fits a model of statsforecast to each series at each origin."""
    from statsforecast import StatsForecast

    count = len(task.origins)
    found = np.full((len(task.values), count, task.horizon, len(task.quantiles)), np.nan)
    parts, fitted = [], []
    for series, values in enumerate(task.values):
        for place, origin in enumerate(task.origins):
            past = values[: origin + 1][-history if history else None :]
            known = np.flatnonzero(np.isfinite(past))
            if len(known) < 2 * season:
                continue
            filled = np.interp(np.arange(known[0], len(past)), known, past[known])
            parts.append(filled)
            fitted.append((series, place))
    if not parts:
        raise Error(f"no series has two seasons of {season} steps before the first origin")
    lengths = [len(part) for part in parts]
    table = pl.DataFrame(
        {
            "unique_id": np.repeat(np.arange(len(parts)), lengths),
            "ds": np.concatenate([np.arange(-length, 0) for length in lengths]),
            "y": np.concatenate(parts),
        }
    )
    level = {quantile: round(100 * abs(1 - 2 * quantile), 6) for quantile in task.quantiles}
    wanted = sorted({share for share in level.values() if share})
    fit: Any = StatsForecast([model], freq=1, n_jobs=jobs)  # levels may be fractions
    with warnings.catch_warnings():
        # Said of every candidate order that is tried and dropped.
        warnings.filterwarnings("ignore", "possible convergence problem")
        made = fit.forecast(df=table, h=task.horizon, level=wanted or None)
    made = made.sort("unique_id", "ds")
    rows = tuple(np.array(fitted).T)
    for place, (quantile, share) in enumerate(level.items()):
        side = f"-{'lo' if quantile < 0.5 else 'hi'}-{share}" if share else ""
        column = made[f"{model.alias}{side}"].to_numpy()
        found[(*rows, slice(None), place)] = column.reshape(-1, task.horizon)
    return task.frame(found)


def _features(
    task: _Task, series: np.ndarray, origin: np.ndarray, step: np.ndarray, season: int,
    year: int | None,
) -> tuple[Float[np.ndarray, "rows features"], Float[np.ndarray, " rows"]]:  # fmt: skip
    """Returns what trees see, categories last, and the recent means; NaN where not above 0."""
    whole, steps = task.panel, task.values.shape[1]
    known = np.isfinite(task.values)
    sums, counts = (
        np.pad(np.cumsum(x, 1), ((0, 0), (1, 0))) for x in (np.where(known, task.values, 0), known)
    )

    def value(index: np.ndarray) -> np.ndarray:
        there = (index >= 0) & (index < steps)
        return np.where(there, task.values[series, np.clip(index, 0, steps - 1)], np.nan)

    def mean(end: np.ndarray, length: int) -> np.ndarray:
        """Returns the mean of the values up to and including a step."""
        high, low = np.clip(end + 1, 0, steps), np.clip(end + 1 - length, 0, steps)
        total, count = (x[series, high] - x[series, low] for x in (sums, counts))
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    recent = season * SEASONS
    size = mean(origin, recent)
    size = np.where(size > 0, size, np.nan)
    target = origin + step
    last = target - season * -(-step // season)
    columns = [step, np.log(size)]
    columns += [value(last - season * back) / size for back in range(SEASONS)]
    columns += [mean(origin, length) / size for length in (season, 3 * recent)]
    for ago in (year, 2 * year) if year else ():
        then = mean(origin - ago, recent)
        then = np.where(then > 0, then, np.nan)
        columns += [
            value(target - ago) / then,
            mean(target - ago + season // 2, season) / then,
            size / then,
        ]
    entity, kind = np.divmod(series, len(whole.schema.target))
    there = (target >= 0) & (target < steps)
    at = np.clip(target, 0, steps - 1)
    columns += list(np.where(there, whole.known.real[entity, at].T, np.nan))
    columns += list(whole.static.real[entity].T)
    columns += list(np.where(there, whole.known.categorical[entity, at].T, -1))
    columns += list(whole.static.categorical[entity].T)
    columns.append(kind)
    return np.column_stack(columns).astype(np.float64), size


def _categories(whole: Panel) -> int:
    """Returns how many of the features are categories; the kind of target is one."""
    return whole.known.categorical.shape[-1] + whole.static.categorical.shape[-1] + 1
