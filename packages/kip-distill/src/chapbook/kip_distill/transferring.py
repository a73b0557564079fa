r"""Transfer: a distilled set as the training set of a network of finite width.

Notable choices, those of the paper's authors:

- The loss is $\tfrac12 \mathrm{mean} (f - y)^2 + \tfrac12 \lambda \sum w^2$ over the outputs of a
  batch and over all parameters, biases too. Labels are vectors, learned ones as they are.
- SGD with momentum 0.9; the learning rate falls by half a cosine from a multiple of the greatest
  one with which gradient descent on the linearised network is stable.
- The last step counts. Where several rates and regularisers are tried, real images choose among
  them that are neither trained on nor tested on.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from chapbook.core.data import Batches, arrays
from chapbook.core.errors import Error
from chapbook.core.run import Run
from chapbook.core.train import fit
from chapbook.core.weights import save_weights
from chapbook.kip_distill.arrays import fingerprint
from chapbook.kip_distill.data import Examples
from chapbook.kip_distill.distilled import DistilledSet
from chapbook.kip_distill.kernels import Kernel
from chapbook.kip_distill.kip import vectors
from chapbook.kip_distill.networks import Network

MOMENTUM = 0.9
PROBES = 50  # validation images that the greatest learning rate is computed from
ROWS = 100  # images that are predicted at once
MEMORY = 2**30  # bytes of gradients that are held at once
EVALUATIONS = 10  # on validation images, in the course of a training
SAVE_EVERY = 500  # steps


class Diverged(Error):  # noqa: N818
    """A training whose loss or gradient is no longer finite.

    Args:
        step: The first such step.
        learning_rate: That the training began with.

    Attributes:
        step: The first such step.
    """

    def __init__(self, step: int, learning_rate: float):
        super().__init__(
            f"the loss or its gradient is not finite at step {step}, with a learning rate of "
            f"{learning_rate:.4g} to begin with; use a lower factor"
        )
        self.step = step


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training of a grid.

    Attributes:
        factor: Of the greatest learning rate.
        l2: Regulariser.
        learning_rate: Of the first step.
        accuracy: On validation images after the last step; None if the training diverged.
        mse: On the same.
        diverged: The first step whose loss is not finite; None if there is none.
    """

    factor: float
    l2: float
    learning_rate: float
    accuracy: float | None = None
    mse: float | None = None
    diverged: int | None = None

    def __str__(self) -> str:
        """How it ended, in a line."""
        ended = f"validation accuracy {self.accuracy}"
        if self.diverged is not None:
            ended = f"diverged at step {self.diverged}"
        return f"factor {self.factor:g}, l2 {self.l2:g}: {ended}"


@dataclasses.dataclass(frozen=True, eq=False)
class Transferred:
    """What `transfer` finds.

    Attributes:
        network: Trained on the set, in the trial that validation chose.
        trial: That trial.
        trials: All of the grid.
        accuracy: On test images.
        mse: On test images, against centred one-hot labels.
        examples: How many test images there are.
    """

    network: Network
    trial: Trial
    trials: tuple[Trial, ...]
    accuracy: float
    mse: float
    examples: int

    @property
    def facts(self) -> dict[str, Any]:
        """What was found but for the network, as plain values."""
        return {
            "examples": self.examples, "accuracy": self.accuracy, "mse": self.mse,
            "learning_rate": self.trial.learning_rate, "factor": self.trial.factor,
            "l2": self.trial.l2, "validation_accuracy": self.trial.accuracy,
            "trials": [dataclasses.asdict(each) for each in self.trials],
        }  # fmt: skip


