"""Checkpoints of the official V-MoE code: an index, and shards that hold parts of the arrays.

`PREFIX.index` says of each array its shape, the parts that it is cut into and the shard of each.
`PREFIX.data-00000-of-00003` holds, by an array's number, its parts in this shard.

Notable choices:

- A shard is read as a stream, part by part, into the arrays that it belongs to: memory holds the
  arrays and one part, not the checkpoint twice.
- The index is checked before memory is taken: its parts must cover each array, and each shard be
  there and large enough. After reading, each part must have come exactly once.
"""

import math
import re
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from chapbook.core.errors import Error
from chapbook.vmoe.flax_msgpack import IndexInfo, extension, faults, flatten, nest, read_tree

# The key that tells a shard from any other dict.
_SHARD = "__msgpack_array_chunk_a87ca2__"
_VERSIONS = (None, "20220622")

Bounds = tuple[tuple[int, int], ...]


def read_index(prefix: str | Path) -> dict[str, IndexInfo]:
    """Returns the parameters' shapes, dtypes and places by name, without reading them.

    Args:
        prefix: Of the checkpoint's files; any one of them will do.

    Raises:
        Error: The index is missing or broken, or of a version that is not known.
    """
    return {name: info for _, name, info in _parameters(_prefix(prefix))[1]}


def read_sharded(prefix: str | Path) -> dict[str, Any]:
    """Reads the parameters of a checkpoint; the rest of a training run's state is skipped.

    Args:
        prefix: Of the checkpoint's files; any one of them will do.

    Returns:
        Nested dicts of arrays.

    Raises:
        Error: The index or a shard is missing, cut short or broken, or they do not fit each other;
            with the file, the array, what was expected and what was found.

    Reference:
        google-research/vmoe, `vmoe/checkpoints/partitioned.py`.
    """
    prefix = _prefix(prefix)
    count, parameters = _parameters(prefix)
    with faults(f"{prefix}.index"):
        parts = _parts(parameters, count)
    paths = {shard: Path(f"{prefix}.data-{shard:05d}-of-{count:05d}") for shard in sorted(parts)}
    _check_files(paths, parts, {number: info for number, _, info in parameters})
    arrays = {number: np.empty(info.shape, info.dtype) for number, _, info in parameters}
    names = {number: name for number, name, _ in parameters}
    for shard, path in paths.items():
        _read_shard(path, arrays, names, parts[shard])
    return nest({name: arrays[number] for number, name, _ in parameters})


def _prefix(path: str | Path) -> str:
    return re.sub(r"\.(index|data-\d+-of-\d+)$", "", str(path))


def _parameters(prefix: str) -> tuple[int, list[tuple[int, str, IndexInfo]]]:
    """Returns how many shards there are, and number, name and index of each parameter."""
    path = f"{prefix}.index"
    content = read_tree(path)
    if not isinstance(content, dict) or not {"shard_count", "index"} <= content.keys():
        raise Error(f"{path} is no index of a V-MoE checkpoint")
    if (version := content.get("version")) not in _VERSIONS:
        raise Error(
            f"{path} is of version {version!r}; those known are {_VERSIONS[1]!r} and the one "
            "before it, which gives none"
        )
    tree = content["index"]
    if not isinstance(tree, dict):
        raise Error(f"{path}: the index is no dict")
    if version is None and "params" in tree and len(tree) > 1:
        raise Error(
            f"{path} holds a training run's state ({', '.join(sorted(tree))}) in the form before "
            f"version {_VERSIONS[1]}, which numbers arrays in an order that the file does not give",
            "save it again with the code that wrote it, or take a release: parameters alone",
        )
    leaves = [(number, *leaf) for number, leaf in enumerate(flatten(tree))]
    for _, name, info in leaves:
        if not isinstance(info, IndexInfo):
            raise Error(f"{path}: {name} is a {type(info).__name__}, not the index of an array")
    if "params" in tree:
        start = "params/"
        leaves = [(i, name[len(start) :], x) for i, name, x in leaves if name.startswith(start)]
    return content["shard_count"], leaves


