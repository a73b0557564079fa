"""Claim: training with label privacy takes the time of training without.

The same perceptron on the same inputs, batch size, optimizer and number of steps: on clean labels,
on the labels of LP-1ST and LP-2ST (their drawing, priors and filter included), and with the
forward-corrected loss. DP-SGD, which protects features too, stands beside them, with fewer steps
because each takes so much longer. The time a step is the difference between a long and a short run
over the difference of their steps: it leaves compiling out, of which two stages do twice as much,
once per run however long it is. Target: at most 3 % more than plain training.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from chapbook.label_dp import DPSGD, LPMST, MLP, ModelTrainer, Training

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report, seconds

CLAIM = "training with label privacy takes at most 3 % longer than training without"
FEATURES, CLASSES = 784, 10


def main() -> None:
    """Runs all sides in turn, prints them and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--dp-sgd-steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, options.records).astype(np.int32)
    x = rng.normal(size=(options.records, FEATURES)).astype(np.float32)
    x += 0.2 * rng.normal(size=(CLASSES, FEATURES)).astype(np.float32)[y]
    slopes = {}
    for name, side in _sides(x, y).items():
        steps = options.dp_sgd_steps if name == "DP-SGD" else options.steps
        slopes[name] = partial(_run, side, steps)
    rows = []
    for name, runs in interleaved(slopes, options.repeats).items():
        step, total = (statistics.median(figures) for figures in zip(*runs, strict=True))
        rows.append({"side": name, "step_ms": 1e3 * step, "total_s": total})
    plain = rows[0]
    for row in rows:
        row["step_ratio"] = row["step_ms"] / plain["step_ms"]
        if row["side"] != "DP-SGD":
            row["total_ratio"] = row["total_s"] / plain["total_s"]
    distributions = ("chapbook-label-dp", "jax", "equinox", "optax", "dp-accounting")
    report(__file__, CLAIM, rows, distributions, options=vars(options))


def _sides(x: np.ndarray, y: np.ndarray) -> dict[str, Callable[[int], object]]:
    key, settings = jax.random.key(0), Training(batch_size=256, schedule="constant")

    def model(key: jax.Array) -> MLP:
        return MLP(FEATURES, CLASSES, key)

    def plain(steps: int) -> object:
        training = dataclasses.replace(settings, steps=steps)
        trainer = ModelTrainer(model(key), training, key=key, mixup=8.0)
        return trainer.fit(x, np.eye(CLASSES, dtype=np.float32)[y]).model

    def private(stages: tuple[float, ...], loss: str) -> Callable[[int], object]:
        def run(steps: int) -> object:
            training = dataclasses.replace(settings, steps=steps // len(stages), loss=loss)
            method = LPMST(model, epsilon=2.0, stages=stages, mixup=8.0, training=training)
            return method.fit(x, y, key=key).model

        return run

    def dp_sgd(steps: int) -> object:
        return DPSGD(2.0, steps=steps, batch_size=256).fit(model(key), x, y, key=key)

    return {
        "plain": plain,
        "LP-1ST": private((1.0,), "plain"),
        "LP-1ST forward": private((1.0,), "forward"),
        "LP-2ST": private((0.65, 0.35), "plain"),
        "DP-SGD": dp_sgd,
    }


def _run(side: Callable[[int], object], steps: int) -> tuple[float, float]:
    """Returns the seconds of one step, and of the long run with all that surrounds its steps."""
    few = max(2, steps // 10)
    short, long = (seconds(lambda n=n: jax.block_until_ready(side(n))) for n in (few, steps))
    return (long - short) / (steps - few), long


if __name__ == "__main__":
    main()
