"""Few-shot linear evaluation: how well a linear classifier on frozen features does with few images.

Notable choices:

- The classifier is a ridge regression to targets of -1 and 1, in closed form. One
  eigen-decomposition, in float64, of whichever is smaller, features by features or images by
  images, serves all penalties.
- One penalty is chosen per number of shots, over all data sets at once, by its mean rank on the
  query images, as in the paper's code: data sets cannot choose their own, but the choice has seen
  the query labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Array, Float, Int

from chapbook.core.errors import Error

SHOTS = (1, 5, 10, 25)
PENALTIES = tuple(2.0**power for power in range(-10, 20))
BIAS = 100.0  # the constant feature; so large that its weight is hardly penalized
LEAST_DEVIATION = 1e-5


@dataclass(frozen=True, eq=False)
class Ridge:
    """Ridge regressions to one-against-all targets, for every penalty at once.

    w(l) = left diag(1 / (eigenvalues + l)) right,

    where left and right come from X^T X = Q diag(eigenvalues) Q^T, or from X X^T if there are fewer
    images than features, and X are the standardized features with a constant 100 at the end.

    Attributes:
        mean: Of the support images' features.
        deviation: Their standard deviation, and 1e-5.
        left: Q, or X^T Q.
        eigenvalues: None below 0.
        right: Q^T X^T Y, or Q^T Y.
    """

    mean: Float[np.ndarray, " features"]
    deviation: Float[np.ndarray, " features"]
    left: Float[np.ndarray, "inputs rank"]
    eigenvalues: Float[np.ndarray, " rank"]
    right: Float[np.ndarray, "rank classes"]

    @classmethod
    def fit(
        cls, features: Float[np.ndarray, "n features"], labels: Int[np.ndarray, " n"], classes: int
    ) -> "Ridge":
        """Decomposes the support images.

        Args:
            features: Of the support images.
            labels: Their classes.
            classes: How many there are.
        """
        features = features.astype(np.float64)
        mean, deviation = features.mean(0), features.std(0) + LEAST_DEVIATION
        x = _inputs(features, mean, deviation)
        y = 2.0 * np.eye(classes)[labels] - 1
        primal = len(x) >= x.shape[1]
        eigenvalues, q = np.linalg.eigh(x.T @ x if primal else x @ x.T)
        left, right = (q, q.T @ (x.T @ y)) if primal else (x.T @ q, q.T @ y)
        return cls(mean, deviation, left, eigenvalues.clip(0), right)

    def weights(self, penalty: float) -> Float[np.ndarray, "inputs classes"]:
        """Returns w for one penalty; the last row belongs to the constant feature."""
        return (self.left / (self.eigenvalues + penalty)) @ self.right

    def inputs(self, features: Float[np.ndarray, "n features"]) -> Float[np.ndarray, "n inputs"]:
        """Returns features as the weights take them."""
        return _inputs(features, self.mean, self.deviation)


@dataclass(frozen=True, eq=False)
class Task:
    """Frozen features of a data set's support and query images, and their classes.

    Raises:
        Error: A feature is not finite, the two parts differ in features, or a query image is of a
            class that no support image has.
    """

    support: Float[np.ndarray, "n features"]
    support_labels: Int[np.ndarray, " n"]
    query: Float[np.ndarray, "m query_features"]
    query_labels: Int[np.ndarray, " m"]

    def __post_init__(self):
        for name in ("support", "query"):
            features = getattr(self, name)
            wrong = np.flatnonzero(~np.isfinite(features).all(-1))
            if len(wrong):
                raise Error(f"the features of {name} image {wrong[0]} are not finite")
            if not len(features):
                raise Error(f"there are no {name} images")
        if self.support.shape[1] != self.query.shape[1]:
            raise Error(f"support images have {self.support.shape[1]} features, query images "
                        f"{self.query.shape[1]}")  # fmt: skip
        strange = np.setdiff1d(self.query_labels, self.support_labels)
        if len(strange):
            raise Error(f"no support image is of class {strange[0]}, of which there are query "
                        "images")  # fmt: skip


def fewshot(
    tasks: Mapping[str, Task],
    *,
    shots: Sequence[int] = SHOTS,
    penalties: Sequence[float] = PENALTIES,
    seeds: int = 3,
) -> pl.DataFrame:
    """Evaluates linear classifiers on frozen features with few images of each class.

    Args:
        tasks: Data sets by name.
        shots: Support images of each class.
        penalties: Of the squared weights, each above 0.
        seeds: How often the support images are drawn.

    Returns:
        A row for each data set, number of shots, seed and penalty: `dataset`, `shots`, `seed`,
        `l2`, `accuracy` (of the query images).

    Raises:
        Error: A class has fewer support images than shots, or a setting is out of range.
    """
    if min(shots, default=0) < 1 or min(penalties, default=0) <= 0 or seeds < 1:
        raise Error("few-shot evaluation takes shots and seeds of 1 or more and penalties above 0")
    rows = []
    for name, task in tasks.items():
        classes, labels = np.unique(task.support_labels, return_inverse=True)
        counts = np.bincount(labels)
        if counts.min() < max(shots):
            few = classes[counts.argmin()]
            raise Error(f"{name}: class {few} has {counts.min()} support images; "
                        f"{max(shots)} shots need as many", "take fewer shots")  # fmt: skip
        query_labels = np.searchsorted(classes, task.query_labels)
        for seed in range(seeds):
            generator = np.random.default_rng(seed)
            drawn = [
                generator.permutation(np.flatnonzero(labels == each))
                for each in range(len(classes))
            ]
            for count in shots:
                taken = np.concatenate([each[:count] for each in drawn])
                ridge = Ridge.fit(task.support[taken], labels[taken], len(classes))
                found = accuracies(ridge, task.query, query_labels, penalties)
                rows += [
                    (name, count, seed, l2, accuracy)
                    for l2, accuracy in zip(penalties, found, strict=True)
                ]
    return pl.DataFrame(rows, ["dataset", "shots", "seed", "l2", "accuracy"], orient="row")


def accuracies(
    ridge: Ridge,
    features: Float[np.ndarray, "m features"],
    labels: Int[np.ndarray, " m"],
    penalties: Sequence[float] = PENALTIES,
) -> list[float]:
    """Returns the share of images classified right, for each penalty.

    Args:
        ridge: Of the support images.
        features: Of the query images.
        labels: Their classes.
        penalties: Of the squared weights.
    """
    # On the device in float32: with many classes, these products are most of the work.
    inputs = jnp.asarray(ridge.inputs(features), jnp.float32)
    true = jnp.asarray(labels, jnp.int32)
    each = (jnp.asarray(ridge.weights(penalty), jnp.float32) for penalty in penalties)
    return [float(found) for found in [_accuracy(inputs, true, weights) for weights in each]]


def choose_penalty(table: pl.DataFrame) -> pl.DataFrame:
    """Chooses one penalty per number of shots, and averages over seeds what it reaches.

    The accuracies of the penalties are ranked within each data set and seed, ties sharing their
    mean rank; the penalty of the best mean rank is chosen, the largest of several.

    Args:
        table: As `fewshot` returns it.

    Returns:
        A row for each data set and number of shots: `dataset`, `shots`, `l2`, `accuracy` (the mean
        over seeds), `std` (over seeds, of the population) and `seeds`.
    """
    rank = pl.col("accuracy").rank("average").over("shots", "dataset", "seed")
    best = (
        table.select("shots", "l2", rank=rank)
        .group_by("shots", "l2")
        .agg(pl.col("rank").mean())
        .sort("rank", "l2")
        .group_by("shots")
        .agg(pl.col("l2").last())
    )
    return (
        table.join(best, on=["shots", "l2"], maintain_order="left")
        .group_by("dataset", "shots", "l2", maintain_order=True)
        .agg(
            pl.col("accuracy").mean(),
            pl.col("accuracy").std(ddof=0).alias("std"),
            pl.len().alias("seeds"),
        )
    )


def _inputs(
    features: Float[np.ndarray, "n features"],
    mean: Float[np.ndarray, " features"],
    deviation: Float[np.ndarray, " features"],
) -> Float[np.ndarray, "n inputs"]:
    return np.pad((features - mean) / deviation, ((0, 0), (0, 1)), constant_values=BIAS)


@jax.jit
def _accuracy(
    inputs: Float[Array, "m inputs"],
    labels: Int[Array, " m"],
    weights: Float[Array, "inputs classes"],
) -> Float[Array, ""]:
    scores = jnp.matmul(inputs, weights, precision="highest")
    return (scores.argmax(-1) == labels).mean(dtype=jnp.float32)
