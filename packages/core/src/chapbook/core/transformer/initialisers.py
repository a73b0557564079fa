"""Initial values of kernels: any function of a key and a shape, as in `jax.nn.initializers`.

A kernel is drawn as a matrix (inputs, outputs) and reshaped to its heads afterwards, so that fans
are those of the linear map.
"""

import math
from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array, Float, PRNGKeyArray

Initialiser = Callable[..., Array]

# A normal, cut at two standard deviations and widened to have the standard deviation fan_in^-1/2.
fan_in: Initialiser = jax.nn.initializers.lecun_normal()
small: Initialiser = jax.nn.initializers.normal(0.02)  # of tables of vectors, since GPT


def residual(layers: int) -> Initialiser:
    """Returns `fan_in` divided by `sqrt(2 layers)`, for maps that add to the residual stream.

    Two of them in each of the layers leave the stream's variance near that of one sum.

    Args:
        layers: How many layers the model has.

    Reference:
        Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.3.
    """
    return jax.nn.initializers.variance_scaling(1 / (2 * layers), "fan_in", "truncated_normal")


def kernel(
    init: Initialiser, key: PRNGKeyArray, inputs: Sequence[int], outputs: Sequence[int]
) -> Float[Array, "..."]:
    """Draws the kernel of a linear map between axes.

    Args:
        init: Draws the matrix.
        key: Randomness.
        inputs: Sizes of the axes that are contracted.
        outputs: Sizes of the axes of the result.

    Returns:
        The kernel, of the shape (*inputs, *outputs).
    """
    return init(key, (math.prod(inputs), math.prod(outputs))).reshape(*inputs, *outputs)
