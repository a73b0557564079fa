"""What can be learned from private labels without bias, and what they will be worth beforehand."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from chapbook.core.errors import Error
from chapbook.label_dp.randomized_response import PrivateLabels, RandomizedResponse, RRWithPrior


class Estimate(NamedTuple):
    """An unbiased estimate and its standard error: numbers, or arrays of one shape."""

    value: np.ndarray
    standard_error: np.ndarray


class PlanRow(NamedTuple):
    """What a privacy budget would buy, before any of it is spent.

    Attributes:
        epsilon: The privacy budget.
        expected_accuracy: The mean of `Pr[answer = label]` with the prior, if it is right.
        mean_k: The mean number of classes that RRWithPrior answers with.
        without_prior: The same probability for plain randomised response.
        gain: expected_accuracy - without_prior.
    """

    epsilon: float
    expected_accuracy: float
    mean_k: float
    without_prior: float
    gain: float


def plan(
    prior: Float[np.ndarray, "rows classes"], epsilons: Sequence[float], *, normalize: bool = False
) -> list[PlanRow]:
    """Returns what each budget would buy under the prior; labels are not needed and not seen.

    Args:
        prior: The probability of each class for each record, or one row for all of them.
        epsilons: The budgets to compare.
        normalize: Whether rows of the prior are divided by their sum instead of refused.
    """
    prior = np.atleast_2d(prior)
    _check_rows(prior)
    rows = []
    for epsilon in epsilons:
        mechanism = RRWithPrior(prior.shape[1], epsilon, normalize=normalize)
        accuracy = float(mechanism.expected_accuracy(prior).mean())
        plain = float(RandomizedResponse(prior.shape[1], epsilon).expected_accuracy()[0])
        mean_k = float(mechanism.choose_k(prior).mean())
        rows.append(PlanRow(float(epsilon), accuracy, mean_k, plain, accuracy - plain))
    return rows


def epsilon_for_accuracy(
    prior: Float[np.ndarray, "*rows classes"],
    target: float,
    *,
    tolerance: float = 1e-6,
    normalize: bool = False,
) -> float:
    """Returns the smallest budget whose mean `Pr[answer = label]` reaches the target.

    That mean never falls as epsilon rises, so that bisection finds it.

    Args:
        prior: The probability of each class for each record, or one row for all of them.
        target: The wished accuracy, above 0 and at most 1; 1 itself needs an infinite budget.
        tolerance: How far above the smallest budget the result may lie.
        normalize: Whether rows of the prior are divided by their sum instead of refused.
    """
    prior = np.atleast_2d(prior)
    _check_rows(prior)
    if not 0 < target <= 1:
        raise Error(f"the target accuracy is {target}; it must be above 0 and at most 1")

    def reached(epsilon: float) -> bool:
        mechanism = RRWithPrior(prior.shape[1], epsilon, normalize=normalize)
        return float(mechanism.expected_accuracy(prior).mean()) >= target

    if reached(0.0):
        return 0.0
    if target == 1:
        return math.inf
    low, high = 0.0, 1.0
    while not reached(high):
        low, high = high, 2 * high
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def debiased_accuracy(predictions: Int[np.ndarray, " rows"], private: PrivateLabels) -> Estimate:
    """Estimates `Pr[prediction = true label]` from labels of plain randomised response.

    With q the probability of each other answer, `z = (1[prediction = answer] - q) / (keep - q)`
    has the mean 1 where the prediction is the true label and 0 elsewhere; the estimate is the
    mean of z. It can lie outside [0, 1]; cutting it off would add a bias. The standard error
    covers both the privacy noise and the choice of records.

    Raises:
        Error: If the labels were not drawn among all classes, or carry no information.
    """
    predictions = _same_length(predictions, private)
    if len(private) < 2:
        raise Error(f"{len(private)} labels do not give an accuracy with a standard error")
    other, signal = _signal(private)
    z = ((predictions == private.labels) - other) / signal
    return Estimate(z.mean(), z.std(ddof=1) / math.sqrt(len(z)))


def debiased_counts(private: PrivateLabels) -> Estimate:
    """Estimates how many true labels each class has, from labels of plain randomised response.

    The standard errors are those of the privacy noise: the labels are what is counted.

    Returns:
        The counts and their standard errors, each of shape (classes,).

    Raises:
        Error: If the labels were not drawn among all classes, or carry no information.
    """
    counts = debiased_confusion(np.zeros(len(private), np.int64), private, num_predictions=1)
    return Estimate(counts.value[:, 0], counts.standard_error[:, 0])


def debiased_confusion(
    predictions: Int[np.ndarray, " rows"],
    private: PrivateLabels,
    *,
    num_predictions: int | None = None,
) -> Estimate:
    """Estimates the confusion matrix (true class, predicted class) in counts.

    Cell (c, j) is the sum of `(1[answer = c] - q) / (keep - q)` over the records predicted as j.
    The variance of one term is `keep (1 - keep) / (keep - q)^2` where the true label is c and
    `q (1 - q) / (keep - q)^2` elsewhere; the same sums estimate which, without bias.

    Args:
        predictions: A predicted class for each record.
        private: The labels, from plain randomised response.
        num_predictions: The number of predicted classes; the number of classes if None.

    Raises:
        Error: If the labels were not drawn among all classes, or carry no information.
    """
    predictions = _same_length(predictions, private)
    columns = private.num_classes if num_predictions is None else num_predictions
    if len(predictions) and not 0 <= predictions.min() <= predictions.max() < columns:
        raise Error(f"predictions must be classes from 0 to {columns - 1}")
    other, signal = _signal(private)
    keep, cell = private.keep_probability, private.labels * columns + predictions

    def total(weight: np.ndarray) -> np.ndarray:
        """Sums `weight * 1[true = c]` by cell, with the indicator's unbiased estimate."""
        hits = np.bincount(cell, weight / signal, private.num_classes * columns)
        misses = np.bincount(predictions, weight * other / signal, columns)
        return hits.reshape(-1, columns) - misses

    own, rest = keep * (1 - keep) / signal**2, other * (1 - other) / signal**2
    variance = total(own - rest) + np.bincount(predictions, rest, columns)
    return Estimate(total(np.ones(len(keep))), np.sqrt(np.maximum(variance, 0)))


def _signal(private: PrivateLabels) -> tuple[np.ndarray, np.ndarray]:
    """Returns q, the probability of each other answer, and keep - q."""
    if (private.k != private.num_classes).any():
        raise Error(
            "some of these labels were drawn among their prior's top classes only, which says "
            "nothing about the others",
            "randomise the records to estimate from with RandomizedResponse",
        )
    other = (1 - private.keep_probability) / (private.num_classes - 1)
    signal = private.keep_probability - other
    if not (signal > 0).all():
        raise Error("labels of epsilon 0 carry no information")
    return other, signal


def _same_length(predictions: np.ndarray, private: PrivateLabels) -> np.ndarray:
    predictions = np.asarray(predictions)
    if predictions.shape != private.labels.shape:
        raise Error(f"there are {len(private)} labels for predictions of {predictions.shape}")
    return predictions


def _check_rows(prior: np.ndarray) -> None:
    if not len(prior):
        raise Error("the prior has no rows")
