"""Claim: what a training step does with the machine's arithmetic, block by block.

The setting is that of the other benchmarks: births in 51 states. Multiplications and additions of
the matrix products are counted from the widths, and held against what one large product of the
same machine does per second of processor time, all cores together. Backward passes count twice
their forward pass. The LSTM's dependent steps are held against a loop of as many empty steps. The
same update is then spread over simulated devices, which share the same cores.
"""

import argparse
import datetime as dt
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from common.sides import BATCH, DROPOUT, ENCODER, HEADS, HIDDEN, HORIZON, RATE, SETTING

from chapbook.core import compiled_once, meshes
from chapbook.tft_forecast import data, training, windows
from chapbook.tft_forecast.categories import Categories
from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.inputs import Layout
from chapbook.tft_forecast.panels import panel
from chapbook.tft_forecast.quantile_loss import quantile_loss
from chapbook.tft_forecast.recurrence import LSTM
from chapbook.tft_forecast.scaling import Scalers

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report

CLAIM = "what a training step does with the machine's arithmetic"
MICRO, SIDE, DEVICES = 32, 2048, (1, 2, 4, 8)
CONFIG = TFTConfig(
    encoder=ENCODER, horizon=HORIZON, hidden=HIDDEN, heads=HEADS, dropout=DROPOUT,
    batch_size=BATCH, learning_rate=RATE, microbatch=MICRO,
)  # fmt: skip


def main() -> None:
    """Prints what was counted and measured, and writes it beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--devices", type=int, help="print the figure of so many alone")
    given = parser.parse_args()
    if given.devices:
        meshes.simulate(given.devices)
        print(json.dumps(update(given.devices, given.repeats)))
        return
    store, layout, pairs = births()
    counted = flops(layout)
    parts = sides(store, layout, pairs)
    took = medians(interleaved({name: functools.partial(cpu, run) for name, run in parts.items()},
                               given.repeats, warm=2))  # fmt: skip
    peak = 2 * SIDE**3 / took.pop("product")
    rows: list[dict[str, Any]] = [
        {"what": name, "MFLOP per window": count / 1e6, "share": count / sum(counted.values())}
        for name, count in counted.items()
    ]
    lstm, whole = counted["LSTMs"], sum(counted.values())
    for name, work in (("forward", whole), ("forward and backward", 3 * whole),
                       ("LSTM, forward and backward", 3 * lstm), ("empty loop", 0.0)):  # fmt: skip
        each = took[name] / MICRO
        rows.append({"what": name, "MFLOP per window": work / 1e6, "CPU ms per window": 1e3 * each,
                     "GFLOP per CPU-second": work / each / 1e9,
                     "of a large product's": work / each / peak})  # fmt: skip
    for count in DEVICES:
        command = [sys.executable, __file__, "--devices", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        each = json.loads(done.stdout.strip().splitlines()[-1])
        rows.append({"what": f"update of {BATCH} windows, {count} devices",
                     "MFLOP per window": 3 * whole / 1e6, "CPU ms per window": 1e3 * each,
                     "GFLOP per CPU-second": 3 * whole / each / 1e9,
                     "of a large product's": 3 * whole / each / peak})  # fmt: skip
    report(
        __file__, CLAIM, rows, ("chapbook-tft-forecast", "jax"), setting=SETTING,
        product_GFLOP_per_CPU_second=peak / 1e9, repeats=given.repeats, load=os.getloadavg()[0],
    )  # fmt: skip


def births() -> tuple[windows.Store, Layout, training.Pairs]:
    """Returns the panel up to 1986 on the device, its layout, and its training windows."""
    table, schema = data.births()
    table = table.filter(pl.col("date") < dt.date(1987, 1, 1))
    categories = Categories.fit(table, schema)
    whole = panel(table, schema, categories)
    scalers = Scalers.fit(whole, CONFIG.scaling, len(whole.times))
    store = windows.store(
        *scalers.transform(whole, add_scale_inputs=False), whole.present, scalers.target(whole),
        CONFIG, whole.weight,
    )  # fmt: skip
    return store, schema.layout(categories), windows.index(whole.seen, CONFIG)


def flops(layout: Layout) -> dict[str, float]:
    """Returns the multiplications and additions of a window's forward pass, by part."""
    d, k, horizon = HIDDEN, ENCODER, HORIZON
    positions, head = k + horizon, HIDDEN // HEADS

    def grn(inputs: int, outputs: int) -> int:
        skip = inputs * outputs if inputs != outputs else 0
        return 2 * (inputs * d + d * d + 2 * d * outputs + skip)

    def selection(count: int, steps: int) -> tuple[int, int]:
        return steps * grn(count * d, count), steps * count * grn(d, d)

    groups = [selection(len(layout.past), k), selection(len(layout.known), horizon)]
    statics = sum(selection(len(layout.static), 1)) + 4 * grn(d, d)
    queries = 2 * d * head * (HEADS * (positions + horizon) + positions)  # Q of the last, K, V
    attended = 2 * horizon * positions * head * HEADS * 2 + 2 * horizon * head * d
    return {
        "selection: each variable's network": float(sum(each for _, each in groups)),
        "selection: weights": float(sum(weights for weights, _ in groups)),
        "LSTMs": float(positions * 2 * (d * 4 * d + d * 4 * d)),
        "gated skips and static enrichment": float(positions * (2 * 2 * d * d + grn(d, d))),
        "attention": float(queries + attended),
        "after attention": float(horizon * (2 * 2 * 2 * d * d + grn(d, d) + 2 * d * 3)),
        "static variables": float(statics),
    }


