r"""Covariances of two images' pixels, kept only for the displacements that the readout needs.

A kernel of convolutional networks follows the covariance `Q[u, v]` of pixel `u` of one image and
pixel `v` of the other through the layers. A convolution and an activation keep the displacement
`D = v - u`, and pooling makes displacement `D` from `2 D - 1`, `2 D` and `2 D + 1` along each axis.
So a readout of equal pixels (`D = 0`) needs `|D| <= 1` before the last pool, 3 before the one
ahead of it, then 7: a band, about a sixth of all pairs at 32 x 32 pixels. The result is exact.

A plane holds the pairs of one displacement, indexed by `u`. Between two pools planes do not meet,
so they are computed one after the other, in memory that stays in a processor's cache; all pairs
of images of a block lie along the last axis, where neighbours are computed alike.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import linear_call
from jaxtyping import Array, Bool, Float, Int

from chapbook.kip_distill.kernels.layers import (
    Activation,
    AvgPool,
    Conv,
    Covariance,
    GlobalAvgPool,
    OfImages,
    Readout,
)

Plane = Float[Array, "height width pairs"]
Reach = tuple[int, int]


def stages(layers: Sequence[OfImages]) -> list[list[Conv | Activation]]:
    """Returns the layers between pools; there is one more stage than pools."""
    found: list[list[Conv | Activation]] = [[]]
    for layer in layers:
        if isinstance(layer, AvgPool):
            found.append([])
        elif isinstance(layer, Conv | Activation):
            found[-1].append(layer)
    return found


def sizes(height: int, width: int, pools: int) -> list[tuple[int, int]]:
    """Returns height and width of every stage."""
    return [(height >> pool, width >> pool) for pool in range(pools + 1)]


def reaches(shapes: Sequence[tuple[int, int]], last: Reach) -> list[Reach]:
    """Returns the greatest displacements of every stage, from those of the last one."""
    found = [last]
    for height, width in reversed(shapes[:-1]):
        y, x = found[0]
        found.insert(0, (min(2 * y + 1, height - 1), min(2 * x + 1, width - 1)))
    return found


def plan(
    layers: Sequence[OfImages], readout: Readout, shape: Sequence[int]
) -> tuple[list[list[Conv | Activation]], list[tuple[int, int]], list[Reach]]:
    """Returns the layers, the size and the greatest displacements of every stage.

    Args:
        layers: Convolutions, activations and pools.
        readout: `Flatten`, which needs no displacement, or `GlobalAvgPool`, which needs all.
        shape: Height and width of the images.
    """
    parts = stages(layers)
    shapes = sizes(shape[0], shape[1], len(parts) - 1)
    height, width = shapes[-1]
    everywhere = isinstance(readout, GlobalAvgPool)
    return parts, shapes, reaches(shapes, (height - 1, width - 1) if everywhere else (0, 0))


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
    """Returns the covariances of pairs of images after the readout.

    Args:
        layers: Convolutions, activations and pools.
        readout: `Flatten` or `GlobalAvgPool`.
        x1: First images.
        x2: Second images, each beside its first.
        first: Variances of the first images' pixels before every activation.
        second: Of the second images'.
        ntk: Whether the NTK is asked for beside the NNGP.
    """
    parts, shapes, bands = plan(layers, readout, x1.shape[1:3])
    left, right = _last(x1), _last(x2)
    ones, others = [_last(each) for each in first], [_last(each) for each in second]
    planes = Covariance(left, None)  # until the first stage
    for number, part in enumerate(parts):
        seen = sum(isinstance(layer, Activation) for layer in part)
        here = (ones[:seen], others[:seen])
        ones, others = ones[seen:], others[seen:]
        if number == 0:
            planes = _first_stage(part, left, right, here, bands[0], ntk=ntk)
        else:
            planes = _pooled(planes, shapes[number - 1], bands[number - 1], bands[number])
            planes = _stage(part, planes, here, shapes[number], bands[number])
    return planes.map(lambda q: _read(q, readout))


def variances(
    layers: Sequence[OfImages], readout: Readout, x: Float[Array, "pairs height width channels"]
) -> tuple[tuple[Float[Array, "pairs _ _"], ...], Float[Array, " pairs"]]:
    """Returns the variances of pixels before every activation, and those after the readout.

    An image's own covariances at other displacements are followed too, as far as a pool makes
    variances of them.

    Args:
        layers: Convolutions, activations and pools.
        readout: `Flatten` or `GlobalAvgPool`.
        x: Images.
    """
    parts, shapes, bands = plan(layers, readout, x.shape[1:3])
    image = _last(x)
    found: list[Array] = []
    planes = Covariance(image, None)  # until the first stage
    for number, part in enumerate(parts):
        if number == 0:
            here = _centre(part, Covariance(_product(image, image), None))
            planes = _first_stage(part, image, image, (here, here), bands[0], ntk=False)
        else:
            planes = _pooled(planes, shapes[number - 1], bands[number - 1], bands[number])
            here = _centre(part, Covariance(planes.nngp[bands[number]], None))
            planes = _stage(part, planes, (here, here), shapes[number], bands[number])
        found += here
    return tuple(jnp.moveaxis(each, -1, 0) for each in found), _read(planes.nngp, readout)


def _read(q: Array, readout: Readout) -> Float[Array, " pairs"]:
    """Returns the mean over all pairs of pixels, or over pairs of equal ones."""
    if isinstance(readout, GlobalAvgPool):
        height, width = q.shape[2:4]
        return q.sum((0, 1, 2, 3)) / (height * width) ** 2
    return q[0, 0].mean((0, 1))


def _centre(part: Sequence[Conv | Activation], covariance: Covariance) -> list[Plane]:
    """Returns an image's variances before every activation of a stage."""
    found = []
    for layer in part:
        if isinstance(layer, Activation):
            found.append(covariance.nngp)
            covariance = layer(covariance, covariance.nngp, covariance.nngp)
        else:
            covariance = _convolved(layer, covariance, None)
    return found


