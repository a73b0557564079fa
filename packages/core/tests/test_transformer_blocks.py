"""Norms, feed-forward layers, embeddings, blocks, and the values that they start from."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core import transformer
from chapbook.core.transformer import FFN, Attention, Block, Embedding, View

zeros, normal = jax.nn.initializers.zeros, jax.nn.initializers.normal(0.5)
X = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)


def keys(count):
    return jax.random.split(jax.random.key(7), count)


def test_norms_are_their_formulas():
    scale, shift = np.random.default_rng(1).normal(size=(2, 12)).astype(np.float32)
    wide = 100 + np.float64(X)
    root = np.sqrt(np.mean(wide**2, -1, keepdims=True) + 1e-3)
    ours = transformer.rms_norm(jnp.asarray(100 + X), jnp.asarray(scale), 1e-3)
    np.testing.assert_allclose(ours, wide / root * scale, rtol=1e-5)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt(wide.var(-1, keepdims=True) + 1e-3) * scale + shift
    ours = transformer.layer_norm(*map(jnp.asarray, (100 + X, scale, shift)), epsilon=1e-3)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)
    half = transformer.LayerNorm(12, bias=False)(jnp.asarray(X, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("act", "function"),
    [
        (
            jax.nn.gelu,
            lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
        (jax.nn.silu, lambda x: x / (1 + np.exp(-x))),
    ],
)
@pytest.mark.parametrize("gated", [False, True])
def test_feed_forward_layers_are_their_formulas(act, function, gated):
    ffn = FFN(12, 20, act=act, gated=gated, bias=normal, key=keys(1)[0])
    w = jax.tree.map(np.float64, eqx.filter(ffn, eqx.is_array))
    hidden = X @ w.up + w.up_bias
    hidden = function(X @ w.gate + w.gate_bias) * hidden if gated else function(hidden)
    expected = hidden @ w.down + w.down_bias
    np.testing.assert_allclose(ffn(jnp.asarray(X)), expected, rtol=1e-5, atol=1e-5)
    assert len(jax.tree.leaves(FFN(12, 20, gated=gated, key=keys(1)[0]))) == 2 + gated


def test_logits_are_products_with_the_embeddings_own_rows():
    table = Embedding(9, 12, key=keys(1)[0])
    ids = jnp.array([[0, 8, 3, 9]])
    rows = table(ids)
    np.testing.assert_array_equal(rows[0, :3], table.weight[ids[0, :3]])
    assert bool(jnp.isnan(rows[0, 3]).all())
    np.testing.assert_allclose(
        table.logits(jnp.asarray(X)), X @ np.asarray(table.weight).T, rtol=1e-5, atol=1e-6
    )
    half = eqx.tree_at(lambda t: t.weight, table, table.weight.astype(jnp.bfloat16))
    assert half.logits(jnp.asarray(X, jnp.bfloat16)).dtype == jnp.float32
    grad = jax.grad(lambda t: jnp.sum(t.logits(t(jnp.array([[1]])))))(table)
    expected = np.tile(np.asarray(table.weight[1]), (9, 1))  # as the output layer
    expected[1] += np.asarray(table.weight).sum(0)  # as the input layer too
    np.testing.assert_allclose(grad.weight, expected, rtol=1e-5, atol=1e-6)


def test_blocks_add_each_part_to_a_skip_before_or_behind_its_norm():
    a, b, c = keys(3)
    parts = {
        "attention": Attention(12, 3, causal=True, key=a),
        "cross": Attention(12, 3, context_embed=6, key=b),
        "ffn": FFN(12, 20, key=c),
    }
    context = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, 6)), jnp.float32)
    mask = transformer.padding_mask(jnp.array([2, 4]), 4)
    norm = lambda y: transformer.layer_norm(y, jnp.ones(12))  # noqa: E731
    of = [parts["attention"], lambda y: parts["cross"](y, context, mask=mask), parts["ffn"]]
    view, x = View(context=context, context_mask=mask), jnp.asarray(X)
    before = behind = x
    for part in of:
        before = before + part(norm(before))
        behind = norm(behind + part(behind))
    ours, report = Block(12, **parts)(x, view)
    assert report is None
    np.testing.assert_allclose(ours, before, rtol=1e-5, atol=1e-5)
    ours, _ = Block(12, **parts, post_norm=True)(x, view)
    np.testing.assert_allclose(ours, behind, rtol=1e-5, atol=1e-5)
    alone, _ = Block(12, ffn=parts["ffn"], norm=transformer.RMSNorm)(x)
    root = transformer.rms_norm(x, jnp.ones(12))
    np.testing.assert_allclose(alone, x + parts["ffn"](root), rtol=1e-5, atol=1e-5)


def test_a_feed_forward_layer_is_told_what_the_block_is_told_and_may_report():
    class Counting(eqx.Module):
        def __call__(self, x, real, *, key=None):
            return jnp.where(real[..., None], x, 0), {"real": jnp.sum(real)}

    real = jnp.asarray(X[..., 0] > 0)
    x, report = Block(12, ffn=Counting())(jnp.asarray(X), View(), real)
    assert int(report["real"]) == int((X[..., 0] > 0).sum())
    np.testing.assert_array_equal(x[~np.asarray(real)], X[~np.asarray(real)])


def test_dropout_drops_at_its_rate_only_with_a_key_and_keeps_the_mean():
    x = jnp.ones((100, 100))
    dropped = np.asarray(transformer.dropout(x, 0.3, keys(1)[0]))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / np.float32(0.7))}
    assert np.mean(dropped == 0) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 1e4))
    assert transformer.dropout(x, 0.3, None) is x
    block = Block(12, attention=Attention(12, 3, key=keys(1)[0]), dropout=0.5)
    ours = block(jnp.asarray(X), key=keys(1)[0])[0] - X
    whole = block(jnp.asarray(X))[0] - X
    kept = np.asarray(ours) != 0
    np.testing.assert_allclose(ours[kept], 2 * whole[kept], rtol=1e-3, atol=1e-5)
    assert 0.3 < kept.mean() < 0.7


def test_kernels_start_with_the_standard_deviation_of_their_fan_in():
    shared = {"out_init": transformer.residual(8), "key": keys(1)[0]}
    attention = Attention(96, 6, head_dim=32, kv_heads=3, context_embed=48, **shared)
    ffn = FFN(96, 300, gated=True, **shared)
    expected = [
        (attention.q, 96**-0.5), (attention.k, 48**-0.5), (attention.v, 48**-0.5),
        (attention.out, (6 * 32 * 16) ** -0.5), (ffn.up, 96**-0.5), (ffn.gate, 96**-0.5),
        (ffn.down, (300 * 16) ** -0.5),
    ]  # fmt: skip
    for weight, std in expected:
        # Two standard errors of a standard deviation, and some.
        assert float(jnp.std(weight)) == pytest.approx(std, rel=3 / math.sqrt(2 * weight.size))
        # A normal that is cut at two of its own: 0.8796 of them remain.
        assert float(jnp.abs(weight).max()) <= 2 * std / 0.8796


def test_initialisers_are_given_kernels_as_matrices():
    shapes = []

    def noting(key, shape):
        shapes.append(shape)
        return jnp.zeros(shape)

    init = {"init": noting, "out_init": noting, "bias": zeros, "key": keys(1)[0]}
    attention = Attention(12, 4, kv_heads=2, head_dim=5, q_init=noting, **init)
    assert shapes == [(12, 20), (12, 10), (12, 10), (20, 12)]
    assert attention.q.shape == (12, 4, 5) and attention.out.shape == (4, 5, 12)
    assert attention.k_bias is not None and attention.k_bias.shape == (2, 5)
