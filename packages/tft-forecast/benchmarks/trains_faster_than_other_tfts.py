"""Claim: training is 1.5 times as fast as neuralforecast's TFT, 5 times as the other two.

A TFT of each library is trained on births in 51 states up to 1986: the same inputs, lengths, width
and batch size, each with its own pipeline of data, in a process of its own. First for the same
number of updates, in turn, for windows per second and memory. Then for equally many seconds, as
many updates as fit in them at that rate, for the q-Risk of 13 forecasts in 1988 each. Compiling
and the first updates are not counted. No side is tuned, so accuracies tell only how far a training
of that length comes.
"""

import argparse
import statistics
import sys
from pathlib import Path

from common.sides import BATCH, DISTRIBUTIONS, SETTING, SIDES, WARM, trained

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report

# How windows are scaled changes no speed worth a row.
TIMED = [side for side in SIDES if side != "chapbook, window scaling"]
CLAIM = "training is 1.5x as fast as neuralforecast's TFT, 5x as pytorch-forecasting's and darts'"


def main() -> None:
    """Prints speed, memory and accuracy of every side, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--updates", type=int, default=40, help="after the first, which warm")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, nargs="*", default=[60.0, 300.0])
    parser.add_argument("--sides", nargs="+", default=TIMED)
    given = parser.parse_args()
    sides = {name: lambda name=name: trained(name, WARM + given.updates) for name in given.sides}
    found = interleaved(sides, given.repeats)
    rates = {name: statistics.median(each["windows_per_s"] for each in runs)
             for name, runs in found.items()}  # fmt: skip
    rows = []
    for name, runs in found.items():
        row = {
            "side": name,
            "windows_per_s": rates[name],
            "ours_over_it": rates["chapbook"] / rates[name] if "chapbook" in rates else None,
            "training_mib": statistics.median(run["training_mib"] for run in runs),
            "forecasts_per_s": statistics.median(run["forecasts_per_s"] for run in runs),
            "each_windows_per_s": [run["windows_per_s"] for run in runs],
        }
        for seconds in given.seconds:
            run = trained(name, max(WARM + 1, round(seconds * rates[name] / BATCH)))
            row |= {f"{level}_after_{seconds:.0f}_s": run[level] for level in ("P50", "P90")}
        rows.append(row)
    report(__file__, CLAIM, rows, DISTRIBUTIONS, setting=SETTING, options=vars(given))


if __name__ == "__main__":
    main()
