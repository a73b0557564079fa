"""Attention whose mean weights are the weights that were used."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from chapbook.tft_forecast.attention import InterpretableAttention, visible

KEY = jax.random.key(0)
BATCH, PAST, FUTURE, HIDDEN, HEADS = 2, 4, 3, 6, 2


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def draw(*shape, seed=2):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def some_masked():
    mask = np.ones((BATCH, PAST + FUTURE), bool)
    mask[0, :2] = False
    mask[1, 3] = False
    return jnp.asarray(mask)


def reference(block, x, mask):
    """Goes head by head, query by query, over all rows, of which it returns the last."""
    width = HIDDEN // HEADS
    outputs, means = [], []
    for b in range(BATCH):
        value, heads = x[b] @ np.array(block.value.weight), []
        for h in range(HEADS):
            query = x[b] @ np.array(block.query.blocks.weight[h])
            key = x[b] @ np.array(block.key.blocks.weight[h])
            weights = np.zeros((FUTURE, PAST + FUTURE))
            for row, i in enumerate(range(PAST, PAST + FUTURE)):
                allowed = [j for j in range(i + 1) if mask[b, j] or j == i]
                exps = np.exp([query[i] @ key[j] / np.sqrt(width) for j in allowed])
                weights[row, allowed] = exps / exps.sum()
            heads.append(weights)
        mean = np.mean(heads, axis=0)
        means.append(mean)
        outputs.append(np.mean([w @ value for w in heads], 0) @ np.array(block.output.weight))
    return np.stack(outputs), np.stack(means)


def test_attention_equals_its_equations(double):
    block, x, mask = (
        InterpretableAttention(HIDDEN, HEADS, key=KEY),
        draw(BATCH, 7, HIDDEN),
        some_masked(),
    )
    found, weights = eqx.filter_jit(block)(x, visible(mask, FUTURE))
    outputs, means = reference(block, np.array(x), np.array(mask))
    np.testing.assert_allclose(found, outputs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(weights, means, rtol=0, atol=1e-10)


def test_rows_sum_to_one_and_nothing_forbidden_has_weight():
    block, allowed = InterpretableAttention(HIDDEN, HEADS, key=KEY), visible(some_masked(), FUTURE)
    _, weights = eqx.filter_jit(block)(10 * draw(BATCH, 7, HIDDEN), allowed)
    np.testing.assert_allclose(jnp.sum(weights, -1), np.ones((BATCH, FUTURE)), rtol=1e-6)
    np.testing.assert_array_equal(np.array(weights)[~np.array(allowed)], 0)


def test_the_output_is_that_of_one_head_with_the_mean_weights(double):
    block, x = InterpretableAttention(HIDDEN, HEADS, dropout=1e-9, key=KEY), draw(BATCH, 7, HIDDEN)
    allowed = visible(some_masked(), FUTURE)
    found, weights = block(x, allowed)
    np.testing.assert_allclose(found, block.output(weights @ block.value(x)), rtol=0, atol=1e-12)
    # With a key the heads are computed one by one; at this rate nothing is dropped.
    trained, same = block(x, allowed, key=KEY)
    np.testing.assert_allclose(trained, found, rtol=0, atol=1e-8)
    np.testing.assert_array_equal(same, weights)


def test_dropout_leaves_the_weights_alone():
    block, x = InterpretableAttention(HIDDEN, HEADS, dropout=0.5, key=KEY), draw(BATCH, 7, HIDDEN)
    allowed = visible(some_masked(), FUTURE)
    (plain, weights), (dropped, same) = block(x, allowed), block(x, allowed, key=KEY)
    np.testing.assert_allclose(same, weights, rtol=1e-6)
    assert 0.2 < np.mean(np.array(dropped) == 0) < 0.8
    assert not np.any(np.array(plain) == 0)


def test_a_step_sees_itself_and_what_is_earlier_and_unmasked():
    mask = jnp.array([[False, True, True, True], [False, False, False, False]])
    expected = [
        [[False, True, True, False], [False, True, True, True]],
        [[False, False, True, False], [False, False, False, True]],
    ]
    np.testing.assert_array_equal(visible(mask, 2), expected)


def test_no_map_has_a_bias_and_heads_start_apart():
    block = InterpretableAttention(HIDDEN, HEADS, key=KEY)
    for part in (block.query.blocks, block.key.blocks, block.value, block.output):
        assert part.bias is None
    assert block.value.weight.shape == (HIDDEN, HIDDEN // HEADS)
    assert block.query.blocks.weight.shape == (HEADS, HIDDEN, HIDDEN // HEADS)
    assert not np.array_equal(block.query.blocks.weight[0], block.query.blocks.weight[1])


def test_gradients_agree_with_finite_differences(double):
    block, x = InterpretableAttention(HIDDEN, HEADS, key=KEY), draw(BATCH, 7, HIDDEN)
    allowed = visible(some_masked(), FUTURE)
    run = jax.jit(lambda block, x: block(x, allowed))
    check_grads(run, (block, x), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)
