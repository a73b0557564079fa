import math
from dataclasses import replace

import numpy as np
import pytest

from chapbook.core.errors import Error
from chapbook.label_dp import (
    Entropy,
    RandomizedResponse,
    RRWithPrior,
    debiased_accuracy,
    debiased_confusion,
    debiased_counts,
    epsilon_for_accuracy,
    plan,
)

WORKED = np.array([[0.5, 0.3, 0.15, 0.05]])


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 4000, p=[0.6, 0.3, 0.1])
    predictions = np.where(rng.random(4000) < 0.8, labels, (labels + 1) % 3)
    return labels, predictions


def repeated(labels, epsilon, estimate, runs=300):
    mechanism = RandomizedResponse(3, epsilon)
    found = [
        estimate(mechanism.privatize(labels, entropy=Entropy(seed=run))) for run in range(runs)
    ]
    return np.array([f.value for f in found]), np.array([f.standard_error for f in found])


@pytest.mark.parametrize("mixed", [False, True])
def test_estimates_are_unbiased_and_their_errors_are_right(truth, mixed):
    labels, predictions = truth
    epsilon = np.where(np.arange(4000) % 2 == 0, 0.7, 2.0) if mixed else 1.0
    confusion = np.zeros((3, 3))
    np.add.at(confusion, (labels, predictions), 1)
    cases = [
        (lambda out: debiased_counts(out), np.bincount(labels)),
        (lambda out: debiased_confusion(predictions, out), confusion),
        (lambda out: debiased_accuracy(predictions, out), (labels == predictions).mean()),
    ]
    for estimate, exact in cases:
        values, errors = repeated(labels, epsilon, estimate)
        spread = values.std(axis=0, ddof=1)
        assert (np.abs(values.mean(axis=0) - exact) < 4.5 * spread / math.sqrt(len(values))).all()
        assert np.allclose(errors.mean(axis=0), spread, rtol=0.2)


def test_without_noise_the_estimates_are_the_counts(truth):
    labels, predictions = truth
    private = RandomizedResponse(3, math.inf).privatize(labels)
    assert np.array_equal(debiased_counts(private).value, np.bincount(labels))
    assert debiased_accuracy(predictions, private).value == (labels == predictions).mean()
    assert not debiased_counts(private).standard_error.any()


def test_counts_add_up_to_the_records(truth):
    private = RandomizedResponse(3, 0.5).privatize(truth[0])
    assert debiased_counts(private).value.sum() == pytest.approx(4000)
    confusion = debiased_confusion(truth[1], private).value
    assert np.allclose(confusion.sum(axis=1), debiased_counts(private).value)


@pytest.mark.wrong_types
def test_labels_that_cannot_be_debiased_are_refused(truth):
    labels, predictions = truth
    narrow = RRWithPrior(3, 1.0).privatize(labels, np.tile([0.9, 0.05, 0.05], (4000, 1)))
    with pytest.raises(Error, match="top classes only"):
        debiased_accuracy(predictions, narrow)
    silent = RandomizedResponse(3, 0.0).privatize(labels)
    with pytest.raises(Error, match="no information"):
        debiased_counts(silent)
    private = RandomizedResponse(3, 1.0).privatize(labels)
    with pytest.raises(Error, match="4000 labels"):
        debiased_accuracy(predictions[:10], private)
    with pytest.raises(Error, match="0 to 2"):
        debiased_confusion(predictions + 1, private)
    one = replace(private, labels=private.labels[:1], k=private.k[:1])
    with pytest.raises(Error, match="1 labels do not"):
        debiased_accuracy(predictions[:1], one)


def test_a_plan_states_the_worked_numbers():
    rows = plan(WORKED, [0.0, 1.0, math.inf])
    assert rows[0].expected_accuracy == 0.5
    assert rows[0].without_prior == 0.25
    assert rows[1].expected_accuracy == pytest.approx(0.58485, abs=5e-6)
    assert rows[1].mean_k == 2
    assert rows[1].without_prior == pytest.approx(0.47537, abs=5e-6)
    assert rows[1].gain == pytest.approx(0.58485 - 0.47537, abs=1e-5)
    assert rows[2].expected_accuracy == rows[2].without_prior == 1


def test_the_planned_accuracy_is_the_drawn_one():
    rng = np.random.default_rng(0)
    prior = rng.dirichlet(np.ones(6), 60_000)
    labels = (rng.random((60_000, 1)) > prior.cumsum(axis=1)).sum(axis=1)
    out = RRWithPrior(6, 1.2).privatize(labels, prior, entropy=Entropy(seed=1))
    planned = plan(prior, [1.2])[0].expected_accuracy
    assert (out.labels == labels).mean() == pytest.approx(planned, abs=0.008)


@pytest.mark.parametrize("target", [0.55, 0.9, 0.999])
def test_the_budget_for_an_accuracy_is_the_smallest(target):
    prior = np.random.default_rng(0).dirichlet(np.ones(8), 50)
    epsilon = epsilon_for_accuracy(prior, target)
    assert plan(prior, [epsilon])[0].expected_accuracy >= target
    assert plan(prior, [epsilon - 2e-6])[0].expected_accuracy < target


def test_budgets_at_the_ends_and_beyond():
    assert epsilon_for_accuracy(WORKED, 0.5) == 0
    assert epsilon_for_accuracy(WORKED, 1.0) == math.inf
    assert epsilon_for_accuracy(WORKED[0], 0.9) == epsilon_for_accuracy(WORKED, 0.9)
    with pytest.raises(Error, match="at most 1"):
        epsilon_for_accuracy(WORKED, 1.01)
    with pytest.raises(Error, match="no rows"):
        plan(np.zeros((0, 3)), [1.0])
