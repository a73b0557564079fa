"""The layer of experts: two of them for each token, as GShard chooses them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from chapbook.core.experts import (
    Experts,
    Metrics,
    capacity,
    gshard_loss,
    router_logits,
    top_2_gshard,
)
from chapbook.core.sharding import axes
from chapbook.glam.config import GLaMConfig

# Standard deviation fan_in^-1/2, as the public configuration has it.
GAUSSIAN = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
ACTIVATIONS = {"gelu": jax.nn.gelu, "relu": jax.nn.relu}


class LayerRouting(eqx.Module):
    """What the router of a layer did with a batch.

    Attributes:
        expert: The two experts of each token, best first.
        weight: What their outputs are multiplied by, if there is room.
        loss: For even loads, `E^2 mean_e(density_e mean_t p_te)`, the mean over groups.
        metrics: Loads, drops and more, summed over the tokens.
    """

    expert: Int[Array, "*layers batch tokens choices"]
    weight: Float[Array, "*layers batch tokens choices"]
    loss: Float[Array, "*layers"]
    metrics: Metrics


class MoE(eqx.Module):
    """Computes `g1 f_e1(x) + g2 f_e2(x)`, in place of a block's feed-forward layer.

    `e1` and `e2` are the experts of the largest gates, `p = softmax(x W)`, and `g1` and `g2` those
    gates, divided by their sum. Experts are two matrices without a gate.

    Args:
        config: Sizes, and how tokens are routed.
        key: Randomness of the initial values.

    Reference:
        Du et al. (2022), section 4; Lepikhin et al., "GShard" (2020), algorithm 1.
    """

    config: GLaMConfig = eqx.field(static=True)
    experts: Experts = eqx.field()
    router: Float[Array, "embed experts"] = axes("embed", None)

    def __init__(self, config: GLaMConfig, *, key: Key[Array, ""]):
        first, second = jax.random.split(key)
        self.config = config
        self.router = GAUSSIAN(first, (config.embed, config.num_experts))
        self.experts = Experts(
            config.num_experts, config.embed, config.expert_width, init=GAUSSIAN,
            activation=ACTIVATIONS[config.activation], key=second,
        )  # fmt: skip

    def __call__(
        self,
        x: Float[Array, "batch tokens embed"],
        valid: Bool[Array, "batch tokens"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch tokens embed"], LayerRouting]:
        """Sends each token through its experts.

        In training, tokens compete in groups for the experts' buffers, in order: all first choices
        of a group before its second ones. At inference no token is dropped, so that what a token
        becomes depends neither on later ones nor on who shares the batch.

        Args:
            x: Tokens.
            valid: False marks padding, which is sent nowhere.
            key: Randomness of the second choice; None for inference.

        Returns:
            The outputs, and what the router did.
        """
        c = self.config
        batch, tokens, width = x.shape
        count = batch * tokens
        size = c.group_size or tokens
        groups = -(-count // size)
        real = jnp.ones((batch, tokens), bool) if valid is None else valid
        real = jnp.pad(real.reshape(count), (0, groups * size - count))
        rows = jnp.pad(x.reshape(count, width), ((0, groups * size - count), (0, 0)))
        logits = router_logits(rows, self.router, real)
        chosen = top_2_gshard(
            logits, policy="all" if key is None else c.second, threshold=c.threshold,
            normalize=c.normalize, key=key, valid=real, logit_cap=c.router_cap,
        )  # fmt: skip
        # The factor of the paper holds the two choices already.
        room = c.capacity or capacity(
            size, c.num_experts, 1, c.capacity_factor, rounding="floor", multiple_of=4
        )
        y, metrics = self.experts(
            rows, chosen, capacity=None if key is None else room, num_groups=groups
        )
        gates = chosen.gates.reshape(groups, size, -1)
        loss = gshard_loss(gates, real.reshape(groups, size))
        expert, weight = (
            each[:count].reshape(batch, tokens, -1) for each in (chosen.expert, chosen.weight)
        )
        return y[:count].reshape(x.shape), LayerRouting(expert, weight, loss, metrics)
