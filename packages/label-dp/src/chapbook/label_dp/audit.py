"""An empirical check of a whole pipeline: how much privacy it loses at least."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from chapbook.core.errors import Error

Sample = Callable[[int, int], Int[np.ndarray, " trials"]]


class Audit(NamedTuple):
    """What running a mechanism on two adjacent inputs has shown.

    Attributes:
        epsilon_lower_bound: With the stated confidence the mechanism loses at least this much.
        confidence: The probability that the bound is right.
        answer: The answer that tells the two inputs apart best.
        first: How many of the judging runs on the first input gave that answer.
        second: How many of those on the second input did.
        trials: The number of judging runs on each input.
    """

    epsilon_lower_bound: float
    confidence: float
    answer: int
    first: int
    second: int
    trials: int

    def contradicts(self, epsilon: float) -> bool:
        """Whether the runs refute the claim that the mechanism is eps-DP."""
        return self.epsilon_lower_bound > epsilon


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Returns the exact two-sided confidence interval of a binomial probability.

    Reference:
        Clopper and Pearson, The Use of Confidence or Fiducial Limits, 1934.
    """
    from scipy.stats import beta  # takes a second; only audits need it

    tail = (1 - confidence) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def audit_epsilon(
    sample: Sample,
    *,
    labels: tuple[int, int] = (0, 1),
    trials: int = 1_000_000,
    confidence: float = 0.99,
) -> Audit:
    """Bounds from below the epsilon of a mechanism by running it on two labels of one record.

    One half of the runs chooses the answer o and the order of the labels that differ most; the
    other half judges: `log(lower(Pr[o | y]) / upper(Pr[o | y']))` with Clopper-Pearson limits is
    a lower bound of epsilon with the stated confidence, because nothing in it was chosen by the
    runs that it counts. A bound above the claimed epsilon proves a fault; one below it proves
    nothing, which is what `verify` is for.

    Args:
        sample: `sample(label, n)` runs the real path on n records with that label, everything
            else being equal, and returns the n answers as integers from 0.
        labels: The two labels of the adjacent inputs.
        trials: The number of runs on each label.
        confidence: The probability with which the bound shall be right.

    Reference:
        Jagielski, Ullman and Oprea, Auditing Differentially Private Machine Learning, 2020.
    """
    if trials < 2:
        raise Error(f"an audit of {trials} trials shows nothing; take at least 2, better 10^6")
    if not 0 < confidence < 1:
        raise Error(f"the confidence is {confidence}; it must lie between 0 and 1")
    answers = [np.asarray(sample(label, trials)) for label in labels]
    size = max(int(a.max()) for a in answers) + 1
    half = trials // 2
    chosen = np.stack([np.bincount(a[:half], minlength=size) for a in answers])
    # Adding one half keeps a rare answer, seen by chance on one side only, from looking best.
    differences = np.log((chosen[0] + 0.5) / (chosen[1] + 0.5))
    answer = int(np.abs(differences).argmax())
    counts = [int(np.count_nonzero(a[half:] == answer)) for a in answers]
    left = trials - half
    likelier, rarer = counts if differences[answer] >= 0 else counts[::-1]
    low, _ = clopper_pearson(likelier, left, confidence)
    _, high = clopper_pearson(rarer, left, confidence)
    bound = max(0.0, math.log(low / high)) if low > 0 else 0.0
    return Audit(bound, confidence, answer, counts[0], counts[1], left)
