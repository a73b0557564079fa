"""Rotations, tables and buckets against closed forms and published constants."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core.errors import Error
from chapbook.core.transformer import RelativeBias, relative_buckets, rope, sincos_2d


def test_rope_multiplies_complex_numbers_by_a_phase():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([0, 1, 7, 100, 3])
    phase = np.exp(1j * positions[:, None] * 500.0 ** (-2 * np.arange(4) / 8))
    turned = (x[..., :4] + 1j * x[..., 4:]) * phase[:, None]
    ours = rope(jnp.asarray(x), jnp.asarray(positions), 500.0)
    expected = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_products_of_rotated_vectors_depend_on_distance_alone():
    q, k = np.random.default_rng(1).normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

    def product(i, j):
        at = rope(jnp.asarray(q), jnp.array([i])), rope(jnp.asarray(k), jnp.array([j]))
        return float(jnp.sum(at[0] * at[1]))

    assert product(3, 8) == pytest.approx(product(103, 108), abs=1e-4)
    assert product(3, 8) != pytest.approx(product(3, 9), abs=1e-2)


def test_the_2d_table_is_that_of_moco_v3():
    ours = sincos_2d(3, 4, 16)
    assert ours.shape == (12, 16)
    for row in range(3):
        for column in range(4):
            angles = [10_000 ** (-i / 3) for i in range(4)]
            expected = [
                *(math.sin(column * w) for w in angles),
                *(math.cos(column * w) for w in angles),
                *(math.sin(row * w) for w in angles),
                *(math.cos(row * w) for w in angles),
            ]
            np.testing.assert_allclose(ours[row * 4 + column], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("embed", [4, 10])
def test_the_2d_table_needs_two_frequencies_for_each_of_four_parts(embed):
    with pytest.raises(Error, match=f"embed={embed} is not a multiple of 4"):
        sincos_2d(2, 2, embed)


def exact_bucket(distance, count, max_distance):
    """Returns T5's bucket in whole numbers: `(d/e)^m >= (max/e)^k` has no logarithm to round."""
    exact = count // 2
    if distance < exact:
        return distance
    wide = count - exact
    reached = (k for k in range(wide) if distance**wide * exact**k >= max_distance**k * exact**wide)
    return exact + max(reached)


@pytest.mark.parametrize(("count", "max_distance"), [(32, 128), (16, 64), (8, 20), (32, 1000)])
def test_buckets_are_t5s_to_the_last_border(count, max_distance):
    ahead = np.arange(-2 * max_distance, 2 * max_distance)
    causal = [exact_bucket(max(-a, 0), count, max_distance) for a in ahead.tolist()]
    ours = relative_buckets(jnp.asarray(ahead), count, max_distance)
    np.testing.assert_array_equal(ours, causal)
    half = count // 2
    both = [exact_bucket(abs(a), half, max_distance) + half * (a > 0) for a in ahead.tolist()]
    ours = relative_buckets(jnp.asarray(ahead), count, max_distance, bidirectional=True)
    np.testing.assert_array_equal(ours, both)


def test_borders_of_t5s_own_buckets():
    # Where T5's buckets (32, up to 128) begin behind a query: encoder and decoder.
    decoder = [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    encoder = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
    for begins, bidirectional in ((decoder, False), (encoder, True)):
        buckets = relative_buckets(-jnp.arange(200), bidirectional=bidirectional)
        first = [int(np.argmax(np.asarray(buckets) == b)) for b in range(len(begins))]
        assert first == begins


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_bias_is_the_tables_entry_of_each_pairs_bucket(bidirectional):
    bias = RelativeBias(3, 8, 10, bidirectional=bidirectional, key=jax.random.key(0))
    for tokens, keys, first in ((5, 5, 0), (1, 9, 6), (3, 9, 4)):
        ahead = np.arange(keys) - (first + np.arange(tokens))[:, None]
        buckets = relative_buckets(jnp.asarray(ahead), 8, 10, bidirectional=bidirectional)
        expected = np.asarray(bias.table)[:, np.asarray(buckets)]
        np.testing.assert_array_equal(bias(tokens, keys, jnp.int32(first))[0], expected)
    weights = np.random.default_rng(0).normal(size=(1, 3, 5, 5))
    grads = jax.grad(lambda b: jnp.sum(b(5, 5) * weights))(bias)
    ahead = np.arange(5) - np.arange(5)[:, None]
    buckets = relative_buckets(jnp.asarray(ahead), 8, 10, bidirectional=bidirectional)
    expected = [[weights[0, h][np.asarray(buckets) == b].sum() for b in range(8)] for h in range(3)]
    np.testing.assert_allclose(grads.table, expected, rtol=1e-5, atol=1e-6)
