"""Claim: a kernel value of the ConvNet needs a quarter of Neural Tangents' memory, or less.

The most that a process holds while it computes a batch of NTK values in float32, beyond what it
held before, per element, at most over the repeats; compiled and run once beforehand. Ours computes
its batch in one block.
`the_band_beats_neural_tangents.py` tells how the peer's environment is made.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.processes import IMAGES, OURS, PEER, Worker, images, options, workers

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import report

CLAIM = "a kernel value of the ConvNet needs a quarter of Neural Tangents' memory, or less"
# So that all larger arrays go back to the system when they are freed, and count every time.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main() -> None:
    """Prints megabytes per element and ratios, and writes them beside this file."""
    given = options(CLAIM, __doc__)
    sides = workers(given.peer, **RETURNED)
    with TemporaryDirectory() as folder:
        rows = [row(Path(folder), name, sides, given.repeats) for name in given.images]
    for worker in sides.values():
        worker.end()
    report(
        __file__, CLAIM, rows, ("chapbook-kip-distill", "jax"), repeats=given.repeats,
        peer=sides[PEER].versions,
    )  # fmt: skip


def row(folder: Path, name: str, sides: dict[str, Worker], repeats: int) -> dict[str, Any]:
    """Returns the figures of one size of image."""
    counts, common = IMAGES[name][2], images(folder, name)
    taken: dict[str, list[float]] = {}
    for side, worker in sides.items():
        first, second = counts[side]
        runs = [worker(first=first, second=second, **common) for _ in range(1 + repeats)]
        taken[side] = [each["bytes"] / 2**20 / (first * second) for each in runs[1:]]
    # What an earlier batch frees late hides a part of the next one.
    took = {side: max(each) for side, each in taken.items()}
    return {
        "images": name,
        **{f"{side}, MiB": each for side, each in took.items()},
        "ratio": took[PEER] / took[OURS],
        **{f"{side}, each": each for side, each in taken.items()},
    }


if __name__ == "__main__":
    main()
