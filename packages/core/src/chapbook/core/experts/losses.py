"""Losses that teach a router to use all of its experts.

Each takes groups of tokens in any leading dimensions, and returns the mean over the groups of what
it computes for one. Weights and sums are the caller's. Padding does not count: `valid` is False
there. Numbers in place of truth values weigh the tokens, such as sentences by their length.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from chapbook.core.errors import Error
from chapbook.core.experts.assignment import wide

Scores = Float[Array, "*groups tokens experts"]
Valid = Bool[Array, "*groups tokens"] | Float[Array, "*groups tokens"] | None


def importance_loss(gates: Scores, valid: Valid = None) -> Float[Array, ""]:
    """Computes `(std_e I_e / mean_e I_e)^2` of the importances `I_e = sum_t p_te`.

    Args:
        gates: The router's probabilities, without noise.
        valid: False marks padding.

    Reference:
        Riquelme et al. (2021), appendix A.
    """
    return _squared_variation(_mean(gates, valid), valid)


def load_loss(
    logits: Scores,
    noisy_logits: Scores,
    k: int,
    sigma: float,
    valid: Valid = None,
) -> Float[Array, ""]:
    """Computes `(std_e L_e / mean_e L_e)^2` of the loads `L_e = mean_t P(e is chosen)`.

    With fresh noise on its logit alone, e is chosen with probability
    `1 - Phi((threshold_t - l_te) / sigma)`, where the threshold is the k-th largest noisy logit.

    Args:
        logits: Without noise.
        noisy_logits: With it.
        k: Experts of a token.
        sigma: Standard deviation of the noise.
        valid: False marks padding.

    Raises:
        Error: sigma is not above 0.

    Reference:
        Riquelme et al. (2021), appendix A.
    """
    if not 0 < sigma < math.inf:
        raise Error(
            f"the load loss needs noise, and sigma is {sigma}",
            "leave it out where the router has none, as at inference",
        )
    logits, noisy_logits = (_masked(x, valid) for x in (logits, noisy_logits))
    last = jax.lax.top_k(noisy_logits, k)[1][..., -1:]
    # Not a gather: its gradient would collect all tokens on each device.
    chosen = last == jnp.arange(logits.shape[-1])
    threshold = jnp.sum(jnp.where(chosen, noisy_logits, 0), axis=-1, keepdims=True)
    chance = jax.scipy.stats.norm.cdf((logits - threshold) / sigma)
    return _squared_variation(_mean(chance, valid), valid)


def gshard_loss(gates: Scores, valid: Valid = None) -> Float[Array, ""]:
    """Computes `E^2 mean_e f_e P_e`, with f_e the share of tokens whose largest gate is e's.

    `P_e` is the mean gate; the gradient passes through it alone. Where padding counts in both
    denominators, as in the legacy form, it is this times the squared share of tokens in S.

    Args:
        gates: The router's probabilities.
        valid: False marks padding.

    Reference:
        Lepikhin et al. (2020), algorithm 1.
    """
    gates = _masked(gates, valid)
    first = jnp.argmax(gates, axis=-1)[..., None] == jnp.arange(gates.shape[-1])
    share = _mean(first.astype(gates.dtype), valid)
    return _over_groups(gates.shape[-1] * jnp.sum(share * _mean(gates, valid), axis=-1), valid)


def switch_loss(gates: Scores, valid: Valid = None) -> Float[Array, ""]:
    """Computes `E sum_e f_e P_e`: the same number as `gshard_loss`, under the name of its paper.

    Args:
        gates: The router's probabilities.
        valid: False marks padding.

    Reference:
        Fedus et al., "Switch transformers" (2021), equations 4 to 6.
    """
    return gshard_loss(gates, valid)


def z_loss(logits: Scores, valid: Valid = None) -> Float[Array, ""]:
    """Computes `mean_t (log sum_e exp l_te)^2`, which keeps logits small.

    Args:
        logits: The router's.
        valid: False marks padding.

    Reference:
        Zoph et al., "ST-MoE" (2022), equation 5.
    """
    each = jax.nn.logsumexp(_masked(logits, valid), axis=-1, keepdims=True) ** 2
    return _over_groups(_mean(each, valid)[..., 0], valid)


def _masked(x: Array, valid: Valid) -> Array:
    x = wide(x)
    return x if valid is None else jnp.where(valid[..., None] > 0, x, 0)


def _mean(x: Array, valid: Valid) -> Array:
    """Returns the weighted mean over tokens in each group; 0 for a group of padding."""
    x = _masked(x, valid)
    weight = jnp.ones(x.shape[:-1], x.dtype) if valid is None else valid.astype(x.dtype)
    return _weighted(x, weight[..., None], -2)


def _over_groups(x: Array, valid: Valid) -> Array:
    """Returns the mean over groups; those of padding alone, which fill up devices, do not count."""
    real = jnp.ones(x.shape, bool) if valid is None else jnp.any(valid > 0, axis=-1)
    return _weighted(x, real, None)


def _weighted(x: Array, weight: Array, axis: int | None) -> Array:
    total = jnp.sum(weight, axis)
    return jnp.sum(x * weight, axis) / jnp.where(total > 0, total, 1)


def _squared_variation(x: Array, valid: Valid) -> Array:
    mean = jnp.mean(x, axis=-1)
    return _over_groups(jnp.var(x, axis=-1) / jnp.where(mean > 0, mean, 1) ** 2, valid)
