"""Mean and variance in one pass, from parts that merge."""

from dataclasses import dataclass

import numpy as np

from chapbook.core.errors import Error

BLOCK = 16_384  # values; their differences from the mean then stay in the processor's cache


@dataclass(frozen=True)
class Moments:
    """What is known of the values seen so far.

    Attributes:
        count: How many there were.
        mean: Their mean.
        squares: The sum of squared differences from the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def variance(self) -> float:
        """The unbiased variance, `squares / (count - 1)`; NaN below two values."""
        return self.squares / (self.count - 1) if self.count > 1 else float("nan")


def merge(a: Moments, b: Moments) -> Moments:
    """Returns `S = S_a + S_b + d^2 n_a n_b / n`, `d = mean_b - mean_a`: the moments of both.

    Args:
        a: The moments of some values.
        b: The moments of other values.

    Reference:
        Chan, Golub, LeVeque, Algorithms for Computing the Sample Variance, 1983, equation 2.1.
    """
    count = a.count + b.count
    if count == 0:
        return Moments()
    difference = b.mean - a.mean
    mean = a.mean + difference * b.count / count
    squares = a.squares + b.squares + difference**2 * a.count * b.count / count
    return Moments(count, mean, squares)


def moments(values: np.ndarray) -> Moments:
    """Returns the moments of an array, block by block.

    Args:
        values: Numbers, of any shape.

    Raises:
        Error: If a value is not finite.
    """
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    total = Moments()
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        finite = np.isfinite(block)
        if not finite.all():
            raise Error(f"value {start + int(np.argmin(finite))} is not finite")
        mean = float(block.mean())
        difference = block - mean
        squares = float(np.square(difference, out=difference).sum())
        total = merge(total, Moments(len(block), mean, squares))
    return total


def textbook_variance(values: np.ndarray) -> float:
    """Returns `(sum x^2 - (sum x)^2 / n) / (n - 1)`, which loses digits when the mean is large."""
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    return float((np.square(flat).sum() - flat.sum() ** 2 / len(flat)) / (len(flat) - 1))
