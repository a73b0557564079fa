"""Networks of finite width, from the layers of a kernel: one description, infinite and finite.

Notable choices:

- Standard parameterisation by default, as in the paper's transfer: weights are drawn from
  `N(0, w_std^2 / fan_in)`, biases from `N(0, b_std^2)`, and nothing is scaled on the way. With
  `ntk=True` standard normal numbers are trained and the factors stand in the forward pass; at the
  start both are the same function, but gradients differ.
- The last layer has a unit per output, all others `width`.
- Batches of images of shape (batch, height, width, channels); convolutions pad with zeros.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from chapbook.core.errors import Error
from chapbook.kip_distill.kernels import (
    Activation,
    AvgPool,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Kernel,
)


class Affine(eqx.Module):
    """Weights and biases of a convolution or of a fully connected layer.

    Attributes:
        weight: Of shape (size, size, inputs, units) or (inputs, units).
        bias: One for each unit.
        factors: Of the weights and of the biases in the forward pass.
    """

    weight: Float[Array, "*window inputs units"]
    bias: Float[Array, " units"]
    factors: tuple[float, float] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "batch ... inputs"]) -> Float[Array, "batch ... units"]:
        """Returns the layer's outputs.

        Args:
            x: Images where the weights are those of a convolution, else vectors.
        """
        weight, bias = self.factors[0] * self.weight, self.factors[1] * self.bias
        if weight.ndim == 2:
            return x @ weight + bias
        names = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=names) + bias


class Network(eqx.Module):
    """A network of finite width whose limit has a given kernel.

    Args:
        kernel: Tells the layers; the last one is `Dense`.
        shape: Of one input: (height, width, channels), or any where the network takes vectors.
        width: Channels of every convolution and units of every layer but the last.
        outputs: Units of the last layer.
        key: Of the first weights.
        ntk: Whether to use the NTK parameterisation, in which the inner products of gradients have
            the kernel's NTK as their limit.

    Attributes:
        layers: The kernel's, with `Affine` for those that have weights.
        of_images: Whether inputs are images.

    Raises:
        Error: The inputs do not fit the layers, the last layer is not `Dense`, or a size is not
            positive.
    """

    layers: tuple[Affine | AvgPool | Flatten | GlobalAvgPool | Activation, ...]
    of_images: bool = eqx.field(static=True)

    def __init__(
        self,
        kernel: Kernel,
        shape: tuple[int, ...],
        *,
        width: int,
        outputs: int,
        key: Key[Array, ""],
        ntk: bool = False,
    ):
        kernel.check((1, *shape))
        if min(width, outputs) < 1:
            raise Error(f"Network: width={width} and outputs={outputs}; both are at least 1")
        last = len(kernel.layers) - 1
        if not isinstance(kernel.layers[last], Dense):
            raise Error("Network: the last layer is not Dense(), which has the outputs")
        # NumPy's draws: XLA compiles JAX's anew for every shape, for seconds in all.
        draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
        self.of_images = kernel.takes_images
        size: tuple[int, ...] = shape if self.of_images else (math.prod(shape),)
        layers = []
        for place, layer in enumerate(kernel.layers):
            if isinstance(layer, Conv | Dense):
                units = outputs if place == last else width
                layers.append(_affine(layer, size[-1], units, draw, ntk=ntk))
                size = (*size[:-1], units)
            else:
                # Slopes that are arrays belong to the kernel, and are not trained here.
                layers.append(jax.tree.map(float, layer))
            match layer:
                case AvgPool():
                    size = (*(each // 2 for each in size[:2]), *size[2:])
                case Flatten():
                    size = (math.prod(size),)
                case GlobalAvgPool():
                    size = size[-1:]
        self.layers = tuple(layers)

    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch outputs"]:
        """Returns the outputs for a batch of inputs.

        Args:
            x: Inputs, preprocessed.
        """
        x = x if self.of_images else x.reshape(len(x), -1)
        for layer in self.layers:
            match layer:
                case Affine():
                    x = layer(x)
                case AvgPool():
                    height, width = x.shape[1] // 2, x.shape[2] // 2
                    even = x[:, : 2 * height, : 2 * width]
                    x = even.reshape(len(x), height, 2, width, 2, -1).mean((2, 4))
                case Flatten():
                    x = x.reshape(len(x), -1)
                case GlobalAvgPool():
                    x = x.mean((1, 2))
                case Activation():
                    x = layer.apply(x)
        return x


def _affine(
    layer: Conv | Dense, inputs: int, units: int, draw: np.random.Generator, *, ntk: bool
) -> Affine:
    """Returns random weights and biases of a layer."""
    window = (layer.size, layer.size) if isinstance(layer, Conv) else ()
    deviations = (float(layer.w_std) / math.prod((*window, inputs)) ** 0.5, float(layer.b_std))
    weight, bias = draw.standard_normal((*window, inputs, units)), draw.standard_normal(units)
    if ntk:
        return Affine(jnp.asarray(weight), jnp.asarray(bias), deviations)
    return Affine(
        jnp.asarray(deviations[0] * weight), jnp.asarray(deviations[1] * bias), (1.0, 1.0)
    )
