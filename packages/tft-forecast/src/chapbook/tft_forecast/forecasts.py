"""Forecast frames: one row per entity, origin and step, with a column per quantile."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Array, Float, Int, PyTree
from polars.io.plugins import register_io_source

from chapbook.core.errors import Error
from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.grid import parse_times
from chapbook.tft_forecast.inputs import Interpretation, Layout
from chapbook.tft_forecast.panels import Panel
from chapbook.tft_forecast.training import Pairs, run
from chapbook.tft_forecast.windows import Store, gather


@eqx.filter_jit
def _forecast(
    network: PyTree,
    store: Store,
    layout: Layout,
    config: TFTConfig,
    entity: Int[Array, " batch"],
    origin: Int[Array, " batch"],
    tells: bool,
) -> tuple[Float[Array, "batch horizon targets quantiles"], Interpretation | None]:
    sample = gather(store, layout, config, entity, origin)
    found, told = run(network, config, sample.windows)
    location, scale = sample.location[:, None, :, None], sample.scale[:, None, :, None]
    quantiles = jnp.sort(jnp.mean(found, 0), -1) * scale + location
    return quantiles, jax.tree.map(lambda x: jnp.mean(x, 0), told) if tells else None


def forecast(
    network: PyTree,
    store: Store,
    layout: Layout,
    config: TFTConfig,
    pairs: Pairs,
    *,
    batch_size: int = 256,
    tells: bool = False,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Forecasts windows, batch by batch, in one compiled program.

    Args:
        network: As `training.network` makes it.
        store: The panel.
        layout: Of its variables.
        config: Of the model.
        pairs: Entity and origin of each window.
        batch_size: Windows at a time.
        tells: Whether to return interpretations.

    Yields:
        For each batch the quantiles, rising, in the units of the transformed target, (batch, H,
        targets, quantiles), and the `Interpretation` as NumPy arrays, or None.
    """
    count = len(pairs[0])
    size = min(batch_size, count)
    for begin in range(0, count, size):
        entity, origin = (x[begin : begin + size] for x in pairs)
        short = size - len(entity)
        # The last batch is filled up, so that no second program is compiled.
        entity, origin = (jnp.asarray(np.pad(x, (0, short), mode="edge")) for x in (entity, origin))
        found = jax.device_get(_forecast(network, store, layout, config, entity, origin, tells))
        yield jax.tree.map(lambda x, keep=size - short: x[:keep], found)


def frame(
    quantiles: Float[np.ndarray, "windows horizon targets quantiles"],
    ids: pl.DataFrame,
    origins: pl.Series,
    times: pl.Series,
    config: TFTConfig,
    targets: tuple[str, ...],
) -> pl.DataFrame:
    """Makes the long frame of forecasts.

    Args:
        quantiles: In original units.
        ids: The id columns, one row per window.
        origins: The time of the last observed step of each window.
        times: The times of all forecast steps, window by window.
        config: Of the model.
        targets: Names of the targets.

    Returns:
        Columns: the ids, `origin`, the time, `step` from 1, `target` where there are several, and
        one column per quantile, such as `q0.5`.
    """
    windows, horizon, count, _ = quantiles.shape
    each = pl.Series(np.repeat(np.arange(windows), horizon * count))
    steps = np.tile(np.repeat(np.arange(1, horizon + 1, dtype=np.int32), count), windows)
    columns = [
        *(ids[name].gather(each) for name in ids.columns),
        origins.alias("origin").gather(each),
        times.gather(pl.Series(np.repeat(np.arange(windows * horizon), count))),
        pl.Series("step", steps),
    ]
    if count > 1:
        columns.append(pl.Series("target", list(targets) * (windows * horizon)))
    flat = quantiles.reshape(-1, quantiles.shape[-1]).astype(np.float64)
    levels = zip(config.quantiles, flat.T, strict=True)
    return pl.DataFrame([*columns, *(pl.Series(f"q{q:g}", values) for q, values in levels)])


