"""Reports which share of an update on four devices goes into the all-to-alls of the experts.

Whole updates of a model whose experts are spread over the mesh axis `expert`, beside a program that
makes the same all-to-alls and nothing else: those of the compiled update, as large and as often.
Both are measured in turn. The devices are simulated and share the processors and the memory of one
machine, so that this tells of copies and of waiting for each other, and nothing of a network.
"""

import argparse
import math
import re
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from chapbook.core import mesh, simulate, use
from chapbook.core.sharding import create
from chapbook.glam import GLaM, GLaMConfig, TrainConfig
from chapbook.glam.model import RULES
from chapbook.glam.training import objective, optimizer

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report, seconds

CLAIM = "the share of an update on four devices in which tokens are exchanged"


def update_of(config: GLaMConfig, batch: Any, on: Any) -> Any:
    """Returns the compiled update, and its first arguments."""
    recipe = TrainConfig(tokens=batch["tokens"].size)
    loss, tune = objective(recipe), optimizer(recipe)
    model = create(lambda key: GLaM(config, key=key), jax.random.key(0), on, RULES)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def update(params: Any, state: Any, batch: Any, key: Any) -> Any:
        def of(params: Any) -> Any:
            return loss(eqx.combine(params, static), batch, key)

        (_, told), gradient = jax.value_and_grad(of, has_aux=True)(params)
        updates, state = tune.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, told

    given = (params, jax.jit(tune.init)(params), batch, jax.random.key(1))
    return jax.jit(update).lower(*given).compile(), given


def sent(program: str, pairs: int) -> list[int]:
    """Returns how many numbers a device gives to each all-to-all of a compiled program.

    Args:
        program: Its text.
        pairs: How often a loop over layers goes round.
    """
    found = []
    for line in program.splitlines():
        if told := re.search(r" = (.+) all-to-all\(", line):
            shapes = re.findall(r"f32\[([\d,]*)\]", told[1])
            size = sum(math.prod(map(int, shape.split(","))) for shape in shapes)
            found += [size] * (pairs if "/while/" in line else 1)
    return found


def exchange_of(sizes: list[int], devices: int, on: Any) -> Any:
    """Returns a compiled program of such all-to-alls, one after the other, and its arguments."""
    split = PartitionSpec("expert")

    @jax.shard_map(mesh=on, in_specs=split, out_specs=split)
    def local(*rows: jax.Array) -> tuple[jax.Array, ...]:
        done, before = [], jnp.float32(0)
        for each in rows:
            # Each waits for the one before, as in a model.
            there = jax.lax.all_to_all(each + before, "expert", 0, 0, tiled=True)
            done.append(there)
            before = there[0, 0] * 0
        return tuple(done)

    place = NamedSharding(on, split)
    given = tuple(
        jax.device_put(jnp.ones((devices * devices, size // devices)), place) for size in sizes
    )
    return jax.jit(local).lower(*given).compile(), given


def main() -> None:
    """Prints the share, and writes it beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--config", default="desk/8E,vocab=2048,context=256")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    given = parser.parse_args()
    simulate(given.devices)
    on = mesh(f"expert={given.devices}")
    config = GLaMConfig.from_string(given.config)
    shape = (given.batch, config.context + 1)
    batch = jax.device_put(
        {
            "tokens": jax.random.randint(jax.random.key(1), shape, 0, config.vocab_size),
            "segment": jnp.ones(shape, jnp.int32),
        },
        NamedSharding(on, PartitionSpec("expert")),
    )
    with use(on, RULES):
        update, arguments = update_of(config, batch, on)
    sizes = sent(update.as_text(), config.num_layers // 2)
    exchange, rows_sent = exchange_of(sizes, given.devices, on)
    sides = {
        "update": lambda: seconds(lambda: jax.block_until_ready(update(*arguments))),
        "exchange": lambda: seconds(lambda: jax.block_until_ready(exchange(*rows_sent))),
    }
    taken = interleaved(sides, given.repeats, warm=2)
    each = medians(taken)
    tokens = given.batch * config.context
    row = {
        "devices": given.devices, "update_ms": 1e3 * each["update"],
        "exchange_ms": 1e3 * each["exchange"], "share": each["exchange"] / each["update"],
        "tokens_per_s": tokens / each["update"], "exchanges": len(sizes),
        "MB_sent_by_a_device": 4 * sum(sizes) / 1e6,
        "update_repeats_s": taken["update"], "exchange_repeats_s": taken["exchange"],
    }  # fmt: skip
    report(__file__, CLAIM, [row], ("chapbook-glam", "chapbook-core", "jax"), options=vars(given))


if __name__ == "__main__":
    main()
