"""Priors: histograms of sensitivity 2 with exact integer noise, and public functions of priors."""

import math
from fractions import Fraction

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import stats

from chapbook.core.errors import Error
from chapbook.label_dp import priors
from chapbook.label_dp.certificate import Spend
from chapbook.label_dp.entropy import Entropy
from chapbook.label_dp.ledger import PrivacyLedger


def blobs(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns two features and the label that says in which of four quadrants they lie."""
    features = np.random.default_rng(seed).normal(size=(rows, 2))
    return features, (features[:, 0] > 0) * 1 + (features[:, 1] > 0) * 2


def test_replacing_one_label_moves_the_histogram_by_two():
    features, labels = blobs(400)
    groups = priors.fit_clusters(features, 5)
    cluster = groups.assign(features)
    counts = priors.count_labels(cluster, labels, 5, 4)
    assert counts.sum() == 400
    for row in range(0, 400, 37):
        for new in range(4):
            changed = labels.copy()
            changed[row] = new
            moved = np.abs(priors.count_labels(cluster, changed, 5, 4) - counts).sum()
            assert moved == (0 if new == labels[row] else 2)


def test_the_noise_has_the_rate_of_sensitivity_two_exactly(monkeypatch):
    asked = []

    def noise(rate, size, *, entropy):
        asked.append(rate)
        return np.zeros(size, np.int64)

    monkeypatch.setattr(priors, "discrete_laplace", noise)
    counts = priors.noisy_counts(np.array([[3, 4]]), 0.1)
    assert asked == [Fraction(0.1) / 2]
    assert type(asked[0]) is Fraction
    assert counts.dtype == np.int64


def test_noisy_counts_follow_the_discrete_laplace_distribution():
    epsilon, size = 1.0, 20_000
    noisy = priors.noisy_counts(np.full(size, 10), epsilon, entropy=Entropy(seed=5)) - 10
    assert noisy.dtype == np.int64
    q = math.exp(-epsilon / 2)
    values = np.arange(-6, 7)
    inner = (1 - q) / (1 + q) * q ** np.abs(values)
    tail = (1 - inner.sum()) / 2
    observed = [
        np.count_nonzero(noisy < -6),
        *(np.count_nonzero(noisy == v) for v in values),
        np.count_nonzero(noisy > 6),
    ]
    expected = np.array([tail, *inner, tail]) * size
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    assert noisy.std() == pytest.approx(priors.noise_deviation(epsilon), rel=0.05)


def test_the_noise_deviation_is_the_worked_number():
    assert priors.noise_deviation(0.05) == pytest.approx(56.6, abs=0.1)


def test_noise_repeats_with_a_seed_and_never_without():
    counts = np.zeros(100, np.int64)
    one, two = (priors.noisy_counts(counts, 0.5, entropy=Entropy(seed=1)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    one, two = (priors.noisy_counts(counts, 0.5) for _ in range(2))
    assert (one != two).any()


def test_no_numpy_generator_makes_noise(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("numpy.random is not private")

    for name in ("default_rng", "random", "laplace", "normal", "uniform"):
        monkeypatch.setattr(np.random, name, forbidden)
    priors.global_histogram(np.array([0, 1, 1]), epsilon=1.0, num_classes=2)


def test_clusters_tell_more_than_the_whole():
    features, labels = blobs(4000)
    ledger = PrivacyLedger()
    prior = priors.cluster_histogram(
        features,
        labels,
        clusters=12,
        epsilon=1.0,
        num_classes=4,
        entropy=Entropy(seed=0),
        ledger=ledger,
    )
    assert prior.shape == (4000, 4)
    np.testing.assert_allclose(prior.sum(axis=1), 1)
    whole = priors.global_histogram(labels, epsilon=1.0, num_classes=4, entropy=Entropy(seed=0))
    rows = np.arange(4000)
    assert prior[rows, labels].mean() > 0.6 > 0.3 > whole[rows, labels].mean()
    assert ledger.spends == (Spend("all", "histogram prior", 1.0, 4000),)


def test_a_drowned_cluster_falls_back_on_the_whole():
    prior = priors.from_counts(np.array([[-5, -3], [90, 30]]))
    np.testing.assert_allclose(prior[0], np.array([90.5, 30.5]) / 121)
    assert (prior > 0).all()
    np.testing.assert_allclose(priors.from_counts(np.array([[-1, -1]])), [[0.5, 0.5]])


def test_small_clusters_warn():
    assert priors.small_clusters_warning(np.array([50, 5000]), 0.05) is not None
    assert "1 of 2 clusters" in (priors.small_clusters_warning(np.array([50, 5000]), 0.05) or "")
    assert priors.small_clusters_warning(np.array([5000, 5000]), 0.05) is None
    features, labels = blobs(200)
    said: list[str] = []
    priors.cluster_histogram(
        features, labels, clusters=4, epsilon=0.05, num_classes=4, warn=said.append
    )
    assert len(said) == 1


def test_clusters_do_not_depend_on_labels_and_repeat():
    features, _ = blobs(300)
    one, two = (priors.fit_clusters(features, 6, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.assign(features), two.assign(features))
    nearest = ((features[:, None] - one.centres) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(one.assign(features), nearest)


def test_standardised_features_do_not_depend_on_their_units():
    features, _ = blobs(300)
    scaled = features * [1.0, 1e6] + [0.0, 5.0]
    one = priors.fit_clusters(features, 4, standardize=True).assign(features)
    two = priors.fit_clusters(scaled, 4, standardize=True).assign(scaled)
    np.testing.assert_array_equal(one, two)


def test_temperature_sharpens_and_flattens():
    prior = np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(
        priors.temperature(prior, 0.5)[0], prior[0] ** 2 / (prior[0] ** 2).sum()
    )
    np.testing.assert_allclose(priors.temperature(prior, 1e9)[0], 1 / 3, rtol=1e-6)
    np.testing.assert_array_equal(priors.temperature(prior, 0.5)[1], prior[1])
    with pytest.raises(Error, match="temperature"):
        priors.temperature(prior, 0)


def test_the_floor_holds_and_rows_still_sum_to_one():
    floored = priors.floor(np.array([[1.0, 0.0, 0.0, 0.0]]), 0.05)
    np.testing.assert_allclose(floored, [[0.85, 0.05, 0.05, 0.05]])
    with pytest.raises(Error, match="floor"):
        priors.floor(np.array([[0.5, 0.5]]), 0.6)


def test_mixing_is_the_official_formula():
    domain, model = np.array([[0.8, 0.2]]), np.array([[0.5, 0.5], [0.1, 0.9]])
    tempered = np.array([0.8, 0.2]) ** 2 / (0.8**2 + 0.2**2)
    mixed = priors.mix(domain, model, 0.3, temperature=0.5)
    np.testing.assert_allclose(mixed, 0.3 * tempered + 0.7 * model)


def test_a_model_gives_a_prior():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6]])
    prior = priors.from_model(lambda x: probabilities[x], np.array([1, 0]), temperature=0.5)
    np.testing.assert_allclose(prior[0], np.array([0.16, 0.36]) / 0.52)


def test_a_prior_comes_from_a_file_or_a_frame(tmp_path):
    frame = pl.DataFrame({"id": [7, 8], "p0": [0.25, 0.5], "p1": [0.75, 0.5]})
    frame.write_parquet(tmp_path / "prior.parquet")
    pandas_frame = pd.DataFrame(frame.to_dict(as_series=False))
    for table in (frame, pandas_frame, tmp_path / "prior.parquet"):
        np.testing.assert_array_equal(
            priors.from_table(table, ["p0", "p1"]), [[0.25, 0.75], [0.5, 0.5]]
        )
    with pytest.raises(Error, match="no column p2; it has id, p0, p1"):
        priors.from_table(frame, ["p0", "p2"])


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.5, 0.5], [0.5, 0.6]], "prior row 1 sums to 1.1"),
        ([[0.5, np.nan]], "prior row 0 holds a value that is not finite"),
        ([[1.5, -0.5]], "prior row 0 holds a negative value"),
    ],
)
def test_rows_that_are_no_distribution_are_named(matrix, message):
    with pytest.raises(Error, match=message):
        priors.from_matrix(np.array(matrix))


def test_features_that_are_not_finite_are_named():
    features, labels = blobs(50)
    features[17, 1] = np.nan
    with pytest.raises(Error, match="row 17, column 1"):
        priors.cluster_histogram(features, labels, clusters=2, epsilon=1.0, num_classes=4)


def test_faults_never_show_a_label():
    features, labels = blobs(50)
    labels[9] = 77
    with pytest.raises(Error) as caught:
        priors.cluster_histogram(features, labels, clusters=2, epsilon=1.0, num_classes=4)
    assert "row 9" in caught.value.message
    assert "77" not in caught.value.message
