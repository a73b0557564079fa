"""Trees of arrays in MessagePack, as flax.serialization and the official V-MoE code write them.

Notable choices:

- The dialect is decoded with `msgpack` and NumPy alone. Its extension types are 1 to 3 of Flax
  (arrays, complex numbers, scalars) and 4 to 8 of V-MoE (shapes, slices and an array's index).
- A tree comes back as nested dicts. `flatten` names its leaves in the order in which JAX numbers
  them, which is how the shards of a checkpoint refer to them.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import msgpack
import numpy as np

from chapbook.core.errors import Error

# Flax puts in the place of an array of more than 2^30 bytes a dict that has this key.
_CHUNKED = "__msgpack_chunked_array__"


class ShapedArray(NamedTuple):
    """What an array is like."""

    shape: tuple[int, ...]
    dtype: np.dtype


class IndexInfo(NamedTuple):
    """Where a checkpoint of several shards keeps an array.

    Args:
        array: Its shape and dtype.
        slices: The parts that it is cut into, each a slice per axis.
        shards: The number of the shard that holds each part.
    """

    array: ShapedArray
    slices: tuple[tuple[slice, ...], ...]
    shards: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the array."""
        return self.array.dtype


def read_tree(path: str | Path) -> Any:
    """Reads a file of flax.serialization, such as `flax.serialization.to_bytes` makes.

    Args:
        path: The file.

    Returns:
        Nested dicts; arrays, scalars, slices and `IndexInfo`s are their leaves.

    Raises:
        Error: There is no such file, it is cut short or broken, or it has an object of an
            extension type that is not known.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as problem:
        raise Error(f"{path} cannot be read: {problem.strerror}") from problem
    with faults(path):
        return msgpack.unpackb(content, ext_hook=extension, object_hook=_joined)


@contextlib.contextmanager
def faults(path: str | Path) -> Iterator[None]:
    """Turns what bytes raise that are not as they should be into an `Error` that names the file."""
    try:
        yield
    except msgpack.OutOfData as problem:
        raise Error(f"{path} cannot be read: it ends too early") from problem
    except (msgpack.UnpackException, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise Error(f"{path} cannot be read: {problem}") from problem


def extension(code: int, data: bytes) -> Any:
    """Decodes an object of an extension type.

    Args:
        code: 1 array, 2 complex number, 3 scalar, 4 shape and dtype, 5 slice, 6 a slice per axis,
            7 array of those, 8 index of an array.
        data: The object's bytes.

    Raises:
        ValueError: The code is none of these.

    Reference:
        google-research/vmoe, `vmoe/checkpoints/serialization.py`; google/flax,
        `flax/serialization.py`.
    """
    if code not in _DECODERS:
        raise ValueError(f"an object is of extension type {code}, which is none of 1 to 8")
    return _DECODERS[code](data)


def _unpacked(data: bytes) -> Any:
    return msgpack.unpackb(data, raw=True)


def _dtype(name: bytes) -> np.dtype:
    # NumPy knows bfloat16 and its like from ml_dtypes alone.
    return np.dtype(getattr(ml_dtypes, name.decode(), name.decode()))


def _array(data: bytes) -> np.ndarray:
    shape, name, content = _unpacked(data)
    return np.frombuffer(content, _dtype(name)).reshape(shape)


def _shaped(data: bytes) -> ShapedArray:
    shape, name, _, _ = _unpacked(data)
    return ShapedArray(tuple(shape), _dtype(name))


def _slice(data: bytes) -> slice:
    return slice(*_unpacked(data))


def _slices(data: bytes) -> tuple[slice, ...]:
    return tuple(_slice(part) for part in _unpacked(data))


def _slices_array(data: bytes) -> np.ndarray:
    shape, parts = _unpacked(data)
    array = np.empty(math.prod(shape), object)
    for i, part in enumerate(parts):
        array[i] = _slices(part)
    return array.reshape(shape)


def _index_info(data: bytes) -> IndexInfo:
    array, slices, shards = _unpacked(data)
    return IndexInfo(_shaped(array), tuple(_slices(part) for part in slices), tuple(shards))


_DECODERS = {
    1: _array,
    2: lambda data: complex(*_unpacked(data)),
    3: lambda data: _array(data)[()],
    4: _shaped,
    5: _slice,
    6: _slices,
    7: _slices_array,
    8: _index_info,
}


def _joined(mapping: dict[str, Any]) -> Any:
    """Returns the array that Flax has cut into chunks; anything else as it is."""
    if _CHUNKED not in mapping:
        return mapping
    shape, chunks = (
        [d[str(i)] for i in range(len(d))] for d in (mapping["shape"], mapping["chunks"])
    )
    return np.concatenate(chunks).reshape(shape)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves by the paths to them, such as `Encoder/encoder_norm/bias`.

    Their order is JAX's: by the keys of each level. None and empty dicts hold no leaf.

    Args:
        tree: Nested dicts.
        prefix: Put before each path.
    """
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        elif value is not None:
            yield f"{prefix}{key}", value


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dicts whose leaves have these paths.

    Args:
        leaves: By path; none may be the beginning of another.
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, key = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = leaf
    return tree
