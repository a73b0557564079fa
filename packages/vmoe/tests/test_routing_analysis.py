"""What a routing table tells of experts: information, mean weights, orders, loads, pictures."""

import itertools

import numpy as np
import polars as pl
import pytest
from PIL import Image
from sklearn.metrics import mutual_info_score

from chapbook.core.errors import Error, TableError
from chapbook.vmoe import plots
from chapbook.vmoe.routing_analysis import (
    class_information,
    class_weights,
    loads,
    mutual_information,
    seriate,
)

EXPERTS, GRID = 4, 3


def routing(choose, images=40, classes=4, layers=(1, 3), choices=2, seed=0):
    """A table whose experts are chosen by `choose(layer, class, generator)`."""
    generator = np.random.default_rng(seed)
    rows = []
    for image, layer in itertools.product(range(images), layers):
        for row, col in itertools.product(range(GRID), range(GRID)):
            picked = choose(layer, image % classes, generator)
            for choice in range(choices):
                weight = 0.6 / (choice + 1)
                rows.append((image, row, col, layer, choice, int((picked + choice) % EXPERTS),
                             weight, len(rows) % 7, bool(generator.random() < 0.8),
                             f"class {image % classes}"))  # fmt: skip
    columns = ["image", "row", "col", "layer", "choice", "expert", "weight", "position", "kept",
               "class"]  # fmt: skip
    return pl.DataFrame(rows, columns, orient="row")


def by_class_in_layer_three(layer, kind, generator):
    return kind if layer == 3 else generator.integers(EXPERTS)


@pytest.fixture(scope="module")
def table():
    return routing(by_class_in_layer_three)


def test_mutual_information_is_scikit_learns():
    joint = np.random.default_rng(0).integers(0, 20, (5, 7))
    reference = mutual_info_score(None, None, contingency=joint) / np.log(2)
    assert mutual_information(joint) == pytest.approx(reference, rel=1e-10)
    assert mutual_information(np.eye(8)) == pytest.approx(3)
    assert mutual_information(np.ones((3, 4))) == pytest.approx(0, abs=1e-12)


def test_a_layer_that_routes_by_class_tells_the_class(table):
    found = class_information(table.filter(choice=0)).to_dicts()
    assert [row["layer"] for row in found] == [1, 3]
    assert found[1]["information"] == pytest.approx(2)  # four classes
    assert found[1]["excess"] > 1.5
    # What is above 0 in a layer that knows nothing of classes is what chance makes of it.
    assert 0 < found[0]["information"] < found[0]["chance_95"] * 1.5
    assert abs(found[0]["excess"]) < 0.03


def test_chance_exchanges_images_not_patches():
    """Experts that go by the image, not by its class, tell of classes only by chance."""
    own = np.random.default_rng(1).integers(EXPERTS, size=40)
    base = routing(lambda *_: 0, layers=(0,), choices=1)
    table = base.with_columns(expert=pl.col("image").replace_strict(range(40), own.tolist()))
    found = class_information(table).to_dicts()[0]
    assert found["information"] > 0.05  # exchanged patches would call this far above chance
    assert found["chance_95"] > 0.15
    assert found["information"] < found["chance_95"]


def test_information_needs_one_class_for_each_image(table):
    with pytest.raises(TableError, match="no column class"):
        class_information(table.drop("class"))
    with pytest.raises(TableError, match="without classes"):
        class_information(table.with_columns(pl.lit(None, pl.String).alias("class")))
    mixed = table.with_columns(pl.col("row").cast(pl.String).alias("class"))
    with pytest.raises(TableError, match="of several classes"):
        class_information(mixed)
    with pytest.raises(Error, match="0 permutations"):
        class_information(table, permutations=0)


def test_class_weights_are_means_over_all_patches_of_a_class(table):
    found = class_weights(table, 1)
    assert found.classes == [f"class {each}" for each in range(4)]
    expected = np.zeros((EXPERTS, 4))
    for row in table.filter(layer=1).iter_rows(named=True):
        expected[row["expert"], int(row["class"][-1])] += row["weight"] / (10 * GRID**2)
    np.testing.assert_allclose(found.weights, expected)
    np.testing.assert_allclose(found.weights.sum(0), 0.6 + 0.3)
    assert class_weights(table, 1, experts=6).weights.shape == (6, 4)
    with pytest.raises(TableError, match="layer 2 routes nothing; there are 1, 3"):
        class_weights(table, 2)
    with pytest.raises(TableError, match="expert 3, more than 2"):
        class_weights(table, 1, experts=2)


def distance(matrix):
    """Of what is above independence from the diagonal; the smaller the better ordered."""
    lift = matrix / (np.outer(matrix.sum(1), matrix.sum(0)) / matrix.sum())
    down, across = ((np.arange(n) + 0.5) / n for n in matrix.shape)
    return (lift * abs(down[:, None] - across)).sum()


