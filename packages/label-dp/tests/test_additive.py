import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from chapbook.core.errors import Error
from chapbook.label_dp import (
    Entropy,
    ExponentialMechanism,
    LaplaceMechanism,
    StaircaseMechanism,
)

MECHANISMS = [LaplaceMechanism, StaircaseMechanism, ExponentialMechanism]


@pytest.mark.parametrize("kind", MECHANISMS)
@pytest.mark.parametrize("epsilon", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("levels", [2, 3, 17])
def test_samples_follow_the_matrix(kind, epsilon, levels):
    mechanism, count = kind(-1.0, 3.0, epsilon, levels), 20_000
    matrix = mechanism.transition_matrix()
    assert np.allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-12)
    for point in {0, levels // 2}:
        out = mechanism.privatize(
            np.full(count, mechanism.grid[point]), entropy=Entropy(seed=point + 1)
        )
        answers = np.searchsorted(mechanism.grid, out.values)
        observed, expected = np.bincount(answers, minlength=levels), matrix[point] * count
        often = expected > 8
        rest = [observed[~often].sum()], [expected[~often].sum()]
        if rest[1][0] > 8:
            observed = np.append(observed[often], rest[0])
            expected = np.append(expected[often], rest[1])
        else:
            observed, expected = observed[often], expected[often]
        expected = expected * observed.sum() / expected.sum()
        assert stats.chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.parametrize("kind", MECHANISMS)
@pytest.mark.parametrize("epsilon", [0.05, 1.0, 7.3])
@pytest.mark.parametrize("levels", [2, 33])
def test_no_answer_tells_more_than_epsilon(kind, epsilon, levels):
    mechanism = kind(0.0, 1.0, epsilon, levels)
    matrix = mechanism.transition_matrix()
    spent = math.log((matrix.max(axis=0) / matrix.min(axis=0)).max())
    assert spent <= float(mechanism.exact_epsilon) + 1e-9
    assert mechanism.exact_epsilon <= Fraction(epsilon)
    assert mechanism.verify()


@pytest.mark.parametrize("kind", [LaplaceMechanism, StaircaseMechanism])
def test_the_budget_is_spent(kind):
    matrix = kind(0.0, 1.0, 1.0, 33).transition_matrix()
    spent = math.log((matrix.max(axis=0) / matrix.min(axis=0)).max())
    assert spent == pytest.approx(1.0, rel=1e-6)


def test_many_levels_approach_the_laplace_distribution():
    mechanism = LaplaceMechanism(0.0, 1.0, 8.0, 1 << 16)
    out = mechanism.privatize(np.full(50_000, 0.5), entropy=Entropy(seed=3)).values
    inside = np.abs(out - 0.5) < 0.5
    truth = stats.truncexpon(4.0, scale=1 / 8)
    assert stats.kstest(np.abs(out[inside] - 0.5), truth.cdf).pvalue > 1e-4


def test_staircase_beats_laplace_in_mean_error_at_a_large_budget():
    y = np.linspace(0, 1, 65)
    errors = [
        (kind(0.0, 1.0, 5.0, 65).transition_matrix() * np.abs(y[None] - y[:, None])).sum(axis=1)
        for kind in (StaircaseMechanism, LaplaceMechanism)
    ]
    assert errors[0].mean() < 0.8 * errors[1].mean()


@pytest.mark.parametrize("kind", MECHANISMS)
def test_bad_settings_and_values_are_named(kind):
    with pytest.raises(Error, match="finite and ascending"):
        kind(1.0, 1.0, 1.0)
    with pytest.raises(Error, match="above 0 and finite"):
        kind(0.0, 1.0, 0.0)
    with pytest.raises(Error, match="levels"):
        kind(0.0, 1.0, 1.0, 1)
    with pytest.raises(Error, match="row 2 is missing"):
        kind(0.0, 1.0, 1.0).privatize(np.array([0.1, 0.2, np.nan]))
    out = kind(0.0, 1.0, 1.0).privatize(np.array([-5.0, 7.0]))
    assert ((out.values >= 0) & (out.values <= 1)).all()
    assert not out.seeded
