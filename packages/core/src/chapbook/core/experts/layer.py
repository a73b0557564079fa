"""The layer: tokens through their experts, on one device or on a mesh."""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key, PyTree

from chapbook.core.errors import Error
from chapbook.core.experts.assignment import Assignment, fixed
from chapbook.core.experts.dispatch import combine, dispatch, runs
from chapbook.core.experts.grouped import ExpertFn, on_buffers, on_runs
from chapbook.core.experts.metrics import Metrics, metrics
from chapbook.core.experts.parallel import Axis, alike, exchange_buffers, exchange_runs
from chapbook.core.experts.plan import Plan, plan
from chapbook.core.sharding import axes, in_force, names, specs
from chapbook.core.transformer.dropout import dropout

LECUN = jax.nn.initializers.lecun_normal()  # standard deviation 1 / sqrt(inputs)
Priority = str | Float[Array, " tokens"]


def moe(
    x: Float[Array, "tokens embed"],
    assignment: Assignment,
    expert_fn: ExpertFn,
    params: PyTree,
    *,
    how: str = "auto",
    capacity: int | None = None,
    priority: Priority = "order",
    mesh_axis: Axis | None = None,
    num_groups: int = 1,
    precision: Any = None,
    key: Key[Array, ""] | None = None,
    overflow_factor: float | None = None,
    exchange_dtype: Any = None,
) -> tuple[Float[Array, "tokens outputs"], Metrics]:
    """Computes `y_t = sum_k w_tk f(params_e, x_t)` over the kept choices `e = e_tk` of each token.

    The sum is in float32. Gradients pass through the weights and the kept tokens; that of a dropped
    choice is exactly 0. A model on a mesh calls `Experts`, which calls this inside `jax.shard_map`.

    Args:
        x: Tokens. Those of a group lie together.
        assignment: Their choices.
        expert_fn: `f(params, rows, matmul, key)`, which maps rows `[R, M]`, each for itself.
            `params` are one expert's; all products of rows and parameters must be made by
            `matmul(rows, weight)` or `matmul(rows, weight, bias)`, because for some back ends they
            hold all experts'. It must not use other arrays of a transformed function.
        params: Floating arrays with a leading axis over the experts, or over those of this device.
        how: `scatter` moves rows into buffers, and `einsum` multiplies by masks; both need
            `capacity` places an expert, or as many as there are tokens. `grouped` needs none.
            `all` applies every expert to every token, for tests. `auto` is `scatter` where there
            is a capacity and else `grouped`.
        capacity: Places of each expert in a group; None drops nothing.
        priority: Who comes first, as `plan` takes it.
        mesh_axis: Inside `jax.shard_map`, the axis over which experts and tokens are spread.
        num_groups: Groups of equal size, within which tokens compete for places, if there is a
            capacity.
        precision: Of the products, as `jax.lax.dot` takes it.
        key: Randomness, for expert functions that need some; it must differ between devices.
        overflow_factor: With a mesh axis and no capacity, room at each device for this times an
            equal share of the choices; None for all of them.
        exchange_dtype: In which rows travel between devices, such as bfloat16; None for their own.

    Returns:
        The outputs in the type of x, and what happened to the tokens of this device.

    Raises:
        Error: The groups or the experts do not divide, or an option has another value.
    """
    how = ("grouped" if capacity is None else "scatter") if how == "auto" else how
    if how not in ("all", "einsum", "scatter", "grouped") or (how == "all" and mesh_axis):
        raise Error(f'how "{how}" is none of auto, einsum, scatter, grouped, or all on one device')
    num_groups = _groups(len(x), capacity, num_groups)
    params, static = eqx.partition(params, eqx.is_inexact_array)
    x, params = alike((x, params))
    plans = _plans(assignment, capacity, priority, num_groups, how)

    def expert(params: PyTree, *rest: Any) -> Array:
        return expert_fn(eqx.combine(params, static), *rest)

    buffers = functools.partial(on_buffers, expert, params, key=key, precision=precision)
    if how == "grouped" and mesh_axis is not None:

        def here(rows: Array, number: Array) -> Array:
            held = len(jax.tree.leaves(params)[0])
            local = fixed(number[:, None], jnp.ones((len(rows), 1)), held)
            return moe(rows, local, expert, params, how=how, precision=precision, key=key)[0]

        y, plans = exchange_runs(
            here, x, plans, mesh_axis, overflow_factor=overflow_factor, dtype=exchange_dtype
        )
    elif how == "grouped":
        place, lengths = runs(plans)
        y = on_runs(expert, params, place.gather(x), lengths, key, precision)
        y = place.combine(y, plans.weight.reshape(place.row.shape))
    elif how == "all":
        y = _all(buffers, x, plans)
    else:
        rows = dispatch(plans, x.reshape(num_groups, -1, x.shape[-1]), how=how)
        if mesh_axis is None:
            y = buffers(rows)
        else:
            y = exchange_buffers(buffers, rows, mesh_axis, exchange_dtype)
        y = combine(plans, y, how=how).reshape(len(x), -1)
    return y.astype(x.dtype), metrics(plans.assignment, plans)


