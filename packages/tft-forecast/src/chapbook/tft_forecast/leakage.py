"""A probe for leaks: does anything of the future, or of the test part, reach a forecast?

Five checks, each of which fails by name:

1. Targets and observed columns after the origin, emptied or replaced by noise, change no bit.
2. Known columns after the origin, replaced, do change the forecasts; else they are of no use.
3. Scalers and categories have seen training rows alone.
4. No known column tells the target, and none ends where the target ends.
5. No cell that is tested was a training target.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from chapbook.core.errors import Error
from chapbook.tft_forecast.forecaster import Forecaster, Prepared
from chapbook.tft_forecast.forecasts import steps_of
from chapbook.tft_forecast.inputs import Group
from chapbook.tft_forecast.panels import Panel, Values

TELLING = 0.98  # a correlation with the target that no column known ahead has by honest means
SHARE = 0.25  # of the replaced known columns' values, below which nothing can be said


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check of a probe.

    Attributes:
        check: What was checked.
        passed: Whether it holds; None where it is a warning, which fails nothing.
        columns: The columns at fault.
        detail: What was found, in one line.
    """

    check: str
    passed: bool | None
    columns: tuple[str, ...]
    detail: str


def probe(
    forecaster: Forecaster, frame: Any, *, origins: Sequence[Any] | None = None, seed: int = 0
) -> list[Finding]:
    """Looks for leaks in a forecaster and the table that it forecasts from.

    Args:
        forecaster: Fitted.
        frame: A table that goes on for a horizon after the origins, targets included.
        origins: Times of the last observed step; three, evenly spread over what comes after the
            training part, if not given.
        seed: Of the noise that columns are replaced by.

    Returns:
        The findings, in the order of the checks; a leak is one that did not pass.

    Raises:
        Error: The table ends within a horizon of the training part.
    """
    prepared = forecaster.prepare(frame)
    at = _origins(forecaster, prepared, origins)
    rng = np.random.default_rng(seed)
    return [
        _future_is_unseen(forecaster, prepared, at, rng),
        *_known_is_used(forecaster, prepared, at, rng),
        _fitted_before(forecaster, prepared),
        *_known_tells_nothing(forecaster, prepared),
        _tested_apart(forecaster, prepared, at),
    ]


def _origins(
    forecaster: Forecaster, prepared: Prepared, origins: Sequence[Any] | None
) -> np.ndarray:
    if origins is not None:
        return steps_of(prepared.panel, origins)
    whole, horizon = prepared.panel, forecaster.config.horizon
    first = steps_of(whole, [forecaster.facts["trained_until"]])[0]
    last = np.flatnonzero(whole.seen.any(0))[-1] - horizon
    if last < first:
        raise Error(
            f"after {forecaster.facts['trained_until']}, where training ended, the table does not"
            f" go on for {horizon} steps",
            "give later rows, or origins",
        )
    return np.unique(np.linspace(first, last, 3).astype(int))


def _forecast(forecaster: Forecaster, whole: Panel, pairs: Any) -> np.ndarray:
    prepared = Prepared(whole, forecaster._store(whole))
    return np.concatenate([values for values, _ in forecaster._forecasts(prepared, pairs)])


def _reaching(
    forecaster: Forecaster,
    prepared: Prepared,
    at: np.ndarray,
    role: str,
    rng: np.random.Generator,
) -> set[str]:
    """Returns the columns whose values after an origin change a bit of the forecast from there."""
    whole, found = prepared.panel, set()
    group = getattr(forecaster.layout, role)
    for origin in at:
        pairs = forecaster.pairs(prepared, whole.grid.times(np.array([origin])).to_list())
        honest = _forecast(forecaster, whole, pairs)
        for name, changed in _replaced(getattr(whole, role), origin, rng, group):
            other = dataclasses.replace(whole, **{role: changed})
            if _forecast(forecaster, other, pairs).tobytes() != honest.tobytes():
                found.add(name)
    return found


