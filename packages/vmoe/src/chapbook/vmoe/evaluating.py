"""Accuracy and cost of one trained model under other routings: capacity, K, order of filling."""

import itertools
import time
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Array, Float, Int, UInt8

from chapbook.core.data import Batches, Source, arrays
from chapbook.core.errors import Error
from chapbook.vmoe.cost import buffer, flops
from chapbook.vmoe.model import VisionTransformerMoE
from chapbook.vmoe.training import normalized

BINS = 15  # of confidence, in the calibration error


def sweep(
    model: VisionTransformerMoE,
    source: Source,
    *,
    capacities: Sequence[float | None] = (None,),
    selected: Sequence[int | None] = (None,),
    priorities: Sequence[bool | None] = (None,),
    normalize: Sequence[str | None] = (None,),
    batch_size: int = 100,
) -> pl.DataFrame:
    """Evaluates a model under every combination of routings; each compiles once.

    Images are taken in a shuffled order, the same each time: those that are computed together
    compete for the same experts, and a group of one class alone would crowd a few of them.

    Args:
        model: Trained.
        source: Images and classes, named `image` and `label`.
        capacities: Capacity factors C; None keeps the model's.
        selected: Experts per token K; None keeps the model's.
        priorities: Whether buffers are filled by score; None keeps the model's.
        normalize: How the K weights are normalized; None keeps the model's.
        batch_size: Images that are routed together.

    Returns:
        A row each: the setting, `accuracy`, `top5`, `nll` (in nats), `ece` (expected calibration
        error, 15 bins), `actual_capacity` (of buffers in whole rows), `dropped` (share of choices
        without room), `untouched` (share of tokens that no expert saw), `gflops_per_image` and
        `images_per_s` (compiling left out).

    Raises:
        Error: The data is empty, or a setting is out of its range.
    """
    if not len(source):
        raise Error("there are no images to evaluate on")
    rows = []
    for capacity, k, first, norm in itertools.product(capacities, selected, priorities, normalize):
        routed = model.with_routing(
            capacity_factor=capacity, num_selected_experts=k, batch_priority=first, normalize=norm
        )
        rows.append(_evaluated(routed, source, batch_size))
    return pl.DataFrame(rows)


def _evaluated(model: VisionTransformerMoE, source: Source, batch_size: int) -> dict:
    c = model.config
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    told: list[tuple[float, float]] = []
    seconds = 0.0
    for batch in Batches(source, batch_size, epochs=1, drop_last=False):
        if not seen:
            jax.block_until_ready(_predict(model, batch["image"], batch["mask"]))  # compiles
        begun = time.perf_counter()
        logits, dropped, untouched = jax.block_until_ready(
            _predict(model, batch["image"], batch["mask"])
        )
        seconds += time.perf_counter() - begun
        mask = batch["mask"]
        seen.append((np.asarray(logits)[mask], batch["label"][mask]))
        told.append((float(dropped), float(untouched)))
    logits, labels = (np.concatenate(part) for part in zip(*seen, strict=True))
    cost = flops(c)
    sparse = bool(c.moe_layers)
    room = c.num_experts * buffer(c) / (c.num_selected_experts * c.tokens_per_group)
    return {
        "capacity_factor": c.capacity_factor if sparse else None,
        "num_selected_experts": c.num_selected_experts if sparse else None,
        "batch_priority": c.batch_priority if sparse else None,
        "normalize": c.normalize if sparse else None,
        **scores(logits, labels),
        "actual_capacity": room if sparse else None,
        "dropped": float(np.mean([each[0] for each in told])) if sparse else None,
        "untouched": float(np.mean([each[1] for each in told])) if sparse else None,
        "gflops_per_image": cost.flops / 1e9,
        "images_per_s": len(told) * batch_size / seconds,
    }


@eqx.filter_jit
def _predict(
    model: VisionTransformerMoE, images: Array | np.ndarray, valid: Array | np.ndarray
) -> tuple[Array, Array, Array]:
    logits, aux = model(normalized(jnp.asarray(images)), valid=jnp.asarray(valid))
    return logits, aux.dropped, aux.untouched


def probabilities(
    model: VisionTransformerMoE,
    images: UInt8[np.ndarray, "n height width channels"],
    *,
    batch_size: int = 64,
) -> Float[np.ndarray, "n classes"]:
    """Returns the probabilities of the classes.

    Args:
        model: Trained.
        images: Pixels of 0 to 255.
        batch_size: Images that are routed together.
    """
    source = arrays(image=images)
    return _each(model, source, batch_size, lambda m, x, v: jax.nn.softmax(m(x, valid=v)[0]))


def features(
    model: VisionTransformerMoE, source: Source, *, batch_size: int = 64
) -> Float[np.ndarray, "n features"]:
    """Returns what the head sees, for a linear classifier on frozen features.

    Args:
        model: Trained.
        source: Images, named `image`.
        batch_size: Images that are routed together.
    """
    return _each(model, source, batch_size, lambda m, x, v: m.features(x, valid=v)[0])


def _each(
    model: VisionTransformerMoE, source: Source, batch_size: int, function: Callable[..., Array]
) -> np.ndarray:
    compiled = eqx.filter_jit(lambda m, x, valid: function(m, normalized(x), valid))
    found = [
        np.asarray(compiled(model, jnp.asarray(batch["image"]), batch["mask"]))[batch["mask"]]
        for batch in Batches(
            source, min(batch_size, len(source)), shuffle=False, epochs=1, drop_last=False
        )
    ]
    return np.concatenate(found)


def scores(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """Returns accuracy, top-5 accuracy, mean negative log likelihood and calibration error.

    Args:
        logits: Of the classes.
        labels: The true ones.
    """
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    true = logs[np.arange(len(labels)), labels]
    rank = (logs > true[:, None]).sum(-1)
    right, sure = logs.argmax(-1) == labels, np.exp(logs.max(-1))
    places = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = np.bincount(places, sure - right, BINS)
    return {
        "accuracy": float(right.mean()),
        "top5": float((rank < 5).mean()),
        "nll": float(-true.mean()),
        "ece": float(np.abs(gaps).sum() / len(labels)),
    }
