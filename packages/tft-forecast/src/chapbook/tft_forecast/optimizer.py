"""Adam after clipping, tensor by tensor as the paper's code does, or of all together."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.embedding import Embedding
from chapbook.tft_forecast.gating import Stack


def optimizer(config: TFTConfig) -> optax.GradientTransformation:
    """Returns clipping followed by Adam with Keras' constants: 0.9, 0.999 and epsilon 1e-7.

    Args:
        config: Tells `clip`, `max_norm` and `learning_rate`.

    Reference:
        Kingma & Ba, "Adam" (2015).
    """
    clipping = {"per_tensor": clip_per_tensor, "global": optax.clip_by_global_norm}[config.clip]
    return optax.chain(clipping(config.max_norm), optax.adam(config.learning_rate, eps=1e-7))


def clip_per_tensor(max_norm: float) -> optax.GradientTransformation:
    """Scales each tensor's gradient g by `min(1, max_norm / |g|)` on its own, as Keras' `clipnorm`.

    A tensor is what it is in the published code: the parameters of each block of a `Stack` are
    their own tensors, and so are those of each variable of an `Embedding`.

    Args:
        max_norm: The norm that none exceeds.
    """

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        del params
        return jax.tree.map(clipped, updates, is_leaf=_has_tensors_in_rows), state

    def clipped(node: Any) -> Any:
        if isinstance(node, Stack):
            return jax.tree.map(jax.vmap(tensor), node)
        if isinstance(node, Embedding):
            rows = jax.tree.map(jax.vmap(tensor), node)
            return eqx.tree_at(lambda e: e.table, rows, tables(node.table, node.offsets))
        return tensor(node)

    def tensor(gradient: Float[Array, "..."]) -> Float[Array, "..."]:
        return gradient * _factor(jnp.sum(gradient**2))

    def tables(
        table: Float[Array, "rows hidden"], offsets: tuple[int, ...]
    ) -> Float[Array, "rows hidden"]:
        if not offsets:
            return table
        starts = jnp.asarray(offsets)
        owner = jnp.searchsorted(starts, jnp.arange(len(table)), side="right") - 1
        squares = jax.ops.segment_sum(jnp.sum(table**2, axis=-1), owner, len(offsets))
        return table * _factor(squares)[owner, None]

    def _factor(squares: Float[Array, "..."]) -> Float[Array, "..."]:
        return max_norm / jnp.maximum(jnp.sqrt(squares), max_norm)

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _has_tensors_in_rows(node: Any) -> bool:
    return isinstance(node, Stack | Embedding)
