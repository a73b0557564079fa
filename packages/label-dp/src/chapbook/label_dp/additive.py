"""Noise added to numbers: the mechanisms that randomised response on bins is compared with.

All three work on a grid of integers over [low, high] and are sampled exactly, since noise in
floats gives the value away by its last bits. Answers are cut off at the range: that costs no
privacy.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Float, Int

from chapbook.core.errors import Error
from chapbook.label_dp.bins import NumberMechanism, check_range
from chapbook.label_dp.discrete_laplace import (
    discrete_laplace,
    exponential_coins,
    geometric,
    rational_rate,
)
from chapbook.label_dp.entropy import Entropy
from chapbook.label_dp.exact import check_epsilon


@dataclass(frozen=True)
class _Grid(NumberMechanism):
    """What the mechanisms on a grid have in common.

    Args:
        low: The smallest possible value, known without looking at the data.
        high: The largest possible value, known without looking at the data.
        epsilon: The privacy budget, above 0 and finite.
        levels: The number of grid points from low to high; values move to the nearest.
    """

    low: float
    high: float
    epsilon: float
    levels: int = 1 << 10

    def __post_init__(self):
        check_range(self.low, self.high)
        check_epsilon(self.epsilon)
        if not 0 < self.epsilon < math.inf:
            raise Error(f"epsilon is {self.epsilon}; additive noise needs it above 0 and finite")
        if not 2 <= self.levels <= 1 << 24:
            raise Error(f"there are {self.levels} levels; take 2 to 2^24")

    @property
    def grid(self) -> Float[np.ndarray, " levels"]:
        """The values that can be answered."""
        return np.linspace(self.low, self.high, self.levels)

    @property
    @abstractmethod
    def rate(self) -> Fraction:
        """The rate of the noise per grid step that is sampled, exactly."""

    @property
    @abstractmethod
    def exact_epsilon(self) -> Fraction:
        """What the sampler spends, exactly: rounding the rate down leaves it at most epsilon."""

    def verify(self) -> bool:
        """Whether what the sampler spends is at most epsilon, in exact arithmetic."""
        return 0 < self.exact_epsilon <= Fraction(self.epsilon)

    def _randomise(
        self, values: Float[np.ndarray, " rows"], entropy: Entropy
    ) -> Float[np.ndarray, " rows"]:
        step = (self.high - self.low) / (self.levels - 1)
        points = np.rint((np.clip(values, self.low, self.high) - self.low) / step)
        return self.grid[self._answer(points.astype(np.int64), entropy)]

    @abstractmethod
    def transition_matrix(self) -> Float[np.ndarray, "levels levels"]:
        """Returns `Pr[answer | grid point]`, of the exact sampler, rounded to floats."""

    @abstractmethod
    def _answer(
        self, points: Int[np.ndarray, " rows"], entropy: Entropy
    ) -> Int[np.ndarray, " rows"]:
        """Returns the grid point that each grid point is answered with."""


class LaplaceMechanism(_Grid):
    """Adds discrete Laplace noise: `Pr[x] ~ e^(-eps |x| / (levels - 1))` on the grid.

    With many levels this is the Laplace mechanism of scale (high - low) / eps; with the levels of
    an integer scale it is the discrete Laplace mechanism.

    Reference:
        Dwork et al., Calibrating Noise to Sensitivity in Private Data Analysis, 2006; Ghosh,
        Roughgarden and Sundararajan, Universally Utility-Maximizing Privacy Mechanisms, 2009.
    """

    @property
    def rate(self) -> Fraction:
        """The rate of the noise per grid step that is sampled, exactly."""
        return rational_rate(Fraction(self.epsilon) / (self.levels - 1))

    @property
    def exact_epsilon(self) -> Fraction:
        """What the sampler spends, exactly."""
        return self.rate * (self.levels - 1)

    def transition_matrix(self) -> Float[np.ndarray, "levels levels"]:
        """Returns `Pr[answer | grid point]`, of the exact sampler, rounded to floats."""
        q = math.exp(-self.rate)
        points = np.arange(self.levels)
        matrix = (1 - q) / (1 + q) * q ** np.abs(points[:, None] - points[None, :])
        matrix[:, 0] = q**points / (1 + q)  # the ends take what lies beyond them
        matrix[:, -1] = matrix[::-1, 0]
        return matrix

    def _answer(
        self, points: Int[np.ndarray, " rows"], entropy: Entropy
    ) -> Int[np.ndarray, " rows"]:
        noise = discrete_laplace(self.rate, len(points), entropy=entropy)
        return np.clip(points + noise, 0, self.levels - 1)


class StaircaseMechanism(_Grid):
    """Adds staircase noise: constant over stretches of the range's width, e^eps lower each.

    On the grid, with width D = levels - 1 and the first stair up to r: the noise x has weight 1
    for |x| < r and e^(-eps j) for r + (j - 1) D <= |x| < r + j D. `r = round(D / (1 + e^(eps/2)))`
    has the least expected |x| in the continuous limit.

    Reference:
        Geng and Viswanath, The Optimal Mechanism in Differential Privacy, 2014.
    """

    @property
    def rate(self) -> Fraction:
        """The rate of the noise per stair that is sampled, exactly."""
        return rational_rate(self.epsilon)

    @property
    def exact_epsilon(self) -> Fraction:
        """What the sampler spends, exactly."""
        return self.rate

    @property
    def first_stair(self) -> int:
        """The width r of the first stair, in grid steps, 1 to levels - 1."""
        width = self.levels - 1
        return min(max(1, round(width / (1 + math.exp(self.epsilon / 2)))), width)

    def transition_matrix(self) -> Float[np.ndarray, "levels levels"]:
        """Returns `Pr[answer | grid point]`, of the exact sampler, rounded to floats."""
        width, first, q = self.levels - 1, self.first_stair, math.exp(-self.rate)
        total = 2 * first - 1 + 2 * width * q / (1 - q)
        # Weights of the noise -D to D. |x| >= m, for a cut at m <= D: the sum of the tail.
        noise = np.abs(np.arange(-width, width + 1))
        weight = np.where(noise < first, 1.0, q)
        weight[[0, -1]] = q if first <= width else 1.0
        points = np.arange(self.levels)
        matrix = weight[points[None, :] - points[:, None] + width]
        matrix[:, 0] = matrix[::-1, -1] = [self._tail(int(m)) for m in points]
        return matrix / total

    def _tail(self, m: int) -> float:
        """Returns the weight of the noise x >= m, for 0 <= m <= D."""
        width, first, q = self.levels - 1, self.first_stair, math.exp(-self.rate)
        second = first + width - max(m, first)  # points from m up to the end of stair 1
        return max(first - m, 0) + q * second + width * q**2 / (1 - q)

    def _answer(
        self, points: Int[np.ndarray, " rows"], entropy: Entropy
    ) -> Int[np.ndarray, " rows"]:
        width, first = self.levels - 1, self.first_stair
        noise = np.empty(len(points), np.int64)
        missing = np.arange(len(points))
        while missing.size:
            # Stair j and one of 2 D places, with weight e^(-eps j) each; stair 0 has 2 r - 1 only.
            stair = geometric(self.rate, missing.size, entropy)
            place = entropy.below(np.full(missing.size, 2 * width))
            magnitude = first + (stair - 1) * width + place // 2
            drawn = np.where(place % 2 == 0, magnitude, -magnitude)
            drawn = np.where(stair == 0, place - (first - 1), drawn)
            accepted = (stair > 0) | (place < 2 * first - 1)
            noise[missing[accepted]] = drawn[accepted]
            missing = missing[~accepted]
        return np.clip(points + noise, 0, self.levels - 1)


class ExponentialMechanism(_Grid):
    """Answers with grid point o with probability `~ e^(-eps |o - y| / (2 (levels - 1)))`.

    That is discrete Laplace noise of half the rate, drawn again until it stays on the grid; for a
    small epsilon a uniform grid point, drawn again until a coin of probability
    `e^(-eps |o - y| / (2 (levels - 1)))` accepts it, which is the same and soon done.

    Reference:
        McSherry and Talwar, Mechanism Design via Differential Privacy, 2007.
    """

    @property
    def rate(self) -> Fraction:
        """The rate of the noise per grid step that is sampled, exactly."""
        return rational_rate(Fraction(self.epsilon) / (2 * (self.levels - 1)))

    @property
    def exact_epsilon(self) -> Fraction:
        """What the sampler spends at most: the weights and their sum differ by half of it each."""
        return 2 * self.rate * (self.levels - 1)

    def transition_matrix(self) -> Float[np.ndarray, "levels levels"]:
        """Returns `Pr[answer | grid point]`, of the exact sampler, rounded to floats."""
        points = np.arange(self.levels)
        matrix = math.exp(-self.rate) ** np.abs(points[:, None] - points[None, :])
        return matrix / matrix.sum(axis=1, keepdims=True)

    def _answer(
        self, points: Int[np.ndarray, " rows"], entropy: Entropy
    ) -> Int[np.ndarray, " rows"]:
        answers = np.empty_like(points)
        missing = np.arange(len(points))
        while missing.size:
            if self.exact_epsilon <= 2:
                drawn = entropy.below(np.full(missing.size, self.levels))
                distance = np.abs(drawn - points[missing])
                step, unit = self.rate.numerator, self.rate.denominator
                accepted = exponential_coins(distance * step, unit, entropy)
            else:
                noise = discrete_laplace(self.rate, missing.size, entropy=entropy)
                drawn = points[missing] + noise
                accepted = (drawn >= 0) & (drawn < self.levels)
            answers[missing[accepted]] = drawn[accepted]
            missing = missing[~accepted]
        return answers
