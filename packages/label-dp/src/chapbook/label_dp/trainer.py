"""The trainer protocol, and what meets it: Equinox models and scikit-learn estimators.

Multi-stage training needs no more of a learner than `fit(x, soft_labels, weights)` and
`predict_proba(x)`; whatever has these two can be trained in stages.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from chapbook.core.data import Batches, arrays
from chapbook.core.errors import Error
from chapbook.core.run import Run
from chapbook.core.sharding import RULES, Rules
from chapbook.core.train import Result, Stop, fit
from chapbook.label_dp import schedules
from chapbook.label_dp.augment import augment
from chapbook.label_dp.estimation import debiased_accuracy
from chapbook.label_dp.losses import (
    cross_entropy,
    forward_corrected_cross_entropy,
    unbiased_cross_entropy,
)
from chapbook.label_dp.mixup import mix, mixing_weight
from chapbook.label_dp.models import Statistics, forward, initial_statistics
from chapbook.label_dp.randomized_response import PrivateLabels

VALIDATION = "valid/debiased_accuracy"
SCHEDULES = {
    "official": schedules.official,
    "plain": schedules.plain,
    "cosine": schedules.cosine,
    "constant": schedules.constant,
}


@runtime_checkable
class Trainer(Protocol):
    """What multi-stage training asks of a learner."""

    def fit(
        self,
        x: Shaped[np.ndarray, "rows ..."],
        soft_labels: Float[np.ndarray, "rows classes"],
        weights: Float[np.ndarray, " rows"],
    ) -> Any:
        """Trains on soft labels; called once a stage, and may start from the stage before."""
        ...

    def predict_proba(self, x: Shaped[np.ndarray, "rows ..."]) -> Float[np.ndarray, "rows classes"]:
        """Returns class probabilities."""
        ...


@dataclasses.dataclass(frozen=True)
class Training:
    """How one stage of an Equinox model is trained.

    Attributes:
        epochs: Passes over the stage's records.
        steps: Steps of a stage, instead of `epochs`, if above 0.
        batch_size: Records per step; fewer where the stage has fewer.
        learning_rate: The peak rate.
        optimizer: `sgd` with momentum, or `adam`.
        momentum: Of SGD.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: The coefficient c of the penalty `c / 2 sum w^2` over all parameters.
        schedule: `official` has the published code's quirk, see `schedules`; or `plain`,
            `cosine`, `constant`.
        loss: `plain` cross-entropy on the noisy labels; `forward` or `backward` corrected by the
            records' own transition matrices.
        clip: The largest class loss that counts in the backward correction, in nats.
        augment: Crop, flip and cut out images.
        precision: `float32`, or `bfloat16` for the computation.
        patience: Evaluations on noisy validation labels without a gain before a stage stops; 0
            never stops early.
        evaluate_every: Epochs between these evaluations.
        save_every: Steps between checkpoints.
    """

    epochs: int = 20
    steps: int = 0
    batch_size: int = 256
    learning_rate: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    schedule: str = "plain"
    loss: str = "plain"
    clip: float = 8.0
    augment: bool = False
    precision: str = "float32"
    patience: int = 0
    evaluate_every: int = 1
    save_every: int = 500

    def __post_init__(self):
        for name in ("epochs", "batch_size", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise Error(f"{name}={getattr(self, name)} is not positive")
        if self.steps < 0:
            raise Error(f"steps={self.steps} is negative")
        if not self.learning_rate > 0:
            raise Error(f"learning_rate={self.learning_rate} is not positive")
        for name, known in (
            ("schedule", tuple(SCHEDULES)),
            ("loss", ("plain", "forward", "backward")),
            ("optimizer", ("sgd", "adam")),
        ):
            if getattr(self, name) not in known:
                raise Error(f'{name}="{getattr(self, name)}" is none of {", ".join(known)}')

    def transformation(self, steps: int) -> optax.GradientTransformation:
        """Returns the optimizer of a stage of so many steps."""
        rate = SCHEDULES[self.schedule](self.learning_rate, steps)
        # Decay before the momentum is the gradient of the penalty, as in the published code.
        if self.optimizer == "sgd":
            rule = optax.sgd(rate, self.momentum or None, self.nesterov and self.momentum > 0)
        else:
            rule = optax.adam(rate)
        return optax.chain(optax.add_decayed_weights(self.weight_decay), rule)


class ModelTrainer:
    """Trains an Equinox model on noisy labels by `chapbook.core.fit`; fitting again goes on.

    Args:
        model: A module from a batch of inputs to logits; see `models` for those with statistics.
        training: The settings.
        key: The randomness of the order, the mixing and the augmentation.
        statistics: The batch statistics to start from; those of an untrained model if None.
        mixup: The strength of the mixing inside a batch; 0 for none.
        run_dir: The folder of the training run, from which a killed one goes on; None keeps
            everything in memory.
        mesh: The devices; all that are visible if None.
        rules: From logical names to mesh axes.
        validation: Records and plain randomised response's labels of them, which early stopping
            looks at.
        quiet: Show no progress.

    Attributes:
        model: The model, trained so far.
        statistics: Its batch statistics.
        result: What the last `fit` returned.
    """

    def __init__(
        self,
        model: Any,
        training: Training = Training(),
        *,
        key: PRNGKeyArray,
        statistics: Statistics | None = None,
        mixup: float = 0.0,
        run_dir: str | Path | None = None,
        mesh: Mesh | None = None,
        rules: Rules = RULES,
        validation: tuple[np.ndarray, PrivateLabels] | None = None,
        quiet: bool = True,
    ):
        self.model, self.training, self.key = model, training, key
        self.statistics = initial_statistics(model) if statistics is None else statistics
        self.mixup, self.mesh, self.rules, self.quiet = float(mixup), mesh, rules, quiet
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.validation = validation
        self.result: Result | None = None

    def fit(
        self,
        x: Shaped[np.ndarray, "rows ..."],
        soft_labels: Float[np.ndarray, "rows classes"],
        weights: Float[np.ndarray, " rows"] | None = None,
        *,
        keep: Float[np.ndarray, " rows"] | None = None,
        support: Bool[np.ndarray, "rows classes"] | None = None,
    ) -> "ModelTrainer":
        """Trains the model on soft labels.

        Args:
            x: Inputs.
            soft_labels: One-hot noisy labels, or any soft ones.
            weights: Of the records; records of weight 0 are left out.
            keep: The probability with which each label was kept; for the corrected losses.
            support: The classes that each record could be answered with; for the corrected losses.

        Raises:
            Error: The loss is corrected and the mechanism's part is missing; nothing is left to
                train on; or the loss was not finite.
        """
        if self.training.loss != "plain" and (keep is None or support is None):
            raise Error(f"the {self.training.loss} loss needs keep and support of every record")
        if self.mixup and not np.issubdtype(x.dtype, np.floating):
            raise Error(f"mixup mixes inputs, which {x.dtype} inputs do not allow; pass mixup=0")
        columns = {"x": x, "targets": np.asarray(soft_labels, np.float32)}
        if weights is not None:
            columns["weights"] = np.asarray(weights, np.float32)
        if self.training.loss != "plain":
            columns["keep"] = np.asarray(keep, np.float32)
            columns["support"] = np.asarray(support, bool)
        if weights is not None:
            used = np.asarray(weights) > 0
            columns = {name: column[used] for name, column in columns.items()}
        rows = len(columns["x"])
        if not rows:
            raise Error("no record is left to train on")
        batch = self._batch_size(rows)
        steps = self.training.steps or self.training.epochs * (rows // batch)
        data = Batches(arrays(**columns), batch, seed=_seed(self.key))
        if self.run_dir is None:
            self._take(self._run(data, steps, None))
            return self
        options = {**dataclasses.asdict(self.training), "mixup": self.mixup, "steps": steps}
        with Run(
            self.run_dir,
            options,
            may_change=("save_every",),
            writer=jax.process_index() == 0,
        ) as run:
            self._take(self._run(data, steps, run))
        return self

    def predict_proba(self, x: Shaped[np.ndarray, "rows ..."]) -> Float[np.ndarray, "rows classes"]:
        """Returns class probabilities in float64, so that the rows sum to 1 for any mechanism."""
        return predict_proba(self.model, self.statistics, x, precision=self.training.precision)

    def _batch_size(self, rows: int) -> int:
        """Returns the batch size, cut to the records there are and a multiple of the devices."""
        devices = 1
        for axis in ("data", "fsdp"):
            devices *= self.mesh.shape.get(axis, 1) if self.mesh is not None else 1
        if self.mesh is None:
            devices = jax.device_count()
        batch = min(self.training.batch_size, rows) // devices * devices
        if not batch:
            raise Error(
                f"{rows} records in batches of {self.training.batch_size} do not fill"
                f" {devices} devices",
                "take fewer devices, larger batches or a larger stage",
            )
        return batch

    def _run(self, data: Batches, steps: int, run: Run | None) -> Result:
        training = self.training
        options: dict[str, Any] = {}
        if self.validation is not None:
            every = training.evaluate_every * max(1, len(data.source) // data.batch)
            options |= {"evaluate": self._evaluate, "evaluate_every": every}
            if training.patience:
                options["stop"] = Stop(VALIDATION, patience=training.patience, mode="max")
        return fit(
            stage_loss(training, self.mixup),
            self.model,
            training.transformation(steps),
            data,
            steps=steps,
            key=self.key,
            run=run,
            mesh=self.mesh,
            rules=self.rules,
            precision=training.precision,
            save_every=training.save_every,
            on_nan="stop",
            extra=self.statistics,
            quiet=self.quiet,
            **options,
        )

    def _evaluate(self, model: Any, key: Array, statistics: Statistics) -> Mapping[str, Any]:
        """Looks at labels of randomised response only, whose accuracy is debiased."""
        assert self.validation is not None
        x, private = self.validation
        probabilities = predict_proba(model, statistics, x, precision=self.training.precision)
        estimate = debiased_accuracy(probabilities.argmax(axis=1), private)
        error = VALIDATION + "_standard_error"
        return {VALIDATION: float(estimate.value), error: float(estimate.standard_error)}

    def _take(self, result: Result) -> None:
        if result.reason == "interrupted":
            raise KeyboardInterrupt
        if result.reason == "preempted":
            raise SystemExit(143)
        if result.reason == "nan":
            raise Error(
                f"the loss was not finite after step {result.step}",
                "lower the learning rate; what earlier stages learned is kept",
            )
        self.model, self.statistics, self.result = result.model, result.extra, result


def stage_loss(training: Training, mixup: float) -> Callable[..., Any]:
    """Returns the loss of a stage, as `chapbook.core.fit` takes it.

    Args:
        training: The settings.
        mixup: The strength of the mixing inside a batch.
    """

    def each(logits: Array, targets: Array, batch: Mapping[str, Array], flip: bool) -> Array:
        """Computes the records' losses against their own labels, or their mirror images'."""
        if training.loss == "plain":
            return cross_entropy(logits, targets)
        keep, support = batch["keep"], batch["support"]
        if flip:
            keep, support = keep[::-1], support[::-1]
        noisy = jnp.argmax(targets, axis=-1)
        if training.loss == "forward":
            return forward_corrected_cross_entropy(logits, noisy, keep, support)
        return unbiased_cross_entropy(logits, noisy, keep, support, training.clip)

    def loss(model: Any, batch: Mapping[str, Array], key: Array, statistics: Statistics) -> Any:
        mix_key, augment_key = jax.random.split(key)
        x, targets = _cast(batch["x"], training.precision), batch["targets"]
        weights = batch.get("weights", jnp.ones(len(x), jnp.float32))
        if training.augment:
            x = augment(augment_key, x)
        share = mixing_weight(mix_key, mixup)
        if mixup:
            x = mix(x, share.astype(x.dtype))
        logits, after = forward(model, x, statistics, train=True)
        logits = logits.astype(jnp.float32)
        losses = weights * each(logits, targets, batch, flip=False)
        total = weights
        if mixup:
            # All losses are linear in the label's part, so mixed labels are mixed losses.
            mirrored = weights[::-1] * each(logits, targets[::-1], batch, flip=True)
            losses = share * losses + (1.0 - share) * mirrored
            total = share * weights + (1.0 - share) * weights[::-1]
        weight = jnp.sum(total)
        return jnp.sum(losses) / weight, {"weight": weight, "extra": after}

    return loss


def predict_proba(
    model: Any,
    statistics: Statistics,
    x: Shaped[np.ndarray, "rows ..."],
    *,
    batch: int = 1024,
    precision: str = "float32",
) -> Float[np.ndarray, "rows classes"]:
    """Returns a model's class probabilities, in float64 and batch by batch.

    Args:
        model: A module from a batch of inputs to logits.
        statistics: Its batch statistics; `()` if it has none.
        x: Inputs; read block by block, so that a memory-mapped array stays on disk.
        batch: Inputs per call; the last call is padded, so that one program serves all.
        precision: `float32`, or `bfloat16` for the inputs.
    """
    batch = min(batch, max(8, 1 << (len(x) - 1).bit_length())) if len(x) else batch
    blocks = []
    for start in range(0, len(x), batch):
        block = np.asarray(x[start : start + batch])
        rows = len(block)
        if rows < batch:
            block = np.concatenate([block, np.repeat(block[-1:], batch - rows, axis=0)])
        blocks.append(np.asarray(_logits(model, statistics, block, precision))[:rows])
    if not blocks:
        raise Error("there is no record to predict")
    logits = np.concatenate(blocks).astype(np.float64)
    if not np.isfinite(logits).all():
        bad = int(np.argmin(np.isfinite(logits).all(axis=1)))
        raise Error(f"the model's output for record {bad} is not finite")
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@eqx.filter_jit
def _logits(model: Any, statistics: Statistics, x: Any, precision: str) -> Array:
    return forward(model, _cast(x, precision), statistics, train=False)[0].astype(jnp.float32)


def _cast(x: Array, precision: str) -> Array:
    return x.astype(precision) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _seed(key: PRNGKeyArray) -> int:
    return int(jax.random.bits(jax.random.fold_in(key, 1), dtype=np.uint32))


class SklearnTrainer:
    """Lets a scikit-learn classifier be trained in stages; each stage fits it anew.

    Soft labels become weighted copies of a record, one for each class with a part in it.

    Args:
        estimator: A classifier with `predict_proba`; it must take `sample_weight` where labels are
            soft or weights differ.
        num_classes: K; classes that the noisy labels lack get probability 0.
    """

    def __init__(self, estimator: Any, num_classes: int):
        if not hasattr(estimator, "predict_proba"):
            raise Error(f"{type(estimator).__name__} has no predict_proba, which a prior needs")
        self.estimator, self.num_classes = estimator, num_classes

    def fit(
        self,
        x: Shaped[np.ndarray, "rows ..."],
        soft_labels: Float[np.ndarray, "rows classes"],
        weights: Float[np.ndarray, " rows"] | None = None,
    ) -> "SklearnTrainer":
        """Fits the estimator to soft labels."""
        soft = np.asarray(soft_labels, np.float64)
        parts = soft if weights is None else soft * np.asarray(weights)[:, None]
        row, label = np.nonzero(parts)
        if not len(row):
            raise Error("no record is left to train on")
        inputs, weight = np.asarray(x).reshape(len(x), -1)[row], parts[row, label]
        if np.ptp(weight) == 0:
            self.estimator.fit(inputs, label)
        else:
            self.estimator.fit(inputs, label, sample_weight=weight)
        return self

    def predict_proba(self, x: Shaped[np.ndarray, "rows ..."]) -> Float[np.ndarray, "rows classes"]:
        """Returns class probabilities, with a column for each of the K classes."""
        found = np.asarray(self.estimator.predict_proba(np.asarray(x).reshape(len(x), -1)))
        # Some estimators answer in float32, whose rows miss 1 by more than a prior may.
        found = found.astype(np.float64) / found.sum(axis=1, keepdims=True, dtype=np.float64)
        out = np.zeros((len(x), self.num_classes))
        out[:, np.asarray(self.estimator.classes_, np.int64)] = found
        return out
