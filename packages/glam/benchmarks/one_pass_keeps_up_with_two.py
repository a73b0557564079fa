"""Merged moments in one pass take no longer than NumPy's mean and variance in two."""

import sys
from functools import partial
from pathlib import Path

import numpy as np

from chapbook.glam import moments

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report, seconds

CLAIM = "merged moments in one pass take no longer than NumPy's mean and variance in two"
COUNT, REPEATS = 5_000_000, 5


def main() -> None:
    """Measures both, interleaved, and writes the medians."""
    values = np.random.default_rng(0).normal(size=COUNT)
    sides = {
        "one pass, merged": moments,
        "two passes, numpy": lambda x: (x.mean(), x.var(ddof=1)),
    }
    timers = {name: partial(seconds, side, values) for name, side in sides.items()}
    times = medians(interleaved(timers, REPEATS))
    one = times["one pass, merged"]
    rows = [
        {"side": name, "ns per value": 1e9 * each / COUNT, "ratio": each / one}
        for name, each in times.items()
    ]
    report(__file__, CLAIM, rows, ("chapbook-core", "numpy"))


if __name__ == "__main__":
    main()
