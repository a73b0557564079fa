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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.core.trees import filled, named

Tree = TypeVar("Tree")
Rename = Callable[[str], str] | Mapping[str, str]

_CODES = {
    "bool": "BOOL", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "complex64": "C64",
    "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64",
}  # fmt: skip
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
    leaves = sorted(named(tree).items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
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
        path: A safetensors file, or the `*.index.json` of a set of them.
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
    leaves = named(like)
    stored = {name: _stored(name, leaf, rename, transpose) for name, leaf in leaves.items()}
    with contextlib.ExitStack() as stack:
        tensors = _open(Path(path), stack)
        absent = _check(path, leaves, stored, tensors, strict)

        def load(name: str, leaf: Any) -> jax.Array:
            def read(index: tuple[slice, ...] | None) -> np.ndarray:
                return _read(tensors, stored[name], index or ()).astype(leaf.dtype, copy=False)

            sharding = getattr(leaf, "sharding", None)
            if sharding is None or not getattr(leaf, "committed", True):
                return jnp.asarray(read((slice(None),) * leaf.ndim))
            return jax.make_array_from_callback(leaf.shape, sharding, read)

        found = {name: load(name, leaf) for name, leaf in leaves.items() if name not in absent}
    return filled(like, found)


class _Stored(NamedTuple):
    """How a file holds an array: in one tensor or a stack of several, as it is or transposed."""

    names: list[str]
    stacked: bool
    transposed: bool


def _stored(name: str, leaf: Any, rename: Rename | None, transpose: Sequence[str]) -> _Stored:
    stored = rename(name) if callable(rename) else name
    for pattern, replacement in () if callable(rename) else (rename or {}).items():
        stored = re.sub(pattern, replacement, stored)
    stacked = "*" in stored and leaf.ndim > 0
    names = [stored.replace("*", str(i)) for i in range(leaf.shape[0])] if stacked else [stored]
    swap = any(fnmatch.fnmatchcase(name, pattern) for pattern in transpose)
    return _Stored(names, stacked, swap and leaf.ndim - stacked > 1)


def _open(path: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Returns the reader of every tensor of a file, or of a set of files."""
    tensors = {}
    try:
        files = [path]
        if path.suffix == ".json":
            index = json.loads(path.read_text(encoding="utf-8"))
            files = [path.with_name(name) for name in sorted(set(index["weight_map"].values()))]
        for path in files:
            reader = stack.enter_context(safe_open(path, framework="np"))
            tensors |= {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise Error(f"{path} is no whole checkpoint: {error}") from error
    return tensors


def _check(
    path: str | Path,
    leaves: dict[str, Any],
    stored: dict[str, _Stored],
    tensors: dict[str, Any],
    strict: bool,
) -> set[str]:
    """Raises unless the tensors fit the tree; returns the arrays that the file does not hold."""
    wanted = {part for found in stored.values() for part in found.names}
    misshaped = []
    for name, leaf in leaves.items():
        shape = leaf.shape[1:] if stored[name].stacked else leaf.shape
        for part in sorted(tensors.keys() & stored[name].names):
            held, code = tuple(tensors[part].get_shape()), tensors[part].get_dtype()
            dtype = _DTYPES.get(code)
            fits = dtype is not None and _is_inexact(dtype) == _is_inexact(leaf.dtype)
            if not fits or len(held) != len(shape) or _swapped(held, stored[name]) != shape:
                misshaped.append(f"{part} is {code} {held}, wanted {leaf.dtype} {shape}")
    problems = {
        "missing": sorted(wanted - tensors.keys()),
        "unexpected": sorted(tensors.keys() - wanted),
        "mis-shaped": misshaped,
    }
    report = "; ".join(f"{kind}: {_listed(found)}" for kind, found in problems.items() if found)
    absent = {name for name in leaves if not tensors.keys() >= set(stored[name].names)}
    abstract = any(isinstance(leaves[name], jax.ShapeDtypeStruct) for name in absent)
    if misshaped or abstract or (strict and report):
        raise Error(f"{path} does not fit: {report}", "pass rename=, transpose= or strict=False")
    if report:
        _log.warning("%s fits in part: %s", path, report)
    return absent


def _listed(found: Sequence[str]) -> str:
    rest = f" and {len(found) - 20} more" if len(found) > 20 else ""
    return ", ".join(found[:20]) + rest


def _read(tensors: Mapping[str, Any], stored: _Stored, index: tuple[slice, ...]) -> np.ndarray:
    if stored.stacked:
        alone = [stored._replace(names=[name], stacked=False) for name in stored.names[index[0]]]
        return np.stack([_read(tensors, one, index[1:]) for one in alone])
    tensor = tensors[stored.names[0]]
    # safetensors slices neither scalars nor empty tensors.
    part = tensor[_swapped(index, stored) if math.prod(tensor.get_shape()) > 1 else ()]
    return part.swapaxes(-1, -2) if stored.transposed else part


def _swapped(of_axes: tuple, stored: _Stored) -> tuple:
    return (*of_axes[:-2], of_axes[-1], of_axes[-2]) if stored.transposed else of_axes


def _is_inexact(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)
