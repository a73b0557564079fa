"""The layer of experts: tokens of several images in groups, routed, computed, and back in place."""

import functools
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from chapbook.core.experts import Experts, Metrics, plan
from chapbook.core.sharding import in_force
from chapbook.core.transformer.dropout import split
from chapbook.vmoe.config import VMoEConfig
from chapbook.vmoe.cost import buffer
from chapbook.vmoe.router import NoisyTopKRouter, RoutingLosses


class LayerRouting(eqx.Module):
    """What the router of a layer did with a batch.

    Attributes:
        expert: The experts of each token, best first.
        weight: What their outputs were multiplied by, if there was room.
        position: Place in the expert's buffer.
        kept: Whether there was room.
        losses: For even loads, before their weights.
        loss: Their weighted sum.
        metrics: Loads, importance and more, of each group's mean.
    """

    expert: Int[Array, "batch tokens choices"]
    weight: Float[Array, "batch tokens choices"]
    position: Int[Array, "batch tokens choices"]
    kept: Bool[Array, "batch tokens choices"]
    losses: RoutingLosses
    loss: Float[Array, ""]
    metrics: Metrics

    @property
    def dropped(self) -> Float[Array, ""]:
        """The share of choices that found no room."""
        return self.metrics.dropped.sum() / jnp.maximum(self.metrics.chosen.sum(), 1)

    @property
    def untouched(self) -> Float[Array, ""]:
        """The share of tokens that no expert saw."""
        return self.metrics.unserved_fraction


@functools.cache
def gelu(approximate: bool) -> Callable[[Array], Array]:
    """Returns GELU in its tanh form, or exact; one function each, so that models are alike."""
    return functools.partial(jax.nn.gelu, approximate=approximate)


class MoE(eqx.Module):
    """A router and its experts, in place of a block's feed-forward layer.

    Args:
        config: Sizes, and how tokens are routed.
        key: Randomness of the initial values.
    """

    config: VMoEConfig  # a leaf, not a static field, so that another can take its place
    router: NoisyTopKRouter
    experts: Experts

    def __init__(self, config: VMoEConfig, *, key: Key[Array, ""]):
        c = config
        first, second, third, fourth = jax.random.split(key, 4)
        self.config = c
        self.router = NoisyTopKRouter(c.hidden_size, c.num_experts, key=first)
        experts = Experts(
            c.num_experts, c.hidden_size, c.mlp_dim, bias=True,
            activation=gelu(c.gelu_approximate),
            dropout=c.dropout if c.expert_dropout is None else c.expert_dropout,
            init=jax.nn.initializers.xavier_uniform(), identical=c.equal_experts, key=second,
        )  # fmt: skip
        biases = tuple(
            jnp.broadcast_to(1e-6 * jax.random.normal(key, bias.shape[1:]), bias.shape)
            for key, bias in ((third, experts.b_in), (fourth, experts.b_out))
            if bias is not None
        )
        self.experts = eqx.tree_at(lambda e: (e.b_in, e.b_out), experts, biases)

    def __call__(
        self,
        x: Float[Array, "batch tokens embed"],
        valid: Bool[Array, " batch"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch tokens embed"], LayerRouting]:
        """Sends each token through its experts.

        Tokens are taken in order, in groups of `config.tokens_per_group`; the last group is filled
        up with padding, which is sent nowhere and counts nowhere.

        Args:
            x: Tokens of images.
            valid: False marks images that are padding.
            key: Randomness of noise and dropout; None for inference.

        Returns:
            The outputs, 0 for tokens without room, and what the router did.
        """
        c = self.config
        batch, tokens, width = x.shape
        count, size = batch * tokens, c.tokens_per_group
        groups = -(-count // size)
        groups += -groups % _devices()  # each device holds groups of its own
        noise, inside = split(key, 2)
        real = jnp.ones(batch, bool) if valid is None else valid
        real = jnp.pad(jnp.repeat(real, tokens), (0, groups * size - count))
        rows = jnp.pad(x.reshape(count, width), ((0, groups * size - count), (0, 0)))

        def grouped(leaf: Array) -> Array:
            return leaf.reshape(groups, size, *leaf.shape[1:])

        def flat(leaf: Array) -> Array:
            return leaf.reshape(groups * size, *leaf.shape[2:])

        chosen, losses = self.router(grouped(rows), c, valid=grouped(real), key=noise)
        capacity = None if c.dispatch == "grouped" else buffer(c)
        scores = chosen.weight.sum(-1)  # for the order of filling by the sum of the gates
        by_sum = c.batch_priority and c.priority == "sum"
        order = "batch" if c.batch_priority else "order"
        y, metrics = self.experts(
            rows, jax.tree.map(flat, chosen), how=c.dispatch, capacity=capacity,
            priority=flat(scores) if by_sum else order, num_groups=groups, key=inside,
        )  # fmt: skip
        # The same plan as within; the compiler makes it once, or not at all where nobody looks.
        places = jax.vmap(
            lambda group, score: plan(group, capacity, priority=score if by_sum else order)
        )(chosen, scores)
        each = {
            "expert": chosen.expert, "weight": chosen.weight, "position": places.position,
            "kept": places.kept,
        }  # fmt: skip
        loss = (
            c.importance_weight * losses.importance + c.load_weight * losses.load
            + c.gshard_weight * losses.gshard + c.z_weight * losses.z
        )  # fmt: skip
        told = {name: flat(leaf)[:count].reshape(batch, tokens, -1) for name, leaf in each.items()}
        report = LayerRouting(**told, losses=losses, loss=loss, metrics=metrics)
        return y[:count].reshape(batch, tokens, width), report


def _devices() -> int:
    """Returns over how many devices tokens are spread."""
    mesh, rules = in_force()
    over: list[str] = []
    for name in ("batch", "expert"):
        rule = rules.get(name) or ()
        over += [rule] if isinstance(rule, str) else rule
    return math.prod(mesh.shape[axis] for axis in dict.fromkeys(over) if axis in mesh.shape)