def _replaced(
    values: Values, origin: int, rng: np.random.Generator, group: Group
) -> Iterator[tuple[str, Values]]:
    """Yields each column with a group in which what comes after the origin is emptied, or noise."""
    ahead = slice(origin + 1, None)
    for column in range(values.real.shape[-1]):
        for fill in ("missing", "noise"):
            real = values.real.copy()
            shape = real[:, ahead, column].shape
            spread = np.nanstd(real[..., column]) + 1.0
            noise = np.nan if fill == "missing" else rng.normal(0, 10 * spread, shape)
            real[:, ahead, column] = noise
            yield group.real[column], values._replace(real=real)
    for column in range(values.categorical.shape[-1]):
        for fill in ("missing", "noise"):
            codes = values.categorical.copy()
            shape = codes[:, ahead, column].shape
            codes[:, ahead, column] = -1 if fill == "missing" else rng.integers(
                0, group.sizes[column], shape, np.int32
            )  # fmt: skip
            yield group.categorical[column], values._replace(categorical=codes)


def _future_is_unseen(
    forecaster: Forecaster, prepared: Prepared, at: np.ndarray, rng: np.random.Generator
) -> Finding:
    touched = _reaching(forecaster, prepared, at, "observed", rng)
    return Finding(
        "targets and observed columns after the origin do not reach the forecast",
        not touched,
        tuple(sorted(touched)),
        f"{len(at)} origins, each column emptied and replaced by noise; forecasts are "
        + ("equal bit by bit" if not touched else "different"),
    )


def _known_is_used(
    forecaster: Forecaster, prepared: Prepared, at: np.ndarray, rng: np.random.Generator
) -> list[Finding]:
    if not forecaster.schema.known:
        return []
    used = _reaching(forecaster, prepared, at, "known", rng)
    unused = tuple(name for name in forecaster.layout.known.names if name not in used)
    return [
        Finding(
            "known columns after the origin do reach the forecast",
            True if not unused else None,
            unused,
            "all are used" if not unused else "replacing them changes nothing",
        )
    ]


def _fitted_before(forecaster: Forecaster, prepared: Prepared) -> Finding:
    until = steps_of(prepared.panel, [forecaster.facts["trained_until"]])[0]
    late = []
    for name in ("scalers", "categories"):
        last = getattr(forecaster, name).fitted_until
        if last is not None and prepared.panel.grid.index(_series(prepared, last))[0] > until:
            late.append(f"{name} have seen {last}")
    return Finding(
        "scalers and categories have seen training rows alone",
        not late,
        (),
        "; ".join(late)
        or f"the last row that they have seen is of training, which ended at "
        f"{forecaster.facts['trained_until']}",
    )


def _series(prepared: Prepared, time: Any) -> pl.Series:
    return pl.Series([time]).cast(prepared.panel.times.dtype)


def _known_tells_nothing(forecaster: Forecaster, prepared: Prepared) -> list[Finding]:
    whole, layout = prepared.panel, forecaster.layout
    if not forecaster.schema.known:
        return []
    last = np.flatnonzero(whole.seen.any(0))[-1]
    telling, ending = [], []
    for column, name in enumerate(layout.known.real):
        values = whole.known.real[..., column]
        strongest = max(_correlation(values, whole.targets[..., t]) for t in range(layout.targets))
        if strongest > TELLING:
            telling.append(name)
        if last + 1 < values.shape[1] and np.isnan(values[:, last + 1 :]).all():
            ending.append(name)
    for column, name in enumerate(layout.known.categorical):
        codes = whole.known.categorical[..., column]
        if last + 1 < codes.shape[1] and (codes[:, last + 1 :] < 0).all():
            ending.append(name)
    return [
        Finding(
            "no known column tells the target",
            not telling,
            tuple(telling),
            f"correlation at the same step {'above' if telling else 'at most'} {TELLING}",
        ),
        Finding(
            "no known column ends where the target ends",
            not ending,
            tuple(ending),
            "null after the last target: how was it known ahead?" if ending else "none does",
        ),
    ]


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    both = ~np.isnan(first) & ~np.isnan(second)
    x, y = first[both], second[both]
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return 0.0
    return abs(float(np.corrcoef(x, y)[0, 1]))


def _tested_apart(forecaster: Forecaster, prepared: Prepared, at: np.ndarray) -> Finding:
    ended = forecaster.facts["trained_until"]
    until = steps_of(prepared.panel, [ended])[0]
    early = [int(origin) for origin in at if origin < until]
    times = prepared.panel.grid.times(np.array(early or [0]))
    return Finding(
        "no cell that is tested was a training target",
        not early,
        (),
        f"targets after origin {times[0]} were trained on, up to {ended}"
        if early
        else f"training targets end at {ended}, before all origins",
    )
