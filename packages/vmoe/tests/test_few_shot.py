"""Few-shot evaluation is ridge regression as scikit-learn does it, with one penalty for all."""

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import Ridge as Reference

from chapbook.core.errors import Error
from chapbook.vmoe.few_shot import (
    BIAS,
    PENALTIES,
    SHOTS,
    Ridge,
    Task,
    accuracies,
    choose_penalty,
    fewshot,
)

CLASSES, FEATURES = 4, 12


def examples(count, seed=0, noise=1.5):
    """Features about a centre for each class, on scales of their own."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES))
    labels = np.arange(count) % CLASSES
    features = centres[labels] + noise * generator.normal(size=(count, FEATURES))
    return (features * np.geomspace(0.1, 30, FEATURES) + 5).astype(np.float32), labels


@pytest.mark.parametrize("count", [8, 60])  # images by images, and features by features
@pytest.mark.parametrize("penalty", [PENALTIES[0], 1.0, PENALTIES[-1]])
def test_weights_are_those_of_scikit_learn(count, penalty):
    features, labels = examples(count)
    query, _ = examples(20, seed=1)
    ridge = Ridge.fit(features, labels, CLASSES)
    assert len(ridge.eigenvalues) == min(count, FEATURES + 1)
    mean, deviation = features.astype(float).mean(0), features.astype(float).std(0) + 1e-5
    x, z = (
        np.concatenate([(each - mean) / deviation, np.full((len(each), 1), BIAS)], 1)
        for each in (features, query)
    )
    reference = Reference(alpha=penalty, fit_intercept=False)
    reference.fit(x, 2 * np.eye(CLASSES)[labels] - 1)
    weights = ridge.weights(penalty)
    np.testing.assert_allclose(weights, reference.coef_.T, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(ridge.inputs(query) @ weights, reference.predict(z), atol=1e-4)


def test_accuracies_are_those_of_the_greatest_scores():
    features, labels = examples(40)
    query, true = examples(200, seed=1)
    ridge = Ridge.fit(features, labels, CLASSES)
    found = accuracies(ridge, query, true)
    expected = [
        ((ridge.inputs(query) @ ridge.weights(penalty)).argmax(-1) == true).mean()
        for penalty in PENALTIES
    ]
    np.testing.assert_allclose(found, expected, atol=0.005)
    assert 0.5 < max(found) < 1


def test_a_constant_feature_and_one_shot_stay_finite():
    features, labels = examples(4)
    features[:, 3] = 7
    found = accuracies(Ridge.fit(features, labels, CLASSES), *examples(40, seed=1))
    assert np.isfinite(found).all()


def test_more_shots_do_better_and_seeds_draw_other_images():
    support, labels = examples(400)
    table = fewshot({"blobs": Task(support, labels, *examples(300, seed=1))})
    assert table.columns == ["dataset", "shots", "seed", "l2", "accuracy"]
    assert table.height == len(SHOTS) * 3 * len(PENALTIES)
    found = choose_penalty(table)
    assert found["shots"].to_list() == list(SHOTS)
    assert found["accuracy"].is_sorted()
    assert found["accuracy"][-1] > found["accuracy"][0] + 0.15
    assert found["std"][0] > 0
    assert found["seeds"].to_list() == [3] * 4
    again = fewshot({"blobs": Task(support, labels, *examples(300, seed=1))})
    assert again.equals(table)


def test_labels_may_be_any_numbers():
    support, labels = examples(100)
    query, true = examples(100, seed=1)
    plain = fewshot({"a": Task(support, labels, query, true)}, shots=[5], seeds=1)
    names = np.array([3, 70, 71, 900])
    named = fewshot({"a": Task(support, names[labels], query, names[true])}, shots=[5], seeds=1)
    assert named.equals(plain)


def test_one_penalty_is_chosen_for_all_by_its_mean_rank():
    # Three penalties. The mean accuracy would choose 1, the mean rank chooses 2.
    accuracy = {"a": [0.9, 0.5, 0.4], "b": [0.3, 0.4, 0.2], "c": [0.1, 0.3, 0.2]}
    rows = [
        ("abc"[d], 5, 0, float(l2), accuracy["abc"[d]][l2 - 1])
        for d in range(3)
        for l2 in (1, 2, 3)
    ]
    table = pl.DataFrame(rows, ["dataset", "shots", "seed", "l2", "accuracy"], orient="row")
    found = choose_penalty(table)
    assert found["l2"].to_list() == [2.0] * 3
    assert found["accuracy"].to_list() == [0.5, 0.4, 0.3]
    # Ties take the larger penalty.
    tied = table.with_columns(accuracy=pl.lit(0.5))
    assert set(choose_penalty(tied)["l2"]) == {3.0}


def test_the_chosen_penalty_is_that_of_the_papers_code_without_ties():
    generator = np.random.default_rng(0)
    accuracy = generator.permutation(4 * 2 * 6).reshape(4, 2, 6) / 48
    rows = [
        (f"set{d}", 1, s, 2.0**p, accuracy[d, s, p])
        for d in range(4) for s in range(2) for p in range(6)
    ]  # fmt: skip
    table = pl.DataFrame(rows, ["dataset", "shots", "seed", "l2", "accuracy"], orient="row")
    ranks = [np.argsort(np.argsort(each)) for each in accuracy.reshape(8, 6)]
    assert set(choose_penalty(table)["l2"]) == {2.0 ** int(np.argmax(np.mean(ranks, 0)))}


@pytest.mark.parametrize("best", [0, 15, 29])
def test_any_of_the_papers_penalties_can_be_chosen(best):
    rows = [("a", 5, 0, l2, -abs(place - best) / 30) for place, l2 in enumerate(PENALTIES)]
    table = pl.DataFrame(rows, ["dataset", "shots", "seed", "l2", "accuracy"], orient="row")
    assert choose_penalty(table)["l2"].to_list() == [PENALTIES[best]]


def test_faults_of_the_features_are_named():
    support, labels = examples(20)
    query, true = examples(10, seed=1)
    broken = query.copy()
    broken[6, 2] = np.inf
    with pytest.raises(Error, match="query image 6 are not finite"):
        Task(support, labels, broken, true)
    with pytest.raises(Error, match="12 features, query images 11"):
        Task(support, labels, query[:, :11], true)
    with pytest.raises(Error, match="no support image is of class 3"):
        Task(support[labels < 3], labels[labels < 3], query, true)
    with pytest.raises(Error, match="blobs: class 0 has 5 support images; 25 shots"):
        fewshot({"blobs": Task(support, labels, query, true)})
    with pytest.raises(Error, match="penalties above 0"):
        fewshot({"blobs": Task(support, labels, query, true)}, shots=[1], penalties=[0.0])