def transfer(
    held: DistilledSet,
    kernel: Kernel,
    examples: Examples,
    test: Examples | None = None,
    *,
    width: int = 256,
    steps: int = 5000,
    batch: int = 100,
    factors: Sequence[float] = (1.0,),
    l2: Sequence[float] = (0.001,),
    validation: float = 0.1,
    run_dir: str | Path | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
    fresh: bool = False,
    quiet: bool = False,
) -> Transferred:
    """Trains a network of finite width on a set, and tests it on real images.

    Every pair of a factor and a regulariser is a trial, with the same first weights and the same
    batches. The best accuracy on validation images wins, and among equals the lowest error. The
    same call goes on with a run that was interrupted.

    Args:
        held: The set. Natural images in its place give a baseline.
        kernel: Whose layers the network has; it need not be the one that the set was made with.
        examples: Real ones, raw, of which a share is for validation; none are trained on.
        test: Other real ones, raw; None tests on what validation leaves of `examples`.
        width: Of every layer but the last.
        steps: Updates of a trial.
        batch: Images per step; the whole set where it is smaller.
        factors: Of the greatest learning rate.
        l2: Regularisers.
        validation: Share of `examples`, drawn by the seed alone. The set may have been distilled
            from these images too; for a choice that is blind to that, give others.
        run_dir: A folder that gets a run for each trial in `trials`, `results.json`, and the
            chosen network as `weights.safetensors`; None keeps everything in memory.
        mesh: Devices, with the axis `data` for the rows of a batch; None for one.
        seed: Of the first weights, the batches and the choice of validation images.
        fresh: Whether to empty the folder first.
        quiet: Whether to show no progress.

    Raises:
        Error: The set, the examples and the kernel do not fit together, a setting is out of range,
            every trial diverged, or the folder holds a run of other data or settings.
    """
    _check(width, steps, batch, factors, l2)
    if held.targets is not None or examples.y.ndim > 1:
        raise Error("transfer: networks are trained on classes, not on numbers to be predicted")
    chosen, rest = split(len(examples.y), validation, seed=seed)
    kept, others = examples.take(chosen), examples.take(rest) if test is None else test
    (x, y), asked = (
        (held.process(each.x), vectors(each.y, held.labels.shape[1])) for each in (kept, others)
    )
    images, labels = held.images.astype(np.float32), held.labels.astype(np.float32)
    start = Network(
        kernel, images.shape[1:], width=width, outputs=labels.shape[1], key=jax.random.key(seed)
    )
    greatest = max_learning_rate(start, x[:PROBES])
    options = {
        "layers": [str(layer) for layer in kernel.layers], "width": width, "steps": steps,
        "batch": batch, "factors": list(factors), "l2": list(l2), "validation": validation,
        "seed": seed, "set": fingerprint(images, labels), "data": fingerprint(examples.x, kept.y),
    }  # fmt: skip
    trials: list[Trial] = []
    best: tuple[Trial, Network] | None = None
    # A grid may grow: trials that are done are not done again.
    with _run(run_dir, options, fresh=fresh, may_change=("factors", "l2")) as run:
        for factor, strength in itertools.product(factors, l2):
            trial = Trial(factor, strength, factor * greatest)
            folder = run and run.path / "trials" / f"factor-{factor:g}-l2-{strength:g}"
            try:
                with _run(folder, options | {"factors": factor, "l2": strength}) as single:
                    network = train(
                        start, images, labels, learning_rate=trial.learning_rate, l2=strength,
                        steps=steps, batch=batch, validation=(x, y), run=single, mesh=mesh,
                        seed=seed, quiet=quiet,
                    )  # fmt: skip
            except Diverged as problem:
                if len(factors) * len(l2) == 1:
                    raise
                trials.append(dataclasses.replace(trial, diverged=problem.step))
                continue
            trials.append(dataclasses.replace(trial, **scored(network, x, y)))
            if best is None or _rank(trials[-1]) > _rank(best[0]):
                best = trials[-1], network
        if best is None:
            told = "; ".join(str(each) for each in trials)
            raise Error(f"no trial ended with a finite loss: {told}; use lower factors")
        trial, network = best
        found = Transferred(
            network, trial, tuple(trials), **scored(network, *asked), examples=len(others.y)
        )
        if run:
            save_weights(network, run.path / "weights.safetensors")
            run.results(found.facts)
    return found


