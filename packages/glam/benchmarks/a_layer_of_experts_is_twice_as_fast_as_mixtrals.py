"""Claim: a layer of experts is twice as fast as the Mixtral block of transformers.

Router, the two best of E gated experts for each token, and the weighted sum, without a limit for
any expert: `chapbook.core.experts`, on which `glam` is built, with the very weights of
transformers' `MixtralSparseMoeBlock` in each of its ways that a CPU has, forward and with the
gradients of all weights and of the input. Outputs and gradients are compared where both send a
token to the same experts. Beside them `glam`'s own layer, whose experts have two matrices of one
and a half times the width, and thus as many weights and operations; with gradients it has the
limits of training, and drops what finds no room.

Both sides use all processors that the process may: `taskset -c 0` makes it one for both. Needs the
packages in `requirements.txt`.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from chapbook.core.experts import Experts, router_logits, top_k
from chapbook.glam import GLaMConfig, MoE

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report, seconds

CLAIM = "a layer of experts is twice as fast as the Mixtral block of transformers"
WANTED = 2.0
CHOICES = 2


def block(embed: int, hidden: int, experts: int, way: str) -> MixtralSparseMoeBlock:
    """Returns the peer, with the same weights for each way."""
    config = MixtralConfig(
        hidden_size=embed, intermediate_size=hidden, num_local_experts=experts,
        num_experts_per_tok=CHOICES, hidden_act="silu",
    )  # fmt: skip
    config._experts_implementation = way
    made = MixtralSparseMoeBlock(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for each in made.parameters():
            each.normal_(0, each.shape[-1] ** -0.5)
    return made


def taken_over(peer: MixtralSparseMoeBlock) -> tuple[jax.Array, Experts]:
    """Returns our router's matrix and experts, with the weights of the peer."""
    router, gate_up, down = (
        each.detach().numpy()
        for each in (peer.gate.weight, peer.experts.gate_up_proj, peer.experts.down_proj)
    )
    gate, up = np.split(gate_up, 2, axis=1)
    count, hidden, embed = gate.shape
    bank = Experts(count, embed, hidden, gated=True, activation=jax.nn.silu, key=jax.random.key(0))
    turned = [jnp.asarray(np.swapaxes(each, -1, -2)) for each in (up, down, gate)]
    bank = eqx.tree_at(lambda bank: (bank.w_in, bank.w_out, bank.w_gate), bank, turned)
    return jnp.asarray(router.T), bank


def ours(params: tuple[jax.Array, Experts], x: jax.Array) -> jax.Array:
    """The layer, as Mixtral weighs its experts."""
    router, bank = params
    gates = jax.nn.softmax(router_logits(x, router))
    return bank(x, top_k(gates, CHOICES, normalize="softmax_topk"))[0]


def in_training(layer: MoE, x: jax.Array) -> jax.Array:
    """Glam's layer with the limits of training."""
    return layer(x[None], key=jax.random.key(0))[0][0]


def at_inference(layer: MoE, x: jax.Array) -> jax.Array:
    """Glam's layer without limits."""
    return layer(x[None])[0][0]


