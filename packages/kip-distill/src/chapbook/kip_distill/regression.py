r"""Kernel ridge regression on a support set, in the form that distillation differentiates.

$$f(x) = k(x, X_s) (K_{ss} + \lambda \tfrac{\mathrm{tr} K_{ss}}{S} I)^{-1} Y_s$$

The regulariser is relative to the kernel's own scale. At its usual 1e-6 it is near the rounding of
float32 times the condition number, so that systems are solved in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
import scipy.linalg
from jax.sharding import Mesh
from jaxtyping import Array, Float

from chapbook.core.errors import Error
from chapbook.kip_distill.kernels import Kernel

ROWS = 2048  # inputs whose kernel values are held at once


def regularised(
    k_ss: Float[Array | np.ndarray, "support support"], reg: float, jitter: float = 0.0
) -> Float[Array | np.ndarray, "support support"]:
    """Returns the support's kernel matrix with something added to its diagonal.

    Args:
        k_ss: Kernel matrix of the support with itself.
        reg: Share of the mean of the diagonal; its sign does not count.
        jitter: An absolute number beside it.
    """
    size = len(k_ss)
    return k_ss + (abs(reg) * k_ss.trace() / size + jitter) * np.eye(size, dtype=k_ss.dtype)


def solve(
    k_ss: Float[Array, "support support"],
    y: Float[Array, "support outputs"],
    *,
    reg: float = 1e-6,
    jitter: float = 0.0,
) -> Float[Array, "support outputs"]:
    """Returns the coefficients of a kernel regression; differentiable.

    They are not numbers where the regularised matrix is not positive definite. In float64 where
    `jax_enable_x64` is set, whatever the types of the arguments; otherwise in float32 with one
    step of iterative refinement.

    Args:
        k_ss: Kernel matrix of the support with itself.
        y: Labels of the support.
        reg: See `regularised`.
        jitter: See `regularised`.
    """
    if jnp.result_type(float) == jnp.float64:
        matrix = regularised(k_ss.astype(jnp.float64), reg, jitter)
        return jsl.cho_solve(jsl.cho_factor(matrix, lower=True), y.astype(jnp.float64))
    matrix = regularised(k_ss, reg, jitter)
    factor = jsl.cho_factor(matrix, lower=True)
    found = jsl.cho_solve(factor, y)
    rest = y - jnp.matmul(matrix, found, precision="highest")
    return found + jsl.cho_solve(factor, rest)


def factor(
    k_ss: Float[np.ndarray, "support support"], reg: float, jitter: float = 0.0
) -> tuple[np.ndarray, bool]:
    """Returns the Cholesky factor of the regularised matrix, in float64 on the host.

    Args:
        k_ss: Kernel matrix of the support with itself.
        reg: See `regularised`.
        jitter: See `regularised`.

    Raises:
        Error: The regularised matrix is not positive definite.
    """
    k_ss = np.asarray(k_ss, np.float64)
    if not np.isfinite(k_ss).all():
        raise Error("the kernel of the support holds values that are not finite; check the images")
    try:
        return scipy.linalg.cho_factor(regularised(k_ss, reg, jitter), lower=True)
    except np.linalg.LinAlgError:
        least = float(np.linalg.eigvalsh(regularised(k_ss, reg, jitter))[0])
        scale = float(k_ss.trace()) / len(k_ss)
        # Twice what is missing, and never less than float64 resolves.
        enough = abs(reg) + 2 * max(-least, 0) / scale + 1e-12 if scale > 0 else None
        hint = f"use reg={enough:.1e}" if enough else "all kernel values are 0; use jitter=1e-6"
        raise Error(
            f"the kernel of the support is not positive definite with reg={reg:g}: its least "
            f"eigenvalue is {least:.3g}; {hint}"
        ) from None


@dataclass(frozen=True, eq=False)
class KernelRidge:
    """A kernel regression that predicts.

    Attributes:
        kernel: Of the network.
        support: Inputs of the support, of shape (support, ...).
        coefficients: What each adds to every output, in float64.
        get: Whether the kernel is the `ntk` or the `nngp`.
        mesh: Devices for kernel values; None for one.
    """

    kernel: Kernel
    support: Float[np.ndarray, "support ..."]
    coefficients: Float[np.ndarray, "support outputs"]
    get: str = "ntk"
    mesh: Mesh | None = None

    @classmethod
    def fit(
        cls,
        kernel: Kernel,
        support: Float[np.ndarray, "support ..."],
        labels: Float[np.ndarray, "support outputs"],
        *,
        reg: float = 1e-6,
        jitter: float = 0.0,
        get: str = "ntk",
        mesh: Mesh | None = None,
    ) -> "KernelRidge":
        """Returns the regression of labels on a support set.

        Args:
            kernel: Of the network.
            support: Inputs, preprocessed.
            labels: Vectors, such as `centred` gives.
            reg: See `regularised`.
            jitter: See `regularised`.
            get: Whether the kernel is the `ntk` or the `nngp`.
            mesh: Devices for kernel values, with axes `target` and `support`; None for one.

        Raises:
            Error: The regularised matrix is not positive definite.
        """
        k_ss = np.asarray(kernel(support, get=get, mesh=mesh))
        found = scipy.linalg.cho_solve(factor(k_ss, reg, jitter), np.asarray(labels, np.float64))
        return cls(kernel, np.asarray(support), found, get, mesh)

    def predict(self, x: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n outputs"]:
        """Returns the outputs for inputs, in float64.

        Args:
            x: Inputs, preprocessed as the support was.
        """
        parts = [
            values.astype(np.float64) @ self.coefficients
            for values in blocks(self.kernel, x, self.support, get=self.get, mesh=self.mesh)
        ]
        return np.concatenate(parts)


def blocks(
    kernel: Kernel,
    x: Float[np.ndarray, "n ..."],
    support: Float[np.ndarray, "support ..."],
    *,
    get: str = "ntk",
    mesh: Mesh | None = None,
    rows: int = ROWS,
) -> Iterator[Float[np.ndarray, "rows support"]]:
    """Yields kernel values of inputs with a support, some rows at a time.

    Args:
        kernel: Of the network.
        x: Inputs, in as many blocks as it takes.
        support: The other inputs.
        get: Whether the kernel is the `ntk` or the `nngp`.
        mesh: Devices, with axes `target` and `support`; None for one.
        rows: Inputs of a block.
    """
    held = jnp.asarray(support)
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        # Blocks of one size share one compiled program.
        missing = rows - len(part) if start else 0
        filled = np.concatenate([part, x[:missing]]) if missing else part
        yield np.asarray(kernel(filled, held, get=get, mesh=mesh))[: len(part)]
