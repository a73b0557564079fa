"""Claim: an expert layer costs little more than a dense one of the same activated operations.

A dense feed-forward network of width K H against E experts of width H, of which a token uses K:
router, top-k, dispatch, experts and combine, by each path, forward and with all gradients. Ratios
are of the best of interleaved repeats. Targets on a CPU: moving rows into buffers with a capacity
factor of 1.25 at most 1.5 times the dense network forward and 1.6 times with gradients, grouped
without a capacity at most 1.35 times, and routing alone at most a tenth of the layer. Beside it:
twice the experts at the same K may cost grouped at most 1.3 times as much.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from chapbook.core import experts

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report, seconds

CLAIM = "an expert layer costs little more than a dense one"
WANTED = {"scatter": (1.5, 1.6), "grouped": (1.35, 1.35), "routing alone": (0.1, None)}


def dense(params: Any, x: jax.Array) -> jax.Array:
    """The feed-forward network that does the same work for every token."""
    return jax.nn.gelu(x @ params[0]) @ params[1]


def route(k: int, router: jax.Array, x: jax.Array) -> experts.Assignment:
    """Probabilities of the experts, and the best k."""
    return experts.top_k(jax.nn.softmax(experts.router_logits(x, router)), k)


def layer(k: int, how: str, places: int | None, params: Any, x: jax.Array) -> jax.Array:
    """The expert layer, router included."""
    router, bank = params
    return bank(x, route(k, router, x), how=how, capacity=places)[0]


def routing(k: int, places: int, params: Any, x: jax.Array) -> experts.Plan:
    """The layer without its rows: router, top-k and plan."""
    return experts.plan(route(k, params[0], x), places)


def timer(function: Callable[..., Any], *arguments: Any) -> Callable[[], float]:
    """Compiles a function and returns what times one call of it."""
    compiled = jax.jit(function).lower(*arguments).compile()
    return lambda: seconds(lambda: jax.block_until_ready(compiled(*arguments)))


def with_gradients(function: Callable[..., jax.Array], params: Any, x: jax.Array) -> Any:
    """The gradients of the mean square of the output, by parameters and input."""
    return jax.grad(lambda params, x: jnp.mean(function(params, x) ** 2), (0, 1))(params, x)


def main() -> None:
    """Times all sides in turn, and again, and prints the best of each."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--embed", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--choices", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    tokens, embed, hidden, k = options.tokens, options.embed, options.hidden, options.choices
    dtype = jnp.dtype(options.dtype)

    def made(count: int) -> Any:
        keys = jax.random.split(jax.random.key(count))
        bank = experts.Experts(count, embed, hidden, dtype=dtype, key=keys[0])
        return jax.random.normal(keys[1], (embed, count)) / embed**0.5, bank

    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (tokens, embed), dtype)
    wide = (
        jax.random.normal(keys[1], (embed, k * hidden), dtype) / embed**0.5,
        jax.random.normal(keys[2], (k * hidden, embed), dtype) / hidden**0.5,
    )
    one, two = made(options.experts), made(2 * options.experts)
    places = experts.capacity(tokens, options.experts, k, 1.25)
    sides = {
        "dense": (dense, wide),
        "scatter": (partial(layer, k, "scatter", places), one),
        "grouped": (partial(layer, k, "grouped", None), one),
        "grouped, 2 E": (partial(layer, k, "grouped", None), two),
    }
    timers = {(name, "forward"): timer(f, params, x) for name, (f, params) in sides.items()}
    timers["routing alone", "forward"] = timer(partial(routing, k, places), one, x)
    for name, (f, params) in sides.items():
        timers[name, "gradients"] = timer(partial(with_gradients, f), params, x)
    taken = interleaved(timers, options.repeats, warm=2)
    best = {side: min(figures) for side, figures in taken.items()}
    rows = []
    for (name, what), found in best.items():
        wanted = WANTED.get(name, (None, None))[what == "gradients"]
        ratio = found / best["dense", what]
        if name == "grouped, 2 E":
            wanted = 1.3 * best["grouped", what] / best["dense", what]
        row = {"side": name, "pass": what, "ms": 1e3 * found, "over_dense": ratio}
        rows.append(row | {"wanted": wanted, "repeats_ms": [1e3 * t for t in taken[name, what]]})
    distributions = ("chapbook-core", "jax", "equinox")
    report(__file__, CLAIM, rows, distributions, options=vars(options), capacity=places)


if __name__ == "__main__":
    main()
