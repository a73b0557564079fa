"""A table of where every patch went."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Array, Int, Shaped

from chapbook.core.data import Batches, arrays
from chapbook.core.errors import Error
from chapbook.vmoe.model import VisionTransformerMoE
from chapbook.vmoe.training import normalized


def route_table(
    model: VisionTransformerMoE,
    images: Shaped[Array | np.ndarray, "n height width channels"],
    labels: Int[Array | np.ndarray, " n"] | None = None,
    *,
    names: Sequence[str] | None = None,
    batch_size: int = 100,
) -> pl.DataFrame:
    """Returns where every patch of some images was sent, layer by layer.

    Args:
        model: Trained.
        images: uint8 of 0 to 255 or floats of 0 to 1.
        labels: Their classes.
        names: Of the classes; numbers if None.
        batch_size: Images that are routed together, and compete for the same buffers.

    Returns:
        A row for each choice: `image`, `row` and `col` of the patch (-1 for a class token),
        `layer`, `choice` (0 is the first), `expert`, `weight`, `position` in the expert's buffer,
        `kept`, and `class` if labels are given.

    Raises:
        Error: The model has no experts, or there are no images.
    """
    layers = model.config.moe_layers
    if not layers:
        raise Error("a dense model routes nothing; take one with experts")
    if not len(images):
        raise Error("there are no images")
    labels = None if labels is None else np.asarray(labels)
    parts = []
    size = min(batch_size, len(images))
    source = arrays(image=images)
    for number, batch in enumerate(Batches(source, size, shuffle=False, epochs=1, drop_last=False)):
        routed = jax.device_get(_routes(model, batch["image"], batch["mask"]))
        for layer, found in zip(layers, routed, strict=True):
            real = {name: values[batch["mask"]] for name, values in found.items()}
            parts.append(_rows(model, layer, real, number * size))
    table = pl.concat(parts).sort("image", "layer", maintain_order=True)
    if labels is None:
        return table
    classes = labels if names is None else np.asarray(names)[labels]
    told = pl.DataFrame({"image": np.arange(len(labels)), "class": classes})
    return table.join(told, on="image", how="left", maintain_order="left")


@eqx.filter_jit
def _routes(
    model: VisionTransformerMoE, images: Array | np.ndarray, valid: Array | np.ndarray
) -> list[dict[str, Array]]:
    _, layers = model.tokens(normalized(jnp.asarray(images)), valid=jnp.asarray(valid))
    return [
        {"expert": each.expert, "weight": each.weight, "position": each.position, "kept": each.kept}
        for each in layers
    ]


def _rows(model: Any, layer: int, found: dict[str, np.ndarray], start: int) -> pl.DataFrame:
    count, tokens, choices = found["expert"].shape
    first = int(model.config.classifier == "token")
    patch = np.arange(tokens) - first
    row, col = (np.where(patch < 0, -1, x) for x in np.divmod(patch, model.config.grid))
    image, token, choice = (x.reshape(-1) for x in np.indices((count, tokens, choices)))
    return pl.DataFrame(
        {
            "image": image + start, "row": row[token], "col": col[token],
            "layer": np.full(image.size, layer), "choice": choice,
            **{name: values.reshape(-1) for name, values in found.items()},
        }
    )  # fmt: skip
