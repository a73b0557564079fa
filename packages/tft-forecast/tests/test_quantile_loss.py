"""The pinball loss, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.tft_forecast.quantile_loss import crossing_rate, pinball, quantile_loss

LEVELS = (0.1, 0.5, 0.9)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def everywhere(target):
    return jnp.ones(target.shape, bool)


def test_a_forecast_that_is_short_costs_q_and_one_that_is_over_costs_the_rest():
    forecast = jnp.array([[1.0, 1.0, 1.0], [5.0, 5.0, 5.0]])
    found = pinball(forecast, jnp.array([3.0, 3.0]), LEVELS)
    np.testing.assert_allclose(found, [[0.2, 1.0, 1.8], [1.8, 1.0, 0.2]], rtol=1e-6)


def test_a_perfect_forecast_costs_nothing():
    target = draw(4, 3, 2)
    forecast = jnp.repeat(target[..., None], 3, axis=-1)
    assert quantile_loss(forecast, target, LEVELS, everywhere(target)) == 0


def test_the_median_costs_half_the_mean_absolute_error():
    forecast, target = draw(4, 3, 2, 1), draw(4, 3, 2, seed=1)
    found = quantile_loss(forecast, target, (0.5,), everywhere(target))
    np.testing.assert_allclose(found, np.mean(np.abs(target - forecast[..., 0])) / 2, rtol=1e-6)


def test_quantiles_are_summed_and_the_rest_is_averaged():
    forecast, target = draw(4, 3, 2, 3), draw(4, 3, 2, seed=1)
    found = quantile_loss(forecast, target, LEVELS, everywhere(target))
    total = 0.0
    for place in np.ndindex(4, 3, 2):
        for level, f in zip(LEVELS, forecast[place], strict=True):
            y = target[place]
            total += level * max(y - f, 0) + (1 - level) * max(f - y, 0)
    np.testing.assert_allclose(found, total / 24, rtol=1e-5)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_quantile_of_a_sample_costs_least(level):
    sample = draw(999)
    candidates = jnp.linspace(-3, 3, 601)
    forecasts = jnp.broadcast_to(candidates[:, None, None], (601, 999, 1))
    costs = jnp.mean(pinball(forecasts, jnp.broadcast_to(sample, (601, 999)), (level,)), (1, 2))
    best = float(candidates[int(np.argmin(costs))])
    assert abs(best - float(jnp.quantile(sample, level))) < 0.03


def test_targets_left_out_have_no_gradient_even_if_they_are_nan():
    forecast, weight = draw(4, 3, 2, 3), np.ones((4, 3, 2), bool)
    weight[1] = weight[2, 0, 1] = False
    target = jnp.where(weight, draw(4, 3, 2, seed=1), jnp.nan)
    loss, gradient = jax.value_and_grad(quantile_loss)(forecast, target, LEVELS, jnp.array(weight))
    assert np.isfinite(loss)
    np.testing.assert_array_equal(gradient[~weight], 0)
    assert np.all(gradient[weight] != 0)
    kept = float(np.mean(np.sum(pinball(forecast[weight], target[weight], LEVELS), -1)))
    np.testing.assert_allclose(loss, kept, rtol=1e-6)


def test_a_batch_without_targets_costs_nothing():
    nothing = jnp.zeros((2, 3, 1), bool)
    forecast, target = draw(2, 3, 1, 3), jnp.full((2, 3, 1), jnp.nan)
    loss, gradient = jax.value_and_grad(quantile_loss)(forecast, target, LEVELS, nothing)
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.zeros(forecast.shape))


def test_a_weight_of_two_counts_twice():
    forecast, target = draw(2, 1, 1, 3), draw(2, 1, 1, seed=1)
    twice = quantile_loss(forecast, target, LEVELS, jnp.array([[[2.0]], [[1.0]]]))
    repeated = quantile_loss(
        forecast[jnp.array([0, 0, 1])],
        target[jnp.array([0, 0, 1])],
        LEVELS,
        jnp.ones((3, 1, 1)),
    )
    np.testing.assert_allclose(twice, repeated, rtol=1e-6)


def test_crossings_are_counted_by_neighbours():
    forecast = jnp.array([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    assert crossing_rate(forecast[:, None, None]) == 3 / 8
    assert crossing_rate(forecast[:, None, None, :1]) == 0
