"""Models from the weights of others, and models for another task or size of images.

Notable choices:

- A model is made as shapes alone and then filled; the arrays of a file are let go one by one, so
  that memory holds the weights once.
- All that does not fit is told in one error. What may be left out on purpose, the head, needs a
  word: `new_head=True`.
- A model too can be given in the official form (`parameters_of`), which makes it one more source.
"""

import dataclasses
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from chapbook.core.errors import Error
from chapbook.core.trees import filled, named
from chapbook.vmoe.config import VMoEConfig
from chapbook.vmoe.flax_msgpack import flatten, nest
from chapbook.vmoe.model import VisionTransformerMoE
from chapbook.vmoe.official import (
    config_of,
    parameter_table,
    read_timm,
    read_vit_npz,
    read_vmoe,
    stored_tensors,
)
from chapbook.vmoe.position_embedding import resize

_log = logging.getLogger(__name__)
_POSITIONS = "Encoder/posembed_input/pos_embedding"

# From the names of the model's arrays to official ones, one rule after the other.
_OFFICIAL = {
    r"^token$": "cls",
    r"^position$": _POSITIONS,
    r"^norm\.": "Encoder/encoder_norm.",
    r"^representation\.": "pre_logits.",
    r"^blocks\.(\d+)\.": r"Encoder/encoderblock_\1/",
    r"/attention_norm\.": "/LayerNorm_0.",
    r"/ffn_norm\.": "/LayerNorm_1.",
    r"/attention\.": "/SelfAttention.",
    r"/ffn\.router\.": "/Moe/Router/dense.",
    r"/ffn\.experts\.": "/Moe/Mlp.",
    r"/ffn\.": "/Mlp.",
    r"^pooling\.norm": "MapHead/LayerNorm",
    r"^pooling\.attention": "MapHead/MultiHeadDotProductAttention",
    r"^pooling\.ffn": "MapHead/Mlp",
    r"^pooling\.probe": "MapHead/probe",
    r"\.(up|w_in)$": "/Dense_0/kernel",
    r"\.(up_bias|b_in)$": "/Dense_0/bias",
    r"\.(down|w_out)$": "/Dense_1/kernel",
    r"\.(down_bias|b_out)$": "/Dense_1/bias",
    r"\.q(_bias)?$": r"/query\1",
    r"\.k(_bias)?$": r"/key\1",
    r"\.v(_bias)?$": r"/value\1",
    r"(query|key|value|\.out)$": r"\1/kernel",
    r"_bias$": "/bias",
    r"\.shift$": "/bias",
    r"\.": "/",
}


def load_vmoe(
    prefix: str | Path,
    *,
    new_head: bool = False,
    grid: tuple[int, int] | None = None,
    **settings: Any,
) -> VisionTransformerMoE:
    """Makes a model of a release of V-MoE.

    Args:
        prefix: Of the files `PREFIX.index` and `PREFIX.data-NNNNN-of-NNNNN`.
        new_head: Whether to begin with a fresh head in place of that of the file.
        grid: Rows and columns of patches that the position embeddings are of, if they are not as
            many. They are zoomed to those of `image_size`.
        settings: Fields of the configuration in place of those that shapes tell and of defaults,
            such as `num_selected_experts`, which no shape tells, `image_size`, `num_classes`.

    Raises:
        Error: The files are not whole, or do not fit the settings; all mismatches in one list.
    """
    return _load(prefix, read_vmoe(prefix), new_head, grid, settings)


def load_vit_npz(
    path: str | Path,
    *,
    new_head: bool = False,
    grid: tuple[int, int] | None = None,
    **settings: Any,
) -> VisionTransformerMoE:
    """Makes a dense model of a ViT that google-research/vision_transformer has released.

    Args:
        path: The `.npz` file.
        new_head: As for `load_vmoe`.
        grid: As for `load_vmoe`.
        settings: As for `load_vmoe`.

    Raises:
        Error: The file is not whole, or does not fit the settings; all mismatches in one list.
    """
    return _load(path, read_vit_npz(path), new_head, grid, settings)


def load_timm(
    path: str | Path,
    *,
    num_heads: int | None = None,
    new_head: bool = False,
    grid: tuple[int, int] | None = None,
    **settings: Any,
) -> VisionTransformerMoE:
    """Makes a dense model of a ViT of timm, one that it calls `vit_*`, with the exact GELU.

    Args:
        path: The `.safetensors` file.
        num_heads: Attention heads, which no shape tells; None takes those of timm's models.
        new_head: As for `load_vmoe`.
        grid: As for `load_vmoe`.
        settings: As for `load_vmoe`.

    Raises:
        Error: The file is not whole, or does not fit the settings; all mismatches in one list.
    """
    tree = read_timm(path, num_heads)
    return _load(path, tree, new_head, grid, {"gelu_approximate": False} | settings)


def adapt(
    model: VisionTransformerMoE,
    *,
    new_head: bool = False,
    grid: tuple[int, int] | None = None,
    **settings: Any,
) -> VisionTransformerMoE:
    """Returns a model of the same weights with other settings.

    Position embeddings are zoomed to another `image_size`; another `num_classes`, or another
    `representation`, needs a new head. All layers route as the model's configuration says, whatever
    `with_routing` has set for some of them.

    Args:
        model: Whose weights are taken.
        new_head: As for `load_vmoe`.
        grid: As for `load_vmoe`.
        settings: Fields of the configuration in place of the model's.

    Raises:
        Error: The weights do not fit the settings; all mismatches in one list.
    """
    config = _config(dataclasses.asdict(model.config) | settings)
    return _filled("the model", config, parameters_of(model), new_head, grid)


