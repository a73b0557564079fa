"""The LSTM, and the positions that stand in for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from chapbook.tft_forecast.recurrence import LSTM, sinusoids

KEY = jax.random.key(0)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def draw(*shape, seed=2):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def reference(lstm, x, h, c):
    """Goes step by step, gate by gate."""
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    width, outputs = h.shape[1], []
    kernel, recurrent, bias = map(np.array, (lstm.kernel, lstm.recurrent, lstm.bias))
    for t in range(x.shape[1]):
        gate = [
            x[:, t] @ kernel[:, s] + h @ recurrent[:, s] + bias[s]
            for s in (slice(g * width, (g + 1) * width) for g in range(4))
        ]
        c = sigmoid(gate[1]) * c + sigmoid(gate[0]) * np.tanh(gate[2])
        h = sigmoid(gate[3]) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, 1), h, c


@pytest.mark.parametrize("unroll", [1, 4])
def test_the_lstm_equals_its_equations(double, unroll):
    lstm, x = LSTM(3, 5, unroll=unroll, key=KEY), draw(2, 7, 3)
    h, c = draw(2, 5), draw(2, 5, seed=3)
    found, (last_h, last_c) = lstm(x, (h, c))
    outputs, expected_h, expected_c = reference(lstm, np.array(x), np.array(h), np.array(c))
    np.testing.assert_allclose(found, outputs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(last_h, expected_h, rtol=0, atol=1e-10)
    np.testing.assert_allclose(last_c, expected_c, rtol=0, atol=1e-10)


def test_without_a_state_it_starts_from_zeros():
    lstm, x, zeros = LSTM(3, 5, key=KEY), draw(2, 7, 3), jnp.zeros((2, 5))
    np.testing.assert_array_equal(lstm(x)[0], lstm(x, (zeros, zeros))[0])


def test_a_sequence_in_two_parts_is_the_sequence():
    lstm, x = LSTM(3, 5, key=KEY), draw(2, 7, 3)
    first, state = lstm(x[:, :4])
    second, _ = lstm(x[:, 4:], state)
    both = jnp.concatenate([first, second], 1)
    np.testing.assert_allclose(both, lstm(x)[0], rtol=1e-5, atol=1e-6)


def test_initial_values_are_those_of_keras():
    lstm = LSTM(60, 50, key=KEY)
    np.testing.assert_allclose(lstm.recurrent @ lstm.recurrent.T, np.eye(50), atol=1e-5)
    limit = np.sqrt(6 / 260)
    assert 0.99 * limit < float(jnp.max(jnp.abs(lstm.kernel))) <= limit
    expected = np.repeat([0.0, 1.0, 0.0, 0.0], 50)  # input, forget, cell, output
    np.testing.assert_array_equal(lstm.bias, expected)


def test_gradients_agree_with_finite_differences(double):
    lstm, x, h, c = LSTM(3, 4, key=KEY), draw(2, 5, 3), draw(2, 4), draw(2, 4, seed=3)
    run = jax.jit(lambda lstm, x, h, c: lstm(x, (h, c)))
    check_grads(run, (lstm, x, h, c), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_sinusoids_are_sines_then_cosines():
    found = sinusoids(5, 6)
    for p in range(5):
        angles = [p / 10000 ** (2 * i / 6) for i in range(3)]
        np.testing.assert_allclose(found[p], [*np.sin(angles), *np.cos(angles)], atol=1e-6)
    assert sinusoids(5, 7).shape == (5, 7)
