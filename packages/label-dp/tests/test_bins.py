import math
from itertools import chain, combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize_scalar

from chapbook.core.errors import Error
from chapbook.label_dp import (
    Entropy,
    ExponentialMechanism,
    LaplaceMechanism,
    Loss,
    RROnBins,
    StaircaseMechanism,
    histogram_prior,
)

EPSILONS = [0.0, 0.3, 1.0, 3.0, 8.0, math.inf]


def atoms_and_prior(seed, n):
    rng = np.random.default_rng(seed)
    return np.sort(rng.gamma(2, 1, n)), rng.dirichlet(np.full(n, rng.choice([0.3, 1, 5])))


def best_loss_by_trying_every_partition(y, p, epsilon, loss):
    t, n, best = math.exp(-epsilon), len(y), math.inf
    for cuts in chain.from_iterable(combinations(range(1, n), r) for r in range(n)):
        bins, total = list(pairwise([0, *cuts, n])), 0.0
        for start, end in bins:
            weight = t * p
            weight[start:end] += (1 - t) * p[start:end]
            if loss is Loss.ABSOLUTE:
                total += min(float(weight @ loss(v, y)) for v in y)
            else:
                found: Any = minimize_scalar(
                    lambda v, w=weight: float(w @ loss(v, y)),
                    bounds=(y[0] - 1e-9, y[-1] + 1e-9),
                    method="bounded",
                    options={"xatol": 1e-10},
                )
                total += float(found.fun)
        best = min(best, total / (1 + (len(bins) - 1) * t))
    return best


def expected_loss_by_enumeration(mechanism, y, p):
    answers = mechanism.transition_matrix()[mechanism.bin_of(y)]
    return float(p @ (answers * mechanism.loss(mechanism.outputs[None, :], y[:, None])).sum(axis=1))


@pytest.mark.parametrize("loss", list(Loss))
@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_no_partition_has_a_smaller_loss(loss, n):
    for seed, epsilon in enumerate(EPSILONS):
        y, p = atoms_and_prior(seed, n)
        ours = RROnBins.fit(y, p, epsilon, loss).expected_loss
        assert ours == pytest.approx(
            best_loss_by_trying_every_partition(y, p, epsilon, loss), abs=1e-8
        )


@pytest.mark.slow
@pytest.mark.parametrize("loss", list(Loss))
def test_no_partition_of_eight_atoms_has_a_smaller_loss(loss):
    for seed, epsilon in enumerate(EPSILONS):
        y, p = atoms_and_prior(seed, 8)
        best = best_loss_by_trying_every_partition(y, p, epsilon, loss)
        assert RROnBins.fit(y, p, epsilon, loss).expected_loss == pytest.approx(best, abs=1e-8)


@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(0, 12), st.sampled_from(list(Loss)))
@settings(deadline=None, max_examples=60)
def test_the_stated_loss_is_the_enumerated_one_and_the_mechanism_is_private(seed, n, epsilon, loss):
    y, p = atoms_and_prior(seed, n)
    mechanism = RROnBins.fit(y, p, epsilon, loss)
    assert mechanism.expected_loss == pytest.approx(
        expected_loss_by_enumeration(mechanism, y, p), rel=1e-9, abs=1e-12
    )
    assert mechanism.verify().holds
    assert (np.diff(mechanism.edges) > 0).all()


def test_no_private_mechanism_over_the_same_outputs_does_better():
    y, p = atoms_and_prior(3, 5)
    for epsilon in (0.3, 1.0, 3.0):
        mechanism = RROnBins.fit(y, p, epsilon, Loss.ABSOLUTE)
        # For the absolute loss the best outputs are atoms: a linear program over all mechanisms.
        n = len(y)
        cost = (p[:, None] * np.abs(y[None, :] - y[:, None])).ravel()
        rows = []
        for o in range(n):
            for a in range(n):
                for b in range(n):
                    row = np.zeros((n, n))
                    row[a, o] += 1
                    row[b, o] -= math.exp(epsilon)
                    rows.append(row.ravel())
        sums = np.kron(np.eye(n), np.ones(n))
        found = linprog(cost, np.array(rows), np.zeros(len(rows)), sums, np.ones(n))
        assert mechanism.expected_loss == pytest.approx(found.fun, abs=1e-8)


