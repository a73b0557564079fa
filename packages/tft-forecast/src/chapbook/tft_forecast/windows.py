"""Windows out of a panel that lies on the device: a window is an entity and an origin.

Nothing is copied per window but the batch that is trained on: what a panel of N entities and T
steps costs is N x T values per variable, whatever the lengths of encoder and horizon.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.inputs import Inputs, Layout, Windows
from chapbook.tft_forecast.panels import Values

RELATIVE_STEP = "relative_step"


class Store(eqx.Module):
    """A scaled panel as arrays, with `encoder` empty steps before the first and `horizon` after.

    Attributes:
        static: (entities, variables).
        observed: (entities, steps, variables); its first real variables are the targets.
        known: (entities, steps, variables).
        present: Which steps have a row, (entities, steps).
        weight: Of each step's targets in the loss, (entities, steps).
        location: What was subtracted from the targets, (entities, targets).
        scale: What they were divided by, (entities, targets).
    """

    static: Inputs
    observed: Inputs
    known: Inputs
    present: Bool[Array, "entities steps"]
    weight: Float[Array, "entities steps"]
    location: Float[Array, "entities targets"]
    scale: Float[Array, "entities targets"]


class Sample(NamedTuple):
    """A batch of windows, and what is to be forecast.

    Attributes:
        windows: The network's inputs.
        target: Scaled targets, 0 where missing, (batch, H, targets).
        weight: Of each target in the loss, 0 where missing, (batch, H, targets).
        location: What is to be added to a forecast, after ...
        scale: ... what it is to be multiplied by, (batch, targets).
    """

    windows: Windows
    target: Float[Array, "batch horizon targets"]
    weight: Float[Array, "batch horizon targets"]
    location: Float[Array, "batch targets"]
    scale: Float[Array, "batch targets"]


def store(
    static: Values,
    observed: Values,
    known: Values,
    present: np.ndarray,
    target: tuple[np.ndarray, np.ndarray],
    config: TFTConfig,
    weight: np.ndarray | None = None,
) -> Store:
    """Pads a scaled panel, and puts it on the device.

    Args:
        static: Scaled values, NaN and -1 where missing.
        observed: The same of what is observed, the targets first.
        known: The same of what is known ahead.
        present: Which steps have a row, (entities, steps).
        target: Location and scale of the targets, (entities, targets) each.
        config: Of the model.
        weight: Of each step in the loss, (entities, steps); 1 if not given.

    Returns:
        The arrays.
    """

    def padded(values: np.ndarray, fill: float) -> np.ndarray:
        width = [(0, 0), (config.encoder, config.horizon)] + [(0, 0)] * (values.ndim - 2)
        return np.pad(values, width, constant_values=fill)

    def inputs(values: Values, steps: bool = True) -> Inputs:
        real, categorical = np.asarray(values.real, np.float32), values.categorical
        if steps:
            real, categorical = padded(real, np.nan), padded(categorical, -1)
        missing = np.concatenate([np.isnan(real), categorical < 0], -1)
        indices = np.maximum(categorical, 0)
        small = np.int16 if indices.max(initial=0) < 2**15 else np.int32
        return Inputs(
            jnp.asarray(np.nan_to_num(real, nan=0.0)),
            jnp.asarray(indices.astype(small)),
            jnp.asarray(missing),
        )

    weight = np.ones(present.shape) if weight is None else weight
    location, scale = (jnp.asarray(part, jnp.float32) for part in target)
    return Store(
        inputs(static, steps=False), inputs(observed), inputs(known),
        jnp.asarray(padded(present, False)),
        jnp.asarray(padded(np.asarray(weight, np.float32), 0)),
        location, scale,
    )  # fmt: skip


def gather(
    store: Store,
    layout: Layout,
    config: TFTConfig,
    entity: Int[Array, " batch"],
    origin: Int[Array, " batch"],
) -> Sample:
    """Returns windows; meant to be called inside `jax.jit`.

    Args:
        store: The panel.
        layout: Of its variables.
        config: Of the model.
        entity: The entity of each window.
        origin: The step of the panel that each window has observed last, from -1 up.

    Returns:
        The windows. Where a window reaches beyond the panel, its steps are missing.
    """
    k, horizon, targets = config.encoder, config.horizon, layout.targets

    def steps(x: Array, first: Array, count: int) -> Array:
        def one(e: Array, at: Array) -> Array:
            begin = (e, at) + (0,) * (x.ndim - 2)
            return lax.dynamic_slice(x, begin, (1, count, *x.shape[2:]))[0]

        return jax.vmap(one)(entity, first)

    def inputs(group: Inputs, first: Array, count: int) -> Inputs:
        real, categorical, missing = (steps(x, first, count) for x in group)
        return Inputs(real, categorical.astype(jnp.int32), missing)

    first = origin + 1  # the padding before the panel is k steps long
    static = Inputs(*(x[entity] for x in store.static))
    static = static._replace(categorical=static.categorical.astype(jnp.int32))
    seen = inputs(store.observed, first, k)
    known = inputs(store.known, first, k + horizon)
    if layout.known.real == (RELATIVE_STEP,):
        ramp = (jnp.arange(k + horizon, dtype=jnp.float32) - k + 1) / k
        shape = (len(entity), k + horizon, 1)
        known = known._replace(
            real=jnp.broadcast_to(ramp[:, None], shape),
            missing=jnp.concatenate([jnp.zeros(shape, bool), known.missing], -1),
        )
    ahead = inputs(store.observed, first + k, horizon)
    target, absent = ahead.real[..., :targets], ahead.missing[..., :targets]
    location, scale = store.location[entity], store.scale[entity]
    if config.scaling == "window":
        past, gone = seen.real[..., :targets], seen.missing[..., :targets]
        location, scale = moments(past, gone)
        scaled = jnp.where(gone, 0, (past - location[:, None]) / scale[:, None])
        seen = seen._replace(real=jnp.concatenate([scaled, seen.real[..., targets:]], -1))
        target = (target - location[:, None]) / scale[:, None]
    weight = jnp.where(absent, 0, steps(store.weight, first + k, horizon)[..., None])
    past = join(seen, part(known, slice(None, k)))
    mask = jnp.concatenate(
        [steps(store.present, first, k), jnp.ones((len(entity), horizon), bool)], -1
    )
    windows = Windows(static, past, part(known, slice(k, None)), mask)
    return Sample(windows, jnp.where(absent, 0, target), weight, location, scale)


def part(group: Inputs, steps: slice) -> Inputs:
    """Returns some of the steps of a group."""
    return Inputs(*(x[:, steps] for x in group))


def join(first: Inputs, second: Inputs) -> Inputs:
    """Returns the variables of both groups, the real ones first."""
    reals, more = first.real.shape[-1], second.real.shape[-1]
    missing = (
        first.missing[..., :reals], second.missing[..., :more],
        first.missing[..., reals:], second.missing[..., more:],
    )  # fmt: skip
    return Inputs(
        jnp.concatenate([first.real, second.real], -1),
        jnp.concatenate([first.categorical, second.categorical], -1),
        jnp.concatenate(missing, -1),
    )


def moments(
    values: Float[Array, "batch steps targets"], missing: Bool[Array, "batch steps targets"]
) -> tuple[Float[Array, "batch targets"], Float[Array, "batch targets"]]:
    """Returns mean and standard deviation of what is there; 0 and 1 where nothing is.

    The deviation of a constant is 1, so that it can be divided by.
    """
    count = jnp.maximum(jnp.sum(~missing, 1), 1)
    mean = jnp.sum(jnp.where(missing, 0, values), 1) / count
    square = jnp.where(missing, 0, (values - mean[:, None]) ** 2)
    deviation = jnp.sqrt(jnp.sum(square, 1) / count)
    # What rounding leaves of a constant is no scale.
    tiny = deviation <= 1e-6 * jnp.abs(mean)
    return mean, jnp.where(tiny, 1, deviation)


def index(
    seen: Bool[np.ndarray, "entities steps"],
    config: TFTConfig,
    *,
    first: int = 0,
    stop: int | None = None,
    min_history: int = 1,
) -> tuple[Int[np.ndarray, " windows"], Int[np.ndarray, " windows"]]:
    """Lists the windows whose targets lie in a part of a panel.

    Args:
        seen: Which steps have a target.
        config: Of the model.
        first: The first step that may be a target.
        stop: One after the last step that may be a target; the end of the panel if not given.
        min_history: Targets that the past half must show.

    Returns:
        Entity and origin of each window, in order of the entities.
    """
    k, horizon = config.encoder, config.horizon
    steps = seen.shape[1]
    last = steps if stop is None else min(stop, steps)
    origins = np.arange(max(first - 1, 0), last - horizon)
    if not len(origins):
        return np.empty(0, np.int32), np.empty(0, np.int32)

    def count(flags: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        sums = np.pad(np.cumsum(flags, 1, dtype=np.int32), ((0, 0), (1, 0)))
        return sums[:, np.clip(end, 0, steps)] - sums[:, np.clip(begin, 0, steps)]

    history = count(seen, origins - k + 1, origins + 1)
    ahead = count(seen, origins + 1, origins + 1 + horizon)
    entity, at = np.nonzero((history >= min_history) & (ahead > 0))
    return entity.astype(np.int32), origins[at].astype(np.int32)
