import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from scipy.optimize import linprog

from chapbook.core.errors import Error
from chapbook.label_dp import Entropy, RandomizedResponse, RRTopK, RRWithPrior, support
from chapbook.label_dp.exact import response_weights
from chapbook.label_dp.randomized_response import _quotient, respond

WORKED = np.array([0.5, 0.3, 0.15, 0.05])
EPSILONS = [0.0, 1e-6, 0.5, 1.0, 3.0, 20.0, 50.0, math.inf]


def priors(seed, rows, classes, concentration=1.0):
    return np.random.default_rng(seed).dirichlet(np.full(classes, concentration), rows)


def best_k_by_sorting(prior, epsilon):
    """The paper's definition: the first maximum of w_k over k."""
    t = math.exp(-epsilon)
    w = np.sort(prior)[::-1].cumsum() / (1 + np.arange(len(prior)) * t)
    return int(w.argmax()) + 1, w.max()


def best_accuracy_by_linear_program(prior, epsilon):
    """The most that any eps-DP mechanism can answer rightly: over all K x K stochastic matrices."""
    k = len(prior)
    ratios = []
    for answer in range(k):
        for a in range(k):
            for b in range(k):
                if a != b:
                    row = np.zeros((k, k))
                    row[a, answer], row[b, answer] = 1, -math.exp(epsilon)
                    ratios.append(row.ravel())
    sums = np.kron(np.eye(k), np.ones(k))
    found = linprog(
        -np.diag(prior).ravel(), np.array(ratios), np.zeros(len(ratios)), sums, np.ones(k)
    )
    assert found.status == 0
    return -found.fun


# The worked numbers.


def test_plain_response_has_the_textbook_probabilities():
    assert RandomizedResponse(10, 1.0).expected_accuracy()[0] == pytest.approx(0.23197, abs=5e-6)
    assert RandomizedResponse(2, math.log(3)).transition_matrix()[0, 0] == pytest.approx(0.75)
    assert np.allclose(RandomizedResponse(3, 0.0).transition_matrix(), 1 / 3)


def test_a_prior_on_two_of_ten_classes_raises_the_accuracy_to_that_of_two():
    prior = np.zeros((1, 10))
    prior[0, [3, 7]] = 0.5
    mechanism = RRWithPrior(10, 1.0)
    assert mechanism.choose_k(prior)[0] == 2
    assert mechanism.expected_accuracy(prior)[0] == pytest.approx(0.73106, abs=5e-6)


def test_the_worked_prior_answers_with_its_top_pair():
    mechanism = RRWithPrior(4, 1.0)
    assert mechanism.choose_k(WORKED[None])[0] == 2
    assert mechanism.expected_accuracy(WORKED[None])[0] == pytest.approx(0.58485, abs=5e-6)
    matrix = mechanism.transition_matrix(WORKED)
    assert np.allclose(matrix[0], [0.73106, 0.26894, 0, 0], atol=5e-6)
    assert np.allclose(matrix[2:], [0.5, 0.5, 0, 0])
    proof = mechanism.verify(WORKED)
    assert proof.holds
    assert proof.answers == 2
    assert float(proof.largest_ratio) == pytest.approx(math.e, rel=1e-15)


@pytest.mark.parametrize(
    ("prior", "epsilon", "k", "accuracy", "best"),
    [
        ([0.5, 0.3, 0.15, 0.05], 1.0, 2, 0.58485, 0.58485),
        ([0.5, 0.3, 0.15, 0.05], 0.5, 1, 0.5, 0.5),
        ([0.42, 0.38, 0.2, 0.0], 0.5, 1, 0.42, 0.49797),
    ],
)
def test_the_published_choice_of_k_is_reproduced_and_never_better(
    prior, epsilon, k, accuracy, best
):
    prior = np.array([prior])
    official = RRWithPrior(4, epsilon, official_k=True)
    assert official.choose_k(prior)[0] == k
    assert official.expected_accuracy(prior)[0] == pytest.approx(accuracy, abs=5e-6)
    assert RRWithPrior(4, epsilon).expected_accuracy(prior)[0] == pytest.approx(best, abs=5e-6)
    assert official.verify(prior[0]).holds


