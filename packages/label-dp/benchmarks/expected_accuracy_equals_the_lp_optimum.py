"""Claim: RRWithPrior answers rightly as often as the best of all eps-DP mechanisms (gap < 1e-12).

The best of all is a linear program over the K x K stochastic matrices whose columns keep the ratio
e^eps. Its vertex is found by SciPy's HiGHS and polished in floats by solving the equations of its
active constraints, because the solver stops at its own tolerance. Beside it: the choice of k of
the published code, and plain randomised response, which is all that other libraries offer.
"""

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from scipy.optimize import linprog

from chapbook.label_dp import RandomizedResponse, RRWithPrior

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import medians, report

CLAIM = "RRWithPrior's expected accuracy equals the linear program's optimum (gap < 1e-12)"


def program_optimum(prior: np.ndarray, epsilon: float) -> float:
    """Returns the largest probability of a true answer over all eps-DP mechanisms."""
    k = len(prior)
    ratios = []
    for answer in range(k):
        for a in range(k):
            for b in range(k):
                if a != b:
                    row = np.zeros((k, k))
                    row[a, answer], row[b, answer] = math.exp(-epsilon), -1.0
                    ratios.append(row.ravel())
    sums = np.kron(np.eye(k), np.ones(k))
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    cost, limits = -np.diag(prior).ravel(), np.array(ratios)
    found = linprog(
        cost, limits, np.zeros(len(limits)), sums, np.ones(k), method="highs-ds", options=options
    )
    if found.status != 0:
        raise RuntimeError(found.message)
    return -cost_at_vertex(cost, limits, sums, found.x)


def cost_at_vertex(cost: np.ndarray, limits: np.ndarray, sums: np.ndarray, x: np.ndarray) -> float:
    """Returns the cost where the constraints that are active at x hold exactly."""
    active = limits[np.abs(limits @ x) < 1e-8]
    zero = np.eye(len(x))[np.abs(x) < 1e-8]
    equations = np.concatenate([sums, active, zero])
    right = np.concatenate([np.ones(len(sums)), np.zeros(len(active) + len(zero))])
    return float(cost @ np.linalg.lstsq(equations, right, rcond=None)[0])


def main() -> None:
    """Prints the largest and mean gaps to the optimum, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--cases", type=int, default=200)
    given = parser.parse_args()
    random, gaps = np.random.default_rng(0), {}
    seconds: dict[str, list[float]] = {"program": [], "RRWithPrior": []}
    for _ in range(given.cases):
        classes, epsilon = int(random.integers(2, 11)), float(random.uniform(0, 8))
        prior = random.dirichlet(np.full(classes, random.choice([0.3, 1.0, 5.0])))
        start = time.perf_counter()
        optimum = program_optimum(prior, epsilon)
        seconds["program"].append(time.perf_counter() - start)
        start = time.perf_counter()
        ours = RRWithPrior(classes, epsilon).expected_accuracy(prior[None])[0]
        seconds["RRWithPrior"].append(time.perf_counter() - start)
        official = RRWithPrior(classes, epsilon, official_k=True).expected_accuracy(prior[None])[0]
        plain = RandomizedResponse(classes, epsilon).expected_accuracy()[0]
        for name, value in (
            ("RRWithPrior", ours),
            ("published choice of k", official),
            ("plain randomised response", plain),
        ):
            gaps.setdefault(name, []).append(float(optimum - value))
    rows = []
    for name, each in gaps.items():
        rows.append(
            {
                "side": name,
                "cases": given.cases,
                "largest_gap": max(each),
                "most_above": max(0.0, -min(each)),
                "mean_gap": statistics.fmean(each),
                "cases_with_a_gap_above_1e-12": int(np.sum(np.array(each) > 1e-12)),
            }
        )
    middle = medians(seconds)
    ratio = middle["program"] / middle["RRWithPrior"]
    rows.append({"side": "seconds a case", **middle, "ratio": ratio})
    report(__file__, CLAIM, rows, ("chapbook-label-dp", "numpy", "scipy"))


if __name__ == "__main__":
    main()
