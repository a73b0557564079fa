r"""Label Solve: the labels of fixed images that explain a data set best, in closed form.

With $A = K_{ts} (K_{ss} + \lambda I)^{-1}$, whose rows are targets, these are the labels of least
norm among those that minimise $\|A Y - Y_t\|^2$. Only `A^T A` and `A^T Y_t` are kept, so that the
targets may be any number.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jax.sharding import Mesh
from jaxtyping import Float

from chapbook.core.errors import Error
from chapbook.kip_distill.kernels import Kernel
from chapbook.kip_distill.regression import ROWS, blocks, factor


class Solved(NamedTuple):
    """What `label_solve` finds.

    Attributes:
        labels: Of the support, in float64.
        rank: Directions among the labels that the targets tell apart.
    """

    labels: Float[np.ndarray, "support outputs"]
    rank: int


def label_solve(
    kernel: Kernel,
    support: Float[np.ndarray, "support ..."],
    x: Float[np.ndarray, "targets ..."],
    y: Float[np.ndarray, "targets outputs"],
    *,
    reg: float = 1e-6,
    jitter: float = 0.0,
    rcond: float = 1e-10,
    get: str = "ntk",
    mesh: Mesh | None = None,
    rows: int = ROWS,
) -> Solved:
    """Returns the labels with which a support set predicts targets best.

    Args:
        kernel: Of the network.
        support: Inputs, which stay as they are.
        x: Target inputs, of any number; they pass by once.
        y: Their labels.
        reg: See `regularised`.
        jitter: See `regularised`.
        rcond: Directions whose eigenvalue of `A^T A` is below this share of the greatest one are
            left out.
        get: Whether the kernel is the `ntk` or the `nngp`.
        mesh: Devices, with axes `target` and `support`; None for one.
        rows: Targets whose kernel values are held at once.

    Raises:
        Error: There are no targets, or the support's kernel is not positive definite.

    Reference:
        Nguyen, Chen and Lee, "Dataset Meta-Learning from Kernel Ridge-Regression", 2021.
    """
    if len(x) != len(y) or not len(x):
        raise Error(f"label_solve: {len(x)} targets and {len(y)} labels")
    decomposed = factor(np.asarray(kernel(support, get=get, mesh=mesh)), reg, jitter)
    size = len(support)
    gram, moment = np.zeros((size, size)), np.zeros((size, y.shape[1]))
    start = 0
    for values in blocks(kernel, x, support, get=get, mesh=mesh, rows=rows):
        weights = scipy.linalg.cho_solve(decomposed, values.astype(np.float64).T).T
        gram += weights.T @ weights
        moment += weights.T @ np.asarray(y[start : start + len(values)], np.float64)
        start += len(values)
    eigenvalues, vectors = np.linalg.eigh(gram)
    kept = eigenvalues > rcond * max(eigenvalues[-1], 0)
    vectors = vectors[:, kept]
    labels = vectors @ ((vectors.T @ moment) / eigenvalues[kept, None])
    return Solved(labels, int(kept.sum()))
