import math

import numpy as np
import pytest
from scipy import stats

from chapbook.core.errors import Error
from chapbook.label_dp import Entropy, RRWithPrior, audit_epsilon
from chapbook.label_dp.audit import clopper_pearson

PRIOR = np.array([0.5, 0.3, 0.15, 0.05])


def sampler(mechanism, entropy):
    def sample(label, trials):
        prior = np.tile(PRIOR, (trials, 1))
        return mechanism.privatize(np.full(trials, label), prior, entropy=entropy).labels

    return sample


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_the_bound_is_tight_for_the_real_mechanism_and_below_its_budget(epsilon):
    found = audit_epsilon(
        sampler(RRWithPrior(4, epsilon), Entropy(seed=5)), labels=(0, 1), trials=40_000
    )
    if RRWithPrior(4, epsilon).choose_k(PRIOR[None])[0] == 1:
        assert found.epsilon_lower_bound == 0
    else:
        assert 0.85 * epsilon < found.epsilon_lower_bound <= epsilon
    assert not found.contradicts(epsilon)


def test_a_mechanism_that_loses_more_than_it_claims_is_caught():
    found = audit_epsilon(sampler(RRWithPrior(4, 1.5), Entropy(seed=5)), trials=40_000)
    assert found.contradicts(1.0)


def test_an_answer_that_only_one_label_gives_is_caught():
    found = audit_epsilon(lambda label, trials: np.full(trials, label), trials=10_000)
    assert found.epsilon_lower_bound > 6


def test_a_bound_is_wrong_no_more_often_than_stated():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        found = audit_epsilon(
            lambda label, trials: (rng.random(trials) < (0.6 if label else 0.4)).astype(int),
            trials=400,
            confidence=0.9,
        )
        wrong += found.contradicts(math.log(0.6 / 0.4))
    assert wrong <= stats.binom.ppf(0.9999, 300, 0.1)


def test_the_interval_is_clopper_and_pearsons():
    for successes, trials in [(0, 10), (3, 10), (10, 10), (50, 1000)]:
        reference = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
        low, high = clopper_pearson(successes, trials, 0.95)
        assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_settings_that_show_nothing_are_refused():
    with pytest.raises(Error, match="trials"):
        audit_epsilon(lambda label, trials: np.zeros(trials, int), trials=1)
    with pytest.raises(Error, match="confidence"):
        audit_epsilon(lambda label, trials: np.zeros(trials, int), confidence=1.0)
