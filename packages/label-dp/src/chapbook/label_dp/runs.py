"""Training runs on files: train from a file into a folder, predict and evaluate from the folder."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import polars as pl
from jax.sharding import Mesh

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.core.tables import write_table
from chapbook.core.weights import load_weights, save_weights
from chapbook.label_dp.certificate import Spend
from chapbook.label_dp.classes import Classes
from chapbook.label_dp.data import Examples, Inputs, read_examples
from chapbook.label_dp.drawn import DrawnLabels
from chapbook.label_dp.entropy import Entropy
from chapbook.label_dp.estimation import debiased_accuracy
from chapbook.label_dp.ledger import PrivacyLedger
from chapbook.label_dp.models import MLP, ConvNet, Logistic, ResNet18, initial_statistics
from chapbook.label_dp.multi_stage import LPMST, Trained, fingerprint
from chapbook.label_dp.randomized_response import PrivateLabels, RandomizedResponse
from chapbook.label_dp.trainer import Training, predict_proba


@dataclasses.dataclass(frozen=True)
class Settings(Training):
    """How a file's model is made and trained: what `--config` and `--set` can name.

    Attributes:
        mixup: As `LPMST` takes it.
        temperature: As `LPMST` takes it.
        reuse: As `LPMST` takes it.
        filter: As `LPMST` takes it.
        validation: As `LPMST` takes it.
        hidden: Widths of an MLP's hidden layers.
        width: Channels of the first group of a ResNet-18, or of a ConvNet's first convolution.
    """

    mixup: tuple[float, ...] = (8.0, 4.0)
    temperature: float = 0.5
    reuse: bool = True
    filter: bool = True
    validation: float = 0.0
    hidden: tuple[int, ...] = (256,)
    width: int = 64

    def training(self) -> Training:
        """Returns the part that a trainer takes."""
        names = [field.name for field in dataclasses.fields(Training)]
        return Training(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True)
class Saved:
    """A model in a folder: `config.json` and `weights.safetensors`.

    Attributes:
        model: The module.
        statistics: Its batch statistics.
        classes: The names of the classes.
        inputs: How the inputs are read.
        label: The label's column in the training data.
    """

    model: Any
    statistics: Any
    classes: Classes
    inputs: Inputs
    label: str

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Returns class probabilities."""
        return predict_proba(self.model, self.statistics, x)


