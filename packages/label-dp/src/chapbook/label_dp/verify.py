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
            probabilities, exactly; None if some answer is possible under one label and impossible
            under another.
        bound: A rational number proven to be at most e^eps; None for an infinite epsilon.
        holds: Whether the rows are distributions and the largest ratio is at most the bound.
    """

    epsilon: float
    answers: int
    largest_ratio: Fraction | None
    bound: Fraction | None
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
    if not np.issubdtype(matrix.dtype, np.integer) and matrix.dtype != object:
        raise Error(f"exact proofs need integer weights, not {matrix.dtype}")
    rows_sum = all(sum(map(int, row)) == total for row in matrix)
    largest, smallest = matrix.max(axis=0), matrix.min(axis=0)
    extremes = {(int(a), int(b)) for a, b in zip(largest, smallest, strict=True) if a > 0}
    answers = int(np.count_nonzero(largest))
    bound = None if epsilon == math.inf else exp_lower_bound(epsilon)
    valid = rows_sum and int(matrix.min(initial=0)) >= 0
    if any(low == 0 for _, low in extremes):
        return Proof(epsilon, answers, None, bound, valid and bound is None)
    ratio = max((Fraction(high, low) for high, low in extremes), default=Fraction(1))
    return Proof(epsilon, answers, ratio, bound, valid and (bound is None or ratio <= bound))
