"""Claim: a sparse model trains at 0.85 times the speed of the dense one that computes as much.

Whole updates, gradients and Adafactor included, of models with E experts, two for each token, with
the paper's room in the experts' buffers, and of the dense model whose feed-forward layers are as
wide as two experts. A token activates as many operations in both, but for the router's. All sides
are updated on the same random tokens in turn, and again. The limit is 1.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from chapbook.glam import GLaM, GLaMConfig, TrainConfig, cost
from chapbook.glam.training import objective, optimizer

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report

CLAIM = "a sparse model trains at 0.85x the speed of the dense one that computes as much"
WANTED = 0.85


class Side:
    """A model under training."""

    def __init__(self, config: GLaMConfig, batch: Any, steps: int):
        self.model = eqx.filter_jit(partial(GLaM, config))(key=jax.random.key(0))
        self.batch, self.steps = batch, steps
        recipe = TrainConfig(tokens=batch["tokens"].size)
        self.loss, self.tune = objective(recipe), optimizer(recipe)
        self.state = self.tune.init(eqx.filter(self.model, eqx.is_inexact_array))
        self.told: dict[str, Any] = {}
        self.update: Callable[..., Any] = eqx.filter_jit(self._update, donate="all-except-first")

    def _update(self, batch: Any, model: GLaM, state: Any, key: Any) -> Any:
        found = eqx.filter_value_and_grad(self.loss, has_aux=True)(model, batch, key)
        (_, told), gradient = found
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = self.tune.update(gradient, state, params)
        return eqx.apply_updates(model, updates), state, told

    def seconds(self) -> float:
        """Makes some updates, and returns the time of one."""
        begun = time.perf_counter()
        for step in range(self.steps):
            self.model, self.state, self.told = self.update(
                self.batch, self.model, self.state, jax.random.key(step)
            )
        jax.block_until_ready(self.told)
        return (time.perf_counter() - begun) / self.steps


def main() -> None:
    """Prints the speeds, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--config", default="desk,vocab=2048,context=256", help="without experts")
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="of a measurement")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    size, *rest = given.config.split(",")
    configs = {
        f"{count} experts": GLaMConfig.from_string(",".join([f"{size}/{count}E", *rest]))
        for count in given.experts
    }
    some = next(iter(configs.values()))
    configs["dense"] = some.dense_counterpart()
    shape = (given.batch, some.context + 1)
    batch = {
        "tokens": jax.random.randint(jax.random.key(1), shape, 0, some.vocab_size),
        "segment": jnp.ones(shape, jnp.int32),
    }
    sides = {name: Side(config, batch, given.steps) for name, config in configs.items()}
    timers = {name: side.seconds for name, side in sides.items()}
    taken = interleaved(timers, given.repeats, warm=1)
    each = medians(taken)
    tokens = given.batch * some.context
    rows = []
    for name, config in configs.items():
        told = cost(config)
        rows.append({
            "side": name, "parameters": told.parameters, "activated": told.activated,
            "MFLOP_per_token": told.training_flops / 1e6, "tokens_per_s": tokens / each[name],
            "GFLOP_per_s": told.training_flops * tokens / each[name] / 1e9,
            "of_the_dense_speed": each["dense"] / each[name],
            "wanted": None if name == "dense" else WANTED,
            "choices_dropped": float(sides[name].told.get("dropped", 0.0)),
            "repeats_s": taken[name],
        })  # fmt: skip
    distributions = ("chapbook-glam", "chapbook-core", "jax", "equinox", "optax")
    report(__file__, CLAIM, rows, distributions, options=vars(given))


if __name__ == "__main__":
    main()