@pytest.mark.parametrize("loss", [Loss.SQUARED, Loss.ABSOLUTE])
@pytest.mark.parametrize("epsilon", [0.3, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("other", [LaplaceMechanism, StaircaseMechanism, ExponentialMechanism])
def test_the_bins_lose_less_than_added_noise(loss, epsilon, other):
    levels = 41
    y, p = np.linspace(0, 1, levels), np.random.default_rng(1).dirichlet(np.ones(levels))
    answers = other(0.0, 1.0, epsilon, levels).transition_matrix()
    noisy = float(p @ (answers * loss(y[None, :], y[:, None])).sum(axis=1))
    assert RROnBins.fit(y, p, epsilon, loss).expected_loss < noisy


def test_an_infinite_budget_answers_with_the_value_and_none_with_one_value():
    y, p = atoms_and_prior(1, 30)
    exact = RROnBins.fit(y, p, math.inf)
    assert np.allclose(exact.privatize(y).values, y)
    assert exact.expected_loss == pytest.approx(0, abs=1e-15)
    nothing = RROnBins.fit(y, p, 0.0)
    assert np.allclose(nothing.privatize(y).values, p @ y)
    assert nothing.expected_loss == pytest.approx(float(p @ (y - p @ y) ** 2))


def test_the_loss_never_rises_with_epsilon():
    y, p = atoms_and_prior(2, 40)
    losses = [RROnBins.fit(y, p, e).expected_loss for e in np.linspace(0, 8, 30)]
    assert all(b <= a + 1e-12 for a, b in pairwise(losses))


def test_moving_all_values_moves_the_answers():
    y, p = atoms_and_prior(2, 25)
    here, there = RROnBins.fit(y, p, 2.0), RROnBins.fit(y + 1e6, p, 2.0)
    assert np.allclose(there.outputs - 1e6, here.outputs, atol=1e-6)
    assert there.expected_loss == pytest.approx(here.expected_loss, rel=1e-6)


def test_samples_have_the_expected_loss():
    y, p = atoms_and_prior(4, 20)
    mechanism = RROnBins.fit(y, p, 1.5)
    values = np.random.default_rng(0).choice(y, 100_000, p=p)
    out = mechanism.privatize(values, entropy=Entropy(seed=2))
    losses = np.asarray(mechanism.loss(out.values, values))
    error = losses.std() / math.sqrt(len(losses))
    assert abs(losses.mean() - mechanism.expected_loss) < 5 * error
    assert out.seeded
    assert set(np.unique(out.values)) <= set(mechanism.outputs)


def test_equal_and_impossible_atoms_change_nothing():
    y, p = atoms_and_prior(5, 10)
    twice = RROnBins.fit(np.append(np.repeat(y, 2), 99.0), np.append(np.repeat(p / 2, 2), 0), 1.0)
    once = RROnBins.fit(y, p, 1.0)
    assert np.allclose(twice.outputs, once.outputs)
    assert twice.high == once.high


@pytest.mark.wrong_types
def test_values_outside_the_range_go_to_the_ends_and_missing_ones_are_named():
    y, p = atoms_and_prior(6, 10)
    mechanism = RROnBins.fit(y, p, 20.0)
    ends = mechanism.bin_of(np.array([-1e9, 1e9, np.inf]))
    assert ends.tolist() == [0, len(mechanism.outputs) - 1, len(mechanism.outputs) - 1]
    with pytest.raises(Error, match="row 1 is missing"):
        mechanism.privatize(np.array([1.0, np.nan]))
    with pytest.raises(Error, match="not a row of numbers"):
        mechanism.privatize(np.array(["a"]))


def test_the_private_histogram_is_near_the_true_one_and_private_at_its_rate():
    rng = np.random.default_rng(0)
    values = rng.beta(2, 5, 20_000) * 10
    centres, prior = histogram_prior(values, 0.0, 10.0, 8, 1.0, entropy=Entropy(seed=1))
    true = np.histogram(values, bins=8, range=(0, 10))[0] / len(values)
    assert np.allclose(centres, np.arange(8) * 1.25 + 0.625)
    assert prior.sum() == pytest.approx(1)
    assert np.abs(prior - true).max() < 0.002
    empty = histogram_prior(np.zeros(0), 0.0, 1.0, 3, 50.0, entropy=Entropy(seed=1))[1]
    assert np.allclose(empty, 1 / 3)
    assert histogram_prior(np.array([10.0, 99.0]), 0.0, 10.0, 2, 80.0)[1].tolist() == [0.0, 1.0]


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("atoms", "prior", "message"),
    [
        ([1.0, 2.0], [0.5], "pair them"),
        ([1.0, np.nan], [0.5, 0.5], "atom 1"),
        ([1.0, 2.0], [1.5, -0.5], "probability 1"),
        ([1.0, 2.0], [0.5, np.nan], "probability 1"),
        ([1.0, 2.0], [0.5, 0.6], "sums to 1.1"),
        ([], [], "pair them"),
    ],
)
def test_bad_priors_are_named(atoms, prior, message):
    with pytest.raises(Error, match=message):
        RROnBins.fit(np.array(atoms), np.array(prior), 1.0)


def test_the_poisson_loss_needs_counts():
    with pytest.raises(Error, match="Poisson"):
        RROnBins.fit(np.array([-1.0, 1.0]), np.array([0.5, 0.5]), 1.0, Loss.POISSON)
    zeros = RROnBins.fit(np.array([0.0, 3.0]), np.array([0.5, 0.5]), 5.0, Loss.POISSON)
    assert math.isfinite(zeros.expected_loss)
