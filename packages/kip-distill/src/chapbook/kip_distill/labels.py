"""Labels as vectors that a regression can aim at."""

import numpy as np
from jaxtyping import Float, Int

from chapbook.core.errors import Error


def centred(labels: Int[np.ndarray, " n"], classes: int) -> Float[np.ndarray, "n classes"]:
    """Returns one-hot vectors less their mean: `1 - 1 / classes`, elsewhere `-1 / classes`.

    Args:
        labels: Classes, counted from 0.
        classes: How many there are.

    Raises:
        Error: A label is not between 0 and `classes - 1`.
    """
    labels = np.asarray(labels)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise Error(
            f"label {labels[wrong[0]]} of example {wrong[0]} is not one of the {classes} classes "
            f"0 to {classes - 1}"
        )
    return np.eye(classes, dtype=np.float32)[labels] - np.float32(1 / classes)
