"""DP-SGD, the reference that label privacy is compared with: it protects features and labels.

Gradients are clipped record by record and get Gaussian noise, for records drawn by Poisson
sampling, as the accounting assumes. The noise is JAX's ordinary Gaussian in floating point: good
for a comparison of accuracy, not for a release.
"""

import dataclasses
import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from chapbook.core.errors import Error
from chapbook.label_dp.losses import cross_entropy


@dataclasses.dataclass(frozen=True)
class DPSGD:
    """The settings of differentially private gradient descent.

    Attributes:
        epsilon: The privacy budget of a record, label and features.
        delta: The probability by which it may be exceeded.
        steps: Noisy steps.
        batch_size: The mean number of records of a step.
        clip: The largest norm of a record's gradient that counts.
        learning_rate: The rate; the noisy sum is divided by the batch size.
        momentum: Of SGD, after the noise.
    """

    epsilon: float
    delta: float = 1e-5
    steps: int = 200
    batch_size: int = 512
    clip: float = 1.0
    learning_rate: float = 0.5
    momentum: float = 0.9

    def noise_multiplier(self, records: int) -> float:
        """Returns the least noise, over the clipping norm, that keeps the budget.

        Add-or-remove adjacency, Poisson sampling and Rényi accounting, by dp-accounting.

        Raises:
            ImportError: The extra `accounting` is not installed.
        """
        if math.isinf(self.epsilon):
            return 0.0
        return _noise_multiplier(
            self.epsilon, self.delta, self.steps, min(1.0, self.batch_size / records)
        )

    def fit(
        self,
        model: Any,
        x: Float[np.ndarray, "rows ..."],
        labels: Int[np.ndarray, " rows"],
        *,
        key: PRNGKeyArray,
    ) -> Any:
        """Trains a model without batch statistics and returns it.

        Args:
            model: A module from a batch of inputs to logits.
            x: Inputs.
            labels: True classes.
            key: The randomness of the samples and the noise.
        """
        if hasattr(model, "statistics"):
            raise Error("DP-SGD has no bound on a record's part in batch statistics; take a model"
                        " without them")  # fmt: skip
        rows = len(x)
        rate = min(1.0, self.batch_size / rows)
        noise = self.noise_multiplier(rows)
        # More records than this come up less than once in 10^15 steps.
        room = min(rows, math.ceil(rows * rate + 8 * math.sqrt(rows * rate * (1 - rate)) + 8))
        params, static = eqx.partition(model, eqx.is_inexact_array)
        optimizer = optax.sgd(self.learning_rate, self.momentum)
        state = optimizer.init(params)
        step = _step(static, optimizer, self.clip, self.batch_size)
        sampler = np.random.default_rng(int(jax.random.bits(key, dtype=np.uint32)))
        for index in range(self.steps):
            drawn = np.flatnonzero(sampler.random(rows) < rate)
            if len(drawn) > room:
                raise RuntimeError("a Poisson sample is larger than its room")
            taken = np.zeros(room, np.int64)
            taken[: len(drawn)] = drawn
            used = np.arange(room) < len(drawn)
            params, state = step(
                params, state, x[taken], labels[taken], used, jnp.float32(noise),
                jax.random.fold_in(key, index),
            )  # fmt: skip
        return eqx.combine(params, static)


@functools.cache
def _noise_multiplier(epsilon: float, delta: float, steps: int, rate: float) -> float:
    try:
        import dp_accounting
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        raise ImportError(
            "DP-SGD needs dp-accounting;"
            " install it with: pip install 'chapbook-label-dp[accounting]'"
        ) from None

    def event(noise: float) -> Any:
        sampled = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
        return dp_accounting.SelfComposedDpEvent(sampled, steps)

    bracket = dp_accounting.LowerEndpointAndGuess(0.2, 2.0)
    found = dp_accounting.calibrate_dp_mechanism(
        RdpAccountant, event, epsilon, delta, bracket_interval=bracket, tol=1e-3
    )
    return float(found)


def _step(static: Any, optimizer: Any, clip: float, batch_size: int) -> Any:
    def loss(params: Any, x: Array, label: Array) -> Array:
        logits = eqx.combine(params, static)(x[None])
        return cross_entropy(logits, jax.nn.one_hot(label, logits.shape[-1])[None])[0]

    @jax.jit
    def step(
        params: Any, state: Any, x: Array, labels: Array, used: Array, noise: Array, key: Array
    ) -> tuple[Any, Any]:
        each = jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, labels)
        norm = jax.vmap(optax.global_norm)(each)
        factor = used * jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))
        leaves, structure = jax.tree.flatten(each)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            (jnp.tensordot(factor, leaf, 1) + noise * clip * jax.random.normal(k, leaf.shape[1:]))
            / batch_size
            for leaf, k in zip(leaves, keys, strict=True)
        ]
        updates, state = optimizer.update(structure.unflatten(noisy), state, params)
        return optax.apply_updates(params, updates), state

    return step
