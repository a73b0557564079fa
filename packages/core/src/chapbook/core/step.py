"""One training step: gradients in microbatches, a guard against NaN, one donated program.

- `update` makes the function from a state and a batch to the next state and its metrics.
- `compile_step` turns that function, or one of your own, into a program that is compiled before the
  first step and works in place. A loop of another kind (several losses, several optimizers) is
  written with it directly.
"""

import dataclasses
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxprs_in_params
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from chapbook.core.errors import Error
from chapbook.core.sharding import constrain

Batch = Mapping[str, Any]
Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Policy:
    """The types in which a step holds, computes and reports.

    A batch stays as it is, because targets may need their precision: a loss that takes float32
    inputs and computes in bfloat16 casts them itself, `x.astype(model.weight.dtype)`.

    Args:
        param: Of the trained parameters, the optimizer's state and the gradients.
        compute: To which the model's floating arrays are cast before the loss is called.
        output: Of the loss.
    """

    param: Any = jnp.float32
    compute: Any = jnp.float32
    output: Any = jnp.float32

    @classmethod
    def of(cls, precision: "str | Policy") -> "Policy":
        """Returns the policy named `float32` or `bfloat16`; a policy is returned as it is."""
        if isinstance(precision, Policy):
            return precision
        if precision not in ("float32", "bfloat16"):
            raise Error(f'precision "{precision}" is neither float32, bfloat16 nor a Policy')
        return cls(compute=jnp.dtype(precision))


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Casts the floating arrays of a tree, and leaves all else as it is."""
    floating, rest = eqx.partition(tree, eqx.is_inexact_array)
    floating = jax.tree.map(lambda x: x if jnp.iscomplexobj(x) else x.astype(dtype), floating)
    return eqx.combine(floating, rest)


class State(NamedTuple):
    """What training changes, and all that a step needs to go on besides the batch."""

    params: PyTree
    optimizer: PyTree
    extra: PyTree
    step: Int[Array, ""]
    skipped: Int[Array, ""]


Update = Callable[[Any, Any, Any], tuple[Any, Mapping[str, Any]]]


def update(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    static: PyTree,
    *,
    key_impl: Any = None,
    accumulate: int = 1,
    policy: Policy = Policy(),
    on_nan: str = "skip",
    plan: PyTree = None,
) -> Update:
    """Makes the function `(state, (frozen, key data), batch) -> (state, metrics)`.

    The gradient of a batch of microbatches `i` with weights `w_i` is `sum_i w_i g_i / sum_i w_i`,
    summed in float32. Step `s` draws from `fold_in(key, s)`, its microbatch `i` from
    `fold_in(fold_in(key, s), i)`.

    Args:
        loss: As `fit` takes it.
        optimizer: Any Optax transformation; `update` receives `value=loss` as well.
        static: The model's leaves that are no arrays.
        key_impl: The implementation of the key whose data the function receives.
        accumulate: Microbatches per step.
        policy: The types to hold, compute and report in.
        on_nan: `off` applies every update; `skip` and `rewind` leave the state as it was where the
            loss or the gradient is not finite; `stop` leaves it so for ever after.
        plan: The parameters' shardings, which the sum of gradients is held to.

    Returns:
        The function, for `compile_step`.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def objective(params: PyTree, frozen: PyTree, extra: PyTree, batch: Batch, key: Array) -> Any:
        model = eqx.combine(*cast((params, frozen), policy.compute), static)
        out = loss(model, batch, key) if extra is None else loss(model, batch, key, extra)
        value, aux = out if isinstance(out, tuple) else (out, {})
        aux = dict(aux)
        weight = jnp.asarray(aux.pop("weight", 1.0), jnp.float32)
        extra = aux.pop("extra", extra)
        aux = {name: jnp.asarray(v, jnp.float32) for name, v in aux.items()}
        if wrong := {"loss", "grad_norm", "weight", "ok", "skipped", "learning_rate"} & set(aux):
            raise Error(f"the loss returns {', '.join(wrong)}, which fit reports itself; rename")
        return value.astype(policy.output), (extra, weight, aux)

    def gradient(params: PyTree, *rest: Any) -> Any:
        found = jax.value_and_grad(objective, has_aux=True)(params, *rest)
        (value, (extra, weight, aux)), grads = found
        return extra, weight, (value.astype(jnp.float32), aux, grads)

    def pinned(sums: Any) -> Any:
        return (
            sums if plan is None else (*sums[:2], jax.lax.with_sharding_constraint(sums[2], plan))
        )

    def accumulated(params: PyTree, frozen: PyTree, extra: PyTree, batch: Batch, key: Array) -> Any:
        def one(carry: Any, part: Any) -> tuple[Any, None]:
            (extra, total, sums), (index, micro) = carry, part
            key_of = jax.random.fold_in(key, index)
            extra, weight, values = gradient(params, frozen, extra, micro, key_of)
            # A microbatch of padding alone has weight 0 and often a loss of 0 / 0.
            values = jax.tree.map(
                lambda v: jnp.where(weight > 0, weight * v.astype(jnp.float32), 0), values
            )
            return (extra, total + weight, pinned(jax.tree.map(jnp.add, sums, values))), None

        parts = jax.tree.map(lambda x: _microbatches(x, accumulate), batch)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient, params, frozen, extra, first, key)[2]
        zeros = pinned(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes))
        start = (extra, jnp.float32(0), zeros)
        (extra, total, sums), _ = jax.lax.scan(one, start, (jnp.arange(accumulate), parts))
        value, aux, grads = jax.tree.map(lambda s: s / total, sums)
        return extra, total, (value, aux, optax.tree.cast_like(grads, params))

    def step(state: State, constants: Any, batch: Batch) -> tuple[State, Metrics]:
        frozen, key_data = constants
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl=key_impl), state.step)
        inputs = (state.params, frozen, state.extra, batch)
        if accumulate == 1:
            found = gradient(*inputs, jax.random.fold_in(key, 0))
        else:
            found = accumulated(*inputs, key)
        extra, weight, (value, aux, grads) = found
        norm = optax.tree.norm(grads)
        updates, opt = optimizer.update(grads, state.optimizer, state.params, value=value)
        params = eqx.apply_updates(state.params, updates)
        new = State(params, opt, extra, state.step + 1, state.skipped)
        ok = jnp.bool_(True)
        if on_nan != "off":
            ok = jnp.isfinite(value) & jnp.isfinite(norm)
            stop = on_nan == "stop"
            ok &= (state.skipped == 0) | (not stop)
            new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state)
            new = new._replace(
                step=state.step + (ok | (not stop)),
                skipped=jnp.maximum(state.skipped, ~ok) if stop else state.skipped + ~ok,
            )
        metrics = {"loss": value, "grad_norm": norm, "weight": weight, "ok": ok}
        for _, rate in optax.tree_utils.tree_get_all_with_path(new.optimizer, "learning_rate"):
            if eqx.is_array(rate) and rate.ndim == 0:  # others hold the state of a schedule
                metrics["learning_rate"] = rate
        return new, {**metrics, "skipped": new.skipped, **aux}

    return step


