"""Batches of natural examples that a step of distillation is held against."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from chapbook.core.errors import Error


class Targets:
    """A fresh batch per step: as many of each class as of any other, none twice in a step.

    Batch `s` depends on the seed and `s` alone, so that a run that was interrupted goes on with the
    batch it would have seen.

    Args:
        x: Inputs of the training part.
        y: Their labels, as vectors.
        size: Of a batch; all examples, in their order, if it is not less than their number.
        classes: Of every example; None draws without regard to classes.
        seed: Of the draws.
        variances: What each input alone contributes to a kernel, if it is known; batches have it
            too, as `variances0`, `variances1`, ...

    Raises:
        Error: A batch would be smaller than the number of classes.
    """

    def __init__(
        self,
        x: Shaped[np.ndarray, "n ..."],
        y: Float[np.ndarray, "n outputs"],
        size: int,
        *,
        classes: Int[np.ndarray, " n"] | None = None,
        seed: int = 0,
        variances: Sequence[Float[np.ndarray, "n ..."]] = (),
    ):
        self.variances = variances
        self.x, self.y, self.size, self.seed, self.step = x, y, min(size, len(x)), seed, 0
        groups = [np.arange(len(x))] if classes is None else [
            np.flatnonzero(classes == each) for each in np.unique(classes)
        ]  # fmt: skip
        if self.size < len(groups):
            raise Error(f"a batch of {self.size} targets cannot hold {len(groups)} classes")
        self.groups = groups

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rows = self.rows(self.step)
        self.step += 1
        kept = {f"variances{place}": each[rows] for place, each in enumerate(self.variances)}
        return {"x": self.x[rows], "y": self.y[rows], **kept}

    def rows(self, step: int) -> Int[np.ndarray, " batch"]:
        """Returns the examples of a step."""
        if self.size == len(self.x):
            return np.arange(len(self.x))
        draw = np.random.default_rng([self.seed, step])
        share, extra = divmod(self.size, len(self.groups))
        # Which classes have one more changes from step to step.
        more = set(draw.permutation(len(self.groups))[:extra].tolist())
        taken = [
            draw.permutation(group)[: share + (place in more)]
            for place, group in enumerate(self.groups)
        ]
        chosen = np.concatenate(taken)
        if len(chosen) < self.size:  # a class has fewer examples than its share
            left = np.setdiff1d(np.arange(len(self.x)), chosen)
            chosen = np.concatenate([chosen, draw.permutation(left)[: self.size - len(chosen)]])
        return np.sort(chosen)

    def get_state(self) -> dict[str, Any]:
        """Returns the position, for a checkpoint."""
        return {"step": self.step, "seed": self.seed, "size": self.size, "examples": len(self.x)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position.

        Raises:
            Error: It belongs to other data or another size of batch.
        """
        for name, value in self.get_state().items():
            if name != "step" and state.get(name) != value:
                raise Error(f"the run was made with {name}={state.get(name)}, not {value}")
        self.step = state["step"]
