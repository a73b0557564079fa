"""Claim: `read_table` with a schema costs at most 1.10 times `pl.read_csv` with the same types.

Both sides read the same csv file of 1,000,000 rows, one after the other in one process.
`--rows` and `--repeats` make it smaller or steadier.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import polars as pl

from chapbook.core.io import write_atomic
from chapbook.core.tables import read_table

CLAIM = "read_table with a schema costs at most 1.10 times pl.read_csv"
SCHEMA = {"id": pl.Int64, "text": pl.String, "label": pl.Int64, "weight": pl.Float64}


def machine() -> dict[str, object]:
    """Returns the processor, its cores, and the versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {n: metadata.version(n) for n in ("chapbook-core", "polars", "numpy")},
    }


def seconds(read: object, path: Path) -> float:
    """Returns the seconds that one read takes."""
    start = time.perf_counter()
    read(path)
    return time.perf_counter() - start


def main() -> None:
    """Prints both sides' medians and their ratio, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "id": np.arange(given.rows),
            "text": random.integers(0, 10**9, given.rows).astype(str),
            "label": random.integers(0, 10, given.rows),
            "weight": random.random(given.rows),
        }
    )
    sides = {
        "polars": lambda path: pl.read_csv(path, schema_overrides=SCHEMA),
        "read_table": lambda path: read_table(path, SCHEMA),
        "read_table with a key": lambda path: read_table(path, SCHEMA, key="id"),
    }
    times = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        table.write_csv(path)
        assert read_table(path, SCHEMA).equals(table)
        for _ in range(given.repeats):
            for side, read in sides.items():
                times[side].append(seconds(read, path))
    medians = {side: statistics.median(taken) for side, taken in times.items()}
    rows = [
        {
            "side": side,
            "rows": given.rows,
            "seconds": median,
            "ratio": median / medians["polars"],
            "repeats": times[side],
        }
        for side, median in medians.items()
    ]
    print(CLAIM)
    for row in rows:
        print(f"{row['side']:24} {row['seconds']:.4f} s  {row['ratio']:.3f} x")
    results = Path(__file__).parent / "results" / f"{Path(__file__).stem}.json"
    results.parent.mkdir(exist_ok=True)
    found = {"claim": CLAIM, "machine": machine(), "rows": rows}
    write_atomic(results, (json.dumps(found, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
