"""From examples to a distilled set, and from a set to predictions, in one call each."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
from jax.sharding import Mesh
from jaxtyping import Float

from chapbook.core.errors import Error
from chapbook.core.run import Run
from chapbook.kip_distill.data import Examples
from chapbook.kip_distill.distilled import DistilledSet
from chapbook.kip_distill.kernels import Kernel, named
from chapbook.kip_distill.kip import KIP, Support, vectors
from chapbook.kip_distill.labels import centred
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
    noise: bool = False,
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
        per_class: Images of each class.
        learn_labels: Whether labels are learned too.
        steps: Updates.
        target_batch: Natural examples per step.
        lr: Adam's learning rate.
        reg: Regulariser, relative to the kernel's scale.
        zca: Regulariser of whitening; None leaves it out.
        noise: Whether to begin with noise instead of examples.
        mesh: Devices, with axes `target` and `support`; None for one.
        seed: Of the first images and the batches.
        fresh: Whether to empty the folder first.
        quiet: Whether to show no progress.

    Returns:
        The set of the last step.

    Raises:
        Error: The examples do not fit the kernel or the settings, or the folder holds a run of
            other data or settings.
    """
    kernel.check(examples.x.shape)
    preprocess = Preprocess.fit(examples.x, zca=zca)
    x = preprocess(examples.x)
    kip = KIP(
        kernel, per_class * len(examples.names), learn_labels=learn_labels, reg=reg, lr=lr,
        target_batch=target_batch,
    )  # fmt: skip
    first = kip.init(x, examples.y, key=jax.random.key(seed), noise=noise)
    options = {
        "arch": arch, "per_class": per_class, "learn_labels": learn_labels, "reg": reg, "lr": lr,
        "target_batch": target_batch, "zca": zca, "noise": noise, "seed": seed,
        "data": _fingerprint(examples),
    }  # fmt: skip

    def made(support: Support, step: int) -> DistilledSet:
        facts = options | {"step": step, "get": kip.get, "classes": list(examples.names),
                           "features": list(examples.features)}  # fmt: skip
        return DistilledSet(
            np.asarray(support.images), np.asarray(support.labels), preprocess, facts
        )

    with Run(run_dir, options | {"steps": steps}, fresh=fresh, may_change=("steps",)) as run:
        (run.path / "sets").mkdir(exist_ok=True)

        def keep(step: int, support: Support) -> None:
            made(support, step).save(run.path / "sets" / f"step-{step:06}.npz")

        result = kip.fit(
            first, x, examples.y, steps=steps, seed=seed, run=run, mesh=mesh, on_step=keep,
            quiet=quiet,
        )  # fmt: skip
        if result.reason == "nan":
            raise Error(
                f"the loss is not finite after step {result.step}; the last good set is in "
                f"{run.path / 'sets'}; use a lower --lr or a greater --reg"
            )
        found = made(result.model, result.step)
        found.facts["train"] = kip.score(result.model, x, examples.y, mesh=mesh)
        found.save(run.path / "distilled.npz")
        if found.images.ndim == 4:
            write_sheet(run.path / "initial.png", made(first, 0).view(), found.classes)
            write_sheet(run.path / "images.png", found.view(), found.classes)
        run.results({"step": result.step, "train": found.facts["train"]})
    return found


def solve_labels(
    examples: Examples,
    kernel: Kernel,
    *,
    arch: str,
    per_class: int = 10,
    reg: float = 1e-6,
    zca: float | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> tuple[DistilledSet, int]:
    """Returns random examples with the labels that Label Solve finds, and their rank.

    Args:
        examples: The training part, all of which is explained.
        kernel: Of the network.
        arch: Name of the kernel, which the set tells.
        per_class: Images of each class.
        reg: Regulariser, relative to the kernel's scale.
        zca: Regulariser of whitening; None leaves it out.
        mesh: Devices, with axes `target` and `support`; None for one.
        seed: Of the draw.
    """
    kernel.check(examples.x.shape)
    preprocess = Preprocess.fit(examples.x, zca=zca)
    x, count = preprocess(examples.x), len(examples.names)
    first = KIP(kernel, per_class * count).init(x, examples.y, key=jax.random.key(seed))
    images = np.asarray(first.images)
    solved = label_solve(kernel, images, x, centred(examples.y, count), reg=reg, mesh=mesh)
    facts = {
        "arch": arch, "per_class": per_class, "reg": reg, "zca": zca, "seed": seed, "get": "ntk",
        "method": "label solve", "classes": list(examples.names),
        "features": list(examples.features), "data": _fingerprint(examples),
    }  # fmt: skip
    return DistilledSet(images, solved.labels.astype(np.float32), preprocess, facts), solved.rank


def regressor(
    held: DistilledSet, *, arch: str | None = None, mesh: Mesh | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what predicts scores of classes from raw inputs.

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
    found = KernelRidge.fit(
        kernel, held.images, held.labels, reg=held.facts.get("reg", 1e-6),
        get=held.facts.get("get", "ntk"), mesh=mesh,
    )  # fmt: skip
    return lambda x: found.predict(np.asarray(held.process(x)))


def scores(
    held: DistilledSet,
    examples: Examples,
    *,
    arch: str | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Returns accuracy and squared error on examples, and the accuracy of each class.

    Args:
        held: The set.
        examples: Raw.
        arch: Name of the kernel, where the set does not tell it.
        mesh: Devices, with axes `target` and `support`; None for one.
    """
    found = regressor(held, arch=arch, mesh=mesh)(examples.x)
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

    Args:
        held: The set.
        x: Raw inputs.
        table: A row for each.
        arch: Name of the kernel, where the set does not tell it.
        mesh: Devices, with axes `target` and `support`; None for one.
    """
    found = regressor(held, arch=arch, mesh=mesh)(x)
    names = held.facts.get("classes") or [str(each) for each in range(found.shape[1])]
    columns = [pl.Series("predicted", [names[place] for place in found.argmax(1)])]
    columns += [pl.Series(f"score_{name}", found[:, place]) for place, name in enumerate(names)]
    return table.with_columns(columns)


def _fingerprint(examples: Examples) -> str:
    """Returns a short name of the data, by which a run knows it again."""
    digest = hashlib.sha256(examples.x.tobytes())
    digest.update(examples.y.tobytes())
    return digest.hexdigest()[:16]
