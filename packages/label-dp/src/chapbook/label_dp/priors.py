"""Priors: what may be believed of a label before it is seen.

A prior may be any function of public data, free of charge; only the histograms here look at labels,
and they say what that costs. A poor prior costs accuracy, never privacy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Num

from chapbook.core.errors import Error
from chapbook.label_dp.certificate import Spend
from chapbook.label_dp.discrete_laplace import discrete_laplace
from chapbook.label_dp.entropy import Entropy
from chapbook.label_dp.support import FEW_CLASSES, check_prior, checked_rows

if TYPE_CHECKING:
    from chapbook.label_dp.ledger import PrivacyLedger

# k-means sees at most so many records: centres move little beyond, and it fits in memory.
SAMPLE = 100_000
_LLOYD_RECORDS = 20_000  # above, mini-batches
# Below so many standard deviations of its noise a cluster's count tells little.
ENOUGH = 10


@dataclass(frozen=True, eq=False)
class Clusters:
    """Groups of records by public features: the nearest of several centres.

    Attributes:
        centres: In standardised features.
        shift: Subtracted from each feature.
        scale: Divides each feature.
    """

    centres: Float[np.ndarray, "clusters features"]
    shift: Float[np.ndarray, " features"]
    scale: Float[np.ndarray, " features"]

    def assign(self, features: Float[np.ndarray, "rows features"]) -> Int[np.ndarray, " rows"]:
        """Returns the nearest centre of each record."""
        points = (features - self.shift) / self.scale
        # argmin |x - c|^2 = argmin |c|^2 - 2 x.c
        return np.argmin((self.centres**2).sum(axis=1) - 2 * points @ self.centres.T, axis=1)


def fit_clusters(
    features: Float[np.ndarray, "rows features"],
    clusters: int,
    *,
    standardize: bool = False,
    seed: int = 0,
) -> Clusters:
    """Finds clusters of public features by k-means, in mini-batches when there are many records.

    Args:
        features: Public numbers; labels must not have been used to make them.
        clusters: How many clusters.
        standardize: Give every feature mean 0 and deviation 1 first: right for columns of
            different units, wrong for embeddings and principal components.
        seed: For the initial centres; they are public, so it costs no privacy.

    Raises:
        Error: Features are not finite, or there are fewer records than clusters.
    """
    features = check_features(features)
    if not 1 <= clusters <= len(features):
        raise Error(
            f"clusters is {clusters}; it must be 1 to {len(features)}, the records there are"
        )
    width = features.shape[1]
    shift, scale = np.zeros(width), np.ones(width)
    if standardize:
        shift, deviation = features.mean(axis=0), features.std(axis=0)
        scale = np.where(deviation > 0, deviation, 1.0)
    if clusters == 1:
        return Clusters(((features - shift) / scale).mean(axis=0, keepdims=True), shift, scale)
    from sklearn.cluster import KMeans, MiniBatchKMeans  # takes a second; only clusters need it

    method = KMeans if len(features) <= _LLOYD_RECORDS else MiniBatchKMeans
    means = method(n_clusters=clusters, n_init="auto", random_state=seed).fit(
        (features - shift) / scale
    )
    return Clusters(np.asarray(means.cluster_centers_, np.float64), shift, scale)


def check_features(
    features: np.ndarray, names: Sequence[str] | None = None, first_row: int = 0
) -> Float[np.ndarray, "rows features"]:
    """Returns the features as a finite float matrix; raises an `Error` that names the place."""
    features = np.asarray(features)
    if features.ndim == 1:
        features = features[:, None]
    features = features.reshape(len(features), -1)
    if not (np.issubdtype(features.dtype, np.number) or features.dtype == bool):
        raise Error(f"the features are {features.dtype}; clustering needs numbers")
    features = features.astype(np.float64, copy=False)
    if not np.isfinite(features).all():
        row, column = np.argwhere(~np.isfinite(features))[0]
        name = column if names is None else names[column]
        raise Error(
            f"row {first_row + row}, column {name}: the feature is missing or not finite;"
            " clustering needs every value"
        )
    return features


def noise_deviation(epsilon: float) -> float:
    """Returns `sqrt(2 q) / (1 - q)`, q = e^(-eps/2): the deviation of a histogram's noise."""
    q = math.exp(-epsilon / 2)
    return math.sqrt(2 * q) / (1 - q) if q < 1 else math.inf


def noisy_counts(
    counts: Int[np.ndarray, "*cells"], epsilon: float, *, entropy: Entropy | None = None
) -> Int[np.ndarray, "*cells"]:
    """Adds exact discrete Laplace noise of scale 2 / eps to every count of a histogram of labels.

    Replacing one label moves one count up and another one down, so that the L1 sensitivity is 2
    for any number of cells; the histogram as a whole is eps-DP.

    Args:
        counts: Records per cell; which cell of its cluster a record falls in depends on its label.
        epsilon: The budget of the whole histogram.
        entropy: The source of noise; a fresh one from the operating system if None.
    """
    counts = np.asarray(counts, np.int64)
    return counts + discrete_laplace(Fraction(epsilon) / 2, counts.shape, entropy=entropy)


