"""Interpretable multi-head attention: one map of values for all heads, so that their mean tells."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from chapbook.tft_forecast.gating import Key, Linear, Stack, dropout, split


class InterpretableAttention(eqx.Module):
    """Computes `mean_h(A_h x W_V) W_H`, where `A_h = softmax(x W_Q^h (x W_K^h)^T / sqrt(width))`.

    No map has a bias. All heads share the values, so the output is that of one head whose weights
    are the mean `A = mean_h A_h`: what is returned is what was used.

    Args:
        hidden: Width of x and of the output.
        heads: How many there are; each has the width `hidden / heads`.
        dropout: Rate at which each head's output, and the final one, are dropped.
        key: Randomness of the initial kernels.

    Reference:
        Lim et al. (2021), equations 13 to 16.
    """

    dropout: float = eqx.field(static=True)
    query: Stack
    key: Stack
    value: Linear
    output: Linear

    def __init__(self, hidden: int, heads: int, *, dropout: float = 0.0, key: PRNGKeyArray):
        width = hidden // heads
        keys = split(key, 4)
        self.dropout = dropout
        into_head = functools.partial(Linear, hidden, width, bias=False)
        self.query = Stack(lambda key: into_head(key=key), heads, key=keys[0])
        self.key = Stack(lambda key: into_head(key=key), heads, key=keys[1])
        self.value = Linear(hidden, width, bias=False, key=keys[2])
        self.output = Linear(width, hidden, bias=False, key=keys[3])

    def __call__(
        self,
        x: Float[Array, "batch positions hidden"],
        allowed: Bool[Array, "batch queries positions"],
        *,
        key: Key = None,
    ) -> tuple[Float[Array, "batch queries hidden"], Float[Array, "batch queries positions"]]:
        """Attends from the last positions to those allowed.

        Args:
            x: The sequence; its last positions are the queries.
            allowed: Which positions a query may attend to; at least one.
            key: Randomness of the dropout; None for inference.

        Returns:
            The output at each query, and the mean weights A.
        """
        first, second = split(key, 2)
        asking = x[:, -allowed.shape[1] :]
        query = jnp.einsum("bqd,hdw->bhqw", asking, self.query.blocks.weight)
        keys = jnp.einsum("bnd,hdw->bhnw", x, self.key.blocks.weight)
        scores = jnp.einsum("bhqw,bhnw->bhqn", query, keys) / query.shape[-1] ** 0.5
        scores = jnp.where(allowed[:, None], scores, -jnp.inf)
        wide = scores.astype(jnp.promote_types(x.dtype, jnp.float32))
        weights = jax.nn.softmax(wide, axis=-1).astype(x.dtype)
        mean = jnp.mean(weights, axis=1)
        value = self.value(x)
        if key is None or self.dropout == 0:
            attended = mean @ value
        else:
            heads = jnp.einsum("bhqn,bnw->bhqw", weights, value)
            attended = jnp.mean(dropout(heads, self.dropout, first), axis=1)
        return dropout(self.output(attended), self.dropout, second), mean


def visible(
    mask: Bool[Array, "batch positions"], queries: int
) -> Bool[Array, "batch queries positions"]:
    """Returns which positions the last ones may attend to: themselves, and earlier unmasked ones.

    Args:
        mask: Which positions can be attended to.
        queries: How many of the last positions ask.
    """
    positions = jnp.arange(mask.shape[1])
    asking = positions[-queries:, None]
    return (positions < asking) & mask[:, None] | (positions == asking)
