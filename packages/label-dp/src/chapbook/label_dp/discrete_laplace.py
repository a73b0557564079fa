"""Geometric and discrete Laplace noise, sampled exactly: integers and coins of rational bias."""

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Int

from chapbook.core.errors import Error
from chapbook.label_dp.entropy import Entropy

_SIGNIFICANT_BITS = 31
_DENOMINATOR_BITS = 48  # products with the coin's number, at most 2^14, stay below 2^62
_LARGEST_RATE = 1 << 12  # e^-4096 and less are never seen anyway
_SMALLEST_RATE = 2.0**-40  # below, a draw would leave the range of exact 64-bit sums


def rational_rate(rate: float | Fraction) -> Fraction:
    """Returns the rate that is sampled: never above the given one, so that the noise is not less.

    It is the rate rounded down to 31 significant bits and a denominator of at most 2^48.

    Args:
        rate: epsilon / sensitivity, 2^-40 or more.

    Raises:
        Error: If the rate is not finite or below 2^-40.
    """
    if not _SMALLEST_RATE <= rate < math.inf:
        raise Error(f"the noise rate {float(rate):g} must be finite and at least 2^-40")
    exact = min(Fraction(rate), Fraction(_LARGEST_RATE))
    exponent = math.floor(math.log2(exact))
    bits = min(_DENOMINATOR_BITS, max(0, _SIGNIFICANT_BITS - 1 - exponent))
    return Fraction(math.floor(exact * (1 << bits)), 1 << bits)


def discrete_laplace(
    rate: float | Fraction, size: int | tuple[int, ...], *, entropy: Entropy | None = None
) -> Int[np.ndarray, "..."]:
    """Draws integers x with probability `(1 - q) / (1 + q) q^|x|`, `q = e^-rate`, exactly.

    A count that one record changes by at most `sensitivity` is eps-DP with rate
    `eps / sensitivity`. Replacing one label moves one count up and one down: sensitivity 2 for a
    histogram. A float stands for the exact rational number that it is; the rate that is sampled
    is `rational_rate(rate)`.

    Args:
        rate: epsilon / sensitivity, at least 2^-40: a float or a fraction.
        size: The shape to draw.
        entropy: The source of noise; a fresh one from the operating system if None.

    Reference:
        Canonne, Kamath and Steinke, The Discrete Gaussian for Differential Privacy, 2020,
        algorithm 2.
    """
    entropy = Entropy() if entropy is None else entropy
    exact = rational_rate(rate)
    shape = (size,) if isinstance(size, int | np.integer) else tuple(size)
    out = np.empty(math.prod(shape), np.int64)
    missing = np.arange(out.size)
    while missing.size:
        magnitude = geometric(exact, missing.size, entropy)
        negative = entropy.words(missing.size) >> np.uint64(63) == 1
        # Zero has two signs; one of them is refused, or it would be drawn twice as often.
        accepted = ~(negative & (magnitude == 0))
        out[missing[accepted]] = np.where(negative, -magnitude, magnitude)[accepted]
        missing = missing[~accepted]
    return out.reshape(shape)


def geometric(rate: Fraction, count: int, entropy: Entropy) -> Int[np.ndarray, " count"]:
    """Draws integers x from 0 with probability `(1 - q) q^x`, `q = e^-rate`, exactly.

    With rate = s / t: u, uniform below t, is accepted with probability e^(-u/t), and v counts coins
    of probability e^-1 until the first that fails; then u + t v has the ratio e^(-1/t), and
    dividing by s gives the ratio e^(-s/t).

    Reference:
        Canonne, Kamath and Steinke, The Discrete Gaussian for Differential Privacy, 2020,
        algorithm 2.
    """
    s, t = rate.numerator, rate.denominator
    low = np.empty(count, np.int64)
    missing = np.arange(count)
    while missing.size:
        low[missing] = entropy.below(np.full(missing.size, t))
        missing = missing[~exponential_coins(low[missing], t, entropy)]
    high = np.zeros(count, np.int64)
    running = np.arange(count)
    while running.size:
        running = running[exponential_coins(np.ones_like(running), 1, entropy)]
        high[running] += 1
    return (low + t * high) // s


def exponential_coins(
    numerators: Int[np.ndarray, " count"], denominator: int, entropy: Entropy
) -> Bool[np.ndarray, " count"]:
    """Tosses coins of probability `e^(-numerator / denominator)`, numerator <= denominator.

    Coins of probability `gamma / 1, gamma / 2, ...` are tossed until the first that fails; its
    number is odd with probability `e^-gamma`.

    Reference:
        Canonne, Kamath and Steinke, 2020, algorithm 1.
    """
    number = np.ones(len(numerators), np.int64)
    running = np.arange(len(numerators))
    while running.size:
        draws = entropy.below(number[running] * denominator)
        running = running[draws < numerators[running]]
        number[running] += 1
    return number % 2 == 1
