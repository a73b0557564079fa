"""Training of a network on the windows of a panel, by `chapbook.core.train.fit` alone."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

from chapbook.core.data import Batches, arrays
from chapbook.core.run import Run
from chapbook.core.step import cast
from chapbook.core.train import Result, Stop, fit, mean_over
from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.inputs import Interpretation, Layout, Windows
from chapbook.tft_forecast.network import TemporalFusionTransformer
from chapbook.tft_forecast.optimizer import optimizer
from chapbook.tft_forecast.quantile_loss import pinball, quantile_loss
from chapbook.tft_forecast.windows import Store, gather

# Of any length: two of them in one signature need not agree.
Pairs = tuple[Int[np.ndarray, "..."], Int[np.ndarray, "..."]]


class Trained(eqx.Module):
    """A network beside the panel that it is trained on."""

    network: PyTree
    store: Store


def network(layout: Layout, config: TFTConfig, key: Key[Array, ""]) -> PyTree:
    """Makes a network, or as many as the ensemble has members, stacked along a first axis."""

    # In one program: a network's arrays one by one would be a hundred little ones.
    @eqx.filter_jit
    def made(key: Key[Array, ""]) -> PyTree:
        if config.members == 1:
            return TemporalFusionTransformer(layout, config, key=key)
        keys = jax.random.split(key, config.members)
        return eqx.filter_vmap(lambda k: TemporalFusionTransformer(layout, config, key=k))(keys)

    return made(key)


def run(
    network: PyTree, config: TFTConfig, windows: Windows, key: Key[Array, ""] | None = None
) -> tuple[Float[Array, "members batch horizon targets quantiles"], Interpretation]:
    """Returns the scaled quantiles of every member of an ensemble, and what each tells.

    Args:
        network: As `network` makes it.
        config: Of the model.
        windows: The inputs.
        key: Randomness of dropout; None where nothing is to be dropped.

    Returns:
        Quantiles and interpretations; the members are their first axis, if only one.
    """
    dtype = jnp.dtype(config.precision)
    network = cast(network, dtype)
    static, past, future = (g._replace(real=g.real.astype(dtype)) for g in windows[:3])
    windows = Windows(static, past, future, windows.mask)
    if config.members == 1:
        found = jax.tree.map(lambda x: x[None], network(windows, key=key))
    elif key is None:
        found = eqx.filter_vmap(lambda n: n(windows))(network)
    else:
        keys = jax.random.split(key, config.members)
        found = eqx.filter_vmap(lambda n, k: n(windows, key=k))(network, keys)
    return jax.tree.map(lambda x: x.astype(jnp.float32), found)


def train(
    store: Store,
    layout: Layout,
    config: TFTConfig,
    pairs: Pairs,
    valid: Pairs | None,
    *,
    key: Key[Array, ""],
    seed: int,
    steps: int,
    evaluate_every: int,
    patience: int,
    steps_per_dispatch: int = 1,
    folder: Run | None = None,
    mesh: Mesh | None = None,
    quiet: bool = False,
) -> Result:
    """Trains a network; an interrupted run goes on where it stood.

    Args:
        store: The panel.
        layout: Of its variables.
        config: Of the model.
        pairs: Entities and origins of the training windows.
        valid: The same for validation; None trains to the end.
        key: Randomness of the initial weights and of dropout.
        seed: Of the order of the windows.
        steps: Updates at most.
        evaluate_every: Updates between evaluations.
        patience: Evaluations without improvement by 1e-4 after which training stops.
        steps_per_dispatch: Updates that one call of the compiled program makes at most.
        folder: The run's folder; None keeps everything in memory.
        mesh: The devices that the windows of a batch are spread over, on its axis `data`.
        quiet: Whether to show no progress.

    Returns:
        The network, in `model.network`, and the metrics; `valid/loss` is the mean pinball loss,
        summed over the quantiles, in scaled units.
    """
    initial, dropped = jax.random.split(key)

    def loss(model: Trained, batch: Any, key: Array) -> Any:
        sample = gather(model.store, layout, config, batch["entity"], batch["origin"])
        found, _ = run(model.network, config, sample.windows, key)
        each = jax.vmap(quantile_loss, (0, None, None, None))
        losses = each(found, sample.target, config.quantiles, sample.weight)
        return jnp.mean(losses), {"weight": jnp.sum(sample.weight)}

    def judged(model: Trained, batch: Any, key: Array) -> dict[str, Array]:
        sample = gather(model.store, layout, config, batch["entity"], batch["origin"])
        found, _ = run(model.network, config, sample.windows)
        found = jnp.mean(found, 0)
        return {
            "loss": jnp.sum(pinball(found, sample.target, config.quantiles), -1),
            "crossing": jnp.any(jnp.diff(found, axis=-1) < 0, -1),
            "weight": sample.weight,
        }

    model = Trained(network(layout, config, initial), store)
    batch = min(config.batch_size, len(pairs[0]))
    batches = Batches(arrays(entity=pairs[0], origin=pairs[1]), batch, seed=seed)
    evaluate = stop = None
    if valid is not None:
        source = arrays(entity=valid[0], origin=valid[1])
        size = min(2 * config.batch_size, len(valid[0]))
        watched = Batches(source, size, shuffle=False, epochs=1, drop_last=False)
        evaluate = mean_over(judged, watched, mesh=mesh)
        stop = Stop("valid/loss", patience, min_delta=1e-4)
    trainable = jax.tree.map(lambda _: False, model)
    trained = jax.tree.map(eqx.is_inexact_array, model.network)
    trainable = eqx.tree_at(lambda tree: tree.network, trainable, trained)
    return fit(
        loss, model, _optimizer(config, steps), batches,
        steps=steps, key=dropped, run=folder, mesh=mesh, trainable=trainable,
        accumulate=batch // _microbatch(config, batch, mesh), steps_per_dispatch=steps_per_dispatch,
        evaluate=evaluate, evaluate_every=evaluate_every, stop=stop,
        save_every=evaluate_every, log_every=min(20, evaluate_every), on_nan="stop", quiet=quiet,
    )  # fmt: skip


CACHED = 32  # windows whose arrays CPUs' caches can be expected to hold in good part


def _microbatch(config: TFTConfig, batch: int, mesh: Mesh | None) -> int:
    """Returns how many windows are computed at once."""
    wanted = config.microbatch
    if wanted is None:
        wanted = CACHED if jax.default_backend() == "cpu" else batch
    devices = 1 if mesh is None else mesh.size
    # A batch of fewer windows than were asked for, or of an odd number, stays whole.
    return batch if batch % wanted or wanted % devices else wanted


def _optimizer(config: TFTConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of one network, or one for each member of an ensemble."""
    one = optimizer(config)
    if config.schedule == "cosine":
        falling = optax.cosine_decay_schedule(1.0, steps)
        one = optax.chain(one, optax.scale_by_schedule(falling))
    if config.members == 1:
        return one
    # The loss is the mean over the members: each is to see the gradient of its own.

    def init(params: PyTree) -> Any:
        # Optax asks with a placeholder, which has no members, for the structure of the state.
        return jax.vmap(one.init)(params) if jax.tree.leaves(params) else one.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        del extra_args
        return jax.vmap(one.update)(updates, state, params)

    many = optax.GradientTransformation(init, update)
    return optax.chain(optax.scale(float(config.members)), many)
