"""LP-MST: training in stages, each with the model so far as the prior of the next labels.

Why a run can be killed anywhere: the partition follows from the key, a stage's labels are on disk
before anything reads them, and a stage's training continues from its checkpoints. So a run goes on
by doing everything again, and each piece finds what it did before.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import polars as pl
from jax.sharding import Mesh
from jaxtyping import Float, Int, PRNGKeyArray, Shaped

from chapbook.core.errors import Error
from chapbook.core.run import Run
from chapbook.core.sharding import RULES, Rules
from chapbook.label_dp import priors
from chapbook.label_dp.certificate import Certificate, Spend, total_epsilon
from chapbook.label_dp.drawn import DrawnLabels
from chapbook.label_dp.entropy import Entropy
from chapbook.label_dp.estimation import debiased_accuracy
from chapbook.label_dp.ledger import PrivacyLedger
from chapbook.label_dp.models import Statistics, forward, initial_statistics
from chapbook.label_dp.randomized_response import (
    PrivateLabels,
    RandomizedResponse,
    RRTopK,
    RRWithPrior,
    check_labels,
)
from chapbook.label_dp.trainer import ModelTrainer, Trainer, Training

VALIDATION_PART = "validation"
# Proving a set of k classes takes k^2 integers; above this the mechanism's own tests must do.
_PROVEN_CLASSES = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A part of the records and the labels that were drawn for it; nothing in it is private.

    Attributes:
        name: The part's name in the certificate.
        rows: The records, as rows of the data.
        private: Their noisy labels.
        support: The classes that each record could be answered with.
    """

    name: str
    rows: Int[np.ndarray, " part"]
    private: PrivateLabels
    support: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What multi-stage training returns; nothing in it holds a true label.

    Attributes:
        trainer: The trainer after the last stage.
        certificate: What was spent on which records.
        stages: The parts with their noisy labels.
        report: One row per stage: records, mean k, records of earlier stages kept and dropped,
            the expected share of correct labels, and debiased accuracy where there is validation.
    """

    trainer: Any
    certificate: Certificate
    stages: tuple[Stage, ...]
    report: pl.DataFrame

    @property
    def model(self) -> Any:
        """The Equinox model, or the trainer that was brought."""
        return getattr(self.trainer, "model", self.trainer)

    @property
    def statistics(self) -> Statistics:
        """The model's batch statistics; `()` if it has none."""
        return getattr(self.trainer, "statistics", ())

    def predict_proba(self, x: Shaped[np.ndarray, "rows ..."]) -> Float[np.ndarray, "rows classes"]:
        """Returns class probabilities."""
        return np.asarray(self.trainer.predict_proba(x))


