"""Proof by enumeration, in exact arithmetic, that a mechanism keeps its promise."""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from chapbook.core.errors import Error
from chapbook.label_dp.exact import exp_lower_bound


class Proof(NamedTuple):
    """What enumerating every answer of a mechanism has shown.

    Attributes:
        epsilon: The privacy budget that was claimed.
        answers: The number of answers with a positive probability.
        largest_ratio: The largest ratio, over answers and pairs of true labels, of the answer's
            probabilities, exactly; infinite if some answer is possible under one label and
            impossible under another.
        bound: A rational number proven to be at most e^eps; infinite for an infinite epsilon.
        holds: Whether the rows are distributions and the largest ratio is at most the bound.
    """

    epsilon: float
    answers: int
    largest_ratio: Fraction | float
    bound: Fraction | float
    holds: bool


def prove(matrix: Int[np.ndarray, "inputs answers"], total: int, epsilon: float) -> Proof:
    """Checks `max_x Pr[o | x] <= e^eps min_x Pr[o | x]` for every answer o, in exact arithmetic.

    Args:
        matrix: Integer weights: `Pr[o | x] = matrix[x, o] / total`.
        total: The sum of every row.
        epsilon: The privacy budget, 0 to infinity.

    Raises:
        Error: If the weights are not integers.
    """
    if matrix.dtype != np.int64:
        raise Error(f"exact proofs need weights in 64-bit integers, not {matrix.dtype}")
    return prove_answers(
        matrix.max(axis=0), matrix.min(axis=0), set(_row_sums(matrix)) == {total}, epsilon
    )


def prove_answers(
    largest: Int[np.ndarray, " answers"],
    smallest: Int[np.ndarray, " answers"],
    distributions: bool,
    epsilon: float,
) -> Proof:
    """Checks the ratio of the largest and the smallest weight of every answer, in exact arithmetic.

    Args:
        largest: The largest weight of each answer over all inputs.
        smallest: The smallest weight of each answer over all inputs.
        distributions: Whether the weights of each input are known to have one and the same sum.
        epsilon: The privacy budget, 0 to infinity.
    """
    possible = largest > 0
    extremes = np.unique(np.stack([largest, smallest])[:, possible], axis=1).T
    bound = math.inf if epsilon == math.inf else exp_lower_bound(epsilon)
    if (extremes <= 0).any():
        ratio = math.inf
    else:
        ratio = max(Fraction(int(high), int(low)) for high, low in extremes)
    holds = distributions and bool((smallest >= 0).all()) and ratio <= bound
    return Proof(epsilon, int(np.count_nonzero(possible)), ratio, bound, holds)


def _row_sums(matrix: np.ndarray) -> list[int]:
    """Returns the exact sums of rows, which 64 bits need not hold: halves of a word are summed."""
    high, low = (matrix >> 32).sum(axis=1), (matrix & 0xFFFFFFFF).sum(axis=1)
    return [(int(h) << 32) + int(w) for h, w in zip(high, low, strict=True)]