def train(
    network: Network,
    images: Float[np.ndarray, "n ..."],
    labels: Float[np.ndarray, "n outputs"],
    *,
    learning_rate: float,
    l2: float = 0.001,
    steps: int = 5000,
    batch: int = 100,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    run: Run | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Network:
    r"""Returns a network after training on images.

    $$L = \tfrac12 \mathrm{mean} (f(x) - y)^2 + \tfrac12 \lambda \sum w^2$$

    Args:
        network: To begin with.
        images: Processed inputs.
        labels: Vectors.
        learning_rate: Of the first step; it falls by half a cosine to 0.
        l2: The regulariser of all parameters, biases too.
        steps: In all, those of a resumed run among them.
        batch: Images per step; all of them, in their order, where there are no more.
        validation: Other processed inputs and their vectors, predicted ten times on the way.
        run: Where the state is kept; None keeps everything in memory.
        mesh: Devices, with the axis `data` for the rows of a batch; None for one.
        seed: Of the batches.
        quiet: Whether to show no progress.

    Raises:
        Diverged: The loss or its gradient is not finite.
        Error: The mesh has other axes, or the batch does not divide among its devices.
    """
    if mesh is not None and set(mesh.shape) != {"data"}:
        raise Error(f"transfer: the mesh has axes {', '.join(mesh.shape)}; use data alone")

    def loss(model: Network, batch: dict[str, Array], key: Key[Array, ""]) -> Any:
        mse = jnp.mean((model(batch["x"]) - batch["y"]) ** 2)
        parameters = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
        squares = sum(jnp.sum(each**2) for each in parameters)
        return 0.5 * mse + 0.5 * l2 * squares, {"mse": mse}

    def evaluate(model: Network, key: Key[Array, ""]) -> dict[str, float]:
        assert validation is not None
        return scored(model, *validation)

    some = min(batch, len(images))
    result = fit(
        loss, network, optax.sgd(optax.cosine_decay_schedule(learning_rate, steps), MOMENTUM),
        Batches(arrays(x=images, y=labels), some, seed=seed, shuffle=some < len(images)),
        steps=steps, key=jax.random.key(seed), run=run,
        mesh=mesh or Mesh(np.array(jax.devices()[:1]), ("data",)),
        evaluate=evaluate if validation else None,
        evaluate_every=max(1, steps // EVALUATIONS), save_every=SAVE_EVERY, on_nan="stop",
        quiet=quiet,
    )  # fmt: skip
    if result.reason == "interrupted":
        raise KeyboardInterrupt
    if result.reason == "preempted":
        raise SystemExit(result.exit_code)
    if result.reason == "nan":
        raise Diverged(result.step + 1, learning_rate)
    return result.model


def max_learning_rate(
    network: Network, x: Float[np.ndarray, "n ..."], *, memory: int = MEMORY
) -> float:
    """Returns the greatest rate with which gradient descent on the linearised network is stable.

    `2 n C / lambda_max`, for the mean over `n` inputs and `C` outputs of half the squared error,
    and the empirical NTK of the sum of the outputs over `sqrt(C)`.

    Args:
        network: At the start.
        x: Processed inputs.
        memory: Bytes of gradients that are held at once; never less than those of two inputs.

    Raises:
        Error: The inputs have no finite gradient, or none at all.

    Reference:
        Lee et al., "Finite Versus Infinite Neural Networks: an Empirical Study", 2020.
    """
    found = empirical_ntk(network, x, memory=memory)
    greatest = float(np.linalg.eigvalsh(found)[-1]) if np.isfinite(found).all() else math.nan
    if not greatest > 0:
        raise Error(f"the network's NTK has the greatest eigenvalue {greatest:g} on these inputs")
    outputs = jax.eval_shape(network, jax.ShapeDtypeStruct(x.shape, x.dtype)).shape[1]
    return 2 * len(x) * outputs / greatest


def empirical_ntk(
    network: Network, x: Float[np.ndarray, "n ..."], *, memory: int = MEMORY
) -> Float[np.ndarray, "n n"]:
    """Returns the inner products of the gradients of the outputs' sum over `sqrt(outputs)`.

    Args:
        network: Of finite width.
        x: Inputs, preprocessed.
        memory: Bytes of gradients that are held at once; never less than those of two inputs.
    """
    parameters = jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))
    size = max(1, memory // (2 * sum(each.nbytes for each in parameters)))
    starts = range(0, len(x), size)
    found = np.zeros((len(x), len(x)))
    for place, start in enumerate(starts):
        rows = slice(start, start + size)
        first = _gradients(network, jnp.asarray(x[rows]))
        for other in starts[place:]:
            columns = slice(other, other + size)
            second = first if other == start else _gradients(network, jnp.asarray(x[columns]))
            found[rows, columns] = _products(first, second)
            found[columns, rows] = found[rows, columns].T
    return found


@eqx.filter_jit
def _gradients(network: Network, x: Float[Array, "n ..."]) -> list[Array]:
    """Returns the gradients of every input; one after the other, as a batch of one is a batch."""
    parameters, static = eqx.partition(network, eqx.is_inexact_array)

    def summed(parameters: Any, one: Array) -> Array:
        outputs = eqx.combine(parameters, static)(one[None])[0]
        return outputs.sum() / len(outputs) ** 0.5

    return jax.tree.leaves(lax.map(lambda one: jax.grad(summed)(parameters, one), x))


@jax.jit
def _products(first: list[Array], second: list[Array]) -> Float[Array, "n m"]:
    pairs = zip(first, second, strict=True)
    return jnp.sum(
        jnp.stack([a.reshape(len(a), -1) @ b.reshape(len(b), -1).T for a, b in pairs]), 0
    )


def scored(
    network: Network, x: Float[np.ndarray, "n ..."], y: Float[np.ndarray, "n outputs"]
) -> dict[str, float]:
    """Returns `accuracy` and `mse` of a network.

    Args:
        network: Of finite width.
        x: Inputs, preprocessed.
        y: Their labels, as vectors.
    """
    # Blocks of one size share one compiled program.
    size = min(ROWS, len(x))
    filled = np.pad(x, [(0, -len(x) % size)] + [(0, 0)] * (x.ndim - 1))
    parts = [
        np.asarray(_predicted(network, jnp.asarray(filled[start : start + size])))
        for start in range(0, len(x), size)
    ]
    # In float64, where the square of what a training blew up is a number still.
    found = np.concatenate(parts)[: len(x)].astype(np.float64)
    return {
        "accuracy": float((found.argmax(1) == y.argmax(1)).mean()),
        "mse": float(((found - y) ** 2).mean()),
    }


@eqx.filter_jit
def _predicted(network: Network, x: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
    return network(x)


def split(
    count: int, share: float, *, seed: int
) -> tuple[Int[np.ndarray, " validation"], Int[np.ndarray, " rest"]]:
    """Returns rows for validation and the other ones, both in their order.

    Args:
        count: Of all rows.
        share: For validation.
        seed: Of the draw.

    Raises:
        Error: One of the two parts would be empty.
    """
    taken = round(share * count) if 0 < share < 1 else 0
    if not 0 < taken < count:
        raise Error(
            f"a share of {share:g} of {count} examples for validation leaves one part empty"
        )
    rows = np.random.default_rng(seed).permutation(count)
    return np.sort(rows[:taken]), np.sort(rows[taken:])


def _run(folder: str | Path | None, options: dict[str, Any], **others: Any) -> Any:
    """Returns the context of a run, or of None where no folder is given."""
    return contextlib.nullcontext() if folder is None else Run(folder, options, **others)


def _rank(trial: Trial) -> tuple[float, float]:
    assert trial.accuracy is not None and trial.mse is not None
    return trial.accuracy, -trial.mse


def _check(
    width: int, steps: int, batch: int, factors: Sequence[float], l2: Sequence[float]
) -> None:
    if min(width, steps, batch) < 1:
        raise Error(f"width={width}, steps={steps}, batch={batch}; all are at least 1")
    if not factors or not all(0 < each < math.inf for each in factors):
        raise Error(f"factors of the learning rate are positive, not {_listed(factors)}")
    if not l2 or not all(0 <= each < math.inf for each in l2):
        raise Error(f"regularisers are not negative, but {_listed(l2)} are given")


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{each:g}" for each in values) or "none"