def parameters_of(model: VisionTransformerMoE) -> dict[str, Any]:
    """Returns a model's parameters as the official code names and shapes them.

    Args:
        model: Its arrays are not copied.

    Returns:
        The tree of parameters, as the readers return it.
    """
    leaves = {official_name(name): leaf for name, leaf in named(model).items()}
    for name, axes in (("cls", 2), (_POSITIONS, 1), ("MapHead/probe", 1)):
        if name in leaves:
            leaves[name] = leaves[name].reshape((1,) * axes + leaves[name].shape)
    return nest(leaves)


def listed_model(folder: str | Path) -> pl.DataFrame:
    """Lists the parameters of a model's folder, as `inspect` does those of others' files.

    Args:
        folder: As `save` writes it.

    Raises:
        Error: Its weights are missing or broken.
    """
    tensors = stored_tensors(Path(folder) / "weights.safetensors")
    return parameter_table((key, official_name(key), array) for key, array in tensors)


def official_name(name: str) -> str:
    """Returns what the official code calls an array of the model.

    Args:
        name: Its path in the model, such as `blocks.0.attention.q`.
    """
    for pattern, replacement in _OFFICIAL.items():
        name = re.sub(pattern, replacement, name)
    return name


def _load(
    source: str | Path,
    tree: dict[str, Any],
    new_head: bool,
    grid: tuple[int, int] | None,
    settings: Mapping[str, Any],
) -> VisionTransformerMoE:
    config = _config({**config_of(tree, settings.get("image_size")), **settings})
    return _filled(source, config, tree, new_head, grid)


def _config(fields: Mapping[str, Any]) -> VMoEConfig:
    known = {field.name for field in dataclasses.fields(VMoEConfig)}
    if unknown := sorted(fields.keys() - known):
        raise Error(
            f"there is no setting {', '.join(unknown)}", f"those are {', '.join(sorted(known))}"
        )
    return VMoEConfig(**fields)


def _filled(
    source: str | Path,
    config: VMoEConfig,
    tree: dict[str, Any],
    new_head: bool,
    grid: tuple[int, int] | None,
) -> VisionTransformerMoE:
    """Returns a model with the arrays of a tree, which is emptied."""
    given = dict(flatten(tree))
    tree.clear()
    key = jax.random.key(0)
    model = eqx.filter_eval_shape(VisionTransformerMoE, config, key=key)
    if new_head:
        # Compiled, the rest of the model, which nothing asks for, is not made.
        head = eqx.filter_jit(lambda: VisionTransformerMoE(config, key=key).head)()
        model = eqx.tree_at(lambda m: m.head, model, head, is_leaf=lambda x: x is None)
        given = {name: leaf for name, leaf in given.items() if not name.startswith("head/")}
        if config.representation is None:
            given = {n: leaf for n, leaf in given.items() if not n.startswith("pre_logits/")}
    if config.position == "learned" and len(given.get(_POSITIONS, ())) == 1:
        given[_POSITIONS] = _zoomed(source, np.asarray(given[_POSITIONS][0]), config, grid)
    wanted = {
        name: leaf for name, leaf in named(model).items() if isinstance(leaf, jax.ShapeDtypeStruct)
    }
    _check(source, config, {official_name(name): x.shape for name, x in wanted.items()}, given)
    return filled(
        model,
        {
            name: jnp.asarray(given.pop(official_name(name)), leaf.dtype).reshape(leaf.shape)
            for name, leaf in wanted.items()
        },
    )


def _zoomed(
    source: str | Path, old: np.ndarray, config: VMoEConfig, grid: tuple[int, int] | None
) -> np.ndarray:
    new = resize(old, config.grid, has_token=config.classifier == "token", source=grid)
    if new is not old:
        _log.warning(
            "%s: %d position embeddings are zoomed to the %d x %d patches of %d pixels",
            source, len(old), config.grid, config.grid, config.image_size,
        )  # fmt: skip
    return new


def _check(
    source: str | Path,
    config: VMoEConfig,
    wanted: Mapping[str, tuple[int, ...]],
    given: Mapping[str, Any],
) -> None:
    """Raises unless the arrays given are those wanted, axes of length 1 in front aside."""
    misshaped = [
        f"{name} is {given[name].shape}, wanted {shape}"
        for name, shape in wanted.items()
        if name in given and given[name].shape != (1,) * (given[name].ndim - len(shape)) + shape
    ]
    problems = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "mis-shaped": misshaped,
    }
    told = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in problems.items() if found)
    if not told:
        return
    hint = None
    if re.search(r"head/(kernel|bias)|pre_logits/", told):
        hint = "for a fresh head pass new_head=True"
    elif _POSITIONS in problems["missing"]:
        hint = "say position='sincos2d' or position='none'"
    raise Error(f"{source} does not fit {config} with {config.num_classes} classes: {told}", hint)