def _groups(tokens: int, capacity: int | None, num_groups: int) -> int:
    if capacity is None:  # no token competes with another
        return 1
    if tokens % num_groups:
        raise Error(f"{tokens} tokens do not divide into {num_groups} groups; add padding")
    return num_groups


def _plans(
    assignment: Assignment, capacity: int | None, priority: Priority, num_groups: int, how: str
) -> Plan:
    def grouped(leaf: Array) -> Array:
        return leaf.reshape(num_groups, -1, *leaf.shape[1:])

    if capacity is None and how in ("einsum", "scatter"):
        capacity = len(assignment.valid)
    groups = jax.tree.map(grouped, assignment)
    if isinstance(priority, str):
        return jax.vmap(lambda group: plan(group, capacity, priority=priority))(groups)
    return jax.vmap(lambda group, score: plan(group, capacity, priority=score))(
        groups, grouped(priority)
    )


def _all(buffers: Callable[[Array], Array], x: Array, plans: Plan) -> Array:
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), plans)
    weight = plans.weight.reshape(*flat.kept.shape, 1)
    experts = flat.assignment.num_experts
    chosen = flat.assignment.expert[..., None] == jnp.arange(experts)
    weight = jnp.sum(jnp.where(chosen, weight, 0), axis=1)
    x = jnp.where(flat.assignment.valid[:, None], x, 0)
    y = buffers(jnp.broadcast_to(x, (experts, *x.shape)))
    return jnp.einsum("te,etm->tm", weight, y.astype(weight.dtype))


