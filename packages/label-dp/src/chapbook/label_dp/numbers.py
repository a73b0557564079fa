"""Private numbers in a table: randomised response on the bins that a prior makes best."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from chapbook.core.errors import Error
from chapbook.label_dp.bins import Loss, RROnBins, check_range
from chapbook.label_dp.classes import MISSING, UNKNOWN
from chapbook.label_dp.entropy import Entropy
from chapbook.label_dp.labellers import Drawn


@dataclass(frozen=True, eq=False)
class NumberLabeller:
    """Draws numbers by `RROnBins`; the private column is `<label>_private`.

    Without atoms the prior is the noisy histogram of the labels where the request has one, else
    uniform over the range.

    Args:
        low: The smallest possible number, known without looking at the data.
        high: The largest possible number, known without looking at the data.
        loss: The loss whose expectation is minimised.
        num_cells: Equal cells of the range that a histogram counts.
        atoms: Public possible values, of shape (atoms,), with
        weights: their public probabilities.
        clip: Whether a number outside the range is taken for the nearer end, or refused.
        bins: The mechanism, once it has been fitted.
    """

    low: float
    high: float
    loss: Loss = Loss.SQUARED
    num_cells: int = 256
    atoms: np.ndarray | None = None
    weights: np.ndarray | None = None
    clip: bool = False
    bins: RROnBins | None = None
    mechanism = "rr-on-bins"

    def __post_init__(self):
        check_range(self.low, self.high)
        if self.num_cells < 2:
            raise Error(f"a histogram of {self.num_cells} cells says nothing; take 2 or more")
        if (
            self.atoms is not None
            and not ((self.atoms >= self.low) & (self.atoms <= self.high)).all()
        ):
            raise Error(f"the prior has values outside the range {self.low:g} to {self.high:g}")

    @property
    def num_answers(self) -> int:
        """How many answers there are: at most one for each atom before the bins are fitted."""
        if self.bins is not None:
            return len(self.bins.outputs)
        return self.num_cells if self.atoms is None else len(self.atoms)

    def plan(self) -> dict[str, Any]:
        """Returns what decides how numbers are drawn, as JSON values."""
        atoms = None
        if self.atoms is not None and self.weights is not None:
            atoms = [self.atoms.tolist(), self.weights.tolist()]
        return {
            "mechanism": self.mechanism,
            "range": [self.low, self.high],
            "loss": self.loss.value,
            "cells": self.num_cells,
            "atoms": atoms,
            "clip": self.clip,
        }

    def details(self) -> dict[str, Any]:
        """Returns the bins, which are public."""
        bins = self._fitted()
        return {
            "range": [self.low, self.high],
            "loss": self.loss.value,
            "edges": bins.edges.tolist(),
            "answers": bins.outputs.tolist(),
            "expected loss under the prior": bins.expected_loss,
        }

    def schema(self, label: str) -> dict[str, pl.DataType]:
        """Returns the column that takes the place of the private one."""
        return {f"{label}_private": pl.Float64()}

    def encode(self, column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers, and for each 0, `MISSING` or `UNKNOWN`."""
        missing = column.is_null()
        if column.dtype == pl.String:
            column = column.str.strip_chars()
            missing = missing | (column == "").fill_null(value=False)
        elif not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
            return np.zeros(len(column)), np.full(len(column), UNKNOWN, np.int32)
        elif column.dtype.is_float():
            missing = missing | column.is_nan().fill_null(value=False)
        values = column.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
        if self.clip:
            values = np.clip(values, self.low, self.high)
        state = np.where((values >= self.low) & (values <= self.high), 0, UNKNOWN)
        return values, np.where(missing.to_numpy(), MISSING, state)

    def unknown(self) -> str:
        """Says what is wrong with a number that is `UNKNOWN`."""
        return f"the label is no number from {self.low:g} to {self.high:g}"

    def cells(self, labels: np.ndarray) -> np.ndarray:
        """Returns the histogram cell of each number."""
        place = (labels - self.low) / (self.high - self.low) * self.num_cells
        return np.minimum(place.astype(np.int64), self.num_cells - 1)

    def prepared(self, epsilon: float | None, counts: np.ndarray | None) -> "NumberLabeller":
        """Returns what draws at one epsilon: the bins that are best under the prior.

        Args:
            epsilon: The budget of each draw.
            counts: The noisy histogram, of shape (1, cells), if there is one.
        """
        if epsilon is None:
            raise Error("numbers need one epsilon for all records; their bins are fitted to it")
        atoms, weights = self.atoms, self.weights
        if atoms is None or weights is None:
            width = (self.high - self.low) / self.num_cells
            atoms = self.low + (np.arange(self.num_cells) + 0.5) * width
            clamped = np.ones(self.num_cells) if counts is None else np.maximum(counts[0], 0)
            weights = clamped if clamped.any() else np.ones(self.num_cells)
        weights = weights / weights.sum()
        return replace(self, bins=RROnBins.fit(atoms, weights, epsilon, self.loss))

    def check_prior(self, prior: np.ndarray, first_row: int) -> None:
        """Does nothing: there is one prior for all records, and it has been checked."""

    def draw(
        self, labels: np.ndarray, prior: np.ndarray | None, epsilon: np.ndarray, entropy: Entropy
    ) -> Drawn:
        """Returns the answers of a block."""
        return {"label": self._fitted().privatize(labels, entropy=entropy).values}

    def columns(self, label: str, drawn: Drawn, epsilon: np.ndarray) -> list[pl.Series]:
        """Returns the private column."""
        return [pl.Series(f"{label}_private", drawn["label"])]

    def uses(self, drawn: Drawn, epsilon: np.ndarray) -> set[tuple[float, int]]:
        """Returns the epsilon and the number of bins, the same for all blocks."""
        return {(float(epsilon), len(self._fitted().outputs))}

    def verify(self, uses: set[tuple[float, int]]) -> Mapping[str, Any]:
        """Proves the ratio of every answer over every pair of bins, in exact arithmetic."""
        proof = self._fitted().verify()
        if not proof.holds:
            raise RuntimeError("the bins' weights break the ratio that was promised")
        ratio = proof.largest_ratio
        bound = proof.bound
        share = float(ratio / bound) if np.isfinite(float(bound)) else 0.0
        return {
            "method": "exact arithmetic over the integer weights of every answer and bin",
            "cases": len(self._fitted().outputs),
            "largest ratio over e^epsilon": share,
            "holds": True,
        }

    def _fitted(self) -> RROnBins:
        if self.bins is None:
            raise TypeError("the bins are fitted when the run is prepared")
        return self.bins


