"""The image augmentation of the CIFAR-10 experiments: pad-4 crop, flip, cutout 8."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

PAD = 4
CUTOUT = 8


def augment(
    key: PRNGKeyArray, images: Float[Array, "batch height width channels"]
) -> Float[Array, "batch height width channels"]:
    """Crops at random from the image padded by 4, flips with probability 1/2, cuts out 8 x 8.

    Args:
        key: The randomness; the same key gives the same batch.
        images: The batch.

    Reference:
        Ghazi et al. (2021), Appendix on training; DeVries and Taylor (2017) for cutout.
    """
    keys = jax.random.split(key, images.shape[0])
    return jax.vmap(_augment_one)(keys, images)


def _augment_one(
    key: PRNGKeyArray, image: Float[Array, "height width channels"]
) -> Float[Array, "height width channels"]:
    crop_key, flip_key, cut_key = jax.random.split(key, 3)
    height, width, _ = image.shape
    padded = jnp.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)))
    top, left = jax.random.randint(crop_key, (2,), 0, 2 * PAD + 1)
    image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    # The square's centre lies anywhere in the image, so that squares at the border are cut short.
    row_key, column_key = jax.random.split(cut_key)
    row = jax.random.randint(row_key, (), 0, height) - CUTOUT // 2
    column = jax.random.randint(column_key, (), 0, width) - CUTOUT // 2
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    hidden = (
        (rows >= row) & (rows < row + CUTOUT) & (columns >= column) & (columns < column + CUTOUT)
    )
    return jnp.where(hidden[..., None], 0.0, image)
