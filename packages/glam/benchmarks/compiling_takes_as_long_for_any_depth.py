"""Claim: compiling takes as long for 24 layers as for 4, since layers are run by one scan.

Loss and gradients of a sparse model, traced, lowered and compiled anew each time, without a cache
of compiled programs. Medians of interleaved repeats. Wanted: within a fifth.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

from chapbook.glam import GLaM, GLaMConfig, TrainConfig
from chapbook.glam.training import objective

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report, seconds

CLAIM = "compiling takes as long for 24 layers as for 4"


def compiling(line: str) -> Callable[[], float]:
    """Returns what measures one compilation of a model."""
    config = GLaMConfig.from_string(line)
    model = eqx.filter_jit(partial(GLaM, config))(key=jax.random.key(0))
    batch = {name: jnp.ones((8, config.context + 1), jnp.int32) for name in ("tokens", "segment")}
    gradient = eqx.filter_value_and_grad(objective(TrainConfig(tokens=1)), has_aux=True)

    def once() -> None:
        jax.clear_caches()
        eqx.filter_jit(gradient).lower(model, batch, jax.random.key(0)).compile()

    return lambda: seconds(once)


def main() -> None:
    """Compiles models of both depths in turn, and again."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--config", default="desk/8E,vocab=2048,context=256")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 24])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    sides = {count: compiling(f"{given.config},layers={count}") for count in given.layers}
    taken = interleaved(sides, given.repeats, warm=1)
    each = medians(taken)
    rows = [
        {
            "layers": count, "seconds": found, "over_the_first": found / each[given.layers[0]],
            "wanted": 1.2, "repeats_s": taken[count],
        }
        for count, found in each.items()
    ]  # fmt: skip
    report(
        __file__, CLAIM, rows, ("chapbook-glam", "chapbook-core", "jax", "equinox"),
        options=vars(given),
    )  # fmt: skip


if __name__ == "__main__":
    main()
