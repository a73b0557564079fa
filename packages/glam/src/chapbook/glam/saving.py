"""Models as folders: `config.json`, `weights.safetensors`, and the tokenizer's file beside them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from chapbook.core.checkpoint import Checkpoints
from chapbook.core.config import configure
from chapbook.core.errors import Error
from chapbook.core.io import write_json
from chapbook.core.transformer import Stack
from chapbook.core.weights import load_weights, save_weights
from chapbook.glam.config import GLaMConfig
from chapbook.glam.language_model import check_vocabulary
from chapbook.glam.model import GLaM
from chapbook.glam.tokenizer import Tokenizer, load_tokenizer


def save(model: GLaM, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Writes a model's folder; its `config.json` comes last, so that a folder with it is whole.

    Args:
        model: What is written.
        folder: Made if missing.
        tokenizer: Its own, written beside it.

    Raises:
        Error: The model is unrolled, or the tokenizer has more tokens than the model.
    """
    if not isinstance(model.layers, Stack):
        raise Error("an unrolled model is not saved", "save the model that it was made of")
    if tokenizer is not None:
        check_vocabulary(model, tokenizer)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.json"
    config.unlink(missing_ok=True)
    save_weights(model, folder / "weights.safetensors")
    told = {"glam": dataclasses.asdict(model.config), "line": str(model.config)}
    if tokenizer is not None:
        tokenizer.save(folder)
        told["tokenizer"] = tokenizer.fingerprint
    write_json(config, told)


def load(folder: str | Path) -> GLaM:
    """Reads a model's folder.

    Args:
        folder: As `save` writes it, or a training's, with `model` in it.

    Raises:
        Error: It is no such folder, or its arrays do not fit its configuration.
    """
    path, told = _config(folder)
    return load_weights(path.parent / "weights.safetensors", _shapes(path, told["glam"]))


def load_checkpoint(run: str | Path, step: int | None = None) -> GLaM:
    """Reads the model of a checkpoint of a training, finished or not.

    Args:
        run: The training's folder.
        step: Updates that the model has seen; those of the last checkpoint if None.

    Raises:
        Error: It is no such folder, or has no such checkpoint; with the ones that it has.
    """
    path = Path(run) / "config.json"
    try:
        told = json.loads(path.read_text())["options"]["model"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise Error(f"{run} is no folder of a training: {problem}") from None
    shapes = _shapes(path, told)
    arrays = eqx.filter(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    checkpoints = Path(run) / "checkpoints"
    if not checkpoints.is_dir():
        raise Error(f"{run} has no checkpoint yet")
    with Checkpoints(checkpoints) as held:
        found, _ = held.restore({"params": arrays}, step)
    return eqx.combine(found["params"], shapes)


def in_precision(model: GLaM, precision: str) -> GLaM:
    """Returns a model whose weights are rounded to a precision; `load` reads it as float32.

    Args:
        model: Any.
        precision: `float32` or `bfloat16`.
    """
    floats, rest = eqx.partition(model, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(lambda x: x.astype(jnp.dtype(precision)), floats), rest)


def is_model(folder: str | Path) -> bool:
    """Returns whether a folder holds a model that `load` reads.

    Args:
        folder: Of a model, or of a training, which holds one at its end.
    """
    try:
        _config(folder)
    except Error:
        return False
    return True


def tokenizer_of(folder: str | Path) -> Tokenizer:
    """Reads the tokenizer of a model's folder.

    Args:
        folder: As for `load`.

    Raises:
        Error: There is none.
    """
    path, told = _config(folder)
    if "tokenizer" not in told:
        raise Error(f"{path.parent} holds no tokenizer", "name it by --tokenizer")
    return load_tokenizer("bytes" if told["tokenizer"] == "bytes" else path.parent)


def _shapes(path: Path, settings: dict[str, Any]) -> GLaM:
    known = {field.name for field in dataclasses.fields(GLaMConfig)}
    if unknown := sorted(set(settings) - known):
        raise Error(f"{path} has settings that this version does not know: {', '.join(unknown)}")
    config = configure(GLaMConfig, base=GLaMConfig(**settings))
    return eqx.filter_eval_shape(GLaM, config, key=jax.random.key(0))


def _config(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    folder = Path(folder)
    if (folder / "model" / "config.json").exists():
        folder = folder / "model"
    path = folder / "config.json"
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise Error(f"{folder} is no folder of a model: {problem}") from None
    if "glam" not in told:
        raise Error(f"{path} is no configuration of a model; it lacks `glam`")
    return path, told
