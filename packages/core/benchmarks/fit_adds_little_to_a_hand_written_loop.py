"""fit adds little to a hand-written loop: at most 5 % at steps of 1 ms, 60 us of host time a step.

Three loops train the same MLP of 1e4 parameters with Adam on the same host batches, without
logging to disk: `fit` with all of its defaults (NaN guard, gradient norm, a row every 20 steps), a
hand-written loop over a donated `jax.jit`, and the same over `eqx.filter_jit`; and `fit` with
several steps per dispatch, a row every 32 steps. Time is taken
between two steps in the middle of the run, so compiling is left out.
"""

import argparse
import itertools
import sys
import time
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from chapbook.core import fit

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report

CLAIM = "fit adds little to a hand-written loop"
WARM = 60


def loss(model, batch, key):
    """The mean squared error."""
    return jnp.mean((jax.vmap(model)(batch["x"]) - batch["y"]) ** 2)


def train(model, state, batch, optimizer):
    """One update."""
    value, grads = eqx.filter_value_and_grad(loss)(model, batch, None)
    updates, state = optimizer.update(grads, state, model)
    return eqx.apply_updates(model, updates), state, value


def by_jit(model, optimizer, batches, steps):
    """Seconds a step over a donated jax.jit."""
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def step(params, state, batch):
        model, state, value = train(eqx.combine(params, static), state, batch, optimizer)
        return eqx.filter(model, eqx.is_inexact_array), state, value

    step = jax.jit(step, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, params)
    state = optimizer.init(params)
    for count, batch in enumerate(itertools.islice(batches, steps)):
        if count == WARM:
            jax.block_until_ready(params)
            start = time.perf_counter()
        params, state, _ = step(params, state, batch)
    jax.block_until_ready(params)
    return (time.perf_counter() - start) / (steps - WARM)


def by_filter_jit(model, optimizer, batches, steps):
    """Seconds a step over eqx.filter_jit."""
    model = jax.tree.map(lambda x: jnp.copy(x) if eqx.is_array(x) else x, model)
    step = eqx.filter_jit(lambda m, s, b: train(m, s, b, optimizer), donate="all")
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    for count, batch in enumerate(itertools.islice(batches, steps)):
        if count == WARM:
            jax.block_until_ready(eqx.filter(model, eqx.is_array))
            start = time.perf_counter()
        model, state, _ = step(model, state, jax.device_put(batch))
    jax.block_until_ready(eqx.filter(model, eqx.is_array))
    return (time.perf_counter() - start) / (steps - WARM)


def by_fit(model, optimizer, batches, steps, together=1):
    """Seconds a step of fit; several steps per dispatch are to divide 32."""
    marks = {}

    def mark(step, model_fn, row):
        marks[step] = time.perf_counter()

    fit(
        loss, model, optimizer, batches, steps=steps, key=jax.random.key(0), callbacks=[mark],
        log_every=20 if together == 1 else 32, steps_per_dispatch=together, quiet=True,
    )  # fmt: skip
    first = min(step for step in marks if step >= WARM)
    return (marks[steps] - marks[first]) / (steps - first)


def main():
    """Times the three loops in turn."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 256, 2048])
    parser.add_argument("--together", type=int, nargs="+", default=[8, 32])
    options = parser.parse_args()
    model = eqx.nn.MLP(64, 10, 70, 2, key=jax.random.key(0))  # 10,230 parameters
    optimizer = optax.adam(1e-3)
    ways = {"fit": by_fit, "jax.jit": by_jit, "eqx.filter_jit": by_filter_jit}
    for together in options.together:
        ways[f"fit, {together} steps per dispatch"] = partial(by_fit, together=together)
    rows = []
    for size in options.batches:
        draw = np.random.default_rng(0)
        pool = [
            {
                "x": draw.normal(size=(size, 64)).astype(np.float32),
                "y": draw.normal(size=(size, 10)).astype(np.float32),
            }
            for _ in range(8)
        ]
        pool = itertools.cycle(pool)
        timers = {n: partial(w, model, optimizer, pool, options.steps) for n, w in ways.items()}
        taken = interleaved(timers, options.repeats)
        us = {name: 1e6 * median for name, median in medians(taken).items()}
        rows.append(
            {
                "batch": size,
                "us_per_step": us,
                "fit_over_jit": us["fit"] / us["jax.jit"],
                "fit_over_filter_jit": us["fit"] / us["eqx.filter_jit"],
                "fit_adds_us": us["fit"] - us["jax.jit"],
                "spread_us": {n: [1e6 * min(t), 1e6 * max(t)] for n, t in taken.items()},
            }
        )
    distributions = ("chapbook-core", "jax", "equinox", "optax")
    report(__file__, CLAIM, rows, distributions, options=vars(options))


if __name__ == "__main__":
    main()
