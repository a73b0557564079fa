"""Claim: privatising a csv file into Parquet runs at 70 % or more of the speed of a plain copy.

A table of an id, three features, a label and the probabilities of 10 classes: `label-dp privatize`
from csv to Parquet, with labels drawn from the operating system's entropy, fsynced block by block
and certified, against Polars that streams the same csv file into Parquet. A ledger reads the table
twice, so it has a row of its own.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl

from chapbook.label_dp.classes import Classes
from chapbook.label_dp.labellers import ClassLabeller
from chapbook.label_dp.ledger import PrivacyLedger
from chapbook.label_dp.privatize import privatize_table
from chapbook.label_dp.request import Request
from chapbook.label_dp.sources import ColumnsPrior

CLAIM = Path(__file__).stem
CLASSES = 10
TARGET = 0.7


def make_table(path: Path, rows: int) -> None:
    """Writes the table as csv."""
    random = np.random.default_rng(0)
    prior = random.dirichlet(np.ones(CLASSES), rows)
    prior = np.round(prior, 7)
    prior[:, -1] = np.round(1 - prior[:, :-1].sum(axis=1), 7).clip(0)
    table = {
        "id": np.arange(rows),
        "age": random.integers(18, 90, rows),
        "x": random.normal(size=rows),
        "z": random.normal(size=rows),
        "label": random.integers(0, CLASSES, rows),
    }
    columns = {f"p{i}": prior[:, i] for i in range(CLASSES)}
    pl.DataFrame({**table, **columns}).write_csv(path)


def copy(source: Path, folder: Path) -> None:
    """What any such program must do at least: read csv, write Parquet."""
    pl.scan_csv(source).sink_parquet(folder / "copy.parquet")


def privatize(source: Path, folder: Path, ledger: PrivacyLedger | None = None) -> None:
    """The whole of `label-dp privatize`, in this process."""
    asked = Request(
        label="label",
        labeller=ClassLabeller(Classes(range(CLASSES)), with_prior=True),
        epsilon=1.0,
        prior=ColumnsPrior(tuple(f"p{i}" for i in range(CLASSES))),
        id_columns=() if ledger is None else ("id",),
    )
    privatize_table(source, folder / "private.parquet", asked, ledger=ledger)


def privatize_with_ledger(source: Path, folder: Path) -> None:
    """The same, with every record charged in a ledger."""
    privatize(source, folder, PrivacyLedger(folder / "ledger.json"))


SIDES: dict[str, Callable[[Path, Path], None]] = {
    "Polars copy": copy,
    "label-dp privatize": privatize,
    "label-dp privatize with a ledger": privatize_with_ledger,
}


def seconds(side: Callable[[Path, Path], None], source: Path, folder: Path) -> float:
    """Times one side, from the csv file to the Parquet file on disk."""
    folder.mkdir()
    os.sync()  # what the side before has written is not this side's burden
    start = time.perf_counter()
    side(source, folder)
    taken = time.perf_counter() - start
    shutil.rmtree(folder)
    return taken


def processor() -> str:
    """Returns the name of the processor, where the kernel tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Prints the claim with both sides' figures, and writes them beside this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    wanted = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "table.csv")
        make_table(source, wanted.rows)
        for side in SIDES.values():  # warm caches and imports
            seconds(side, source, Path(name, "run"))
        for _ in range(wanted.repeats):
            for title, side in SIDES.items():
                times[title].append(seconds(side, source, Path(name, "run")))
        size = source.stat().st_size
    plain = statistics.median(times["Polars copy"])
    rows = []
    print(f"{CLAIM.replace('_', ' ')}: {wanted.rows:,} rows, {size / 1e6:.0f} MB of csv")
    for title, taken in times.items():
        median = statistics.median(taken)
        speed = plain / median
        rows.append(
            {
                "side": title,
                "seconds": median,
                "all seconds": taken,
                "rows per second": wanted.rows / median,
                "speed relative to the copy": speed,
            }
        )
        print(f"{title:34} {median:8.2f} s {wanted.rows / median:12,.0f} rows/s {speed:7.0%}")
    held = rows[1]["speed relative to the copy"] >= TARGET
    print(f"target: {TARGET:.0%} without a ledger; {'held' if held else 'NOT HELD'}")
    names = ("chapbook-label-dp", "numpy", "polars", "cryptography")
    machine = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }
    result = Path(__file__).parent / "results" / f"{CLAIM}.json"
    result.parent.mkdir(exist_ok=True)
    content = {"claim": CLAIM, "machine": machine, "table rows": wanted.rows, "rows": rows}
    result.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
