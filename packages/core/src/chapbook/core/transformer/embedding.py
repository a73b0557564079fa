"""Tokens to vectors, and vectors to logits by the same table."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from chapbook.core.sharding import axes
from chapbook.core.transformer.initialisers import Initialiser, small


class Embedding(eqx.Module):
    """A table with one row a token.

    Args:
        vocab: How many tokens there are.
        embed: Width of a row.
        init: Draws the table, (vocab, embed).
        key: Randomness of the initial values.
    """

    weight: Float[Array, "vocab embed"] = axes("vocab", "embed")

    def __init__(self, vocab: int, embed: int, *, init: Initialiser = small, key: PRNGKeyArray):
        self.weight = init(key, (vocab, embed))

    def __call__(self, ids: Int[Array, "*shape"]) -> Float[Array, "*shape embed"]:
        """Returns the row of each token; NaN for one that the table does not have."""
        return jnp.take(self.weight, ids, axis=0)

    def logits(self, x: Float[Array, "*shape embed"]) -> Float[Array, "*shape vocab"]:
        """Computes `x W^T` in float32: the output layer tied to the table."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.einsum("...e,ve->...v", x, self.weight, preferred_element_type=wide)
