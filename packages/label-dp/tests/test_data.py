"""Reading the user's own tables and images, and official files in their layouts."""

import gzip
import io
import re

import numpy as np
import polars as pl
import pytest
from PIL import Image

from chapbook.core.errors import Error, TableError
from chapbook.label_dp import data
from chapbook.label_dp.data import read_examples

CLASSES = ("no", "yes")


def _table(path, **changes):
    columns = {
        "id": [10, 11, 12],
        "age": [20.0, 30.0, 40.0],
        "income": [1, 2, 4],
        "bought": ["yes", "no", "yes"],
    }
    table = pl.DataFrame({**columns, **changes})
    table.write_parquet(path) if path.suffix == ".parquet" else table.write_csv(path)
    return path


def _png(value, size=(4, 3), mode="L"):
    out = io.BytesIO()
    Image.new(mode, size, value).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_numeric_columns_become_standardised_inputs(tmp_path, suffix):
    path = _table(tmp_path / f"d{suffix}")
    found = read_examples(path, label="bought", classes=CLASSES, ignore=["id"])
    raw = np.array([[20, 1], [30, 2], [40, 4]], float)
    np.testing.assert_allclose(found.x, (raw - raw.mean(0)) / raw.std(0), rtol=1e-6)
    np.testing.assert_array_equal(found.labels, [1, 0, 1])
    assert found.inputs.features == ("age", "income")
    assert "bought" not in found.table.columns
    assert set(found.schema) == {"id", "age", "income", "bought"}


def test_new_records_are_read_as_the_training_records_were(tmp_path):
    trained = read_examples(
        _table(tmp_path / "d.parquet"), label="bought", classes=CLASSES, features=["income", "age"]
    )
    new = tmp_path / "new.csv"
    pl.DataFrame({"age": [30.0], "income": [7 / 3], "more": ["x"]}).write_csv(new)
    found = read_examples(new, inputs=trained.inputs)
    np.testing.assert_allclose(found.x, 0, atol=1e-6)
    assert found.labels is None


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"label": "buys"}, "no column buys; it has id, age"),
        ({}, {"classes": ()}, "classes must be declared"),
        ({}, {"classes": ("yes", "maybe")}, "row 1, column bought: the label is none"),
        ({"bought": ["yes", None, "no"]}, {}, "row 1, column bought: the label is missing"),
        ({"age": [1.0, 2.0, float("nan")]}, {}, "row 2, column age: the value is missing or not"),
        ({"age": [1.0, None, 2.0]}, {}, "row 1, column age: the value is missing"),
        ({"age": [1.0, float("inf"), 2.0]}, {}, "row 1, column age"),
        ({"age": ["a", "b", "c"]}, {"features": ["age"]}, "column age is String; features must"),
        ({}, {"features": ["bought", "age"]}, "bought is the label and cannot be an input"),
        ({}, {"image": "age"}, "column age is Float64; it must hold the bytes of images"),
        ({}, {"features": ["height"]}, "no column height"),
    ],
)
def test_faults_of_a_table_name_the_place(tmp_path, changes, options, message):
    path = _table(tmp_path / "d.parquet", **changes)
    with pytest.raises(Error, match=re.escape(message)) as caught:
        read_examples(path, **{"label": "bought", "classes": CLASSES, **options})
    assert "\n" not in str(caught.value)


def test_errors_never_show_a_label(tmp_path):
    path = _table(tmp_path / "d.csv", bought=["yes", "zyzzyva", "no"])
    with pytest.raises(TableError) as caught:
        read_examples(path, label="bought", classes=CLASSES)
    assert "zyzzyva" not in f"{caught.value} {caught.value.hint}"


def test_an_empty_table_and_a_missing_file_are_named(tmp_path):
    empty = tmp_path / "empty.parquet"
    pl.DataFrame({"age": pl.Series([], dtype=pl.Float64)}).write_parquet(empty)
    with pytest.raises(Error, match=r"empty\.parquet"):
        read_examples(empty)
    with pytest.raises(Error, match="no such file"):
        read_examples(tmp_path / "none.csv")


