"""A stack of 48 layers compiles in a small part of the time that the same layers in a row take.

Both are the same `Stack` with the same parameters, of blocks with rotary attention and a gated
feed-forward layer; one runs its layers by a scan, the other by a Python loop (`unroll=True`). The
time is that of tracing and compiling one training step's value and gradient. Both sides are also
run once, to tell what the scan costs when it runs.
"""

import argparse
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

from chapbook.core import transformer as tr

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report, seconds

CLAIM = "compiling a stack of layers takes as long for 48 of them as for few"
EMBED, HEADS, MLP, BATCH, TOKENS = 64, 4, 256, 2, 32


def layer(key):
    """One layer."""
    first, second = jax.random.split(key)
    attention = tr.Attention(EMBED, HEADS, causal=True, rope=10_000.0, key=first)
    ffn = tr.FFN(EMBED, MLP, act=jax.nn.silu, gated=True, key=second)
    return tr.Block(EMBED, attention=attention, ffn=ffn, norm=tr.RMSNorm)


def step(depth, unroll):
    """Returns what lowers and compiles one step, and its arguments."""
    stack = tr.Stack(layer, depth, unroll=unroll, key=jax.random.key(0))
    arrays, static = eqx.partition(stack, eqx.is_array)

    def loss(arrays, x):
        return jnp.mean(eqx.combine(arrays, static)(x)[0] ** 2)

    x = jax.random.normal(jax.random.key(1), (BATCH, TOKENS, EMBED))
    return lambda: jax.jit(jax.value_and_grad(loss)).lower(arrays, x).compile(), (arrays, x)


def compare(depth, repeats):
    """Returns the row of one depth."""
    sides = {"scan": step(depth, False), "unrolled": step(depth, True)}

    def compiling(name):
        jax.clear_caches()  # or tracing would be done but once
        return seconds(sides[name][0])

    times = interleaved({name: lambda name=name: compiling(name) for name in sides}, repeats)
    programs = {name: (build(), arguments) for name, (build, arguments) in sides.items()}

    def running(name):
        program, arguments = programs[name]
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        return time.perf_counter() - start

    runs = interleaved({name: lambda name=name: running(name) for name in sides}, 10, warm=2)
    compiled, ran = medians(times), medians(runs)
    return {
        "layers": depth,
        **{f"{name}_compile_s": compiled[name] for name in sides},
        "compile_scan_over_unrolled": compiled["scan"] / compiled["unrolled"],
        "run_scan_over_unrolled": ran["scan"] / ran["unrolled"],
        **{f"{name}_repeats": times[name] for name in sides},
    }


def main():
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 48])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows = [compare(depth, options.repeats) for depth in options.depths]
    report(__file__, CLAIM, rows, ("chapbook-core", "jax", "equinox"))


if __name__ == "__main__":
    main()