def with_gradients(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Returns the gradients of the mean square, by the input and by all weights."""

    def gradients(params: Any, x: jax.Array) -> Any:
        arrays, static = eqx.partition(params, eqx.is_inexact_array)
        loss = lambda x, arrays: jnp.mean(function(eqx.combine(arrays, static), x) ** 2)  # noqa: E731
        return jax.grad(loss, (0, 1))(x, arrays)

    return gradients


def compiled(function: Callable[..., Any], params: Any, x: jax.Array) -> Callable[[], Any]:
    """Compiles a call, and returns what makes it."""
    arrays, static = eqx.partition(params, eqx.is_array)
    program = jax.jit(lambda arrays, x: function(eqx.combine(arrays, static), x))
    program = program.lower(arrays, x).compile()
    return lambda: jax.block_until_ready(program(arrays, x))


def peer_forward(peer: MixtralSparseMoeBlock, x: torch.Tensor) -> torch.Tensor:
    """One call of the peer, as inference makes it."""
    with torch.inference_mode():
        return peer(x[None])[0]


def peer_gradients(peer: MixtralSparseMoeBlock, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The gradients of the mean square, by the input and by all weights."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad((peer(x[None]) ** 2).mean(), [x, *peer.parameters()])


def difference(mine: jax.Array, theirs: torch.Tensor, same: np.ndarray) -> float:
    """Returns the largest difference over the largest value, of tokens with the same experts."""
    mine, reference = np.asarray(mine)[same], theirs.numpy()[same]
    return float(np.abs(mine - reference).max() / np.abs(reference).max())


def compare(tokens: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the rows of one number of tokens."""
    sizes = given.embed, given.hidden, given.experts
    peers = {way: block(*sizes, way) for way in given.ways}
    params = taken_over(next(iter(peers.values())))
    x = np.random.default_rng(0).normal(size=(tokens, given.embed)).astype(np.float32)
    here, there = jnp.asarray(x), torch.from_numpy(x)
    config = GLaMConfig(
        num_layers=2, embed=given.embed, hidden=given.hidden, num_heads=1, head_dim=8,
        num_experts=given.experts, expert_hidden=3 * given.hidden // 2, context=tokens,
    )  # fmt: skip
    own = MoE(config, key=jax.random.key(0))
    calls: dict[tuple[str, str], Callable[[], Any]] = {
        ("chapbook", "forward"): compiled(ours, params, here),
        ("chapbook", "gradients"): compiled(with_gradients(ours), params, here),
        ("glam", "forward"): compiled(at_inference, own, here),
        ("glam", "gradients"): compiled(with_gradients(in_training), own, here),
    }
    for way, peer in peers.items():
        calls[f"transformers, {way}", "forward"] = partial(peer_forward, peer, there)
        calls[f"transformers, {way}", "gradients"] = partial(peer_gradients, peer, there)
    first = next(iter(peers.values()))
    with torch.no_grad():
        chosen = first.gate(there)[2].sort(-1).values.numpy()
    mine = top_k(jax.nn.softmax(router_logits(here, params[0])), CHOICES).expert
    same = (np.sort(np.asarray(mine), -1) == chosen).all(-1)
    far = {}
    for what in ("forward", "gradients"):
        found, told = calls["chapbook", what](), calls[f"transformers, {given.ways[0]}", what]()
        # Gradients of the input: those of the weights sum over all tokens.
        pair = (found[0], told[0]) if what == "gradients" else (found, told)
        far[what] = difference(*pair, same)
    timers = {side: partial(seconds, call) for side, call in calls.items()}
    taken = interleaved(timers, given.repeats, warm=2)
    each = medians(taken)
    rows = []
    for (name, what), found in each.items():
        best = min(t for (n, w), t in each.items() if w == what and n.startswith("transformers"))
        rows.append({
            "side": name, "pass": what, "tokens": tokens, "ms": 1e3 * found,
            "times_as_fast_as_the_best_peer": best / found,
            "wanted": WANTED if name == "chapbook" else None,
            "differs_by": far[what] if name == "chapbook" else None,
            "tokens_with_the_same_experts": float(same.mean()) if name == "chapbook" else None,
            "repeats_ms": [1e3 * t for t in taken[name, what]],
        })  # fmt: skip
    return rows


def main() -> None:
    """Prints what both sides take, and writes it beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 1024])
    parser.add_argument("--embed", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--ways", nargs="+", default=["eager", "grouped_mm"])
    parser.add_argument("--repeats", type=int, default=10)
    given = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    rows = [row for tokens in given.tokens for row in compare(tokens, given)]
    report(
        __file__, CLAIM, rows, ("chapbook-glam", "chapbook-core", "jax", "torch", "transformers"),
        options=vars(given), threads=threads,
    )  # fmt: skip


if __name__ == "__main__":
    main()
