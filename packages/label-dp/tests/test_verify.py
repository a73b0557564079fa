import math
from fractions import Fraction

import numpy as np
import pytest

from chapbook.core.errors import Error
from chapbook.label_dp.exact import exp_lower_bound, response_weights
from chapbook.label_dp.verify import prove


def matrix(keep, other, k=3):
    return np.where(np.eye(k, dtype=bool), keep, other)


def test_one_unit_too_much_for_the_true_label_is_refuted():
    total, keep, other, _ = response_weights(1.0, 3)
    assert prove(matrix(keep, other), total, 1.0).holds
    larger = matrix(keep + 1, other)
    larger[:, 0] -= np.array([0, 1, 0])
    larger[:, 1] -= np.array([0, 0, 1])
    larger[:, 2] -= np.array([1, 0, 0])
    proof = prove(larger, total, 1.0)
    assert not proof.holds
    assert proof.largest_ratio > exp_lower_bound(1.0)


def test_the_ratio_of_floats_rounded_to_the_nearest_would_be_refuted():
    keep = round(2**62 * math.e / (math.e + 2))
    other = (2**62 - keep) // 2
    keep = 2**62 - 2 * other
    assert Fraction(keep, other) > exp_lower_bound(1.0)
    assert not prove(matrix(keep, other), 2**62, 1.0).holds


def test_an_answer_that_one_input_cannot_give_is_refuted():
    proof = prove(np.array([[1, 1], [2, 0]]), 2, 5.0)
    assert not proof.holds
    assert proof.largest_ratio == math.inf
    assert prove(np.array([[1, 1], [2, 0]]), 2, math.inf).holds


def test_an_answer_that_no_input_gives_is_harmless():
    proof = prove(np.array([[1, 0], [1, 0]]), 1, 0.0)
    assert proof.holds
    assert proof.answers == 1
    assert proof.largest_ratio == 1


def test_rows_that_are_no_distributions_are_refuted():
    assert not prove(np.array([[2, 2], [2, 3]]), 4, 1.0).holds
    assert not prove(np.array([[5, -1], [5, -1]]), 4, 1.0).holds


def test_row_sums_do_not_overflow():
    huge = np.full((2, 5), 2**62)
    assert not prove(huge, (5 * 2**62) % 2**64, 1.0).holds
    assert prove(huge, 5 * 2**62, 1.0).holds


@pytest.mark.wrong_types
def test_floats_prove_nothing():
    with pytest.raises(Error, match="64-bit integers"):
        prove(np.array([[0.5, 0.5]]), 1, 1.0)