@dataclasses.dataclass(frozen=True)
class LPMST:
    """Label-private multi-stage training.

    The records are split at random, whatever their labels are, into parts 1..T. Part 1's labels
    are answered by randomised response, part i's by RRWithPrior with the model of stage i - 1 as
    prior, each with the whole epsilon: every label is used once, so that the parts compose in
    parallel and all is epsilon-LabelDP. Stage i trains on the noisy labels of parts 1..i, from the
    weights and batch statistics of stage i - 1, with a fresh optimizer and schedule.

    Args:
        model_fn: Maps a key to an Equinox model, or to any object with `fit(x, soft_labels,
            weights)` and `predict_proba(x)`.
        epsilon: The privacy budget of every label.
        stages: The share of the records in each part; `(1,)` is plain randomised response.
        mixup: The mixing strength of each stage of an Equinox model, 0 for none; the last one
            holds for all further stages.
        temperature: Of the model's probabilities as a prior; below 1 sharpens.
        reuse: Whether the noisy labels of earlier parts join later stages.
        filter: Whether those whose noisy label is not among the current model's top `int(mean k)`
            classes are left out; they are back before the next stage's filter.
        training: How a stage of an Equinox model is trained.
        prior_weight: The share of the domain prior given to `fit` in the priors of later stages.
        prior_temperature: Of the domain prior where it is mixed in.
        validation: The share of the records that is held out, answered by randomised response and
            used for early stopping and debiased accuracy.
        num_classes: K; taken from the width of an Equinox model's output if None. It is never
            counted from the labels.
        official_k: Choose k as the published code does; for comparison only.

    Raises:
        Error: An option is out of its range.

    Reference:
        Ghazi et al., Deep Learning with Label Differential Privacy (2021), algorithm 4.
    """

    model_fn: Callable[[PRNGKeyArray], Any]
    epsilon: float = 1.0
    stages: tuple[float, ...] = (0.65, 0.35)
    mixup: Sequence[float | int] | float | int = (8.0, 4.0)
    temperature: float = 0.5
    reuse: bool = True
    filter: bool = True
    training: Training = dataclasses.field(default_factory=Training)
    prior_weight: float = 0.0
    prior_temperature: float = 1.0
    validation: float = 0.0
    num_classes: int | None = None
    official_k: bool = False

    def __post_init__(self):
        if not self.epsilon >= 0:
            raise Error(f"epsilon={self.epsilon} must be 0 or more")
        if not self.stages or min(self.stages) <= 0 or abs(sum(self.stages) - 1) > 1e-6:
            raise Error(f"stages={_text(self.stages)} must be positive and sum to 1")
        if min(self._mixup(), default=-1.0) < 0:
            raise Error(
                f"mixup={self.mixup} must be one number of 0 or more, or one for each stage"
            )
        if not self.temperature > 0:
            raise Error(f"temperature={self.temperature} must be above 0")
        if not 0 <= self.validation < 1:
            raise Error(f"validation={self.validation} must be 0 or more and below 1")
        if not 0 <= self.prior_weight <= 1:
            raise Error(f"prior_weight={self.prior_weight} must be 0 to 1")
        if self.training.patience and not self.validation:
            raise Error("patience needs a validation share: early stopping sees noisy labels only")
        if self.training.loss == "backward" and not self.epsilon > 0:
            raise Error("the backward loss needs an epsilon above 0; labels of 0 say nothing")

    def fit(
        self,
        x: Shaped[np.ndarray, "rows ..."],
        labels: Int[np.ndarray, " labels"],
        *,
        key: PRNGKeyArray,
        run_dir: str | Path | None = None,
        prior: Float[np.ndarray, "rows classes"] | None = None,
        prior_spends: Sequence[Spend] = (),
        ledger: PrivacyLedger | None = None,
        record_ids: pl.DataFrame | None = None,
        entropy: Entropy | None = None,
        schema: dict[str, str] | None = None,
        mesh: Mesh | None = None,
        rules: Rules = RULES,
        quiet: bool = True,
    ) -> Trained:
        """Draws the labels and trains the stages; the same call goes on with a killed run.

        Args:
            x: Public inputs.
            labels: True classes, 0 to K - 1. Each is used once and kept nowhere.
            key: The randomness of the partition, the initial weights and the training; none of
                the privacy.
            run_dir: The run's folder; without one a killed run cannot go on, and running it again
                spends the budget again.
            prior: A domain prior, public or paid for: the prior of part 1, and mixed into later
                ones by `prior_weight`.
            prior_spends: What the domain prior cost, so that certificate and ledger itemise it.
            ledger: Charged before labels are drawn; the run folder's own `ledger.json` if None.
            record_ids: Columns that identify the records, so that the ledger notices records that
                were randomised before.
            entropy: The source of the privacy noise; the operating system if None.
            schema: Column name to type of the data, for the certificate.
            mesh: The devices; all that are visible if None.
            rules: From logical names to mesh axes.
            quiet: Show no progress.

        Returns:
            The trained model with its certificate.

        Raises:
            Error: Labels or prior are wrong (rows are named, labels never are), there are fewer
                records than parts, the folder holds another run, or training diverges.
        """
        made = self.model_fn(jax.random.fold_in(key, 0))
        classes = self._classes(made, x)
        labels = check_labels(labels, classes)
        if len(x) != len(labels):
            raise Error(f"there are {len(labels)} labels for {len(x)} records")
        if prior is None and self.prior_weight:
            raise Error("prior_weight needs a domain prior")
        parts = self._partition(len(labels), key)
        options = self._options(x, key, classes, prior)
        session = _Session(self, x, labels, parts, classes, prior, entropy or Entropy())
        session.mesh, session.rules, session.quiet = mesh, rules, quiet
        if run_dir is None:
            session.ledger = ledger or PrivacyLedger()
            session.charge(None, prior_spends, record_ids)
            return session.run(made, key, prior_spends, schema or {})
        writer = jax.process_index() == 0
        with Run(run_dir, options, may_change=("save_every",), writer=writer) as run:
            session.folder = run.path
            session.drawn = DrawnLabels(run.path / "drawn", options)
            session.ledger = ledger or PrivacyLedger(run.path / "ledger.json")
            session.charge(_charge_id(session.drawn), prior_spends, record_ids)
            trained = session.run(made, key, prior_spends, schema or {})
            trained.certificate.save(run.path / "certificate.json")
            run.results({"stages": trained.report.to_dicts()})
            return trained

    def _mixup(self) -> tuple[float, ...]:
        if isinstance(self.mixup, int | float):
            return (float(self.mixup),) * len(self.stages)
        given = tuple(float(each) for each in self.mixup)
        return tuple(given[min(i, len(given) - 1)] for i in range(len(self.stages)) if given)

    def _classes(self, made: Any, x: np.ndarray) -> int:
        if self.num_classes is not None:
            return self.num_classes
        if not isinstance(made, eqx.Module):
            raise Error("num_classes must be given for a trainer that is no Equinox model")
        statistics = initial_statistics(made)
        one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
        logits, _ = eqx.filter_eval_shape(
            lambda model, given, one: forward(model, one, given, train=False),
            made,
            statistics,
            one,
        )
        return int(logits.shape[-1])

    def _partition(self, rows: int, key: PRNGKeyArray) -> dict[str, np.ndarray]:
        """Splits the rows at random: a function of the key and their number alone."""
        seed = np.asarray(jax.random.key_data(jax.random.fold_in(key, 1))).ravel()
        order = np.random.default_rng([int(word) for word in seed]).permutation(rows)
        held = round(self.validation * rows)
        ends = held + np.round(np.cumsum(self.stages) * (rows - held)).astype(int)
        pieces = np.split(order, [held, *ends[:-1]])
        names = [VALIDATION_PART, *(f"stage-{i + 1}" for i in range(len(self.stages)))]
        parts = {name: np.sort(piece) for name, piece in zip(names, pieces, strict=True)}
        if not self.validation:
            del parts[VALIDATION_PART]
        if empty := [name for name, piece in parts.items() if not len(piece)]:
            raise Error(f"{rows} records are too few: {', '.join(empty)} would have none")
        return parts

    def _options(
        self, x: np.ndarray, key: PRNGKeyArray, classes: int, prior: np.ndarray | None
    ) -> dict[str, Any]:
        """Returns what decides the run, as JSON values; nothing in it depends on a label."""
        plain = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("model_fn", "training")
        }
        return {
            **plain,
            **dataclasses.asdict(self.training),
            "stages": list(self.stages),
            "mixup": list(self._mixup()),
            "epsilon": _json_number(self.epsilon),
            "num_classes": classes,
            "records": len(x),
            "inputs": fingerprint(x),
            "prior": None if prior is None else fingerprint(np.asarray(prior)),
            "key": np.asarray(jax.random.key_data(key)).ravel().tolist(),
        }