def public_atoms(
    table: pl.DataFrame, name: str, low: float, high: float, cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the possible values and probabilities of a public prior.

    Args:
        table: Columns `value` and `probability`, or one column of public values to count.
        name: What errors call it.
        low: The smallest possible number.
        high: The largest possible number.
        cells: More distinct values than this are counted in so many equal cells.
    """
    if {"value", "probability"} <= set(table.columns):
        values, weights = (
            table[c].cast(pl.Float64).fill_null(np.nan).to_numpy() for c in ("value", "probability")
        )
    elif table.width == 1 and table.to_series().dtype.is_numeric():
        values = table.to_series().drop_nulls().cast(pl.Float64).to_numpy()
        weights = np.full(len(values), 1 / max(1, len(values)))
    else:
        raise Error(
            f"{name}: a prior on numbers is the columns value and probability, or one column of"
            f" public values; it has {', '.join(table.columns)}"
        )
    if not np.isfinite(values).all() or not (weights >= 0).all() or not weights.sum() > 0:
        raise Error(f"{name}: the prior holds values that are not finite, or no probabilities")
    if not ((values >= low) & (values <= high)).all():
        raise Error(f"{name}: the prior has values outside the range {low:g} to {high:g}")
    atoms, which = np.unique(values, return_inverse=True)
    if len(atoms) <= cells:
        return atoms, np.bincount(which, weights) / weights.sum()
    counts, edges = np.histogram(values, cells, (low, high), weights=weights)
    return (edges[:-1] + edges[1:]) / 2, counts / weights.sum()
