"""Claim: a checkpoint costs what Orbax, called directly, costs, and most of it is hidden.

A state of 500 MB on 8 simulated devices is saved by `chapbook.core.Checkpoints` and by Orbax's own
manager, and restored onto another mesh by both. Targets: the loop is blocked at most 1.05 times as
long as by Orbax; at least 80 % of the write is hidden; restoring takes at most 1.05 times as long.

Needs `chapbook-core[jax]` only.
"""

import argparse
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from chapbook.core import Checkpoints, mesh, simulate

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report

CLAIM = "a checkpoint costs what Orbax, called directly, costs, and most of it is hidden"
ARRAYS = 20


def state(megabytes: int, grid: jax.sharding.Mesh, spec: PartitionSpec) -> dict[str, Any]:
    """Random arrays, which do not compress, split over a mesh."""
    columns = megabytes * 1_000_000 // 4 // ARRAYS // 1000
    generator = np.random.default_rng(0)
    sharding = NamedSharding(grid, spec)
    return {
        f"w{i}": jax.device_put(generator.random((1000, columns // 8 * 8), np.float32), sharding)
        for i in range(ARRAYS)
    }


def like(tree: dict[str, Any], grid: jax.sharding.Mesh, spec: PartitionSpec) -> dict[str, Any]:
    """The shapes of a state, on another mesh."""
    sharding = NamedSharding(grid, spec)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def ours(folder: Path, tree: Any, target: Any) -> tuple[float, float, float]:
    """Seconds that `save` blocks, until the step is on disk, and of `restore`."""
    with Checkpoints(folder) as checkpoints:
        start = time.perf_counter()
        checkpoints.save(1, tree, extra={"position": 1})
        blocked = time.perf_counter() - start
        checkpoints.wait()
        written = time.perf_counter() - start
    with Checkpoints(folder) as checkpoints:
        start = time.perf_counter()
        restored, _ = checkpoints.restore(target)
        jax.block_until_ready(restored)
        return blocked, written, time.perf_counter() - start


def direct(folder: Path, tree: Any, target: Any) -> tuple[float, float, float]:
    """The same through Orbax's own manager."""
    names = ("state", "extra")
    with ocp.CheckpointManager(folder, item_names=names) as manager:
        start = time.perf_counter()
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(tree), extra=ocp.args.JsonSave({"position": 1})
        )
        manager.save(1, args=items)
        blocked = time.perf_counter() - start
        manager.wait_until_finished()
        written = time.perf_counter() - start
    with ocp.CheckpointManager(folder, item_names=names) as manager:
        start = time.perf_counter()
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), extra=ocp.args.JsonRestore()
        )
        jax.block_until_ready(manager.restore(1, args=items)["state"])
        return blocked, written, time.perf_counter() - start


def main() -> None:
    """Measures both sides in turn, and again, and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    simulate(8)
    tree = state(options.megabytes, mesh("data=8"), PartitionSpec(None, "data"))
    target = like(tree, mesh("data=2,model=4"), PartitionSpec("data", "model"))
    sides = {"chapbook Checkpoints": ours, "Orbax directly": direct}
    place, count = Path(tempfile.mkdtemp()), itertools.count()

    def measure(side: Callable) -> tuple[float, float, float]:
        folder = place / str(next(count))
        figures = side(folder, tree, target)
        shutil.rmtree(folder)
        return figures

    try:
        timers = {name: partial(measure, side) for name, side in sides.items()}
        # The disk may still be at work for who went before, so half of the repeats turn the order.
        half = -(-options.repeats // 2)
        turned = interleaved(dict(reversed(timers.items())), half, warm=1)
        seen = {n: f + turned[n] for n, f in interleaved(timers, half).items()}
    finally:
        shutil.rmtree(place)
    rows: list[dict[str, Any]] = []
    for name, figures in seen.items():
        blocked, written, restored = map(statistics.median, zip(*figures, strict=True))
        row = {"side": name, "save_blocks_s": blocked, "save_whole_s": written}
        rows.append(row | {"hidden": 1 - blocked / written, "restore_s": restored})
    for figure in ("save_blocks_s", "restore_s"):
        ratio = rows[0][figure] / rows[1][figure]
        rows.append({"figure": figure, "ours_over_orbax": ratio})
    distributions = ("chapbook-core", "jax", "orbax-checkpoint", "tensorstore", "numpy")
    report(__file__, CLAIM, rows, distributions, options=vars(options))


if __name__ == "__main__":
    main()
