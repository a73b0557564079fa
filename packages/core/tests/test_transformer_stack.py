"""Stacks: a scan is the loop that it stands for, whatever is recomputed, dropped or reported."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core.sharding import names
from chapbook.core.transformer import FFN, Attention, Block, Chain, RelativeBias, Stack, View

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


def build(make, n, **options):
    """Builds in one program: a tenth of the time that as many small ones take."""
    return eqx.filter_jit(lambda key: Stack(make, n, key=key, **options))(jax.random.key(1))


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
    return value_and_grads(build(pair, 3), X, jax.random.key(2))


def test_a_scan_equals_the_loop_over_its_layers(scanned):
    same(scanned, value_and_grads(build(pair, 3, unroll=True), X, jax.random.key(2)), 1e-6)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputing_changes_no_value_and_no_gradient(scanned, remat):
    again = value_and_grads(build(pair, 3, remat=remat), X, jax.random.key(2))
    same(scanned, again, 1e-6)


def test_recomputing_everything_keeps_only_what_passes_between_layers():
    def kept(remat):
        stack = build(block, 4, remat=remat)
        arrays, static = eqx.partition(stack, eqx.is_array)
        step = lambda a: jnp.sum(eqx.combine(a, static)(X)[0] ** 2)  # noqa: E731
        compiled = jax.jit(jax.grad(step)).lower(arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    none, dots, full = map(kept, ("none", "dots", "full"))
    assert full < dots < none


def test_layers_are_those_made_of_split_keys_one_by_one():
    stack = build(block, 3)
    for at, key in enumerate(jax.random.split(jax.random.key(1), 3)):
        one = jax.tree.map(lambda a, at=at: a[at], eqx.filter(stack.layers, eqx.is_array))
        same(one, eqx.filter_jit(block)(key), 1e-6)


def test_reports_are_stacked_over_layers_and_dense_blocks_have_none(scanned):
    (_, (_, reports)), _ = scanned
    dense, expert = reports
    assert dense is None
    assert expert["mean"].shape == (3,) and expert["each"].shape == (3, 6)
    assert len(np.unique(expert["mean"])) == 3


def test_every_layer_draws_its_own_dropout_and_none_without_a_key():
    class Noise(eqx.Module):
        def __call__(self, x, *, key=None):
            return x, None if key is None else jax.random.normal(key)

    stack = Stack(lambda key: Noise(), 4, key=jax.random.key(0))
    # With nothing that has an axis over the layers, the keys alone tell how many there are.
    _, drawn = stack(X, key=jax.random.key(3))
    assert len(np.unique(drawn)) == 4
    model = build(block, 2)
    calls = [eqx.filter_jit(model)(X, key=key)[0] for key in map(jax.random.key, (0, 0, 1))]
    np.testing.assert_array_equal(calls[0], calls[1])
    assert not np.allclose(calls[0], calls[2])


def test_every_layer_has_a_position_bias_of_its_own(scanned):
    tables = scanned[1][0].layers.layers[0].attention.position_bias.table
    assert tables.shape == (3, 3, 8)
    assert bool(jnp.all(jnp.any(tables[:, :, :6] != 0, (1, 2))))


def test_the_future_is_hidden_in_every_layer():
    model = eqx.filter_jit(build(pair, 2))
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
