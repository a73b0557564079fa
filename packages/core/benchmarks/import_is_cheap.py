"""Claim: importing the light half of core costs at most 0.05 s of CPU over typer and polars.

Each repeat starts a new interpreter for each side in turn and reads the CPU time of that process.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from chapbook.core.io import write_atomic

CLAIM = "importing chapbook.core, .cli and .run costs at most 0.05 s of CPU over typer and polars"
SIDES = {
    "typer, polars": "import typer, polars",
    "chapbook.core, .cli, .run": "import chapbook.core, chapbook.core.cli, chapbook.core.run",
    "chapbook.core": "import chapbook.core",
}


def machine() -> dict[str, object]:
    """Returns the processor, its cores, and the versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {n: metadata.version(n) for n in ("chapbook-core", "polars", "typer")},
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
    times = {side: [] for side in SIDES}
    for _ in range(given.repeats):
        for side, code in SIDES.items():
            times[side].append(cpu_seconds(code))
    medians = {side: statistics.median(taken) for side, taken in times.items()}
    base = medians["typer, polars"]
    rows = [
        {
            "side": side,
            "cpu_seconds": median,
            "excess_seconds": median - base,
            "ratio": median / base,
            "repeats": times[side],
        }
        for side, median in medians.items()
    ]
    print(CLAIM)
    for row in rows:
        print(f"{row['side']:26} {row['cpu_seconds']:.3f} s  {row['excess_seconds']:+.3f} s")
    results = Path(__file__).parent / "results" / f"{Path(__file__).stem}.json"
    results.parent.mkdir(exist_ok=True)
    found = {"claim": CLAIM, "machine": machine(), "rows": rows}
    write_atomic(results, (json.dumps(found, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