class _Session:
    """One call of `LPMST.fit`: the only place that holds the true labels."""

    def __init__(
        self,
        method: LPMST,
        x: np.ndarray,
        labels: np.ndarray,
        parts: dict[str, np.ndarray],
        classes: int,
        prior: np.ndarray | None,
        entropy: Entropy,
    ):
        self.method, self.x, self.parts, self.classes = method, x, parts, classes
        self.prior, self.entropy, self._labels = prior, entropy, labels
        self.folder: Path | None = None
        self.drawn: DrawnLabels | None = None
        self.ledger = PrivacyLedger()
        self.mesh: Mesh | None = None
        self.rules: Rules = RULES
        self.quiet = True

    def run(
        self, made: Any, key: PRNGKeyArray, prior_spends: Sequence[Spend], schema: dict[str, str]
    ) -> Trained:
        method = self.method
        validation = None
        if VALIDATION_PART in self.parts:
            held = self.draw(VALIDATION_PART, None)
            validation = (self.x[held.rows], held.private)
        done: list[Stage] = []
        report: list[dict[str, Any]] = []
        trainer: Any = None
        for index in range(len(method.stages)):
            name = f"stage-{index + 1}"
            rows = self.parts[name]
            prior = self.prior_of(trainer, rows)
            stage = self.draw(name, prior)
            used = self.training_set(trainer, done, stage)
            trainer = self.trainer(trainer, made, index, key, validation)
            self.train(trainer, used)
            done.append(stage)
            report.append(self.describe(stage, prior, done, used, trainer, validation))
        certificate = self.certificate(done, prior_spends, schema)
        return Trained(trainer, certificate, tuple(done), pl.DataFrame(report))

    def prior_of(self, trainer: Trainer | None, rows: np.ndarray) -> np.ndarray | None:
        """Returns the prior of some records; None is the uniform one, plain randomised response."""
        domain = None if self.prior is None else np.asarray(self.prior)[rows]
        if trainer is None:
            return domain
        method = self.method
        prior = priors.from_model(
            trainer.predict_proba, self.x[rows], temperature=method.temperature
        )
        if domain is None or not method.prior_weight:
            return prior
        return priors.mix(domain, prior, method.prior_weight, temperature=method.prior_temperature)

    def draw(self, name: str, prior: np.ndarray | None) -> Stage:
        """Returns a part's noisy labels: those on disk if there are any, else drawn and kept."""
        rows, index = self.parts[name], list(self.parts).index(name)

        def draw() -> dict[str, np.ndarray]:
            # Each part draws from its own stream, so that a run that was killed between two parts
            # draws what an unbroken one does where the entropy is seeded.
            entropy = self.entropy.child(index)
            labels = self._labels[rows]
            if prior is None:
                plain = RandomizedResponse(self.classes, self.method.epsilon)
                private = plain.privatize(labels, entropy=entropy)
                support = np.ones((len(rows), self.classes), bool)
            else:
                mechanism = self.mechanism()
                private = mechanism.privatize(labels, prior, entropy=entropy)
                support = mechanism.support(prior, private.k)
            return {
                "rows": rows,
                "labels": private.labels,
                "k": private.k,
                "keep_probability": private.keep_probability,
                "support": np.packbits(support, axis=1),
                "mechanism": np.array(private.mechanism),
                "seeded": np.array(private.seeded),
            }

        held = draw() if self.drawn is None else self.drawn.once(name, draw)
        private = PrivateLabels(
            held["labels"],
            held["k"],
            held["keep_probability"],
            self.classes,
            self.method.epsilon,
            str(held["mechanism"]),
            bool(held["seeded"]),
        )
        support = np.unpackbits(held["support"], axis=1, count=self.classes).astype(bool)
        return Stage(name, held["rows"], private, support)

    def mechanism(self) -> RRWithPrior:
        return RRWithPrior(self.classes, self.method.epsilon, official_k=self.method.official_k)

    def training_set(
        self, trainer: Trainer | None, done: list[Stage], stage: Stage
    ) -> list[tuple[Stage, np.ndarray]]:
        """Returns the stages to train on, each with which of its records are used.

        The filter looks at all earlier records anew, so that one dropped before can come back. It
        only sees noisy labels and public inputs: post-processing, which is free.
        """
        everything = np.ones(len(stage.rows), bool)
        if trainer is None or not self.method.reuse:
            return [(stage, everything)]
        if not self.method.filter:
            return [*((s, np.ones(len(s.rows), bool)) for s in done), (stage, everything)]
        k = max(1, int(stage.private.k.mean()))
        used = []
        for earlier in done:
            prior = self.prior_of(trainer, earlier.rows)
            assert prior is not None
            top = RRTopK(self.classes, self.method.epsilon, k).support(prior)
            used.append((earlier, top[np.arange(len(top)), earlier.private.labels]))
        return [*used, (stage, everything)]

    def trainer(
        self,
        before: Any,
        made: Any,
        index: int,
        key: PRNGKeyArray,
        validation: tuple[np.ndarray, PrivateLabels] | None,
    ) -> Any:
        """Returns a stage's trainer: the one brought, or a new one around the model so far."""
        if not isinstance(made, eqx.Module):
            if not isinstance(made, Trainer):
                raise Error(
                    f"model_fn returned a {type(made).__name__}, which is neither an Equinox module"
                    " nor has fit and predict_proba",
                    "wrap a scikit-learn classifier in SklearnTrainer",
                )
            return made
        return ModelTrainer(
            made if before is None else before.model,
            self.method.training,
            key=jax.random.fold_in(key, 2 + index),
            statistics=None if before is None else before.statistics,
            mixup=self.method._mixup()[index],
            run_dir=None if self.folder is None else self.folder / f"stage-{index + 1}",
            mesh=self.mesh,
            rules=self.rules,
            validation=validation,
            quiet=self.quiet,
        )

    def train(self, trainer: Any, used: list[tuple[Stage, np.ndarray]]) -> None:
        rows = np.concatenate([stage.rows[kept] for stage, kept in used])
        noisy = np.concatenate([stage.private.labels[kept] for stage, kept in used])
        targets = np.eye(self.classes, dtype=np.float32)[noisy]
        if not isinstance(trainer, ModelTrainer):
            trainer.fit(self.x[rows], targets, np.ones(len(rows), np.float32))
        elif trainer.training.loss == "plain":
            trainer.fit(self.x[rows], targets)
        else:
            keep = np.concatenate([s.private.keep_probability[kept] for s, kept in used])
            support = np.concatenate([s.support[kept] for s, kept in used])
            trainer.fit(self.x[rows], targets, keep=keep, support=support)

    def describe(
        self,
        stage: Stage,
        prior: np.ndarray | None,
        done: list[Stage],
        used: list[tuple[Stage, np.ndarray]],
        trainer: Any,
        validation: tuple[np.ndarray, PrivateLabels] | None,
    ) -> dict[str, Any]:
        """Returns a stage's row of the report, from what is public alone."""
        earlier = sum(len(s.rows) for s in done[:-1])
        kept = sum(int(mask.sum()) for s, mask in used if s is not stage)
        uniform = RandomizedResponse(self.classes, self.method.epsilon)
        expected = (
            uniform.expected_accuracy()
            if prior is None
            else self.mechanism().expected_accuracy(prior)
        )
        row: dict[str, Any] = {
            "stage": stage.name,
            "records": len(stage.rows),
            "mean_k": float(stage.private.k.mean()),
            "expected_correct": float(expected.mean()),
            "earlier_kept": kept,
            "earlier_dropped": earlier - kept,
        }
        if validation is not None:
            x, private = validation
            estimate = debiased_accuracy(trainer.predict_proba(x).argmax(axis=1), private)
            row["debiased_accuracy"] = float(estimate.value)
            row["standard_error"] = float(estimate.standard_error)
        return row

    def charge(
        self, name: str | None, prior_spends: Sequence[Spend], record_ids: pl.DataFrame | None
    ) -> None:
        """Charges the whole run before its first label is drawn; a second time costs nothing."""
        records = None
        if record_ids is not None:
            if len(record_ids) != len(self._labels):
                raise Error(f"there are {len(record_ids)} ids for {len(self._labels)} records")
            records = self.ledger.collect()
            records.add(record_ids)
        self.ledger.charge(*self.spends(prior_spends), id=name, records=records)

    def spends(self, prior_spends: Sequence[Spend]) -> list[Spend]:
        plain, informed = "RandomizedResponse", "RRWithPrior"
        first = plain if self.prior is None else informed
        mechanisms = {VALIDATION_PART: plain, "stage-1": first}
        return [
            *prior_spends,
            *(
                Spend(name, mechanisms.get(name, informed), float(self.method.epsilon), len(rows))
                for name, rows in self.parts.items()
            ),
        ]

    def certificate(
        self, done: list[Stage], prior_spends: Sequence[Spend], schema: dict[str, str]
    ) -> Certificate:
        spends = tuple(self.spends(prior_spends))
        return Certificate(
            mechanism="LP-MST",
            num_classes=self.classes,
            epsilon=total_epsilon(spends),
            spends=spends,
            seeded=any(stage.private.seeded for stage in done),
            schema=schema,
            verification=self.proof(done),
            details={
                "stages": list(self.method.stages),
                "composition": "parallel: the parts are disjoint, each label is used once",
            },
        )

    def proof(self, done: list[Stage]) -> dict[str, Any]:
        """Proves the ratio of every mechanism that drew a label here, in exact arithmetic."""
        seen = sorted({int(k) for stage in done for k in np.unique(stage.private.k)})
        if self.classes > _PROVEN_CLASSES or np.isinf(self.method.epsilon):
            return {"method": "none: too many classes, or no privacy asked for", "holds": None}
        uniform = np.full(self.classes, 1 / self.classes)
        proofs = [RRTopK(self.classes, self.method.epsilon, k).verify(uniform) for k in seen]
        return {
            "method": "exact integer ratio of every answer, for every number of classes used",
            "k": seen,
            "holds": all(proof.holds for proof in proofs),
        }


def _charge_id(drawn: DrawnLabels) -> str:
    """Returns the name under which a run is charged: drawn once, and kept with its labels."""
    words = np.random.default_rng().integers(0, 1 << 32, 4)
    held = drawn.once("charge", lambda: {"id": words})["id"]
    return "".join(f"{int(word):08x}" for word in held)


def fingerprint(values: np.ndarray) -> str:
    """Returns a hash of public inputs. Labels are never hashed: their hash would tell on them."""
    digest = hashlib.sha256(f"{values.shape} {values.dtype}".encode())
    step = max(1, (1 << 24) // max(1, values[:1].nbytes))
    for start in range(0, len(values), step):
        digest.update(np.ascontiguousarray(values[start : start + step]).data)
    return digest.hexdigest()


def _json_number(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)


def _text(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