def test_the_published_choice_survives_epsilon_zero_here():
    official = RRWithPrior(4, 0.0, official_k=True)
    assert official.choose_k(WORKED[None])[0] == 1


# The best k.


@given(
    hnp.arrays(np.float64, st.integers(2, 12), elements=st.integers(0, 6).map(float)),
    st.sampled_from([0.0, 1e-6, 0.1, 0.5, 1.0, 2.5, 8.0, 50.0]),
)
@settings(deadline=None, max_examples=150)
def test_the_support_is_the_top_k_of_the_paper_ties_included(weights, epsilon):
    if not weights.any():
        weights = weights + 1
    prior = weights / weights.sum()
    k, accuracy = best_k_by_sorting(prior, epsilon)
    mechanism = RRWithPrior(len(prior), epsilon)
    ours = int(mechanism.choose_k(prior[None])[0])
    assert mechanism.expected_accuracy(prior[None])[0] == pytest.approx(accuracy, abs=1e-12)
    # Where two k are equal but for rounding, either is the smallest in one of the computations.
    if ours != k:
        top = np.sort(prior)[::-1].cumsum() / (1 + np.arange(len(prior)) * math.exp(-epsilon))
        assert top[ours - 1] == pytest.approx(top[k - 1], rel=1e-9)
    chosen = mechanism.support(prior[None])[0]
    by_rank = np.argsort(-prior, kind="stable")[:ours]
    assert sorted(np.flatnonzero(chosen)) == sorted(by_rank)
    assert np.array_equal(mechanism.support(prior[None], ours)[0], chosen)


@pytest.mark.parametrize("classes", [2, 3, 10, 48, 49, 300, 2000])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_k_is_the_papers_for_both_layouts_of_a_block(classes, kind):
    prior = np.concatenate([priors(1, 30, classes, c) for c in (0.05, 0.3, 1, 20)]).astype(kind)
    prior /= prior.sum(axis=1, dtype=np.float64)[:, None].astype(kind)
    for epsilon in (0.0, 0.3, 2.0, 7.0):
        expected = [best_k_by_sorting(row.astype(np.float64), epsilon)[1] for row in prior]
        ours = RRWithPrior(classes, epsilon).expected_accuracy(prior)
        assert np.allclose(ours, expected, rtol=1e-12 if kind is np.float64 else 1e-5, atol=0)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 4.0])
def test_sorting_and_iterating_find_the_same_support(epsilon):
    rows = np.concatenate([priors(4, 100, 20, c) for c in (0.02, 0.3, 1.0, 30.0)])
    t = np.full(len(rows), math.exp(-epsilon))
    few = support._few_best(np.ascontiguousarray(rows.T), t)
    many, _ = support._many_best(rows, 0, t, False)
    risen = support._rise(rows, t)
    assert np.array_equal(few.count(), many.count())
    assert np.array_equal(few.table(), many.table())
    assert np.array_equal(np.flatnonzero(few.table()), risen)


