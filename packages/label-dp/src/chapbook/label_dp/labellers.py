"""What a table's private column may hold and how it is drawn; numbers are in `numbers`."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import polars as pl

from chapbook.core.errors import Error
from chapbook.label_dp.classes import Classes
from chapbook.label_dp.entropy import Entropy
from chapbook.label_dp.exact import exp_lower_bound, response_weights
from chapbook.label_dp.randomized_response import RandomizedResponse, RRWithPrior
from chapbook.label_dp.support import checked_rows

Drawn = dict[str, np.ndarray]


class Labeller(Protocol):
    """Draws the private answers of one column."""

    @property
    def mechanism(self) -> str:
        """The mechanism's name."""
        ...

    @property
    def num_answers(self) -> int:
        """How many answers there are."""
        ...

    @property
    def num_cells(self) -> int:
        """How many cells a histogram of the labels has."""
        ...

    def cells(self, labels: np.ndarray) -> np.ndarray:
        """Returns the histogram cell of each label."""
        ...

    def prepared(self, epsilon: float | None, counts: np.ndarray | None) -> "Labeller":
        """Returns what draws at one epsilon, given the noisy histogram if there is one."""
        ...

    def plan(self) -> dict[str, Any]:
        """Returns what decides how labels are drawn, as JSON values."""
        ...

    def check_prior(self, prior: np.ndarray, first_row: int) -> None:
        """Raises an error that names the first row of a block's prior that is at fault."""
        ...

    def details(self) -> dict[str, Any]:
        """Returns what the certificate should say about the answers."""
        ...

    def schema(self, label: str) -> dict[str, pl.DataType]:
        """Returns the columns that take the place of the private one."""
        ...

    def encode(self, column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """Returns the labels as numbers, and for each 0, `MISSING` or `UNKNOWN`."""
        ...

    def unknown(self) -> str:
        """Says what is wrong with a label that is `UNKNOWN`."""
        ...

    def draw(
        self, labels: np.ndarray, prior: np.ndarray | None, epsilon: np.ndarray, entropy: Entropy
    ) -> Drawn:
        """Returns what is drawn for a block of labels, in as few bytes as it takes."""
        ...

    def columns(self, label: str, drawn: Drawn, epsilon: np.ndarray) -> list[pl.Series]:
        """Returns the columns of `schema` for what was drawn."""
        ...

    def uses(self, drawn: Drawn, epsilon: np.ndarray) -> set[tuple[float, int]]:
        """Returns the pairs of epsilon and support size that a block was drawn with."""
        ...

    def verify(self, uses: set[tuple[float, int]]) -> Mapping[str, Any]:
        """Checks the ratio of everything that was used, in exact arithmetic."""
        ...


@dataclass(frozen=True)
class ClassLabeller:
    """Draws classes: RRWithPrior where there is a prior, plain randomised response elsewhere.

    The private column `<label>_private` comes with `<label>_k`, the number of classes that the
    record could answer with, and `<label>_keep`, the probability that a true label among them
    stayed. Both follow from the prior and epsilon alone.

    Args:
        classes: The declared classes.
        with_prior: Whether records have a prior.
        normalize_prior: Whether rows of the prior are divided by their sum instead of refused.
    """

    classes: Classes
    with_prior: bool
    normalize_prior: bool = False

    @property
    def mechanism(self) -> str:
        """The mechanism's name."""
        return "rr-with-prior" if self.with_prior else "randomized-response"

    @property
    def num_answers(self) -> int:
        """K, with the class of missing labels if that is one."""
        return len(self.classes)

    def plan(self) -> dict[str, Any]:
        """Returns what decides how labels are drawn, as JSON values."""
        return {
            "mechanism": self.mechanism,
            "classes": list(self.classes.names),
            "missing is a class": self.classes.with_missing,
            "normalize prior": self.normalize_prior,
        }

    def schema(self, label: str) -> dict[str, pl.DataType]:
        """Returns the columns that take the place of the private one."""
        return {
            f"{label}_private": self.classes.dtype,
            f"{label}_k": pl.Int32(),
            f"{label}_keep": pl.Float64(),
        }

    def encode(self, column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """Returns the class index of each label, and for each 0, `MISSING` or `UNKNOWN`."""
        codes = self.classes.encode(column)
        return codes, np.minimum(codes, 0)

    def prepared(self, epsilon: float | None, counts: np.ndarray | None) -> "ClassLabeller":
        """Returns itself: the prior comes with the blocks."""
        return self

    @property
    def num_cells(self) -> int:
        """The cells of a histogram of labels: the classes."""
        return self.num_answers

    def cells(self, labels: np.ndarray) -> np.ndarray:
        """Returns the histogram cell of each label."""
        return labels

    def unknown(self) -> str:
        """Says what is wrong with a label that is `UNKNOWN`."""
        return f"the label is none of the {len(self.classes.names)} declared classes"

    def draw(
        self, labels: np.ndarray, prior: np.ndarray | None, epsilon: np.ndarray, entropy: Entropy
    ) -> Drawn:
        """Returns the answers and k of a block, in the smallest integers that hold K."""
        budget = epsilon if epsilon.ndim else epsilon.item()
        if prior is None:
            private = RandomizedResponse(self.num_answers, budget).privatize(
                labels, entropy=entropy
            )
        else:
            if prior.shape[1] != self.num_answers:
                extra = ", missing among them" if self.classes.with_missing else ""
                raise Error(
                    f"the prior has {prior.shape[1]} columns, but there are {self.num_answers}"
                    f" classes{extra}; they must be one for each class, in order"
                )
            mechanism = RRWithPrior(self.num_answers, budget, normalize=self.normalize_prior)
            private = mechanism.privatize(labels, prior, entropy=entropy)
        small = np.min_scalar_type(self.num_answers)
        return {"label": private.labels.astype(small), "k": private.k.astype(small)}

    def check_prior(self, prior: np.ndarray, first_row: int) -> None:
        """Raises an error that names the first row of a block's prior that is no distribution."""
        try:
            checked_rows(prior, first_row, normalize=self.normalize_prior)
        except Error as problem:
            hint = "--normalize-prior divides every row by its sum"
            raise Error(problem.message, None if self.normalize_prior else hint) from None

    def details(self) -> dict[str, Any]:
        """Returns the classes."""
        missing = (
            {"missing labels": "a class, answered as null"} if self.classes.with_missing else {}
        )
        return {"classes": list(self.classes.names), **missing}

    def columns(self, label: str, drawn: Drawn, epsilon: np.ndarray) -> list[pl.Series]:
        """Returns the private column, k, and the probability that the label stayed."""
        k = drawn["k"].astype(np.int32)
        keep = 1 / (1 + (k - 1) * np.exp(-epsilon))
        return [
            self.classes.decode(drawn["label"], f"{label}_private"),
            pl.Series(f"{label}_k", k),
            pl.Series(f"{label}_keep", keep),
        ]

    def uses(self, drawn: Drawn, epsilon: np.ndarray) -> set[tuple[float, int]]:
        """Returns the pairs of epsilon and k that a block was drawn with."""
        if epsilon.ndim == 0:
            return {(float(epsilon), int(k)) for k in np.unique(drawn["k"])}
        pairs = np.unique(np.stack([epsilon, drawn["k"]], axis=1), axis=0)
        return {(float(e), int(k)) for e, k in pairs}

    def verify(self, uses: set[tuple[float, int]]) -> Mapping[str, Any]:
        """Proves the ratio of every (epsilon, k) that was drawn with, see `prove_weights`."""
        return prove_weights(uses)


def prove_weights(uses: Iterable[tuple[float, int]]) -> dict[str, Any]:
    """Proves `max Pr[answer] <= e^eps min Pr[answer]` from the integer weights, exactly.

    Whatever the prior, a record that answers among k classes has three weights: the true label's,
    another's, and everyone's when the true label is not among the k.

    Args:
        uses: Pairs of epsilon and k.

    Returns:
        What was checked, for a certificate.

    Raises:
        RuntimeError: The weights break the ratio, which would be a bug.
    """
    worst, holds, cases = 0.0, True, 0
    for epsilon, k in uses:
        total, keep, other, uniform = response_weights(epsilon, k)
        cases += 1
        holds &= keep + (k - 1) * other == total == k * uniform
        low = min(other if k > 1 else keep, uniform)
        if epsilon < math.inf:
            bound = exp_lower_bound(epsilon)
            ratio = Fraction(max(keep, uniform), low) if low else bound + 1
            holds &= ratio <= bound
            worst = max(worst, float(ratio / bound))
    if not holds:
        raise RuntimeError("a mechanism's integer weights break the ratio that was promised")
    return {
        "method": "exact arithmetic over the integer weights of every (epsilon, k) drawn",
        "cases": cases,
        "largest ratio over e^epsilon": worst,
        "holds": True,
    }
