"""Gated linear units, gated residual networks and the dropout within them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from chapbook.tft_forecast.gating import (
    GLU,
    GRN,
    GatedSkip,
    LayerNorm,
    Linear,
    Stack,
    dropout,
    glorot,
    random_bits,
    split,
)

KEY = jax.random.key(0)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def shaken(block, seed=1):
    """Moves every parameter, since biases of zero would hide their own absence."""
    rng = np.random.default_rng(seed)
    arrays, rest = eqx.partition(block, eqx.is_array)
    move = lambda p: jnp.asarray(np.array(p) + 0.3 * rng.normal(size=p.shape), p.dtype)  # noqa: E731
    return eqx.combine(jax.tree.map(move, arrays), rest)


def draw(*shape, seed=2):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def norm(block, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-3) * np.array(block.scale) + np.array(block.shift)


def linear(block, x):
    y = x @ np.array(block.weight)
    return y if block.bias is None else y + np.array(block.bias)


def glu(block, x):
    opening = 1.0 if block.gate is None else 1 / (1 + np.exp(-linear(block.gate, x)))
    return opening * linear(block.value, x), opening


def grn(block, a, c=None):
    hidden = linear(block.first, a)
    if c is not None:
        hidden = hidden + linear(block.context, c)[:, None]
    hidden = np.where(hidden > 0, hidden, np.exp(np.minimum(hidden, 0)) - 1)
    gated, _ = glu(block.glu, linear(block.second, hidden))
    skip = a if block.skip is None else linear(block.skip, a)
    return norm(block.norm, skip + gated)


@pytest.mark.parametrize("gating", [True, False])
@pytest.mark.parametrize("outputs", [5, 3])
@pytest.mark.parametrize("context", [0, 4])
def test_a_gated_residual_network_equals_its_equations(double, context, outputs, gating):
    block = shaken(GRN(5, 6, outputs, context=context, gating=gating, key=KEY))
    a, c = draw(2, 7, 5), draw(2, context) if context else None
    found, _ = eqx.filter_jit(block)(a, c)
    expected = grn(block, np.array(a), None if c is None else np.array(c))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_the_skip_is_a_map_only_where_widths_differ():
    assert GRN(5, 6, 5, key=KEY).skip is None
    assert isinstance(GRN(5, 6, 3, key=KEY).skip, Linear)
    assert GRN(5, 6, 5, key=KEY).context is None
    told: Any = GRN(5, 6, 5, context=2, key=KEY).context
    assert told.bias is None


def test_a_context_is_given_where_there_is_a_map_of_it_and_only_there():
    a, c = draw(2, 7, 5), draw(2, 4)
    with pytest.raises(ValueError, match="context"):
        GRN(5, 6, 5, key=KEY)(a, c)
    with pytest.raises(ValueError, match="context"):
        GRN(5, 6, 5, context=4, key=KEY)(a)


def test_a_gated_linear_unit_equals_its_equation_and_tells_its_opening(double):
    block, x = shaken(GLU(5, 3, key=KEY)), draw(2, 7, 5)
    found, opening = eqx.filter_jit(block)(x)
    expected, sigmoid = glu(block, np.array(x))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(opening, np.mean(sigmoid, (1, 2)), rtol=0, atol=1e-10)


def test_without_gating_the_unit_is_a_linear_map():
    block, x = shaken(GLU(5, 3, gating=False, key=KEY)), draw(2, 7, 5)
    found, opening = eqx.filter_jit(block)(x)
    np.testing.assert_allclose(found, block.value(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(opening, [1, 1])


def test_layer_norm_adds_a_thousandth_to_the_variance():
    found = LayerNorm(2)(jnp.array([[0.0, 2.0], [5.0, 5.0]]))
    half = 1 / np.sqrt(1.001)
    np.testing.assert_allclose(found, [[-half, half], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("outputs", [5, 3])
def test_a_shut_gate_leaves_the_norm_of_the_skip(outputs):
    block = shaken(GRN(5, 6, outputs, key=KEY))
    shut = eqx.tree_at(lambda b: b.glu.gate.bias, block, jnp.full(outputs, -1e9))
    a = draw(2, 7, 5)
    skip = a if block.skip is None else block.skip(a)
    found, opening = eqx.filter_jit(shut)(a)
    np.testing.assert_allclose(found, block.norm(skip), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(opening, [0, 0])


def test_a_gated_skip_with_a_shut_gate_is_the_norm_of_the_skip():
    block = shaken(GatedSkip(4, key=KEY))
    shut = eqx.tree_at(lambda b: b.glu.gate.bias, block, jnp.full(4, -1e9))
    x, skip = draw(2, 3, 4), draw(2, 3, 4, seed=5)
    np.testing.assert_array_equal(shut(x, skip)[0], block.norm(skip))


def test_gradients_agree_with_finite_differences(double):
    x, c, skip = draw(2, 3, 4), draw(2, 2), draw(2, 3, 4, seed=5)
    network, gated = GRN(4, 5, 3, context=2, key=KEY), GatedSkip(4, key=KEY)
    for block, call in [
        (shaken(network), lambda b, x: b(x, c)[0]),
        (shaken(gated), lambda b, x: b(x, skip)[0]),
    ]:
        arrays, rest = eqx.partition(block, eqx.is_array)
        run = jax.jit(lambda p, x, call=call, rest=rest: call(eqx.combine(p, rest), x))
        check_grads(run, (arrays, x), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_kernels_are_glorot_uniform_and_biases_zero():
    block = Linear(300, 500, key=KEY)
    limit = np.sqrt(6 / 800)
    assert float(jnp.max(jnp.abs(block.weight))) <= limit
    assert float(jnp.max(jnp.abs(block.weight))) > 0.999 * limit
    np.testing.assert_allclose(jnp.std(block.weight), limit / np.sqrt(3), rtol=0.01)
    np.testing.assert_array_equal(block.bias, np.zeros(500))
    assert float(jnp.max(jnp.abs(glorot(KEY, (50, 50), (1, 5))))) > 0.99


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_dropout_happens_at_the_rate_asked_for(rate):
    dropped = jnp.mean(dropout(jnp.ones(2**24), rate, KEY) == 0)
    # Four standard deviations of a fair draw.
    assert abs(float(dropped) - rate) < 4 * np.sqrt(rate * (1 - rate) / 2**24)
    assert abs(round(rate * 2**32) / 2**32 - rate) < 1e-9


def test_dropout_scales_what_it_keeps_and_needs_a_key():
    x = draw(1000)
    kept = dropout(x, 0.25, KEY)
    np.testing.assert_allclose(kept[kept != 0], x[kept != 0] / 0.75)
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, KEY) is x


def test_random_words_are_balanced_and_uncorrelated():
    count = 2**18
    words = random_bits(KEY, (count,))
    ones = lambda words: np.unpackbits(np.array(words).view(np.uint8)).reshape(-1, 32).mean(0)  # noqa: E731
    limit = 3 / np.sqrt(count)  # six standard deviations
    assert np.max(np.abs(ones(words) - 0.5)) < limit
    others = [random_bits(key, (count,)) for key in split(KEY, 3)]
    others += [random_bits(jax.random.key(1), (count,)), np.roll(words, 1), np.roll(words, 64)]
    for other in others:
        for turn in (0, 5, 16):  # bits of the same place, and of others
            turned = np.array(words) << turn | np.array(words) >> (32 - turn) % 32
            assert np.max(np.abs(ones(turned ^ np.array(other)) - 0.5)) < limit


def test_keys_that_are_split_differ_and_none_stays_none():
    keys = jax.random.key_data(split(KEY, 1000))
    assert len({tuple(map(int, words)) for words in np.asarray(keys)}) == 1000
    assert split(None, 2) == (None, None)


def test_old_style_keys_are_keys_too():
    old = jax.random.key_data(KEY)
    np.testing.assert_array_equal(random_bits(old, (5,)), random_bits(KEY, (5,)))


def test_dropout_comes_before_the_maps_of_the_unit():
    block, x = shaken(GLU(5, 3, dropout=0.5, key=KEY)), draw(2, 7, 5)
    np.testing.assert_array_equal(block(x, key=KEY)[0], block(dropout(x, 0.5, KEY))[0])


def test_a_stack_equals_its_blocks_one_by_one():
    stack = shaken(Stack(lambda key: GRN(4, 4, 4, key=key), 3, key=KEY))
    x = draw(3, 2, 5, 4)
    found, opening = eqx.filter_jit(stack)(x)
    assert opening.shape == (3, 2)
    for number in range(3):
        one = jax.tree.map(lambda p, n=number: p[n], stack.blocks)
        np.testing.assert_allclose(found[number], one(x[number])[0], rtol=1e-5, atol=1e-6)


def test_blocks_of_a_stack_start_and_drop_each_in_their_own_way():
    stack = Stack(lambda key: GRN(4, 4, 4, dropout=0.5, key=key), 2, key=KEY)
    weight = stack.blocks.first.weight
    assert not np.array_equal(weight[0], weight[1])
    same = jax.tree.map(lambda p: jnp.stack([p[0], p[0]]), stack)
    found, _ = same(jnp.broadcast_to(draw(2, 5, 4), (2, 2, 5, 4)), key=KEY)
    assert not np.array_equal(found[0], found[1])
