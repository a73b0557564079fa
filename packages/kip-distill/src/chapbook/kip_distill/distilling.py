"""From examples to a distilled set, and from a set to predictions, in one call each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from chapbook.core.errors import Error
from chapbook.core.run import Run
from chapbook.kip_distill.arrays import fingerprint
from chapbook.kip_distill.augmentation import Augmentation
from chapbook.kip_distill.data import Examples
from chapbook.kip_distill.distilled import DistilledSet
from chapbook.kip_distill.kernels import Kernel, named
from chapbook.kip_distill.kip import KIP, Support, vectors
from chapbook.kip_distill.precision import computing_in
from chapbook.kip_distill.preprocessing import Preprocess
from chapbook.kip_distill.regression import KernelRidge
from chapbook.kip_distill.sheet import write_sheet
from chapbook.kip_distill.solving import label_solve


def distil(
    examples: Examples,
    kernel: Kernel,
    *,
    run_dir: str | Path,
    arch: str,
    per_class: int = 10,
    learn_labels: bool = False,
    steps: int = 1000,
    target_batch: int = 5000,
    lr: float = 0.04,
    reg: float = 1e-6,
    zca: float | None = None,
    augmentation: Augmentation | None = None,
    noise: bool = False,
    precision: str = "float32",
    mesh: Mesh | None = None,
    seed: int = 0,
    fresh: bool = False,
    quiet: bool = False,
) -> DistilledSet:
    """Distils examples by KIP, and keeps the run, the set and its pictures in a folder.

    The folder gets `distilled.npz`, the sets of early steps in `sets`, `metrics.parquet`, and for
    images `initial.png` and `images.png`. The same call goes on with a run that was interrupted.

    Args:
        examples: The training part.
        kernel: Of the network.
        run_dir: The folder.
        arch: Name of the kernel, which the set tells.
        per_class: Inputs of each class; of all, where numbers are predicted.
        learn_labels: Whether labels are learned too.
        steps: Updates.
        target_batch: Natural examples per step.
        lr: Adam's learning rate.
        reg: Regulariser, relative to the kernel's scale.
        zca: Regulariser of whitening; None leaves it out.
        augmentation: What is done to the images of every batch; None leaves them as they are.
        noise: Whether to begin with noise instead of examples.
        precision: Of kernel values, `float32` or `float64`, whatever `jax_enable_x64` says.
        mesh: Devices, with axes `target` and `support`; None for one.
        seed: Of the first images and the batches.
        fresh: Whether to empty the folder first.
        quiet: Whether to show no progress.

    Returns:
        The set of the last step.

    Raises:
        Error: The examples do not fit the kernel or the settings, or the folder holds a run of
            other data or settings.
        SystemExit: When it is interrupted, with the signal's code.
    """
    if augmentation is not None and examples.x.ndim != 4:
        raise Error("only images can be augmented; leave the augmentation out")
    wide = computing_in(precision)
    start = _Start.of(examples, kernel, per_class, zca=zca, precision=precision)
    kip = KIP(
        kernel, start.size, learn_labels=learn_labels, reg=reg, lr=lr, target_batch=target_batch
    )
    options = {
        "arch": arch, "per_class": per_class, "learn_labels": learn_labels, "reg": reg, "lr": lr,
        "target_batch": target_batch, "zca": zca, "noise": noise, "seed": seed,
        "augmentation": vars(augmentation) if augmentation else None, "precision": precision,
        "data": fingerprint(examples.x, examples.y),
    }  # fmt: skip

    def made(support: Support, step: int) -> DistilledSet:
        facts = options | {"step": step, "get": kip.get} | _told(examples)
        return DistilledSet(
            np.asarray(support.images), np.asarray(support.labels), start.preprocess, facts,
            start.targets,
        )  # fmt: skip

    def augmented(batch: Float[Array, "batch ..."], key: Key[Array, ""]) -> Array:
        assert augmentation is not None
        return start.preprocess(augmentation(batch, key))

    run_options = {"fresh": fresh, "may_change": ("steps",)}
    with wide, Run(run_dir, options | {"steps": steps}, **run_options) as run:
        first = kip.init(start.x, start.y, key=jax.random.key(seed), noise=noise)
        (run.path / "sets").mkdir(exist_ok=True)

        def keep(step: int, support: Support) -> None:
            name = set_name(
                arch, len(support.images), step, zca=zca is not None, labels=learn_labels,
                augmented=augmentation is not None,
            )  # fmt: skip
            made(support, step).save(run.path / "sets" / name)

        result = kip.fit(
            first, examples.x.astype(precision) if augmentation else start.x, start.y,
            steps=steps, seed=seed, augment=augmented if augmentation else None, run=run,
            mesh=mesh, on_step=keep, quiet=quiet,
        )  # fmt: skip
        if result.exit_code:  # the sets of the steps that were done are kept
            raise SystemExit(result.exit_code)
        if result.reason == "nan":
            raise Error(
                f"the loss is not finite after step {result.step}; the last good set is in "
                f"{run.path / 'sets'}; use a lower --lr or a greater --reg"
            )
        found = made(result.model, result.step)
        found.facts["train"] = kip.score(result.model, start.x, start.y, mesh=mesh)
        found.save(run.path / "distilled.npz")
        if found.images.ndim == 4:
            write_sheet(run.path / "initial.png", made(first, 0).view(), found.classes)
            write_sheet(run.path / "images.png", found.view(), found.classes)
        run.results({"step": result.step, "train": found.facts["train"]})
    return found


def set_name(arch: str, size: int, step: int, *, zca: bool, labels: bool, augmented: bool) -> str:
    """Returns the name of a set's file, as the paper's authors named those that they released.

    Args:
        arch: Name of the kernel.
        size: Images of the set.
        step: After which it is kept.
        zca: Whether images are whitened.
        labels: Whether labels are learned.
        augmented: Whether targets are augmented.
    """
    parts = (
        arch, f"ssize{size}", "zca" if zca else "nozca", "l" if labels else "nol",
        "aug" if augmented else "noaug", f"ckpt{step}",
    )  # fmt: skip
    return "_".join(parts) + ".npz"


def solve_labels(
    examples: Examples,
    kernel: Kernel,
    *,
    arch: str,
    per_class: int = 10,
    reg: float = 1e-6,
    zca: float | None = None,
    precision: str = "float32",
    mesh: Mesh | None = None,
    seed: int = 0,
) -> tuple[DistilledSet, int]:
    """Returns random examples with the labels that Label Solve finds, and their rank.

    Args:
        examples: The training part, all of which is explained.
        kernel: Of the network.
        arch: Name of the kernel, which the set tells.
        per_class: Inputs of each class; of all, where numbers are predicted.
        reg: Regulariser, relative to the kernel's scale.
        zca: Regulariser of whitening; None leaves it out.
        precision: Of kernel values, `float32` or `float64`, whatever `jax_enable_x64` says.
        mesh: Devices, with axes `target` and `support`; None for one.
        seed: Of the draw.
    """
    wide = computing_in(precision)
    start = _Start.of(examples, kernel, per_class, zca=zca, precision=precision)
    wanted = vectors(start.y, len(examples.names))
    with wide:
        first = KIP(kernel, start.size).init(start.x, start.y, key=jax.random.key(seed))
        images = np.asarray(first.images)
        solved = label_solve(kernel, images, start.x, wanted, reg=reg, mesh=mesh)
    facts = {
        "arch": arch, "per_class": per_class, "reg": reg, "zca": zca, "seed": seed, "get": "ntk",
        "method": "label solve", "precision": precision,
        "data": fingerprint(examples.x, examples.y),
    } | _told(examples)  # fmt: skip
    labels = solved.labels.astype(images.dtype)
    return DistilledSet(images, labels, start.preprocess, facts, start.targets), solved.rank


@dataclass(frozen=True, eq=False)
class _Start:
    """Examples as a kernel gets them."""

    x: Float[np.ndarray, "n ..."]
    y: Int[np.ndarray, " n"] | Float[np.ndarray, "n outputs"]
    size: int
    preprocess: Preprocess
    targets: Preprocess | None

    @classmethod
    def of(
        cls, examples: Examples, kernel: Kernel, per_class: int, *, zca: float | None,
        precision: str,
    ) -> "_Start":  # fmt: skip
        kernel.check(examples.x.shape)
        preprocess = Preprocess.fit(examples.x, zca=zca)
        x = np.asarray(preprocess(examples.x), precision)
        if examples.y.ndim == 1:
            return cls(x, examples.y, per_class * len(examples.names), preprocess, None)
        targets = Preprocess.fit(examples.y)
        return cls(x, targets(examples.y), per_class, preprocess, targets)


def _told(examples: Examples) -> dict[str, Any]:
    """Returns what a set tells of its data."""
    return {"names": list(examples.names), "features": list(examples.features)}


def regressor(
    held: DistilledSet, *, arch: str | None = None, mesh: Mesh | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what predicts scores of classes, or numbers, from raw inputs.

    Kernel values have the precision of the set's inputs, whatever `jax_enable_x64` says.

    Args:
        held: The set.
        arch: Name of the kernel, where the set does not tell it.
        mesh: Devices, with axes `target` and `support`; None for one.

    Raises:
        Error: The set was made with another kernel, or tells none and none is given.
    """
    told = held.facts.get("arch")
    if arch and told and arch != told:
        raise Error(f"the set was made with {told}, not {arch}")
    name = arch or told
    if not name:
        raise Error("the set does not tell its kernel; name it by --arch")
    kernel = named(name)
    kernel.check(held.images.shape)
    dtype = np.dtype("float64" if held.images.dtype == "float64" else "float32")
    with computing_in(dtype):
        found = KernelRidge.fit(
            kernel, held.images, held.labels, reg=held.facts.get("reg", 1e-6),
            get=held.facts.get("get", "ntk"), mesh=mesh,
        )  # fmt: skip

    def predict(x: np.ndarray) -> np.ndarray:
        with computing_in(dtype):
            outputs = found.predict(np.asarray(held.process(x), dtype))
        return held.targets.view(outputs) if held.targets else outputs

    return predict


