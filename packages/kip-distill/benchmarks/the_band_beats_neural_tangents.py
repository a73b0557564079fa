"""Claim: a kernel value of the ConvNet costs dozens of times less than with Neural Tangents.

Processor time per element of the NTK in float32, compiled beforehand, and with the gradient by the
first images. Both sides run in processes of their own and are measured in turn, each with a batch
that suits it, after their values and gradients have been found equal. Both are jitted. Neural
Tangents needs an old JAX, hence an environment of its own:

    python3.11 -m venv peer
    peer/bin/pip install -r packages/kip-distill/benchmarks/common/neural-tangents.txt
    python packages/kip-distill/benchmarks/the_band_beats_neural_tangents.py --peer peer/bin/python
"""

import os
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common.processes import IMAGES, OURS, PEER, Worker, images, options, workers

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report

CLAIM = "a kernel value of the ConvNet costs dozens of times less than with Neural Tangents"
AGREE = 1e-4


def main() -> None:
    """Prints milliseconds per element and ratios, and writes them beside this file."""
    given = options(CLAIM, __doc__)
    sides = workers(given.peer)
    with TemporaryDirectory() as folder:
        rows = [row(Path(folder), name, sides, given.repeats) for name in given.images]
    for worker in sides.values():
        worker.end()
    report(
        __file__, CLAIM, rows, ("chapbook-kip-distill", "jax"), repeats=given.repeats,
        load=os.getloadavg()[0], peer=sides[PEER].versions,
    )  # fmt: skip


def row(folder: Path, name: str, sides: dict[str, Worker], repeats: int) -> dict[str, Any]:
    """Returns the figures of one size of image."""
    counts, common = IMAGES[name][2], images(folder, name)
    found: dict[str, Any] = {"images": name}
    for gradient, what in ((False, "value"), (True, "value and gradient")):
        apart = difference(folder, sides, gradient=gradient, **common)
        if apart > AGREE:
            raise SystemExit(f"error: {name}: the two sides differ by {apart:.1e}")
        asks = {
            side: partial(_ms, worker, first=counts[side][0], second=counts[side][1],
                          gradient=gradient, **common)
            for side, worker in sides.items()
        }  # fmt: skip
        taken = interleaved(asks, repeats)
        took = medians(taken)
        found |= {f"{what}, {side}, CPU ms": each for side, each in took.items()}
        found[f"{what}, ratio"] = took[PEER] / took[OURS]
        found["gradients differ by" if gradient else "values differ by"] = apart
        found |= {f"{what}, {side}, each": each for side, each in taken.items()}
    return found


def _ms(worker: Worker, **asked: Any) -> float:
    return worker(**asked)["ms"]


def difference(folder: Path, sides: dict[str, Worker], **asked: Any) -> float:
    """Returns the greatest difference, relative to the value, or to the greatest of a gradient."""
    arrays = []
    for name, worker in sides.items():
        path = folder / f"{name}.npy"
        worker(first=2, second=2, values=str(path), **asked)
        arrays.append(np.load(path).astype(np.float64))
    ours, peer = arrays
    scale = abs(peer).max() if asked["gradient"] else abs(peer)
    return float((abs(ours - peer) / scale).max())


if __name__ == "__main__":
    main()
