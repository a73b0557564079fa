"""Plans: the place of each choice in its expert's buffer, and which choices find none."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from chapbook.core.errors import Error
from chapbook.core.experts.assignment import Assignment

COUNTED = 64  # experts up to which counting along tokens is faster than sorting them


def capacity(
    num_tokens: int,
    num_experts: int,
    k: int,
    factor: float,
    *,
    rounding: str = "ceil",
    multiple_of: int = 4,
) -> int:
    """Computes `C = factor k S / E`, rounded, the places of an expert in a group.

    Args:
        num_tokens: Tokens of a group, S.
        num_experts: How many experts there are, E.
        k: Experts of a token. GLaM's factor holds it already: pass 1.
        factor: 1 is exactly room for all choices if they are spread evenly.
        rounding: `ceil`, `round` or `floor`.
        multiple_of: Raise the result to a multiple of this. It makes small capacities larger than
            was asked: use 1 to compare them.

    Returns:
        The capacity, at least 1.

    Raises:
        Error: The factor is not above 0, or `rounding` has another value.
    """
    roundings = {"ceil": math.ceil, "round": round, "floor": math.floor}
    if not 0 < factor < math.inf or rounding not in roundings:
        wanted = "a capacity needs a factor above 0 and rounding ceil, round or floor"
        raise Error(f"{wanted}, not {factor} and {rounding}")
    places = roundings[rounding](num_tokens * k * factor / num_experts)
    return math.ceil(max(places, 1) / multiple_of) * multiple_of


class Plan(eqx.Module):
    """An assignment with the place of each choice.

    Attributes:
        assignment: The choices.
        position: Place of each choice in its expert's buffer; those of the kept choices of an
            expert are 0, 1, 2, ... Others have no meaning.
        kept: Whether the choice has a place. Those of padding and of no expert have none.
        capacity: Places of an expert; None where all choices have one.
    """

    assignment: Assignment
    position: Int[Array, "*groups tokens choices"]
    kept: Bool[Array, "*groups tokens choices"]
    capacity: int | None = eqx.field(static=True)

    @property
    def weight(self) -> Float[Array, "*groups tokens choices"]:
        """The combine weights: 0 for dropped choices."""
        weight = jnp.where(self.kept, self.assignment.weight, 0)
        if not self.assignment.renormalize:
            return weight
        total = jnp.sum(weight, axis=-1, keepdims=True)
        return weight / jnp.where(total > 0, total, 1)

    @property
    def load(self) -> Int[Array, "*groups experts"]:
        """Kept choices of each expert."""
        return count(self.assignment, self.kept)


def plan(
    assignment: Assignment,
    capacity: int | None,
    *,
    priority: str | Float[Array, " tokens"] = "order",
) -> Plan:
    """Gives places away: to the first choices of all tokens, then to all second choices, ...

    Tokens are visited in their order or by falling score; equal scores keep their order. A choice
    is kept if its position is below the capacity. Counting only the kept first choices before the
    second ones (GShard) gives kept choices the same positions as counting all (V-MoE).

    Args:
        assignment: Of one group; use `jax.vmap` for several.
        capacity: Places of an expert; None for as many as are needed.
        priority: `order`, `batch` for Batch Priority Routing by a token's largest weight, or
            scores.

    Returns:
        The plan.

    Raises:
        Error: The capacity is below 1, or the priority has another value.

    Reference:
        Riquelme et al., "Scaling vision with sparse mixture of experts" (2021), algorithms 1, 2.
    """
    if capacity is not None and capacity < 1:
        raise Error(f"an expert needs at least one place, not capacity={capacity}")
    if isinstance(priority, str) and priority not in ("order", "batch"):
        raise Error(f'priority "{priority}" is neither order, batch nor an array of scores')
    experts = assignment.num_experts
    wanted = jnp.where(assignment.valid[:, None], assignment.expert, experts)
    if isinstance(priority, str) and priority == "order":
        position = _positions(wanted, experts)
    else:
        scores = jnp.max(assignment.weight, 1) if isinstance(priority, str) else priority
        order = jnp.argsort(-scores, stable=True)
        position = jnp.zeros_like(wanted).at[order].set(_positions(wanted[order], experts))
    kept = wanted < experts
    if capacity is not None:
        kept &= position < capacity
    return Plan(assignment, position, kept, capacity)


def count(
    assignment: Assignment, counted: Bool[Array, "*groups tokens choices"]
) -> Int[Array, "*groups experts"]:
    """Returns how many of the counted choices each expert has."""
    one_hot = assignment.expert[..., None] == jnp.arange(assignment.num_experts)
    return jnp.sum(one_hot & counted[..., None], axis=(-3, -2), dtype=jnp.int32)


def _positions(expert: Array, experts: int) -> Array:
    """Returns how many earlier choices of [tokens, choices] have the same expert, rank by rank."""
    tokens, choices = expert.shape
    flat = expert.T.reshape(-1)
    if experts <= COUNTED:
        one_hot = flat[:, None] == jnp.arange(experts)
        counts = jnp.cumsum(one_hot, axis=0, dtype=jnp.int32)
        position = jnp.sum(jnp.where(one_hot, counts - 1, 0), axis=1, dtype=jnp.int32)
    else:
        order = jnp.argsort(flat, stable=True)
        in_order = flat[order]
        first = jnp.searchsorted(in_order, in_order, side="left").astype(jnp.int32)
        rank = jnp.arange(len(flat), dtype=jnp.int32) - first
        position = jnp.zeros_like(rank).at[order].set(rank)
    return position.reshape(choices, tokens).T
