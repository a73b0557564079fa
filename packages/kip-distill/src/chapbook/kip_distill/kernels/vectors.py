"""Covariances of fully connected layers: one number for a pair of inputs."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from chapbook.kip_distill.kernels.layers import Activation, Covariance, OfVectors

Variances = tuple[Float[Array, "..."], ...]


def dense(
    layers: Sequence[OfVectors],
    covariance: Covariance,
    first: Variances,
    second: Variances,
) -> Covariance:
    """Returns the covariances after layers that are fully connected.

    Args:
        layers: Dense layers and activations.
        covariance: Before the first of them.
        first: Variances of the first inputs before every activation; each broadcasts.
        second: Of the second inputs.
    """
    seen = iter(zip(first, second, strict=True))
    for layer in layers:
        if isinstance(layer, Activation):
            covariance = layer(covariance, *next(seen))
        else:
            covariance = covariance.scaled(layer.w_std, layer.b_std)
    return covariance


def dense_variances(
    layers: Sequence[OfVectors], variance: Float[Array, "..."]
) -> tuple[Variances, Float[Array, "..."]]:
    """Returns the variances before every activation, and those of the outputs.

    Args:
        layers: Dense layers and activations.
        variance: Before the first of them.
    """
    found = []
    covariance = Covariance(variance, None)
    for layer in layers:
        if isinstance(layer, Activation):
            found.append(covariance.nngp)
            covariance = layer(covariance, covariance.nngp, covariance.nngp)
        else:
            covariance = covariance.scaled(layer.w_std, layer.b_std)
    return tuple(found), covariance.nngp


def linear(
    x1: Float[Array, "n1 features"], x2: Float[Array, "n2 features"]
) -> Float[Array, "n1 n2"]:
    """Returns inner products over the number of features."""
    return jnp.matmul(x1, x2.T, precision="highest") / x1.shape[-1]
