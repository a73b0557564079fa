"""Pictures of routing, each beside a csv of the numbers that it shows.

Matplotlib, of the extra `reproduce`, is imported only when a picture is drawn, without a display.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from chapbook.core import cli
from chapbook.core.errors import Error
from chapbook.vmoe.routing_analysis import class_weights, loads, seriate

MOST_LABELS = 60  # classes whose names fit below a heat map
COLOURS = 20  # of the map tab20; experts beyond that share them


def heat_maps(folder: str | Path, table: pl.DataFrame, *, experts: int | None = None) -> list[Path]:
    """Draws the mean routing weight of each expert for each class, one picture for each layer.

    Args:
        folder: Where `heat_map_1.png` and so on go, by the layer's number.
        table: Routing decisions.
        experts: How many there are, if the table may lack the last of them.

    Returns:
        The pictures.
    """
    return [
        heat_map(Path(folder) / f"heat_map_{layer}.png", table, layer, experts=experts)
        for layer in table["layer"].unique().sort()
    ]


def heat_map(
    path: str | Path, table: pl.DataFrame, layer: int, *, experts: int | None = None
) -> Path:
    """Draws one layer's mean routing weights, experts and classes in the order of `seriate`.

    Args:
        path: The picture.
        table: Routing decisions.
        layer: Which layer's.
        experts: How many there are, if the table may lack the last of them.
    """
    found = class_weights(table, layer, experts=experts)
    rows, columns = seriate(found.weights)
    shown = found.weights[rows][:, columns]
    classes = [found.classes[each] for each in columns]
    numbers = pl.DataFrame({
        "expert": np.repeat(rows, len(columns)),
        "class": classes * len(rows),
        "weight": shown.ravel(),
    })  # fmt: skip

    def draw(axes: Any) -> None:
        axes.figure.set_size_inches(max(6, min(0.16 * len(columns) + 2, 20)), 0.2 * len(rows) + 3)
        drawn = axes.imshow(shown, aspect="auto", cmap="viridis", interpolation="nearest")
        axes.figure.colorbar(drawn, label="mean routing weight (share of 1)")
        axes.set_yticks(range(len(rows)), [str(each) for each in rows], fontsize="small")
        if len(columns) <= MOST_LABELS:
            axes.set_xticks(range(len(columns)), [str(each) for each in classes], rotation=90,
                            fontsize="small")  # fmt: skip
        axes.set(xlabel="class of the image", ylabel="expert", title=f"Layer {layer}")

    cli.plot(path, draw, numbers)
    return Path(path)


def expert_patches(path: str | Path, images: Mapping[Any, np.ndarray], table: pl.DataFrame) -> Path:
    """Draws images with each patch in the colour of its first expert: a row each, layers beside.

    Args:
        path: The picture.
        images: RGB pixels of 8 bits by their `image` in the table.
        table: Routing decisions.

    Raises:
        Error: There is no image, or one of them is not in the table.
    """
    layers = table["layer"].unique().sort().to_list()
    first = _patches(table, images).filter(choice=table["choice"].min())

    def draw(axes: Any) -> None:
        titles = [f"layer {layer}" for layer in layers]
        for panel, image, layer in _grid(axes, images, layers, titles):
            part = first.filter(image=image, layer=layer).with_columns(pl.col("expert") % COLOURS)
            _show(panel, images[image])
            panel.imshow(
                _on_grid(part, "expert", np.nan), cmap="tab20", vmin=0, vmax=COLOURS - 1, alpha=0.6,
                extent=_extent(images[image]), interpolation="nearest",
            )  # fmt: skip

    cli.plot(path, draw, first.select("image", "layer", "row", "col", "expert"))
    return Path(path)


def kept_patches(
    path: str | Path,
    images: Mapping[Any, np.ndarray],
    tables: Mapping[float, pl.DataFrame],
    layer: int,
) -> Path:
    """Draws which patches an expert processed: a row for each image, a column for each capacity.

    Patches of which every choice was dropped are grey.

    Args:
        path: The picture.
        images: RGB pixels of 8 bits by their `image` in the tables.
        tables: Routing decisions by capacity factor C.
        layer: Which layer's.

    Raises:
        Error: There is no image or table, or an image is not in a table.
    """
    if not tables:
        raise Error("there are no routing tables to draw")
    parts = []
    for capacity, table in tables.items():
        part = _patches(table.filter(pl.col("layer") == layer), images)
        kept = part.group_by("image", "row", "col", maintain_order=True).agg(pl.col("kept").any())
        parts.append(kept.select(pl.lit(float(capacity)).alias("capacity"), pl.all()))
    numbers = pl.concat(parts)

    def draw(axes: Any) -> None:
        titles = [f"C = {capacity:g}" for capacity in tables]
        for panel, image, capacity in _grid(axes, images, list(tables), titles):
            part = numbers.filter(image=image, capacity=float(capacity))
            _show(panel, images[image])
            dropped = np.ones((*_on_grid(part, "kept", 0).shape, 4)) * 0.5
            dropped[..., 3] = np.where(_on_grid(part, "kept", 0) > 0, 0, 0.92)
            panel.imshow(dropped, extent=_extent(images[image]), interpolation="nearest")
            panel.set_xlabel(f"{part['kept'].mean():.0%} kept", fontsize="small")

    cli.plot(path, draw, numbers)
    return Path(path)


def load_histogram(path: str | Path, table: pl.DataFrame, *, experts: int | None = None) -> Path:
    """Draws how many choices fell on each expert, and how many of them found room, by layer.

    Args:
        path: The picture.
        table: Routing decisions.
        experts: How many there are, if the table may lack the last of them.
    """
    numbers = loads(table, experts=experts)
    layers = numbers["layer"].unique().sort().to_list()

    def draw(axes: Any) -> None:
        panels = _panels(axes, 1, len(layers), 3.2, 3.2)[0]
        for panel, layer in zip(panels, layers, strict=True):
            part = numbers.filter(layer=layer)
            panel.bar(part["expert"], part["choices"], color="lightgrey", label="dropped")
            panel.bar(part["expert"], part["kept"], color="tab:blue", label="kept")
            panel.axhline(part["choices"].mean(), color="black", ls=":", lw=1, label="balanced")
            panel.set(title=f"Layer {layer}", xlabel="expert")
        panels[0].set_ylabel("choices (tokens)")
        panels[0].legend(fontsize="x-small", loc="lower right")

    cli.plot(path, draw, numbers)
    return Path(path)


def capacity_curve(path: str | Path, table: pl.DataFrame) -> Path:
    """Draws accuracy by capacity, a line for each order of filling and K.

    Args:
        path: The picture.
        table: As `sweep` returns it, or means of several; a column `std` is drawn as bars.
    """
    keys = [name for name in ("batch_priority", "num_selected_experts") if name in table.columns]
    percent = 1.0 if (table["accuracy"] > 1).any() else 100.0

    def draw(axes: Any) -> None:
        for told, part in table.sort("actual_capacity").group_by(keys, maintain_order=True):
            named = dict(zip(keys, told, strict=True))
            name = "by score (BPR)" if named.get("batch_priority") else "in order"
            if "num_selected_experts" in named:
                name += f", K = {named['num_selected_experts']}"
            spread = percent * part["std"] if "std" in part.columns else None
            axes.errorbar(part["actual_capacity"], percent * part["accuracy"], spread,
                          marker="o", label=name)  # fmt: skip
        axes.set(xscale="log", xlabel="actual capacity C", ylabel="accuracy, %")
        axes.legend()

    cli.plot(path, draw, table)
    return Path(path)


def cost_curve(path: str | Path, table: pl.DataFrame) -> Path:
    """Draws accuracy by cost, a line each for dense models and those with experts.

    Args:
        path: The picture.
        table: Columns `sparse`, `gflops` of an image, `accuracy` and `std` in percent.
    """

    def draw(axes: Any) -> None:
        for sparse, name in ((False, "dense"), (True, "with experts")):
            part = table.filter(sparse=sparse).sort("gflops")
            axes.errorbar(part["gflops"], part["accuracy"], part["std"], marker="o", label=name)
        axes.set(xlabel="GFLOPs of an image", ylabel="accuracy, %")
        axes.legend()

    cli.plot(path, draw, table)
    return Path(path)


def _patches(table: pl.DataFrame, images: Mapping[Any, np.ndarray]) -> pl.DataFrame:
    """Returns the decisions on the images' patches, without those on a class token."""
    if not images:
        raise Error("there are no images to draw")
    found = table.filter(pl.col("image").is_in(list(images)) & (pl.col("row") >= 0))
    for image in images:
        if image not in found["image"]:
            raise Error(f"image {image} is not in the routing table")
    return found


