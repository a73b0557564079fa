"""Weights of others: releases of V-MoE, ViTs in `.npz` files, ViTs of timm, in one form.

The form is the official V-MoE code's tree of parameters, nested dicts with these leaves:

    embedding/{kernel,bias}                                        (p, p, channels, D), (D,)
    cls                                                            (1, 1, D)
    Encoder/posembed_input/pos_embedding                           (1, tokens, D)
    Encoder/encoderblock_i/{LayerNorm_0,LayerNorm_1}/{scale,bias}  (D,)
                          /SelfAttention/{query,key,value}/kernel  (D, heads, D / heads)
                                                          /bias    (heads, D / heads)
                          /SelfAttention/out/{kernel,bias}         (heads, D / heads, D), (D,)
                          /Mlp/{Dense_0,Dense_1}/{kernel,bias}     (D, H), (H,); (H, D), (D,)
                          /Moe/Mlp/{Dense_0,Dense_1}/{kernel,bias} the same after an axis of experts
                          /Moe/Router/dense/kernel                 (D, experts)
    Encoder/encoder_norm/{scale,bias}                              (D,)
    MapHead/...                                                    where a probe pools the tokens
    pre_logits/{kernel,bias}                                       (D, R), (R,)
    head/{kernel,bias}                                             (D or R, classes), (classes,)

Notable choices:

- A file is read whole or refused: a name that this form has no place for is an error.
- Kernels of PyTorch have outputs first, and timm keeps queries, keys and values in one.
- Arrays keep the dtype that they have in the file.
"""

import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import polars as pl
from safetensors import SafetensorError, safe_open

from chapbook.core.errors import Error
from chapbook.vmoe.flax_msgpack import flatten, nest
from chapbook.vmoe.sharded import read_index, read_sharded

