"""Randomised response for labels: plain, among the top k of a prior, and with the best k."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from chapbook.core.errors import Error
from chapbook.label_dp.entropy import Entropy
from chapbook.label_dp.exact import check_epsilon, response_weights
from chapbook.label_dp.support import (
    FEW_CLASSES,
    EveryClass,
    Support,
    check_prior,
    checked_rows,
    official_k,
    optimal_support,
    support_of,
    top_support,
)
from chapbook.label_dp.verify import Proof, prove, prove_answers

# Blocks of at most this many probabilities and records: long enough that the calls cost little.
_BLOCK_CELLS = 1 << 21
_BLOCK_ROWS = 1 << 14
# Up to this many classes `verify` writes out the whole matrix, whose size is their square.
_WHOLE_MATRIX = 1 << 10


@dataclass(frozen=True, eq=False)
class PrivateLabels:
    """Labels that have been randomised, with what is public about how.

    Attributes:
        labels: The answers.
        k: The number of classes that each record could answer with.
        keep_probability: The probability of the true label as the answer, if it is one of the k.
        num_classes: The number of classes.
        epsilon: The largest epsilon spent on a record.
        mechanism: The mechanism's name.
        seeded: Whether the noise can be repeated by whoever knows the seed: then it is not private.
    """

    labels: Int[np.ndarray, " rows"]
    k: Int[np.ndarray, " rows"]
    keep_probability: Float[np.ndarray, " rows"]
    num_classes: int
    epsilon: float
    mechanism: str
    seeded: bool

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self, rows: int = 1 << 16) -> Iterator["PrivateLabels"]:
        """Yields the records in order, `rows` at a time."""
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            yield replace(
                self,
                labels=self.labels[part],
                k=self.k[part],
                keep_probability=self.keep_probability[part],
            )


class _Mechanism:
    """What all mechanisms of this module have in common: K classes and a budget."""

    num_classes: int
    epsilon: float | np.ndarray

    def __post_init__(self):
        if not 2 <= self.num_classes < 1 << 31:
            raise Error(f"num_classes is {self.num_classes}; it must be 2 or more")
        epsilon = np.asarray(self.epsilon, np.float64)
        if epsilon.ndim == 0:
            check_epsilon(float(epsilon))
        elif epsilon.ndim > 1:
            raise Error("epsilon must be one number, or one number for each record")
        elif not (epsilon >= 0).all():
            bad = int(np.argmin(epsilon >= 0))
            raise Error(f"the epsilon in row {bad} is {epsilon[bad]}; it must be 0 or more")

    @property
    def largest_epsilon(self) -> float:
        """The largest epsilon of a record: the guarantee for the whole."""
        return float(np.max(self.epsilon, initial=0.0))

    def _epsilons(self, rows: int) -> np.ndarray:
        epsilon = np.asarray(self.epsilon, np.float64)
        if epsilon.ndim == 1 and len(epsilon) != rows:
            raise Error(f"there are {len(epsilon)} epsilons for {rows} records")
        return np.broadcast_to(epsilon, (rows,))


@dataclass(frozen=True, eq=False)
class RandomizedResponse(_Mechanism):
    """Answers y with probability `e^eps / (e^eps + K - 1)`, each other class with `1 / (...)`.

    Args:
        num_classes: K, 2 or more.
        epsilon: The privacy budget, 0 to infinity: one number, or one for each record.

    Reference:
        Warner, Randomized Response, 1965; Ghazi et al., Deep Learning with Label Differential
        Privacy, algorithm 1.
    """

    num_classes: int
    epsilon: float | Float[np.ndarray, " rows"]

    def privatize(
        self, labels: Int[np.ndarray, " rows"], *, entropy: Entropy | None = None
    ) -> PrivateLabels:
        """Returns each label randomised once.

        Args:
            labels: Classes, 0 to K - 1.
            entropy: The source of noise; a fresh one from the operating system if None.

        Raises:
            Error: If a label is no class (the row is named, the label is not), or if there are
                epsilons but not one for each label.
        """
        labels = check_labels(labels, self.num_classes)
        blocks = (
            (rows, EveryClass(self.num_classes, rows.stop - rows.start))
            for rows in _row_blocks(len(labels), 1)
        )
        return _privatize(self, labels, blocks, entropy)

    def transition_matrix(self) -> Float[np.ndarray, "true answer"]:
        """Returns `Pr[answer | true label]`, of the largest epsilon."""
        matrix, total = self.integer_matrix()
        return matrix / total

    def integer_matrix(self) -> tuple[Int[np.ndarray, "true answer"], int]:
        """Returns the integer weights of each answer under each true label, and their total."""
        return _integer_matrix(self.largest_epsilon, np.ones(self.num_classes, bool))

    def verify(self) -> Proof:
        """Proves in exact arithmetic that no answer's probabilities differ by more than e^eps."""
        return _prove(self.largest_epsilon, np.ones(self.num_classes, bool))

    def expected_accuracy(self) -> Float[np.ndarray, " rows"]:
        """Returns `Pr[answer = true label]` for each epsilon, whatever the labels are."""
        epsilon = np.atleast_1d(np.asarray(self.epsilon, np.float64))
        k = np.full(len(epsilon), self.num_classes)
        total, keep, _, _ = _Table(self).weights(k, epsilon)
        return keep / total


