"""What happened to the tokens of a layer."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from chapbook.core.experts.assignment import Assignment, wide
from chapbook.core.experts.plan import Plan, count


class Metrics(eqx.Module):
    """Sums over tokens, in float32, and the rates that follow from them; padding does not count.

    Because they are sums, those of several groups, layers or devices add up.

    Attributes:
        tokens: How many there are.
        load: Kept choices of each expert.
        demand: Choices of each expert before dropping.
        importance: Sum of each expert's gates.
        chosen: Choices of each rank, first choices first.
        dropped: Those without a place.
        unserved: Tokens without any expert.
        entropies: Sum of the entropies of the gates, in nats.
        largest_gates: Sum of the largest gates.
    """

    tokens: Float[Array, ""]
    load: Float[Array, " experts"]
    demand: Float[Array, " experts"]
    importance: Float[Array, " experts"]
    chosen: Float[Array, " choices"]
    dropped: Float[Array, " choices"]
    unserved: Float[Array, ""]
    entropies: Float[Array, ""]
    largest_gates: Float[Array, ""]

    def reduce(self, axis_name: str | tuple[str, ...]) -> "Metrics":
        """Returns the metrics of all devices along the axes, inside `jax.shard_map`."""
        return jax.tree.map(lambda x: jax.lax.psum(x, axis_name), self)

    @property
    def dropped_fraction(self) -> Float[Array, " choices"]:
        """Share of the choices of each rank that found no place."""
        return self.dropped / jnp.maximum(self.chosen, 1)

    @property
    def unserved_fraction(self) -> Float[Array, ""]:
        """Share of the tokens that no expert saw."""
        return self.unserved / jnp.maximum(self.tokens, 1)

    @property
    def max_over_mean(self) -> Float[Array, ""]:
        """Load of the fullest expert over the mean load."""
        return jnp.max(self.load) / _positive(jnp.mean(self.load))

    @property
    def coefficient_of_variation(self) -> Float[Array, ""]:
        """Standard deviation of the load over its mean."""
        return jnp.std(self.load) / _positive(jnp.mean(self.load))

    @property
    def entropy(self) -> Float[Array, ""]:
        """Mean entropy of a token's gates, in nats."""
        return self.entropies / jnp.maximum(self.tokens, 1)

    @property
    def largest_gate(self) -> Float[Array, ""]:
        """Mean of a token's largest gate."""
        return self.largest_gates / jnp.maximum(self.tokens, 1)

    def summary(self) -> dict[str, Float[Array, ""]]:
        """Returns the rates as named scalars, for a log."""
        rates = ("unserved_fraction", "max_over_mean", "coefficient_of_variation", "entropy")
        found = {name: getattr(self, name) for name in (*rates, "largest_gate")}
        return found | {f"dropped_{i + 1}": x for i, x in enumerate(self.dropped_fraction)}


def metrics(assignment: Assignment, plan: Plan) -> Metrics:
    """Returns what happened to an assignment, summed over its groups.

    Args:
        assignment: The choices, with any leading dimensions.
        plan: Which of them were kept.
    """
    wanted = assignment.valid[..., None] & (assignment.expert < assignment.num_experts)
    gates = jax.lax.stop_gradient(wide(assignment.gates))
    groups = tuple(range(plan.kept.ndim - 1))
    unserved = assignment.valid & ~jnp.any(plan.kept, axis=-1)
    found = Metrics(
        tokens=jnp.sum(assignment.valid),
        load=plan.load.reshape(-1, assignment.num_experts).sum(0),
        demand=count(assignment, wanted).reshape(-1, assignment.num_experts).sum(0),
        importance=jnp.sum(gates, axis=groups),
        chosen=jnp.sum(wanted, axis=groups),
        dropped=jnp.sum(wanted & ~plan.kept, axis=groups),
        unserved=jnp.sum(unserved),
        entropies=jnp.sum(jax.scipy.special.entr(gates)),
        largest_gates=jnp.sum(jnp.max(gates, axis=-1)),
    )
    return jax.tree.map(lambda x: x.astype(jnp.float32), found)


def _positive(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)
