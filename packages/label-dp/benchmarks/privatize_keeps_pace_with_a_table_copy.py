"""Claim: privatising a csv file into Parquet runs at 70 % or more of the speed of a plain copy.

A table of an id, three features, a label and the probabilities of 10 classes: `label-dp privatize`
from csv to Parquet, with labels drawn from the operating system's entropy, fsynced block by block
and certified, against Polars that streams the same csv file into Parquet. A ledger reads the table
twice, so it has a row of its own.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from chapbook.label_dp.classes import Classes
from chapbook.label_dp.labellers import ClassLabeller
from chapbook.label_dp.ledger import PrivacyLedger
from chapbook.label_dp.privatize import privatize_table
from chapbook.label_dp.request import Request
from chapbook.label_dp.sources import ColumnsPrior

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report, seconds

CLAIM = "privatising a csv file into Parquet runs at 70 % or more of the speed of a plain copy"
CLASSES = 10


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


def burden(side: Callable[[Path, Path], None], source: Path, folder: Path) -> float:
    """Times one side, from the csv file to the Parquet file on disk."""
    folder.mkdir()
    os.sync()  # what the side before has written is not this side's burden
    taken = seconds(side, source, folder)
    shutil.rmtree(folder)
    return taken


def main() -> None:
    """Prints the claim with both sides' figures, and writes them beside this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "table.csv")
        make_table(source, wanted.rows)
        timers = {
            title: partial(burden, side, source, Path(name, "run")) for title, side in SIDES.items()
        }
        times = interleaved(timers, wanted.repeats, warm=1)  # caches and imports
        size = source.stat().st_size
    middle = medians(times)
    rows = [
        {
            "side": title,
            "seconds": median,
            "all seconds": times[title],
            "rows per second": wanted.rows / median,
            "speed relative to the copy": middle["Polars copy"] / median,
        }
        for title, median in middle.items()
    ]
    distributions = ("chapbook-label-dp", "numpy", "polars", "cryptography")
    report(__file__, CLAIM, rows, distributions, table={"rows": wanted.rows, "bytes": size})


if __name__ == "__main__":
    main()