def scores(
    held: DistilledSet,
    examples: Examples,
    *,
    arch: str | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Returns accuracy and squared error on examples, and the accuracy of each class.

    Where numbers are predicted: the squared error in their own units, and the share of variance
    that is explained, of each.

    Args:
        held: The set.
        examples: Raw.
        arch: Name of the kernel, where the set does not tell it.
        mesh: Devices, with axes `target` and `support`; None for one.

    Raises:
        Error: The examples have classes and the set predicts numbers, or the other way round.
    """
    if (held.targets is None) != (examples.y.ndim == 1):
        kinds = ("classes", "numbers") if held.targets is None else ("numbers", "classes")
        raise Error(f"the set predicts {kinds[0]}, but the examples have {kinds[1]}")
    found = regressor(held, arch=arch, mesh=mesh)(examples.x)
    if held.targets is not None:
        errors = ((found - examples.y) ** 2).mean(0)
        spread = examples.y.var(0, dtype=np.float64)
        explained = 1 - errors / np.where(spread > 0, spread, np.nan)
        return {"examples": len(found), "mse": dict(zip(held.names, errors.tolist(), strict=True)),
                "r2": dict(zip(held.names, explained.tolist(), strict=True))}  # fmt: skip
    right = found.argmax(1) == examples.y
    each = {
        name: float(right[examples.y == place].mean())
        for place, name in enumerate(examples.names)
        if (examples.y == place).any()
    }
    error = ((found - vectors(examples.y, held.labels.shape[1])) ** 2).mean()
    return {"examples": len(right), "accuracy": float(right.mean()), "mse": float(error)} | {
        "accuracy by class": each
    }


def predicted(
    held: DistilledSet,
    x: Float[np.ndarray, "n ..."],
    table: pl.DataFrame,
    *,
    arch: str | None = None,
    mesh: Mesh | None = None,
) -> pl.DataFrame:
    """Returns a table with the class of every input beside it, and the scores of all classes.

    Where numbers are predicted, there is a column `predicted_...` for each instead.

    Args:
        held: The set.
        x: Raw inputs.
        table: A row for each.
        arch: Name of the kernel, where the set does not tell it.
        mesh: Devices, with axes `target` and `support`; None for one.
    """
    found = regressor(held, arch=arch, mesh=mesh)(x)
    kind = "score" if held.targets is None else "predicted"
    columns = [
        pl.Series(f"{kind}_{name}", each) for name, each in zip(held.names, found.T, strict=True)
    ]
    if held.targets is None:
        classes = [held.names[place] for place in found.argmax(1)]
        columns = [pl.Series("predicted", classes), *columns]
    return table.with_columns(columns)
