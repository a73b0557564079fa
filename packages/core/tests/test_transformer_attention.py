"""Attention and all that hides or shifts its logits, against a softmax written out in float64."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core import transformer
from chapbook.core.transformer import Attention, near_mask, padding_mask, segment_mask

BATCH, TOKENS, EMBED, HEADS, HEAD_DIM = 2, 7, 12, 4, 6


def normal(key, shape):
    """Draws without compiling anything."""
    drawn = np.random.default_rng(np.asarray(jax.random.key_data(key))).normal(size=shape)
    return jnp.asarray(drawn / shape[0] ** 0.5, jnp.float32)


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X = random(0, BATCH, TOKENS, EMBED)


def made(embed=EMBED, heads=HEADS, head_dim=HEAD_DIM, **options):
    options = {"init": normal, "out_init": normal} | options
    return Attention(embed, heads, head_dim=head_dim, key=jax.random.key(1), **options)


@eqx.filter_jit
def applied(attention, x, context=None, mask=None, bias=None):
    return attention(x, context, mask=mask, bias=bias)


def reference(attention, x, context=None, seen=None, bias=None):
    """Returns the output in float64; a query that sees nothing gets zero."""
    wide = jax.tree.map(lambda w: np.asarray(w, np.float64), eqx.filter(attention, eqx.is_array))
    x = np.float64(x)
    z = x if context is None else np.float64(context)
    q, k, v = (
        np.einsum("bte,enh->bnth", source, weight)
        for source, weight in ((x, wide.q), (z, wide.k), (z, wide.v))
    )
    if wide.q_bias is not None:
        q, k, v = (
            y + b[:, None] for y, b in ((q, wide.q_bias), (k, wide.k_bias), (v, wide.v_bias))
        )
    if wide.q_norm is not None:
        q, k = (
            y / np.sqrt(np.mean(y**2, -1, keepdims=True) + 1e-6) * norm.scale
            for y, norm in ((q, wide.q_norm), (k, wide.k_norm))
        )
    k, v = (np.repeat(y, q.shape[1] // y.shape[1], 1) for y in (k, v))
    scale = q.shape[-1] ** -0.5 if attention.scale is None else attention.scale
    logits = q @ k.swapaxes(2, 3) * scale + (0 if bias is None else np.float64(bias))
    seen = np.broadcast_to(True if seen is None else seen, logits.shape)
    weights = np.where(seen, np.exp(logits - logits.max(-1, keepdims=True)), 0)
    total = weights.sum(-1, keepdims=True)
    attended = np.where(total > 0, weights / np.where(total > 0, total, 1), 0) @ v
    out = np.einsum("bnth,nhe->bte", attended, wide.out)
    return out if wide.out_bias is None else out + wide.out_bias


def places(causal, window):
    """Returns which keys each query sees, one by one."""
    return np.array(
        [
            [(j <= i or not causal) and (window is None or abs(i - j) < window) for j in range(7)]
            for i in range(7)
        ]
    )


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_causal_and_windowed_attention_sees_the_places_it_should(causal, window):
    attention = made(causal=causal, window=window)
    expected = reference(attention, X, seen=places(causal, window))
    np.testing.assert_allclose(applied(attention, X), expected, rtol=1e-5, atol=1e-5)
    # The same by an explicit mask, which takes another path.
    everything = jnp.ones((1, 1, TOKENS, TOKENS), bool)
    masked = applied(attention, X, mask=everything)
    np.testing.assert_allclose(masked, expected, rtol=1e-5, atol=1e-5)


def test_masks_show_what_they_say():
    lengths, segments = jnp.array([3, 7]), jnp.array([[1, 1, 2, 2, 2, 0, 0], [5, 5, 5, 5, 5, 5, 6]])
    by_length = np.array([[j < n for j in range(7)] for n in (3, 7)])[:, None, None]
    np.testing.assert_array_equal(padding_mask(lengths, 7), by_length)
    by_segment = np.array([[[a == b for b in row] for a in row] for row in segments.tolist()])
    np.testing.assert_array_equal(segment_mask(segments), by_segment[:, None])
    np.testing.assert_array_equal(
        segment_mask(segments[:, :2], segments[:, 1:]), by_segment[:, None, :2, 1:]
    )
    shown = near_mask(jnp.arange(4, 6), jnp.arange(7), causal=True, window=2)
    np.testing.assert_array_equal(shown[0, 0], places(True, 2)[4:6])


def test_padding_segments_and_bias_are_those_of_a_written_out_softmax():
    attention = made(causal=True, bias=normal, qk_norm=True, scale=0.7, kv_heads=2)
    bias = random(3, 1, HEADS, TOKENS, TOKENS)
    segments = jnp.array([[1, 1, 2, 2, 2, 0, 0], [5, 5, 5, 5, 5, 5, 6]])
    mask = segment_mask(segments) & padding_mask(jnp.array([7, 4]), TOKENS)
    expected = reference(attention, X, seen=np.asarray(mask) & places(True, None), bias=bias)
    ours = applied(attention, X, mask=mask, bias=bias)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_nothing_gets_zero_and_gradients_stay_finite():
    attention = made(bias=normal)
    mask = padding_mask(jnp.array([0, 5]), TOKENS)
    ours = applied(attention, X, mask=mask)
    np.testing.assert_allclose(ours, reference(attention, X, seen=mask), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ours[0], np.broadcast_to(attention.out_bias, (TOKENS, EMBED)))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(both):
        attention, x = both
        return jnp.sum(attention(x, mask=mask) ** 2)

    grads = gradient((attention, jnp.asarray(X)))
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    np.testing.assert_array_equal(grads[1][0], 0)
    assert bool(jnp.any(grads[1][1] != 0))


def test_a_context_of_another_width_is_attended_to():
    attention = made(context_embed=5, kv_heads=1, bias=normal)
    context, lengths = random(4, BATCH, 9, 5), jnp.array([9, 2])
    mask = padding_mask(lengths, 9)
    ours = applied(attention, X, context, mask)
    expected = reference(attention, X, context, seen=mask)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_grouped_queries_share_heads_as_if_those_were_repeated():
    grouped = made(kv_heads=2, causal=True, rope=100.0, bias=normal)
    spread = lambda w: jnp.asarray(np.repeat(w, 2, -2))  # noqa: E731
    of = lambda a: (a.k, a.v, a.k_bias, a.v_bias)  # noqa: E731
    repeated = eqx.tree_at(of, grouped, tuple(map(spread, of(grouped))))
    np.testing.assert_allclose(applied(grouped, X), applied(repeated, X), rtol=1e-5, atol=1e-5)


def test_neighbouring_documents_in_one_row_are_as_if_alone():
    bias = transformer.RelativeBias(HEADS, 8, 6, key=jax.random.key(3))
    attention = made(causal=True, rope=50.0, position_bias=bias)
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2]] * BATCH)
    packed = applied(attention, X, mask=segment_mask(segments))
    for part in (slice(0, 3), slice(3, 7)):
        alone = applied(attention, X[:, part])
        np.testing.assert_allclose(packed[:, part], alone, rtol=1e-5, atol=1e-5)


def test_another_attention_function_takes_the_place_of_the_usual_one():
    def capped(q, k, v, bias, mask, *, scale, is_causal=False, local_window_size=None):
        assert bias is None and mask is None and scale is None and not is_causal
        return jnp.broadcast_to(v.mean(1, keepdims=True), q.shape)

    attention = made(attend=capped)
    uniform = eqx.tree_at(lambda a: a.q, made(), jnp.zeros_like(attention.q))
    np.testing.assert_allclose(applied(attention, X), applied(uniform, X), rtol=1e-5, atol=1e-5)


def test_half_precision_is_near_single_and_keeps_its_type():
    attention = made(causal=True, rope=100.0, qk_norm=True)
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), eqx.filter(attention, eqx.is_array))
    half = eqx.combine(half, attention)
    ours = applied(half, jnp.asarray(X, jnp.bfloat16))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(ours), applied(attention, X), atol=0.1)
