"""Variables to vectors: a linear map for each real variable, a table for each categorical one."""

import itertools

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from chapbook.tft_forecast.gating import Key, glorot, random_bits, split, uniform
from chapbook.tft_forecast.inputs import Group, Inputs

LIMIT = 0.05


class Embedding(eqx.Module):
    """Computes `x_j w_j + b_j` of a real variable j, the row of its index of a categorical one.

    Where a value is missing, the variable has a vector learned for that. The tables of all
    categorical variables are one, in which `offsets` tells where each begins.

    Args:
        group: The variables.
        hidden: Width of the vectors.
        unknown_rate: Rate at which categories are replaced by the unknown one in training.
        key: Randomness of the initial values: tables from uniform(-0.05, 0.05), as Keras' are.

    Reference:
        Lim et al. (2021), section 4.2.
    """

    offsets: tuple[int, ...] = eqx.field(static=True)
    unknown_rate: float = eqx.field(static=True)
    weight: Float[Array, "reals hidden"]
    bias: Float[Array, "reals hidden"]
    table: Float[Array, "rows hidden"]
    missing: Float[Array, "variables hidden"]

    def __init__(self, group: Group, hidden: int, *, unknown_rate: float = 0.0, key: PRNGKeyArray):
        weight, table, missing = split(key, 3)
        *offsets, rows = itertools.accumulate(group.sizes, initial=0)
        self.offsets = tuple(offsets)
        self.unknown_rate = unknown_rate
        self.weight = glorot(weight, (len(group.real), hidden), (1, hidden))
        self.bias = jnp.zeros((len(group.real), hidden))
        self.table = uniform(table, (rows, hidden), LIMIT)
        self.missing = uniform(missing, (len(group), hidden), LIMIT)

    def __call__(
        self, inputs: Inputs, *, key: Key = None
    ) -> Float[Array, "variables batch *shape hidden"]:
        """Embeds the variables.

        Args:
            inputs: Their values. If they are fewer than those of the group, they are its last real
                and its last categorical ones, as those known ahead are of the past ones.
            key: Randomness of the replacement by the unknown category; None for inference.

        Returns:
            A vector for each value. The variables come first: the products with each variable's
            own matrices are then plain ones, on contiguous memory.
        """
        reals, categoricals = len(self.weight), len(self.offsets)
        first_real = reals - inputs.real.shape[-1]
        first_categorical = categoricals - inputs.categorical.shape[-1]
        real = jnp.moveaxis(inputs.real, -1, 0)[..., None].astype(self.weight.dtype)
        axes = tuple(range(1, real.ndim - 1))
        weight, bias, missing = (
            jnp.expand_dims(array, axes) for array in (self.weight, self.bias, self.missing)
        )
        absent = jnp.moveaxis(inputs.missing, -1, 0)[..., None]
        vectors = jnp.where(
            absent[: len(real)],
            missing[first_real:reals],
            real * weight[first_real:] + bias[first_real:],
        )
        if first_categorical == categoricals:
            return vectors
        indices = self._known(inputs.categorical, key)
        offsets = jnp.asarray(self.offsets[first_categorical:], indices.dtype)
        rows = self.table[jnp.moveaxis(indices + offsets, -1, 0)]
        rows = jnp.where(absent[len(real) :], missing[reals + first_categorical :], rows)
        return jnp.concatenate([vectors, rows])

    def _known(
        self, indices: Int[Array, "*shape variables"], key: Key
    ) -> Int[Array, "*shape variables"]:
        if key is None or self.unknown_rate == 0:
            return indices
        threshold = jnp.uint32(round(self.unknown_rate * 2**32))
        return jnp.where(random_bits(key, indices.shape) < threshold, 0, indices)