def _microbatches(x: Array, count: int) -> Array:
    if x.ndim == 0 or x.shape[0] % count:
        told = f"an array of shape {x.shape} in the batch does not split into"
        raise Error(f"{told} accumulate={count}")
    # Each microbatch takes every count-th row, so that all of its rows stay on their devices; a
    # plain reshape to [count, rows] would move the batch between devices.
    split = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
    return constrain(split, None, "batch", *[None] * (x.ndim - 1))


@dataclasses.dataclass
class Step:
    """A compiled step and the state that it advances in place. Made by `compile_step`.

    Attributes:
        compiled: The program: `compiled.as_text()`, `compiled.memory_analysis()`, ...
        names: Of the metrics, in the order of the vector that a call returns.
        seconds: That compiling took.
        flops: Of one step on all devices, or None if the compiler's count is not to be trusted.
        recomputes: Whether `flops` holds recomputation of activations.
        ahead: Calls that may be dispatched and not yet done.
        steps_per_dispatch: Steps that a call makes at most.
    """

    compiled: Any
    names: tuple[str, ...]
    seconds: float
    flops: float | None
    recomputes: bool
    ahead: int
    steps_per_dispatch: int
    _structure: Any
    _leaves: list
    _constants: list
    _running: deque[Array] = dataclasses.field(default_factory=deque)

    def __call__(self, *batches: Any) -> Float[Array, "*steps metrics"]:
        """Advances the state by one batch and returns the metrics, still on the device.

        Where `steps_per_dispatch` is above 1, by as many batches at most; then the metrics have as
        many rows, of which those beyond the batches given mean nothing.
        """
        if len(self._running) == self.ahead:
            self._running.popleft().block_until_ready()
        batch = _together(batches, self.steps_per_dispatch)
        self._leaves, values = self.compiled(self._leaves, self._constants, batch)
        self._running.append(values)
        return values

    def wait(self) -> None:
        """Waits for the last step to be done."""
        for values in self._running:
            values.block_until_ready()

    @property
    def state(self) -> Any:
        """The state after the last step. The next call deletes its arrays: copy what is kept."""
        return self._structure.unflatten(self._leaves)

    @state.setter
    def state(self, state: Any) -> None:
        self._leaves = self._structure.flatten_up_to(state)


