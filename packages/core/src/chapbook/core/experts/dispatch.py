"""Dispatch and combine: tokens to rows of experts and back, by moving them or by masks.

Moving is a gather in both directions, and so is its gradient: the inverse of each index is known,
so nothing is ever summed into a place in an order that a device may choose.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from chapbook.core.errors import Error
from chapbook.core.experts.assignment import wide
from chapbook.core.experts.plan import Plan


class Rows(eqx.Module):
    """Which choice stands in which row of the experts' input, and the other way round.

    Attributes:
        row: Row of each choice; the number of rows for a choice that has none.
        choice: Choice of each row, `choices token + rank`; the number of choices for an empty row.
    """

    row: Int[Array, "tokens choices"]
    choice: Int[Array, " rows"]

    def gather(self, x: Float[Array, "tokens embed"]) -> Float[Array, "rows embed"]:
        """Returns the token of each row; empty rows are 0, and what padding holds is not read."""
        return _take(x, self.choice // self.row.shape[1], self.row)

    def combine(
        self, y: Float[Array, "rows embed"], weight: Float[Array, "tokens choices"]
    ) -> Float[Array, "tokens embed"]:
        """Returns the weighted sum of each token's rows, summed in float32."""
        each = _take(y, self.row.reshape(-1), self.choice[:, None])
        each = wide(each).reshape(*self.row.shape, -1)
        return jnp.sum(each * weight[..., None], axis=1).astype(y.dtype)


def rows(plan: Plan, start: Int[Array, "groups experts"], count: int) -> Rows:
    """Lays the kept choices of a plan of groups out in rows.

    Args:
        plan: With one leading dimension, the groups.
        start: The row of each group's first choice of each expert.
        count: Rows in all.
    """
    expert = jnp.minimum(plan.assignment.expert, plan.assignment.num_experts - 1)
    first = jax.vmap(lambda start, expert: start[expert])(start, expert)
    row = jnp.where(plan.kept, first + plan.position, count).reshape(-1, expert.shape[-1])
    choice = jnp.full(count, row.size, jnp.int32)
    numbers = jnp.arange(row.size, dtype=jnp.int32)
    return Rows(row, choice.at[row.reshape(-1)].set(numbers, mode="drop"))


def buffers(plan: Plan) -> Rows:
    """Lays a plan of groups out in a buffer for each expert: rows of shape `[E, groups C]`."""
    groups, experts, places = len(plan.kept), plan.assignment.num_experts, _places(plan)
    start = np.arange(experts) * groups + np.arange(groups)[:, None]
    return rows(plan, jnp.asarray(start * places, jnp.int32), groups * experts * places)


def runs(plan: Plan) -> tuple[Rows, Int[Array, " experts"]]:
    """Lays a plan of groups out in one run of rows for each expert, without gaps.

    Returns:
        The layout, of as many rows as there are choices, and the length of each run.
    """
    load = plan.load.T  # experts are outermost
    start = jnp.cumsum(load.reshape(-1)).reshape(load.shape) - load
    return rows(plan, start.T.astype(jnp.int32), plan.kept.size), jnp.sum(load, axis=1)


def dispatch(
    plan: Plan, x: Float[Array, "*groups tokens embed"], *, how: str = "scatter"
) -> Float[Array, "experts slots embed"]:
    """Moves each kept token into its place at its expert; places that nobody has are 0.

    Args:
        plan: Of one group or, with a leading dimension, of several; it has a capacity.
        x: Tokens.
        how: `scatter` moves rows; `einsum` multiplies by the mask of GShard, `4 S E C M` operations
            in both directions.

    Returns:
        The experts' buffers, of `C` slots for each group in turn.

    Raises:
        Error: The plan has no capacity, or `how` has another value.
    """
    plan, x = _grouped(plan), x.reshape(*_grouped(plan).kept.shape[:2], -1)
    experts = plan.assignment.num_experts
    if _moves(how):
        moved = buffers(plan).gather(x.reshape(-1, x.shape[-1]))
    else:
        mask = _mask(plan, plan.kept).astype(x.dtype)
        x = jnp.where(plan.assignment.valid[..., None], x, 0)
        moved = jnp.einsum("gsec,gsm->egcm", mask, x)
    return moved.reshape(experts, -1, x.shape[-1])


def combine(
    plan: Plan, y: Float[Array, "experts slots embed"], *, how: str = "scatter"
) -> Float[Array, "*groups tokens embed"]:
    """Computes `sum_k w_k y[e_k, position_k]` of each token over its kept choices, in float32.

    Args:
        plan: As `dispatch` took it.
        y: The experts' outputs.
        how: As `dispatch` takes it.

    Returns:
        The outputs in the type of y; 0 for a token without an expert.
    """
    shape = (*plan.kept.shape[:-1], y.shape[-1])
    plan = _grouped(plan)
    if _moves(how):
        weight = plan.weight.reshape(-1, plan.kept.shape[-1])
        return buffers(plan).combine(y.reshape(-1, y.shape[-1]), weight).reshape(shape)
    y = wide(y).reshape(len(y), len(plan.kept), -1, y.shape[-1])
    return jnp.einsum("gsec,egcm->gsm", _mask(plan, plan.weight), y).astype(y.dtype).reshape(shape)


def _grouped(plan: Plan) -> Plan:
    return plan if plan.kept.ndim == 3 else jax.tree.map(lambda leaf: leaf[None], plan)


def _moves(how: str) -> bool:
    if how not in ("scatter", "einsum"):
        raise Error(f'how "{how}" is neither scatter nor einsum')
    return how == "scatter"


def _places(plan: Plan) -> int:
    if plan.capacity is None:
        raise Error("buffers need a plan with a capacity")
    return plan.capacity


def _mask(plan: Plan, value: Array) -> Float[Array, "groups tokens experts places"]:
    value = jnp.where(plan.kept, value, 0)[..., None, None]
    expert = plan.assignment.expert[..., None] == jnp.arange(plan.assignment.num_experts)
    place = plan.position[..., None] == jnp.arange(_places(plan))
    return jnp.sum(jnp.where(expert[..., :, None] & place[..., None, :], value, 0), axis=2)


@jax.custom_vjp
def _take(
    x: Float[Array, "sources embed"],
    index: Int[Array, " targets"],
    inverse: Int[Array, "sources copies"],
) -> Float[Array, "targets embed"]:
    """Returns `x[index]`, and 0 where the index is out of range.

    Args:
        x: Rows.
        index: Of the row to take.
        inverse: The targets that take each row; out of range for none.
    """
    return x.at[index].get(mode="fill", fill_value=0)


def _take_forward(x: Array, index: Array, inverse: Array) -> tuple[Array, Array]:
    return _take(x, index, inverse), inverse


def _take_backward(inverse: Array, gradient: Array) -> tuple[Array, None, None]:
    copies = gradient.at[inverse].get(mode="fill", fill_value=0)
    return jnp.sum(copies, axis=1), None, None


_take.defvjp(_take_forward, _take_backward)
