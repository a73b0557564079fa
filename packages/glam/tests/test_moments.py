import math
import statistics

import numpy as np
import pytest

from chapbook.core.errors import Error
from chapbook.glam import Moments, merge, moments, textbook_variance


def test_one_pass_agrees_with_the_exact_variance():
    values = np.random.default_rng(0).normal(3, 2, size=200_000)
    found = moments(values)
    assert found.count == len(values)
    assert found.mean == pytest.approx(math.fsum(values) / len(values), rel=1e-13)
    assert found.variance == pytest.approx(values.var(ddof=1), rel=1e-12)


@pytest.mark.parametrize("cut", [0, 1, 17, 99, 100])
def test_parts_merge_to_the_whole_wherever_they_are_cut(cut):
    values = np.random.default_rng(1).exponential(size=100)
    whole = merge(moments(values[:cut]), moments(values[cut:]))
    assert whole.count == 100
    assert whole.mean == pytest.approx(statistics.fmean(values), rel=1e-13)
    assert whole.variance == pytest.approx(statistics.variance(values.tolist()), rel=1e-12)


def test_a_large_mean_costs_the_textbook_its_digits_and_not_us():
    values = 1e8 + np.random.default_rng(2).normal(size=10_000)
    exact = statistics.variance(values.tolist())
    assert moments(values).variance == pytest.approx(exact, rel=1e-9)
    assert textbook_variance(values) != pytest.approx(exact, rel=1e-6)


def test_fewer_than_two_values_have_no_variance():
    assert moments(np.empty(0)) == Moments()
    assert math.isnan(moments(np.ones(1)).variance)


def test_a_value_that_is_not_finite_is_named():
    with pytest.raises(Error, match="value 2 is not finite"):
        moments(np.array([1.0, 2.0, np.nan]))
