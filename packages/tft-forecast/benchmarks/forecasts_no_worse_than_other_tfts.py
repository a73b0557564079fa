"""Claim: after equally many updates ours forecasts no worse than any other TFT.

A TFT of each library is trained on births in 51 states up to 1986, with the same inputs, lengths,
width and batch size, for equally many updates and with several seeds, and makes 13 forecasts of 28
days in 1988. No side is tuned. q-Risk of the median and of the 90th percentile, mean over the seeds
and their range. Below stand the rows of `tft-forecast reproduce --full`, which forecasts the same
days: ours as it is meant to be trained, trees, classical models and simple ones. All of it takes
two to four hours on two cores; a run that is done lies in a folder, and is not done again.
"""

import argparse
import contextlib
import json
import statistics
import sys
from pathlib import Path

import polars as pl
import typer
from common.sides import DISTRIBUTIONS, SETTING, SIDES, trained

from chapbook.core.io import write_json
from chapbook.tft_forecast.reproduce import reproduce

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import report

CLAIM = "after equally many updates ours forecasts no worse than any other TFT"


def main() -> None:
    """Prints the accuracy of every side, and writes it beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", default=list(SIDES))
    parser.add_argument("--run", type=Path, default=Path("runs"), help="folder of finished runs")
    parser.add_argument("--reproduction", type=Path, help="folder of reproduce --full")
    given = parser.parse_args()
    given.run.mkdir(parents=True, exist_ok=True)
    rows = []
    # Seeds outside, so that a run that is cut short has as many of each side.
    found = {
        (side, seed): kept(given.run, side, given.updates, seed)
        for seed in given.seeds
        for side in given.sides
    }
    for side in given.sides:
        row: dict[str, object] = {"side": side, "updates": given.updates, "seeds": given.seeds}
        for level in ("P50", "P90"):
            risks = [found[side, seed][level] for seed in given.seeds]
            row |= {level: statistics.mean(risks), f"{level}_range": [min(risks), max(risks)]}
        rows.append(row)
    rows += reproduced(given.reproduction or given.run / "reproduction")
    report(__file__, CLAIM, rows, DISTRIBUTIONS, setting=SETTING)


def reproduced(folder: Path) -> list[dict[str, object]]:
    """Returns the rows of births in the reproduction, which goes on where it stood."""
    with contextlib.suppress(typer.Exit):  # a claim that does not hold is shown there
        reproduce(folder, full=True, quiet=True)
    table = pl.read_csv(folder / "accuracy.csv").filter(pl.col("panel") == "births")
    return [
        {"side": f"reproduce: {model}", "P50": p50, "P90": p90}
        for model, p50, p90 in table.select("model", "P50", "P90").iter_rows()
    ]


def kept(folder: Path, side: str, updates: int, seed: int) -> dict[str, float]:
    """Returns what one training gives, which a folder keeps."""
    path = folder / f"{side}-{updates}-{seed}.json"
    if not path.exists():
        write_json(path, trained(side, updates, seed))
    return json.loads(path.read_text())


if __name__ == "__main__":
    main()
