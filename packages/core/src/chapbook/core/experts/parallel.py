"""Expert parallelism: tokens go to the devices that hold their experts, and back.

Both forms exchange rows twice, by all-to-alls of fixed size. With a capacity the buffers of all
experts travel. Without one each device has a buffer for each other device, with room for all of its
choices, or for fewer if `overflow_factor` says so.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from chapbook.core.errors import Error
from chapbook.core.experts.assignment import fixed
from chapbook.core.experts.dispatch import buffers
from chapbook.core.experts.plan import Plan, plan

T = TypeVar("T")
Axis = str | tuple[str, ...]


def alike(tree: T) -> T:
    """Lets all arrays of a tree vary over the mesh axes over which any of them does.

    Inside `jax.shard_map`, JAX knows which arrays are the same on several devices. Where such an
    array meets another in an operation JAX casts it, which sums its gradient over the devices; not
    so in loops and in derivatives written by hand. Elsewhere this is the identity.
    """
    false = jnp.bool_(False)
    for x in jax.tree.leaves(eqx.filter(tree, eqx.is_array)):
        first = x.reshape(-1)[0]
        false |= (first != first) & False  # false, and of the type of x; it costs nothing compiled
    return jax.tree.map(lambda x: jnp.where(false, 0, x) if eqx.is_array(x) else x, tree)


def share(num_experts: int, axis: Axis) -> int:
    """Returns how many experts each device along the axis holds.

    Raises:
        Error: They do not divide.
    """
    devices = jax.lax.axis_size(axis)
    if num_experts % devices:
        raise Error(
            f"{num_experts} experts do not divide among the {devices} devices of mesh axis {axis}"
        )
    return num_experts // devices


def exchange_buffers(
    run: Callable[[Array], Array], x: Float[Array, "experts slots embed"], axis: Axis, dtype: Any
) -> Float[Array, "experts slots outputs"]:
    """Applies the experts of all devices to the buffers of this one, and theirs to its own.

    Args:
        run: Applies the experts of this device to buffers `[E / n, n slots, M]`.
        x: A buffer for each expert of all devices.
        axis: The mesh axis of the experts.
        dtype: In which rows travel; None for their own.
    """
    share(len(x), axis)
    there = _travel(x, axis, 0, 1, dtype)
    return _travel(run(there), axis, 1, 0, dtype)


def exchange_runs(
    run: Callable[[Array, Array], Array],
    x: Float[Array, "tokens embed"],
    plans: Plan,
    axis: Axis,
    *,
    overflow_factor: float | None,
    dtype: Any,
) -> tuple[Float[Array, "tokens outputs"], Plan]:
    """Sends each kept choice to the device of its expert, without a capacity of experts.

    Args:
        run: Applies the experts of this device to rows `[R, M]`, each by the number of its expert
            among them `[R]`; rows of a number that none has give 0.
        x: Tokens.
        plans: The choices, in groups.
        axis: The mesh axis of the experts.
        overflow_factor: Room at each device for this times an equal share of the choices of each
            other device; None for all of them.
        dtype: In which rows travel; None for their own.

    Returns:
        The outputs, and the plan without the choices for which there was no room.
    """
    held = share(plans.assignment.num_experts, axis)
    devices = plans.assignment.num_experts // held
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), plans)
    chosen = jnp.where(flat.kept, flat.assignment.expert, plans.assignment.num_experts)
    room = flat.kept.size
    if overflow_factor is not None:
        room = min(room, math.ceil(overflow_factor * room / devices))
    to_devices = plan(fixed(chosen // held, flat.weight, devices), room)
    plans = dataclasses.replace(plans, kept=to_devices.kept.reshape(plans.kept.shape))
    weight = plans.weight.reshape(flat.kept.shape)

    place = buffers(jax.tree.map(lambda leaf: leaf[None], to_devices))
    number = (chosen % held).reshape(-1).at[place.choice].get(mode="fill", fill_value=held)
    there = _travel(place.gather(x).reshape(devices, room, -1), axis, 0, 0, dtype)
    number = jax.lax.all_to_all(number.reshape(devices, room), axis, 0, 0, tiled=True)
    done = run(there.reshape(devices * room, -1), number.reshape(-1))
    back = _travel(done.reshape(devices, room, -1), axis, 0, 0, dtype)
    return place.combine(back.reshape(devices * room, -1), weight), plans


def _travel(x: Array, axis: Axis, split: int, concat: int, dtype: Any) -> Array:
    light = x if dtype is None else x.astype(dtype)
    return jax.lax.all_to_all(light, axis, split, concat, tiled=True).astype(x.dtype)
