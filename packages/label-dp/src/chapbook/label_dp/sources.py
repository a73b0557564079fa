"""Where the priors of a table's records come from: its columns, another file, or its clusters."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from chapbook.core.errors import Error
from chapbook.label_dp.priors import Clusters, check_features
from chapbook.label_dp.stream import Source, fingerprint


class Prior(Protocol):
    """The prior of a table's records."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns that it is made from."""
        ...

    def plan(self) -> dict[str, Any]:
        """Returns what decides the prior, as JSON values."""
        ...

    def rows(
        self, blocks: Iterable[pl.DataFrame], size: int
    ) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
        """Yields every block of the table with the prior of its records."""
        ...


@dataclass(frozen=True)
class ColumnsPrior:
    """Columns of the table hold the probability of each class, in class order.

    Args:
        columns: Their names.
    """

    columns: tuple[str, ...]

    def plan(self) -> dict[str, Any]:
        """Returns what decides the prior, as JSON values."""
        return {"columns": list(self.columns)}

    def rows(
        self, blocks: Iterable[pl.DataFrame], size: int
    ) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
        """Yields every block of the table with the prior of its records."""
        for block in blocks:
            yield block, matrix(block.select(self.columns))


@dataclass(frozen=True, eq=False)
class MatrixPrior:
    """A matrix holds the probability of each class, in class order.

    Args:
        values: Of shape (rows, classes), or (1, classes) for one prior for all records.
    """

    values: np.ndarray
    columns = ()

    def plan(self) -> dict[str, Any]:
        """Returns what decides the prior, as JSON values."""
        return {"matrix": list(self.values.shape)}

    def rows(
        self, blocks: Iterable[pl.DataFrame], size: int
    ) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
        """Yields every block of the table with the prior of its records."""
        start = 0
        for block in blocks:
            if len(self.values) == 1:
                part = np.broadcast_to(self.values, (block.height, self.values.shape[1]))
            else:
                part = self.values[start : start + block.height]
            start += block.height
            if len(part) < block.height:
                raise Error(f"the prior has {len(self.values)} rows, fewer than the table")
            yield block, part
        if start < len(self.values) > 1:
            raise Error(f"the prior has {len(self.values)} rows, the table {start}")


@dataclass(frozen=True)
class FilePrior:
    """Another table holds the probability of each class: a row for each record, or one for all.

    Args:
        path: The file; all its columns are classes, in class order.
    """

    path: Path
    columns = ()

    def plan(self) -> dict[str, Any]:
        """Returns what decides the prior, as JSON values."""
        return {"file": fingerprint(self.path)}

    def rows(
        self, blocks: Iterable[pl.DataFrame], size: int
    ) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
        """Yields every block of the table with the prior of its records."""
        source = Source.file(self.path)
        parts = source.blocks(size)
        first = next(parts, None)
        if first is None:
            raise Error(f"{self.path}: no rows")
        if first.height == 1 and next(parts, None) is None:
            yield from MatrixPrior(matrix(first)).rows(blocks, size)
            return
        seen = 0
        parts = source.blocks(size)
        for block in blocks:
            part = next(parts, None)
            held = 0 if part is None else part.height
            if part is None or held != block.height:
                least = f"at least {seen + held}" if held > block.height else f"{seen + held}"
                raise Error(
                    f"{self.path}: the prior has {least} rows, the table"
                    f" {'' if held > block.height else 'at least '}{seen + block.height}"
                )
            seen += held
            yield block, matrix(part)
        if next(parts, None) is not None:
            raise Error(f"{self.path}: the prior has more rows than the table's {seen}")


@dataclass(frozen=True)
class ClusterPrior:
    """The noisy label histogram of a record's cluster of public features.

    Args:
        columns: The features' names; no features make one cluster of all records.
        clusters: How many clusters.
        epsilon: What the histogram spends, out of the whole budget.
        standardize: Whether every feature gets mean 0 and deviation 1 first.
        smoothing: See `priors.from_counts`.
        seed: Of the k-means on public features.
    """

    columns: tuple[str, ...]
    clusters: int
    epsilon: float
    standardize: bool = True
    smoothing: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.epsilon < np.inf:
            raise Error(f"the prior's epsilon is {self.epsilon}; it must be above 0 and finite")
        if self.clusters < 1:
            raise Error(f"clusters is {self.clusters}; it must be 1 or more")

    def plan(self) -> dict[str, Any]:
        """Returns what decides the prior, as JSON values."""
        return {
            "clusters": self.clusters,
            "features": list(self.columns),
            "epsilon": self.epsilon,
            "standardize": self.standardize,
            "smoothing": self.smoothing,
            "seed": self.seed,
        }

    def rows(
        self, blocks: Iterable[pl.DataFrame], size: int
    ) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
        """Is never asked: the histogram has to be drawn first, see `HistogramPrior`."""
        raise TypeError("a ClusterPrior gives no rows before its histogram is drawn")


@dataclass(frozen=True, eq=False)
class HistogramPrior:
    """The histogram that was drawn for a `ClusterPrior`.

    Args:
        columns: The features' names.
        groups: The clusters.
        prior: The probabilities of each cluster's labels.
    """

    columns: tuple[str, ...]
    groups: Clusters
    prior: np.ndarray

    def plan(self) -> dict[str, Any]:
        """Returns what decides the prior, as JSON values."""
        return {"clusters": len(self.prior)}

    def rows(
        self, blocks: Iterable[pl.DataFrame], size: int
    ) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
        """Yields every block of the table with the prior of its records."""
        start = 0
        for block in blocks:
            yield block, self.prior[self.groups.assign(features(block, self.columns, start))]
            start += block.height


def matrix(frame: pl.DataFrame) -> np.ndarray:
    """Returns columns of numbers as a matrix; nulls become NaN."""
    for series in frame:
        if not series.dtype.is_numeric():
            raise Error(f"prior column {series.name} is {series.dtype}; it must hold numbers")
    kind = pl.Float32 if set(frame.dtypes) == {pl.Float32} else pl.Float64
    return frame.cast(kind).to_numpy()


def features(block: pl.DataFrame, columns: tuple[str, ...], first_row: int) -> np.ndarray:
    """Returns the features of a block as a finite matrix; no columns make one constant feature."""
    if not columns:
        return np.zeros((block.height, 1))
    for name in columns:
        if not (block[name].dtype.is_numeric() or block[name].dtype == pl.Boolean):
            raise Error(f"column {name} is {block[name].dtype}; clustering needs numbers")
    values = block.select(pl.col(columns).cast(pl.Float64)).to_numpy()
    return check_features(values, columns, first_row)