def build(
    name: str, shape: Sequence[int], classes: int, settings: Settings, key: Any
) -> eqx.Module:
    """Makes a built-in model for inputs of a shape.

    Raises:
        Error: The model is for images and the inputs are none, or there is no such model.
    """
    if name in ("convnet", "resnet18"):
        if len(shape) != 3:
            raise Error(
                f"model {name} is for images, the inputs have shape {tuple(shape)}",
                "take mlp or logistic, or name the column of images with --image",
            )
        image = (shape[0], shape[1], shape[2])
        if name == "resnet18":
            return ResNet18(image, classes, key, settings.width)
        channels = (settings.width // 4, settings.width // 2)
        return ConvNet(image, classes, key, channels, settings.hidden[-1])
    inputs = int(np.prod(shape))
    if name == "logistic":
        return Logistic(inputs, classes)
    if name == "mlp":
        return MLP(inputs, classes, key, settings.hidden)
    raise Error(f'model "{name}" is none of mlp, convnet, resnet18 and logistic')


def train_file(
    path: str | Path,
    out: str | Path,
    *,
    label: str,
    classes: Sequence[str],
    model: str = "mlp",
    epsilon: float = 1.0,
    stages: Sequence[float] = (0.65, 0.35),
    settings: Settings = Settings(),
    features: Sequence[str] = (),
    id_columns: Sequence[str] = (),
    image: str | None = None,
    ledger: str | Path | None = None,
    seed: int = 0,
    noise_seed: int | None = None,
    mesh: Mesh | None = None,
    quiet: bool = True,
) -> Trained:
    """Trains on a file's records with private labels, into a folder; goes on with a killed run.

    Args:
        path: A table, a folder of images, or an npz; see `read_examples`.
        out: The run's folder.
        label: The private column.
        classes: The declared classes.
        model: A built-in model.
        epsilon: The privacy budget of every label.
        stages: The share of the records in each stage.
        settings: Of the model and its training.
        features: Columns to learn from; all numeric ones if empty.
        id_columns: Columns that identify a record: no features, and known to the ledger.
        image: A column of encoded images.
        ledger: A ledger file; the run folder's own if None.
        seed: Of everything but the privacy noise.
        noise_seed: Of the privacy noise, which is then not private; for tests.
        mesh: The devices.
        quiet: Show no progress.
    """
    examples = read_examples(
        path, label=label, classes=classes, features=features, ignore=id_columns, image=image
    )
    assert examples.labels is not None
    declared = Classes(classes)
    shape = examples.inputs.shape
    method = LPMST(
        lambda key: build(model, shape, len(declared), settings, key),
        epsilon=epsilon,
        stages=tuple(stages),
        mixup=settings.mixup,
        temperature=settings.temperature,
        reuse=settings.reuse,
        filter=settings.filter,
        validation=settings.validation,
        training=settings.training(),
        num_classes=len(declared),
    )
    trained = method.fit(
        examples.x,
        examples.labels,
        key=jax.random.key(seed),
        run_dir=out,
        ledger=None if ledger is None else PrivacyLedger(ledger),
        record_ids=_ids(examples, id_columns, path) if id_columns else None,
        entropy=None if noise_seed is None else Entropy(noise_seed),
        schema=examples.schema,
        mesh=mesh,
        quiet=quiet,
    )
    if jax.process_index() == 0:
        save_model(Path(out) / "model", trained, model, label, declared, examples.inputs, settings)
    return trained


def save_model(
    folder: Path,
    trained: Trained,
    name: str,
    label: str,
    classes: Classes,
    inputs: Inputs,
    settings: Settings,
) -> None:
    """Writes a built-in model so that it can be read without this package."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"model": trained.model, "statistics": trained.statistics}
    save_weights(tree, folder / "weights.safetensors")
    # The config is written last: a folder that has one has whole weights.
    config = {
        "model": name,
        "label": label,
        "classes": list(classes.names),
        "inputs": dataclasses.asdict(inputs),
        "settings": dataclasses.asdict(settings),
    }
    write_atomic(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def load_model(run: str | Path) -> Saved:
    """Reads the model of a run's folder.

    Raises:
        Error: The folder holds no finished model.
    """
    folder = Path(run) / "model"
    path = folder / "config.json"
    if not path.is_file():
        raise Error(f"{run}: holds no trained model", "train it first, or go on with its training")
    config = json.loads(path.read_text())
    inputs, settings = Inputs(**_tuples(config["inputs"])), Settings(**_tuples(config["settings"]))
    classes = Classes(config["classes"])
    made = build(config["model"], inputs.shape, len(classes), settings, jax.random.key(0))
    like = {"model": made, "statistics": initial_statistics(made)}
    tree = load_weights(folder / "weights.safetensors", like)
    return Saved(tree["model"], tree["statistics"], classes, inputs, config["label"])


def predict_file(
    run: str | Path, path: str | Path, output: str | Path, *, keep: Sequence[str] = ()
) -> pl.DataFrame:
    """Predicts a file's records and writes one row for each, in order.

    Args:
        run: A run's folder.
        path: The file; it needs no label.
        output: The table to write: `prediction`, and `probability_<class>` of every class.
        keep: Columns of the file to carry along, such as ids.
    """
    saved = load_model(run)
    examples = read_examples(path, inputs=saved.inputs)
    if missing := [name for name in keep if name not in examples.table.columns]:
        raise Error(f"{path}: no column {missing[0]} to keep")
    probabilities = saved.predict_proba(examples.x)
    columns = {
        f"probability_{name}": probabilities[:, index].astype(np.float32)
        for index, name in enumerate(saved.classes.names)
    }
    predicted = saved.classes.decode(probabilities.argmax(axis=1), "prediction")
    table = pl.DataFrame([*(examples.table[name] for name in keep), predicted])
    table = table.with_columns(**{name: pl.Series(value) for name, value in columns.items()})
    write_table(table, output)
    return table


def evaluate_file(
    run: str | Path,
    path: str | Path,
    *,
    epsilon: float | None,
    label: str | None = None,
    noise_seed: int | None = None,
) -> dict[str, Any]:
    """Measures a model's accuracy, on clean labels or on labels of randomised response.

    With an epsilon, each label is answered once by randomised response, kept in the run's folder
    (evaluating again draws nothing new), and charged to the run's ledger. Without, the labels are
    taken as they are, and the result is marked as not private.

    Args:
        run: A run's folder.
        path: The file.
        epsilon: The privacy budget of these labels; None for clean labels.
        label: The column of the label; the one of the training if None.
        noise_seed: Of the privacy noise, which is then not private; for tests.
    """
    saved = load_model(run)
    classes, label = saved.classes, label or saved.label
    examples = read_examples(path, label=label, classes=classes.names, inputs=saved.inputs)
    assert examples.labels is not None
    predictions = saved.predict_proba(examples.x).argmax(axis=1)
    records = len(predictions)
    if epsilon is None:
        accuracy = float((predictions == examples.labels).mean())
        error = float(np.sqrt(accuracy * (1 - accuracy) / records))
        return {
            "accuracy": accuracy, "standard_error": error, "records": records, "private": False,
        }  # fmt: skip
    mechanism = RandomizedResponse(len(classes), epsilon)
    inputs = fingerprint(examples.x)
    part = f"evaluation-{inputs[:12]}-{label}"
    plan = {"inputs": inputs, "label": label, "epsilon": str(epsilon), "classes": len(classes)}
    drawn = DrawnLabels(Path(run) / part, plan)
    ledger = PrivacyLedger(Path(run) / "ledger.json")
    ledger.charge(Spend(part, "RandomizedResponse", float(epsilon), records), id=part)
    labels = examples.labels

    def draw() -> dict[str, np.ndarray]:
        entropy = None if noise_seed is None else Entropy(noise_seed)
        private = mechanism.privatize(labels, entropy=entropy)
        return {
            "labels": private.labels, "k": private.k, "keep": private.keep_probability,
            "seeded": np.array(private.seeded),
        }  # fmt: skip

    held = drawn.once("labels", draw)
    private = PrivateLabels(
        held["labels"], held["k"], held["keep"], len(classes), float(epsilon),
        "RandomizedResponse", bool(held["seeded"]),
    )  # fmt: skip
    estimate = debiased_accuracy(predictions, private)
    return {
        "accuracy": float(estimate.value),
        "standard_error": float(estimate.standard_error),
        "records": records,
        "private": not private.seeded,
        "epsilon": float(epsilon),
    }


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _ids(examples: Examples, columns: Sequence[str], path: str | Path) -> pl.DataFrame:
    if missing := [name for name in columns if name not in examples.table.columns]:
        raise Error(f"{path}: no id column {missing[0]}")
    return examples.table.select(columns)