def _first_stage(
    part: Sequence[Conv | Activation],
    x1: Float[Array, "height width channels pairs"],
    x2: Float[Array, "height width channels pairs"],
    seen: tuple[list[Plane], list[Plane]],
    reach: Reach,
    *,
    ntk: bool,
) -> Covariance:
    """Returns all planes after the first stage, each from the images."""
    height, width = x1.shape[:2]
    around = [_padded(each, reach) for each in (x2, *seen[1])]

    @jax.checkpoint
    def plane(shift: Int[Array, "2"]) -> Covariance:
        other, *variances = (_shifted(each, shift, (height, width)) for each in around)
        nngp = _product(x1, other)
        start = Covariance(nngp, jnp.zeros_like(nngp) if ntk else None)
        return _through(part, start, seen[0], variances, _valid(shift, (height, width), reach))

    return _grid(plane, (_shifts(reach),), reach)


def _stage(
    part: Sequence[Conv | Activation],
    planes: Covariance,
    seen: tuple[list[Plane], list[Plane]],
    shape: tuple[int, int],
    reach: Reach,
) -> Covariance:
    """Returns all planes after a stage that follows a pool."""
    around = [_padded(each, reach) for each in seen[1]]

    @jax.checkpoint
    def plane(shift: Int[Array, "2"], start: Covariance) -> Covariance:
        variances = [_shifted(each, shift, shape) for each in around]
        return _through(part, start, seen[0], variances, _valid(shift, shape, reach))

    flat = planes.map(lambda q: q.reshape(-1, *q.shape[2:]))
    return _grid(plane, (_shifts(reach), flat), reach)


def _through(
    part: Sequence[Conv | Activation],
    covariance: Covariance,
    first: Sequence[Plane],
    second: Sequence[Plane],
    valid: Bool[Array, "height width 1"],
) -> Covariance:
    """Returns one plane after the layers of a stage."""
    seen = iter(zip(first, second, strict=True))
    for layer in part:
        if isinstance(layer, Activation):
            covariance = layer(covariance, *next(seen))
        else:
            covariance = _convolved(layer, covariance, valid)
    return covariance


def _convolved(
    layer: Conv, covariance: Covariance, valid: Bool[Array, "height width 1"] | None
) -> Covariance:
    """Returns a plane after a convolution; pairs beyond the border stay 0, in spite of biases."""
    sums = covariance.map(lambda q: _box(q, layer.size) / layer.size**2)
    made = sums.scaled(layer.w_std, layer.b_std)
    return made if valid is None else made.map(lambda q: jnp.where(valid, q, 0))