class _PriorMechanism(_Mechanism, ABC):
    """What the mechanisms that answer among the top classes of a prior have in common."""

    normalize: bool

    @abstractmethod
    def _support(
        self, block: np.ndarray, first_row: int, t: np.ndarray
    ) -> tuple[Support, np.ndarray]:
        """Returns the classes that a block of records may answer with, and its checked prior."""

    def privatize(
        self,
        labels: Int[np.ndarray, " rows"],
        prior: Float[np.ndarray, "rows classes"],
        *,
        entropy: Entropy | None = None,
    ) -> PrivateLabels:
        """Returns each label randomised once.

        Args:
            labels: Classes, 0 to K - 1.
            prior: The probability of each class for each record, made without the labels.
            entropy: The source of noise; a fresh one from the operating system if None.

        Raises:
            Error: If a label is no class (the row is named, the label is not), or if a row of the
                prior is not finite, negative, or sums outside 1 +- 1e-6.
        """
        labels = check_labels(labels, self.num_classes)
        if len(prior) != len(labels):
            raise Error(f"there are {len(labels)} labels but {len(prior)} rows of the prior")
        blocks = ((rows, support) for rows, support, _ in self._blocks(prior))
        return _privatize(self, labels, blocks, entropy)

    def choose_k(self, prior: Float[np.ndarray, "rows classes"]) -> Int[np.ndarray, " rows"]:
        """Returns the number of classes that each record answers with: no label is seen."""
        out = np.empty(len(prior), np.int32)
        for rows, support, _ in self._blocks(prior):
            out[rows] = support.count()
        return out

    def support(
        self,
        prior: Float[np.ndarray, "rows classes"],
        k: Int[np.ndarray, " rows"] | int | None = None,
    ) -> Bool[np.ndarray, "rows classes"]:
        """Returns the classes that each record can be answered with.

        Args:
            prior: The probability of each class for each record.
            k: How many of the top classes; as many as the mechanism chooses if None.
        """
        out = np.empty((len(prior), self.num_classes), bool)
        if k is None:
            for rows, support, _ in self._blocks(prior):
                out[rows] = support.table()
            return out
        prior = check_prior(prior, self.num_classes)
        many = np.broadcast_to(np.asarray(k, np.int64), (len(prior),))
        if ((many < 1) | (many > self.num_classes)).any():
            raise Error(f"k must be 1 to {self.num_classes}")
        for rows in _row_blocks(len(prior), self.num_classes):
            out[rows] = top_support(prior[rows], many[rows])
        return out

    def transition_matrix(
        self, prior_row: Float[np.ndarray, " classes"]
    ) -> Float[np.ndarray, "true answer"]:
        """Returns `Pr[answer | true label]` under one record's prior, of the largest epsilon."""
        matrix, total = self.integer_matrix(prior_row)
        return matrix / total

    def integer_matrix(
        self, prior_row: Float[np.ndarray, " classes"]
    ) -> tuple[Int[np.ndarray, "true answer"], int]:
        """Returns the integer weights of each answer under each true label, and their total."""
        return _integer_matrix(self.largest_epsilon, self._one_support(prior_row))

    def verify(self, prior_row: Float[np.ndarray, " classes"]) -> Proof:
        """Proves in exact arithmetic that no answer's probabilities differ by more than e^eps."""
        return _prove(self.largest_epsilon, self._one_support(prior_row))

    def expected_accuracy(
        self, prior: Float[np.ndarray, "rows classes"]
    ) -> Float[np.ndarray, " rows"]:
        """Returns `Pr[answer = true label]` of each record if its label follows its prior."""
        epsilon = self._epsilons(len(prior))
        table, out = _Table(self), np.empty(len(prior))
        for rows, support, layout in self._blocks(prior):
            total, keep, _, _ = table.weights(support.count(), epsilon[rows])
            out[rows] = keep / total * support.mass(layout)
        return out

    def _blocks(self, prior: np.ndarray) -> Iterator[tuple[slice, Support, np.ndarray]]:
        """Yields blocks of records with their support and their prior, which has been checked."""
        prior = check_prior(prior, self.num_classes)
        self._epsilons(len(prior))  # an epsilon for each record, or one for all
        t = np.broadcast_to(np.exp(-np.asarray(self.epsilon, np.float64)), (len(prior),))
        for rows in _row_blocks(len(prior), self.num_classes):
            yield rows, *self._support(prior[rows], rows.start, t[rows])

    def _one_support(self, prior_row: np.ndarray) -> np.ndarray:
        one = type(self)(**{**self.__dict__, "epsilon": self.largest_epsilon})
        return one.support(np.asarray(prior_row)[None, :])[0]


