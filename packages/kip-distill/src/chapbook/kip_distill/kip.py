r"""Kernel Inducing Points: a support set trained so that kernel regression on it predicts the rest.

$$L = \tfrac12 \mathrm{mean}\, \| K_{ts} (K_{ss} + \lambda \tfrac{\mathrm{tr} K_{ss}}{S} I)^{-1}
Y_s - Y_t \|^2$$

over batches of natural examples, by Adam on the support's images and, if asked for, its labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from chapbook.core.errors import Error
from chapbook.core.run import Run
from chapbook.core.train import Policy, Result, fit
from chapbook.kip_distill.kernels import Kernel
from chapbook.kip_distill.kernels.kernel import floating
from chapbook.kip_distill.labels import centred
from chapbook.kip_distill.regression import KernelRidge, solve
from chapbook.kip_distill.targets import Targets

# Steps of which the paper's authors released the sets; then every 500.
LOGGED = (0, 1, 2, 4, 6, 8, 12, 18, 26, 37, 54, 78, 112, 162, 233, 335, 483, 695, 1000)
EVERY = 500
RULES = {"batch": "target"}

# Changes raw inputs at random and processes them: `(inputs, key)` to inputs.
Augment = Callable[[Float[Array, "batch ..."], Key[Array, ""]], Float[Array, "batch ..."]]


class Support(eqx.Module):
    """What is learned.

    Attributes:
        images: Inputs of shape (support, height, width, channels) or (support, features).
        labels: Vectors of shape (support, outputs).
    """

    images: Float[Array, "support ..."]
    labels: Float[Array, "support outputs"]


@dataclass(frozen=True)
class KIP:
    """Settings of a distillation.

    Attributes:
        kernel: Of the network.
        support_size: Inputs that are learned.
        learn_labels: Whether labels are learned too; fixed ones are no part of what is trained.
        reg: Share of the mean of the kernel's diagonal that is added to it.
        jitter: An absolute number beside it.
        lr: Adam's learning rate.
        target_batch: Natural examples per step, as many of each class.
        get: Whether the kernel is the `ntk` or the `nngp`.
        memory: Bytes that a block of kernel values may take while it is computed.
    """

    kernel: Kernel
    support_size: int
    learn_labels: bool = False
    reg: float = 1e-6
    jitter: float = 0.0
    lr: float = 0.04
    target_batch: int = 5000
    get: str = "ntk"
    memory: int = 2**28

    def init(
        self,
        x: Float[np.ndarray, "n ..."],
        y: Int[np.ndarray, " n"] | Float[np.ndarray, "n outputs"],
        *,
        key: Key[Array, ""],
        noise: bool = False,
        allow_unbalanced: bool = False,
    ) -> Support:
        """Returns the support to begin with: natural examples, as many of each class.

        Args:
            x: Processed inputs of the training part.
            y: Their classes, or vectors to be predicted.
            key: Of the draw.
            noise: Whether inputs are standard normal noise instead; classes stay.
            allow_unbalanced: Whether some classes may have one example more than others.

        Raises:
            Error: The size does not fit the number of classes, or a class has too few examples.
        """
        draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
        rows = (
            self._balanced(y, draw, allow_unbalanced=allow_unbalanced)
            if y.ndim == 1
            else draw.permutation(len(x))[: self.support_size]
        )
        images = draw.standard_normal((len(rows), *x.shape[1:])) if noise else x[rows]
        labels = vectors(y)[rows]
        inputs = floating(images)
        return Support(inputs, jnp.asarray(labels, inputs.dtype))

    def _balanced(
        self, y: Int[np.ndarray, " n"], draw: np.random.Generator, *, allow_unbalanced: bool
    ) -> Int[np.ndarray, " support"]:
        classes = int(y.max()) + 1
        share, extra = divmod(self.support_size, classes)
        if (extra and not allow_unbalanced) or self.support_size < classes:
            raise Error(
                f"a support of {self.support_size} images cannot hold {classes} classes equally "
                f"often; use a multiple of {classes}"
            )
        taken = []
        for each in range(classes):
            group, wanted = np.flatnonzero(y == each), share + (each < extra)
            if len(group) < wanted:
                raise Error(f"class {each} has {len(group)} examples, and {wanted} are needed")
            taken.append(draw.permutation(group)[:wanted])
        return np.concatenate(taken)

    def loss(
        self,
        support: Support,
        x: Float[Array, "targets ..."],
        y: Float[Array, "targets outputs"],
        *,
        variances: Sequence[Array] | None = None,
        mesh: Mesh | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the loss on natural examples, and their `accuracy` by greatest entries.

        Args:
            support: Inputs and labels.
            x: Processed inputs.
            y: Their labels.
            variances: Of the inputs, by `Kernel.variances`, if they are known.
            mesh: Devices, with axes `target` and `support`; None for one.
        """
        options: Any = {"get": self.get, "memory": self.memory, "mesh": mesh}
        k_ss = self.kernel(support.images, **options)
        k_ts = self.kernel(x, support.images, first=variances, **options)
        weights = solve(k_ss, support.labels, reg=self.reg, jitter=self.jitter)
        found = k_ts.astype(weights.dtype) @ weights
        loss = 0.5 * jnp.mean((found - y) ** 2)
        right = jnp.mean(found.argmax(1) == y.argmax(1), dtype=jnp.float32)
        return loss, {"accuracy": right}

    def fit(
        self,
        support: Support,
        x: Float[np.ndarray, "n ..."],
        y: Int[np.ndarray, " n"] | Float[np.ndarray, "n outputs"],
        *,
        steps: int,
        seed: int = 0,
        evaluate: tuple[np.ndarray, np.ndarray] | None = None,
        evaluate_every: int = 100,
        augment: Augment | None = None,
        run: Run | None = None,
        on_step: Callable[[int, Support], Any] | None = None,
        mesh: Mesh | None = None,
        save_every: int = 100,
        log_every: int = 1,
        quiet: bool = False,
    ) -> Result:
        """Trains the support; a run that was killed goes on when the same call is made again.

        Systems are solved in float64, whatever `jax_enable_x64` says; kernel values have the
        precision of the support's images. What inputs contribute to the kernel alone is computed
        once, unless they are augmented.

        Args:
            support: To begin with, as `init` gives it.
            x: Inputs of the training part, processed; raw where `augment` is given.
            y: Their classes, or vectors to be predicted.
            steps: In all, those of a resumed run among them.
            seed: Of the batches and the augmentation.
            evaluate: Other processed inputs and their labels, predicted now and then.
            evaluate_every: Steps between two evaluations.
            augment: What is done to every batch.
            run: Where the state is kept; None keeps everything in memory.
            on_step: Called with the step and the support at the steps `LOGGED`, and every 500.
            mesh: Devices, with axes `target` and `support`; None for one.
            save_every: Steps between two checkpoints.
            log_every: Steps per row of metrics; 1 where `on_step` is given.
            quiet: Whether to show no progress.

        Returns:
            The support as `model`, the metrics, and why training ended.
        """
        x = np.asarray(x, support.images.dtype)
        known = self.kernel.variances_of(x) if self.kernel.takes_images and not augment else ()
        batches = Targets(
            x, vectors(y), self.target_batch, classes=y if y.ndim == 1 else None, seed=seed,
            variances=known,
        )  # fmt: skip

        def loss(model: Support, batch: dict[str, Array], key: Key[Array, ""]) -> Any:
            inputs = batch["x"] if augment is None else augment(batch["x"], key)
            kept = [batch[f"variances{place}"] for place in range(len(known))]
            value, told = self.loss(model, inputs, batch["y"], variances=kept or None, mesh=mesh)
            return value, told if y.ndim == 1 else {}

        def score(model: Support, key: Key[Array, ""]) -> dict[str, float]:
            assert evaluate is not None
            return self.score(model, *evaluate, mesh=mesh)

        trainable = jax.tree.map(lambda leaf: self.learn_labels or leaf is support.images, support)
        patterns = [("images", (None,) * support.images.ndim), ("labels", (None, None))]
        seen: set[int] = set()

        def tell(step: int, model: Callable[[], Support], row: dict[str, Any]) -> None:
            if step not in seen and on_step and (step in LOGGED or step % EVERY == 0):
                seen.add(step)
                on_step(step, model())

        if on_step:
            on_step(0, support)
        with jax.enable_x64(True):
            return fit(
                loss, support, optax.adam(self.lr), batches, steps=steps,
                key=jax.random.key(seed), precision=Policy(x.dtype, x.dtype, x.dtype), run=run,
                mesh=mesh, rules=RULES,
                trainable=trainable, patterns=patterns,
                evaluate=score if evaluate else None, evaluate_every=evaluate_every,
                save_every=save_every, log_every=1 if on_step else log_every, on_nan="stop",
                callbacks=(tell,), quiet=quiet,
            )  # fmt: skip

    def score(
        self,
        support: Support,
        x: Float[np.ndarray, "n ..."],
        y: Int[np.ndarray, " n"] | Float[np.ndarray, "n outputs"],
        *,
        mesh: Mesh | None = None,
    ) -> dict[str, float]:
        """Returns `mse` of the kernel regression on a support, and `accuracy` where `y` is classes.

        Args:
            support: Inputs and labels.
            x: Processed inputs.
            y: Their classes, or vectors to be predicted.
            mesh: Devices, with axes `target` and `support`; None for one.
        """
        found = self.regression(support, mesh=mesh).predict(np.asarray(x))
        wanted = vectors(y, support.labels.shape[1])
        told = {"mse": float(((found - wanted) ** 2).mean())}
        return told if y.ndim == 2 else told | {"accuracy": float((found.argmax(1) == y).mean())}

    def regression(self, support: Support, *, mesh: Mesh | None = None) -> KernelRidge:
        """Returns the kernel regression on a support.

        Args:
            support: Inputs and labels.
            mesh: Devices, with axes `target` and `support`; None for one.
        """
        return KernelRidge.fit(
            self.kernel, np.asarray(support.images), np.asarray(support.labels), reg=self.reg,
            jitter=self.jitter, get=self.get, mesh=mesh,
        )  # fmt: skip


def vectors(
    y: Int[np.ndarray, " n"] | Float[np.ndarray, "n outputs"], classes: int | None = None
) -> Float[np.ndarray, "n outputs"]:
    """Returns labels as vectors: centred one-hot ones of classes, others as they are.

    Args:
        y: Classes, or vectors.
        classes: How many there are; one more than the greatest if None.
    """
    if y.ndim == 2:
        return np.asarray(y, np.float32)
    return centred(y, classes or int(np.max(y)) + 1)