def test_a_guess_from_unlike_rows_does_not_mislead():
    # The first rows, from which the start of the others is guessed, need no rise at all or a lot.
    sharp, flat = priors(1, 40, 200, 0.01), priors(2, 40, 200, 50.0)
    for rows in (np.concatenate([flat, sharp]), np.concatenate([sharp, flat])):
        expected = [best_k_by_sorting(row, 1.0)[1] for row in rows]
        ours = RRWithPrior(200, 1.0).expected_accuracy(rows)
        assert np.allclose(ours, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("classes", [2, 3, 5, 8])
def test_no_private_mechanism_answers_rightly_more_often(classes):
    for seed, epsilon in enumerate([0.0, 0.2, 0.7, 1.5, 4.0]):
        prior = priors(seed, 1, classes, 0.7)
        ours = RRWithPrior(classes, epsilon).expected_accuracy(prior)[0]
        assert ours == pytest.approx(best_accuracy_by_linear_program(prior[0], epsilon), abs=1e-7)


def test_the_expected_accuracy_never_falls_as_epsilon_rises():
    prior = priors(2, 50, 9, 0.5)
    accuracy = [RRWithPrior(9, e).expected_accuracy(prior) for e in np.linspace(0, 9, 60)]
    assert all((later >= earlier - 1e-15).all() for earlier, later in pairwise(accuracy))


def test_a_permutation_of_the_classes_permutes_the_mechanism():
    prior, order = priors(3, 1, 7)[0], np.random.default_rng(0).permutation(7)
    mechanism = RRWithPrior(7, 1.3)
    matrix = mechanism.transition_matrix(prior)
    permuted = mechanism.transition_matrix(prior[order])
    assert np.array_equal(permuted, matrix[np.ix_(order, order)])


def test_a_uniform_prior_needs_all_classes_unless_epsilon_is_zero():
    uniform = np.full((1, 10), 0.1)
    assert RRWithPrior(10, 0.05).choose_k(uniform)[0] == 10
    assert RRWithPrior(10, 0.0).support(uniform)[0].tolist() == [True] + [False] * 9


def test_at_epsilon_zero_the_answer_is_the_top_class_whatever_the_label():
    labels = np.arange(4).repeat(50)
    out = RRWithPrior(4, 0.0).privatize(labels, np.tile(WORKED[::-1], (200, 1)))
    assert (out.labels == 3).all()


def test_an_infinite_epsilon_is_the_identity_even_where_the_prior_is_zero():
    labels = np.arange(5).repeat(20)
    prior = np.tile([0.5, 0.5, 0, 0, 0], (100, 1))
    mechanism = RRWithPrior(5, math.inf)
    assert np.array_equal(mechanism.privatize(labels, prior).labels, labels)
    assert np.array_equal(mechanism.transition_matrix(prior[0]), np.eye(5))
    assert np.array_equal(RandomizedResponse(5, math.inf).privatize(labels).labels, labels)


def test_top_k_with_every_class_is_plain_response():
    plain = RandomizedResponse(4, 0.8)
    assert np.array_equal(plain.transition_matrix(), RRTopK(4, 0.8, 4).transition_matrix(WORKED))


def test_ties_are_broken_by_class_index():
    prior = np.array([[0.1, 0.3, 0.3, 0.3]])
    assert np.flatnonzero(RRTopK(4, 1.0, 2).support(prior)[0]).tolist() == [1, 2]


# The exact guarantee.


@given(
    st.integers(2, 9),
    st.integers(0, 10**6),
    st.one_of(st.sampled_from([0.0, 1e-6, 20.0, 50.0]), st.floats(0, 30)),
    st.sampled_from([0.05, 0.5, 1.0, 10.0]),
)
@settings(deadline=None, max_examples=80)
def test_every_mechanism_is_proven_private(classes, seed, epsilon, concentration):
    prior = priors(seed, 1, classes, concentration)[0]
    k = 1 + seed % classes
    mechanisms = [RRWithPrior(classes, epsilon), RRWithPrior(classes, epsilon, official_k=True)]
    for mechanism in [*mechanisms, RRTopK(classes, epsilon, k)]:
        proof = mechanism.verify(prior)
        assert proof.holds
        assert np.allclose(mechanism.transition_matrix(prior).sum(axis=1), 1, rtol=0, atol=1e-14)
    assert RandomizedResponse(classes, epsilon).verify().holds


def test_the_guarantee_is_spent_and_not_wasted():
    for epsilon in (1e-6, 0.5, 1.0, 20.0):
        proof = RandomizedResponse(5, epsilon).verify()
        assert math.log(proof.largest_ratio) == pytest.approx(epsilon, rel=1e-6)


def test_a_hundred_thousand_classes_are_proven_without_their_matrix():
    prior = priors(0, 1, 100_000)[0]
    proof = RRWithPrior(100_000, 4.0).verify(prior)
    assert proof.holds
    assert float(proof.largest_ratio) == pytest.approx(math.exp(4), rel=1e-9)
    # The same proof, of a size where the whole matrix can be written out as well.
    small = RRTopK(1500, 1.0, 700)
    whole = RRTopK(1000, 1.0, 700)
    row = np.full(1500, 1 / 1500)
    assert small.verify(row).largest_ratio == whole.verify(np.full(1000, 1 / 1000)).largest_ratio


@pytest.mark.slow
def test_ten_thousand_random_priors_are_proven():
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        classes, epsilon = int(rng.integers(2, 30)), float(rng.exponential(2))
        prior = rng.dirichlet(np.full(classes, rng.choice([0.05, 0.5, 5])))
        assert RRWithPrior(classes, epsilon).verify(prior).holds


@pytest.mark.parametrize("kind", [support.FewClasses, support.ManyClasses])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_sampling_path_draws_with_the_integers_that_are_proven(epsilon, kind):
    classes = 6
    for seed in range(4):
        prior = priors(seed, 1, classes, 0.6)[0]
        mechanism = RRTopK(classes, epsilon, 1 + seed) if seed < 3 else RRWithPrior(6, epsilon)
        members = mechanism.support(prior[None])[0]
        table = np.repeat(members[None], 2, axis=0)
        pair = kind.of(table.T.copy() if kind is support.FewClasses else table)
        proven, denominator = mechanism.integer_matrix(prior)
        counted = count_draws(members, pair, epsilon)
        assert denominator == counted[0].sum()
        assert counted.tolist() == proven.tolist()


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_plain_response_draws_with_the_integers_that_are_proven(epsilon):
    counted = count_draws(np.ones(7, bool), support.EveryClass(7, 2), epsilon)
    assert counted.tolist() == RandomizedResponse(7, epsilon).integer_matrix()[0].tolist()


def count_draws(members, pair, epsilon):
    """Counts the draws that lead to each answer: those of every stretch with one answer at once."""
    classes, k = len(members), int(members.sum())
    total, keep, other, uniform = response_weights(epsilon, k)
    counted = np.zeros((classes, classes), np.int64)
    for label in range(classes):
        if members[label]:
            ends = [0, keep, *(keep + (j + 1) * other for j in range(k - 1))]
        else:
            ends = [j * uniform for j in range(k + 1)]
        for start, end in pairwise(sorted(set(ends))):
            # The answer is constant over a stretch: both its ends give the same.
            weights = tuple(np.full(2, w) for w in (total, keep, other, uniform))
            answers = respond(np.array([start, end - 1]), np.array([label] * 2), pair, weights)
            assert answers[0] == answers[1]
            counted[label, answers[0]] += end - start
    return counted


@given(st.integers(0, 2**62 - 1), st.integers(2**31, 2**62))
@settings(deadline=None, max_examples=150)
def test_quotients_by_way_of_floats_are_exact(numerator, denominator):
    edge = numerator // denominator * denominator
    for n in (numerator, edge, max(edge - 1, 0), edge + denominator - 1):
        if n < 2**62:
            found = _quotient(np.array([n]), np.array([denominator]))
            assert found[0] == n // denominator


# The samples.


@pytest.mark.parametrize("classes", [6, 60])
@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_samples_follow_the_matrix(classes, epsilon):
    rows, prior = 40_000, priors(5, 1, classes, 9.0)[0]
    mechanism = RRWithPrior(classes, epsilon)
    matrix = mechanism.transition_matrix(prior)
    members = np.flatnonzero(matrix[0])
    for label in (members[0], int(prior.argmin())):
        out = mechanism.privatize(
            np.full(rows, label), np.tile(prior, (rows, 1)), entropy=Entropy(seed=11)
        )
        counts = np.bincount(out.labels, minlength=classes)
        assert counts[matrix[label] == 0].sum() == 0
        assert len(members) > 1
        assert stats.chisquare(counts[members], matrix[label, members] * rows).pvalue > 1e-4


def test_the_private_labels_say_what_was_done():
    prior, labels = priors(1, 300, 5), np.arange(300) % 5
    mechanism = RRWithPrior(5, 1.0)
    out = mechanism.privatize(labels, prior)
    assert out.labels.dtype == out.k.dtype == np.int32
    assert np.array_equal(out.k, mechanism.choose_k(prior))
    assert np.allclose(out.keep_probability, np.e / (np.e + out.k - 1))
    support = mechanism.support(prior, out.k)
    assert support[np.arange(300), out.labels].all()
    assert not out.seeded
    assert mechanism.privatize(labels, prior, entropy=Entropy(seed=1)).seeded
    assert [len(block) for block in out.blocks(128)] == [128, 128, 44]


def test_a_seed_repeats_the_labels_and_the_default_does_not():
    prior, labels = priors(1, 500, 5), np.arange(500) % 5
    mechanism = RRWithPrior(5, 1.0)
    first, again = (mechanism.privatize(labels, prior, entropy=Entropy(seed=3)) for _ in range(2))
    assert np.array_equal(first.labels, again.labels)
    fresh = [mechanism.privatize(labels, prior).labels.tolist() for _ in range(2)]
    assert fresh[0] != fresh[1]


def test_the_labels_do_not_depend_on_the_block_that_they_fall_in():
    prior, labels = priors(1, 20_000, 5), np.arange(20_000) % 5
    mechanism, entropy = RRWithPrior(5, 1.0), Entropy(seed=3)
    whole = mechanism.privatize(labels, prior, entropy=Entropy(seed=3)).labels
    cuts = [0, 1, 700, 9_000, 20_000]
    pieces = [
        mechanism.privatize(labels[a:b], prior[a:b], entropy=entropy).labels
        for a, b in pairwise(cuts)
    ]
    assert np.array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("classes", [5, 60])
def test_each_record_may_have_a_budget_of_its_own(classes):
    rng = np.random.default_rng(0)
    prior, labels = priors(1, 3000, classes), rng.integers(0, classes, 3000)
    epsilon = rng.choice([0.0, 0.5, 2.0, math.inf], 3000)
    mixed = RRWithPrior(classes, epsilon)
    out = mixed.privatize(labels, prior)
    for each in np.unique(epsilon):
        mine = epsilon == each
        alone = RRWithPrior(classes, float(each))
        assert np.array_equal(out.k[mine], alone.choose_k(prior[mine]))
        expected = [response_weights(float(each), int(k)) for k in out.k[mine]]
        assert np.allclose(out.keep_probability[mine], [w.keep / w.total for w in expected])
        assert np.array_equal(
            mixed.expected_accuracy(prior)[mine], alone.expected_accuracy(prior[mine])
        )
    assert np.array_equal(out.labels[epsilon == np.inf], labels[epsilon == np.inf])
    assert out.epsilon == math.inf
    plain = RandomizedResponse(classes, epsilon).privatize(labels)
    assert np.array_equal(plain.labels[epsilon == np.inf], labels[epsilon == np.inf])


def test_no_rows_give_no_labels():
    out = RRWithPrior(3, 1.0).privatize(np.zeros(0, int), np.zeros((0, 3)))
    assert len(out) == 0
    assert len(RandomizedResponse(3, 1.0).privatize(np.zeros(0, int))) == 0


def test_a_hundred_thousand_classes_are_privatised():
    prior = priors(0, 3, 100_000).astype(np.float32)
    out = RRWithPrior(100_000, 6.0, normalize=True).privatize(np.array([0, 1, 2]), prior)
    expected = [best_k_by_sorting(row.astype(float), 6.0)[1] for row in prior]
    assert np.allclose(
        RRWithPrior(100_000, 6.0, normalize=True).expected_accuracy(prior), expected, rtol=1e-4
    )
    assert ((out.labels >= 0) & (out.labels < 100_000)).all()


# Bad input.


@pytest.mark.wrong_types
def test_a_label_out_of_range_is_named_by_row_and_never_by_value():
    labels = np.array([0, 1, 7654321, 2])
    with pytest.raises(Error, match="row 2") as caught:
        RandomizedResponse(3, 1.0).privatize(labels)
    assert "7654321" not in str(caught.value)
    with pytest.raises(Error, match="row 1"):
        RRWithPrior(3, 1.0).privatize(np.array([0, -1]), np.full((2, 3), 1 / 3))
    with pytest.raises(Error, match="integers"):
        RandomizedResponse(3, 1.0).privatize(np.array([0.5, 1.0]))


@pytest.mark.parametrize("classes", [4, 60])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "not finite"),
        (np.inf, "not finite"),
        (-np.inf, "not finite"),
        (-0.25, "negative"),
        (0.5, "sums to"),
        (2e-6, "sums to"),
    ],
)
def test_a_bad_row_of_the_prior_is_named(classes, value, message):
    prior = np.full((9000, classes), 1 / classes)
    prior[8500, 1] = value if value < 0 or not np.isfinite(value) else 1 / classes + value
    mechanism = RRWithPrior(classes, 1.0)
    for call in (
        lambda: mechanism.privatize(np.zeros(9000, int), prior),
        lambda: mechanism.expected_accuracy(prior),
        lambda: mechanism.choose_k(prior),
    ):
        with pytest.raises(Error, match=f"prior row 8500 .*{message}"):
            call()