def sides(
    store: windows.Store, layout: Layout, pairs: training.Pairs
) -> dict[str, Callable[[], Any]]:
    """Returns what is timed: one call each, of `MICRO` windows."""
    chosen = np.random.default_rng(0).choice(len(pairs[0]), MICRO)
    entity, origin = (jnp.asarray(each[chosen]) for each in pairs)
    network, static = eqx.partition(
        training.network(layout, CONFIG, jax.random.key(0)), eqx.is_inexact_array
    )

    def loss(network: Any, store: windows.Store, key: jax.Array) -> jax.Array:
        sample = windows.gather(store, layout, CONFIG, entity, origin)
        found, _ = training.run(eqx.combine(network, static), CONFIG, sample.windows, key)
        return quantile_loss(found[0], sample.target, CONFIG.quantiles, sample.weight)

    lstm = LSTM(HIDDEN, HIDDEN, key=jax.random.key(0))
    sequence = jax.random.normal(jax.random.key(1), (MICRO, ENCODER + HORIZON, HIDDEN))
    recurrent = jax.jit(jax.grad(lambda x, unit: jnp.sum(unit(x)[0] ** 2), (0, 1)))

    def empty(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (c + 1, None), x, length=ENCODER + HORIZON)[0]

    loop, matrix = jax.jit(empty), jax.random.normal(jax.random.key(2), (SIDE, SIDE))
    product, key, one = jax.jit(jnp.matmul), jax.random.key(3), jnp.zeros(())
    forward, backward = jax.jit(loss), jax.jit(jax.grad(loss))
    return {
        "product": lambda: product(matrix, matrix),
        "forward": lambda: forward(network, store, key),
        "forward and backward": lambda: backward(network, store, key),
        "LSTM, forward and backward": lambda: recurrent(sequence, lstm),
        "empty loop": lambda: loop(one),
    }


def update(devices: int, repeats: int) -> float:
    """Returns the CPU seconds per window of updates as `fit` makes them, compiling left out."""
    store, layout, pairs = births()
    mesh = meshes.mesh(f"data={devices}")
    steps = (2, 2 + 4 * repeats)

    def took(count: int) -> float:
        begun = time.process_time()
        training.train(
            store, layout, CONFIG, pairs, None, key=jax.random.key(0), seed=0, steps=count,
            evaluate_every=count, patience=1, mesh=mesh, quiet=True,
        )  # fmt: skip
        return time.process_time() - begun

    with compiled_once():
        took(1)  # compiles
        short, long = (statistics.median(took(count) for _ in range(3)) for count in steps)
    return (long - short) / (steps[1] - steps[0]) / BATCH


def cpu(run: Callable[[], Any]) -> float:
    """Returns the processor time of a call, of all cores together."""
    begun = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - begun


if __name__ == "__main__":
    main()
