"""Mixup inside a batch: each record is mixed with its mirror image in the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def mixing_weight(key: PRNGKeyArray, strength: float) -> Float[Array, ""]:
    """Draws the one weight `lambda ~ Beta(strength, strength)` of a batch.

    Args:
        key: The randomness.
        strength: Both parameters of the Beta distribution; 0 means no mixing, weight 1.
    """
    return jax.random.beta(key, strength, strength) if strength else jnp.ones(())


def mix(values: Float[Array, "batch ..."], weight: Float[Array, ""]) -> Float[Array, "batch ..."]:
    """Computes `weight * values + (1 - weight) * reversed(values)`.

    Args:
        values: Inputs or soft labels of a batch.
        weight: The batch's one mixing weight.

    Reference:
        google-research/label-dp, `mixup`: one lambda a batch, mixed with the batch reversed.
    """
    return weight * values + (1.0 - weight) * values[::-1]
