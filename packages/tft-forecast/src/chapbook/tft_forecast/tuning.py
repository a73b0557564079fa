"""Random search over the paper's ranges, with successive halving; every trial stays in a table.

All trials are trained for a few updates; the better half of them is trained anew for twice as many,
and so on. Each loss is written down at once, so that a search that was killed repeats only the
training that it was in.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from chapbook.core.compilation import compiled_once
from chapbook.core.errors import Error
from chapbook.core.io import append_jsonl, read_jsonl, write_json
from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.forecaster import Forecaster
from chapbook.tft_forecast.schema import Schema

# Lim et al. (2021), section 6.2.
SPACE: dict[str, tuple[Any, ...]] = {
    "hidden": (10, 20, 40, 80, 160, 240, 320),
    "dropout": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9),
    "batch_size": (64, 128, 256),
    "learning_rate": (1e-4, 1e-3, 1e-2),
    "max_norm": (0.01, 1.0, 100.0),
    "heads": (1, 4),
}


@compiled_once()  # who stays in the race is trained anew, for longer
def tune(
    schema: Schema,
    train: Any,
    folder: str | Path,
    *,
    config: TFTConfig | None = None,
    space: Mapping[str, Sequence[Any]] | None = None,
    trials: int = 60,
    steps: int = 2000,
    halvings: int = 3,
    seed: int = 0,
    quiet: bool = True,
    **options: Any,
) -> pl.DataFrame:
    """Tries configurations drawn at random, and drops the worse half of them again and again.

    Args:
        schema: The roles of the table's columns.
        train: A frame or the path of a table.
        folder: Where trials are kept; a search that it holds goes on.
        config: What is not searched for.
        space: Values to draw from, by field of `TFTConfig`; the paper's if not given.
        trials: Configurations.
        steps: Updates of those that are never dropped.
        halvings: How often the worse half is dropped.
        seed: Of the draws and the trainings.
        quiet: Whether to show no progress.
        options: For `Forecaster.fit`, such as `valid_steps`.

    Returns:
        A row per trial, the best first: `trial`, its `steps`, the `valid_loss` after them, and
        what was drawn.

    Raises:
        Error: A field is unknown, a draw is no valid configuration, or the folder holds another
            search.

    Reference:
        Lim et al. (2021), section 6.2 (random search); Jamieson & Talwalkar, "Non-stochastic Best
        Arm Identification and Hyperparameter Optimization" (2016).
    """
    folder, base, space = Path(folder), config or TFTConfig(), dict(space or SPACE)
    fields = [field.name for field in dataclasses.fields(TFTConfig)]
    for name, values in space.items():
        if name not in fields:
            raise Error(f"unknown field {name} in the space; known are {', '.join(fields)}")
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise Error(f"the space gives no list of values for {name}")
    rng = np.random.default_rng(seed)
    drawn = [
        {name: values[int(rng.integers(len(values)))] for name, values in space.items()}
        for _ in range(trials)
    ]
    configs = [dataclasses.replace(base, **draw) for draw in drawn]
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "schema": dataclasses.asdict(schema), "config": dataclasses.asdict(base), "space": space,
        "trials": trials, "steps": steps, "halvings": halvings, "seed": seed, "options": options,
    }  # fmt: skip
    held = folder / "search.json"
    if not held.exists():
        write_json(held, about)
    elif json.loads(held.read_text()) != json.loads(json.dumps(about, default=str)):
        raise Error(f"{folder} holds another search", "give another folder, or delete it")
    done = {(row["trial"], row["steps"]): row["valid_loss"] for row in read_jsonl(_log(folder))}
    alive, last = list(range(trials)), {}
    for rung in range(halvings + 1):
        updates = max(steps // 2 ** (halvings - rung), 1)
        for trial in alive:
            if (trial, updates) not in done:
                loss = _trained(schema, train, configs[trial], updates, seed, quiet, options)
                append_jsonl(_log(folder), {"trial": trial, "steps": updates, "valid_loss": loss})
                done[trial, updates] = loss
            last[trial] = (updates, done[trial, updates])
        alive.sort(key=lambda trial: last[trial][1])
        if rung < halvings:
            alive = alive[: max(math.ceil(len(alive) / 2), 1)]
    rows = [
        {"trial": t, "steps": last[t][0], "valid_loss": last[t][1], **drawn[t]}
        for t in range(trials)
    ]
    return pl.DataFrame(rows).sort("steps", "valid_loss", descending=[True, False])


def _log(folder: Path) -> Path:
    return folder / "trials.jsonl"


def _trained(
    schema: Schema,
    train: Any,
    config: TFTConfig,
    steps: int,
    seed: int,
    quiet: bool,
    options: dict[str, Any],
) -> float:
    """Returns the best validation loss of a training; infinity where it went astray."""
    forecaster = Forecaster(schema, config)
    try:
        forecaster.fit(train, steps=steps, seed=seed, quiet=quiet, **options)
    except Error as problem:
        if "not finite" in problem.message:
            return math.inf
        raise
    if "valid/loss" not in forecaster.metrics.columns:
        raise Error("a search needs validation steps")
    return float(forecaster.metrics["valid/loss"].drop_nulls().min())  # pyright: ignore
