"""Selection weights, and the variables that they weigh."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from chapbook.tft_forecast.variable_selection import VariableSelection

KEY = jax.random.key(0)
WIDTH = 4


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def shaken(block, seed=1):
    rng = np.random.default_rng(seed)
    arrays, rest = eqx.partition(block, eqx.is_array)
    move = lambda p: jnp.asarray(np.array(p) + 0.3 * rng.normal(size=p.shape), p.dtype)  # noqa: E731
    return eqx.combine(jax.tree.map(move, arrays), rest)


def draw(*shape, seed=2):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def grn(block, a, c=None):
    """One vector through a gated residual network."""
    hidden = a @ block.first.weight + block.first.bias
    if c is not None:
        hidden = hidden + c @ block.context.weight
    hidden = np.array([h if h > 0 else np.expm1(h) for h in hidden])
    hidden = hidden @ block.second.weight + block.second.bias
    gate = 1 / (1 + np.exp(-(hidden @ block.glu.gate.weight + block.glu.gate.bias)))
    skip = a if block.skip is None else a @ block.skip.weight + block.skip.bias
    total = skip + gate * (hidden @ block.glu.value.weight + block.glu.value.bias)
    normal = (total - total.mean()) / np.sqrt(total.var() + 1e-3)
    return normal * block.norm.scale + block.norm.shift


@pytest.mark.parametrize(("shape", "context"), [((2, 3), 3), ((2,), 0)])
def test_selection_equals_its_equations(double, shape, context):
    block = shaken(VariableSelection(3, WIDTH, context=context, key=KEY))
    x, c = draw(3, *shape, WIDTH), draw(2, context) if context else None
    found, found_weights, openings = eqx.filter_jit(block)(x, c)
    block = jax.tree.map(np.array, block)
    vectors = np.array(x)
    for place in np.ndindex(*shape):
        each = [vectors[j][place] for j in range(3)]
        told = None if c is None else np.array(c[place[0]])
        logits = np.exp(grn(block.weights, np.concatenate(each), told))
        weights = logits / logits.sum()
        one = lambda j: jax.tree.map(lambda p: p[j], block.variables.blocks)  # noqa: E731
        total = sum(weights[j] * grn(one(j), each[j]) for j in range(3))
        np.testing.assert_allclose(found_weights[place], weights, rtol=0, atol=1e-10)
        np.testing.assert_allclose(found[place], total, rtol=0, atol=1e-10)
    assert {name: opening.shape for name, opening in openings.items()} == {
        "weights": (2,),
        "variables": (2,),
    }


def test_weights_sum_to_one():
    block = shaken(VariableSelection(5, WIDTH, key=KEY))
    _, weights, _ = eqx.filter_jit(block)(draw(5, 2, 3, WIDTH))
    assert weights.shape == (2, 3, 5)
    np.testing.assert_allclose(jnp.sum(weights, -1), np.ones((2, 3)), rtol=1e-6)


def test_a_single_variable_has_weight_exactly_one():
    block = shaken(VariableSelection(1, WIDTH, key=KEY))
    x = draw(1, 2, 3, WIDTH)
    found, weights, _ = eqx.filter_jit(block)(x)
    np.testing.assert_array_equal(weights, np.ones((2, 3, 1)))
    np.testing.assert_allclose(found, block.variables(x)[0][0], rtol=1e-4, atol=1e-6)


def test_order_of_the_variables_does_not_matter_if_the_parameters_move_along(double):
    block, x, order = shaken(VariableSelection(3, WIDTH, key=KEY)), draw(3, 2, 4, WIDTH), (2, 0, 1)
    order = np.array(order)
    within = (order[:, None] * WIDTH + np.arange(WIDTH)).ravel()

    def outputs(g: Any):
        return [
            g.skip.weight, g.skip.bias, g.glu.gate.weight, g.glu.gate.bias, g.glu.value.weight,
            g.glu.value.bias, g.norm.scale, g.norm.shift,
        ]  # fmt: skip

    moved = eqx.tree_at(
        lambda b: [b.weights.first.weight, b.weights.skip.weight],
        block,
        [block.weights.first.weight[within], block.weights.skip.weight[within]],
    )
    moved = eqx.tree_at(
        lambda b: outputs(b.weights), moved, [p[..., order] for p in outputs(moved.weights)]
    )
    moved = eqx.tree_at(
        lambda b: b.variables, moved, jax.tree.map(lambda p: p[order], block.variables)
    )
    run = jax.jit(lambda block, x: block(x)[:2])
    (found, weights), (same, permuted) = run(block, x), run(moved, x[order])
    np.testing.assert_allclose(same, found, rtol=0, atol=1e-12)
    np.testing.assert_allclose(permuted, weights[..., order], rtol=0, atol=1e-12)


def test_without_selection_variables_are_averaged():
    block = shaken(VariableSelection(4, WIDTH, selection=False, key=KEY))
    x = draw(4, 2, 3, WIDTH)
    found, weights, openings = eqx.filter_jit(block)(x)
    np.testing.assert_array_equal(weights, np.full((2, 3, 4), 0.25))
    np.testing.assert_allclose(found, jnp.mean(block.variables(x)[0], 0), rtol=1e-4, atol=1e-6)
    assert set(openings) == {"variables"}


def test_gradients_agree_with_finite_differences(double):
    block, x, c = (
        shaken(VariableSelection(3, WIDTH, context=2, key=KEY)),
        draw(3, 2, 2, 4),
        draw(2, 2),
    )
    run = jax.jit(lambda block, x, c: block(x, c)[:2])
    check_grads(run, (block, x, c), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)
