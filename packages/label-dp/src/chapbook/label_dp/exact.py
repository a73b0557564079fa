"""The integers behind the mechanisms: rational bounds of e^eps and the weights that respect them.

A probability that is rounded to a float can break the ratio e^eps that differential privacy
promises. Here a probability is an integer weight over a known integer total, every rounding goes
towards more noise, and the ratio of two weights is compared with a rational number that is proven
to lie below e^eps.
"""

import math
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from chapbook.core.errors import Error

RANGE_BITS = 62  # a weight and a sum of two weights both fit a signed 64-bit integer
_FIXED_POINT_BITS = 192
# e^64 exceeds 2^62, the largest ratio that two positive weights can have, so that nothing is lost.
_LARGEST_EXPONENT = 64


class Weights(NamedTuple):
    """The response of `k` classes in integers: `keep + (k - 1) * other == total == k * uniform`.

    Attributes:
        total: How many equally likely draws there are.
        keep: How many of them answer with the true label, when it is one of the k classes.
        other: How many of them answer with each of the other k - 1 classes.
        uniform: How many answer with each of the k classes when the true label is none of them.
    """

    total: int
    keep: int
    other: int
    uniform: int


def check_epsilon(epsilon: float) -> float:
    """Returns the privacy budget as a float, or raises an `Error` if it is NaN or negative."""
    epsilon = float(epsilon)
    if math.isnan(epsilon) or epsilon < 0:
        raise Error(f"epsilon is {epsilon}; it must be 0 or more")
    return epsilon


@lru_cache(maxsize=1 << 16)
def exp_lower_bound(exponent: float | Fraction) -> Fraction:
    """Returns a rational number L with `0 <= e^x - L <= 2^-150 e^x`, for 0 <= x <= 64.

    The Taylor series of e^(x / 2^j) has positive terms only: cutting it off and rounding every
    term down gives a lower bound, and squaring j times with rounding down keeps it one. Above
    64 the bound of e^64 is returned, which is a (poor) lower bound too.

    Args:
        exponent: The exact value of x; a float stands for the rational number that it is.

    Raises:
        ValueError: If the exponent is negative or NaN.
    """
    if not exponent >= 0:
        raise ValueError(f"the exponent is {exponent}; it must be 0 or more")
    if exponent >= _LARGEST_EXPONENT:
        exponent = _LARGEST_EXPONENT
    exact = Fraction(exponent)
    halvings = max(0, math.ceil(exact).bit_length())
    one = 1 << _FIXED_POINT_BITS
    x = one * exact.numerator // (exact.denominator << halvings)
    term, total, n = one, one, 1
    while term:
        term = (term * x >> _FIXED_POINT_BITS) // n
        total += term
        n += 1
    for _ in range(halvings):
        total = total * total >> _FIXED_POINT_BITS
    return Fraction(total, one)


@lru_cache(maxsize=1 << 18)
def response_weights(epsilon: float, k: int) -> Weights:
    """Returns the integer weights of an eps-DP randomised response among `k` classes.

    With a rational `L <= e^eps` and `total = k * floor(2^62 / k)`:
    `other = ceil(total / (L + k - 1))` and `keep = total - (k - 1) * other`, hence
    `other <= uniform <= keep <= L * other`, exactly. For an infinite epsilon `other` is 0.

    Args:
        epsilon: The privacy budget, 0 or more, as the exact rational number that the float is.
        k: The number of classes that can be answered, 1 to 2^31.

    Returns:
        The weights, all of them at most 2^62.

    Reference:
        Ghazi et al., Deep Learning with Label Differential Privacy, section 3.
    """
    uniform = (1 << RANGE_BITS) // k
    total = k * uniform
    if epsilon == math.inf:
        return Weights(total, total, 0, uniform)
    numerator, denominator = exp_lower_bound(epsilon).as_integer_ratio()
    other = -(-total * denominator // (numerator + (k - 1) * denominator))
    return Weights(total, total - (k - 1) * other, other, uniform)
