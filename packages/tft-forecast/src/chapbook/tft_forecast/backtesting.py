"""Backtests with a rolling origin: what would have been forecast, beside what came."""

import copy
from typing import Any

import numpy as np
import polars as pl

from chapbook.core.compilation import compiled_once
from chapbook.core.errors import Error
from chapbook.tft_forecast.forecaster import Forecaster, Prepared
from chapbook.tft_forecast.forecasts import actuals, rolling_origins, steps_of
from chapbook.tft_forecast.schema import Schema


def backtest(
    forecaster: Forecaster,
    frame: Any,
    *,
    start: Any,
    end: Any = None,
    stride: int | None = None,
    refit: str | int = "never",
    window: str = "expanding",
    calibrated: bool = True,
    **options: Any,
) -> pl.DataFrame:
    """Forecasts from one origin after another, none of which sees what comes after it.

    Args:
        forecaster: Fitted; with `refit`, copies of it are trained anew.
        frame: The whole table, a frame or a path; without `refit` also what `prepare` returned.
        start: The first time that is forecast; a text or a value of the time column's type.
        end: The last time that may be forecast; the last one with a target if not given.
        stride: Steps between two origins; the horizon if not given.
        refit: `never`, `every` origin, or every so many origins.
        window: With `refit`, whether the training part grows (`expanding`) or keeps the length
            that it has at the first origin (`sliding`).
        calibrated: Whether to apply the forecaster's calibration.
        options: For `fit` where refitted, such as `steps`, or `duplicates` and `max_gap`.

    Returns:
        The forecast frames of all origins as one, and `y`, what came; null where nothing did.

    Raises:
        Error: `start` lies in what the forecaster was trained on and it is not refitted, or there
            is no origin.
    """
    table = frame if refit == "never" else forecaster.schema.read(frame)
    reading = {name: options[name] for name in ("duplicates", "max_gap") if name in options}
    prepared = forecaster.prepare(table, **reading)
    horizon = forecaster.config.horizon
    firsts = rolling_origins(prepared.panel, horizon, start, end, stride or horizon) + 1
    if refit == "never":
        _check_unseen(forecaster, prepared, firsts[0])
        return _with_actuals(forecaster, prepared, firsts - 1, calibrated)
    every = 1 if refit == "every" else int(refit)
    if every < 1 or window not in ("expanding", "sliding"):
        raise Error(f'refit={refit}, window="{window}": refit is never, every or a count; window is'
                    " expanding or sliding")  # fmt: skip
    made = []
    with compiled_once():
        for number in range(0, len(firsts), every):
            some = firsts[number : number + every]
            began, now = prepared.panel.grid.times(np.array([some[0] - firsts[0], some[0]]))
            fresh = copy.copy(forecaster)
            fresh.calibration = None
            fresh.fit(_past(table, fresh.schema, now, began, window), **options)
            again = fresh.prepare(table, **reading)
            made.append(_with_actuals(fresh, again, some - 1, calibrated=False))
    return pl.concat(made)


def _past(table: pl.DataFrame, schema: Schema, now: Any, began: Any, window: str) -> pl.DataFrame:
    """Returns what may be learned from: in as many steps at each origin, to compile once for all.

    A part that grows keeps the later rows, without what is only seen when it comes.
    """
    time = pl.col(schema.time)
    if window == "sliding":
        return table.filter((time >= began) & (time < now))
    hidden = [*schema.target, *schema.observed]
    return table.with_columns(pl.when(time < now).then(pl.col(name)) for name in hidden)


def _check_unseen(forecaster: Forecaster, prepared: Prepared, first: int) -> None:
    until = forecaster.facts["trained_until"]
    if first <= steps_of(prepared.panel, [until])[0]:
        raise Error(
            f"start {prepared.panel.grid.times(np.array([first]))[0]} lies in the training part, "
            f"which ends at {until}",
            "start later, or refit",
        )


def _with_actuals(
    forecaster: Forecaster, prepared: Prepared, origins: np.ndarray, calibrated: bool
) -> pl.DataFrame:
    whole = prepared.panel
    pairs = forecaster.pairs(prepared, whole.grid.times(origins).to_list())
    made = pl.concat(list(forecaster.frames(prepared, pairs, calibrated=calibrated)))
    ahead = pairs[1][:, None] + np.arange(1, forecaster.config.horizon + 1)
    values = actuals(whole, pairs[0][:, None], ahead)
    return made.with_columns(pl.Series("y", values.reshape(-1)).fill_nan(None))