def _on_grid(part: pl.DataFrame, column: str, missing: float) -> np.ndarray:
    """Returns a column's values where the patches lie."""
    row, col = part["row"].to_numpy(), part["col"].to_numpy()
    grid = np.full((row.max() + 1, col.max() + 1), missing, float)
    grid[row, col] = part[column].to_numpy()
    return grid


def _grid(
    axes: Any, images: Mapping[Any, np.ndarray], columns: Sequence[Any], titles: Sequence[str]
) -> list[tuple[Any, Any, Any]]:
    """Returns a panel for each image and column, with both."""
    panels = _panels(axes, len(images), len(columns), 1.6, 1.6)
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(title, fontsize="small")
    return [
        (panels[y][x], image, column)
        for y, image in enumerate(images)
        for x, column in enumerate(columns)
    ]


def _show(panel: Any, pixels: np.ndarray) -> None:
    panel.imshow(pixels, extent=_extent(pixels))
    panel.set_xticks([])
    panel.set_yticks([])


def _extent(pixels: np.ndarray) -> tuple[float, float, float, float]:
    height, width = pixels.shape[:2]
    return (0, width, height, 0)


def _panels(axes: Any, rows: int, columns: int, height: float, width: float) -> Any:
    """Replaces the axes of a figure by several, of a size in inches each."""
    figure = axes.figure
    axes.remove()
    figure.set_size_inches(max(width * columns, 4), max(height * rows + 0.4, 2))
    return figure.subplots(rows, columns, squeeze=False)
