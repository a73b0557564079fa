import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chapbook.core.errors import Error
from chapbook.label_dp.exact import check_epsilon, exp_lower_bound, response_weights

EPSILONS = st.one_of(
    st.sampled_from([0.0, 5e-324, 1e-300, 1e-17, 1e-6, 1.0, 20.0, 50.0, 63.9, 1e6]),
    st.floats(0, 80),
)


@given(st.one_of(st.sampled_from([0.0, 5e-324, 1e-6, 1.0, 20.0, 64.0]), st.floats(0, 64)))
@settings(deadline=None)
def test_the_bound_lies_below_the_exponential_by_less_than_two_to_the_minus_150(x):
    bound = exp_lower_bound(x)
    with localcontext() as context:
        context.prec = 120
        exact = Decimal(x).exp()
        ours = Decimal(bound.numerator) / Decimal(bound.denominator)
        assert Decimal(0) <= exact - ours + exact.scaleb(-110) <= exact * Decimal(2) ** -150


def test_beyond_sixty_four_the_bound_stays_below():
    assert exp_lower_bound(1e9) == exp_lower_bound(64.0) == exp_lower_bound(Fraction(64))


def test_a_negative_exponent_is_refused():
    with pytest.raises(ValueError, match="0 or more"):
        exp_lower_bound(-1e-9)


@given(EPSILONS, st.one_of(st.integers(1, 40), st.integers(1, 1 << 31)))
@settings(deadline=None)
def test_weights_fill_the_range_and_never_exceed_the_ratio(epsilon, k):
    total, keep, other, uniform = response_weights(epsilon, k)
    assert keep + (k - 1) * other == total == k * uniform <= 1 << 62
    assert 1 <= other <= uniform <= keep
    if k > 1:
        with localcontext() as context:
            context.prec = 120
            exact = Decimal(min(epsilon, 64.0)).exp()
        assert Decimal(keep) / Decimal(other) <= exact


@given(st.floats(1e-3, 30), st.integers(2, 1000))
@settings(deadline=None)
def test_rounding_costs_next_to_no_accuracy(epsilon, k):
    total, keep, _, _ = response_weights(epsilon, k)
    ideal = math.exp(epsilon) / (math.exp(epsilon) + k - 1)
    assert keep / total == pytest.approx(ideal, rel=1e-12)


def test_an_infinite_epsilon_keeps_always_and_zero_never_tells():
    total, keep, other, _ = response_weights(math.inf, 7)
    assert keep == total
    assert other == 0
    _, keep, other, uniform = response_weights(0.0, 7)
    assert keep == other == uniform


@pytest.mark.parametrize("epsilon", [-1e-9, math.nan, -math.inf])
def test_a_budget_that_is_none_is_refused(epsilon):
    with pytest.raises(Error, match="must be 0 or more"):
        check_epsilon(epsilon)
