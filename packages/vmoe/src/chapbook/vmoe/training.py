"""Recipes: how a model is trained from scratch, or tuned to another task.

Everything runs through `chapbook.core.train.fit`: it is resumable, sharded and guarded against NaN.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from chapbook.core.config import configure
from chapbook.core.data import Batches, Map, Source
from chapbook.core.errors import Error
from chapbook.core.run import Run
from chapbook.core.train import Result, mean_over
from chapbook.core.train import fit as core_fit
from chapbook.vmoe.augmentation import mixup
from chapbook.vmoe.model import RULES, VisionTransformerMoE

PRESETS: dict[str, dict[str, Any]] = {
    # The recipes of the released models.
    "pretrain": {
        "batch_size": 4096, "learning_rate": 8e-4, "warmup": 10_000, "schedule": "linear",
        "final_rate": 1e-5, "weight_decay": 0.1, "loss": "sigmoid",
    },
    "ilsvrc2012": {
        "batch_size": 8192, "learning_rate": 3e-3, "warmup": 10_000, "schedule": "linear",
        "final_rate": 1e-5, "weight_decay": 0.1, "loss": "sigmoid", "mixup": 0.2,
    },
    "finetune": {
        "steps": 10_000, "batch_size": 512, "optimizer": "sgd", "learning_rate": 3e-3,
        "warmup": 500, "final_rate": 1e-5, "weight_decay": 0.0, "max_norm": 10.0,
        "capacity_factor": 1.5,
    },
    # For thousands of images, not millions.
    "small": {
        "batch_size": 100, "learning_rate": 2e-3, "warmup": 0.1, "weight_decay": 0.05,
    },
}  # fmt: skip

# Evaluations within a training leave room for nearly all tokens, as in the official code.
ROOMY = 4.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Args:
        steps: Updates; None trains for `epochs`.
        epochs: Passes over the data, where `steps` is None.
        batch_size: Images in an update.
        optimizer: `adam`, with decay apart from the gradient (AdamW), or `sgd` with momentum 0.9.
        learning_rate: At its peak.
        warmup: Updates over which it rises from 0; below 1, their share of all.
        schedule: How it falls afterwards, `linear`ly or along half a `cosine`.
        final_rate: What it falls to.
        weight_decay: Of kernels: arrays of two dimensions and more, embeddings left out.
        max_norm: The norm that the gradient is clipped to.
        loss: Cross-entropy of a `softmax` over the classes, or the sum of one `sigmoid` per class.
        mixup: Both parameters of the Beta distribution that mixes pairs of images; 0 mixes none.
        capacity_factor: Room in the experts' buffers in training; None keeps the model's.
        accumulate: Parts of a batch that are computed one after the other.
        precision: `float32`, or `bfloat16` for activations; routers stay in float32.
        remat: Whether activations within blocks are computed again in the backward pass.
    """

    steps: int | None = None
    epochs: float = 30.0
    batch_size: int = 256
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    warmup: float = 0.1
    schedule: Literal["linear", "cosine"] = "cosine"
    final_rate: float = 0.0
    weight_decay: float = 0.1
    max_norm: float = 1.0
    loss: Literal["softmax", "sigmoid"] = "softmax"
    mixup: float = 0.0
    capacity_factor: float | None = None
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    def __post_init__(self):
        for name in ("epochs", "batch_size", "learning_rate", "max_norm", "accumulate"):
            if not getattr(self, name) > 0:
                raise Error(f"{name}={getattr(self, name)} must be above 0")
        for name in ("warmup", "final_rate", "weight_decay", "mixup"):
            if not getattr(self, name) >= 0:
                raise Error(f"{name}={getattr(self, name)} must be 0 or above")
        if self.steps is not None and self.steps < 1:
            raise Error(f"steps={self.steps} must be 1 or more")

    @classmethod
    def preset(cls, name: str, **settings: Any) -> "TrainConfig":
        """Returns a recipe: `pretrain`, `ilsvrc2012`, `finetune` or `small`.

        Args:
            name: Of the recipe.
            settings: Fields that differ from it.

        Raises:
            Error: There is no such recipe.
        """
        if name not in PRESETS:
            raise Error(f"there is no recipe {name}; there are {', '.join(PRESETS)}")
        return configure(cls, base=cls(**(PRESETS[name] | settings)))

    def count(self, images: int) -> int:
        """Returns the updates of a training on so many images."""
        return self.steps or max(1, round(self.epochs * images / self.batch_size))


def optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """Returns the recipe's optimizer.

    Args:
        config: The recipe.
        steps: Updates in all.
    """
    rise = round(config.warmup * steps) if config.warmup < 1 else round(config.warmup)
    rise = min(rise, max(steps - 1, 1))
    peak, least = config.learning_rate, config.final_rate
    if config.schedule == "linear":
        fall = optax.linear_schedule(peak, least, max(steps - rise, 1))
    else:
        fall = optax.cosine_decay_schedule(peak, max(steps - rise, 1), alpha=least / peak)
    rate = optax.join_schedules([optax.linear_schedule(0.0, peak, max(rise, 1)), fall], [rise])
    rule = optax.trace(0.9) if config.optimizer == "sgd" else optax.scale_by_adam(0.9, 0.999)
    return optax.chain(
        optax.clip_by_global_norm(config.max_norm),
        rule,
        optax.add_decayed_weights(config.weight_decay, mask=_kernels),
        optax.scale_by_learning_rate(rate),
    )


def _kernels(params: PyTree) -> PyTree:
    """Returns which leaves are kernels: what multiplies activations."""

    def kernel(path: Any, leaf: Any) -> bool:
        name = jax.tree_util.keystr(path)
        apart = ("bias", ".b_in", ".b_out", "norm", "position", "token", "probe")
        return leaf is not None and not any(word in name for word in apart)

    return jax.tree_util.tree_map_with_path(kernel, params)


