"""Dropout, and keys that may be absent: without a key a model infers."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from chapbook.core.transformer.shapes import Key


def dropout(x: Float[Array, "*shape"], rate: float, key: Key) -> Float[Array, "*shape"]:
    """Sets each element to 0 with probability `rate`, and divides the others by `1 - rate`.

    Args:
        x: Activations.
        rate: The probability, below 1.
        key: Randomness; None leaves `x` as it is.
    """
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def split(key: Key, count: int) -> Any:
    """Returns as many keys; None, as often, from None."""
    return (None,) * count if key is None else jax.random.split(key, count)
