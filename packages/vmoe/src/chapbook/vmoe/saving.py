"""Models as folders: `config.json`, which says all but the numbers, and `weights.safetensors`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from chapbook.core.config import configure
from chapbook.core.errors import Error
from chapbook.core.io import write_json
from chapbook.core.weights import load_weights, save_weights
from chapbook.vmoe.config import VMoEConfig
from chapbook.vmoe.model import VisionTransformerMoE


def save(
    model: VisionTransformerMoE, folder: str | Path, *, names: Sequence[str] | None = None
) -> None:
    """Writes a model's folder; its `config.json` comes last, so that a folder with it is whole.

    Args:
        model: What is written.
        folder: Made if missing.
        names: Of the classes.

    Raises:
        Error: There are other names than classes.
    """
    folder = Path(folder)
    if names is not None and len(names) != model.config.num_classes:
        raise Error(f"{len(names)} names for {model.config.num_classes} classes")
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.json"
    config.unlink(missing_ok=True)
    save_weights(model, folder / "weights.safetensors")
    told = {"vmoe": dataclasses.asdict(model.config), "line": str(model.config)}
    told |= {"routing": _routing(model), "names": None if names is None else list(names)}
    write_json(config, told)


def _routing(model: VisionTransformerMoE) -> dict[str, dict[str, Any]]:
    """Returns the settings in which a layer's routing differs from the model's, by layer."""
    usual = dataclasses.asdict(model.config)
    own = {
        str(layer): dataclasses.asdict(model.blocks[layer].ffn.config)
        for layer in model.config.moe_layers
    }
    found = {
        layer: {name: value for name, value in each.items() if value != usual[name]}
        for layer, each in own.items()
    }
    return {layer: changes for layer, changes in found.items() if changes}


def load(folder: str | Path) -> tuple[VisionTransformerMoE, list[str] | None]:
    """Reads a model's folder.

    Args:
        folder: As `save` writes it, or a training's, with `model` in it.

    Returns:
        The model, and the names of its classes if they are known.

    Raises:
        Error: It is no such folder, or its arrays do not fit its configuration.
    """
    folder = Path(folder)
    if (folder / "model" / "config.json").exists():
        folder = folder / "model"
    path = folder / "config.json"
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise Error(f"{folder} is no folder of a model: {problem}") from None
    if "vmoe" not in told:
        raise Error(f"{path} is no configuration of a model; it lacks `vmoe`")
    sets: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in told["vmoe"].items()
    }
    known = {field.name for field in dataclasses.fields(VMoEConfig)}
    if unknown := sorted(set(sets) - known):
        raise Error(f"{path} has settings that this version does not know: {', '.join(unknown)}")
    config = configure(VMoEConfig, base=VMoEConfig(**sets))
    shapes = eqx.filter_eval_shape(VisionTransformerMoE, config, key=jax.random.key(0))
    model = load_weights(folder / "weights.safetensors", shapes)
    for layer, changes in told.get("routing", {}).items():
        model = model.with_routing(layers=[int(layer)], **changes)
    return model, told.get("names")