def classification_loss(
    logits: Float[Array, "batch classes"],
    targets: Float[Array, "batch classes"],
    kind: Literal["softmax", "sigmoid"] = "softmax",
) -> Float[Array, " batch"]:
    """Returns the cross-entropy of each image.

    Args:
        logits: Of the classes.
        targets: Their probabilities, mixed labels among them.
        kind: A softmax over the classes, or the sum over classes of one sigmoid each.
    """
    logits = logits.astype(jnp.float32)
    if kind == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)


def normalized(images: Array) -> Float[Array, "..."]:
    """Returns pixels on the scale from -1 to 1; whole numbers are taken to end at 255."""
    scale = 127.5 if jnp.issubdtype(images.dtype, jnp.integer) else 0.5
    return images.astype(jnp.float32) / scale - 1


def fit(
    model: VisionTransformerMoE,
    train: Source,
    config: TrainConfig,
    *,
    key: Key[Array, ""],
    valid: Source | None = None,
    seed: int = 0,
    augment: Map | None = None,
    workers: int = 0,
    run: Run | None = None,
    mesh: Mesh | None = None,
    evaluate_every: int | None = None,
    save_every: int = 500,
    quiet: bool = False,
) -> Result:
    """Trains a model on images; an interrupted run goes on where it stood.

    Args:
        model: New or trained before.
        train: Images, uint8 of 0 to 255 or floats of 0 to 1, `[rows, height, width, channels]`,
            named `image`, and their classes, int, named `label`.
        config: The recipe.
        key: Randomness of dropout, router noise and mixing.
        valid: As `train`, for evaluations; None makes none.
        seed: Of the order of the images and their augmentation.
        augment: Maps an example and a NumPy generator to the example to use.
        workers: Threads that augment.
        run: The run's folder; None keeps everything in memory.
        mesh: The devices: images are spread over its axes `data`, `fsdp` and `expert`, experts over
            `expert`.
        evaluate_every: Updates between evaluations; None makes six.
        save_every: Updates between checkpoints.
        quiet: Whether to show no progress.

    Returns:
        The model and the metrics: `loss`, the task's and the routers' together, `task_loss`,
        `accuracy`, `dropped` (the share of choices that found no room), and of evaluations
        `valid/accuracy` and `valid/loss`.

    Raises:
        Error: The data has fewer images than a batch, or classes that the head does not have.
    """
    steps = config.count(len(train))
    batches = Batches(
        train, config.batch_size, seed=seed, map=augment, workers=workers if augment else 0
    )
    trained = model
    if config.capacity_factor is not None:
        trained = model.with_routing(capacity_factor=config.capacity_factor)
    if config.remat:
        trained = eqx.tree_at(lambda m: m.remat, trained, replace=True)
    result = core_fit(
        objective(config), trained, optimizer(config, steps), batches,
        steps=steps, key=key, run=run, mesh=mesh, rules=RULES, accumulate=config.accumulate,
        precision=config.precision, evaluate=evaluation(valid, mesh) if valid else None,
        evaluate_every=evaluate_every or max(steps // 6, 1), save_every=save_every, quiet=quiet,
    )  # fmt: skip
    return dataclasses.replace(result, model=_routed_as(result.model, model))


def _routed_as(model: VisionTransformerMoE, like: VisionTransformerMoE) -> VisionTransformerMoE:
    """Returns a model with the settings of another: training has its own capacity."""
    settings = eqx.partition(model, eqx.is_array)[0], eqx.partition(like, eqx.is_array)[1]
    return eqx.combine(*settings)


def objective(config: TrainConfig) -> Callable[..., Any]:
    """Returns the loss of a batch, as `chapbook.core.train.fit` takes it.

    Args:
        config: The recipe.
    """

    def loss(model: VisionTransformerMoE, batch: Any, key: Array) -> Any:
        routing, mixing = jax.random.split(key)
        images = normalized(batch["image"])
        targets = jax.nn.one_hot(batch["label"], model.config.num_classes)
        if config.mixup:
            images, targets = mixup(images, targets, config.mixup, key=mixing)
        logits, aux = model(images, key=routing)
        task = classification_loss(logits, targets, config.loss).mean()
        right = logits.argmax(-1) == targets.argmax(-1)
        told = {"task_loss": task, "accuracy": right.mean(dtype=jnp.float32)}
        if aux.layers:
            told |= {"routing_loss": aux.loss, "dropped": aux.dropped}
        return task + aux.loss, told

    return loss


def evaluation(valid: Source, mesh: Mesh | None = None, batch_size: int = 100) -> Callable:
    """Returns an evaluation for `chapbook.core.train.fit`: accuracy and softmax cross-entropy.

    Args:
        valid: Images and classes.
        mesh: The devices.
        batch_size: Images that are computed at once.
    """

    def each(model: VisionTransformerMoE, batch: Any, key: Array) -> dict[str, Array]:
        roomy = model.with_routing(capacity_factor=ROOMY)
        logits, _ = roomy(normalized(batch["image"]), valid=batch["mask"])
        targets = jax.nn.one_hot(batch["label"], model.config.num_classes)
        right = logits.argmax(-1) == batch["label"]
        return {"accuracy": right.astype(jnp.float32), "loss": classification_loss(logits, targets)}

    # Shuffled, because a group of one class alone would crowd a few experts.
    batches = Batches(valid, batch_size, epochs=1, drop_last=False)
    return mean_over(each, batches, mesh=mesh, rules=RULES)
