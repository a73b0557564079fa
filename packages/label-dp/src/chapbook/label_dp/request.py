"""What is to be done with a table: its private column, its budget and its public columns."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from chapbook.core.errors import Error
from chapbook.label_dp.exact import check_epsilon
from chapbook.label_dp.labellers import Labeller
from chapbook.label_dp.sources import ClusterPrior, Prior


@dataclass(frozen=True, kw_only=True)
class Request:
    """How the labels of a table are to be made private.

    Attributes:
        label: The private column.
        labeller: What draws its answers.
        epsilon: The budget of a record, or of all records of a group together.
        epsilon_column: A public column with the budget of each record (or group), instead; each is
            rounded down to 12 binary digits.
        prior: Where the prior comes from, if there is one.
        group_column: A public column; all records of one value share the budget.
        id_columns: Public columns that name a record; all public columns together if empty.
        missing: Whether a missing label is refused, or its record dropped (which shows that it was
            missing).
        seed: For repeatable noise, which is not private.
        warnings: What the certificate should say besides.

    Raises:
        Error: Epsilon is missing, negative or not a number, or the label is used as public.
    """

    label: str
    labeller: Labeller
    epsilon: float | None = None
    epsilon_column: str | None = None
    prior: Prior | None = None
    group_column: str | None = None
    id_columns: tuple[str, ...] = ()
    missing: Literal["refuse", "drop"] = "refuse"
    seed: int | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self):
        if (self.epsilon is None) == (self.epsilon_column is None):
            raise Error("give either an epsilon or a column of epsilons")
        if self.epsilon is not None:
            check_epsilon(self.epsilon)
        if self.label in self.public_columns():
            raise Error(
                f"column {self.label} is the label itself; a prior, feature, id, group or epsilon"
                " that is made from it would give it away"
            )

    @property
    def histogram(self) -> ClusterPrior | None:
        """The prior, if it is one that looks at labels."""
        return self.prior if isinstance(self.prior, ClusterPrior) else None

    def public_columns(self) -> tuple[str, ...]:
        """Returns every column that is needed besides the label."""
        prior = () if self.prior is None else self.prior.columns
        named = [*self.id_columns, *prior, self.group_column, self.epsilon_column]
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def plan(self) -> dict[str, Any]:
        """Returns everything that decides what is drawn, as JSON values."""
        return {
            "label": self.label,
            **self.labeller.plan(),
            "epsilon": None if self.epsilon is None else repr(float(self.epsilon)),
            "epsilon column": self.epsilon_column,
            "prior": None if self.prior is None else self.prior.plan(),
            "group column": self.group_column,
            "id columns": list(self.id_columns),
            "missing": self.missing,
            "seed": self.seed,
        }


def share(epsilon: float, parts: int, spent: float = 0.0) -> float:
    """Returns the largest float x with `parts (x + spent) <= epsilon`, exactly.

    Args:
        epsilon: The budget of a group.
        parts: The number of records that share it.
        spent: What each of them has spent of it already.

    Raises:
        Error: Nothing is left.
    """
    if math.isinf(epsilon):
        return epsilon
    exact = Fraction(epsilon) / parts - Fraction(spent)
    if exact < 0:
        raise Error(
            f"the prior alone spends {spent * parts:g} of epsilon {epsilon:g}; nothing is left to"
            " draw labels with"
        )
    value = float(exact)
    return value if Fraction(value) <= exact else math.nextafter(value, 0)