@dataclass(frozen=True, eq=False)
class RRTopK(_PriorMechanism):
    """Randomised response among the k classes of largest prior; of equals, the smallest indices.

    If y is one of the k: y with probability `e^eps / (e^eps + k - 1)`, each other one of them
    with `1 / (e^eps + k - 1)`. Else each of the k with `1 / k`.

    Args:
        num_classes: K, 2 or more.
        epsilon: The privacy budget, 0 to infinity: one number, or one for each record.
        k: The number of classes to answer with, 1 to K.
        normalize: Whether rows of the prior are divided by their sum instead of refused.

    Reference:
        Ghazi et al., Deep Learning with Label Differential Privacy, algorithm 2.
    """

    num_classes: int
    epsilon: float | Float[np.ndarray, " rows"]
    k: int
    normalize: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.k <= self.num_classes:
            raise Error(f"k is {self.k}; it must be 1 to {self.num_classes}")

    def _support(
        self, block: np.ndarray, first_row: int, t: np.ndarray
    ) -> tuple[Support, np.ndarray]:
        layout = checked_rows(block, first_row, normalize=self.normalize)
        rows = layout.T if self.num_classes <= FEW_CLASSES else layout
        return support_of(top_support(rows, np.full(len(rows), self.k))), layout


@dataclass(frozen=True, eq=False)
class RRWithPrior(_PriorMechanism):
    """RRTop-k with the k that makes a true answer most probable: `argmax_k w_k`, the smallest.

    `w_k = (p_(1) + ... + p_(k)) / (1 + (k - 1) e^-eps)` is the probability that the answer is the
    true label when that follows the prior p. No eps-DP mechanism has a larger one than max_k w_k.
    A poor prior costs accuracy, never privacy. An infinite epsilon answers with the label itself.

    Args:
        num_classes: K, 2 or more.
        epsilon: The privacy budget, 0 to infinity: one number, or one for each record.
        normalize: Whether rows of the prior are divided by their sum instead of refused.
        official_k: Choose k as the published code does, which maximises
            `(p_(1) + ... + p_(k)) / (1 + (k - 2) e^-eps)`: private too, but not the best.

    Reference:
        Ghazi et al., Deep Learning with Label Differential Privacy, algorithm 3 and theorem 6.
    """

    num_classes: int
    epsilon: float | Float[np.ndarray, " rows"]
    normalize: bool = False
    official_k: bool = False

    def _support(
        self, block: np.ndarray, first_row: int, t: np.ndarray
    ) -> tuple[Support, np.ndarray]:
        if not self.official_k:
            return optimal_support(block, first_row, t, normalize=self.normalize)
        layout = checked_rows(block, first_row, normalize=self.normalize)
        rows = layout.T if self.num_classes <= FEW_CLASSES else layout
        return support_of(top_support(rows, official_k(rows, t))), layout


def respond(
    draws: Int[np.ndarray, " rows"],
    labels: Int[np.ndarray, " rows"],
    support: Support | EveryClass,
    weights: tuple[np.ndarray, ...],
) -> Int[np.ndarray, " rows"]:
    """Returns the answer that follows from each record's draw: the whole mechanism, without chance.

    A true label in the support: draws below `keep` answer it, and each run of `other` draws above
    answers one of the other members in class order. Otherwise each run of `uniform` draws answers
    one member in class order.

    Args:
        draws: Integers, uniform over 0 to total - 1.
        labels: Classes.
        support: The classes that each record may answer with.
        weights: total, keep, other and uniform of each record (see `exact.Weights`).
    """
    _, keep, other, uniform = weights
    inside, position = support.find(labels)
    kept = inside & (draws < keep)
    # Where the true label is no member, `keep` is not set aside and the runs are longer.
    above = draws - keep * inside
    run = np.where(inside, other, uniform)
    rank = np.where(kept, 0, _quotient(above, np.maximum(run, 1)))
    # Counting the other members passes over the true label.
    rank += inside & ~kept & (rank >= position)
    return np.where(kept, labels, support.member(rank))


