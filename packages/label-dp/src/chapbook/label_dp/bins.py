"""Private numbers: randomised response on the bins that a prior makes best."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from chapbook.core.errors import Error
from chapbook.label_dp.discrete_laplace import discrete_laplace
from chapbook.label_dp.entropy import Entropy
from chapbook.label_dp.exact import check_epsilon, response_weights
from chapbook.label_dp.randomized_response import respond
from chapbook.label_dp.support import SUM_TOLERANCE, EveryClass
from chapbook.label_dp.verify import Proof, prove


class Loss(Enum):
    """The loss `l(output, y)` whose expectation the bins minimise."""

    SQUARED = "squared"  # (output - y)^2
    ABSOLUTE = "absolute"  # |output - y|
    POISSON = "poisson"  # output - y log(output): the Poisson log-likelihood's part with output

    def __call__(
        self, output: Num[np.ndarray, "..."] | float, y: Num[np.ndarray, "..."] | float
    ) -> Float[np.ndarray, "..."] | float:
        """Returns the loss elementwise, with `0 log 0 = 0`."""
        if self is Loss.SQUARED:
            return np.square(output - y)
        if self is Loss.ABSOLUTE:
            return np.abs(output - y)
        with np.errstate(divide="ignore", invalid="ignore"):
            return output - np.where(y == 0, 0.0, y * np.log(output))


class PrivateValues(NamedTuple):
    """Numbers that have been randomised, with what is public about how.

    Attributes:
        values: The answers.
        epsilon: The privacy budget spent on each record.
        mechanism: The mechanism's name.
        seeded: Whether the noise can be repeated by whoever knows the seed: then it is not private.
    """

    values: Float[np.ndarray, " rows"]
    epsilon: float
    mechanism: str
    seeded: bool


class NumberMechanism(ABC):
    """What randomises private numbers, all at one privacy budget."""

    epsilon: float

    def privatize(
        self, values: Float[np.ndarray, " rows"], *, entropy: Entropy | None = None
    ) -> PrivateValues:
        """Returns each value randomised once.

        Args:
            values: The private numbers; those outside [low, high] are taken for the nearer end.
            entropy: The source of noise; a fresh one from the operating system if None.

        Raises:
            Error: If a value is missing or no number (the row is named, the value is not).
        """
        entropy = Entropy() if entropy is None else entropy
        answers = self._randomise(check_values(values), entropy)
        return PrivateValues(answers, self.epsilon, type(self).__name__, entropy.seeded)

    @abstractmethod
    def _randomise(
        self, values: Float[np.ndarray, " rows"], entropy: Entropy
    ) -> Float[np.ndarray, " rows"]:
        """Returns the answers to numbers that have been checked."""


@dataclass(frozen=True, eq=False)
class RROnBins(NumberMechanism):
    """Answers with the value of y's bin with probability `e^eps / (e^eps + k - 1)`, else another.

    Made by `RROnBins.fit`, which chooses the bins and their values so that the expected loss is
    the least that any eps-DP mechanism can reach under the prior.

    Attributes:
        epsilon: The privacy budget, 0 to infinity.
        edges: The k - 1 inner boundaries, ascending: bin j holds `edges[j-1] <= y < edges[j]`.
        outputs: The k values that are answered, one for each bin.
        low: The smallest y; smaller ones are taken for it.
        high: The largest y; larger ones are taken for it.
        loss: The loss that was minimised.
        expected_loss: `E[l(answer, y)]` under the prior.

    Reference:
        Ghazi et al., Regression with Label Differential Privacy, ICLR 2023, algorithms 1 and 2.
    """

    epsilon: float
    edges: Float[np.ndarray, " inner"]
    outputs: Float[np.ndarray, " bins"]
    low: float
    high: float
    loss: Loss
    expected_loss: float

    @classmethod
    def fit(
        cls,
        atoms: Float[np.ndarray, " atoms"],
        prior: Float[np.ndarray, " atoms"],
        epsilon: float,
        loss: Loss = Loss.SQUARED,
    ) -> "RROnBins":
        """Finds the bins and their values that minimise the expected loss, exactly.

        With t = e^-eps, k bins have the expected loss
        `sum_bins min_v [t sum_all p l(v, y) + (1 - t) sum_bin p l(v, y)] / (1 + (k - 1) t)`.
        For the best ratio r, `min over partitions of sum_bins (cost - r t) = r (1 - t)`
        (Dinkelbach), and the minimum over partitions is a shortest path over the sorted atoms. So
        k needs no loop: a handful of passes over the n^2 / 2 possible bins find the optimum over
        all k, in memory that grows with n.

        Args:
            atoms: The possible y, in any order.
            prior: Their probabilities, made without the private values or paid for.
            epsilon: The privacy budget, 0 to infinity.
            loss: The loss to minimise; the Poisson loss needs y >= 0.

        Raises:
            Error: If atoms or prior are not finite, differ in length, or the prior is negative or
                does not sum to 1.
        """
        epsilon = check_epsilon(epsilon)
        y, p = _sorted_atoms(atoms, prior, loss)
        starts, outputs, expected = _best_bins(y, p, math.exp(-epsilon), loss)
        inner = starts[1:]
        edges = (y[inner - 1] + y[inner]) / 2
        return cls(epsilon, edges, outputs, float(y[0]), float(y[-1]), loss, expected)

    def _randomise(
        self, values: Float[np.ndarray, " rows"], entropy: Entropy
    ) -> Float[np.ndarray, " rows"]:
        bins = self.bin_of(values)
        weights = response_weights(self.epsilon, len(self.outputs))
        columns = tuple(np.full(len(bins), weight) for weight in weights)
        answers = respond(
            entropy.under(columns[0]), bins, EveryClass(len(self.outputs), len(bins)), columns
        )
        return self.outputs[answers]

    def bin_of(self, values: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
        """Returns the bin of each value."""
        return np.searchsorted(self.edges, values, side="right")

    def integer_matrix(self) -> tuple[Int[np.ndarray, "bins bins"], int]:
        """Returns the weights of each answer for each bin of the true value, and their total."""
        weights = response_weights(self.epsilon, len(self.outputs))
        matrix = np.full((len(self.outputs),) * 2, weights.other)
        np.fill_diagonal(matrix, weights.keep)
        return matrix, weights.total

    def transition_matrix(self) -> Float[np.ndarray, "bins bins"]:
        """Returns `Pr[answer | bin of the true value]`."""
        matrix, total = self.integer_matrix()
        return matrix / total

    def verify(self) -> Proof:
        """Proves in exact arithmetic that no answer's probabilities differ by more than e^eps."""
        return prove(*self.integer_matrix(), self.epsilon)


