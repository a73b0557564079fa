"""Losses on noisy labels against their definitions, in dense matrices and in the limit of data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.label_dp import losses
from chapbook.label_dp.randomized_response import RRTopK

CLASSES, ROWS = 5, 5

# One program each: op by op, these small arrays would spend seconds in the compiler.
cross_entropy = jax.jit(losses.cross_entropy)
forward_corrected_cross_entropy = jax.jit(losses.forward_corrected_cross_entropy)
unbiased_cross_entropy = jax.jit(losses.unbiased_cross_entropy, static_argnames="clip")


def _batch(k, epsilon=1.2, rows=ROWS, seed=0):
    """Returns logits, noisy labels inside the support, keep, support and the dense matrix."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, CLASSES)).astype(np.float32)
    prior = np.array([0.1, 0.3, 0.15, 0.25, 0.2])
    mechanism = RRTopK(CLASSES, epsilon, k)
    support = np.repeat(mechanism.support(prior[None, :]), rows, axis=0)
    noisy = rng.choice(np.flatnonzero(support[0]), rows)
    matrix = mechanism.transition_matrix(prior)
    keep = np.full(rows, matrix.max() if k > 1 else 1.0, np.float32)
    return logits, noisy, keep, support, matrix


def _probabilities(logits):
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


def test_plain_loss_of_a_one_hot_is_the_negative_log_probability():
    logits, noisy, *_ = _batch(3)
    ours = cross_entropy(logits, np.eye(CLASSES, dtype=np.float32)[noisy])
    theirs = -np.log(_probabilities(logits)[np.arange(len(noisy)), noisy])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, CLASSES])
def test_forward_correction_equals_the_dense_transition_matrix(k):
    logits, noisy, keep, support, matrix = _batch(k)
    ours = forward_corrected_cross_entropy(logits, noisy, keep, support)
    theirs = -np.log((_probabilities(logits) @ matrix)[np.arange(len(noisy)), noisy])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_forward_gradient_equals_finite_differences():
    logits, noisy, keep, support, _ = _batch(3)
    with jax.enable_x64():
        wide = jnp.asarray(logits, jnp.float64)
        arguments = jnp.asarray(noisy), jnp.asarray(keep, jnp.float64), jnp.asarray(support)

        @jax.jit
        def total(values):
            return jnp.sum(forward_corrected_cross_entropy(values, *arguments))

        gradient = jax.jit(jax.grad(total))(wide)
        step = 1e-6
        shifts = step * np.eye(wide.size).reshape(-1, *wide.shape)
        many = jax.jit(jax.vmap(total))
        slopes = (many(wide + shifts) - many(wide - shifts)) / (2 * step)
        np.testing.assert_allclose(gradient, slopes.reshape(wide.shape), atol=1e-7)


def test_forward_corrected_minimiser_is_the_clean_one():
    """On two classes the population optimum is the clean posterior, which plain loss misses."""
    posterior, epsilon = 0.9, 1.0
    keep = np.exp(epsilon) / (np.exp(epsilon) + 1)
    share = posterior * keep + (1 - posterior) * (1 - keep)  # of noisy label 1
    support, both = np.ones((2, 2), bool), np.array([1, 0])

    def risk(logit, loss):
        logits = jnp.stack([jnp.stack([0.0 * logit, logit])] * 2)
        if loss == "plain":
            each = cross_entropy(logits, jnp.eye(2)[both])
        else:
            keeps = jnp.full(2, keep)
            each = forward_corrected_cross_entropy(logits, jnp.asarray(both), keeps, support)
        return share * each[0] + (1 - share) * each[1]

    found = {}
    for loss in ("plain", "forward"):
        slope = jax.grad(lambda v, loss=loss: risk(v, loss))
        descend = jax.jit(lambda v, g=slope: jax.lax.fori_loop(0, 3000, lambda _, u: u - g(u), v))
        found[loss] = float(jax.nn.sigmoid(descend(jnp.asarray(0.0))))
    assert found["forward"] == pytest.approx(posterior, abs=1e-3)
    assert found["plain"] == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("k", [1, 2, CLASSES])
def test_backward_loss_is_unbiased_over_the_noise(k):
    logits, _, keep, support, matrix = _batch(k)
    logits = np.repeat(logits[:1], ROWS, axis=0)
    answers = np.flatnonzero(support[0])
    padded = np.resize(answers, ROWS)
    found = np.asarray(unbiased_cross_entropy(logits, padded, keep, support))[: len(answers)]
    for true in answers:
        clean = -np.log(_probabilities(logits)[0, true])
        assert matrix[true, answers] @ found == pytest.approx(clean, rel=1e-4)


def test_backward_loss_is_bounded_by_the_clip():
    logits = np.array([[50.0, 0.0, 0.0]], np.float32)
    support, keep = np.ones((1, 3), bool), np.array([0.5], np.float32)
    same = [np.repeat(v, 3, axis=0) for v in (logits, keep, support)]
    found = unbiased_cross_entropy(same[0], np.arange(3), *same[1:], clip=4.0)
    # The class losses are 0, 4 and 4, and keep - q = q = 1/4.
    np.testing.assert_allclose(found, [(0 - 2) / 0.25, (4 - 2) / 0.25, (4 - 2) / 0.25], atol=1e-4)


def test_a_set_of_one_class_teaches_nothing():
    logits, noisy, keep, support, _ = _batch(1)

    @jax.jit
    def total(values):
        return jnp.sum(forward_corrected_cross_entropy(values, noisy, keep, support))

    gradient = jax.jit(jax.grad(total))(logits)
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))