def test_rows_are_divided_by_their_sum_only_on_request():
    prior = priors(0, 40, 6) * np.linspace(0.1, 9, 40)[:, None]
    with pytest.raises(Error, match="normalize=True"):
        RRWithPrior(6, 1.0).choose_k(prior)
    scaled = RRWithPrior(6, 1.0, normalize=True)
    exact = prior / prior.sum(axis=1, keepdims=True)
    assert np.array_equal(scaled.choose_k(prior), RRWithPrior(6, 1.0).choose_k(exact))
    prior[3] = 0
    with pytest.raises(Error, match="prior row 3 sums to 0"):
        scaled.choose_k(prior)


@pytest.mark.wrong_types
def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(Error, match="4 labels but 3 rows"):
        RRWithPrior(2, 1.0).privatize(np.zeros(4, int), np.full((3, 2), 0.5))
    with pytest.raises(Error, match=r"3 x 2; it must have .* 5 columns"):
        RRWithPrior(5, 1.0).choose_k(np.full((3, 2), 0.5))
    with pytest.raises(Error, match="2 epsilons for 3 records"):
        RandomizedResponse(5, np.array([1.0, 2.0])).privatize(np.zeros(3, int))
    with pytest.raises(Error, match="k is 6"):
        RRTopK(5, 1.0, 6)
    with pytest.raises(Error, match="num_classes is 1"):
        RandomizedResponse(1, 1.0)
    with pytest.raises(Error, match="row 1 is nan"):
        RandomizedResponse(3, np.array([1.0, np.nan]))
    with pytest.raises(Error, match="epsilon is -1"):
        RRWithPrior(3, -1.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_million_rows_take_less_than_three_hundred_megabytes():
    program = """
import numpy as np
from chapbook.label_dp import RRWithPrior
def peak():  # getrusage would count the memory of the process that started this one
    status = open("/proc/self/status").read()
    return int(status.partition("VmHWM:")[2].split()[0])
prior = np.full((1_000_000, 10), 0.1, np.float32)
labels = np.zeros(1_000_000, np.int32)
RRWithPrior(10, 1.0).privatize(labels[:10], prior[:10])
before = peak()
RRWithPrior(10, 1.0).privatize(labels, prior)
print(before, peak())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert after * 1024 < 300e6
    assert (after - before) * 1024 < 60e6


def test_nothing_heavy_is_imported_to_privatise():
    program = (
        "import sys, numpy as np; from chapbook.label_dp import RRWithPrior, RROnBins, plan, prove;"
        "RRWithPrior(2, 1.0).privatize(np.array([0]), np.array([[0.5, 0.5]]));"
        "print([m for m in ('jax', 'equinox', 'sklearn', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
