"""Images as tokens: patches, their linear embedding, and where they stand."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from chapbook.core.errors import Error
from chapbook.core.sharding import axes
from chapbook.core.transformer import sincos_2d
from chapbook.vmoe.config import VMoEConfig


class PatchEmbedding(eqx.Module):
    """A convolution whose stride is its size, `tokens = patches K + b`, row by row.

    Args:
        config: Of the model.
        key: Randomness of the kernel, LeCun-normal.
    """

    kernel: Float[Array, "patch patch channels embed"] = axes(None, None, None, "embed")
    bias: Float[Array, " embed"] = axes(None)

    def __init__(self, config: VMoEConfig, *, key: Key[Array, ""]):
        p, width = config.patch_size, config.hidden_size
        init = jax.nn.initializers.lecun_normal(in_axis=(0, 1, 2))
        self.kernel = init(key, (p, p, config.channels, width))
        self.bias = jnp.zeros(width)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches embed"]:
        """Embeds the patches of each image.

        Args:
            images: Pixels.

        Raises:
            Error: Their size is no multiple of the patch's, or they have other channels.
        """
        p, _, channels, width = self.kernel.shape
        batch, height, wide, given = images.shape
        if height % p or wide % p or given != channels:
            raise Error(
                f"images of {height} x {wide} with {given} channels; the model takes multiples of "
                f"{p} with {channels}"
            )
        grid = images.reshape(batch, height // p, p, wide // p, p, channels)
        patches = grid.swapaxes(2, 3).reshape(batch, -1, p * p * channels)
        return patches @ self.kernel.reshape(-1, width) + self.bias


def positions(config: VMoEConfig, key: Key[Array, ""]) -> Float[Array, "tokens embed"] | None:
    """Returns the learned embedding of positions, normal with a deviation of 0.02, or None.

    Args:
        config: Of the model.
        key: Randomness.
    """
    if config.position != "learned":
        return None
    return 0.02 * jax.random.normal(key, (config.num_tokens, config.hidden_size))


def waves(config: VMoEConfig) -> Float[Array, "tokens embed"]:
    """Returns the fixed embedding of positions of MoCo v3; a class token gets zeros.

    Args:
        config: Of the model.
    """
    found = sincos_2d(config.grid, config.grid, config.hidden_size)
    return jnp.pad(found, ((int(config.classifier == "token"), 0), (0, 0)))
