"""Claim: importing the light half of core costs at most 0.05 s of CPU over typer and polars.

Each repeat starts a new interpreter for each side in turn and reads the CPU time of that process.
"""

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report

CLAIM = "importing chapbook.core, .cli and .run costs at most 0.05 s of CPU over typer and polars"
SIDES = {
    "typer, polars": "import typer, polars",
    "chapbook.core, .cli, .run": "import chapbook.core, chapbook.core.cli, chapbook.core.run",
    "chapbook.core": "import chapbook.core",
}


def cpu_seconds(code: str) -> float:
    """Returns the CPU seconds of a new interpreter that runs the code."""
    script = f"{code}\nimport time; print(time.process_time())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Prints each side's median and its excess over the first, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    timers = {side: partial(cpu_seconds, code) for side, code in SIDES.items()}
    times = interleaved(timers, given.repeats)
    middle = medians(times)
    base = middle["typer, polars"]
    rows = [
        {
            "side": side,
            "cpu_seconds": median,
            "excess_seconds": median - base,
            "ratio": median / base,
            "repeats": times[side],
        }
        for side, median in middle.items()
    ]
    report(__file__, CLAIM, rows, ("chapbook-core", "polars", "typer"))


if __name__ == "__main__":
    main()
