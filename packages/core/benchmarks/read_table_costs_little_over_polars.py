"""Claim: `read_table` with a schema costs at most 1.10 times `pl.read_csv` with the same types.

Both sides read the same csv file of 1,000,000 rows, one after the other in one process.
`--rows` and `--repeats` make it smaller or steadier.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from chapbook.core.tables import read_table

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report, seconds

CLAIM = "read_table with a schema costs at most 1.10 times pl.read_csv"
SCHEMA = {"id": pl.Int64, "text": pl.String, "label": pl.Int64, "weight": pl.Float64}


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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        table.write_csv(path)
        assert read_table(path, SCHEMA).equals(table)
        timers = {side: partial(seconds, read, path) for side, read in sides.items()}
        times = interleaved(timers, given.repeats)
    middle = medians(times)
    rows = [
        {
            "side": side,
            "rows": given.rows,
            "seconds": median,
            "ratio": median / middle["polars"],
            "repeats": times[side],
        }
        for side, median in middle.items()
    ]
    report(__file__, CLAIM, rows, ("chapbook-core", "polars", "numpy"))


if __name__ == "__main__":
    main()
