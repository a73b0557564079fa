"""Claim: a kernel value of the ConvNet costs eight times less than with all pairs of pixels.

Processor time per element of the NTK in float32, for the band of displacements that the readout
needs and for the full tensor of pairs, which is what Neural Tangents computes; the program is ours
in both cases. Beside it, the gradient by both images, and the floor: nothing but a square root and
an angle for every pair of pixels and activation of the band, by XLA's `atan2` and by ours.
Compiling is not counted.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from chapbook.kip_distill import kernels
from chapbook.kip_distill.kernels import band
from chapbook.kip_distill.kernels.angle import arctan2

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report

CLAIM = "a kernel value of the ConvNet costs 8 times less than with all pairs of pixels"
IMAGES = {"14 x 14 x 1": ((14, 14, 1), 2, 64), "28 x 28 x 1": ((28, 28, 1), 3, 8),
          "32 x 32 x 3": ((32, 32, 3), 3, 4)}  # fmt: skip
MEMORY = 2**31


def main() -> None:
    """Prints milliseconds per element and ratios, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    rows = [row(name, *each, given.repeats) for name, each in IMAGES.items()]
    report(__file__, CLAIM, rows, ("chapbook-kip-distill", "jax"), repeats=given.repeats)


def row(
    name: str, shape: tuple[int, int, int], depth: int, few: int, repeats: int
) -> dict[str, Any]:
    """Returns the milliseconds per element of one size of image, and their ratios."""
    kernel = kernels.ConvNet(depth)
    full = kernels.Kernel(kernel.layers, "full")
    # The band has a large block to fill; the full tensor takes what memory there is.
    x, y = (jax.random.normal(jax.random.key(n), (8, *shape)) for n in (0, 1))
    many = jnp.concatenate([y] * 8)
    a, b = x[:2], y[: few // 2]
    gradient = jax.jit(jax.grad(lambda x, y: kernel(x, y, memory=MEMORY).sum(), (0, 1)))
    sides = {
        "band": measured(partial(kernel, memory=MEMORY), x, many),
        "band and gradient": measured(gradient, x, many),
        "full": measured(partial(full, memory=MEMORY), a, b),
        "atan2": floor(shape, depth, jnp.arctan2),
        "our angle": floor(shape, depth, arctan2),
    }
    took = medians(interleaved(sides, repeats, warm=1))
    return {
        "images": name,
        **{f"{side}, CPU ms": each for side, each in took.items()},
        "full over band": took["full"] / took["band"],
        "gradient over forward": took["band and gradient"] / took["band"],
        "share of atan2's floor": took["atan2"] / took["band"],
        "share of our angle's floor": took["our angle"] / took["band"],
    }


def measured(run: Callable[..., Any], x: jax.Array, y: jax.Array) -> Callable[[], float]:
    """Returns what measures the milliseconds of processor time for one element."""

    def once() -> float:
        begun = time.process_time()
        jax.block_until_ready(run(x, y))
        return 1e3 * (time.process_time() - begun) / (len(x) * len(y))

    return once


def floor(
    shape: tuple[int, int, int], depth: int, angle: Callable[..., jax.Array]
) -> Callable[[], float]:
    """Returns what measures a square root and an angle for every pair and activation."""
    steps = band.sizes(shape[0], shape[1], depth)
    reaches = band.reaches(steps, (0, 0))
    pairs = 0
    for number, ((height, width), (dy, dx)) in enumerate(zip(steps, reaches, strict=True)):
        valid = sum(
            (height - abs(y)) * (width - abs(x))
            for y in range(-dy, dy + 1)
            for x in range(-dx, dx + 1)
        )
        activations = (2 if number == 0 else 1) if number < depth else 0
        pairs += activations * valid
    size, repeats = 2**16, 16  # within a processor's cache
    values = jax.random.normal(jax.random.key(0), (2, size))
    run = jax.jit(lambda p, q: angle(jnp.sqrt(jnp.maximum(p * p, 0)), q))

    def once() -> float:
        begun = time.process_time()
        for _ in range(repeats):
            jax.block_until_ready(run(*values))
        return 1e3 * (time.process_time() - begun) / (size * repeats) * pairs

    return once


if __name__ == "__main__":
    main()