def from_counts(
    counts: Num[np.ndarray, "clusters classes"], *, smoothing: float = 1.0
) -> Float[np.ndarray, "clusters classes"]:
    """Turns (noisy) counts into a prior per cluster: clamp at 0, smooth, normalise.

    `p_c = (n_c + s g) / (sum n_c + s)` with g the distribution over all clusters, itself smoothed
    towards uniform, so that a cluster drowned in noise falls back on the whole.

    Args:
        counts: Noisy counts, which may be negative.
        smoothing: s, in records, above 0.
    """
    if not smoothing > 0:
        raise Error(f"smoothing is {smoothing}; it must be above 0")
    clamped = np.maximum(np.atleast_2d(counts), 0).astype(np.float64)
    classes = clamped.shape[1]
    overall = clamped.sum(axis=0)
    overall = (overall + smoothing / classes) / (overall.sum() + smoothing)
    prior = clamped + smoothing * overall
    return prior / prior.sum(axis=1, keepdims=True)


def small_clusters_warning(sizes: Int[np.ndarray, " clusters"], epsilon: float) -> str | None:
    """Returns a warning if clusters are too small for the noise of their counts.

    Args:
        sizes: Records per cluster, which are public.
        epsilon: The budget of the histogram.
    """
    enough = ENOUGH * noise_deviation(epsilon)
    small = int(np.count_nonzero(sizes < enough))
    if not small:
        return None
    return (
        f"{small} of {len(sizes)} clusters hold fewer than {enough:.0f} records, {ENOUGH} standard"
        f" deviations of the noise that epsilon {epsilon:g} puts on a count: use fewer clusters or"
        " a larger prior epsilon"
    )


def cluster_histogram(
    features: Float[np.ndarray, "rows features"],
    labels: Int[np.ndarray, " rows"],
    *,
    clusters: int,
    epsilon: float,
    num_classes: int,
    standardize: bool = False,
    smoothing: float = 1.0,
    seed: int = 0,
    entropy: Entropy | None = None,
    ledger: "PrivacyLedger | None" = None,
    warn: Callable[[str], Any] | None = None,
) -> Float[np.ndarray, "rows classes"]:
    """Returns a prior for each record: the noisy label histogram of its cluster of public features.

    The whole costs `epsilon`, and the mechanism that uses the prior on the same labels costs its
    own epsilon on top (sequential composition).

    Args:
        features: Public features.
        labels: Classes, 0 to num_classes - 1.
        clusters: How many clusters; 1 is the global histogram.
        epsilon: The budget of the histogram; 0.05 is plenty for clusters of thousands.
        num_classes: K, declared and not counted from the labels.
        standardize: See `fit_clusters`.
        smoothing: See `from_counts`.
        seed: Of the k-means on public features.
        entropy: The source of noise; a fresh one from the operating system if None.
        ledger: Charged before the noise is drawn.
        warn: Called with a warning if clusters are too small for the noise.

    Reference:
        Ghazi et al., Deep Learning with Label Differential Privacy, section 5 and appendix.
    """
    from chapbook.label_dp.randomized_response import check_labels

    labels = check_labels(labels, num_classes)
    if len(features) != len(labels):
        raise Error(f"there are {len(labels)} labels but {len(features)} rows of features")
    features = check_features(features)
    sample = features
    if len(features) > SAMPLE:
        sample = features[np.random.default_rng(seed).permutation(len(features))[:SAMPLE]]
    groups = fit_clusters(sample, clusters, standardize=standardize, seed=seed)
    cluster = groups.assign(features)
    if ledger is not None:
        ledger.charge(Spend("all", "histogram prior", float(epsilon), len(labels)))
    message = small_clusters_warning(np.bincount(cluster, minlength=clusters), epsilon)
    if message and warn:
        warn(message)
    counts = count_labels(cluster, labels, clusters, num_classes)
    noisy = noisy_counts(counts, epsilon, entropy=entropy)
    return from_counts(noisy, smoothing=smoothing)[cluster]


def count_labels(
    cluster: Int[np.ndarray, " rows"], labels: Int[np.ndarray, " rows"], clusters: int, classes: int
) -> Int[np.ndarray, "clusters classes"]:
    """Counts labels by cluster: the true histogram, which must get its noise before it is used."""
    cells = cluster.astype(np.int64) * classes + labels
    return np.bincount(cells, minlength=clusters * classes).reshape(clusters, classes)