def _box(q: Plane, size: int) -> Plane:
    """Returns the sums over windows of `size` x `size` pixels."""

    def sums(_: None, q: Plane) -> Plane:
        height, width = q.shape[:2]
        border = size // 2
        # The barriers keep what comes before from being computed anew for every term.
        around = lax.optimization_barrier(_padded(q, (border, border)))
        terms = [around[y : y + height, x : x + width] for y in range(size) for x in range(size)]
        return lax.optimization_barrier(sum(terms[1:], terms[0]))

    # A window's sum is its own transpose; what JAX would derive adds nine padded arrays.
    return linear_call(sums, sums, None, q)


def _pooled(planes: Covariance, shape: tuple[int, int], before: Reach, after: Reach) -> Covariance:
    """Returns all planes after a pool."""

    def pool(q: Array) -> Array:
        for axis in (0, 1):
            q = _pooled_axis(q, axis, before[axis], after[axis])
        return lax.optimization_barrier(jnp.where(valid, q, 0))

    size = (shape[0] // 2, shape[1] // 2)
    # Where the size was odd, pairs with the pixel that was left out have come along.
    valid = jax.vmap(lambda shift: _valid(shift, size, after))(_shifts(after))
    valid = valid.reshape(2 * after[0] + 1, 2 * after[1] + 1, *size, 1)
    return planes.map(pool)


def _pooled_axis(q: Array, axis: int, before: int, after: int) -> Array:
    """Returns the planes pooled along one axis of displacements and of pixels."""
    missing = 2 * after + 1 - before  # displacements that are wider than the image
    edges = [(missing, missing) if place == axis else (0, 0) for place in range(q.ndim)]
    q = jnp.moveaxis(jnp.pad(q, edges), (axis, axis + 2), (0, 1))
    even = q[:, : q.shape[1] // 2 * 2]
    near, far = even[:, 0::2], even[:, 1::2]
    count = 2 * after + 1
    same, more, less = (slice(start, start + 2 * count - 1, 2) for start in (1, 2, 0))
    pooled = (near[same] + far[same] + near[more] + far[less]) / 4
    return jnp.moveaxis(pooled, (0, 1), (axis, axis + 2))


def _product(
    x1: Float[Array, "height width channels pairs"], x2: Float[Array, "height width channels pairs"]
) -> Plane:
    return (x1 * x2).sum(2) / x1.shape[2]


def _grid(plane: Callable[..., Covariance], inputs: tuple, reach: Reach) -> Covariance:
    """Returns the planes of all displacements, one made after the other."""
    made = lax.map(lambda each: plane(*each), inputs)
    return made.map(lambda q: q.reshape(2 * reach[0] + 1, 2 * reach[1] + 1, *q.shape[1:]))


def _shifts(reach: Reach) -> Int[Array, "shifts 2"]:
    """Returns all displacements, counted from the least."""
    y, x = jnp.meshgrid(*(jnp.arange(2 * each + 1) for each in reach), indexing="ij")
    return jnp.stack([y.ravel(), x.ravel()], 1)


def _valid(
    shift: Int[Array, "2"], shape: tuple[int, int], reach: Reach
) -> Bool[Array, "height width 1"]:
    """Returns where the second pixel lies within the image."""
    inside = jnp.pad(jnp.ones(shape, bool), [(each, each) for each in reach])
    return lax.dynamic_slice(inside, shift, shape)[..., None]


def _padded(q: Array, reach: Reach) -> Array:
    edges = [(each, each) for each in reach]
    return jnp.pad(q, edges + [(0, 0)] * (q.ndim - 2))


def _shifted(q: Array, shift: Int[Array, "2"], shape: tuple[int, int]) -> Array:
    """Returns what each pixel's partner has, 0 beyond the border."""
    start = (*shift, *(0,) * (q.ndim - 2))
    return lax.dynamic_slice(q, start, (*shape, *q.shape[2:]))


def _last(x: Array) -> Array:
    return jnp.moveaxis(x, 0, -1)
