"""What goes into a network and what it tells: the arrays of windows, and how they are laid out.

A window shows k past steps, the last of which is its origin, and H future ones. Each variable is
real or categorical; within a group the real ones come first.
"""

import dataclasses
from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class Inputs(NamedTuple):
    """The values of one group of variables.

    Attributes:
        real: Scaled values; 0 where missing.
        categorical: Indices, of which 0 is the unknown category; any index where missing.
        missing: Which values are not there: of the real variables, then of the categorical ones.
    """

    real: Float[Array, "*shape reals"]
    categorical: Int[Array, "*shape categoricals"]
    missing: Bool[Array, "*shape variables"]


class Windows(NamedTuple):
    """A batch of windows.

    Attributes:
        static: What does not change in time; shape (batch, variables).
        past: The targets, then what is observed up to the origin, then what is known ahead, among
            the real variables; what is observed, then what is known, among the categorical ones;
            shape (batch, k, variables).
        future: What is known ahead; shape (batch, H, variables).
        mask: Which of the k + H positions can be attended to: the past ones that have a row, and
            all future ones.
    """

    static: Inputs
    past: Inputs
    future: Inputs
    mask: Bool[Array, "batch positions"]


@dataclasses.dataclass(frozen=True)
class Group:
    """The variables of a group.

    Args:
        real: Names of the real variables.
        categorical: Names of the categorical variables.
        sizes: How many indices each categorical variable has, the unknown one among them.
    """

    real: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.real) + len(self.categorical)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of `Inputs.missing`."""
        return self.real + self.categorical


@dataclasses.dataclass(frozen=True)
class Layout:
    """The variables of a network.

    Args:
        static: What does not change in time; may be empty.
        observed: What is seen up to the origin. Its first real variables are the targets.
        known: What is known ahead; at least one.
        targets: How many targets there are.
    """

    static: Group
    observed: Group
    known: Group
    targets: int = 1

    @property
    def past(self) -> Group:
        """The variables of the past half: those observed, and those known."""
        seen, known = self.observed, self.known
        return Group(
            seen.real + known.real, seen.categorical + known.categorical, seen.sizes + known.sizes
        )


class Interpretation(NamedTuple):
    """What a network tells of its forecasts.

    Attributes:
        static: Selection weights of the static variables; no columns if there are none.
        past: Selection weights of the past variables at each past step.
        future: Selection weights of the known variables at each future step.
        attention: Weights of the k + H positions for each future step, averaged over the heads.
        gates: Mean opening of each gated linear unit, 0 (shut) to 1, by the name of its place.
    """

    static: Float[Array, "batch statics"]
    past: Float[Array, "batch k pasts"]
    future: Float[Array, "batch horizon knowns"]
    attention: Float[Array, "batch horizon positions"]
    gates: dict[str, Float[Array, " batch"]]
