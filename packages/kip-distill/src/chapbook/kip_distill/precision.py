"""The precision of kernel values."""

from contextlib import AbstractContextManager, nullcontext

import jax
import numpy as np

from chapbook.core.errors import Error


def computing_in(precision: str | np.dtype) -> AbstractContextManager:
    """Returns a context in which JAX can compute in a precision, whatever `jax_enable_x64` says.

    Args:
        precision: `float32` or `float64`.

    Raises:
        Error: It is another one.
    """
    if precision not in ("float32", "float64"):
        raise Error(f'precision "{precision}" is neither float32 nor float64')
    return jax.enable_x64(True) if precision == "float64" else nullcontext()
