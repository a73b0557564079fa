"""The processes of both sides, which answer in turn, and what they are asked about."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

OURS, PEER = "chapbook", "neural-tangents"
# Shape, pools, and how many first and second images each side gets. Beside its elements, a batch
# costs every image's covariance with itself, which large batches share out better; with Neural
# Tangents an element of the larger images takes about a second, hence few of them.
IMAGES = {
    "14 x 14 x 1": ((14, 14, 1), 2, {OURS: (8, 16), PEER: (4, 16)}),
    "28 x 28 x 1": ((28, 28, 1), 3, {OURS: (8, 16), PEER: (3, 4)}),
    "32 x 32 x 3": ((32, 32, 3), 3, {OURS: (8, 16), PEER: (3, 4)}),
}


class Worker:
    """One side's process.

    Args:
        python: That runs it.
        side: Its name.
        **environment: Variables that differ from ours.
    """

    def __init__(self, python: str, side: str, **environment: str):
        script = Path(__file__).parent / "worker.py"
        self.side = side
        self.process = subprocess.Popen(
            [python, str(script), side],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | environment,
        )  # fmt: skip
        self.versions = self._answer()

    def __call__(self, **asked: Any) -> dict[str, float]:
        """Returns one measurement."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        if answer := self.process.stdout.readline():
            return json.loads(answer)
        raise SystemExit(f"error: {self.side} has ended; its own error stands above")

    def end(self) -> None:
        """Ends the process."""
        self.process.communicate()


def images(folder: Path, name: str) -> dict[str, Any]:
    """Writes images of a size, and returns what either side is told of them."""
    shape, depth, _ = IMAGES[name]
    inputs, draw = str(folder / "images.npz"), np.random.default_rng(0)
    x, y = (draw.standard_normal((most, *shape), np.float32) for most in (8, 16))
    np.savez(inputs, x=x, y=y)
    return {"inputs": inputs, "depth": depth}


def options(claim: str, told: str | None) -> argparse.Namespace:
    """Returns the options of a script; ends it with a word of help if no peer is named."""
    parser = argparse.ArgumentParser(description=claim)
    parser.add_argument("--peer", help="Python of the environment with Neural Tangents")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", nargs="+", choices=IMAGES, default=list(IMAGES))
    given = parser.parse_args()
    if not given.peer:
        print(f"nothing is measured without --peer\n\n{told}")
        raise SystemExit
    return given


def workers(peer: str, **environment: str) -> dict[str, Worker]:
    """Returns both sides' processes."""
    pythons = {OURS: sys.executable, PEER: peer}
    return {name: Worker(python, name, **environment) for name, python in pythons.items()}