def _parts(
    parameters: list[tuple[int, str, IndexInfo]], count: int
) -> dict[int, dict[tuple[int, Bounds], int]]:
    """Returns for each shard the parts in it, by number of the array and bounds, and their sizes.

    Raises:
        ValueError: The parts of an array overlap or leave gaps, or a shard is none of the count.
    """
    parts: dict[int, dict[tuple[int, Bounds], int]] = {}
    for number, name, info in parameters:
        bounds = [_bounds(part, info.shape) for part in info.slices]
        sizes = [math.prod(stop - start for start, stop in part) for part in bounds]
        if sum(sizes) != math.prod(info.shape) or not _disjoint(bounds, info.shape):
            told = ", ".join(_text(part) for part in bounds)
            raise ValueError(f"{name}: the parts {told} are not an array of shape {info.shape}")
        for part, size, shard in zip(bounds, sizes, info.shards, strict=True):
            if not 0 <= shard < count:
                raise ValueError(f"{name} lies in shard {shard}, and there are {count}")
            parts.setdefault(shard, {})[number, part] = size
    return parts


def _bounds(part: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    axes = [axis.indices(size) for axis, size in zip(part, shape, strict=True)]
    if any(step != 1 or stop < start for start, stop, step in axes):
        raise ValueError(f"{part} is no part of an array of shape {shape}")
    return tuple((start, stop) for start, stop, _ in axes)


def _disjoint(parts: list[Bounds], shape: tuple[int, ...]) -> bool:
    """Tells whether parts that have together as many elements as the array are the array."""
    if len(parts) == 1:
        return True
    seen = np.zeros(shape, bool)
    for part in parts:
        seen[_slices(part)] = True
    return bool(seen.all())


def _slices(bounds: Bounds) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in bounds)


def _text(bounds: Bounds) -> str:
    return f"[{', '.join(f'{start}:{stop}' for start, stop in bounds)}]"


def _check_files(
    paths: dict[int, Path],
    parts: dict[int, dict[tuple[int, Bounds], int]],
    infos: dict[int, IndexInfo],
) -> None:
    """Raises unless the shards are there and as large as the parts in them."""
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise Error(f"shards are missing: {', '.join(missing)}")
    for shard, path in paths.items():
        needed = sum(
            size * infos[number].dtype.itemsize for (number, _), size in parts[shard].items()
        )
        if (found := path.stat().st_size) < needed:
            raise Error(f"{path} is cut short: it has {found} bytes, its arrays have {needed}")


def _read_shard(
    path: Path,
    arrays: dict[int, np.ndarray],
    names: dict[int, str],
    parts: dict[tuple[int, Bounds], int],
) -> None:
    """Reads a shard's parts into the arrays."""
    left = set(parts)
    with path.open("rb") as file, faults(path):
        # Without a limit of its own on what waits to be decoded: a piece may have 2^30 bytes.
        stream = msgpack.Unpacker(file, read_size=2**20, max_buffer_size=0, ext_hook=extension)
        keys = stream.read_map_header()
        if keys == 0 or stream.unpack() != _SHARD:
            raise ValueError("it is no shard of a V-MoE checkpoint")
        stream.skip()
        for _ in range(keys - 1):
            number = int(stream.unpack())
            if number not in arrays:
                stream.skip()
                continue
            for _ in range(stream.read_array_header()):
                pieces, part = stream.unpack()
                bounds = _bounds(part, arrays[number].shape)
                if (number, bounds) not in left:
                    raise ValueError(
                        f"part {_text(bounds)} of {names[number]} is here once more than the "
                        "index says"
                    )
                left.remove((number, bounds))
                _write(arrays[number], bounds, pieces, names[number])
    if left:
        told = ", ".join(f"{names[number]}{_text(bounds)}" for number, bounds in sorted(left))
        raise Error(f"{path} does not hold what the index says: {told} are missing")


def _write(array: np.ndarray, bounds: Bounds, pieces: list[np.ndarray], name: str) -> None:
    """Puts the pieces of a part, which are flat, into their place."""
    view = array[..., *_slices(bounds)]  # with the dots, a view even of an array without axes
    found = sum(piece.size for piece in pieces)
    kinds = {str(piece.dtype) for piece in pieces} - {str(array.dtype)}
    if kinds or found != view.size:
        raise ValueError(
            f"part {_text(bounds)} of {name} has {found} elements of "
            f"{'/'.join(kinds) or array.dtype}, expected {view.size} of {array.dtype}"
        )
    place = view.reshape(-1) if view.flags.c_contiguous else view.flat
    start = 0
    for piece in pieces:
        place[start : start + piece.size] = piece.reshape(-1)
        start += piece.size
