"""On simulated devices: Megatron's collectives, and the numbers of one device on any mesh."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core.meshes import mesh
from chapbook.core.sharding import shardings, use
from chapbook.core.transformer import FFN, Attention, Block, RelativeBias, Stack, decode, prefill

BATCH, TOKENS, EMBED = 8, 4, 16
X = np.random.default_rng(0).normal(size=(BATCH, TOKENS, EMBED)).astype(np.float32)
OTHERS = r" (all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
bias = jax.nn.initializers.normal(0.1)


def make(key):
    a, b, c = jax.random.split(key, 3)
    table = RelativeBias(8, 8, 6, key=c)
    grouped = functools.partial(Attention, EMBED, 8, kv_heads=4, head_dim=2, bias=bias)
    attention = grouped(causal=True, position_bias=table, key=a)
    return Block(EMBED, attention=attention, ffn=FFN(EMBED, 32, gated=True, bias=bias, key=b))


def filled(make):
    """Makes a model of arbitrary values: drawing the usual ones takes seconds to compile."""
    rng = np.random.default_rng(0)

    def value(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)

    return jax.tree.map(value, eqx.filter_eval_shape(make, jax.random.key(0)))


def text(function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text() or ""


@pytest.mark.devices(8)
def test_a_block_needs_two_all_reduces_forward_and_two_more_backward():
    devices = mesh("model=4", devices=jax.devices()[:4])
    shapes = eqx.filter_eval_shape(make, jax.random.key(0))
    block, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    block = jax.tree.map(
        lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at),
        block,
        shardings(shapes, devices),
    )

    def forward(block, x):
        return eqx.combine(block, static)(x)[0]

    with use(devices):
        once = text(forward, block, X)
        both = text(jax.grad(lambda *a: jnp.sum(forward(*a) ** 2), argnums=(0, 1)), block, X)
    assert len(re.findall(r" all-reduce(?:-start)?\(", once)) == 2
    assert len(re.findall(r" all-reduce(?:-start)?\(", both)) == 4
    assert not re.findall(OTHERS, once + both)


def compare(*grids):
    """Compares values and gradients on each mesh with those of one device."""
    arrays, static = eqx.partition(filled(lambda key: Stack(make, 2, key=key)), eqx.is_array)

    @jax.jit
    def step(arrays, x):
        loss = lambda arrays, x: jnp.mean(eqx.combine(arrays, static)(x)[0] ** 2)  # noqa: E731
        return jax.value_and_grad(loss, argnums=(0, 1))(arrays, x)

    expected = jax.tree.leaves(step(arrays, X))
    for grid in grids:
        devices = mesh(grid)
        placed = jax.device_put(arrays, shardings(arrays, devices))
        with use(devices):
            found = jax.tree.leaves(step(placed, X))
        for ours, one in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, one, rtol=1e-5, atol=1e-5, err_msg=grid)


@pytest.mark.devices(8)
def test_a_mesh_of_every_axis_gives_the_values_and_gradients_of_one_device():
    compare("data=2,fsdp=2,model=2")


@pytest.mark.slow
@pytest.mark.devices(8)
def test_any_mesh_gives_the_values_and_gradients_of_one_device():
    compare("data=8", "data=2,model=4", "fsdp=8", "fsdp=4,model=2")


@pytest.mark.devices(8)
def test_a_cache_lies_where_rows_and_heads_lie_and_decodes_the_same():
    arrays, static = eqx.partition(filled(lambda key: Stack(make, 2, key=key)), eqx.is_array)

    @jax.jit
    def pieces(arrays, x):
        layers = eqx.combine(arrays, static)
        first, cache, _ = prefill(layers, x[:, :3], TOKENS)
        last, cache, _ = decode(layers, x[:, 3:], cache)
        return jnp.concatenate([first, last], 1), cache

    whole = jax.jit(lambda arrays, x: eqx.combine(arrays, static)(x)[0])(arrays, X)
    devices = mesh("data=2,model=4")
    placed = jax.device_put(arrays, shardings(arrays, devices))
    with use(devices):
        found, cache = pieces(placed, X)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)
    keys = cache.layers.own.k
    assert keys.sharding.shard_shape(keys.shape) == (2, BATCH // 2, TOKENS, 4 // 4, 2)