def compile_step(
    update: Update, state: Any, constants: Any, batch: Any, *, steps_per_dispatch: int = 1,
    memory: int | None = None,
) -> Step:  # fmt: skip
    """Compiles a step that works in place, before the first one is run.

    Args:
        update: A pure function `(state, constants, batch) -> (state, metrics)`; the state keeps
            its structure, shapes and types, and metrics are named scalars.
        state: Arrays, on the devices where they are to stay. They are donated: the first call
            deletes them.
        constants: Arrays that every step reads and none changes.
        batch: The first batch, or one like it.
        steps_per_dispatch: Steps that a call makes at most, in a loop over as many batches.
        memory: Bytes that one device has; None asks the device.

    Returns:
        The step: `step(batch)` advances `step.state`.

    Raises:
        Error: The state changes its form in a step, or the step needs more memory than there is.
    """
    leaves, structure = jax.tree.flatten(state)
    fixed, constants_structure = jax.tree.flatten(constants)
    names: tuple[str, ...] = ()

    def one(leaves: list, fixed: list, batch: Any) -> tuple[list, Array]:
        nonlocal names
        state = structure.unflatten(leaves)
        new, metrics = update(state, constants_structure.unflatten(fixed), batch)
        _check_form(state, new)
        names = tuple(metrics)
        values = [jnp.asarray(value, jnp.float32) for value in metrics.values()]
        return [_strong(x) for x in jax.tree.leaves(new)], jnp.stack(values)

    # Traced once for both: the shape of the metrics, and the body of the loop.
    one = jax.jit(one, inline=True)

    def flat(leaves: list, fixed: list, batch: Any) -> tuple[list, Array]:
        if steps_per_dispatch == 1:
            return one(leaves, fixed, batch)
        batches, count = batch
        stack = jax.tree.map(lambda *x: jnp.stack(x), *batches)

        def take(index: Any, leaves: list) -> tuple[list, Array]:
            return one(leaves, fixed, jax.tree.map(lambda x: x[index], stack))

        def body(index: Array, carry: Any) -> Any:
            leaves, values = take(index, carry[0])
            return leaves, jax.lax.dynamic_update_index_in_dim(carry[1], values, index, 0)

        # The number is an argument of the program, so that one serves shorter groups too.
        wanted = jax.eval_shape(take, 0, leaves)[1]
        rows = jnp.zeros((steps_per_dispatch, *wanted.shape), wanted.dtype)
        return jax.lax.fori_loop(0, count, body, (leaves, rows))

    placed = [leaf.sharding for leaf in leaves]
    first = placed[0]
    whole = NamedSharding(first.mesh, PartitionSpec()) if isinstance(first, NamedSharding) else None
    start = time.perf_counter()
    program = jax.jit(flat, donate_argnums=0, out_shardings=(placed, whole))
    traced = program.trace(leaves, fixed, _together((batch,), steps_per_dispatch))
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - start
    device = next(iter(first.addressable_devices))
    limit = memory or (device.memory_stats() or {}).get("bytes_limit")
    if limit and (needs := compiled.memory_analysis()):
        _check_memory(needs, limit)
    primitives, flops = Counter(_primitives(traced.jaxpr.jaxpr)), None
    # XLA counts the body of a loop once, however often it runs: right for the loop of steps alone.
    if primitives["scan"] + primitives["while"] == (steps_per_dispatch > 1):
        counted = compiled.cost_analysis() or {}
        flops = counted.get("flops", math.nan) * len(first.device_set)
    recomputes = not primitives.keys().isdisjoint({"remat2", "remat", "checkpoint"})
    # Several programs at once on simulated devices wait for each other's threads in collectives and
    # abort the process. Elsewhere a second step may wait its turn while the first runs; more would
    # only hold more batches.
    ahead = 1 if device.platform == "cpu" and len(first.device_set) > 1 else 2
    return Step(
        compiled, names, seconds, flops, recomputes, ahead, steps_per_dispatch, structure, leaves,
        fixed,
    )  # fmt: skip


def _together(batches: tuple[Any, ...], most: int) -> Any:
    """Returns what a program takes that makes up to so many steps: batches, and how many count."""
    if most == 1:
        return batches[0]
    return batches + batches[-1:] * (most - len(batches)), np.int32(len(batches))


def _strong(x: Any) -> Array:
    """Drops the weak type that a Python number among the operands leaves on a result."""
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype) if getattr(x, "weak_type", False) else x


def _check_form(old: PyTree, new: PyTree) -> None:
    was, now = jax.tree.structure(old), jax.tree.structure(new)
    if was != now:
        raise Error(f"a step changes the structure of the state from {was} to {now}")
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True
    ):
        was, now = (f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in (a, b))
        if was != now:
            where = jax.tree_util.keystr(path)
            raise Error(f"a step changes state{where} from {was} to {now}")


def _check_memory(needs: Any, limit: int) -> None:
    arguments, aliased = needs.argument_size_in_bytes, needs.alias_size_in_bytes
    peak = arguments + needs.output_size_in_bytes - aliased + needs.temp_size_in_bytes
    if peak > limit:
        raise Error(
            f"a step needs {peak / 1e9:.3g} GB on a device that has {limit / 1e9:.3g} GB: "
            f"state {aliased / 1e9:.3g}, batch and frozen arrays {(arguments - aliased) / 1e9:.3g},"
            f" activations {needs.temp_size_in_bytes / 1e9:.3g}",
            "take more microbatches (accumulate), shard the parameters (an fsdp axis in the mesh), "
            "or recompute activations (jax.checkpoint)",
        )


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from _primitives(inner)
