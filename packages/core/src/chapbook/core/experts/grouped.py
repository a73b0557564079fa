"""Experts on rows: of one length for each expert, or in runs of any length.

An expert function computes `f(params, rows, matmul, key)`. Where it meets one expert at a time,
`params` are that expert's and `matmul(rows, weight, bias)` is a plain product; a back end that
multiplies all runs at once gives it the parameters of all experts and a product that knows them.

Two back ends take runs. `ragged` is `jax.lax.ragged_dot`, native on TPUs; elsewhere XLA may compute
the product of every row with every expert, and mask. `blocked` goes over the runs in blocks and
does no more than rounding their lengths asks for. `CHAPBOOK_GROUPED=ragged` or `=blocked` overrides
the choice by platform.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from chapbook.core.errors import Error
from chapbook.core.experts.parallel import alike

ExpertFn = Callable[[Any, Array, Callable[..., Array], Any], Array]

# A run is a few blocks of falling size. Large ones make use of a core, and add to the gradient of
# the weights seldom; small ones waste little. Where runs of one row or two are to be expected, as
# in decoding, blocks of one row are added: a product with a vector reads the weights fastest.
BLOCKS = {"cpu": (512, 256, 128, 64, 32, 16, 8)}
BLOCKS_ELSEWHERE = (128,)


def on_buffers(
    expert_fn: ExpertFn,
    params: PyTree,
    rows: Float[Array, "experts slots embed"],
    key: Key[Array, ""] | None,
    precision: Any,
) -> Float[Array, "experts slots outputs"]:
    """Applies each expert to its buffer: one batched product for each product of an expert."""
    matmul = functools.partial(_product, precision)
    keys = None if key is None else jax.random.split(key, len(rows))
    return jax.vmap(lambda p, r, k: expert_fn(p, r, matmul, k))(params, rows, keys)


def on_runs(
    expert_fn: ExpertFn,
    params: PyTree,
    rows: Float[Array, "rows embed"],
    sizes: Int[Array, " experts"],
    key: Key[Array, ""] | None,
    precision: Any,
) -> Float[Array, "rows outputs"]:
    """Applies each expert to its run of rows, by the back end in use.

    Args:
        expert_fn: The expert function.
        params: Arrays with a leading axis over the experts.
        rows: That of expert 0 first, without gaps.
        sizes: Length of each run. Rows beyond their sum may hold anything.
        key: Randomness.
        precision: As `jax.lax.dot` takes it.

    Returns:
        The outputs; 0 in the rows beyond the last run.

    Raises:
        Error: `CHAPBOOK_GROUPED` names no back end.
    """
    rows, params, sizes = alike((rows, params, sizes))
    return BACK_ENDS[back_end()](expert_fn, precision, rows, params, sizes, key)


def back_end() -> str:
    """Returns the name of the back end in use: that of the environment, or of the platform.

    Raises:
        Error: `CHAPBOOK_GROUPED` names no back end.
    """
    name = os.environ.get("CHAPBOOK_GROUPED") or PLATFORMS.get(jax.default_backend(), "blocked")
    if name not in BACK_ENDS:
        raise Error(f"CHAPBOOK_GROUPED={name} is none of {', '.join(BACK_ENDS)}")
    return name


def _product(precision: Any, rows: Array, weight: Array, bias: Array | None = None) -> Array:
    product = jnp.matmul(rows, weight, precision=precision)
    return product if bias is None else product + bias


def _ragged(
    expert_fn: ExpertFn, precision: Any, rows: Array, params: PyTree, sizes: Array, key: Any
) -> Array:
    def matmul(rows: Array, weight: Array, bias: Array | None = None) -> Array:
        dtype = jnp.result_type(rows, weight)
        product = multiply(rows.astype(dtype), weight.astype(dtype))
        if bias is None:
            return product
        # A product too, so that its gradient is a sum over runs.
        return product + multiply(jnp.ones_like(product[:, :1]), bias.astype(dtype)[:, None])

    multiply = functools.partial(jax.lax.ragged_dot, group_sizes=sizes, precision=precision)
    used = _used(rows, sizes)
    return jnp.where(used, expert_fn(params, jnp.where(used, rows, 0), matmul, key), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blocked(
    expert_fn: ExpertFn, precision: Any, rows: Array, params: PyTree, sizes: Array, key: Any
) -> Array:
    blocks = _blocks(len(rows), len(sizes))
    padded = jnp.pad(rows, ((0, blocks[0]), (0, 0)))
    one = functools.partial(_one, expert_fn, precision, key)

    def run(out: Array, expert: Any) -> tuple[Array, None]:
        number, start, size = expert

        def busy(out: Array) -> Array:
            # A loop copies what it takes from its inputs; of an idle expert that is left out.
            mine = jax.tree.map(lambda leaf: leaf[number], params)

            def block(out: Array, at: Array, length: int) -> Array:
                done = one(at, mine, jax.lax.dynamic_slice_in_dim(padded, at, length))
                # Rows beyond the run are wrong here; the next expert writes them anew.
                return jax.lax.dynamic_update_slice_in_dim(out, done, at, 0)

            return _over_blocks(block, out, blocks, start, size)

        return jax.lax.cond(size > 0, busy, lambda out: out, out), None

    first = jax.tree.map(lambda leaf: leaf[0], params)
    shape = jax.eval_shape(one, jnp.int32(0), first, padded)
    out, _ = alike((jnp.zeros(shape.shape, shape.dtype), rows))
    numbers = jnp.arange(len(sizes))
    out, _ = jax.lax.scan(run, out, (numbers, jnp.cumsum(sizes) - sizes, sizes))
    return jnp.where(_used(rows, sizes), out[: len(rows)], 0)


def _blocked_forward(
    expert_fn: ExpertFn, precision: Any, rows: Array, params: PyTree, sizes: Array, key: Any
) -> tuple[Array, Any]:
    return _blocked(expert_fn, precision, rows, params, sizes, key), (rows, params, sizes, key)


def _blocked_backward(expert_fn: ExpertFn, precision: Any, saved: Any, gradient: Array) -> Any:
    # What an expert computes inside is not kept but computed again, block by block: on a CPU that
    # costs less than to write and read the hidden rows of all tokens.
    rows, params, sizes, key = saved
    blocks = _blocks(len(rows), len(sizes))
    padded, gradient = (jnp.pad(x, ((0, blocks[0]), (0, 0))) for x in (rows, gradient))

    def run(d_rows: Array, expert: Any) -> tuple[Array, PyTree]:
        params, start, size = expert

        def block(sums: Any, at: Array, length: int) -> Any:
            d_rows, d_params = sums
            mine = (at + jnp.arange(length) < start + size)[:, None]
            cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=at, slice_size=length)
            part, g = jnp.where(mine, cut(padded), 0), jnp.where(mine, cut(gradient), 0)
            one = functools.partial(_one, expert_fn, precision, key, at)
            d_part_params, d_part = jax.vjp(one, params, part)[1](g)
            d_rows = jax.lax.dynamic_update_slice_in_dim(d_rows, d_part, at, 0)
            return d_rows, jax.tree.map(lambda d, x: d + x, d_params, d_part_params)

        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params
        )
        sums = (d_rows, alike((zeros, gradient))[0])
        d_rows, d_params = _over_blocks(block, sums, blocks, start, size)
        return d_rows, jax.tree.map(lambda d, x: d.astype(x.dtype), d_params, params)

    zeros, _ = alike((jnp.zeros_like(padded), gradient))
    d_rows, d_params = jax.lax.scan(run, zeros, (params, jnp.cumsum(sizes) - sizes, sizes))
    return d_rows[: len(rows)], d_params, None, None


_blocked.defvjp(_blocked_forward, _blocked_backward)

BACK_ENDS: dict[str, Any] = {"blocked": _blocked, "ragged": _ragged}
PLATFORMS = {"tpu": "ragged"}


def _one(
    expert_fn: ExpertFn, precision: Any, key: Any, at: Array, params: PyTree, rows: Array
) -> Array:
    """Applies one expert to the block of rows at `at`, which has randomness of its own."""
    key = None if key is None else jax.random.fold_in(key, at)
    return expert_fn(params, rows, functools.partial(_product, precision), key)


def _blocks(rows: int, experts: int) -> tuple[int, ...]:
    """Returns the lengths of blocks, each a multiple of the next."""
    blocks = BLOCKS.get(jax.default_backend(), BLOCKS_ELSEWHERE)
    if rows <= 2 * experts:
        blocks = (*blocks, 1)
    return tuple(length for length in blocks if length <= rows) or blocks[-1:]


def _over_blocks(
    block: Callable[[Any, Array, int], Any],
    carry: Any,
    blocks: tuple[int, ...],
    start: Array,
    size: Array,
) -> Any:
    """Goes over a run in blocks of falling length, in as many steps as it needs, none if empty."""
    left = -(-size // blocks[-1])
    for length in blocks:
        steps, left = left // (length // blocks[-1]), left % (length // blocks[-1])

        def step(i: Array, carry: Any, length: int = length, start: Array = start) -> Any:
            return block(carry, start + i * length, length)

        carry = jax.lax.fori_loop(0, steps, step, carry)
        start = start + steps * length
    return carry


def _used(rows: Array, sizes: Array) -> Array:
    return (jnp.arange(len(rows)) < jnp.sum(sizes))[:, None]