def test_images_come_from_a_parquet_column_or_a_folder_alike(tmp_path):
    values = [0, 51, 255]
    path = tmp_path / "d.parquet"
    labels = ["no", "yes", "no"]
    pl.DataFrame({"picture": [_png(v) for v in values], "kind": labels}).write_parquet(path)
    table = read_examples(path, label="kind", classes=CLASSES, image="picture")
    assert table.x.shape == (3, 3, 4, 1)
    np.testing.assert_allclose(table.x[:, 0, 0, 0], [0, 0.2, 1])
    for value, kind in zip(values, labels, strict=True):
        (tmp_path / "images" / kind).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / kind / f"{value}.png").write_bytes(_png(value))
    folder = read_examples(tmp_path / "images", label="folder", classes=CLASSES)
    order = np.argsort(folder.x[:, 0, 0, 0])
    np.testing.assert_array_equal(folder.x[order], table.x)
    assert folder.labels is not None
    np.testing.assert_array_equal(folder.labels[order], table.labels)
    assert all("/" not in name for name in folder.table["file"]), "the path would tell the label"


def test_faults_of_images_name_the_row(tmp_path):
    def write(images):
        pl.DataFrame({"picture": images}, schema={"picture": pl.Binary}).write_parquet(path)

    path = tmp_path / "d.parquet"
    write([_png(1), b"no image"])
    with pytest.raises(TableError, match="row 1, column picture: not an image"):
        read_examples(path, image="picture")
    write([_png(1), _png(1, size=(5, 5))])
    with pytest.raises(TableError, match="row 1, column picture: the image is"):
        read_examples(path, image="picture")
    write([_png(1), None])
    with pytest.raises(TableError, match="row 1, column picture: the image is missing"):
        read_examples(path, image="picture")


def test_an_npz_holds_images_or_vectors(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=np.full((2, 3, 3), 255, np.uint8), y=np.array([1, 0]))
    found = read_examples(path, label="y", classes=("0", "1"))
    assert found.x.shape == (2, 3, 3, 1)
    assert found.x.max() == 1
    np.testing.assert_array_equal(found.labels, [1, 0])
    with pytest.raises(TableError, match="no array z; it has x, y"):
        read_examples(path, label="z", classes=("0", "1"))
    np.savez(path, x=np.array([[1.0], [np.nan]]))
    with pytest.raises(TableError, match="row 1"):
        read_examples(path)
    whole = path.read_bytes()
    for damaged in (b"PK no", whole[:-9], whole[:40], whole.replace(b"descr", b"de(cr")):
        path.write_bytes(damaged)
        with pytest.raises(Error, match="not a readable npz"):
            read_examples(path)


def _idx(values):
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return header + values.astype(np.uint8).tobytes()


def test_official_mnist_files_are_read_packed_or_not(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 28, 28)), rng.integers(0, 10, 5)
    for name in ("train", "t10k"):
        packed = gzip.compress(_idx(images))
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(packed)
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(_idx(labels))
    split = data.mnist(tmp_path)
    np.testing.assert_allclose(split.train_x[..., 0], images / 255, atol=1e-6)
    np.testing.assert_array_equal(split.test_y, labels)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(_idx(labels)[:-1])
    with pytest.raises(Error, match="not an idx file"):
        data.mnist(tmp_path)
    with pytest.raises(Error, match="no train-images"):
        data.mnist(tmp_path / "elsewhere")


def test_official_cifar_files_are_read(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (4, 3, 32, 32)), np.array([0, 9, 3, 3])
    records = np.concatenate([labels[:, None], images.reshape(4, -1)], axis=1).astype(np.uint8)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for name in names:
        (tmp_path / name).write_bytes(records.tobytes())
    split = data.cifar10(tmp_path)
    assert split.train_x.shape == (20, 32, 32, 3)
    np.testing.assert_allclose(split.train_x.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_array_equal(split.test_y, labels)
    red = images[:, 0]
    expected = (red - red.mean()) / red.std()
    np.testing.assert_allclose(split.test_x[..., 0], expected, atol=1e-3)
    (tmp_path / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(Error, match="no whole number of CIFAR-10 records"):
        data.cifar10(tmp_path)


def test_the_users_own_movielens_file_is_read(tmp_path):
    path = tmp_path / "u.data"
    path.write_text("1\t3\t5\t100\n2\t1\t2\t101\n")
    table = data.movielens_100k(path)
    assert table.rows() == [(0, 2, 5, 100), (1, 0, 2, 101)]
    path.write_text("user,item\n1,2\n")
    with pytest.raises(Error, match="not MovieLens-100k"):
        data.movielens_100k(path)
