"""The kernel of an infinitely wide network, given by its layers."""

from collections.abc import Sequence
from typing import Literal, overload

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Shaped

from chapbook.core.errors import Error
from chapbook.kip_distill.kernels import band, full, gram
from chapbook.kip_distill.kernels.layers import (
    Activation,
    AvgPool,
    Conv,
    Covariance,
    Dense,
    GlobalAvgPool,
    Layer,
    OfImages,
    OfVectors,
    Readout,
)
from chapbook.kip_distill.kernels.vectors import Variances, dense, dense_variances, linear

Inputs = Shaped[Array | np.ndarray, "n1 ..."]
Known = Shaped[Array | np.ndarray, "n1 ..."]
Others = Shaped[Array | np.ndarray, "n2 ..."]
MEMORY = 2**28


class Kernel(eqx.Module):
    """The NNGP and the neural tangent kernel of a network of unbounded width.

    Call it on two sets of inputs. Its layers are leaves of a pytree: their `w_std` and `b_std` may
    be arrays, and be differentiated.

    Args:
        layers: In order. A network with `Conv` or `AvgPool` takes images and has one readout,
            `Flatten` or `GlobalAvgPool`; any other takes vectors, or images as vectors.
        pairs: Of pixels that are followed: the `band` that the readout needs, or the `full`
            tensor, for comparison.

    Raises:
        Error: The layers do not fit together.

    Reference:
        Jacot, Gabriel and Hongler, "Neural Tangent Kernel", 2018; Arora et al., "On Exact
        Computation with an Infinitely Wide Neural Net", 2019.
    """

    layers: tuple[Layer, ...]
    pairs: Literal["band", "full"] = eqx.field(static=True, default="band")

    def __check_init__(self):
        if self.pairs not in ("band", "full"):
            raise Error(f'Kernel: pairs="{self.pairs}" is neither band nor full')
        readouts = [
            place for place, layer in enumerate(self.layers)
            if isinstance(layer, Readout)
        ]  # fmt: skip
        images = [isinstance(layer, Conv | AvgPool) for layer in self.layers]
        if not any(isinstance(layer, Conv | Dense) for layer in self.layers):
            raise Error("Kernel: no layer has weights; add Dense() or Conv()")
        if len(readouts) > 1 or (any(images) and not readouts):
            raise Error(
                f"Kernel: {len(readouts)} readouts; layers of images need one, Flatten() or "
                "GlobalAvgPool(), after them"
            )
        end = readouts[0] if readouts else 0
        if any(images[end:]):
            raise Error("Kernel: Conv() and AvgPool() stand before the readout")
        if any(isinstance(layer, Dense) for layer in self.layers[:end]):
            raise Error("Kernel: Dense() stands after the readout of images")

    @property
    def takes_images(self) -> bool:
        """Whether inputs are images, of height, width and channels."""
        images, _, readout = self.parts()
        return bool(images) or isinstance(readout, GlobalAvgPool)

    @overload
    def __call__(
        self,
        x1: Inputs,
        x2: Others | None = None,
        *,
        get: str = "ntk",
        first: Sequence[Known] | None = None,
        memory: int = MEMORY,
        mesh: Mesh | None = None,
    ) -> Array: ...

    @overload
    def __call__(
        self,
        x1: Inputs,
        x2: Others | None = None,
        *,
        get: tuple[str, ...],
        first: Sequence[Known] | None = None,
        memory: int = MEMORY,
        mesh: Mesh | None = None,
    ) -> tuple[Array, ...]: ...

    def __call__(
        self,
        x1: Inputs,
        x2: Others | None = None,
        *,
        get: str | tuple[str, ...] = "ntk",
        first: Sequence[Known] | None = None,
        memory: int = MEMORY,
        mesh: Mesh | None = None,
    ) -> Array | tuple[Array, ...]:
        """Returns kernel matrices of shape (n1, n2).

        Args:
            x1: Images of shape (n1, height, width, channels), or arrays of shape (n1, ...) where
                the network takes vectors.
            x2: Other inputs; `x1` itself if None, when only half of the matrix is computed.
            get: `ntk`, `nngp`, or both as a tuple, which then is what comes back.
            first: What `variances` gives for `x1`, if it is known; only of images, and with `x2`.
            memory: Bytes that a block of the matrix may take on a device while it is computed,
                going forward; a block is never smaller than one pair of inputs.
            mesh: With axes `target`, over which `x1` is spread, and `support`, for `x2`.

        Raises:
            Error: The inputs do not fit the network or each other, or `get` is unknown.
        """
        names = (get,) if isinstance(get, str) else tuple(get)
        if not names or set(names) - {"nngp", "ntk"}:
            raise Error(f"Kernel: get={get!r} is neither ntk nor nngp nor both")
        rows, columns = floating(x1), None if x2 is None else floating(x2)
        self.check(rows.shape)
        if columns is not None:
            self.check(columns.shape, rows.shape)
        if first is not None and (columns is None or not self.takes_images):
            raise Error("Kernel: variances are given for images that meet others")
        known = None if first is None else tuple(jnp.asarray(each) for each in first)
        found = gram.matrix(
            self, rows, columns, known, ntk="ntk" in names, memory=memory, mesh=mesh
        )
        made = tuple(getattr(found, name) for name in names)
        return made[0] if isinstance(get, str) else made

    def check(self, shape: tuple[int, ...], other: tuple[int, ...] | None = None) -> None:
        """Fails unless inputs of a shape fit the network.

        Args:
            shape: Of the inputs.
            other: Of inputs that they are compared with.

        Raises:
            Error: They do not.
        """
        if other is not None and shape[1:] != other[1:]:
            raise Error(f"Kernel: inputs of shapes {other[1:]} and {shape[1:]} cannot be compared")
        if not self.takes_images:
            if len(shape) < 2:
                raise Error(f"Kernel: inputs of shape {shape}; expected (n, features)")
            return
        if len(shape) != 4:
            raise Error(f"Kernel: images of shape {shape}; expected (n, height, width, channels)")
        pools = sum(isinstance(layer, AvgPool) for layer in self.layers)
        steps = band.sizes(shape[1], shape[2], pools)
        if min(steps[-1]) < 1:
            told = " -> ".join(f"{height}x{width}" for height, width in steps)
            raise Error(f"Kernel: images are too small for {pools} pools: {told}")

    def variances(self, x: Inputs) -> Variances:
        """Returns what each input alone contributes: variances before every activation.

        Args:
            x: Inputs.

        Returns:
            Arrays of shape (n,), or (n, height, width) before the readout.
        """
        images, vectors, readout = self.parts()
        x = jnp.asarray(x)
        if readout is None or not self.takes_images:
            flat = x.reshape(len(x), -1)
            return dense_variances(vectors, (flat * flat).mean(1))[0]
        found, variance = band.variances(images, readout, x)
        return (*found, *dense_variances(vectors, variance)[0])

    def variances_of(
        self, x: Shaped[np.ndarray, "n ..."], *, memory: int = MEMORY
    ) -> tuple[np.ndarray, ...]:
        """Returns the `variances` of any number of images, to be kept where they meet many others.

        Args:
            x: Images, which are taken in blocks.
            memory: Bytes that a block may take while it is computed.
        """
        size = min(len(x), gram.block(self, x.shape, x.dtype.itemsize, memory, ntk=False))
        parts: list[tuple[np.ndarray, ...]] = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            # Blocks of one size share one compiled program.
            filled = np.concatenate([part, x[: size - len(part)]]) if len(part) < size else part
            parts.append(
                tuple(np.asarray(v)[: len(part)] for v in _variances(self, jnp.asarray(filled)))
            )
        return tuple(np.concatenate(each) for each in zip(*parts, strict=True))

    def of_pairs(
        self, x1: Inputs, x2: Inputs, first: Variances, second: Variances, *, ntk: bool
    ) -> Covariance:
        """Returns the covariances of images of the same place, of shape (n,).

        Args:
            x1: Images.
            x2: As many images.
            first: Variances of the first ones.
            second: Variances of the second ones.
            ntk: Whether the NTK is asked for beside the NNGP.
        """
        images, vectors, readout = self.parts()
        if readout is None:
            raise Error("Kernel: the network takes vectors; use of_vectors")
        seen = sum(isinstance(layer, Activation) for layer in images)
        evaluate = band.covariances if self.pairs == "band" else full.covariances
        found = evaluate(
            images, readout, jnp.asarray(x1), jnp.asarray(x2), first[:seen], second[:seen], ntk=ntk
        )
        return dense(vectors, found, first[seen:], second[seen:])

    def of_vectors(
        self,
        x1: Inputs,
        x2: Others,
        first: Variances,
        second: Variances,
        *,
        ntk: bool,
        same: Bool[Array, "n1 n2"] | None = None,
    ) -> Covariance:
        """Returns the covariances of all first vectors with all second ones.

        Args:
            x1: Inputs of shape (n1, ...).
            x2: Inputs of shape (n2, ...).
            first: Variances of the first ones.
            second: Variances of the second ones.
            ntk: Whether the NTK is asked for beside the NNGP.
            same: Where both are one and the same input, whose variance is then taken: the sum of a
                matrix product is rounded differently.
        """
        flat, others = (jnp.asarray(x).reshape(len(x), -1) for x in (x1, x2))
        nngp = linear(flat, others)
        if same is not None:
            nngp = jnp.where(same, (flat * flat).mean(1)[:, None], nngp)
        start = Covariance(nngp, jnp.zeros_like(nngp) if ntk else None)
        rows, columns = tuple(v[:, None] for v in first), tuple(v[None, :] for v in second)
        return dense(self.parts()[1], start, rows, columns)

    def parts(self) -> tuple[list[OfImages], list[OfVectors], Readout | None]:
        """Returns the layers of images, those of vectors, and the readout between them."""
        readout, end = None, 0
        for place, layer in enumerate(self.layers):
            if isinstance(layer, Readout):
                readout, end = layer, place
        images = [layer for layer in self.layers[:end] if isinstance(layer, OfImages)]
        vectors = [layer for layer in self.layers[end:] if isinstance(layer, OfVectors)]
        return images, vectors, readout


@eqx.filter_jit
def _variances(kernel: Kernel, x: Array) -> Variances:
    return kernel.variances(x)


def serial(*layers: Layer, pairs: Literal["band", "full"] = "band") -> Kernel:
    """Returns the kernel of layers, one after the other.

    Args:
        layers: In order.
        pairs: See `Kernel`.
    """
    return Kernel(tuple(layers), pairs)


def floating(x: Array | np.ndarray) -> Array:
    """Returns an array whose numbers are floats; whole ones get JAX's default precision."""
    made = jnp.asarray(x)
    kept = jnp.issubdtype(made.dtype, jnp.floating)
    return made if kept else made.astype(jnp.result_type(float))
