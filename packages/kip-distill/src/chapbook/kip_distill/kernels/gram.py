"""Kernel matrices computed in blocks, on one device or a mesh, with gradients in bounded memory.

No block's intermediate values outlive it: what goes back through a block computes it again, and
nothing but the matrix itself, and the variances of each input, is kept between the two passes.
"""

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from chapbook.core.errors import Error
from chapbook.kip_distill.kernels import band
from chapbook.kip_distill.kernels.layers import Covariance
from chapbook.kip_distill.kernels.vectors import Variances

if TYPE_CHECKING:
    from chapbook.kip_distill.kernels.kernel import Kernel

# Arrays of a block's largest stage that are alive at once: covariances before and after, and
# those of one plane or two on their way.
ALIVE = 3
MOST = 256  # pairs in a block; more no longer fill a processor's vectors better


@eqx.filter_jit
def matrix(
    kernel: "Kernel",
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None,
    first: Variances | None = None,
    *,
    ntk: bool,
    memory: int,
    mesh: Mesh | None,
) -> Covariance:
    """Returns kernel matrices; see `Kernel.__call__`."""
    if mesh is None:
        return _local(kernel, x1, x2, first, ntk=ntk, memory=memory)
    rows, columns = (axis if axis in mesh.shape else None for axis in ("target", "support"))
    if rows is None and columns is None:
        raise Error(f"Kernel: the mesh has axes {', '.join(mesh.shape)}; use target and support")
    other = x1 if x2 is None else x2

    def part(x1: Array, x2: Array, first: Variances | None) -> Covariance:
        return _local(kernel, x1, x2, first, ntk=ntk, memory=memory)

    sharded = jax.shard_map(
        part, mesh=mesh, in_specs=(P(rows), P(columns), P(rows)), out_specs=P(rows, columns),
        check_vma=False,
    )  # fmt: skip
    n1, n2 = len(x1), len(other)
    many = mesh.shape.get("target", 1)
    known = None if first is None else tuple(_filled(each, many) for each in first)
    whole = sharded(_filled(x1, many), _filled(other, mesh.shape.get("support", 1)), known)
    return whole.map(lambda each: each[:n1, :n2])


def _local(
    kernel: "Kernel", x1: Array, x2: Array | None, first: Variances | None, *, ntk: bool,
    memory: int,
) -> Covariance:  # fmt: skip
    if kernel.takes_images:
        return _of_images(kernel, x1, x2, first, ntk=ntk, memory=memory)
    return _of_vectors(kernel, x1, x2, ntk=ntk, memory=memory)


def _of_images(
    kernel: "Kernel", x1: Array, x2: Array | None, first: Variances | None, *, ntk: bool,
    memory: int,
) -> Covariance:  # fmt: skip
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    symmetric = x2 is None
    rows, columns = np.triu_indices(n1) if symmetric else np.indices((n1, n2)).reshape(2, -1)
    size = min(block(kernel, x1.shape, x1.dtype.itemsize, memory, ntk=ntk), len(rows))
    # What is missing in the last block is filled with pairs that are left out again.
    extra = -len(rows) % size
    pairs = np.stack([np.pad(rows, (0, extra)), np.pad(columns, (0, extra))], 1)
    pairs = jnp.asarray(pairs.reshape(-1, size, 2), jnp.int32)
    first = _variances(kernel, x1, size) if first is None else first
    other, second = (x1, first) if x2 is None else (x2, _variances(kernel, x2, size))

    @jax.checkpoint
    def one(places: Int[Array, "pairs 2"]) -> Covariance:
        i, j = places[:, 0], places[:, 1]
        ones, others = tuple(v[i] for v in first), tuple(v[j] for v in second)
        return kernel.of_pairs(x1[i], other[j], ones, others, ntk=ntk)

    found = lax.map(one, pairs)

    def square(values: Array) -> Array:
        flat = values.reshape(-1)[: len(rows)]
        if not symmetric:
            return flat.reshape(n1, n2)
        upper = jnp.zeros((n1, n1), flat.dtype).at[rows, columns].set(flat)
        return upper + jnp.triu(upper, 1).T

    return found.map(square)


def _variances(kernel: "Kernel", x: Array, size: int) -> tuple[Array, ...]:
    """Returns the variances of images, computed in blocks too."""
    size = min(size, len(x))
    filled = _filled(x, size).reshape(-1, size, *x.shape[1:])
    found = lax.map(jax.checkpoint(lambda part: kernel.variances(part)), filled)
    return tuple(each.reshape(-1, *each.shape[2:])[: len(x)] for each in found)


def _of_vectors(
    kernel: "Kernel", x1: Array, x2: Array | None, *, ntk: bool, memory: int
) -> Covariance:
    other = x1 if x2 is None else x2
    second = kernel.variances(other)
    row = ALIVE * 2 * len(other) * x1.dtype.itemsize
    size = max(1, min(len(x1), memory // max(row, 1)))
    blocks = _filled(x1, size).reshape(-1, size, *x1.shape[1:])
    places = jnp.arange(len(blocks) * size).reshape(-1, size)

    @jax.checkpoint
    def one(part: tuple[Array, Array]) -> Covariance:
        x, rows = part
        same = rows[:, None] == jnp.arange(len(other)) if x2 is None else None
        return kernel.of_vectors(x, other, kernel.variances(x), second, ntk=ntk, same=same)

    found = lax.map(one, (blocks, places))
    return found.map(lambda each: each.reshape(-1, len(other))[: len(x1)])


def block(
    kernel: "Kernel", shape: tuple[int, ...], itemsize: int, memory: int, *, ntk: bool
) -> int:
    """Returns how many pairs of images are computed at once.

    Args:
        kernel: Of images.
        shape: Of the images: (n, height, width, channels).
        itemsize: Bytes of a number.
        memory: Bytes that may be used.
        ntk: Whether the NTK is computed beside the NNGP.
    """
    images, _, readout = kernel.parts()
    if readout is None:
        raise Error("block: the kernel is not one of images")
    _, steps, reach = band.plan(images, readout, shape[1:3])
    if kernel.pairs == "full":
        most = max((h * w) ** 2 for h, w in steps)
    else:
        most = max(
            (2 * y + 1) * (2 * x + 1) * h * w for (h, w), (y, x) in zip(steps, reach, strict=True)
        )
    return max(1, min(MOST, memory // (ALIVE * (1 + ntk) * most * itemsize)))


def _filled(x: Array, multiple: int) -> Array:
    """Returns inputs and as many zeros after them as make their number a multiple."""
    return jnp.pad(x, [(0, -len(x) % multiple)] + [(0, 0)] * (x.ndim - 1))
