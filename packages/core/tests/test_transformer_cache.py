"""Decoding from a cache gives what the whole sequence at once would have given."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core import transformer
from chapbook.core.errors import Error
from chapbook.core.transformer import FFN, Attention, Block, Chain, Stack, View, decode, prefill

BATCH, TOKENS, EMBED, CAPACITY = 2, 11, 12, 13
START = np.array([2, 0], np.int32)  # how many of the first tokens of each row are padding
rng = np.random.default_rng(0)
X = rng.normal(size=(BATCH, TOKENS, EMBED)).astype(np.float32)
CONTEXT = rng.normal(size=(BATCH, 5, 6)).astype(np.float32)
SEEN = transformer.padding_mask(jnp.array([5, 3]), 5)


class Told(eqx.Module):
    """A feed-forward layer that needs to be told something."""

    ffn: FFN

    def __call__(self, x, factor, *, key=None):
        return factor * self.ffn(x), jnp.mean(x)


def make(key):
    """Makes a pair: rotations and a window; a position bias and a context."""
    a, b, c, d, e = jax.random.split(key, 5)
    grouped = functools.partial(Attention, EMBED, 4, kv_heads=2, head_dim=4)
    windowed = grouped(causal=True, window=3, rope=50.0, key=a)
    bias = transformer.RelativeBias(2, 8, 6, key=b)
    attention = Attention(EMBED, 2, causal=True, qk_norm=True, position_bias=bias, key=b)
    cross = Attention(EMBED, 3, context_embed=6, key=c)
    return Chain(
        Block(EMBED, attention=windowed, ffn=FFN(EMBED, 16, gated=True, key=d)),
        Block(EMBED, attention=attention, cross=cross, ffn=Told(FFN(EMBED, 16, key=e))),
    )


def filled(make):
    """Makes a model of arbitrary values: drawing the usual ones takes seconds to compile."""
    rng = np.random.default_rng(0)

    def value(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)

    return jax.tree.map(value, eqx.filter_eval_shape(make, jax.random.key(0)))


@eqx.filter_jit
def run(layers, x, padded):
    """Returns all at once, and in pieces of 4, 3 and four times 1 tokens from a cache."""
    factor = jnp.float32(0.5)
    view = View(context=jnp.asarray(CONTEXT), context_mask=SEEN)
    whole, _ = layers(x, view, factor)
    start = jnp.asarray(START)
    first, cache, _ = prefill(layers, padded[:, :4], CAPACITY, view, factor, start=start)
    second, cache, _ = decode(layers, padded[:, 4:7], cache, factor)

    def one(cache, token):
        y, cache, report = decode(layers, token[:, None], cache, factor)
        return cache, (y[:, 0], report)

    cache, (rest, reports) = jax.lax.scan(one, cache, padded[:, 7:].swapaxes(0, 1))
    pieces = jnp.concatenate([first, second, rest.swapaxes(0, 1)], 1)
    swapped = cache.rows(jnp.array([1, 0, 1]))
    branched, _, _ = decode(layers, x[jnp.array([1, 0, 1]), -1:], swapped, factor)
    plain, _, _ = decode(layers, x[:, -1:], cache, factor)
    beyond = [decode(layers, x[:, :n], cache, factor)[0] for n in (2, 3)]
    return whole, pieces, cache, reports, branched, plain, beyond


@pytest.fixture(scope="module")
def results():
    padded = np.stack([np.roll(row, shift, 0) for row, shift in zip(X, START, strict=True)])
    padded[0, : START[0]] = 1e3  # whatever stands in the padding
    layers = filled(lambda key: Stack(make, 3, key=key))
    return run(layers, jnp.asarray(X), jnp.asarray(padded))


def test_every_position_is_that_of_the_whole_sequence_behind_padding_and_past_a_window(results):
    whole, pieces, *_ = results
    for row, start in enumerate(START):
        real = pieces[row, start:]
        np.testing.assert_allclose(real, whole[row, : TOKENS - start], rtol=1e-5, atol=1e-5)


def test_the_cache_holds_layers_batch_capacity_heads_and_counts_places(results):
    cache = results[2]
    windowed, crossed = cache.layers
    assert windowed.own.k.shape == windowed.own.v.shape == (3, BATCH, CAPACITY, 2, 4)
    assert windowed.cross is None
    assert crossed.own.k.shape == (3, BATCH, CAPACITY, 2, 6)
    assert crossed.cross.k.shape == (3, BATCH, 5, 3, 4)
    assert cache.capacity == CAPACITY
    assert int(cache.length) == TOKENS
    np.testing.assert_array_equal(cache.positions(2), [[9, 10], [11, 12]])
    np.testing.assert_array_equal(crossed.own.k[:, :, TOKENS:], 0)


def test_reports_come_from_each_step_and_layer(results):
    dense, told = results[3]
    assert dense is None
    assert told.shape == (4, 3)


def test_chosen_rows_go_on_as_the_rows_that_they_were(results):
    *_, branched, plain, _ = results
    np.testing.assert_allclose(branched, plain[jnp.array([1, 0, 1])], rtol=1e-5, atol=1e-5)


def test_tokens_beyond_the_capacity_are_nan_and_those_up_to_it_are_not(results):
    last, over = results[-1]
    assert bool(jnp.isfinite(last).all())
    assert bool(jnp.isnan(over).all())


def test_a_prompt_longer_than_the_cache_is_an_error():
    layers = eqx.filter_eval_shape(lambda key: Stack(make, 1, key=key), jax.random.key(0))
    with pytest.raises(Error, match="a cache of capacity=3 does not hold 4 tokens"):
        prefill(layers, jnp.zeros((1, 4, EMBED)), 3)


def test_a_loop_of_decoding_steps_works_in_the_donated_cache():
    def layer(key):
        return Block(EMBED, attention=Attention(EMBED, 2, causal=True, key=key))

    layers = eqx.filter_eval_shape(lambda key: Stack(layer, 4, key=key), jax.random.key(0))
    arrays, static = eqx.partition(layers, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def prompt(arrays, x):
        return prefill(eqx.combine(arrays, static), x, 512)[1]

    def generate(cache, arrays, x):
        def more(state):
            return state[1].length < 512

        def step(state):
            return decode(eqx.combine(arrays, static), *state)[:2]

        return jax.lax.while_loop(more, step, (x, cache))

    token = jax.ShapeDtypeStruct((BATCH, 1, EMBED), jnp.float32)
    cache = jax.eval_shape(prompt, arrays, token)
    compiled = jax.jit(generate, donate_argnums=0).lower(cache, arrays, token).compile()
    used, size = compiled.memory_analysis(), 2 * 4 * BATCH * 512 * EMBED * 4
    assert used is not None
    assert used.alias_size_in_bytes >= size
    # Besides the cache itself: a layer's keys and values, and copies of them in another order.
    assert used.temp_size_in_bytes < 0.8 * size