def histogram_prior(
    values: Float[np.ndarray, " rows"],
    low: float,
    high: float,
    cells: int,
    epsilon: float,
    *,
    entropy: Entropy | None = None,
) -> tuple[Float[np.ndarray, " cells"], Float[np.ndarray, " cells"]]:
    """Returns the centres of equal cells of [low, high] and a private histogram over them.

    Replacing one value moves two counts by one, so that each count gets discrete Laplace noise of
    rate eps / 2; negative counts are set to 0. This spends epsilon on every record: it adds to
    what the mechanism spends.

    Args:
        values: The private numbers; those outside [low, high] are taken for the nearer end.
        low: The smallest possible value, known without looking at the data.
        high: The largest possible value, known without looking at the data.
        cells: The number of cells.
        epsilon: The privacy budget of the histogram, above 0.
        entropy: The source of noise; a fresh one from the operating system if None.

    Returns:
        The centres and their probabilities; uniform if no count is left.
    """
    check_range(low, high)
    if cells < 1:
        raise Error(f"a histogram of {cells} cells holds nothing; take 1 or more")
    values = np.clip(check_values(values), low, high)
    cell = np.minimum(((values - low) / (high - low) * cells).astype(np.int64), cells - 1)
    counts = np.bincount(cell, minlength=cells)
    noisy = np.maximum(counts + discrete_laplace(epsilon / 2, cells, entropy=entropy), 0)
    prior = noisy / noisy.sum() if noisy.any() else np.full(cells, 1 / cells)
    return low + (np.arange(cells) + 0.5) * (high - low) / cells, prior