class Experts(eqx.Module):
    """E feed-forward networks: `act(x W_in + b_in) W_out + b_out`.

    Gated ones compute `(act(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out`.

    Args:
        num_experts: How many there are.
        embed: Width of the tokens.
        hidden: Width inside.
        gated: Have a gate.
        bias: Have biases; they start at 0.
        activation: Elementwise.
        dropout: Rate at which hidden activations are dropped where a call gives a key.
        init: Makes a matrix `[inputs, outputs]` from a key, its shape and its type.
        identical: Start all experts from the same weights, as V-MoE does.
        dtype: Of the parameters.
        key: Randomness of the parameters.
    """

    w_in: Float[Array, "experts embed hidden"] = axes("expert", "embed", "mlp")
    w_out: Float[Array, "experts hidden embed"] = axes("expert", "mlp", "embed")
    w_gate: Float[Array, "experts embed hidden"] | None = axes("expert", "embed", "mlp")
    b_in: Float[Array, "experts hidden"] | None = axes("expert", "mlp")
    b_out: Float[Array, "experts embed"] | None = axes("expert", "embed")
    b_gate: Float[Array, "experts hidden"] | None = axes("expert", "mlp")
    activation: Callable[[Array], Array] = eqx.field(static=True, kw_only=True)
    dropout: float = eqx.field(static=True, kw_only=True)

    def __init__(
        self,
        num_experts: int,
        embed: int,
        hidden: int,
        *,
        gated: bool = False,
        bias: bool = False,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        dropout: float = 0.0,
        init: Callable[..., Array] = LECUN,
        identical: bool = False,
        dtype: Any = jnp.float32,
        key: Key[Array, ""],
    ):
        def matrices(key: Array, *shape: int) -> Array:
            keys = jax.random.split(key, num_experts)
            keys = jnp.broadcast_to(keys[0], keys.shape) if identical else keys
            return jax.vmap(lambda key: init(key, shape, dtype))(keys)

        def zeros(width: int) -> Array | None:
            return jnp.zeros((num_experts, width), dtype) if bias else None

        keys = jax.random.split(key, 3)
        self.w_in = matrices(keys[0], embed, hidden)
        self.w_out = matrices(keys[1], hidden, embed)
        self.w_gate = matrices(keys[2], embed, hidden) if gated else None
        self.b_in, self.b_out = zeros(hidden), zeros(embed)
        self.b_gate = zeros(hidden) if gated else None
        self.activation, self.dropout = activation, dropout

    def apply(
        self, rows: Array, matmul: Callable[..., Array], key: Key[Array, ""] | None = None
    ) -> Array:
        """The expert function of this module: `moe(x, assignment, Experts.apply, experts)`."""
        hidden = matmul(rows, self.w_in, self.b_in)
        if self.w_gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(matmul(rows, self.w_gate, self.b_gate)) * hidden
        return matmul(dropout(hidden, self.dropout, key), self.w_out, self.b_out)

    def __call__(
        self,
        x: Float[Array, "tokens embed"],
        assignment: Assignment,
        *,
        how: str = "auto",
        capacity: int | None = None,
        priority: Priority = "order",
        num_groups: int = 1,
        precision: Any = None,
        key: Key[Array, ""] | None = None,
        overflow_factor: float | None = None,
        exchange_dtype: Any = None,
    ) -> tuple[Float[Array, "tokens embed"], Metrics]:
        """Sends tokens through their experts, spread over the mesh in force, if there is one.

        With `chapbook.core.use(mesh)`, tokens are spread over the mesh axes of the rule for `batch`
        and over that for `expert`, experts over the latter, and what they are inside over that for
        `mlp`. The result is that of one device, but for dropout, whose bits depend on the place.

        Args:
            x: Tokens of all devices. Those of a group lie together.
            assignment: Their choices.
            how: As `moe` takes it, like all that follows.
            capacity: Places of each expert in a group; None drops nothing.
            priority: Who comes first.
            num_groups: Groups of all devices. With a capacity they divide among the devices.
            precision: Of the products.
            key: Randomness of the dropout; None for none.
            overflow_factor: Room for received choices where there is no capacity.
            exchange_dtype: In which rows travel.

        Returns:
            The outputs, and what happened to the tokens of all devices.

        Raises:
            Error: Groups or experts do not divide among the devices, or what `moe` raises.
        """
        mesh, rules = in_force()
        placed = specs(names(self), {**rules, "embed": None}, mesh, self)
        over = functools.partial(_mesh_axes, dict(mesh.shape), rules)
        home, hidden = over("expert"), over("mlp")
        tokens = tuple(dict.fromkeys((*over("batch"), *home)))
        devices = math.prod(mesh.shape[axis] for axis in tokens)
        call = functools.partial(
            moe,
            expert_fn=Experts.apply,
            how=how,
            capacity=capacity,
            precision=precision,
            overflow_factor=overflow_factor,
            exchange_dtype=exchange_dtype,
        )
        if devices * math.prod(mesh.shape[axis] for axis in hidden) == 1:
            return call(
                x, assignment, params=self, priority=priority, num_groups=num_groups, key=key
            )
        num_groups = _groups(len(x), capacity, num_groups)
        if capacity is not None and num_groups % devices:
            over_axes = ",".join(f"{axis}={mesh.shape[axis]}" for axis in tokens)
            raise Error(
                f"num_groups={num_groups} does not divide among the {devices} devices of "
                f"{over_axes}; each holds groups of its own"
            )
        count, groups = len(x), max(num_groups // devices, 1)
        x, assignment, scores = jax.tree.map(
            lambda leaf: jnp.pad(leaf, ((0, -count % devices), *[(0, 0)] * (leaf.ndim - 1))),
            (x, assignment, None if isinstance(priority, str) else priority),
        )

        def local(
            experts: Experts, x: Array, assignment: Assignment, scores: Any, key: Any
        ) -> tuple[Array, Metrics]:
            if key is not None:
                key = jax.random.fold_in(key, jax.lax.axis_index((*tokens, *hidden)))
            if hidden and experts.b_out is not None:  # it is summed over them
                first = jax.lax.axis_index(hidden) == 0
                b_out = jnp.where(first, experts.b_out, 0)
                experts = eqx.tree_at(lambda e: e.b_out, experts, b_out)
            y, found = call(
                x,
                assignment,
                params=experts,
                priority=priority if scores is None else scores,
                num_groups=groups,
                mesh_axis=home or None,
                key=key,
            )
            return (jax.lax.psum(y, hidden) if hidden else y), found.reduce(tokens)

        split = PartitionSpec(tokens)
        y, found = jax.shard_map(
            local,
            in_specs=(placed, split, split, split, PartitionSpec()),
            out_specs=(split, PartitionSpec()),
            axis_names=set(mesh.axis_names),
        )(self, x, assignment, scores, key)
        return y[:count], found


def _mesh_axes(sizes: dict[str, int], rules: Any, name: str) -> tuple[str, ...]:
    rule = rules[name]
    return tuple(a for a in ((rule,) if isinstance(rule, str) else rule or ()) if a in sizes)
