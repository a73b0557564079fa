"""Discrete Laplace noise, sampled exactly: integers and coin tosses of rational bias, no floats."""

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Int

from chapbook.core.errors import Error
from chapbook.label_dp.entropy import Entropy

_DENOMINATOR_BITS = 30
_LARGEST_RATE = 1 << 20


def rational_rate(rate: float | Fraction) -> Fraction:
    """Returns the rate that is sampled: at most the given one, so that the noise is never less.

    It is the rate rounded down to 31 significant bits, with a denominator of at most 2^40.

    Args:
        rate: epsilon / sensitivity, above 0.

    Raises:
        Error: If the rate is not finite or below 2^-40, where the noise would drown any count.
    """
    if not 0 < rate < math.inf:
        raise Error(f"the noise rate is {rate}; it must be above 0 and finite")
    exact = min(Fraction(rate), Fraction(_LARGEST_RATE))
    bits = _DENOMINATOR_BITS + max(0, -math.floor(math.log2(exact)))
    rounded = Fraction(math.floor(exact * (1 << min(bits, 40))), 1 << min(bits, 40))
    if rounded == 0:
        raise Error(f"the noise rate {float(rate):g} is too small; it must be 2^-40 or more")
    return rounded


def discrete_laplace(
    rate: float | Fraction, size: int | tuple[int, ...], *, entropy: Entropy | None = None
) -> Int[np.ndarray, "..."]:
    """Draws integers x with probability `(1 - q) / (1 + q) q^|x|`, `q = e^-rate`, exactly.

    A count that one record changes by at most `sensitivity` is eps-DP with rate
    `eps / sensitivity`. Replacing one label moves one count up and one down: sensitivity 2 for a
    histogram. A float stands for the exact rational number that it is, rounded down to 31 bits.

    Args:
        rate: epsilon / sensitivity, above 0: a float or a fraction.
        size: The shape to draw.
        entropy: The source of noise; a fresh one from the operating system if None.

    Reference:
        Canonne, Kamath and Steinke, The Discrete Gaussian for Differential Privacy, 2020,
        algorithms 1 and 2.
    """
    entropy = Entropy() if entropy is None else entropy
    exact = rational_rate(rate)
    shape = (size,) if isinstance(size, int | np.integer) else tuple(size)
    out = np.empty(math.prod(shape), np.int64)
    missing = np.arange(out.size)
    while missing.size:
        noise, accepted = _attempt(missing.size, exact.numerator, exact.denominator, entropy)
        out[missing[accepted]] = noise[accepted]
        missing = missing[~accepted]
    return out.reshape(shape)


def _attempt(
    count: int, s: int, t: int, entropy: Entropy
) -> tuple[Int[np.ndarray, " count"], Bool[np.ndarray, " count"]]:
    """Draws noise of rate s / t, and which draws count: the others are to be drawn again."""
    low = entropy.below(np.full(count, t))
    accepted = _bernoulli_exp(low, t, entropy)
    high = np.zeros(count, np.int64)
    running = np.flatnonzero(accepted)
    while running.size:
        ones = np.ones(running.size, np.int64)
        running = running[_bernoulli_exp(ones, 1, entropy)]
        high[running] += 1
    magnitude = (low + t * high) // s
    negative = entropy.words(count) >> np.uint64(63) == 1
    # Zero has two signs; one of them is refused, or it would be drawn twice as often.
    accepted &= ~(negative & (magnitude == 0))
    return np.where(negative, -magnitude, magnitude), accepted


def _bernoulli_exp(
    numerators: Int[np.ndarray, " count"], denominator: int, entropy: Entropy
) -> Bool[np.ndarray, " count"]:
    """Tosses coins of probability `e^(-numerator / denominator)`, numerator <= denominator.

    The coins of probability `gamma / 1, gamma / 2, ...` are tossed until the first that fails; its
    number is odd with probability `e^-gamma`.
    """
    number = np.ones(len(numerators), np.int64)
    running = np.arange(len(numerators))
    while running.size:
        draws = entropy.below(number[running] * denominator)
        running = running[draws < numerators[running]]
        number[running] += 1
    return number % 2 == 1