def check_values(values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Returns the values as float64, or raises an `Error` that names a row but never a value."""
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        raise Error(f"the values are {values.dtype} of shape {values.shape}, not a row of numbers")
    values = values.astype(np.float64)
    if np.isnan(values).any():
        raise Error(f"the value in row {int(np.argmax(np.isnan(values)))} is missing")
    return values


def check_range(low: float, high: float) -> None:
    """Raises an `Error` unless low and high are finite and low < high."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise Error(f"the range {low} to {high} must be finite and ascending")


def _sorted_atoms(
    atoms: np.ndarray, prior: np.ndarray, loss: Loss
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct atoms of positive probability, ascending, and those probabilities."""
    atoms, prior = np.asarray(atoms, np.float64), np.asarray(prior, np.float64)
    if atoms.ndim != 1 or atoms.shape != prior.shape or not len(atoms):
        raise Error(f"there are {atoms.shape} atoms and {prior.shape} probabilities; pair them")
    if not np.isfinite(atoms).all():
        raise Error(f"atom {int(np.argmin(np.isfinite(atoms)))} of the prior is not finite")
    if not (prior >= 0).all():
        raise Error(f"probability {int(np.argmin(prior >= 0))} of the prior is negative or NaN")
    if not abs(prior.sum() - 1) <= SUM_TOLERANCE:
        raise Error(f"the prior sums to {prior.sum():.9g}, not 1")
    if loss is Loss.POISSON and atoms.min() < 0:
        raise Error("the Poisson loss needs values of 0 or more")
    y, which = np.unique(atoms, return_inverse=True)
    p = np.bincount(which, prior, len(y))
    return y[p > 0], p[p > 0] / p.sum()


class _Path(NamedTuple):
    """A partition of the atoms: each bin's first atom and answer, and the sum of their costs."""

    starts: np.ndarray
    outputs: np.ndarray
    cost: float


def _best_bins(
    y: np.ndarray, p: np.ndarray, t: float, loss: Loss
) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the first atom of each best bin, the bins' answers and the expected loss."""
    search = _median_bins if loss is Loss.ABSOLUTE else _mean_bins
    best, ratio = None, 0.0
    while True:
        path = search(y, p, t, loss, ratio * t)
        found = path.cost / (1 + (len(path.starts) - 1) * t)
        # Each pass lowers the ratio until it finds the best one again, up to rounding.
        if best is not None and not found < ratio - 1e-13 * abs(ratio):
            break
        best, ratio = path, found
    inside = np.repeat(best.outputs, np.diff(best.starts, append=len(y)))
    own = float(p @ loss(inside, y))
    every = sum(float(p @ loss(output, y)) for output in best.outputs)
    expected = (t * every + (1 - t) * own) / (1 + (len(best.starts) - 1) * t)
    return best.starts, best.outputs, expected


def _mean_bins(y: np.ndarray, p: np.ndarray, t: float, loss: Loss, credit: float) -> _Path:
    """Finds the bins of least cost less credit for losses whose best answer is a weighted mean."""
    n = len(y)
    # The squared loss does not change when y is moved, and its sums cancel least about the mean.
    shift = float(p @ y) if loss is Loss.SQUARED else 0.0
    z = y - shift
    mass, first, second = (np.append(0.0, np.cumsum(p * z**power)) for power in range(3))

    def cost(starts: slice, end: int) -> tuple[np.ndarray, np.ndarray]:
        weight = t + (1 - t) * (mass[end] - mass[starts])
        moment = t * first[-1] + (1 - t) * (first[end] - first[starts])
        mean = moment / weight
        if loss is Loss.SQUARED:
            square = t * second[-1] + (1 - t) * (second[end] - second[starts])
            return square - moment * mean, mean
        with np.errstate(divide="ignore", invalid="ignore"):
            return moment - np.where(moment == 0, 0.0, moment * np.log(mean)), mean

    total, last = np.zeros(n + 1), np.zeros(n + 1, np.int64)
    for end in range(1, n + 1):
        candidates = cost(slice(0, end), end)[0] + total[:end]
        last[end] = candidates.argmin()
        total[end] = candidates[last[end]] - credit
    starts = _walk_back(last)
    ends = np.append(starts[1:], n)
    outputs = np.concatenate(
        [cost(slice(s, s + 1), e)[1] for s, e in zip(starts, ends, strict=True)]
    )
    return _Path(starts, outputs + shift, float(total[n] + len(starts) * credit))


def _median_bins(y: np.ndarray, p: np.ndarray, t: float, loss: Loss, credit: float) -> _Path:
    """Finds the bins of least cost less credit for the absolute loss, whose best answer is an atom.

    For each atom v that the last bin may answer with, the least cost so far is kept: adding atom i
    either extends that bin or opens one after the best of all.
    """
    n = len(y)
    mass, first = np.cumsum(p), np.cumsum(p * y)
    opening = t * (y * (2 * mass - 1) - 2 * first + first[-1]) - credit
    open_cost, opened = np.full(n, np.inf), np.zeros(n, np.int64)
    total, last, answer = 0.0, np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
    for end in range(1, n + 1):
        fresh = opening + total
        opened[fresh < open_cost] = end - 1
        np.minimum(open_cost, fresh, out=open_cost)
        open_cost += (1 - t) * p[end - 1] * np.abs(y - y[end - 1])
        answer[end] = best = int(open_cost.argmin())
        last[end], total = opened[best], open_cost[best]
    starts = _walk_back(last)
    ends = np.append(starts[1:], n)
    return _Path(starts, y[answer[ends]], float(total + len(starts) * credit))


def _walk_back(last: np.ndarray) -> np.ndarray:
    """Returns the starts of the bins on the path that ends at the last atom."""
    path = [len(last) - 1]
    while path[-1]:
        path.append(int(last[path[-1]]))
    return np.array(path[:0:-1])
