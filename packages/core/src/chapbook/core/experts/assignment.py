"""Assignments: which experts a token goes to, and how much each of them counts."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from chapbook.core.errors import Error

EPSILON = 1e-9  # of Mesh TensorFlow, in the sum that gates are divided by


class Assignment(eqx.Module):
    """The K choices of every token, in groups of tokens that compete for room.

    Attributes:
        expert: Expert numbers, best first, all of a token different. `num_experts` stands for no
            expert at all.
        weight: What the output of each is multiplied by, in float32; gradients pass.
        valid: False marks padding, which takes no room, makes no load and gets an output of zero.
        gates: The router's probabilities, for the metrics. Without a router, the weights.
        num_experts: How many experts there are.
        renormalize: Divide the weights by the sum of those that are kept, after dropping.
    """

    expert: Int[Array, "*groups tokens choices"]
    weight: Float[Array, "*groups tokens choices"]
    valid: Bool[Array, "*groups tokens"]
    gates: Float[Array, "*groups tokens experts"]
    num_experts: int = eqx.field(static=True)
    renormalize: bool = eqx.field(static=True, default=False)


def wide(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x in float32, or in float64 if it has that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def router_logits(
    x: Float[Array, "*groups tokens embed"],
    weight: Float[Array, "embed experts"],
    valid: Bool[Array, "*groups tokens"] | None = None,
) -> Float[Array, "*groups tokens experts"]:
    """Computes `x W` in full float32, whatever the type of the activations.

    Args:
        x: Activations.
        weight: The router's matrix.
        valid: False marks padding. It is set to 0 before the product, because a NaN times the
            zero gradient of an unused logit would still reach the matrix.

    Returns:
        The logits; 0 for padding.
    """
    x = wide(x)
    if valid is not None:
        x = jnp.where(valid[..., None], x, 0)
    return jnp.matmul(x, wide(weight), precision=jax.lax.Precision.HIGHEST)


def top_k(
    gates: Float[Array, "*groups tokens experts"],
    k: int,
    *,
    normalize: str = "none",
    valid: Bool[Array, "*groups tokens"] | None = None,
) -> Assignment:
    """Chooses the k experts with the largest gates `g`; of equal gates the lower number wins.

    Args:
        gates: The router's probabilities.
        k: Experts of a token.
        normalize: `none` weighs by `g` (V-MoE), `before` by `g / (sum_k g + 1e-9)` (GShard),
            `softmax_topk` by the softmax over the chosen logits, which is `g / sum_k g` (Mixtral),
            and `after` by `g / sum g` over those that are kept.
        valid: False marks padding.

    Returns:
        The assignment.

    Raises:
        Error: k is not between 1 and the number of experts, or `normalize` has another value.
    """
    experts = gates.shape[-1]
    _check_choices(k, experts)
    if normalize not in ("none", "before", "softmax_topk", "after"):
        known = "none, before, softmax_topk nor after"
        raise Error(f'normalize "{normalize}" is neither {known}')
    if k == 1 and normalize != "none":
        warnings.warn(
            f'top_k(k=1, normalize="{normalize}") gives every token the weight 1, so that the '
            "router learns nothing from it",
            stacklevel=2,
        )
    gates = wide(gates)
    if valid is not None:  # a NaN would be a largest gate
        gates = jnp.where(valid[..., None], gates, 0)
    weight, expert = jax.lax.top_k(gates, k)
    if normalize in ("before", "softmax_topk"):
        weight = _shares(weight, valid, EPSILON if normalize == "before" else 0)
    return _assignment(expert, weight, gates, valid, renormalize=normalize == "after")


def top_2_gshard(
    logits: Float[Array, "*groups tokens experts"],
    *,
    policy: str = "all",
    threshold: float = 0.0,
    normalize: str = "before",
    key: Key[Array, ""] | None = None,
    valid: Bool[Array, "*groups tokens"] | None = None,
    logit_cap: float = 0.0,
) -> Assignment:
    """Chooses two experts as GShard does: `e1 = argmax p`, `e2` by a policy among the others.

    Args:
        logits: The router's logits, of at least two experts.
        policy: `all` takes the second largest. `sampling` draws e2 from the softmax over the
            others. `random` takes the second largest with probability `g2 / threshold`.
        threshold: Of the policy `random`.
        normalize: `before` divides both gates by `g1 + g2 + 1e-9` before any choice is dropped,
            `after` by the sum of those that are kept.
        key: Randomness of `sampling` and `random`.
        valid: False marks padding.
        logit_cap: Logits become `cap tanh(logits / cap)`; 0 leaves them.

    Returns:
        The assignment.

    Raises:
        Error: There are fewer than two experts, an option has another value, or the key is missing.

    Reference:
        Lepikhin et al., "GShard" (2020), algorithm 1; `top2_gating_on_logits` of Praxis.
    """
    experts = logits.shape[-1]
    _check_choices(2, experts)
    if policy not in ("all", "sampling", "random") or normalize not in ("before", "after"):
        given = f'policy "{policy}", normalize "{normalize}"'
        raise Error(f"{given}: use all, sampling or random, and before or after")
    if policy != "all" and key is None:
        raise Error(f'policy "{policy}" draws at random; pass key')
    logits = wide(logits)
    if valid is not None:
        logits = jnp.where(valid[..., None], logits, 0)
    if logit_cap:
        logits = logit_cap * jnp.tanh(logits / logit_cap)
    gates = jax.nn.softmax(logits)
    weight, expert = jax.lax.top_k(gates, 2)
    if policy == "sampling" and key is not None:
        others = jnp.where(expert[..., :1] == jnp.arange(experts), -jnp.inf, logits)
        noise = jax.random.gumbel(key, logits.shape, logits.dtype)
        second = jnp.argmax(others + noise, axis=-1, keepdims=True)
        expert = jnp.concatenate([expert[..., :1], second.astype(expert.dtype)], axis=-1)
        weight = jnp.take_along_axis(gates, expert, axis=-1)
    if normalize == "before":
        weight = _shares(weight, valid, EPSILON)
    if policy == "random" and key is not None:
        bound = weight / max(threshold, EPSILON)
        drawn = jax.random.uniform(key, weight.shape[:-1], weight.dtype) < bound[..., 1]
        taken = jnp.stack([jnp.ones_like(drawn), drawn], axis=-1)
        expert, weight = jnp.where(taken, expert, experts), jnp.where(taken, weight, 0)
    return _assignment(expert, weight, gates, valid, renormalize=normalize == "after")


def fixed(
    expert: Int[Array, "*groups tokens choices"],
    weight: Float[Array, "*groups tokens choices"],
    num_experts: int,
    *,
    valid: Bool[Array, "*groups tokens"] | None = None,
) -> Assignment:
    """Takes an assignment that is known already, such as that of a task.

    Args:
        expert: Expert numbers, those of a token different; `num_experts` for none.
        weight: What their outputs are multiplied by.
        num_experts: How many experts there are.
        valid: False marks padding.
    """
    weight = wide(weight)
    chosen = expert[..., None] == jnp.arange(num_experts)
    gates = jnp.sum(jnp.where(chosen, weight[..., None], 0), axis=-2)
    return _assignment(expert, weight, gates, valid)


def hash_route(
    ids: Int[Array, "*groups tokens"],
    num_experts: int,
    k: int,
    seed: int,
    *,
    valid: Bool[Array, "*groups tokens"] | None = None,
) -> Assignment:
    """Chooses k different experts of equal weight by a hash of what a token is.

    Each expert gets a score `h(h(id + h(seed)) + e)`, and the k highest win: where an expert is
    added, it takes its share of the ids and all others stay.

    Args:
        ids: What is hashed, such as token ids.
        num_experts: How many experts there are.
        k: Experts of a token.
        seed: Another seed gives another assignment.
        valid: False marks padding.

    Raises:
        Error: k is not between 1 and the number of experts.

    Reference:
        Roller et al., "Hash layers for large sparse models" (2021).
    """
    _check_choices(k, num_experts)
    token = _mixed(ids.astype(jnp.uint32) + _mixed(jnp.uint32(seed % 2**32)))
    score = _mixed(token[..., None] + jnp.arange(num_experts, dtype=jnp.uint32))
    _, expert = jax.lax.top_k((score >> 1).astype(jnp.int32), k)
    return fixed(expert, jnp.full(expert.shape, 1 / k, jnp.float32), num_experts, valid=valid)


def _mixed(word: Array) -> Array:
    """Mixes the bits of a word: `lowbias32` of C. Wellons, "Prospecting for hash functions"."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def _shares(weight: Array, valid: Array | None, epsilon: float) -> Array:
    total = jnp.sum(weight, axis=-1, keepdims=True) + epsilon
    # The gates of padding are 0, and 0 / 0 has no gradient.
    return weight / (total if valid is None else jnp.where(valid[..., None], total, 1))


def _check_choices(k: int, experts: int) -> None:
    if not 1 <= k <= experts:
        raise Error(f"cannot choose {k} of {experts} experts for a token")


def _assignment(
    expert: Array, weight: Array, gates: Array, valid: Array | None, *, renormalize: bool = False
) -> Assignment:
    valid = jnp.ones(expert.shape[:-1], bool) if valid is None else valid
    weight = jnp.where(valid[..., None], weight, 0)
    gates = jnp.where(valid[..., None], gates, 0)
    return Assignment(expert, weight, valid, gates, gates.shape[-1], renormalize)
