"""Covariances of all pairs of two images' pixels, as other libraries keep them.

Every pair of pixels is followed through all layers, which costs about six times the work and the
memory of the band; what comes out is the same. It is here to be compared with.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from chapbook.kip_distill.kernels.layers import (
    Activation,
    Conv,
    Covariance,
    GlobalAvgPool,
    OfImages,
    Readout,
)

Tensor = Float[Array, "pairs height width height2 width2"]


def covariances(
    layers: Sequence[OfImages],
    readout: Readout,
    x1: Float[Array, "pairs height width channels"],
    x2: Float[Array, "pairs height width channels"],
    first: Sequence[Array],
    second: Sequence[Array],
    *,
    ntk: bool,
) -> Covariance:
    """Returns the covariances of pairs of images after the readout; see `band.covariances`."""
    nngp = jnp.einsum("phwc,pyxc->phwyx", x1, x2, precision="highest") / x1.shape[-1]
    found = Covariance(nngp, jnp.zeros_like(nngp) if ntk else None)
    seen = iter(zip(first, second, strict=True))
    for layer in layers:
        if isinstance(layer, Activation):
            one, other = next(seen)
            found = layer(found, one[:, :, :, None, None], other[:, None, None])
        elif isinstance(layer, Conv):
            size = layer.size
            sums = found.map(lambda q, size=size: _box(q, size) / size**2)
            found = sums.scaled(layer.w_std, layer.b_std)
        else:
            found = found.map(_pooled)
    if isinstance(readout, GlobalAvgPool):
        return found.map(lambda q: q.mean((1, 2, 3, 4)))
    return found.map(lambda q: jnp.einsum("phwhw->phw", q).mean((1, 2)))


def _box(q: Tensor, size: int) -> Tensor:
    """Returns the sums over windows, both pixels moved alike."""
    border = size // 2
    _, height, width, *_ = q.shape
    around = jnp.pad(q, [(0, 0)] + [(border, border)] * 4)
    terms = [
        around[:, y : y + height, x : x + width, y : y + height, x : x + width]
        for y in range(size)
        for x in range(size)
    ]
    return sum(terms[1:], terms[0])


def _pooled(q: Array) -> Array:
    """Returns the mean over windows of 2 x 2 of either image."""
    pairs, height, width, *_ = q.shape
    y, x = height // 2, width // 2
    even = q[:, : 2 * y, : 2 * x, : 2 * y, : 2 * x]
    return even.reshape(pairs, y, 2, x, 2, y, 2, x, 2).mean((2, 4, 6, 8))
