"""What experts specialize in, from a table of routing decisions.

A routing table has a row for each choice of a token: its `image`, `row` and `col`, the `layer`, the
`choice`, `expert` and `weight`, the `position` in the expert's buffer, `kept`, and the image's
`class`.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from chapbook.core.errors import Error, TableError

AXES = 4  # along each of which an order begins; the best end is taken


def class_information(
    table: pl.DataFrame, *, permutations: int = 100, seed: int = 0
) -> pl.DataFrame:
    """Measures how much a choice of expert tells of the image's class, in each layer.

    I(expert; class) = sum_ec p(e, c) log2(p(e, c) / (p(e) p(c))), over all choices

    The estimate is above 0 also for routing that knows nothing of classes, the more so the fewer
    images there are. What it then comes to is found by giving the images each other's classes:
    whole images, because patches of one image are routed alike for other reasons.

    Args:
        table: Routing decisions.
        permutations: How often classes are exchanged.
        seed: Randomness of that.

    Returns:
        A row for each layer: `layer`, `information` (bits), `chance` (the mean over permutations),
        `chance_95` (their 95 % quantile), `excess` (information without chance).

    Raises:
        TableError: A column is missing, a class is missing, or an image has several.
    """
    _require(table, "layer", "image", "expert", "class")
    if permutations < 1:
        raise Error(f"{permutations} permutations tell nothing of chance; take 1 or more")
    found = table.select("image", "class").unique()
    if found["class"].null_count():
        raise TableError("a routing table without classes tells nothing of them", column="class")
    if found.height > found["image"].n_unique():
        twice = found["image"].filter(found["image"].is_duplicated())[0]
        raise TableError(f"image {twice} is of several classes", column="class")
    images = found.sort("image")
    classes = images["class"].rank("dense").to_numpy().astype(int) - 1
    numbers = images.select("image").with_row_index("number")
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(classes)) for _ in range(permutations)]
    rows = []
    for (layer,), part in table.group_by("layer"):
        counts = _counts(part.join(numbers, on="image"), len(classes))
        information = _information(counts, classes)
        by_chance = [_information(counts, classes[order]) for order in orders]
        rows.append({
            "layer": layer, "information": information, "chance": np.mean(by_chance),
            "chance_95": np.quantile(by_chance, 0.95), "excess": information - np.mean(by_chance),
        })  # fmt: skip
    return pl.DataFrame(rows).sort("layer")


def mutual_information(joint: Float[np.ndarray, "a b"] | Int[np.ndarray, "a b"]) -> float:
    """Returns the mutual information of two variables, in bits.

    I(a; b) = sum p(a, b) log2(p(a, b) / (p(a) p(b)))

    Args:
        joint: How often they have each pair of values, or its probability.
    """
    p = joint / joint.sum()
    apart = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    seen = p > 0
    return float((p[seen] * np.log2(p[seen] / apart[seen])).sum())


@dataclass(frozen=True, eq=False)
class ClassWeights:
    """Mean routing weights of one layer, by expert and class.

    Attributes:
        weights: Of an expert in the patches of a class, dropped choices included; 0 for patches
            that did not choose it.
        classes: The classes, in order of the columns.
    """

    weights: Float[np.ndarray, "experts classes"]
    classes: list


def class_weights(table: pl.DataFrame, layer: int, *, experts: int | None = None) -> ClassWeights:
    """Averages the routing weight of each expert over the patches of each class.

    Args:
        table: Routing decisions.
        layer: Which layer's.
        experts: How many there are; if None, as many as the highest number in the table tells.

    Raises:
        TableError: A column is missing, or the layer routes nothing.
    """
    _require(table, "layer", "image", "row", "col", "expert", "weight", "class")
    part = _layer(table, layer)
    tokens = (
        part.select("image", "row", "col", "class").unique().group_by("class").len().sort("class")
    )
    classes = tokens["class"].to_list()
    column = pl.col("class").replace_strict(classes, range(len(classes)), return_dtype=pl.Int64)
    sums = part.group_by("expert", column.alias("place")).agg(pl.col("weight").sum())
    weights = np.zeros((_experts(part, experts), len(classes)))
    weights[sums["expert"].to_numpy(), sums["place"].to_numpy()] = sums["weight"].to_numpy()
    return ClassWeights(weights / tokens["len"].to_numpy(), classes)


def loads(table: pl.DataFrame, *, experts: int | None = None) -> pl.DataFrame:
    """Counts the choices of each expert in each layer.

    Args:
        table: Routing decisions.
        experts: How many there are; if None, as many as the highest number in the table tells.

    Returns:
        A row for each layer and expert, unused ones too: `layer`, `expert`, `choices`, `kept` (of
        these, those with room in the buffer), `share` (of the layer's choices).

    Raises:
        TableError: A column is missing, or the table is empty.
    """
    _require(table, "layer", "expert", "kept")
    every = pl.DataFrame({"expert": np.arange(_experts(table, experts))})
    counted = table.group_by("layer", pl.col("expert").cast(pl.Int64)).agg(
        pl.len().cast(pl.Int64).alias("choices"), pl.col("kept").sum().cast(pl.Int64)
    )
    whole = table.select("layer").unique().join(every, how="cross")
    found = whole.join(counted, on=["layer", "expert"], how="left").fill_null(0)
    share = pl.col("choices") / pl.col("choices").sum().over("layer")
    return found.with_columns(share.alias("share")).sort("layer", "expert")


def seriate(
    matrix: Float[np.ndarray, "rows columns"],
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " columns"]]:
    """Orders rows and columns so that what is large lies along the diagonal.

    Columns begin in a spectral order, by a singular vector of the matrix without what independence
    explains, (P - r c^T) / sqrt(r c^T) with sums r and c. Then in turn, rows get the best places
    for those of the columns, by the Hungarian method, and columns are sorted by the mean place of
    their rows, until sum_ij P_ij / (r_i c_j) |place_i - place_j| falls no further, where places are
    shares of the axis. Of the beginnings by the first four singular vectors, the best end is taken.

    Args:
        matrix: Numbers from 0 on, such as `ClassWeights.weights`.

    Returns:
        The orders: `matrix[order_of_rows][:, order_of_columns]` has its weight on the diagonal.

    Raises:
        Error: A number is below 0 or not finite.

    Reference:
        Dhillon, "Co-clustering documents and words using bipartite spectral graph partitioning"
        (2001); Kuhn, "The Hungarian method for the assignment problem" (1955).
    """
    if not (np.isfinite(matrix) & (matrix >= 0)).all():
        raise Error("only numbers from 0 on can be ordered along a diagonal")
    total = matrix.sum() or 1.0
    expected = np.outer(matrix.sum(1), matrix.sum(0)) / total
    lift = matrix / np.where(expected > 0, expected, 1)
    found = (_improved(lift, _places(order)) for order in _spectral(matrix, expected))
    _, rows, columns = min(found, key=lambda each: each[0])
    return rows.argsort(), columns.argsort()


def _spectral(matrix: np.ndarray, expected: np.ndarray) -> list[np.ndarray]:
    """Returns orders of the columns, along the first axes of correspondence analysis."""
    root = np.sqrt(np.where(expected > 0, expected, 1))
    # Without what independence explains, whose singular vector is the first one and orders nothing.
    _, _, v = np.linalg.svd((matrix - expected) / root, full_matrices=False)
    sums = matrix.sum(0)
    scale = np.sqrt(np.where(sums > 0, sums, 1))
    return [np.argsort(axis / scale, kind="stable") for axis in v[:AXES]]


def _improved(lift: np.ndarray, columns: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns the cost and the places of rows and columns, improved in turn from a beginning."""
    sums = lift.sum(0)
    best = (np.inf, columns, columns)
    while True:
        rows = _assigned(lift, columns)
        cost = float((lift * abs(rows[:, None] - columns)).sum())
        if cost >= best[0] * (1 - 1e-12):
            return best
        best = (cost, rows, columns)
        # There may be a thousand classes, too many for the Hungarian method.
        means = rows @ lift / np.where(sums > 0, sums, 1)
        columns = _places(means.argsort(kind="stable"))


def _places(order: np.ndarray) -> np.ndarray:
    """Returns each one's place in an order, from 0 to 1: the middle of its share of the axis."""
    return (order.argsort() + 0.5) / len(order)


def _assigned(lift: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the best places of the rows for given places of the columns."""
    count = len(lift)
    free = (np.arange(count) + 0.5) / count
    cost = lift @ abs(others[:, None] - free)
    taken, places = linear_sum_assignment(cost)
    found = np.empty(count)
    found[taken] = free[places]
    return found


def _counts(part: pl.DataFrame, images: int) -> np.ndarray:
    """Returns how often each image chose each expert, [images, experts]."""
    counted = part.group_by("number", "expert").len()
    counts = np.zeros((images, _experts(part, None)), np.int64)
    counts[counted["number"].to_numpy(), counted["expert"].to_numpy()] = counted["len"].to_numpy()
    return counts


def _information(counts: np.ndarray, classes: np.ndarray) -> float:
    joint = np.zeros((classes.max() + 1, counts.shape[1]), np.int64)
    np.add.at(joint, classes, counts)
    return mutual_information(joint)


def _experts(table: pl.DataFrame, experts: int | None) -> int:
    if not table.height:
        raise TableError("the routing table is empty")
    seen = int(table["expert"].to_numpy().max()) + 1
    if experts is not None and experts < seen:
        raise TableError(f"the table has expert {seen - 1}, more than {experts}", column="expert")
    return experts or seen


def _layer(table: pl.DataFrame, layer: int) -> pl.DataFrame:
    part = table.filter(pl.col("layer") == layer)
    if not part.height:
        layers = ", ".join(map(str, table["layer"].unique().sort()))
        raise TableError(f"layer {layer} routes nothing; there are {layers}", column="layer")
    return part


def _require(table: pl.DataFrame, *columns: str) -> None:
    for name in columns:
        if name not in table.columns:
            raise TableError(f"the routing table has no column {name}; it has "
                             f"{', '.join(table.columns)}", column=name)  # fmt: skip
