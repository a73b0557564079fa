"""Claim: cost grows in proportion to pixels and to pairs of images.

Processor time in float32, compiled beforehand. A value of a ConvNet's NTK is held against its cost
at 32 x 32 pixels, in proportion to pixels. A step of KIP, with all that belongs to it, is held
against T S + S (S + 1) / 2 times what a kernel value of the same targets and support costs with its
gradient by the support: what is above that is batches, Adam, and above all solving in float64,
which grows with the cube of S. The kernel of one hidden layer is held against two matrix products
of the same shapes, and several devices, which are simulated and share the same cores, against one.

Beside the table, `results` gets a picture and its numbers as csv.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from chapbook.core import cli, meshes
from chapbook.kip_distill import KIP, kernels

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report

CLAIM = "cost grows in proportion to pixels and to pairs of images"
PIXELS = (8, 12, 16, 20, 24, 28, 32)
FULLY = ((500, 100), (2000, 100), (4000, 100), (2000, 10), (2000, 500))
PRODUCTS = ((2048, 2048, 784), (2048, 2048, 3072), (4096, 100, 784))
DEVICES = (1, 2, 4, 8)
VALUE, STEP, KERNEL, SHARED = (
    "value of ConvNet, three pools", "step of KIP", "kernel of FC1", "ConvNet over devices",
)  # fmt: skip


def main() -> None:
    """Prints what was measured beside what was expected, and writes it beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--devices", action="store_true", help="print their figures alone, as JSON")
    given = parser.parse_args()
    if given.devices:
        print(json.dumps(devices(given.repeats)))
        return
    rows = pixels(given.repeats) + products(given.repeats)
    rows += [step(kernels.FC(1), "FC1", (784,), *each, 18) for each in FULLY]
    rows.append(step(kernels.ConvNet(2), "ConvNet, two pools", (14, 14, 1), 100, 10, 6))
    rows += simulated(given.repeats)
    table = pl.DataFrame(rows)
    picture = Path(__file__).parent / "results" / f"{Path(__file__).stem}.png"
    cli.plot(picture, partial(draw, table), table)
    report(
        __file__, CLAIM, rows, ("chapbook-kip-distill", "jax"), repeats=given.repeats,
        load=os.getloadavg()[0],
    )  # fmt: skip


def row(what: str, size: str, took: float, expected: float) -> dict[str, Any]:
    """Returns a row of the table."""
    return {"what": what, "size": size, "CPU ms": took, "expected, CPU ms": expected,
            "ratio": took / expected}  # fmt: skip


def pixels(repeats: int) -> list[dict[str, Any]]:
    """Returns the cost of a kernel value for images of several sizes."""
    kernel = kernels.ConvNet(3)
    sides = {}
    for size in PIXELS:
        x, y = (jax.random.normal(jax.random.key(n), (8 * (1 + n), size, size, 1)) for n in (0, 1))
        sides[size] = partial(cost, partial(kernel, x, y, memory=2**31), 1 / (len(x) * len(y)))
    took = medians(interleaved(sides, repeats, warm=1))
    most = max(PIXELS)
    return [
        row(VALUE, f"{size} x {size}", each, took[most] * (size / most) ** 2)
        for size, each in took.items()
    ]


def products(repeats: int) -> list[dict[str, Any]]:
    """Returns the cost of fully connected kernels, beside two matrix products."""
    kernel, rows = kernels.FC(1), []
    two = jax.jit(lambda x, y, z: (x @ y.T, x @ z.T))
    for n1, n2, features in PRODUCTS:
        sizes = enumerate((n1, n2, n2))
        x, y, z = (jax.random.normal(jax.random.key(n), (many, features)) for n, many in sizes)
        ours, theirs = partial(cost, partial(kernel, x, y)), partial(cost, partial(two, x, y, z))
        took = medians(interleaved({"kernel": ours, "products": theirs}, repeats, warm=1))
        rows.append(row(KERNEL, f"{n1} and {n2} of {features}", took["kernel"], took["products"]))
    return rows


