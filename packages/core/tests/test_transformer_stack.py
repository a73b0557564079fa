"""Stacks: a scan is the loop that it stands for, whatever is recomputed, dropped or reported."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core.sharding import names
from chapbook.core.transformer import FFN, Attention, Block, Chain, RelativeBias, Stack, View

# Its random bits compile in a fraction of the time of the usual ones.
key_of = functools.partial(jax.random.key, impl="unsafe_rbg")
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 12)), jnp.float32)


class Reporting(eqx.Module):
    """A feed-forward layer that reports, as a mixture of experts does."""

    ffn: FFN

    def __call__(self, x, *told, key=None):
        y = self.ffn(x, key=key)
        return y, {"mean": jnp.mean(y), "each": jnp.sum(y, (0, 2))}


def block(key, ffn=lambda ffn: ffn):
    a, b, c = jax.random.split(key, 3)
    bias = RelativeBias(3, 8, 6, key=c)
    attention = Attention(12, 3, causal=True, position_bias=bias, key=a)
    return Block(12, attention=attention, ffn=ffn(FFN(12, 16, dropout=0.2, key=b)), dropout=0.1)


def pair(key):
    a, b = jax.random.split(key)
    return Chain(block(a), block(b, Reporting))


def filled(make):
    """Makes a model of arbitrary values: drawing the usual ones takes seconds to compile."""
    rng = np.random.default_rng(0)

    def value(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)

    return jax.tree.map(value, eqx.filter_eval_shape(make, jax.random.key(0)))


def build(make, n, **options):
    return filled(lambda key: Stack(make, n, key=key, **options))


@eqx.filter_jit
def value_and_grads(model, x, key):
    def loss(both):
        model, x = both
        y, reports = model(x, key=key)
        return jnp.sum(y**2), (y, reports)

    return eqx.filter_value_and_grad(loss, has_aux=True)((model, x))


def same(a, b, tolerance):
    a, b = (jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (a, b))
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


@pytest.fixture(scope="module")
def scanned():
    return value_and_grads(build(pair, 2), X, key_of(2))


def test_a_scan_equals_the_loop_over_its_layers(scanned):
    same(scanned, value_and_grads(build(pair, 2, unroll=True), X, key_of(2)), 1e-6)


def test_unrolled_layers_equal_the_scan_over_them(scanned):
    (_, (y, (_, expert))), _ = scanned
    chain = build(pair, 2).unrolled()
    assert len(chain.layers) == 2
    (_, (again, reports)), _ = value_and_grads(chain, X, key_of(2))
    same(y, again, 1e-6)
    same(expert, jax.tree.map(lambda *each: jnp.stack(each), *(r[1] for r in reports)), 1e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA does on CPUs")
def test_a_scan_copies_the_weights_of_a_layer_and_unrolled_layers_are_read_in_place():
    stack = build(lambda key: Block(12, ffn=FFN(12, 2000, key=key)), 3)
    matrices = 2 * 12 * 2000 * 4

    def memory(layers):
        arrays, static = eqx.partition(layers, eqx.is_array)
        compiled = jax.jit(lambda a, x: eqx.combine(a, static)(x)[0]).lower(arrays, X[:1, :1])
        return getattr(compiled.compile().memory_analysis(), "temp_size_in_bytes")  # noqa: B009

    assert memory(stack) >= matrices > 3 * memory(stack.unrolled())


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputing_changes_no_value_and_no_gradient(scanned, remat):
    again = value_and_grads(build(pair, 2, remat=remat), X, key_of(2))
    same(scanned, again, 1e-6)


def test_recomputing_everything_keeps_only_what_passes_between_layers():
    def kept(remat):
        layer = lambda key: Block(12, ffn=FFN(12, 32, key=key))  # noqa: E731
        arrays, static = eqx.partition(build(layer, 6, remat=remat), eqx.is_array)
        step = lambda a: jnp.sum(eqx.combine(a, static)(X)[0] ** 2)  # noqa: E731
        compiled = jax.jit(jax.grad(step)).lower(arrays).compile()
        return getattr(compiled.memory_analysis(), "temp_size_in_bytes")  # noqa: B009

    none, dots, full = map(kept, ("none", "dots", "full"))
    assert full < dots < none


def test_reports_are_stacked_over_layers_and_dense_blocks_have_none(scanned):
    (_, (_, reports)), _ = scanned
    dense, expert = reports
    assert dense is None
    assert expert["mean"].shape == (2,) and expert["each"].shape == (2, 6)
    assert len(np.unique(expert["mean"])) == 2


def test_every_layer_draws_its_own_dropout_and_none_without_a_key():
    class Noise(eqx.Module):
        def __call__(self, x, *, key=None):
            return x, None if key is None else jax.random.normal(key)

    stack = Stack(lambda key: Noise(), 4, key=jax.random.key(0))
    # With nothing that has an axis over the layers, the keys alone tell how many there are.
    _, drawn = stack(X, key=jax.random.key(3))
    assert len(np.unique(drawn)) == 4
    model = eqx.filter_jit(build(block, 2))
    calls = [model(X, key=key)[0] for key in map(key_of, (0, 0, 1))]
    np.testing.assert_array_equal(calls[0], calls[1])
    assert not np.allclose(calls[0], calls[2])


def test_every_layer_has_a_position_bias_of_its_own(scanned):
    tables = scanned[1][0].layers.layers[0].attention.position_bias.table
    assert tables.shape == (2, 3, 8)
    assert bool(jnp.all(jnp.any(tables[:, :, :6] != 0, (1, 2))))


def test_the_future_is_hidden_in_every_layer():
    model = eqx.filter_jit(build(block, 2))
    changed = X.at[:, 4:].add(1.0)
    before, after = (model(x, View())[0] for x in (X, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert bool(jnp.all(jnp.any(before[:, 4:] != after[:, 4:], -1)))


def test_every_parameter_of_a_stack_has_names():
    found = names(eqx.filter_eval_shape(lambda key: Stack(pair, 2, key=key), jax.random.key(0)))
    leaves = jax.tree.leaves(found)
    assert all(leaf[:1] == ("layers",) for leaf in leaves)
    assert found.layers.layers[0].attention.q == ("layers", "embed", "heads", "head_dim")
    assert found.layers.layers[1].ffn.ffn.down == ("layers", "mlp", "embed")
