import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from chapbook.core.errors import Error
from chapbook.label_dp.discrete_laplace import (
    discrete_laplace,
    exponential_coins,
    geometric,
    rational_rate,
)
from chapbook.label_dp.entropy import Entropy


def pmf(rate, x):
    q = math.exp(-rate)
    return (1 - q) / (1 + q) * q ** np.abs(x)


@pytest.mark.parametrize("rate", [0.025, Fraction(1, 3), 1.0, 2.5, math.pi])
def test_samples_follow_the_probability_mass(rate):
    count = 60_000
    draws = discrete_laplace(rate, count, entropy=Entropy(seed=9))
    # Cells reach as far as twenty draws are expected; the tails share the outermost.
    reach = max(1, int(math.log(count * float(pmf(rate, 0)) / 20) / rate))
    cells = np.bincount(np.clip(draws, -reach, reach) + reach, minlength=2 * reach + 1)
    expected = pmf(rate, np.arange(-reach, reach + 1))
    expected[[0, -1]] = (1 - expected[1:-1].sum()) / 2
    assert stats.chisquare(cells, expected * count).pvalue > 1e-4
    variance = 2 * math.exp(-rate) / (1 - math.exp(-rate)) ** 2
    assert draws.std() == pytest.approx(math.sqrt(variance), rel=0.03)


def test_the_noise_of_a_cluster_histogram_has_the_stated_size():
    draws = discrete_laplace(0.05 / 2, 40_000, entropy=Entropy(seed=1))
    assert draws.std() == pytest.approx(56.6, rel=0.03)


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 1), (1, 1), (1, 3), (5, 7)])
def test_coins_have_an_exponential_bias(numerator, denominator):
    tosses = exponential_coins(np.full(50_000, numerator), denominator, Entropy(seed=4))
    assert tosses.mean() == pytest.approx(math.exp(-numerator / denominator), abs=0.01)


def test_the_geometric_law_has_its_mean_and_no_memory():
    draws = geometric(Fraction(3, 10), 80_000, Entropy(seed=2))
    q = math.exp(-0.3)
    assert draws.mean() == pytest.approx(q / (1 - q), rel=0.02)
    assert (draws >= 5).mean() == pytest.approx(q**5, abs=0.01)
    assert (draws >= 9).sum() / (draws >= 4).sum() == pytest.approx(q**5, abs=0.015)


@given(st.floats(2.0**-40, 1e9))
def test_the_rate_is_only_ever_rounded_down_and_hardly(rate):
    rounded = rational_rate(rate)
    assert 0 < rounded <= Fraction(rate)
    assert rounded.denominator <= 1 << 48
    if 1e-5 < rate < 4096:
        assert float(rounded) == pytest.approx(rate, rel=2.0**-29)


def test_a_seed_repeats_the_noise_and_shapes_are_kept():
    first, again = (discrete_laplace(0.5, (3, 4), entropy=Entropy(seed=1)) for _ in range(2))
    assert first.shape == (3, 4)
    assert np.array_equal(first, again)
    assert not np.array_equal(discrete_laplace(0.01, 50), discrete_laplace(0.01, 50))


@pytest.mark.parametrize("rate", [0, -1.0, math.inf, math.nan, 2.0**-41])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(Error, match="noise rate"):
        discrete_laplace(rate, 3)