def step(
    kernel: kernels.Kernel, name: str, shape: tuple[int, ...], targets: int, support: int, end: int
) -> dict[str, Any]:
    """Returns the cost of a step, from all of a run up to `end`, but for what compiles.

    Kernel values are measured on the way, between two steps, so that both meet the same machine.
    """
    random = np.random.default_rng(0)
    x = random.standard_normal((2 * targets, *shape), np.float32)
    y = random.integers(10, size=len(x))
    kip = KIP(kernel, support, target_batch=targets)
    start = kip.init(x, y, key=jax.random.key(0), noise=True)
    batch = jnp.asarray(x[:targets])
    values = jax.jit(jax.value_and_grad(lambda images: kernel(batch, images).sum()))
    run = partial(values, start.images)
    steps, elements, before = [], [], (0, 0.0)

    def watch(number: int, support: Any) -> None:
        nonlocal before
        jax.block_until_ready(support)
        if number > 2:  # the first steps compile, and so do the first values
            steps.append(1e3 * (time.process_time() - before[1]) / (number - before[0]))
        elif number == 2:
            cost(run)
        if number:
            elements.append(cost(run, 1 / (targets * len(start.images))))
        before = number, time.process_time()

    kip.fit(start, x, y, steps=end, on_step=watch, quiet=True)
    pairs = targets * support + support * (support + 1) // 2
    expected = pairs * statistics.median(elements)
    size = f"{targets} targets, {support} images"
    return row(f"{STEP}, {name}", size, statistics.median(steps), expected)


def simulated(repeats: int) -> list[dict[str, Any]]:
    """Returns the cost on several devices, from a process that simulates them."""
    flags = "--xla_force_host_platform_device_count"
    command = [sys.executable, __file__, "--devices", "--repeats", str(repeats)]
    changed = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{flags}={max(DEVICES)}"}
    done = subprocess.run(command, env=os.environ | changed, stdout=subprocess.PIPE, check=True)
    took = json.loads(done.stdout.splitlines()[-1])
    first = took[str(DEVICES[0])]
    return [
        row(SHARED, f"{number} simulated", each["CPU ms"], first["CPU ms"])
        | {"wall time of one over it": first["wall ms"] / each["wall ms"]}
        for number, each in took.items()
    ]


def devices(repeats: int) -> dict[int, dict[str, float]]:
    """Returns the processor time and the wall time of one value on several devices."""
    kernel = kernels.ConvNet(2)
    x, y = (jax.random.normal(jax.random.key(n), (16 * (1 + n), 14, 14, 1)) for n in (0, 1))

    def both(number: int) -> dict[str, float]:
        mesh = meshes.mesh(f"target={number}", jax.devices()[:number])
        begun = time.perf_counter()
        took = cost(partial(kernel, x, y, memory=2**31, mesh=mesh), 1 / (len(x) * len(y)))
        wall = 1e3 * (time.perf_counter() - begun) / (len(x) * len(y))
        return {"CPU ms": took, "wall ms": wall}

    found = interleaved({number: partial(both, number) for number in DEVICES}, repeats, warm=1)
    return {
        number: {name: statistics.median(each[name] for each in runs) for name in runs[0]}
        for number, runs in found.items()
    }


def cost(run: Callable[[], Any], share: float = 1.0) -> float:
    """Returns the milliseconds of processor time of a call, or a share of them."""
    begun = time.process_time()
    jax.block_until_ready(run())
    return 1e3 * (time.process_time() - begun) * share


def draw(table: pl.DataFrame, axes: Any) -> None:
    """Draws measured costs over expected ones."""
    for (what,), part in table.group_by("what", maintain_order=True):
        axes.plot(part["expected, CPU ms"], part["CPU ms"], "o", label=what, alpha=0.8)
    ends = [table["expected, CPU ms"].min(), table["expected, CPU ms"].max()]
    axes.plot(ends, ends, color="0.6", label="as expected")
    axes.set(xscale="log", yscale="log", title="Processor time beside what counts foretell")
    axes.set(xlabel="expected, milliseconds", ylabel="measured, milliseconds")
    axes.legend()


if __name__ == "__main__":
    main()
