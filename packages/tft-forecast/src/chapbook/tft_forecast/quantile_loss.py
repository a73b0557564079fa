"""The pinball loss, which quantile forecasts are trained by."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def pinball(
    forecast: Float[Array, "*shape quantiles"],
    target: Float[Array, "*shape"],
    quantiles: Sequence[float],
) -> Float[Array, "*shape quantiles"]:
    """Returns `q max(y - f, 0) + (1 - q) max(f - y, 0)` of each quantile.

    Args:
        forecast: f, for each level.
        target: y.
        quantiles: The levels q.

    Reference:
        Koenker & Bassett, "Regression Quantiles" (1978); Lim et al. (2021), equation 25.
    """
    levels = jnp.asarray(quantiles, forecast.dtype)
    short = target[..., None] - forecast
    return jnp.maximum(levels * short, (levels - 1) * short)


def quantile_loss(
    forecast: Float[Array, "batch horizon targets quantiles"],
    target: Float[Array, "batch horizon targets"],
    quantiles: Sequence[float],
    weight: Float[Array, "batch horizon targets"] | Bool[Array, "batch horizon targets"],
) -> Float[Array, ""]:
    """Returns the pinball loss: the sum over the quantiles, the weighted mean over the rest.

    Args:
        forecast: The forecasts.
        target: What came; anything, NaN too, where the weight is 0.
        quantiles: The forecasts' levels.
        weight: Of each target; 0 or False leaves it out. The loss is 0 if all are left out.

    Reference:
        Lim et al. (2021), equation 24.
    """
    weight = weight.astype(forecast.dtype)
    # Zero times NaN is NaN, in the gradient as well.
    target = jnp.where(weight > 0, target, 0)
    losses = jnp.sum(pinball(forecast, target, quantiles), axis=-1)
    total = jnp.sum(weight)
    return jnp.sum(weight * losses) / jnp.where(total > 0, total, 1)


def crossing_rate(
    forecast: Float[Array, "batch horizon targets quantiles"],
) -> Float[Array, ""]:
    """Returns the share of neighbouring quantiles of which the higher one lies lower.

    Args:
        forecast: Forecasts of rising levels. With one level the rate is 0.
    """
    if forecast.shape[-1] < 2:
        return jnp.zeros((), forecast.dtype)
    return jnp.mean(jnp.diff(forecast, axis=-1) < 0, dtype=forecast.dtype)
