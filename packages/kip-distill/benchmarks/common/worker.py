"""Measures kernel values of one side, in a process of its own that stays alive.

    python common/worker.py {chapbook,neural-tangents}

It tells its versions; then every line that it reads asks, as JSON, for one measurement, and gets
one line of JSON. It runs under Neural Tangents' old JAX too, and imports nothing of this repository
but for our own side.
"""

import importlib.metadata
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # processor time is measured
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
warnings.filterwarnings("ignore")

import jax  # noqa: E402
import numpy as np  # noqa: E402

SIDES = CHAPBOOK, TANGENTS = ("chapbook", "neural-tangents")
W_STD, B_STD = 2**0.5, 0.1
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def chapbook(depth: int) -> Callable[..., Any]:
    """Returns our NTK, all of which may lie in one block."""
    from chapbook.kip_distill import kernels

    kernel = kernels.ConvNet(depth, w_std=W_STD, b_std=B_STD)
    return lambda x, y: kernel(x, y, memory=2**32)


def tangents(depth: int) -> Callable[..., Any]:
    """Returns the NTK of the same network by Neural Tangents."""
    from neural_tangents import stax

    def unit() -> list[Any]:
        conv = stax.Conv(1, (3, 3), padding="SAME", W_std=W_STD, b_std=B_STD)
        return [conv, stax.Relu()]

    layers = unit()
    for _ in range(depth):
        layers += [*unit(), stax.AvgPool((2, 2), strides=(2, 2))]
    layers += [stax.Flatten(), stax.Dense(1, W_std=W_STD, b_std=B_STD)]
    kernel = stax.serial(*layers)[2]
    return lambda x, y: kernel(x, y, "ntk")


@cache
def program(side: str, depth: int, gradient: bool, *shapes: tuple[int, ...]) -> Callable[..., Any]:
    """Returns the compiled kernel, or its sum with the gradient by the first images."""
    kernel = {CHAPBOOK: chapbook, TANGENTS: tangents}[side](depth)
    run = jax.value_and_grad(lambda x, y: kernel(x, y).sum()) if gradient else kernel
    inputs = (jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)
    return jax.jit(run).lower(*inputs).compile()


def measure(
    side: str,
    inputs: str,
    first: int,
    second: int,
    depth: int,
    gradient: bool = False,
    values: str | None = None,
) -> dict[str, float]:
    """Returns the processor time of one element and the peak of memory, and keeps the values.

    Args:
        side: One of `SIDES`.
        inputs: A file of images `x` and `y`.
        first: How many of `x` are taken.
        second: How many of `y`.
        depth: Pools.
        gradient: Whether the gradient by the first images is computed too.
        values: Where what was computed is written; None keeps nothing.
    """
    held = np.load(inputs)
    x, y = jax.device_put(held["x"][:first]), jax.device_put(held["y"][:second])
    run = program(side, depth, gradient, x.shape, y.shape)
    before = _peak(reset=True)  # what is held now
    begun = time.process_time()
    found = jax.block_until_ready(run(x, y))
    took = time.process_time() - begun
    if values:
        np.save(values, np.asarray(found[1] if gradient else found))
    return {"ms": 1e3 * took / (first * second), "bytes": _peak() - before}


def _peak(reset: bool = False) -> int:
    """Returns the most bytes that the process has held, from now on if it is reset."""
    if reset and RESET.exists():
        RESET.write_text("5")
    if not STATUS.exists():  # not Linux: the most since the process began
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(each for each in STATUS.read_text().splitlines() if each.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Answers until the input ends; what libraries print goes to the error stream."""
    side, answers = sys.argv[1], os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ours = "chapbook-kip-distill" if side == CHAPBOOK else side
    versions = {name: importlib.metadata.version(name) for name in ("jax", ours)}
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(side, **json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