def test_a_hidden_order_is_found_again():
    # Experts that serve neighbouring classes, 6 x 24.
    place = np.abs(np.linspace(0, 1, 6)[:, None] - np.linspace(0, 1, 24))
    ordered = np.exp(-30 * place**2) + 0.01
    generator = np.random.default_rng(0)
    rows, columns = generator.permutation(6), generator.permutation(24)
    found_rows, found_columns = seriate(ordered[rows][:, columns])
    back = rows[found_rows]
    assert back.tolist() in (list(range(6)), list(range(5, -1, -1)))
    assert distance(ordered[rows][:, columns][found_rows][:, found_columns]) == pytest.approx(
        distance(ordered), rel=0.02
    )


def test_blocks_are_found_again():
    blocks = np.kron(np.eye(5), np.ones((1, 4)))
    generator = np.random.default_rng(3)
    mixed = blocks[generator.permutation(5)][:, generator.permutation(20)]
    rows, columns = seriate(mixed)
    np.testing.assert_array_equal(mixed[rows][:, columns], blocks)


def test_orders_are_near_the_best_of_all():
    worse = []
    for seed in range(6):
        matrix = np.random.default_rng(seed).gamma(0.3, size=(4, 5)) + 1e-3
        every = [
            distance(matrix[list(rows)][:, list(columns)])
            for rows in itertools.permutations(range(4))
            for columns in itertools.permutations(range(5))
        ]
        rows, columns = seriate(matrix)
        assert sorted(rows) == list(range(4)) and sorted(columns) == list(range(5))
        worse.append(distance(matrix[rows][:, columns]) / min(every))
    assert max(worse) < 1.3
    assert np.mean(worse) < 1.1


def test_unused_experts_and_single_ones_are_ordered_too():
    rows, columns = seriate(np.array([[0.0, 0, 0], [1, 0, 1], [0, 0, 1]]))
    assert sorted(rows) == sorted(columns) == [0, 1, 2]
    rows, columns = seriate(np.ones((1, 3)))
    assert rows.tolist() == [0] and sorted(columns) == [0, 1, 2]
    assert len(seriate(np.zeros((2, 2)))[0]) == 2
    with pytest.raises(Error, match="from 0 on"):
        seriate(np.array([[1.0, -1.0]]))


def test_loads_count_every_choice_and_those_kept(table):
    found = loads(table, experts=5)
    assert found.height == 2 * 5
    for row in found.iter_rows(named=True):
        part = table.filter(layer=row["layer"], expert=row["expert"])
        assert row["choices"] == part.height
        assert row["kept"] == part["kept"].sum()
        assert row["share"] == pytest.approx(part.height / (40 * GRID**2 * 2))
    with pytest.raises(TableError, match="is empty"):
        loads(table.clear())


def test_pictures_come_with_their_numbers(tmp_path, table):
    paths = plots.heat_maps(tmp_path, table)
    assert [path.name for path in paths] == ["heat_map_1.png", "heat_map_3.png"]
    held = pl.read_csv(tmp_path / "heat_map_3.csv")
    weights = class_weights(table, 3)
    for row in held.iter_rows(named=True):
        expected = weights.weights[row["expert"], weights.classes.index(row["class"])]
        assert row["weight"] == pytest.approx(expected)
    paths.append(plots.load_histogram(tmp_path / "load.png", table))
    assert pl.read_csv(tmp_path / "load.csv").height == 2 * EXPERTS
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width > 300 and picture.height > 200


def test_patches_are_drawn_over_their_images(tmp_path, table):
    pictures = {each: np.full((30, 30, 3), 255, np.uint8) for each in (4, 7)}
    # A class token has no place in the image.
    token = table.head(1).with_columns(pl.lit(4).alias("image"), pl.lit(-1).alias("row"))
    plots.expert_patches(
        tmp_path / "experts.png", pictures, pl.concat([table, token], how="vertical_relaxed")
    )
    held = pl.read_csv(tmp_path / "experts.csv")
    assert held.height == 2 * 2 * GRID**2
    first = table.filter(pl.col("image").is_in([4, 7]), choice=0)
    assert sorted(held.rows()) == sorted(first.select(held.columns).rows())
    tables = {0.5: table, 0.1: table.with_columns(kept=pl.lit(False))}
    plots.kept_patches(tmp_path / "kept.png", pictures, tables, layer=3)
    held = pl.read_csv(tmp_path / "kept.csv")
    assert held.filter(capacity=0.1)["kept"].sum() == 0
    expected = table.filter(layer=3, image=7).group_by("row", "col").agg(pl.col("kept").any())
    assert held.filter(capacity=0.5, image=7)["kept"].sum() == expected["kept"].sum()
    with Image.open(tmp_path / "kept.png") as picture:
        shades = np.asarray(picture.convert("L"), int)
    assert (abs(shades - 137) < 4).mean() > 0.1  # patches of C = 0.1, grey
    for wrong in ({}, {99: pictures[4]}):
        with pytest.raises(Error, match=r"no images to draw|image 99 is not in"):
            plots.expert_patches(tmp_path / "no.png", wrong, table)
