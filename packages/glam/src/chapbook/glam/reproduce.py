"""The claim: merged moments keep the digits that the textbook formula loses."""

import math
from pathlib import Path

import numpy as np

from chapbook.core import cli
from chapbook.core.run import Run
from chapbook.glam import moments, textbook_variance

MEAN = 1e8  # the textbook's squares are then 1e16, where a float's last digit is worth 2


def reproduce(path: str | Path, *, count: int, seed: int, fresh: bool = False) -> None:
    """Compares both ways with the exactly rounded sum, on values of mean 1e8 and variance 1.

    Args:
        path: The run's folder.
        count: How many values.
        seed: Of the values.
        fresh: Whether to empty the run's folder first.

    Raises:
        typer.Exit: With code 3, when the claim does not hold.
    """
    with Run(path, {"count": count, "seed": seed}, fresh=fresh) as run:
        values = MEAN + np.random.default_rng(seed).normal(size=count)
        exact = exact_variance(values)
        ours = abs(moments(values).variance / exact - 1)
        textbook = abs(textbook_variance(values) / exact - 1)
        cli.claims(
            [
                ("relative error, merged moments", None, ours, "", None, 1e-9),
                ("relative error, textbook formula", None, textbook, "", 1e-6, None),
            ],
            run,
        )


def exact_variance(values: np.ndarray) -> float:
    """Returns the variance in two passes, each an exactly rounded sum."""
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values.tolist()) / (len(values) - 1)
