"""What is done to inputs before a kernel sees them, with numbers of the training part alone."""

from typing import Any, TypeVar

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from chapbook.core.errors import Error

# Of shape (n, height, width, channels) or (n, features), and of the library of what came in.
Values = TypeVar("Values", Array, np.ndarray)


class Preprocess(eqx.Module):
    """Standardised channels and, if asked for, regularised ZCA whitening.

    Attributes:
        mean: Of every channel, or of every feature of a table.
        std: Of the same.
        whiten: ZCA matrix `W`; None without whitening.
        restore: Its inverse, for viewing.
    """

    mean: Float[Array | np.ndarray, " channels"]
    std: Float[Array | np.ndarray, " channels"]
    whiten: Float[Array | np.ndarray, "features features"] | None = None
    restore: Float[Array | np.ndarray, "features features"] | None = None

    @classmethod
    def fit(
        cls, x: Float[np.ndarray, "n ... channels"], *, zca: float | None = None,
        absolute: bool = False,
    ) -> "Preprocess":  # fmt: skip
        """Returns the transform of a training part.

        Args:
            x: Images of shape (n, height, width, channels), or features of shape (n, features).
            zca: Regulariser of the whitening; None leaves it out.
            absolute: Whether `zca` is added as it is, instead of that share of the mean variance.

        Raises:
            Error: A value is not finite.
        """
        wrong = np.flatnonzero(~np.isfinite(x).reshape(-1))
        if len(wrong):
            place = tuple(int(each) for each in np.unravel_index(wrong[0], x.shape))
            raise Error(f"{len(wrong)} values are not finite; the first is at index {place}")
        axes = tuple(range(x.ndim - 1))
        mean, std = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
        std = np.where(std > 0, std, 1.0)  # a constant channel becomes 0
        made = cls(mean.astype(np.float32), std.astype(np.float32))
        if zca is None:
            return made
        rows = _unit(np.asarray(made(x), np.float64).reshape(len(x), -1))
        count, size = rows.shape
        covariance = rows.T @ rows / count
        amount = zca if absolute else zca * covariance.trace() / size
        values, vectors = np.linalg.eigh(covariance + amount * np.eye(size))
        values, vectors = values[::-1], vectors[:, ::-1]
        # Fewer images than pixels tell nothing of the directions that are left.
        values = np.where(np.arange(size) < count, values, 1.0)
        whiten = (vectors / np.sqrt(values)) @ vectors.T
        restore = (vectors * np.sqrt(values)) @ vectors.T
        return cls(made.mean, made.std, whiten.astype(np.float32), restore.astype(np.float32))

    def __call__(self, x: Values) -> Values:
        """Returns inputs as a kernel gets them.

        Args:
            x: As read: pixels on the scale of the training part.
        """
        standard = (x - self.mean) / self.std
        if self.whiten is None:
            return standard
        return (_unit(standard.reshape(len(x), -1)) @ self.whiten).reshape(x.shape)

    def view(self, x: Values) -> Values:
        """Returns processed inputs as pixels again; with whitening, up to each image's own scale.

        Args:
            x: As a kernel gets them.
        """
        plain = x
        if self.restore is not None:
            plain = (x.reshape(len(x), -1) @ self.restore).reshape(x.shape)
        return plain * self.std + self.mean


def _unit(x: Any) -> Any:
    """Returns rows less their own mean, of length 1."""
    rows = x - x.mean(1, keepdims=True)
    length = (rows * rows).sum(1, keepdims=True) ** 0.5
    return rows / (length + (length == 0))
