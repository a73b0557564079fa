"""Claim: a layer with experts costs a little more than a dense one, far less than one-hot products.

In the sizes of S/32 and B/16, a batch of eight images: the model's layer with eight experts, of
which a token takes K = 2 and buffers have just the room for all (C = 1), against a dense block of
the same activated operations, twice as wide. Forward, and with all gradients; wanted on this path
(`scatter`): at most 1.15 times the dense block.

Then 1,568 tokens and 32 experts, against the same layer whose dispatch and combine are products
with one-hot arrays of shape (tokens, experts, capacity), the form of the official EinsumDispatcher
in our own code, which is published for no installer. Wanted: twice as fast, and equal outputs.

Ratios are of the best of interleaved repeats.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from chapbook.core.transformer import FFN
from chapbook.vmoe import VMoEConfig
from chapbook.vmoe.moe import MoE, gelu

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report, seconds

CLAIM = "a layer with experts costs a little more than a dense one, far less than one-hot products"
Layer = Callable[[jax.Array], jax.Array]


def made(config: VMoEConfig) -> Any:
    """Makes a layer with experts whose weights are not all alike."""
    config = dataclasses.replace(config, equal_experts=False)
    return eqx.filter_jit(lambda key: MoE(config, key=key))(jax.random.key(0))


def outputs(layer: Any, x: jax.Array) -> jax.Array:
    """Returns the outputs alone of either kind of layer."""
    return layer(x) if isinstance(layer, FFN) else layer(x)[0]


def timers(name: str, layer: Any, x: jax.Array) -> dict[tuple[str, str], Callable[[], float]]:
    """Compiles both passes of a layer and returns what times a call of each."""

    def loss(layer: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(outputs(layer, x) ** 2)

    passes = {
        "forward": eqx.filter_jit(outputs),
        "gradients": eqx.filter_jit(
            lambda layer, x: eqx.filter_grad(lambda both: loss(*both))((layer, x))
        ),
    }
    return {
        (name, kind): lambda f=f: seconds(lambda: jax.block_until_ready(f(layer, x)))
        for kind, f in passes.items()
    }


def main() -> None:
    """Times all sides in turn, and again, and prints the best of each."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    rows, key = [], jax.random.key(1)

    def compare(what: str, sides: dict[str, Any], x: jax.Array, wanted: dict[str, float]) -> None:
        base = next(iter(sides))
        each: dict[tuple[str, str], Callable[[], float]] = {}
        for name, layer in sides.items():
            each |= timers(name, layer, x)
        taken = interleaved(each, options.repeats, warm=2)
        best = {side: min(figures) for side, figures in taken.items()}
        for (name, kind), found in best.items():
            rows.append({
                "layer": what, "side": name, "pass": kind, "ms": 1e3 * found,
                "over_first": found / best[base, kind], "wanted": wanted.get(name),
                "repeats_ms": [1e3 * t for t in taken[name, kind]],
            })  # fmt: skip

    for line in ("S/32,E=8,K=2,every=2", "B/16,E=8,K=2,every=2"):
        config = VMoEConfig.from_string(line, capacity_factor=1.0, classifier="gap")
        c = dataclasses.replace(config, group_size=options.images * config.num_tokens)
        x = jax.random.normal(key, (options.images, c.num_tokens, c.hidden_size))
        dense = FFN(
            c.hidden_size, c.num_selected_experts * c.mlp_dim, act=gelu(True),
            bias=jax.nn.initializers.zeros, key=key,
        )  # fmt: skip
        experts = made(dataclasses.replace(c, dispatch="scatter"))
        compare(line, {"dense": dense, "experts": experts}, x, {"experts": 1.15})

    config = VMoEConfig.from_string(
        "S/32,E=32,K=2,every=2", capacity_factor=1.05, classifier="gap", group_size=32 * 49
    )
    x = jax.random.normal(key, (32, 49, config.hidden_size))
    sides = {
        name: made(dataclasses.replace(config, dispatch=name)) for name in ("scatter", "einsum")
    }
    apart = jnp.abs(outputs(sides["scatter"], x) - outputs(sides["einsum"], x)).max()
    compare("S/32, 32 experts, 1,568 tokens", sides, x, {"einsum": 2.0})
    distributions = ("chapbook-vmoe", "chapbook-core", "jax", "equinox")
    report(__file__, CLAIM, rows, distributions, options=vars(options),
           outputs_differ_at_most=float(apart))  # fmt: skip


if __name__ == "__main__":
    main()
