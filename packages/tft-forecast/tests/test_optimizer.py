"""Clipping, tensor by tensor and together, and Adam."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.embedding import Embedding
from chapbook.tft_forecast.gating import Linear, Stack
from chapbook.tft_forecast.inputs import Group
from chapbook.tft_forecast.optimizer import clip_per_tensor, optimizer

KEY = jax.random.key(0)


def gradients(tree, seed=0):
    rng = np.random.default_rng(seed)
    params = eqx.filter(tree, eqx.is_array)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)


def clipped(tree, limit) -> Any:
    return clip_per_tensor(limit).update(tree, optax.EmptyState())[0]


def by_hand(gradient, limit):
    length = np.sqrt(np.sum(np.array(gradient, np.float64) ** 2))
    return np.array(gradient) * min(1, limit / length)


def test_each_tensor_is_clipped_on_its_own():
    tree = {"long": jnp.array([3.0, 4.0]), "short": jnp.array([[0.3, 0.4]]), "none": jnp.zeros(3)}
    found = clipped(tree, 1.0)
    np.testing.assert_allclose(found["long"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(found["short"], tree["short"])
    np.testing.assert_array_equal(found["none"], np.zeros(3))


def test_blocks_of_a_stack_are_clipped_each_on_its_own():
    grads = gradients(Stack(lambda key: Linear(3, 4, key=key), 5, key=KEY))
    found = clipped({"stack": grads}, 2.0)["stack"]
    for number in range(5):
        for name in ("weight", "bias"):
            one = getattr(grads.blocks, name)[number]
            expected = by_hand(one, 2.0)
            np.testing.assert_allclose(getattr(found.blocks, name)[number], expected, rtol=1e-5)


def test_variables_of_an_embedding_are_clipped_each_on_its_own():
    grads = gradients(Embedding(Group(("a", "b"), ("u", "v"), (5, 3)), 4, key=KEY))
    found = clipped(grads, 1.5)
    for name in ("weight", "bias", "missing"):
        for row, one in zip(getattr(found, name), getattr(grads, name), strict=True):
            np.testing.assert_allclose(row, by_hand(one, 1.5), rtol=1e-5)
    for rows in (slice(0, 5), slice(5, 8)):
        np.testing.assert_allclose(found.table[rows], by_hand(grads.table[rows], 1.5), rtol=1e-5)


def test_an_embedding_without_tables_is_clipped_too():
    grads = gradients(Embedding(Group(("a",)), 4, key=KEY))
    np.testing.assert_allclose(
        clipped(grads, 0.1).weight[0], by_hand(grads.weight[0], 0.1), rtol=1e-5
    )


def test_a_global_norm_scales_all_alike():
    config = TFTConfig(clip="global", max_norm=1.0, learning_rate=0.5)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    tx = optimizer(config)
    _, state = tx.update(
        {"a": jnp.array([2.0, 1.0]), "b": jnp.array([2.0])}, tx.init(params), params
    )
    mean: Any = optax.tree_utils.tree_get(
        state, "mu"
    )  # 0.1 of the clipped gradient, whose norm was 3
    np.testing.assert_allclose(mean["a"], [0.1 * 2 / 3, 0.1 / 3], rtol=1e-5)
    np.testing.assert_allclose(mean["b"], [0.1 * 2 / 3], rtol=1e-5)


def test_steps_are_those_of_adam_with_the_constants_of_keras():
    config = TFTConfig(max_norm=1.0, learning_rate=0.01)
    tx, params = optimizer(config), jnp.zeros(3)
    state, mean, square = tx.init(params), np.zeros(3), np.zeros(3)
    for step in range(1, 5):
        gradient = np.array([1e-7, 0.2, -3.0]) * step
        updates, state = tx.update(jnp.asarray(gradient, jnp.float32), state, params)
        gradient = by_hand(gradient, 1.0)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased = mean / (1 - 0.9**step), square / (1 - 0.999**step)
        expected = -0.01 * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-7)
        np.testing.assert_allclose(np.asarray(updates), expected, rtol=1e-4)


def test_members_of_an_ensemble_are_clipped_each_on_its_own():
    tx = optimizer(TFTConfig(max_norm=1.0, members=2))
    make = lambda key: Stack(lambda key: Linear(3, 4, key=key), 2, key=key)  # noqa: E731
    members = eqx.filter_vmap(make)(jax.random.split(KEY, 2))
    grads = jax.tree.map(lambda g: g * jnp.arange(1, 3).reshape(2, *[1] * (g.ndim - 1)), members)
    together, _ = jax.vmap(tx.update)(grads, jax.vmap(tx.init)(members))
    for number in range(2):
        one = jax.tree.map(lambda g, n=number: g[n], grads)
        alone, _ = tx.update(one, tx.init(one))
        for found, expected in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(found[number], expected, rtol=1e-5, atol=1e-8)
