"""Claim: training with label privacy takes the time of training without.

The same perceptron on the same inputs, batch size, optimizer and number of steps: on clean labels,
on the labels of LP-1ST and LP-2ST (their drawing, priors and filter included), and with the
forward-corrected loss. DP-SGD, which protects features too, stands beside them. Compiling is
reported apart: two stages compile twice, once per run however long it is. Target: at most 3 % more
than plain training.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from chapbook.label_dp import DPSGD, LPMST, MLP, ModelTrainer, Training

CLAIM = Path(__file__).stem
FEATURES, CLASSES = 784, 10


def main() -> None:
    """Runs all sides in turn, prints them and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, options.records).astype(np.int32)
    x = rng.normal(size=(options.records, FEATURES)).astype(np.float32)
    x += 0.2 * rng.normal(size=(CLASSES, FEATURES)).astype(np.float32)[y]
    sides = _sides(x, y)
    # A side's time at two numbers of steps: the slope is the step, the rest compiling and drawing.
    few, many = max(2, options.steps // 10), options.steps
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            times[name].append((_seconds(side, few), _seconds(side, many)))
    rows = []
    for name, pairs in times.items():
        step = statistics.median((long - short) / (many - few) for short, long in pairs)
        total = statistics.median(long for _, long in pairs)
        rows.append({"side": name, "step_ms": 1e3 * step, "total_s": total})
    plain = rows[0]
    for row in rows:
        row["step_ratio"] = row["step_ms"] / plain["step_ms"]
        row["total_ratio"] = row["total_s"] / plain["total_s"]
        print(
            f"{row['side']:16s} {row['step_ms']:7.3f} ms a step ({row['step_ratio']:.3f} x plain),"
            f" {many} steps and all else {row['total_s']:.2f} s ({row['total_ratio']:.3f} x plain)"
        )
    result = Path(__file__).parent / "results" / f"{CLAIM}.json"
    result.parent.mkdir(exist_ok=True)
    content = {
        "claim": CLAIM, "machine": _machine(), "options": vars(options), "rows": rows
    }  # fmt: skip
    result.write_text(json.dumps(content, indent=1) + "\n")
    print(f"claim: {CLAIM}; {result}")


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


def _seconds(side: Callable[[int], object], steps: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready(side(steps))
    return time.perf_counter() - start


def _machine() -> dict[str, object]:
    cpu = Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if "model name" in line] or [""]
    return {
        "cpu": names[0].partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{n: version(n) for n in ("jax", "equinox", "optax", "dp-accounting")},
    }


if __name__ == "__main__":
    main()
