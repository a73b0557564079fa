"""Norms over the last axis, in float32 at least."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from chapbook.core.sharding import axes
from chapbook.core.transformer.shapes import Features

Vector = Float[Array, " width"]


def rms_norm(x: Features, scale: Vector, epsilon: float = 1e-6) -> Features:
    """Computes `x / sqrt(mean(x^2) + epsilon) * scale`.

    Args:
        x: Activations.
        scale: Factors.
        epsilon: Added to the mean square.

    Reference:
        Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), equation 4.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normal = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + epsilon)
    return (normal * scale).astype(x.dtype)


def layer_norm(
    x: Features, scale: Vector, shift: Vector | None = None, epsilon: float = 1e-6
) -> Features:
    """Computes `(x - mean(x)) / sqrt(variance(x) + epsilon) * scale + shift`.

    Args:
        x: Activations.
        scale: Factors.
        shift: What is added; None for nothing.
        epsilon: Added to the variance.

    Reference:
        Ba et al., "Layer Normalization" (2016), equation 4.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normal = rms_norm(wide - jnp.mean(wide, -1, keepdims=True), scale, epsilon)
    return (normal if shift is None else normal + shift).astype(x.dtype)


class RMSNorm(eqx.Module):
    """`rms_norm` with a learned scale, 1 at first.

    Args:
        width: Of the last axis.
        epsilon: Added to the mean square.
    """

    epsilon: float = eqx.field(static=True)
    scale: Vector = axes(None)

    def __init__(self, width: int, epsilon: float = 1e-6):
        self.epsilon = epsilon
        self.scale = jnp.ones(width)

    def __call__(self, x: Features) -> Features:
        """Normalises."""
        return rms_norm(x, self.scale, self.epsilon)


class LayerNorm(eqx.Module):
    """`layer_norm` with a learned scale, 1 at first, and a learned shift, 0 at first.

    Args:
        width: Of the last axis.
        epsilon: Added to the variance.
        bias: Whether there is a shift.
    """

    epsilon: float = eqx.field(static=True)
    scale: Vector = axes(None)
    shift: Vector | None = axes(None)

    def __init__(self, width: int, epsilon: float = 1e-6, *, bias: bool = True):
        self.epsilon = epsilon
        self.scale = jnp.ones(width)
        self.shift = jnp.zeros(width) if bias else None

    def __call__(self, x: Features) -> Features:
        """Normalises."""
        return layer_norm(x, self.scale, self.shift, self.epsilon)
