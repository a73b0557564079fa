"""Windows gathered on the device against a slow loop over cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chapbook.tft_forecast import windows
from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.inputs import Group, Layout
from chapbook.tft_forecast.panels import Values

LAYOUT = Layout(
    Group(("size",), ("kind",), (3,)),
    Group(("y", "heat"), ("sky",), (4,)),
    Group(("price",), ("day",), (8,)),
)


def ragged(rng, entities, steps):
    """Random values of a panel, a third of the cells missing."""

    def values(reals, sizes, shape):
        real = rng.normal(size=(*shape, reals))
        real[rng.random(real.shape) < 1 / 3] = np.nan
        codes = np.stack([rng.integers(-1, n, shape) for n in sizes], -1)
        return Values(real, codes.astype(np.int32))

    whole = (entities, steps)
    static, seen, known = (
        values(1, (3,), (entities,)),
        values(2, (4,), whole),
        values(1, (8,), whole),
    )
    return static, seen, known, rng.random(whole) < 0.7, rng.random(whole)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6), horizon=st.integers(1, 4))
def test_windows_are_those_of_a_slow_loop(seed, k, horizon):
    rng = np.random.default_rng(seed)
    static, seen, known, present, weight = ragged(rng, 3, 9)
    config = TFTConfig(encoder=k, horizon=horizon, scaling="none")
    target = rng.normal(size=(3, 1)), rng.uniform(1, 2, (3, 1))
    store = windows.store(static, seen, known, present, target, config, weight)
    entity = rng.integers(0, 3, 12).astype(np.int32)
    origin = rng.integers(-1, 9, 12).astype(np.int32)
    sample = jax.jit(windows.gather, static_argnums=(1, 2))(store, LAYOUT, config, entity, origin)

    def cell(values, e, t):
        if not 0 <= t < 9:
            return np.full(values.real.shape[-1], np.nan), np.full(1, -1)
        return values.real[e, t], values.categorical[e, t]

    for row, (e, o) in enumerate(zip(entity, origin, strict=True)):
        past = [(cell(seen, e, t), cell(known, e, t)) for t in range(o - k + 1, o + 1)]
        future = [cell(known, e, t) for t in range(o + 1, o + 1 + horizon)]
        reals = np.array([np.concatenate([s[0], n[0]]) for s, n in past])
        codes = np.array([np.concatenate([s[1], n[1]]) for s, n in past])
        missing = np.concatenate([np.isnan(reals), codes < 0], -1)
        found = sample.windows.past
        np.testing.assert_allclose(found.real[row], np.nan_to_num(reals), rtol=1e-6)
        np.testing.assert_array_equal(found.categorical[row], np.maximum(codes, 0))
        np.testing.assert_array_equal(found.missing[row], missing)
        reals = np.array([f[0] for f in future])
        np.testing.assert_allclose(sample.windows.future.real[row], np.nan_to_num(reals), 1e-6)
        there = [0 <= t < 9 and present[e, t] for t in range(o - k + 1, o + 1)]
        np.testing.assert_array_equal(sample.windows.mask[row], there + [True] * horizon)
        y = np.array([cell(seen, e, t)[0][:1] for t in range(o + 1, o + 1 + horizon)])
        np.testing.assert_allclose(sample.target[row], np.nan_to_num(y), rtol=1e-6)
        w = [[weight[e, t] if 0 <= t < 9 else 0] for t in range(o + 1, o + 1 + horizon)]
        np.testing.assert_allclose(sample.weight[row], np.where(np.isnan(y), 0, w), rtol=1e-6)
        np.testing.assert_allclose(sample.location[row], target[0][e], rtol=1e-6)


def test_window_scaling_uses_the_past_half_alone():
    rng = np.random.default_rng(0)
    static, seen, known, present, _ = ragged(rng, 2, 20)
    config = TFTConfig(encoder=8, horizon=3, scaling="window")
    target = np.zeros((2, 1)), np.ones((2, 1))
    store = windows.store(static, seen, known, present, target, config)
    at = jnp.array([0]), jnp.array([11])
    sample = windows.gather(store, LAYOUT, config, *at)
    past = seen.real[0, 4:12, 0]
    mean, deviation = np.nanmean(past), np.nanstd(past)
    np.testing.assert_allclose(sample.location, [[mean]], rtol=1e-5)
    np.testing.assert_allclose(sample.scale, [[deviation]], rtol=1e-5)
    scaled = np.nan_to_num((past - mean) / deviation)
    np.testing.assert_allclose(sample.windows.past.real[0, :, 0], scaled, rtol=1e-4, atol=1e-6)
    ahead = np.nan_to_num((seen.real[0, 12:15, :1] - mean) / deviation)
    np.testing.assert_allclose(sample.target[0], ahead, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("values", [[5.0] * 6, [np.nan] * 6, [1e9] * 6, [0.0, np.nan] * 3])
def test_a_constant_or_empty_past_has_scale_one(values):
    x = np.array(values)[None, :, None]
    _, scale = windows.moments(jnp.asarray(np.nan_to_num(x)), jnp.asarray(np.isnan(x)))
    assert scale.tolist() == [[1.0]]


def test_without_known_columns_the_step_itself_is_known():
    layout = Layout(Group(), Group(("y",)), Group((windows.RELATIVE_STEP,)))
    config = TFTConfig(encoder=4, horizon=2, scaling="none")
    none = Values(np.empty((1, 5, 0)), np.empty((1, 5, 0), np.int32))
    seen = Values(np.arange(5.0).reshape(1, 5, 1), np.empty((1, 5, 0), np.int32))
    static = Values(np.empty((1, 0)), np.empty((1, 0), np.int32))
    target = np.zeros((1, 1)), np.ones((1, 1))
    store = windows.store(static, seen, none, np.ones((1, 5), bool), target, config)
    at = jnp.array([0]), jnp.array([4])
    sample = windows.gather(store, layout, config, *at)
    np.testing.assert_allclose(sample.windows.past.real[0, :, 1], [-0.75, -0.5, -0.25, 0])
    np.testing.assert_allclose(sample.windows.future.real[0, :, 0], [0.25, 0.5])
    assert not sample.windows.future.missing.any()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    first=st.integers(0, 6),
    stop=st.integers(4, 14),
    history=st.integers(0, 3),
)
def test_listed_windows_are_those_of_a_slow_loop(seed, first, stop, history):
    rng = np.random.default_rng(seed)
    seen = rng.random((3, 12)) < 0.4
    config = TFTConfig(encoder=4, horizon=3)
    wanted = [
        (e, o)
        for e in range(3)
        for o in range(12)
        if o + 1 >= first
        and o + 3 < min(stop, 12)
        and seen[e, max(o - 3, 0) : o + 1].sum() >= history
        and seen[e, o + 1 : o + 4].any()
    ]
    found = windows.index(seen, config, first=first, stop=stop, min_history=history)
    assert list(zip(*(x.tolist() for x in found), strict=True)) == wanted