def _quotient(
    numerators: Int[np.ndarray, " rows"], denominators: Int[np.ndarray, " rows"]
) -> Int[np.ndarray, " rows"]:
    """Returns the integer quotients of numbers of up to 62 bits, where they are below 2^31.

    The quotient of floats is at most one off, and integers put it right: several times faster
    than the processor's division of integers, and as exact.
    """
    quotient = (numerators.astype(np.float64) / denominators).astype(np.int64)
    rest = numerators - quotient * denominators
    quotient -= rest < 0
    quotient += rest >= denominators
    return quotient


class _Table:
    """The integer weights by epsilon and k, looked up for whole blocks."""

    def __init__(self, mechanism: _Mechanism):
        self._scalar = float(mechanism.epsilon) if np.ndim(mechanism.epsilon) == 0 else None
        self._columns = np.zeros((4, mechanism.num_classes + 1), np.int64)

    def weights(self, k: np.ndarray, epsilon: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns total, keep, other and uniform of each record."""
        if self._scalar is not None:
            k = k.astype(np.intp)  # once, not for each of the columns
            seen = np.flatnonzero(np.bincount(k))
            for each in seen[self._columns[0, seen] == 0]:
                self._columns[:, each] = response_weights(self._scalar, int(each))
            return tuple(np.take(column, k) for column in self._columns)
        budgets, budget = np.unique(epsilon, return_inverse=True)
        width = len(self._columns[0])
        pairs, pair = np.unique(budget * width + k, return_inverse=True)
        every = [response_weights(float(budgets[p // width]), int(p % width)) for p in pairs]
        return tuple(np.take(column, pair) for column in np.array(every, np.int64).T)


def _privatize(
    mechanism: _Mechanism,
    labels: np.ndarray,
    blocks: Iterable[tuple[slice, Support | EveryClass]],
    entropy: Entropy | None,
) -> PrivateLabels:
    entropy = Entropy() if entropy is None else entropy
    epsilon = mechanism._epsilons(len(labels))
    table = _Table(mechanism)
    answers = np.empty(len(labels), np.int32)
    ks = np.empty(len(labels), np.int32)
    keeps = np.empty(len(labels))
    for rows, support in blocks:
        ks[rows] = support.count()
        weights = table.weights(ks[rows], epsilon[rows])
        draws = entropy.under(weights[0])
        answers[rows] = respond(draws, labels[rows], support, weights)
        keeps[rows] = weights[1] / weights[0]
    return PrivateLabels(
        answers,
        ks,
        keeps,
        mechanism.num_classes,
        mechanism.largest_epsilon,
        type(mechanism).__name__,
        entropy.seeded,
    )


def _row_blocks(rows: int, classes: int) -> Iterator[slice]:
    size = max(1, min(_BLOCK_ROWS, _BLOCK_CELLS // classes))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _integer_matrix(epsilon: float, members: np.ndarray) -> tuple[np.ndarray, int]:
    weights = response_weights(epsilon, int(members.sum()))
    matrix = np.where(members[:, None], weights.other, weights.uniform) * members[None, :]
    own = np.flatnonzero(members)
    matrix[own, own] = weights.keep
    return matrix, weights.total


def _prove(epsilon: float, members: np.ndarray) -> Proof:
    k = int(members.sum())
    if len(members) <= _WHOLE_MATRIX:
        return prove(*_integer_matrix(epsilon, members), epsilon)
    # Every answer has the same three kinds of inputs: itself, another of the k, none of the k.
    total, keep, other, uniform = response_weights(epsilon, k)
    kinds = [keep] + [other] * (k > 1) + [uniform] * (k < len(members))
    distributions = keep + (k - 1) * other == total == k * uniform
    largest, smallest = np.full(k, max(kinds)), np.full(k, min(kinds))
    return prove_answers(largest, smallest, distributions, epsilon)


def check_labels(labels: np.ndarray, num_classes: int) -> Int[np.ndarray, " rows"]:
    """Returns the labels as int32, or raises an `Error` that names a row but never a label."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool):
        raise Error(
            f"the labels are {labels.dtype} of shape {labels.shape}; they must be one row of "
            f"integers from 0 to {num_classes - 1}"
        )
    bad = (labels < 0) | (labels >= num_classes)
    if bad.any():
        raise Error(
            f"the label in row {int(np.argmax(bad))} is none of the {num_classes} classes, "
            f"0 to {num_classes - 1}"
        )
    return labels.astype(np.int32)
