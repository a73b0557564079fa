"""Distilled sets in files, and their pictures and tables."""

import numpy as np
import pytest
from PIL import Image

from chapbook.core.errors import Error
from chapbook.kip_distill import DistilledSet, Preprocess, centred, write_sheet


def made(zca=None):
    x = np.random.default_rng(0).normal(size=(30, 4, 4, 1)).astype(np.float32)
    preprocess = Preprocess.fit(x, zca=zca)
    labels = centred(np.arange(6) % 3, 3)
    return DistilledSet(preprocess(x[:6]), labels, preprocess, {"arch": "FC1", "step": 7,
                        "names": ["a", "b", "c"]}), x  # fmt: skip


@pytest.mark.parametrize("zca", [None, 0.1])
def test_a_set_is_read_as_it_was_written(tmp_path, zca):
    held, x = made(zca)
    held.save(tmp_path / "set.npz")
    found = DistilledSet.load(tmp_path / "set.npz")
    np.testing.assert_array_equal(found.images, held.images)
    np.testing.assert_array_equal(found.labels, held.labels)
    assert found.facts == held.facts
    np.testing.assert_array_equal(found.process(x), held.process(x))
    with np.load(tmp_path / "set.npz") as file:
        assert {"images", "labels"} <= set(file.files)


def test_a_released_set_is_read(tmp_path):
    images, labels = np.zeros((10, 32, 32, 3)), np.eye(10) - 0.1
    np.savez(tmp_path / "released.npz", images=images, labels=labels)
    found = DistilledSet.load(tmp_path / "released.npz")
    assert found.facts == {}
    assert found.view() is found.images
    with pytest.raises(Error, match="does not say how its images were preprocessed"):
        found.process(images.astype(np.float32))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"images": np.zeros((2, 3))}, "no array labels; it has images"),
        ({"labels": np.zeros((2, 3))}, "no array images; it has labels"),
        ({"images": np.zeros((2, 3)), "labels": np.zeros((3, 2))}, "one vector for each image"),
        ({"images": np.zeros((2, 3)), "labels": np.zeros(2)}, "one vector for each image"),
    ],
)
def test_files_that_are_no_sets_are_refused(tmp_path, arrays, told):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(Error, match=told):
        DistilledSet.load(tmp_path / "set.npz")
    with pytest.raises(Error, match="no such file"):
        DistilledSet.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("images")
    with pytest.raises(Error, match="not an npz file"):
        DistilledSet.load(tmp_path / "text.npz")


def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path):
    held, _ = made(zca=0.1)
    path = tmp_path / "set.npz"
    held.save(path)
    whole = path.read_bytes()
    g = np.random.default_rng(0)
    refused = 0
    for number in range(300):
        damaged = bytearray(whole)
        if number % 2:
            damaged = damaged[: g.integers(len(whole))]
        else:
            for place in (*g.integers(len(whole), size=4), *g.integers(200, size=4)):
                damaged[place] = g.integers(256)
        path.write_bytes(damaged)
        try:
            DistilledSet.load(path)
        except Error as problem:
            refused += 1
            assert "\n" not in str(problem)
            assert str(path) in str(problem)
    assert refused > 200


def test_inputs_of_another_shape_are_refused():
    with pytest.raises(Error, match=r"\(5, 5, 1\) do not fit a set of \(4, 4, 1\)"):
        made()[0].process(np.zeros((2, 5, 5, 1), np.float32))


def test_a_set_is_a_table():
    held, x = made()
    table = held.table()
    assert table["class"].to_list() == ["a", "b", "c", "a", "b", "c"]
    np.testing.assert_allclose(np.stack(table["values"].to_list()), x[:6].reshape(6, -1), atol=1e-5)
    np.testing.assert_allclose(np.stack(table["label"].to_list()), held.labels)


def test_a_sheet_has_a_row_for_each_class(tmp_path):
    held, x = made()
    write_sheet(tmp_path / "sheet.png", x[:6], held.classes)
    with Image.open(tmp_path / "sheet.png") as picture:
        width, height = picture.size
    assert height / width == pytest.approx((3 * 5 + 1) / (2 * 5 + 1))