def steps_of(whole: Panel, times: Sequence[Any]) -> Int[np.ndarray, " times"]:
    """Returns the steps of a panel that some times are.

    Args:
        whole: The panel.
        times: Values of the type of its time column, or texts.

    Raises:
        Error: A time is none of the grid's, or not in the panel.
    """
    given = pl.Series(whole.times.name, list(times), strict=False)
    if given.dtype == pl.String and not whole.times.dtype.is_integer():
        given = parse_times(given)
    if given.dtype.is_temporal() and whole.times.dtype.is_temporal():
        given = _in_type(given, whole.times.dtype)
    elif given.dtype.is_integer() != whole.times.dtype.is_integer():
        given = given.cast(whole.times.dtype, strict=False)
    good = whole.grid.on_grid(given)
    steps = whole.grid.index(given)
    good &= (steps >= 0) & (steps < len(whole.times))
    if not good.all():
        wrong = list(times)[int(np.argmin(good))]
        raise Error(
            f"{wrong} is no step of the table, which goes from {whole.times[0]} to "
            f"{whole.times[-1]} by {whole.schema.freq}"
        )
    return steps


def _in_type(times: pl.Series, dtype: Any) -> pl.Series:
    """Returns times in another type; without a zone they are the wall clock's."""
    zone = getattr(dtype, "time_zone", None)
    if times.dtype == pl.Date:
        times = times.cast(pl.Datetime("us"))
    if zone is not None and getattr(times.dtype, "time_zone", None) is None:
        times = times.dt.replace_time_zone(zone, ambiguous="earliest")
    elif zone is None and getattr(times.dtype, "time_zone", None) is not None:
        times = times.dt.replace_time_zone(None)
    return times.cast(dtype)


def actuals(
    whole: Panel, entity: Int[np.ndarray, "..."], step: Int[np.ndarray, "..."]
) -> Float[np.ndarray, "... targets"]:
    """Returns what came, in original units; NaN where nothing did, or beyond the panel."""
    inside = step < len(whole.times)
    values = whole.targets[entity, np.where(inside, step, 0)]
    return whole.schema.restored(np.where(inside[..., None], values, np.nan))


def rolling_origins(
    whole: Panel, horizon: int, start: Any, end: Any, stride: int
) -> Int[np.ndarray, " origins"]:
    """Returns the steps that a backtest observes last.

    Args:
        whole: The panel.
        horizon: Steps of a forecast.
        start: The first time that is forecast.
        end: The last time that may be forecast; the last one with a target if None.
        stride: Steps between two origins.

    Raises:
        Error: There is none.
    """
    seen = np.flatnonzero(whole.seen.any(0))
    if not len(seen):
        raise Error("no row has a target")
    first = int(steps_of(whole, [start])[0])
    last = int(seen[-1] if end is None else steps_of(whole, [end])[0])
    if first < 1:
        raise Error(f"{start} is the first time of the table: there is nothing to forecast it from")
    found = np.arange(first, last - horizon + 2, stride)
    if not len(found):
        raise Error(
            f"from {whole.times[first]} to {whole.times[last]} there are {last - first + 1} steps,"
            f" a forecast has {horizon}",
            "start earlier, or end later",
        )
    return found - 1


def lazy(
    frames: Iterable[pl.DataFrame], empty: pl.DataFrame, more: pl.DataFrame | None = None
) -> pl.LazyFrame:
    """Returns frames that are made one after another as one lazy frame, which can be sunk.

    Args:
        frames: The parts; they are made once, when the lazy frame is collected.
        empty: A frame of no rows with their columns.
        more: Rows to be put after them; columns that it lacks are null.
    """

    def parts(columns: list[str] | None, *_: Any) -> Iterator[pl.DataFrame]:
        last = [] if more is None else [pl.concat([empty, more], how="diagonal")]
        for part in itertools.chain(frames, last):
            yield part if columns is None else part.select(columns)

    return register_io_source(parts, schema=empty.schema)
