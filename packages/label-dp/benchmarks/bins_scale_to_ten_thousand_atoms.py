"""Claim: the best bins over 1,000 atoms are found in under 1 s, over 10,000 in under 30 s.

Beside it, on fewer atoms: the textbook's dynamic program, which fills a table for every number of
bins from the matrix of all bins' costs (squared loss); both must find the same loss.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from chapbook.label_dp import Loss, RROnBins

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import medians, report

CLAIM = "the best bins over 1,000 atoms take under 1 s and over 10,000 under 30 s"
TEXTBOOK_ATOMS = 300


def textbook(y: np.ndarray, p: np.ndarray, epsilon: float) -> float:
    """Returns the least expected squared loss by a table over the number of bins."""
    t, n = math.exp(-epsilon), len(y)
    mass, first, second = (np.append(0, np.cumsum(p * y**power)) for power in range(3))
    start, end = np.arange(n)[:, None], np.arange(1, n + 1)[None, :]
    weight = t + (1 - t) * (mass[end] - mass[start])
    moment = t * first[-1] + (1 - t) * (first[end] - first[start])
    square = t * second[-1] + (1 - t) * (second[end] - second[start])
    cost = np.where(end > start, square - moment**2 / weight, np.inf)
    table, best = cost[0].copy(), cost[0, -1]
    for bins in range(2, n + 1):
        table = (np.append(np.inf, table[:-1])[:, None] + cost).min(axis=0)
        best = min(best, table[-1] / (1 + (bins - 1) * t))
    return float(best)


def timed(run: Callable[..., Any], *arguments: object) -> tuple[float, Any]:
    """Returns the seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = run(*arguments)
    return time.perf_counter() - start, result


def main() -> None:
    """Prints the seconds of every size and loss, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--atoms", type=int, nargs="+", default=[TEXTBOOK_ATOMS, 1000, 10_000])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    random, rows = np.random.default_rng(0), []
    for atoms in given.atoms:
        y, p = np.sort(random.gamma(2, 1, atoms)), random.dirichlet(np.ones(atoms))
        for epsilon in (1.0, 8.0):
            compared: dict[str, list[float]] = {}
            for _ in range(given.repeats):
                for loss in Loss:
                    seconds, fitted = timed(RROnBins.fit, y, p, epsilon, loss)
                    compared.setdefault(loss.value, []).append(seconds)
                    if loss is Loss.SQUARED and atoms <= TEXTBOOK_ATOMS:
                        seconds, least = timed(textbook, y, p, epsilon)
                        compared.setdefault("textbook table, squared", []).append(seconds)
                        if not math.isclose(least, fitted.expected_loss, rel_tol=1e-9):
                            raise RuntimeError(f"{least} is not {fitted.expected_loss}")
            middle = medians(compared)
            for side, median in middle.items():
                rows.append(
                    {
                        "atoms": atoms,
                        "epsilon": epsilon,
                        "side": side,
                        "seconds": median,
                        "over_ours_squared": median / middle["squared"],
                    }
                )
    report(__file__, CLAIM, rows, ("chapbook-label-dp", "numpy"), repeats=given.repeats)


if __name__ == "__main__":
    main()
