"""A step of fit needs no more memory than a hand-written donated step, and reuses all of its state.

All are compiled for the same MLP and Adam. fit also reports the gradient's norm and guards against
NaN, for which all gradients must be there before the first update; so it stands beside a step by
hand that does the same work, and one that does neither.

The figures are XLA's own (`memory_analysis`): the peak
is arguments + outputs - aliased + temporaries.
"""

import sys
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from chapbook.core.step import Policy, State, compile_step, update

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import report

CLAIM = "fit needs no more memory than a hand-written donated loop"


def loss(model, batch, key):
    """The mean squared error."""
    return jnp.mean((jax.vmap(model)(batch["x"]) - batch["y"]) ** 2)


def account(memory):
    """The bytes of one compiled step."""
    peak = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    )  # fmt: skip
    return {"peak": peak, "aliased": memory.alias_size_in_bytes, "temp": memory.temp_size_in_bytes}


def compare(width, batch_size, on_nan):
    """Compiles both steps for one model and batch."""
    model = eqx.nn.MLP(64, 10, width, 2, key=jax.random.key(0))
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    frozen, static = eqx.partition(rest, eqx.is_array)
    optimizer = optax.adam(1e-3)
    batch = {"x": jnp.ones((batch_size, 64)), "y": jnp.ones((batch_size, 10))}

    def by_hand(params, state, batch, norm, guard):
        value, grads = jax.value_and_grad(lambda p: loss(eqx.combine(p, static), batch, None))(
            params
        )
        size = optax.tree.norm(grads) if norm else jnp.float32(0)
        updates, new_state = optimizer.update(grads, state, params)
        new = (eqx.apply_updates(params, updates), new_state)
        if guard:
            ok = jnp.isfinite(value) & jnp.isfinite(size)
            new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, (params, state))
        return *new, jnp.stack([value, size])

    def hand(norm, guard):
        step = jax.jit(partial(by_hand, norm=norm, guard=guard), donate_argnums=(0, 1))
        compiled = step.lower(params, optimizer.init(params), batch).compile()
        return account(compiled.memory_analysis())

    state = State(params, optimizer.init(params), None, jnp.int32(0), jnp.int32(0))
    ours = compile_step(
        update(loss, optimizer, static, policy=Policy(), on_nan=on_nan),
        state,
        (frozen, jax.random.key_data(jax.random.key(0))),
        batch,
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((params, optimizer.init(params))))
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "batch": batch_size,
        "on_nan": on_nan,
        "params_and_optimizer": size,
        "plain": hand(norm=False, guard=False),
        "same_work": hand(norm=True, guard=on_nan == "skip"),
        "fit": account(ours.compiled.memory_analysis()),
    }


def main():
    """Prints and writes the figures."""
    rows = [
        compare(width, size, on_nan)
        for width, size in ((70, 16), (70, 2048), (1024, 256))
        for on_nan in ("off", "skip")
    ]
    for row in rows:
        for side in ("same_work", "plain"):
            row[f"fit_over_{side}"] = row["fit"]["peak"] / row[side]["peak"]
    report(__file__, CLAIM, rows, ("chapbook-core", "jax", "equinox", "optax"))


if __name__ == "__main__":
    main()
