"""Weights of any tree of arrays, to and from safetensors files.

Notable choices:

- Saving streams one tensor at a time, so a tree that is sharded over many devices never has to
  fit into the memory of one host.
- Loading reads of each tensor only the part that each device holds, after all names and shapes
  have been checked.
"""

import contextlib
import fnmatch
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic

Tree = TypeVar("Tree")
Rename = Callable[[str], str] | Mapping[str, str]

_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
}
_DTYPES = {code: name for name, code in _CODES.items()}
_log = logging.getLogger(__name__)


def save_weights(tree: Any, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the arrays of a tree into one safetensors file, whole or not at all.

    The names are the dotted paths of the arrays, such as `blocks.0.attn.q`. In a job of several
    processes all must call this: arrays that lie across processes are gathered one by one, and
    process 0 writes.

    Args:
        tree: The tree; leaves that are no arrays are left out.
        path: The file.
        metadata: Text to keep in the header of the file.

    Raises:
        Error: An array has a dtype that safetensors does not know (a key array, say), or two
            arrays have one name.
    """
    # The format wants every tensor aligned to its item size: wide ones come first.
    leaves = sorted(_leaves(tree).items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, leaf in leaves:
        if leaf.dtype.name not in _CODES:
            raise Error(f"{name}: a safetensors file cannot hold {leaf.dtype.name}")
        start, end = end, end + math.prod(leaf.shape) * leaf.dtype.itemsize
        code, shape = _CODES[leaf.dtype.name], list(leaf.shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, leaf in leaves:
                # NumPy hands out no buffer of bfloat16, but one of its bytes.
                file.write(_whole(leaf).reshape(-1).view(np.uint8).data)

    if jax.process_index() == 0:
        write_atomic(path, write)
    else:
        for _, leaf in leaves:
            _whole(leaf)


def _whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.ascontiguousarray(leaf, np.dtype(leaf.dtype.name)).reshape(leaf.shape)


def load_weights(
    path: str | Path,
    like: Tree,
    rename: Rename | None = None,
    transpose: Sequence[str] = (),
    strict: bool = True,
) -> Tree:
    """Reads a checkpoint into the arrays of a tree, each device only its own shards.

    Args:
        path: A safetensors file, the `*.index.json` of a set of them, or the folder of either.
        like: The tree to fill: arrays, or `jax.ShapeDtypeStruct`s with shardings. Its shapes,
            dtypes and shardings are those of the result; what is no array stays.
        rename: From a name in the tree (`blocks.attn.q`) to the one in the file: a function, or
            regular expressions and their replacements, applied in turn. A `*` in the result
            stacks: `blocks.*.attn.q` is `blocks.0.attn.q`, `blocks.1.attn.q` and so on, along a
            new leading axis.
        transpose: Shell patterns for names in the tree whose last two axes the file has the other
            way round.
        strict: Raise when names are missing or unexpected. Otherwise arrays that are missing stay
            as in `like`, unexpected ones are skipped, and both are logged.

    Returns:
        A tree like `like`.

    Raises:
        Error: The names or shapes differ, in one list; or a file cannot be read.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        tensors = _open(path, stack)
        leaves = _leaves(like)
        stored = {name: _renamed(name, rename) for name in leaves}
        swapped = {n for n in leaves if any(fnmatch.fnmatchcase(n, text) for text in transpose)}
        absent = _check(path, leaves, stored, swapped, tensors, strict)

        def load(name: str, leaf: Any) -> Any:
            if name in absent:
                return leaf
            parts = [tensors[part] for part in _parts(stored[name], leaf)]
            stacked, swap = "*" in stored[name], name in swapped
            return _place(leaf, lambda index: _read(parts, index, stacked, swap, leaf.dtype))

        loaded = iter([load(name, leaf) for name, leaf in leaves.items()])
        return jax.tree.map(lambda leaf: next(loaded) if _is_array(leaf) else leaf, like)


def _open(path: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Returns the reader of every tensor of a file, or of a set of files."""
    if path.is_dir():
        found = sorted(path.glob("*.index.json")) or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            listing = ", ".join(file.name for file in found) or "none"
            raise Error(f"{path} should hold one checkpoint, it holds {listing}; name the file")
        path = found[0]
    tensors = {}
    try:
        files = [path]
        if path.suffix == ".json":
            index = json.loads(path.read_text(encoding="utf-8"))
            files = [path.with_name(name) for name in sorted(set(index["weight_map"].values()))]
        for path in files:
            reader = stack.enter_context(safe_open(path, framework="np"))
            tensors |= {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise Error(f"{path} is missing") from error
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise Error(f"{path} is no whole checkpoint: {error}") from error
    return tensors


def _renamed(name: str, rename: Rename | None) -> str:
    if callable(rename):
        return rename(name)
    for pattern, replacement in (rename or {}).items():
        name = re.sub(pattern, replacement, name)
    return name


def _parts(stored: str, leaf: Any) -> list[str]:
    """Returns the names of the tensors that make up an array: several if they are stacked."""
    if "*" not in stored:
        return [stored]
    return [stored.replace("*", str(i)) for i in range(math.prod(leaf.shape[:1]))]


def _check(
    path: Path,
    leaves: Mapping[str, Any],
    stored: Mapping[str, str],
    swapped: set[str],
    tensors: Mapping[str, Any],
    strict: bool,
) -> set[str]:
    """Raises unless the tensors fit the tree; returns the arrays that the file does not hold."""
    parts = {name: _parts(stored[name], leaf) for name, leaf in leaves.items()}
    wanted = {part for found in parts.values() for part in found}
    absent = {name for name, found in parts.items() if not tensors.keys() >= set(found)}
    misshaped = []
    for name, leaf in leaves.items():
        shape = leaf.shape[1:] if "*" in stored[name] else leaf.shape
        for part in sorted(tensors.keys() & set(parts[name])):
            held = _swap(tuple(tensors[part].get_shape()), name in swapped)
            dtype = _DTYPES.get(code := tensors[part].get_dtype())
            if dtype is None or _is_inexact(dtype) != _is_inexact(leaf.dtype) or held != shape:
                misshaped.append(f"{part} is {code} {held}, wanted {leaf.dtype} {shape}")
    problems = {
        "missing": sorted(wanted - tensors.keys()),
        "unexpected": sorted(tensors.keys() - wanted),
        "mis-shaped": misshaped,
    }
    report = "; ".join(f"{kind}: {_listing(found)}" for kind, found in problems.items() if found)
    abstract = any(isinstance(leaves[name], jax.ShapeDtypeStruct) for name in absent)
    if misshaped or abstract or (strict and report):
        raise Error(f"{path} does not fit: {report}", "pass rename=, transpose= or strict=False")
    if report:
        _log.warning("%s fits in part: %s", path, report)
    return absent


def _listing(found: Sequence[str]) -> str:
    rest = f" and {len(found) - 20} more" if len(found) > 20 else ""
    return ", ".join(found[:20]) + rest


def _place(leaf: Any, read: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or not getattr(leaf, "committed", True):
        return jnp.asarray(read((slice(None),) * leaf.ndim))
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: read(index or ()))


def _read(
    parts: list[Any], index: tuple[slice, ...], stacked: bool, swap: bool, dtype: Any
) -> np.ndarray:
    if stacked:
        return np.stack([_read([p], index[1:], False, swap, dtype) for p in parts[index[0]]])
    # safetensors slices neither scalars nor empty tensors.
    part = parts[0][_swap(index, swap) if math.prod(parts[0].get_shape()) > 1 else ()]
    return (part.swapaxes(-1, -2) if swap else part).astype(dtype, copy=False)


def _swap(of_axes: tuple, swap: bool) -> tuple:
    return (*of_axes[:-2], of_axes[-1], of_axes[-2]) if swap and len(of_axes) > 1 else of_axes


def _leaves(tree: Any) -> dict[str, Any]:
    """Returns the arrays of a tree by their dotted paths."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    found = [
        (jax.tree_util.keystr(keys, simple=True, separator="."), leaf)
        for keys, leaf in flat
        if _is_array(leaf)
    ]
    leaves = dict(found)
    if len(leaves) < len(found):
        twice = next(name for name, count in Counter(n for n, _ in found).items() if count > 1)
        raise Error(f"two arrays have the name {twice}; a key of a dict must not hold dots")
    return leaves


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _is_inexact(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)
