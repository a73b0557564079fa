"""Losses on noisy labels: plain, forward-corrected and unbiased.

A record's noisy label comes from randomised response on its own set S of k classes (`support`),
which keeps a label of S with probability `keep` and answers uniformly over S for a label outside
S. Its transition matrix is, on S, a multiple of the identity plus a constant, so every product
with it or its inverse costs O(K) and no K x K matrix is ever made.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """Computes `-sum_c targets_c log softmax(logits)_c` for each record.

    Args:
        logits: The model's scores.
        targets: One-hot noisy labels, mixtures of them, or any soft labels.

    Returns:
        The loss of each record, in nats.
    """
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def forward_corrected_cross_entropy(
    logits: Float[Array, "batch classes"],
    noisy: Int[Array, " batch"],
    keep: Float[Array, " batch"],
    topk_mask: Bool[Array, "batch classes"],
) -> Float[Array, " batch"]:
    """Computes `-log (softmax(logits)^T M)[noisy]`, M the record's own transition matrix.

    With q = (1 - keep) / (k - 1) the probability of each other member of S and p the model's
    probabilities, the noisy label o in S has probability
    `(keep - q) p_o + q p(S) + (1 - p(S)) / k`. The loss is proper for the noisy label, so its
    minimiser over all models is the distribution of the true label.

    Args:
        logits: The model's scores.
        noisy: The randomised labels, each a member of its record's set.
        keep: The probability with which a label of the set was kept.
        topk_mask: The set S of each record.

    Returns:
        The loss of each record, in nats; 0 where S holds one class, which says nothing.

    Reference:
        Patrini et al., "Making Deep Neural Networks Robust to Label Noise" (2017), Theorem 2.
    """
    k = jnp.sum(topk_mask, axis=-1)
    other = _swap(keep, k)
    probabilities = jax.nn.softmax(logits)
    chosen = jnp.take_along_axis(probabilities, noisy[:, None], axis=-1)[:, 0]
    inside = jnp.sum(jnp.where(topk_mask, probabilities, 0.0), axis=-1)
    outside = jnp.sum(jnp.where(topk_mask, 0.0, probabilities), axis=-1)
    likelihood = (keep - other) * chosen + other * inside + outside / k
    # A set of one class has likelihood 1 whatever the model says; rounding must not make a loss
    # of it. With k >= 2 the likelihood is at least `other` > 0 except at infinite epsilon.
    return jnp.where(k > 1, -jnp.log(jnp.maximum(likelihood, jnp.finfo(logits.dtype).tiny)), 0.0)


def unbiased_cross_entropy(
    logits: Float[Array, "batch classes"],
    noisy: Int[Array, " batch"],
    keep: Float[Array, " batch"],
    topk_mask: Bool[Array, "batch classes"],
    clip: float = 8.0,
) -> Float[Array, " batch"]:
    """Computes `sum_y (M_S^-1)[noisy, y] min(clip, -log softmax(logits)_y)` over S.

    Its expectation over the draw of the noisy label is the clipped cross-entropy of the true
    label, for a true label in S. Single losses can be negative and large: the bound on the
    class losses is what keeps the sum bounded below and the optimiser from running away.

    Args:
        logits: The model's scores.
        noisy: The randomised labels, each a member of its record's set.
        keep: The probability with which a label of the set was kept; it must exceed 1 / k, as it
            does for every positive epsilon.
        topk_mask: The set S of each record.
        clip: The largest class loss that counts, in nats.

    Returns:
        The loss of each record, in nats.

    Reference:
        Natarajan et al., "Learning with Noisy Labels" (2013), Lemma 1; the backward correction of
        Patrini et al. (2017), Theorem 1.
    """
    other = _swap(keep, jnp.sum(topk_mask, axis=-1))
    losses = jnp.minimum(-jax.nn.log_softmax(logits), clip)
    chosen = jnp.take_along_axis(losses, noisy[:, None], axis=-1)[:, 0]
    total = jnp.sum(jnp.where(topk_mask, losses, 0.0), axis=-1)
    # M_S = (keep - q) I + q 11^T has rows that sum to 1, so its inverse is
    # (I - q 11^T) / (keep - q).
    return (chosen - other * total) / (keep - other)


def _swap(keep: Float[Array, " batch"], k: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """Returns the probability of each other member of a set of k classes."""
    return jnp.where(k > 1, (1.0 - keep) / jnp.maximum(k - 1, 1), 0.0)
