"""Layers of infinitely wide networks, by what each does to covariances.

A weight of a layer is `w_std / sqrt(fan_in)` times a standard normal variable, a bias `b_std`
times one (the NTK parameterisation). `nngp` is the covariance of the outputs of two inputs at
initialisation, `ntk` the inner product of the gradients of these outputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from chapbook.core.errors import Error
from chapbook.kip_distill.kernels.angle import arctan2, rectified

Scalar = float | Float[Array, ""]


class Covariance(NamedTuple):
    """Of the units of one layer for two inputs.

    Attributes:
        nngp: Covariance of the outputs.
        ntk: Inner product of the gradients; None where it is not asked for.
    """

    nngp: Float[Array, "..."]
    ntk: Float[Array, "..."] | None

    def map(self, change: Callable[[Array], Array]) -> "Covariance":
        """Returns both after a change, which does not meet a None."""
        return Covariance(change(self.nngp), None if self.ntk is None else change(self.ntk))

    def scaled(self, w_std: Scalar, b_std: Scalar) -> "Covariance":
        """Returns the covariance after weights, whose sum over inputs is done, and biases."""
        w2, b2 = w_std**2, b_std**2
        nngp = w2 * self.nngp + b2
        return Covariance(nngp, None if self.ntk is None else nngp + w2 * self.ntk)


class Dense(eqx.Module):
    """A fully connected layer.

    Args:
        w_std: Standard deviation of the weights, before the division by the root of the fan-in.
        b_std: Of the biases.
    """

    w_std: Scalar = 2**0.5
    b_std: Scalar = 0.1


class Conv(eqx.Module):
    """A convolution of stride 1 with zero padding, which keeps the size of the image.

    Args:
        size: Odd width and height of the filter.
        w_std: Standard deviation of the weights, before the division by the root of the fan-in,
            which counts every place of the filter, beyond the border too.
        b_std: Of the biases.

    Raises:
        Error: The size is not a positive odd number.
    """

    size: int = eqx.field(static=True, default=3)
    w_std: Scalar = 2**0.5
    b_std: Scalar = 0.1

    def __check_init__(self):
        if self.size < 1 or self.size % 2 == 0:
            raise Error(f"Conv({self.size}): the size of a filter is odd; use 3")


class AvgPool(eqx.Module):
    """The mean over windows of 2 x 2; an odd last row or column is left out."""


class Flatten(eqx.Module):
    """The readout that has weights of its own for every pixel."""


class GlobalAvgPool(eqx.Module):
    """The readout that has the same weights for all pixels."""


class Activation(eqx.Module):
    """What acts on every unit alone."""

    def apply(self, x: Float[Array, "*units"]) -> Float[Array, "*units"]:
        """Returns the outputs of units, in a network of finite width.

        Args:
            x: What comes into them.
        """
        raise NotImplementedError

    def dual(
        self, nngp: Float[Array, "..."], first: Float[Array, "..."], second: Float[Array, "..."]
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Returns the covariance of the outputs, and that of the slopes.

        Args:
            nngp: Covariances of the two inputs' units.
            first: Variances of the first input's; it broadcasts.
            second: Variances of the second input's; it broadcasts.
        """
        raise NotImplementedError

    def __call__(
        self, covariance: Covariance, first: Float[Array, "..."], second: Float[Array, "..."]
    ) -> Covariance:
        """Returns the covariance after the activation."""
        nngp, slope = self.dual(covariance.nngp, first, second)
        ntk = None if covariance.ntk is None else slope * covariance.ntk
        return Covariance(nngp, ntk)


class LeakyRelu(Activation):
    """`low * min(x, 0) + high * max(x, 0)`.

    Args:
        low: Slope below 0.
        high: Slope above 0.
    """

    low: Scalar = 0.01
    high: Scalar = 1.0

    def apply(self, x):
        """See `Activation.apply`."""
        return jnp.where(x < 0, self.low, self.high) * x

    def dual(self, nngp, first, second):
        """See `Activation.dual` and `rectified`."""
        low, high = (jnp.asarray(value, nngp.dtype) for value in (self.low, self.high))
        return rectified(nngp, jnp.broadcast_to(first * second, nngp.shape), low, high)


class Relu(LeakyRelu):
    """`max(x, 0)`, without a factor: `w_std` = sqrt(2) keeps the variance."""

    low: Scalar = 0.0


class Erf(Activation):
    """The error function.

    Reference:
        Williams, "Computing with Infinite Networks", 1996.
    """

    def apply(self, x):
        """See `Activation.apply`."""
        return lax.erf(x)

    def dual(self, nngp, first, second):
        """See `Activation.dual`."""
        # sqrt((1 + 2 first) (1 + 2 second) - 4 nngp^2), multiplied out: 1 - cosine^2 would cancel,
        # and rounding takes the difference of large products below 0.
        rest = jnp.maximum(first * second - nngp * nngp, 0)
        root = jnp.sqrt(1 + 2 * (first + second) + 4 * rest)
        angle = jnp.pi / 2 - arctan2(root, 2 * nngp)
        return 2 / np.pi * angle, 4 / np.pi / root


class Identity(Activation):
    """Nothing; deep linear networks."""

    def apply(self, x):
        """See `Activation.apply`."""
        return x

    def dual(self, nngp, first, second):
        """See `Activation.dual`."""
        return nngp, jnp.ones_like(nngp)


Readout = Flatten | GlobalAvgPool
OfImages = Conv | AvgPool | Activation
OfVectors = Dense | Activation
Layer = Dense | Conv | AvgPool | Flatten | GlobalAvgPool | Activation
