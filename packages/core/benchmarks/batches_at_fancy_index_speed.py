"""Claim: shuffled batches of an array in memory cost little more than indexing it.

60,000 rows of 784 bytes with a label, in shuffled batches of 256: `chapbook.core.Batches`, grain
in process, torch's DataLoader without workers, and bare NumPy indexing, which is the limit.
Targets: at least 3 times grain, 5 times torch, and half of NumPy.

Needs the packages in `requirements.txt`.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import grain
import numpy as np
import torch

from chapbook.core import Batches, arrays

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report, seconds

CLAIM = "shuffled batches of an array in memory cost little more than indexing it"
BATCH = 256


def ours(x: np.ndarray, y: np.ndarray) -> Iterator:
    """`Batches` over the two arrays, for one epoch."""
    return Batches(arrays(x=x, y=y), BATCH, epochs=1)


def fancy(x: np.ndarray, y: np.ndarray) -> Iterator:
    """What any shuffled batch in memory must do at least."""
    order = np.random.default_rng(0).permutation(len(x))
    for start in range(0, len(x) - BATCH + 1, BATCH):
        rows = order[start : start + BATCH]
        yield {"x": x[rows], "y": y[rows]}


class Rows:
    """Random access to one example, which is what grain and torch ask of a source."""

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> dict:
        return {"x": self.x[row], "y": self.y[row]}


def grain_dataset(x: np.ndarray, y: np.ndarray) -> Iterator:
    """Grain's MapDataset, read in the calling thread."""
    shuffled = grain.MapDataset.source(Rows(x, y)).shuffle(seed=0).batch(BATCH, drop_remainder=True)
    return iter(shuffled.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def grain_threads(x: np.ndarray, y: np.ndarray) -> Iterator:
    """Grain's MapDataset with the threads that it starts by default."""
    shuffled = grain.MapDataset.source(Rows(x, y)).shuffle(seed=0).batch(BATCH, drop_remainder=True)
    return iter(shuffled.to_iter_dataset())


def torch_loader(x: np.ndarray, y: np.ndarray) -> Iterator:
    """Torch's DataLoader over a TensorDataset, without workers."""
    rows = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    return iter(torch.utils.data.DataLoader(rows, BATCH, shuffle=True, drop_last=True))


SIDES: dict[str, Callable[[np.ndarray, np.ndarray], Iterator]] = {
    "chapbook Batches": ours,
    "numpy fancy indexing": fancy,
    "grain, no threads": grain_dataset,
    "grain, default threads": grain_threads,
    "torch DataLoader, 0 workers": torch_loader,
}


def rate(make: Callable[[np.ndarray, np.ndarray], Iterator], x: np.ndarray, y: np.ndarray) -> float:
    """Rows per second of one epoch, making the iterator included."""

    def epoch() -> None:
        batches = sum(1 for _ in make(x, y))
        if batches != len(x) // BATCH:
            raise RuntimeError(f"{batches} batches, expected {len(x) // BATCH}")

    return len(x) // BATCH * BATCH / seconds(epoch)


def main() -> None:
    """Measures every side in turn, and again, and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (options.rows, 784), dtype=np.uint8)
    y = generator.integers(0, 10, options.rows)
    for make in SIDES.values():  # once untimed: first calls import and allocate
        sum(1 for _ in make(x[: 4 * BATCH], y[: 4 * BATCH]))
    timers = {name: partial(rate, make, x, y) for name, make in SIDES.items()}
    rates = medians(interleaved(timers, options.repeats))
    own = rates["chapbook Batches"]
    rows = [
        {"side": name, "rows_per_second": each, "ours_over_it": own / each}
        for name, each in rates.items()
    ]
    distributions = ("chapbook-core", "numpy", "grain", "torch")
    report(__file__, CLAIM, rows, distributions, options=vars(options) | {"batch": BATCH})


if __name__ == "__main__":
    main()