def global_histogram(
    labels: Int[np.ndarray, " rows"],
    *,
    epsilon: float,
    num_classes: int,
    smoothing: float = 1.0,
    entropy: Entropy | None = None,
    ledger: "PrivacyLedger | None" = None,
) -> Float[np.ndarray, "rows classes"]:
    """Returns one prior for all records: the noisy histogram of all labels, at a cost of `epsilon`.

    Args:
        labels: Classes, 0 to num_classes - 1.
        epsilon: The budget of the histogram.
        num_classes: K, declared and not counted from the labels.
        smoothing: See `from_counts`.
        entropy: The source of noise; a fresh one from the operating system if None.
        ledger: Charged before the noise is drawn.
    """
    from chapbook.label_dp.randomized_response import check_labels

    labels = check_labels(labels, num_classes)
    if ledger is not None:
        ledger.charge(Spend("all", "histogram prior", float(epsilon), len(labels)))
    counts = np.bincount(labels, minlength=num_classes)
    noisy = noisy_counts(counts, epsilon, entropy=entropy)
    prior = from_counts(noisy[None], smoothing=smoothing)
    return np.broadcast_to(prior, (len(labels), num_classes))


def from_model(
    predict_proba: Callable[[Any], Any],
    x: Any,
    *,
    temperature: float = 1.0,
    normalize: bool = False,
) -> Float[np.ndarray, "rows classes"]:
    """Returns a model's class probabilities as a prior, sharpened or smoothed by a temperature.

    Free of charge if the model was trained without these labels, or on private ones only.

    Args:
        predict_proba: Maps the records to probabilities of shape (rows, classes).
        x: The records.
        temperature: See `temperature`; below 1 sharpens.
        normalize: Divide rows by their sum, where the model's own rounding leaves them off 1.
    """
    prior = from_matrix(np.asarray(predict_proba(x)), normalize=normalize)
    return prior if temperature == 1 else _tempered(prior, temperature)


def from_matrix(
    matrix: Float[np.ndarray, "rows classes"], *, normalize: bool = False
) -> Float[np.ndarray, "rows classes"]:
    """Returns a matrix of probabilities as a prior, once each of its rows has been checked.

    Raises:
        Error: A row is not finite, is negative, or sums outside 1 +- 1e-6 (unless `normalize`).
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2:
        raise Error(f"the prior has {matrix.ndim} dimensions; it must have rows and classes")
    matrix = check_prior(matrix, matrix.shape[1])
    checked = checked_rows(matrix, 0, normalize=normalize)
    return checked.T if matrix.shape[1] <= FEW_CLASSES else checked


def from_table(
    table: Any, columns: Sequence[str] | None = None, *, normalize: bool = False
) -> Float[np.ndarray, "rows classes"]:
    """Returns the columns of a table or a file of probabilities as a prior.

    Args:
        table: A file, or a Polars or pandas frame.
        columns: One per class, in class order; all of them if None.
        normalize: Divide rows by their sum rather than refuse them.
    """
    import narwhals as nw

    from chapbook.core.tables import read_table

    frame = read_table(table) if isinstance(table, str | Path) else table
    frame = nw.from_native(frame, eager_only=True)
    names = list(frame.columns if columns is None else columns)
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise Error(f"the prior has no column {missing[0]}; it has {', '.join(frame.columns)}")
    for name in names:
        if not frame[name].dtype.is_numeric():
            raise Error(f"prior column {name} is {frame[name].dtype}; it must hold numbers")
    return from_matrix(frame.select(names).to_numpy(), normalize=normalize)


def temperature(
    prior: Float[np.ndarray, "rows classes"], value: float
) -> Float[np.ndarray, "rows classes"]:
    """Returns `p^(1 / temperature)`, normalised: below 1 sharpens a prior, above 1 flattens it."""
    return _tempered(from_matrix(prior), value)


def _tempered(prior: np.ndarray, value: float) -> np.ndarray:
    if not 0 < value < math.inf:
        raise Error(f"the temperature is {value}; it must be above 0 and finite")
    with np.errstate(divide="ignore"):
        logs = np.log(prior.astype(np.float64)) / value
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def floor(
    prior: Float[np.ndarray, "rows classes"], value: float
) -> Float[np.ndarray, "rows classes"]:
    """Returns `(1 - K floor) p + floor`: no class is thought less likely than the floor.

    Args:
        prior: Probabilities.
        value: The floor, 0 to 1 / K.
    """
    prior = from_matrix(prior)
    classes = prior.shape[1]
    if not 0 <= value * classes <= 1:
        raise Error(f"the floor is {value}; with {classes} classes it must be 0 to {1 / classes:g}")
    return (1 - classes * value) * prior.astype(np.float64) + value


def mix(
    domain: Float[np.ndarray, "#rows classes"],
    model: Float[np.ndarray, "#rows classes"],
    weight: float,
    *,
    temperature: float = 1.0,
) -> Float[np.ndarray, "rows classes"]:
    """Returns `w domain^(1 / temperature) / norm + (1 - w) model`.

    Args:
        domain: A public prior; one row, or one per record.
        model: A model's probabilities.
        weight: w, 0 to 1.
        temperature: Of the domain prior.
    """
    if not 0 <= weight <= 1:
        raise Error(f"the weight is {weight}; it must be 0 to 1")
    domain, model = from_matrix(np.atleast_2d(domain)), from_matrix(model)
    if domain.shape[1] != model.shape[1]:
        raise Error(f"the domain prior has {domain.shape[1]} classes, the model {model.shape[1]}")
    return weight * _tempered(domain, temperature) + (1 - weight) * model.astype(np.float64)
