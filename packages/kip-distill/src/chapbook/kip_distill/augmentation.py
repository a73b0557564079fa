"""Random changes of images, by which a step sees other targets than the one before."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

from chapbook.core.errors import Error


class Augmentation(eqx.Module):
    """Turns, shifts, mirrors and tints a share of a batch of raw images.

    Pixels are interpolated linearly; what comes from beyond the border is the border's pixel.

    Args:
        share: Of every batch that is changed, between 0 and 1; the rest stays as it is.
        rotation: Greatest angle either way, in degrees.
        shift: Greatest shift along either axis, as a share of the image's size.
        channel_shift: Greatest number that is added to all pixels of a channel.
        flip: Whether half of the images are mirrored from left to right, which digits must not be.

    Raises:
        Error: A share is not between 0 and 1, or another number is negative.

    Reference:
        Nguyen, Novak, Xiao and Lee, 2021, appendix on data augmentation.
    """

    share: float = 1.0
    rotation: float = 10.0
    shift: float = 0.1
    channel_shift: float = 0.1
    flip: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if not 0 <= self.share <= 1:
            raise Error(f"a share of {self.share} cannot be augmented; use 0 to 1")
        if min(self.rotation, self.shift, self.channel_shift) < 0:
            raise Error("rotation, shift and channel_shift of an augmentation are not negative")

    @eqx.filter_jit
    def __call__(
        self, x: Float[Array, "batch height width channels"], key: Key[Array, ""]
    ) -> Float[Array, "batch height width channels"]:
        """Returns a batch of which a share is changed, each image by numbers of its own.

        Args:
            x: Raw images: pixels before preprocessing.
            key: Of the draws.
        """
        which, changes = jax.random.split(key)
        chosen = jax.random.permutation(which, len(x)) < round(self.share * len(x))
        changed = jax.vmap(self.one)(x, jax.random.split(changes, len(x)))
        return jnp.where(chosen[:, None, None, None], changed, x)

    def one(
        self, image: Float[Array, "height width channels"], key: Key[Array, ""]
    ) -> Float[Array, "height width channels"]:
        """Returns one image, changed.

        Args:
            image: Raw pixels.
            key: Of the draws.
        """
        height, width, channels = image.shape
        turn, move, tint, mirror = jax.random.split(key, 4)
        angle = jnp.deg2rad(self.rotation) * jax.random.uniform(turn, (), image.dtype, -1, 1)
        size = jnp.asarray((height, width), image.dtype)
        moved = self.shift * size * jax.random.uniform(move, (2,), image.dtype, -1, 1)
        middle = (size - 1) / 2
        places = jnp.stack(jnp.mgrid[:height, :width]).astype(image.dtype)
        y, x = places - (middle + moved)[:, None, None]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        if self.flip:
            x = jnp.where(jax.random.bernoulli(mirror), -x, x)
        # Where each pixel comes from, about the image's middle.
        sources = [cos * y - sin * x + middle[0], sin * y + cos * x + middle[1]]
        tints = self.channel_shift * jax.random.uniform(tint, (channels,), image.dtype, -1, 1)

        def drawn(plane: Float[Array, "height width"]) -> Float[Array, "height width"]:
            return map_coordinates(plane, sources, order=1, mode="nearest")

        return jax.vmap(drawn, -1, -1)(image) + tints
