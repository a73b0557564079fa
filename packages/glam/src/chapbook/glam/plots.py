"""Pictures of routing, each beside a csv of the numbers that it shows.

Matplotlib, of the extra `reproduce`, is imported only when a picture is drawn, without a display.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from chapbook.core import cli


def routing(path: str | Path, table: pl.DataFrame, experts: int) -> None:
    """Draws, for each layer, which share of each kind of token goes to which expert.

    Args:
        path: Of the picture.
        table: As `routes` returns it.
        experts: How many there are.
    """
    first = table.filter(pl.col("rank") == 0)
    counts = first.group_by("layer", "kind", "expert").len("n").with_columns(
        (pl.col("n") / pl.col("n").sum().over("layer", "kind")).alias("share")
    ).sort("layer", "kind", "expert")  # fmt: skip
    kinds = counts["kind"].unique().sort().to_list()
    layers = counts["layer"].unique().sort().to_list()

    def paint(axes: Any) -> None:
        rows = [(layer, kind) for layer in layers for kind in kinds]
        grid = np.zeros((len(rows), experts))
        for layer, name, expert, share in counts.select("layer", "kind", "expert", "share").rows():
            grid[rows.index((layer, name)), expert] = share
        shown = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
        axes.figure.colorbar(shown, label="share of the kind's first choices")
        axes.set_yticks(range(len(rows)), [f"{layer} {name}" for layer, name in rows])
        axes.set(xlabel="expert", ylabel="layer and kind of token", xticks=range(experts))

    cli.plot(Path(path), paint, counts)
