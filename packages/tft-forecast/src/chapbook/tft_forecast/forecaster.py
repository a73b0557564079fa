"""The forecaster: a table goes in, quantiles and explanations come out."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import polars as pl
import yaml
from jax.sharding import Mesh
from jaxtyping import PyTree

from chapbook.core.config import configure
from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.core.run import Run
from chapbook.core.weights import load_weights, save_weights
from chapbook.tft_forecast import forecasts, training, windows
from chapbook.tft_forecast.calibration import Calibration
from chapbook.tft_forecast.categories import Categories
from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.frames import like
from chapbook.tft_forecast.grid import fit_grid
from chapbook.tft_forecast.inputs import Layout
from chapbook.tft_forecast.interpretation import Explanation
from chapbook.tft_forecast.panels import Duplicates, Panel, check_future, panel
from chapbook.tft_forecast.scaling import Scalers
from chapbook.tft_forecast.schema import Schema
from chapbook.tft_forecast.training import Pairs

FORMAT = 1  # of a model's folder


class Prepared(NamedTuple):
    """A table as a network sees it.

    Attributes:
        panel: In original units.
        store: Scaled, on the device.
    """

    panel: Panel
    store: windows.Store


class Forecaster:
    """Quantile forecasts of a panel of series by a Temporal Fusion Transformer.

    Args:
        schema: The roles of the table's columns.
        config: Of the model; see `TFTConfig.preset`.
        changes: Fields of the config to set otherwise, such as `horizon=28`.

    Attributes:
        categories: What `fit` found of the categorical columns.
        scalers: What `fit` found of the real ones.
        layout: Of the network's variables.
        network: The trained module; of an ensemble, all members stacked.
        metrics: A row per window of updates, with the evaluations.
        facts: When training ended, which steps it saw, how many windows.
        report: What `fit` found in the table, see `Panel.report`; empty after `load`.
        calibration: What `calibrate` found, or None.

    Reference:
        Lim et al., "Temporal Fusion Transformers for Interpretable Multi-horizon Time Series
        Forecasting" (2021).
    """

    categories: Categories
    scalers: Scalers
    layout: Layout
    network: PyTree
    metrics: pl.DataFrame
    facts: dict[str, Any]
    report: dict[str, Any]

    def __init__(self, schema: Schema, config: TFTConfig | None = None, **changes: Any):
        self.schema = schema
        unknown = set(changes) - {field.name for field in dataclasses.fields(TFTConfig)}
        if unknown:
            known = ", ".join(field.name for field in dataclasses.fields(TFTConfig))
            raise Error(f"unknown option {', '.join(sorted(unknown))}; known are {known}")
        self.config = dataclasses.replace(config or TFTConfig(), **changes)
        self.calibration: Calibration | None = None
        self.facts, self.report = {}, {}

    # ------------------------------------------------------------------------------------- fit

    def fit(
        self,
        train: Any,
        valid: Any = None,
        *,
        valid_steps: int | None = None,
        epochs: int = 20,
        steps: int | None = None,
        samples: int = 450_000,
        patience: int = 5,
        evaluate_every: int | None = None,
        steps_per_dispatch: int = 1,
        seed: int = 0,
        run_dir: str | Path | None = None,
        fresh: bool = False,
        mesh: Mesh | None = None,
        duplicates: Duplicates = "error",
        max_gap: int | None = None,
        quiet: bool = True,
    ) -> "Forecaster":
        """Trains on a table, or goes on with a training that was interrupted.

        Scalers and categories are fitted on the rows before the validation part alone. Training
        stops early, and keeps the best weights, by the loss on the validation part.

        Args:
            train: A frame (Polars, pandas, PyArrow, ...) or the path of a table.
            valid: Later rows of the same entities, for validation.
            valid_steps: Without `valid`, how many of the last steps are the validation part: one
                horizon if not given, 0 for none.
            epochs: Passes over the windows, at most.
            steps: Updates at most, instead of epochs.
            samples: Training windows at most; a random choice of all, as in the paper. A ninth as
                many are used for validation.
            patience: Evaluations without improvement after which training stops.
            evaluate_every: Updates between evaluations; an epoch, but at most 500, if not given.
            steps_per_dispatch: Updates that one call of the compiled program makes at most. The
                weights are the same; only where an update takes less than about a millisecond, as
                of small models on accelerators, is time gained.
            seed: Of the initial weights, of dropout and of the order of the windows.
            run_dir: A folder that makes the training resumable.
            fresh: Whether to empty that folder first.
            mesh: The devices over whose axis `data` each batch is spread.
            duplicates: What to do with several rows of one entity and time: `error`, `sum`,
                `mean` or `last`.
            max_gap: The longest run of missing steps that is accepted; any if not given.
            quiet: Whether to show no progress.

        Returns:
            Itself.

        Raises:
            Error: The table does not fit the schema, or is too short for a window.
        """
        table, first = self._split(train, valid, valid_steps)
        past = table.filter(pl.col(self.schema.time) <= self._last(table))
        self.categories = Categories.fit(past, self.schema, until=first)
        whole = panel(table, self.schema, self.categories, duplicates=duplicates, max_gap=max_gap)
        seen, self.report = whole.seen, whole.report
        end = int(np.flatnonzero(seen.any(0))[-1]) + 1 if seen.any() else 0
        stop = end if first is None else int(forecasts.steps_of(whole, [first])[0])
        self.scalers = Scalers.fit(whole, self.config.scaling, stop)
        self.layout = self.schema.layout(
            self.categories, add_scale_inputs=self.config.add_scale_inputs
        )
        store = self._store(whole)
        choose = np.random.default_rng(seed)

        def pairs(begin: int, end: int | None, most: int) -> Pairs:
            found = windows.index(
                seen, self.config, first=begin, stop=end, min_history=self.config.min_history
            )
            if len(found[0]) > most:
                chosen = np.sort(choose.choice(len(found[0]), most, replace=False))
                found = found[0][chosen], found[1][chosen]
            return found

        ours = pairs(0, stop, samples)
        if not len(ours[0]):
            raise Error(
                f"no training window: {stop} steps before the validation part, a window needs "
                f"{self.config.horizon} with targets after {self.config.min_history} with them",
                "take a shorter horizon, fewer validation steps or more rows",
            )
        theirs = pairs(stop, end, max(samples // 9, 1)) if first is not None else None
        if theirs is not None and not len(theirs[0]):
            raise Error(
                f"no validation window: {end - stop} steps, the horizon is {self.config.horizon}",
                "give more validation steps, or valid_steps=0",
            )
        epoch = max(len(ours[0]) // self.config.batch_size, 1)
        updates = steps or epochs * epoch
        options = {
            "schema": dataclasses.asdict(self.schema),
            "config": dataclasses.asdict(self.config),
            "windows": [len(ours[0]), 0 if theirs is None else len(theirs[0])],
            "data": fingerprint(whole), "patience": patience, "steps": updates, "seed": seed,
        }  # fmt: skip
        key = jax.random.key(seed)
        common: dict[str, Any] = {
            "key": key, "seed": seed, "steps": updates, "patience": patience, "mesh": mesh,
            "evaluate_every": evaluate_every or min(epoch, 500),
            "steps_per_dispatch": steps_per_dispatch, "quiet": quiet,
        }  # fmt: skip
        if run_dir is None:
            result = training.train(store, self.layout, self.config, ours, theirs, **common)
        else:
            with Run(run_dir, options, fresh=fresh) as folder:
                result = training.train(
                    store, self.layout, self.config, ours, theirs, folder=folder, **common
                )
        if result.reason == "interrupted":
            raise KeyboardInterrupt
        if result.reason == "preempted":
            raise SystemExit(result.exit_code)
        if result.reason == "nan":
            raise Error("the loss is not finite", "try a smaller learning_rate or max_norm")
        self.network, self.metrics = result.model.network, result.metrics
        self.facts = {
            "trained_until": str(whole.times[stop - 1]),
            "validated_until": None if first is None else str(whole.times[end - 1]),
            "windows": len(ours[0]), "steps": result.step, "best_step": result.best,
            "seed": seed,
        }  # fmt: skip
        return self

    def _split(self, train: Any, valid: Any, valid_steps: int | None) -> tuple[pl.DataFrame, Any]:
        """Returns the whole table, and the first time of the validation part, if there is one."""
        time = self.schema.time
        table = self.schema.read(train)
        if valid is not None:
            later = self.schema.read(valid)
            return pl.concat([table, later], how="vertical_relaxed"), later[time].min()
        if valid_steps == 0:
            return table, None
        count = self.config.horizon if valid_steps is None else valid_steps
        if count < self.config.horizon:
            raise Error(f"valid_steps={count} is less than the horizon, {self.config.horizon}")
        grid = fit_grid(table[time], self.schema.freq)
        last = pl.Series(time, [self._last(table)], table.schema[time])
        return table, grid.times(grid.index(last) - count + 1)[0]

    def _last(self, table: pl.DataFrame) -> Any:
        """Returns the last time with a target."""
        targets = [pl.col(name).is_not_null() for name in self.schema.target]
        last = table.filter(pl.any_horizontal(targets))[self.schema.time].max()
        if last is None:
            raise Error(f"no row has a target ({', '.join(self.schema.target)})")
        return last

    def _store(self, whole: Panel) -> windows.Store:
        """Scales a panel and puts it on the device."""
        scaled = self.scalers.transform(whole, add_scale_inputs=self.config.add_scale_inputs)
        target = self.scalers.target(whole)
        return windows.store(*scaled, whole.present, target, self.config, whole.weight)

    # --------------------------------------------------------------------------------- predict

    def prepare(self, history: Any, future: Any = None, **options: Any) -> Prepared:
        """Puts a table on the grid, scales it and moves it to the device.

        Args:
            history: A frame or the path of a table; what is prepared already is returned.
            future: The known columns after the history, if the history does not hold them.
            options: `duplicates` and `max_gap`, as for `fit`.

        Returns:
            What `predict`, `explain` and `backtest` forecast from.

        Raises:
            Error: The forecaster is not fitted, or the table does not fit its schema.
        """
        if not hasattr(self, "network"):
            raise Error("the forecaster is not fitted", "call fit, or load a model")
        if isinstance(history, Prepared):
            return history
        whole = panel(history, self.schema, self.categories, future=future, **options)
        return Prepared(whole, self._store(whole))

    def predict(
        self,
        history: Any,
        future: Any = None,
        *,
        origins: Sequence[Any] | None = None,
        calibrated: bool = True,
        keep_all: bool = False,
        **options: Any,
    ) -> Any:
        """Forecasts the steps after the origin of every entity.

        Args:
            history: A frame or the path of a table, which may hold the future's known columns too,
                or what `prepare` made of them.
            future: Rows with the ids, the time and the known columns of the steps ahead.
            origins: The times that are observed last; the last time of each entity that has a
                target, if not given.
            calibrated: Whether to widen or narrow the intervals by what `calibrate` found.
            keep_all: Whether series that cannot be forecast are rows of nulls, or left out; see
                `skipped`.
            options: `duplicates` and `max_gap`, as for `fit`.

        Returns:
            A frame of the kind that came in (Polars for a path or what is prepared): the ids,
            `origin`, the time, `step`, `target` where there are several, and a column per
            quantile, in original units.

        Raises:
            Error: A known column is missing for a step that is to be forecast.
        """
        prepared = self.prepare(history, future, **options)
        pairs = self.pairs(prepared, origins)
        check_future(prepared.panel, pairs[1], self.config.horizon, pairs[0])
        made = pl.concat(list(self.frames(prepared, pairs, calibrated=calibrated)))
        if keep_all:
            left_out = self.skipped(prepared, pairs).drop("reason")
            made = pl.concat([made, left_out], how="diagonal")
        return made if history is prepared else like(history, made)

    def skipped(self, prepared: Prepared, pairs: Pairs) -> pl.DataFrame:
        """Returns the ids of the series that have no window, and the `reason`."""
        whole, k = prepared.panel, self.config.encoder
        others = np.setdiff1d(np.arange(len(whole.ids)), pairs[0])
        counts = whole.seen[others].sum(1)
        reasons = [
            "no target"
            if not count
            else f"fewer than {self.config.min_history} of the {k} steps"
            " up to an origin have a target"
            for count in counts
        ]
        return whole.ids[others].with_columns(pl.Series("reason", reasons, pl.String))

    def pairs(self, prepared: Prepared, origins: Sequence[Any] | None = None) -> Pairs:
        """Lists the windows to forecast from.

        Args:
            prepared: The panel.
            origins: Times of the last observed step, for all entities that have begun by then and
                not ended a whole encoder before; the last step with a target of each if not given.

        Returns:
            Entity and origin of each window, entity by entity.

        Raises:
            Error: An origin is not on the grid, or no entity has a history.
        """
        whole, k, least = prepared.panel, self.config.encoder, self.config.min_history
        seen = whole.seen
        if origins is None:
            at = np.where(seen, np.arange(seen.shape[1]), -1).max(1)[:, None]
        else:
            steps = forecasts.steps_of(whole, origins)
            at = np.broadcast_to(steps, (len(seen), len(steps)))
        sums = np.pad(np.cumsum(seen, 1), ((0, 0), (1, 0)))
        history = np.take_along_axis(sums, at + 1, 1)
        history = history - np.take_along_axis(sums, np.maximum(at + 1 - k, 0), 1)
        entity, which = np.nonzero(history >= least)
        if not len(entity):
            raise Error(f"no series has {least} targets in the {k} steps up to an origin")
        return entity.astype(np.int32), at[entity, which].astype(np.int32)

    def frames(
        self, prepared: Prepared, pairs: Pairs, batch_size: int = 256, *, calibrated: bool = True
    ) -> Iterator[pl.DataFrame]:
        """Yields the forecasts of windows as long frames, some windows at a time.

        Args:
            prepared: The panel.
            pairs: Entity and origin of each window.
            batch_size: Windows in a frame.
            calibrated: Whether to apply what `calibrate` found.
        """
        correct = calibrated and self.calibration is not None
        done = 0
        for quantiles, _ in self._forecasts(prepared, pairs, batch_size):
            part = slice(done, done + len(quantiles))
            some = pairs[0][part], pairs[1][part]
            made = self._frame(prepared.panel, some, quantiles)
            yield self.calibration.apply(made) if correct else made  # pyright: ignore
            done += len(quantiles)

    def _forecasts(
        self, prepared: Prepared, pairs: Pairs, batch_size: int = 256, *, tells: bool = False
    ) -> Iterator[tuple[np.ndarray, Any]]:
        return forecasts.forecast(
            self.network, prepared.store, self.layout, self.config, pairs,
            batch_size=batch_size, tells=tells,
        )  # fmt: skip

    def _frame(self, whole: Panel, pairs: Pairs, quantiles: np.ndarray) -> pl.DataFrame:
        entity, origin = pairs
        ahead = origin[:, None] + np.arange(1, self.config.horizon + 1)
        return forecasts.frame(
            self.schema.restored(quantiles.astype(np.float64)),
            whole.ids[entity],
            whole.grid.times(origin),
            whole.grid.times(ahead.reshape(-1)).rename(self.schema.time),
            self.config,
            self.schema.target,
        )

    def empty(self, whole: Panel) -> pl.DataFrame:
        """Returns a forecast frame without rows."""
        none = np.empty(0, np.int32)
        shape = (0, self.config.horizon, self.layout.targets, len(self.config.quantiles))
        return self._frame(whole, (none, none), np.empty(shape))

    # --------------------------------------------------------------------------------- explain

    def explain(
        self,
        history: Any,
        future: Any = None,
        *,
        origins: Sequence[Any] | None = None,
        **options: Any,
    ) -> Explanation:
        """Forecasts, and tells what the forecasts rest on.

        Args:
            history: As for `predict`.
            future: As for `predict`.
            origins: As for `predict`; patterns and events want many.
            options: `duplicates` and `max_gap`, as for `fit`.

        Returns:
            Tables and plots of selection weights, attention and gates.
        """
        prepared = self.prepare(history, future, **options)
        pairs = self.pairs(prepared, origins)
        check_future(prepared.panel, pairs[1], self.config.horizon, pairs[0])
        told = [told for _, told in self._forecasts(prepared, pairs, tells=True)]
        whole = prepared.panel
        rows = whole.ids[pairs[0]].with_columns(whole.grid.times(pairs[1]).alias("origin"))
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *told)
        past = pairs[1][:, None] + np.arange(1 - self.config.encoder, 1)
        mask = whole.present[pairs[0][:, None], np.maximum(past, 0)] & (past >= 0)
        return Explanation(joined, self.layout, rows, self.schema.freq, mask)

    # ------------------------------------------------------------------------------- calibrate

    def calibrate(
        self,
        frame: Any,
        *,
        start: Any,
        end: Any = None,
        stride: int | None = None,
        by: Sequence[str] = ("step",),
        unit: str = "target",
    ) -> pl.DataFrame:
        """Makes the intervals cover what they say, by conformalised quantile regression.

        Args:
            frame: A table with rows after the training, which holds the history before too.
            start: The first time that is forecast for it.
            end: The last time; the last one with a target if not given.
            stride: Steps between two origins; the horizon if not given.
            by: Columns of the forecast frame whose values are calibrated each by itself.
            unit: What intervals are widened by: `target`, or shares of their own `width`.

        Returns:
            The uncalibrated forecasts that the corrections were found on, with `y`.

        Raises:
            Error: `start` lies in the training part, or there are too few forecasts.

        Reference:
            Romano, Patterson, Candès, "Conformalized Quantile Regression" (2019).
        """
        from chapbook.tft_forecast.backtesting import backtest

        made = backtest(self, frame, start=start, end=end, stride=stride, calibrated=False)
        self.calibration = Calibration.fit(made, by=by, unit=unit)
        return made

    # ------------------------------------------------------------------------- save and load

    def save(self, folder: str | Path) -> None:
        """Writes the model to a folder, whose files need no chapbook to be read.

        Args:
            folder: Made if it is missing: `schema.yaml`, `config.yaml`, `scalers.parquet`,
                `categories.parquet`, `weights.safetensors`, `train.jsonl`, and
                `calibration.parquet` if the model is calibrated.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.schema.save(folder / "schema.yaml")
        self.scalers.save(folder / "scalers.parquet")
        self.categories.save(folder / "categories.parquet")
        save_weights(self.network, folder / "weights.safetensors")
        lines = "".join(json.dumps(row, default=str) + "\n" for row in self.metrics.to_dicts())
        write_atomic(folder / "train.jsonl", lines.encode())
        if self.calibration is None:
            (folder / "calibration.parquet").unlink(missing_ok=True)
        else:
            self.calibration.save(folder / "calibration.parquet")
        config = dataclasses.asdict(self.config) | {"quantiles": list(self.config.quantiles)}
        about = {"format": FORMAT, "config": config, "facts": self.facts}
        # Last: a folder without it is no model.
        write_atomic(folder / "config.yaml", yaml.safe_dump(about, sort_keys=False).encode())

    @classmethod
    def load(cls, folder: str | Path) -> "Forecaster":
        """Reads a model from its folder; no code in it is run.

        Args:
            folder: As `save` wrote it.

        Raises:
            Error: It is no such folder, of another version, or its files do not fit together.
        """
        folder = Path(folder)
        if not (folder / "config.yaml").exists():
            raise Error(f"{folder} is no model: it holds no config.yaml", "give what fit wrote")
        about = yaml.safe_load((folder / "config.yaml").read_text())
        if about.get("format") != FORMAT:
            raise Error(
                f"{folder}/config.yaml: format is {about.get('format')}, this version reads"
                f" {FORMAT}",
                "save the model again with this version",
            )
        texts = [
            f"{name}={'none' if value is None else json.dumps(value)}"
            for name, value in about["config"].items()
        ]
        made = cls(Schema.load(folder / "schema.yaml"), configure(TFTConfig, sets=texts))
        made.categories = Categories.load(folder / "categories.parquet")
        made.scalers = Scalers.load(folder / "scalers.parquet")
        made.layout = made.schema.layout(
            made.categories, add_scale_inputs=made.config.add_scale_inputs
        )
        shape = eqx.filter_eval_shape(training.network, made.layout, made.config, jax.random.key(0))
        made.network = load_weights(folder / "weights.safetensors", shape)
        rows = (folder / "train.jsonl").read_text().splitlines()
        made.metrics = pl.from_dicts([json.loads(row) for row in rows]) if rows else pl.DataFrame()
        made.facts = about["facts"]
        if (folder / "calibration.parquet").exists():
            made.calibration = Calibration.load(folder / "calibration.parquet")
        return made


def fingerprint(whole: Panel) -> str:
    """Returns a hash of all values of a panel, by which a run knows its data again."""
    found = hashlib.sha256()
    for values in (*whole.static, *whole.observed, *whole.known, whole.present):
        found.update(str(values.shape).encode() + np.ascontiguousarray(values).tobytes())
    return found.hexdigest()[:16]
