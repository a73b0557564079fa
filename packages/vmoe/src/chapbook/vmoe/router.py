r"""The noisy router: which experts a token is sent to, and what keeps their loads even.

$$g = \mathrm{softmax}(x W + \sigma n), \quad n \sim N(0, 1), \quad \sigma = \mathrm{std} / E$$

Then the K largest of $g$ are taken, and their values are the weights as they are: the softmax comes
first, so that a router with K = 1 learns too.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from chapbook.core.experts import (
    Assignment,
    gshard_loss,
    importance_loss,
    load_loss,
    router_logits,
    top_k,
    z_loss,
)
from chapbook.core.sharding import axes
from chapbook.vmoe.config import VMoEConfig


class RoutingLosses(eqx.Module):
    """What keeps the loads of a layer's experts even, each a mean over groups; 0 if not asked for.

    Attributes:
        importance: Squared variation of the experts' summed gates, noise left out.
        load: Squared variation of the probabilities of being among the K largest; needs noise.
        gshard: `E^2` times the mean of the share of tokens times the mean gate.
        z: Mean square of the logits' log-sum-exp.
    """

    importance: Float[Array, ""]
    load: Float[Array, ""]
    gshard: Float[Array, ""]
    z: Float[Array, ""]


class NoisyTopKRouter(eqx.Module):
    """Chooses K of E experts for each token.

    Args:
        embed: Width of a token.
        num_experts: How many experts there are.
        key: Randomness of the matrix, LeCun-normal as in the official code, so that routing is not
            uniform at the start.
    """

    kernel: Float[Array, "embed experts"] = axes("embed", None)

    def __init__(self, embed: int, num_experts: int, *, key: Key[Array, ""]):
        # Flax cuts its normal at two deviations, as does the initialiser.
        self.kernel = jax.nn.initializers.lecun_normal()(key, (embed, num_experts))

    def __call__(
        self,
        x: Float[Array, "groups tokens embed"],
        config: VMoEConfig,
        *,
        valid: Bool[Array, "groups tokens"],
        key: Key[Array, ""] | None = None,
    ) -> tuple[Assignment, RoutingLosses]:
        """Routes tokens, in groups.

        Args:
            x: Tokens.
            config: K, the noise, and which losses are wanted.
            valid: False marks padding.
            key: Randomness of the noise; None for inference, which has none.

        Returns:
            The choices, and the losses.
        """
        experts = self.kernel.shape[1]
        logits = router_logits(x, self.kernel, valid)
        sigma = config.noise_std / experts if key is not None else 0.0
        noisy = logits
        if key is not None and sigma:
            noisy = logits + sigma * jax.random.normal(key, logits.shape, logits.dtype)
        gates = jax.nn.softmax(noisy)
        chosen = top_k(gates, config.num_selected_experts, normalize=config.normalize, valid=valid)
        return chosen, self._losses(config, logits, noisy, gates, sigma, valid)

    def _losses(
        self, config: VMoEConfig, logits: Array, noisy: Array, gates: Array, sigma: float,
        valid: Array,
    ) -> RoutingLosses:  # fmt: skip
        # Losses of weight 0 are left out of the program: their gradient may be NaN.
        zero = jnp.zeros(())
        importance = load = gshard = z = zero
        if config.importance_weight:
            importance = importance_loss(jax.nn.softmax(logits), valid=valid)
        if config.load_weight and sigma:
            k = config.num_selected_experts
            load = load_loss(logits, noisy, k, sigma, valid=valid)
        if config.gshard_weight:
            gshard = gshard_loss(gates, valid=valid)
        if config.z_weight:
            z = z_loss(logits, valid=valid)
        return RoutingLosses(importance, load, gshard, z)
