"""How a model is trained: Adafactor or AdamW, a guard against divergence, bits per byte.

Everything runs through `chapbook.core.train.fit`: it is resumable and sharded, and what goes wrong
is skipped or rewound.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from chapbook.core.data import Batches, Source
from chapbook.core.errors import Error
from chapbook.core.run import Run
from chapbook.core.train import Result, mean_over
from chapbook.core.train import fit as core_fit
from chapbook.glam.model import RULES, GLaM


@dataclasses.dataclass(frozen=True)
class StabilityGuard:
    """What is done when a training goes wrong.

    A batch whose loss or gradient is not finite is skipped: parameters and optimizer stay as they
    are. Too many of those in a row, or losses that leave the band of the last hundred and stay out,
    and the training goes back to its last healthy checkpoint, past the data that broke it, three
    times at most. A checkpoint is healthy once `steps` more updates have passed without trouble.
    All of it is in the run's `events.jsonl`.

    Args:
        skips: So many in a row are too many.
        deviations: The band ends so many median absolute deviations above the median of the last
            100 losses, and a tenth of a nat above it at least; None for no band.
        steps: So many losses in a row above the band are divergence.

    Raises:
        Error: A value is out of its range.

    Reference:
        Du et al. (2022), section 5.
    """

    skips: int = 5
    deviations: float | None = 6.0
    steps: int = 5

    def __post_init__(self):
        if min(self.skips, self.steps) < 1:
            raise Error(f"skips={self.skips} and steps={self.steps} must be 1 or more")
        if self.deviations is not None and not self.deviations > 0:
            raise Error(f"deviations={self.deviations} must be above 0")

    def band(self, losses: Iterable[float]) -> float:
        """Returns the loss above which divergence begins.

        Args:
            losses: The last ones that were within the band.
        """
        values = np.asarray([*losses])
        middle = np.median(values)
        rise = (self.deviations or math.inf) * np.median(np.abs(values - middle))
        # A model that knows its text by heart has hardly any deviation, and no divergence either.
        return float(middle + max(rise, 0.1))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Args:
        tokens: That it sees in all, rounded down to whole batches.
        batch_size: Rows in an update, each of a context's length.
        optimizer: `adafactor`, the paper's, without a first moment; or `adamw`.
        learning_rate: While it is constant, of Adafactor relative to a parameter's own scale.
        constant: Updates for which it is; afterwards it falls by `sqrt(constant / step)`.
        warmup: Updates over which it rises from 0, before all that.
        weight_decay: Of AdamW.
        max_norm: The norm that AdamW's gradient is clipped to.
        accumulate: Parts of a batch that are computed one after the other.
        precision: `float32`, or `bfloat16` for activations; routers and logits stay in float32.

    Raises:
        Error: A value is out of its range.

    Reference:
        Du et al. (2022), section 5.
    """

    tokens: int
    batch_size: int = 16
    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    learning_rate: float = 0.01
    constant: int = 10_000
    warmup: int = 0
    weight_decay: float = 0.0
    max_norm: float = 1.0
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("tokens", "batch_size", "learning_rate", "constant", "max_norm", "accumulate"):
            if not getattr(self, name) > 0:
                raise Error(f"{name}={getattr(self, name)} must be above 0")
        for name in ("warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise Error(f"{name}={getattr(self, name)} must be 0 or above")

    def steps(self, context: int) -> int:
        """Returns the updates in all.

        Args:
            context: Tokens of a row.

        Raises:
            Error: The tokens do not fill a batch.
        """
        count = self.tokens // (self.batch_size * context)
        if not count:
            raise Error(
                f"tokens={self.tokens} do not fill a batch of {self.batch_size} x {context}"
            )
        return count


def schedule(config: TrainConfig) -> optax.Schedule:
    """Returns the learning rate of each step: constant, then falling by the root of the steps.

    Args:
        config: The recipe.
    """
    c = config

    def rate(count: ArrayLike) -> Array:
        past = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum((past + 1) / c.warmup, 1) if c.warmup else 1.0
        return c.learning_rate * rise * jnp.sqrt(c.constant / jnp.maximum(past, c.constant))

    return rate


def adafactor(rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns Adafactor as the paper uses it: no first moment, updates clipped to a size of 1.

    The second moment decays by `min(1 - t^-0.8, 0.99)` and is factored; updates are relative to
    the root mean square of a parameter.

    Args:
        rate: Of each step.

    Reference:
        Shazeer & Stern, "Adafactor" (2018), algorithm 4; Du et al. (2022), section 5.
    """

    def decay(step: Any, power: Any) -> Array:
        return jnp.minimum(1 - jnp.asarray(step + 1.0, jnp.float32) ** -power, 0.99)

    return optax.chain(
        optax.scale_by_factored_rms(decay_rate_fn=decay),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_learning_rate(rate),
        optax.scale_by_param_block_rms(),
    )


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Returns the recipe's optimizer.

    Args:
        config: The recipe.
    """
    rate = schedule(config)
    if config.optimizer == "adafactor":
        return adafactor(rate)
    return optax.chain(
        optax.clip_by_global_norm(config.max_norm),
        optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=config.weight_decay),
    )


def predicted(segments: Int[Array, "batch length"]) -> Float[Array, "batch tokens"]:
    """Returns 1 where a token is predicted: all but padding.

    The end of a document is the first token of the next one, and is predicted by its last.

    Args:
        segments: The document of each token; 0 is padding.
    """
    return ((segments[:, 1:] > 0) & (segments[:, :-1] > 0)).astype(jnp.float32)


def nats(
    logits: Float[Array, "batch tokens vocab"], targets: Int[Array, "batch tokens"]
) -> Float[Array, "batch tokens"]:
    """Computes `-log P(target)` for each token.

    Args:
        logits: Of what follows.
        targets: What does.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def objective(config: TrainConfig | None = None) -> Callable[..., Any]:
    """Returns the loss of a batch, as `chapbook.core.train.fit` takes it.

    It is the cross-entropy of the tokens that are predicted, the z-loss of the logits, and the
    routers' loss for even loads, each by the weight that the model's configuration gives it.

    Args:
        config: The recipe, which has nothing to say here.
    """

    def loss(model: GLaM, batch: Any, key: Array) -> Any:
        c = model.config
        tokens, segments = batch["tokens"].astype(jnp.int32), batch["segment"]
        logits, routing = model(tokens[:, :-1], segments=segments[:, :-1], key=key)
        weight = predicted(segments)
        total = jnp.maximum(weight.sum(), 1)
        task = (weight * nats(logits, tokens[:, 1:])).sum() / total
        flat = (weight * jax.nn.logsumexp(logits, -1) ** 2).sum() / total
        told = {"nats": task, "weight": weight.sum()}
        if routing.layers is not None:
            told |= {"balance": routing.loss, "dropped": routing.dropped}
        return task + c.z_weight * flat + c.aux_weight * routing.loss, told

    return loss


def evaluation(
    valid: Source, *, bytes_per_token: float | None = None, batch_size: int = 16,
    mesh: Mesh | None = None,
) -> Callable:  # fmt: skip
    """Returns an evaluation for `chapbook.core.train.fit`: `nats` a token, and `bits_per_byte`.

    Args:
        valid: Windows of text that is held out.
        bytes_per_token: Of that text, without which there are no bits per byte.
        batch_size: Windows that are computed at once.
        mesh: The devices.
    """

    def each(model: GLaM, batch: Any, key: Array) -> dict[str, Array]:
        tokens, segments = batch["tokens"].astype(jnp.int32), batch["segment"]
        logits, _ = model(tokens[:, :-1], segments=segments[:, :-1])
        return {"nats": nats(logits, tokens[:, 1:]), "weight": predicted(segments)}

    batches = Batches(valid, min(batch_size, len(valid)), shuffle=False, epochs=1, drop_last=False)
    mean = mean_over(each, batches, mesh=mesh, rules=RULES)
    if bytes_per_token is None:
        return mean

    def evaluate(model: GLaM, key: Array) -> dict[str, float]:
        found = mean(model, key)
        return found | {"bits_per_byte": found["nats"] / math.log(2) / bytes_per_token}

    return evaluate


def fit(
    model: GLaM,
    batches: Iterable[Any],
    config: TrainConfig,
    *,
    key: Key[Array, ""],
    evaluate: Callable[..., Any] | None = None,
    evaluate_every: int | None = None,
    guard: StabilityGuard | None = None,
    run: Run | None = None,
    mesh: Mesh | None = None,
    save_every: int = 500,
    log_every: int = 20,
    quiet: bool = False,
) -> Result:
    """Trains a model on text; an interrupted run goes on where it stood, with the same bits.

    Args:
        model: New or trained before.
        batches: Of `tokens`, (rows, context + 1), and `segment` of the same shape, the document of
            each token from 1 on, which an end begins, and 0 for padding. With a `run` they must
            know their place, as `chapbook.core.data.Batches` does.
        config: The recipe.
        key: Randomness of the routers.
        evaluate: As `evaluation` returns it; None makes none.
        evaluate_every: Updates between evaluations; None makes six.
        guard: What is done when the loss goes wrong; without a run, bad batches are skipped.
        run: The run's folder; None keeps everything in memory.
        mesh: The devices: rows are spread over its axes `data`, `fsdp` and `expert`, experts over
            `expert`, and what is within them over `tensor`.
        save_every: Updates between checkpoints.
        log_every: Updates of a row of metrics.
        quiet: Whether to show no progress.

    Returns:
        The model and the metrics: `loss` in all, `nats` a token, `balance`, the routers' loss,
        `dropped`, the share of choices without room, and of evaluations `valid/...`.

    Raises:
        Error: The tokens do not fill a batch, or the data has ids that the model does not know.
    """
    steps = config.steps(model.config.context)
    guard = guard or StabilityGuard()
    return core_fit(
        objective(config), model, optimizer(config), batches, steps=steps, key=key, run=run,
        mesh=mesh, rules=RULES, accumulate=config.accumulate, precision=config.precision,
        evaluate=evaluate, evaluate_every=evaluate_every or max(steps // 6, 1),
        save_every=save_every, log_every=log_every, nan_limit=guard.skips,
        on_nan="rewind" if run else "skip", spike=guard.band if run and guard.deviations else None,
        spike_steps=guard.steps,
        units=config.batch_size * model.config.context, quiet=quiet,
    )  # fmt: skip