# What NumPy and zipfile raise for a file that is broken, or of another kind.
_NPZ_FAULTS = (
    OSError, ValueError, EOFError, AttributeError, TypeError, RuntimeError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
_ATTENTION = "(query|key|value|out)/(kernel|bias)"
_MLP = "Mlp/Dense_[01]/(kernel|bias)"
_NORM = "(scale|bias)"
_NAMES = re.compile(
    rf"cls|(embedding|pre_logits|head)/(kernel|bias)|Encoder/encoder_norm/{_NORM}"
    r"|Encoder/posembed_input/pos_embedding"
    rf"|Encoder/encoderblock_\d+/(LayerNorm_[01]/{_NORM}|SelfAttention/{_ATTENTION}|(Moe/)?{_MLP}"
    r"|Moe/Router/dense/kernel)"
    rf"|MapHead/(probe|LayerNorm/{_NORM}|MultiHeadDotProductAttention/{_ATTENTION}|{_MLP})"
)

# Submodules are numbered over all kinds in releases, within their kind by later versions of Flax.
_FROM_NPZ = {
    r"^(opt/target|params)/": "",
    r"^Transformer/": "Encoder/",
    r"/LayerNorm_2/": "/LayerNorm_1/",
    r"/MultiHeadDotProductAttention_[01]/": "/SelfAttention/",
    r"/MlpBlock_[03]/": "/Mlp/",
}

_FROM_TIMM = {
    r"^cls_token$": "cls",
    r"^pos_embed$": "Encoder/posembed_input/pos_embedding",
    r"^patch_embed\.proj\.": "embedding.",
    r"^norm\.": "Encoder/encoder_norm.",
    r"^pre_logits\.fc\.": "pre_logits.",
    r"^blocks\.(\d+)\.": r"Encoder/encoderblock_\1/",
    r"/norm1\.": "/LayerNorm_0.",
    r"/norm2\.": "/LayerNorm_1.",
    r"/attn\.qkv\.": "/SelfAttention/{query,key,value}.",
    r"/attn\.proj\.": "/SelfAttention/out.",
    r"/mlp\.fc1\.": "/Mlp/Dense_0.",
    r"/mlp\.fc2\.": "/Mlp/Dense_1.",
    r"(norm|LayerNorm_[01])\.weight$": r"\1/scale",
    r"\.weight$": "/kernel",
    r"\.bias$": "/bias",
}
_PARTS = ("query", "key", "value")
_FUSED = "{query,key,value}"


def read_vmoe(prefix: str | Path) -> dict[str, Any]:
    """Reads the parameters of a release of V-MoE.

    Args:
        prefix: Of the files `PREFIX.index` and `PREFIX.data-NNNNN-of-NNNNN`; any of them will do.

    Returns:
        The tree of parameters.

    Raises:
        Error: A file is missing, broken or does not fit the others, or has unknown parameters.
    """
    _check_names(prefix, {name: name for name in read_index(prefix)})
    return read_sharded(prefix)


def read_vit_npz(path: str | Path) -> dict[str, Any]:
    """Reads the parameters of a ViT that google-research/vision_transformer has released.

    Args:
        path: The `.npz` file.

    Returns:
        The tree of parameters.

    Raises:
        Error: The file is missing or broken, or has unknown parameters.
    """
    arrays = dict(_npz(path))
    names = {key: _renamed(key, _FROM_NPZ) for key in arrays}
    _check_names(path, names)
    return nest({names[key]: array for key, array in arrays.items()})


def read_timm(path: str | Path, num_heads: int | None = None) -> dict[str, Any]:
    """Reads the parameters of a ViT of timm, one that it calls `vit_*`.

    Args:
        path: The `.safetensors` file.
        num_heads: Attention heads, which the shapes do not tell; None takes those of timm's
            models: D / 64, and 16 where D is above 1024.

    Returns:
        The tree of parameters.

    Raises:
        Error: The file is missing or broken, has unknown parameters or some of a wrong shape, or
            the heads do not divide the width.
    """
    arrays = dict(stored_tensors(path))
    names = {key: _renamed(key, _FROM_TIMM) for key in arrays}
    _check_names(path, names)
    if "patch_embed.proj.bias" not in arrays:
        raise Error(f"{path} has no patch_embed.proj.bias, which tells the width")
    width = len(arrays["patch_embed.proj.bias"])
    heads = num_heads or (16 if width > 1024 else max(1, width // 64))
    if width % heads or (num_heads is None and width <= 1024 and width % 64):
        raise Error(f"{path}: a width of {width} cannot have {heads} heads", "pass num_heads")
    found: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        try:
            found |= _of_timm(names[key], array, width, heads)
        except ValueError as problem:
            raise Error(f"{path}: {key} has the shape {array.shape}: {problem}") from problem
    return nest(found)


def _of_timm(name: str, array: np.ndarray, width: int, heads: int) -> dict[str, np.ndarray]:
    """Returns the parameters that one of timm's holds.

    Raises:
        ValueError: Its shape does not fit.
    """
    if _FUSED in name:
        split = array.reshape(3, heads, width // heads, *array.shape[1:])
        # Inputs come last in PyTorch: (3, heads, outputs, inputs) to (3, inputs, heads, outputs).
        parts = np.moveaxis(split, -1, 1) if array.ndim == 2 else split
        return {name.replace(_FUSED, part): parts[i] for i, part in enumerate(_PARTS)}
    if name == "embedding/kernel":
        return {name: array.transpose(2, 3, 1, 0)}
    if name.endswith("/SelfAttention/out/kernel"):
        return {name: array.T.reshape(heads, width // heads, width)}
    return {name: array.T if name.endswith("/kernel") else array}


def _npz(path: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        with np.load(path) as file:
            for key in file.files:
                array = file[key]
                # NumPy does not know bfloat16, and keeps it as two bytes of nothing in particular.
                yield key, array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array
    except _NPZ_FAULTS as error:
        raise Error(f"{path} is no whole .npz file: {error}") from error


def stored_tensors(path: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of a `.safetensors` file by name, one at a time.

    Args:
        path: The file.

    Raises:
        Error: It is missing or broken.
    """
    try:
        with safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118
                yield key, file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise Error(f"{path} is no whole .safetensors file: {error}") from error


def _renamed(key: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        key = re.sub(pattern, replacement, key)
    return key


def _is_known(name: str) -> bool:
    return _NAMES.fullmatch(name.replace(_FUSED, "query")) is not None


def _check_names(path: str | Path, names: Mapping[str, str]) -> None:
    """Raises unless all names, by what the file calls them, are known and different."""
    if unknown := sorted(key for key, name in names.items() if not _is_known(name)):
        raise Error(
            f"{path} has parameters that a ViT with experts has no place for: {', '.join(unknown)}"
        )
    if len(set(names.values())) < len(names):
        raise Error(f"{path} has the same parameter by two names")


def inspect(path: str | Path) -> pl.DataFrame:
    """Lists the parameters of a file or of a release without loading a model.

    Of a release only the index is read.

    Args:
        path: The prefix of a release, an `.npz` file, or a `.safetensors` file of timm.

    Returns:
        `key` is what the file calls a parameter, `name` what it is called here: null if it has no
        place in the model. `shape`, `dtype`, `expert` (whether it belongs to experts), `bytes`.

    Raises:
        Error: The file is missing or broken.
    """
    if str(path).endswith(".npz"):
        found = ((key, _renamed(key, _FROM_NPZ), array) for key, array in _npz(path))
    elif str(path).endswith(".safetensors"):
        found = ((key, _renamed(key, _FROM_TIMM), array) for key, array in stored_tensors(path))
    else:
        found = ((key, key, info) for key, info in read_index(path).items())
    return parameter_table(found)


def parameter_table(found: Iterable[tuple[str, str, Any]]) -> pl.DataFrame:
    """Returns a row for each parameter, with the columns that `inspect` describes.

    Args:
        found: What the file calls a parameter, its official name, and what has its shape and dtype.
    """
    rows = [
        (
            key,
            name if _is_known(name) else None,
            list(array.shape),
            str(array.dtype),
            "/Moe/Mlp/" in name,
            math.prod(array.shape) * array.dtype.itemsize,
        )
        for key, name, array in found
    ]
    types = {"key": pl.String, "name": pl.String, "shape": pl.List(pl.Int64), "dtype": pl.String,
             "expert": pl.Boolean, "bytes": pl.Int64}  # fmt: skip
    return pl.DataFrame(rows, types, orient="row")


def config_of(tree: Mapping[str, Any], image_size: int | None = None) -> dict[str, Any]:
    """Infers from the shapes of parameters the fields of a configuration that they determine.

    Not among them are K, capacity and all else that is about routing, and how the tokens are
    pooled where there is neither a class token nor a probe: `gap` is taken.

    Args:
        tree: As the readers return it.
        image_size: Pixels of an image's side; None takes those that the position embeddings were
            trained with.

    Raises:
        Error: Parameters are missing or contradict each other, or the embeddings are those of no
            square of patches and `image_size` is not given.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten(tree)}
    rows, columns, channels, width = _shape(shapes, "embedding/kernel", 4)
    if rows != columns:
        raise Error(f"embedding/kernel has patches of {rows} x {columns}; they must be square")
    layers = _layers(shapes)
    moe = tuple(i for i in layers if f"{_block(i)}/Moe/Router/dense/kernel" in shapes)
    mlps = [_shape(shapes, f"{_block(i)}/{'Moe/' * (i in moe)}Mlp/Dense_0/kernel", 2 + (i in moe))
            for i in layers]  # fmt: skip
    found = {
        "patch_size": rows,
        "num_layers": len(layers),
        "hidden_size": width,
        "mlp_dim": _only({shape[-1] for shape in mlps}, "widths of the feed-forward blocks"),
        "num_heads": _shape(shapes, f"{_block(0)}/SelfAttention/query/kernel", 3)[1],
        "moe_layers": moe,
        "channels": channels,
        "num_classes": _shape(shapes, "head/kernel", 2)[1] if "head/kernel" in shapes else 0,
        "classifier": "map" if "MapHead/probe" in shapes else "token" if "cls" in shapes else "gap",
        "representation": shapes["pre_logits/bias"][0] if "pre_logits/bias" in shapes else None,
    }
    if moe:
        found["num_experts"] = _only({_experts(shapes, i) for i in moe}, "numbers of experts")
    if image_size is not None:
        found["image_size"] = image_size
    if "Encoder/posembed_input/pos_embedding" in shapes:
        tokens = _shape(shapes, "Encoder/posembed_input/pos_embedding", 3)[1] - ("cls" in shapes)
        side = math.isqrt(tokens)
        if side**2 != tokens and image_size is None:
            raise Error(
                f"{tokens} position embeddings are those of no square of patches",
                "pass image_size, and the grid that they are of",
            )
        found.setdefault("image_size", side * rows)
        found["position"] = "learned"
    return found


def _block(layer: int) -> str:
    return f"Encoder/encoderblock_{layer}"


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> range:
    found = {int(m[1]) for name in shapes if (m := re.match(r"Encoder/encoderblock_(\d+)/", name))}
    if found != set(range(len(found))) or not found:
        raise Error(f"the layers {sorted(found)} are not all from 0 on")
    return range(len(found))


def _experts(shapes: Mapping[str, tuple[int, ...]], layer: int) -> int:
    name = f"{_block(layer)}/Moe/Router/dense/kernel"
    if len(shapes[name]) == 3:
        raise Error(
            f"{name} has the shape {shapes[name]}: this is an ensemble of {shapes[name][1]} models "
            "that share layers (E3), which is no V-MoE"
        )
    return _shape(shapes, name, 2)[1]


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, axes: int) -> tuple[int, ...]:
    if name not in shapes:
        raise Error(f"there is no {name}")
    if len(shapes[name]) != axes:
        raise Error(f"{name} has the shape {shapes[name]}, expected one of {axes} axes")
    return shapes[name]


def _only(found: set[int], what: str) -> int:
    if len(found) > 1:
        raise Error(f"layers differ in {what}: {', '.join(map(str, sorted(found)))}")
    return next(iter(found))
