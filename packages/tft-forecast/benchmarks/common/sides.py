"""A TFT of one library is trained on births up to 1986, and forecasts 1988 from 13 origins.

A process of its own, which prints one line of JSON:

    python common/sides.py SIDE UPDATES SEED

Every side has the same inputs, lengths, width, heads, dropout, batch size and Adam's learning rate.
What a library cannot take (categories, in neuralforecast and darts) it gets as numbers, and each
scales as its authors propose. The clock counts from update `WARM`, which leaves out what compiles
and allocates, and includes the library's whole pipeline of data.
"""

import datetime as dt
import json
import logging
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from chapbook.tft_forecast import data
from chapbook.tft_forecast.metrics import q_risk

ENCODER, HORIZON, HIDDEN, HEADS, DROPOUT = 84, 28, 32, 4, 0.1
BATCH, RATE, LEVELS, WARM = 128, 1e-3, (0.1, 0.5, 0.9), 20
SETTING = {"batch": BATCH, "encoder": ENCODER, "horizon": HORIZON, "hidden": HIDDEN, "heads": HEADS}
DISTRIBUTIONS = (
    "chapbook-tft-forecast", "jax", "neuralforecast", "pytorch-forecasting", "darts", "torch",
)  # fmt: skip
TEST, ORIGINS, EVERY = dt.date(1988, 1, 1), 13, 28
STATIC, CATEGORIES = ["state", "region"], ["weekday", "month", "day", "holiday"]
OBSERVED = "national_births"
COLUMNS = [f"q{level}" for level in LEVELS]

# Forecasts of all states from the last day of a table up to an origin.
Forecast = Callable[[dt.date], pl.DataFrame]


class Meter:
    """What a side reports on its way: the memory it begins with, and when each update ended."""

    def __init__(self):
        self.before, self.stamps = 0.0, {}

    def begin(self) -> None:
        """Notes what imports and the table hold."""
        self.before = _peak()

    def stamp(self, update: int, seconds: float | None = None) -> None:
        """Notes when an update ended, on any clock that goes on."""
        self.stamps[update] = time.perf_counter() if seconds is None else seconds

    def rate(self) -> float:
        """Windows per second after update `WARM`."""
        first, last = min(n for n in self.stamps if n >= WARM), max(self.stamps)
        return BATCH * (last - first) / (self.stamps[last] - self.stamps[first])


def main() -> None:
    """Trains one side, and prints what it took and how well it forecasts."""
    side, updates, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    table, schema = data.births()
    table = table.with_columns(pl.col("holiday").fill_null("none"))
    meter = Meter()
    forecast = SIDES[side](table, list(schema.known), updates, seed, meter)
    trained = _peak()
    first, *others = (TEST + dt.timedelta(EVERY * n - 1) for n in range(ORIGINS))
    parts = [forecast(first)]  # compiles and allocates
    begun = time.perf_counter()
    parts += [forecast(origin) for origin in others]
    took = time.perf_counter() - begun
    made = pl.concat(parts)
    actual = table.select("state", pl.col("date").cast(pl.Date), y=pl.col("births").cast(float))
    joined = made.with_columns(pl.col("date").cast(pl.Date)).join(actual, on=["state", "date"])
    if joined.height != 51 * ORIGINS * HORIZON:
        raise RuntimeError(f"{side} forecasts {joined.height} values")
    risks = {f"P{100 * q:.0f}": joined.select(q_risk(q)).item() for q in LEVELS}
    found = {
        "windows_per_s": meter.rate(), "training_mib": trained - meter.before,
        "forecasts_per_s": 51 * len(others) / took, **risks,
    }  # fmt: skip
    print(json.dumps(found))


def _peak() -> float:
    """The most MiB that this process has held resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def chapbook(
    table: pl.DataFrame, known: list[str], updates: int, seed: int, meter: Meter,
    scaling: str = "entity",
) -> Forecast:  # fmt: skip
    """Trains ours, with states scaled one by one, as in the paper, or windows."""
    from chapbook.tft_forecast import Forecaster

    meter.begin()
    made = Forecaster(
        data.births()[1], encoder=ENCODER, horizon=HORIZON, hidden=HIDDEN, heads=HEADS,
        dropout=DROPOUT, batch_size=BATCH, learning_rate=RATE, scaling=scaling,
    )  # fmt: skip
    seen = table.filter(pl.col("date") < dt.date(1987, 1, 1))
    made.fit(seen, valid_steps=0, steps=updates, seed=seed)
    for row in made.metrics.iter_rows(named=True):
        meter.stamp(row["step"], row["seconds"])
    whole = made.prepare(table)
    return lambda origin: made.predict(whole, origins=[origin]).select("state", "date", *COLUMNS)


def neuralforecast(
    table: pl.DataFrame, known: list[str], updates: int, seed: int, meter: Meter
) -> Forecast:
    """Trains neuralforecast's, which scales each window by median and spread."""
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MQLoss
    from neuralforecast.models import TFT

    meter.begin()
    numbers = _numbers(table).rename({"state": "unique_id", "date": "ds", "births": "y"})
    static = numbers.select("unique_id", "state_code", "region").unique("unique_id")
    frame = numbers.select("unique_id", "ds", "y", OBSERVED, *known)
    model = TFT(
        h=HORIZON, input_size=ENCODER, hidden_size=HIDDEN, n_head=HEADS, dropout=DROPOUT,
        stat_exog_list=["state_code", "region"], hist_exog_list=[OBSERVED], futr_exog_list=known,
        loss=MQLoss(quantiles=list(LEVELS)), max_steps=updates, learning_rate=RATE,
        num_lr_decays=0, random_seed=seed, batch_size=51, windows_batch_size=BATCH,
        scaler_type="robust", **_trainer(meter),
    )  # fmt: skip
    made = NeuralForecast([model], freq="1d")
    made.fit(frame.filter(pl.col("ds") < dt.date(1987, 1, 1)), static_df=static, val_size=0)

    def forecast(origin: dt.date) -> pl.DataFrame:
        past, ahead = _around(frame, "ds", origin)
        future = ahead.select("unique_id", "ds", *known)
        found = made.predict(past, static_df=static, futr_df=future)
        # Its columns are named by the widths of intervals; they stand in the order of the levels.
        values = found.select(pl.exclude("unique_id", "ds")).to_numpy()
        return _frame(found["unique_id"], found["ds"], values)

    return forecast


def pytorch_forecasting(
    table: pl.DataFrame, known: list[str], updates: int, seed: int, meter: Meter
) -> Forecast:
    """Trains pytorch-forecasting's, with states scaled one by one; it takes categories."""
    import lightning.pytorch as lightning
    import torch
    from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
    from pytorch_forecasting.data import GroupNormalizer
    from pytorch_forecasting.metrics import QuantileLoss

    lightning.seed_everything(seed)
    meter.begin()
    start = table["date"].min()
    frame = table.with_columns(
        (pl.col("date") - start).dt.total_days().alias("step"),
        pl.col("births", OBSERVED).cast(pl.Float32),
        *(pl.col(name).cast(pl.String) for name in CATEGORIES),
    ).to_pandas()
    last = (dt.date(1986, 12, 31) - start).days
    trained = TimeSeriesDataSet(
        frame[frame["step"] <= last], time_idx="step", target="births", group_ids=["state"],
        max_encoder_length=ENCODER, max_prediction_length=HORIZON, static_categoricals=STATIC,
        time_varying_known_categoricals=CATEGORIES,
        time_varying_known_reals=[name for name in known if name not in CATEGORIES],
        time_varying_unknown_reals=["births", OBSERVED],
        target_normalizer=GroupNormalizer(groups=["state"]),
    )  # fmt: skip
    model = TemporalFusionTransformer.from_dataset(
        trained, hidden_size=HIDDEN, hidden_continuous_size=HIDDEN, attention_head_size=HEADS,
        dropout=DROPOUT, learning_rate=RATE, optimizer="adam", loss=QuantileLoss(list(LEVELS)),
        log_interval=-1, reduce_on_plateau_patience=10**6,
    )  # fmt: skip
    trainer = lightning.Trainer(max_steps=updates, max_epochs=-1, **_trainer(meter))
    # Reading in processes of their own is slower on two cores, which the training fills.
    trainer.fit(model, trained.to_dataloader(train=True, batch_size=BATCH, num_workers=0))

    def forecast(origin: dt.date) -> pl.DataFrame:
        at = (origin - start).days
        seen = frame[(frame["step"] > at - ENCODER) & (frame["step"] <= at + HORIZON)]
        windows = TimeSeriesDataSet.from_dataset(trained, seen, predict=True)
        states, values = [], []
        model.eval()
        with torch.no_grad():
            for x, _ in windows.to_dataloader(train=False, batch_size=BATCH, num_workers=0):
                values.append(model.to_quantiles(model(x)).numpy())
                states.append(windows.x_to_index(x)["state"].to_numpy())
        days = [origin + dt.timedelta(n) for n in range(1, HORIZON + 1)]
        order = np.repeat(np.concatenate(states), HORIZON)
        flat = np.concatenate(values).reshape(-1, len(LEVELS))
        return _frame(pl.Series(order), pl.Series(days * (len(order) // HORIZON)), flat)

    return forecast


def darts(table: pl.DataFrame, known: list[str], updates: int, seed: int, meter: Meter) -> Forecast:
    """Trains darts', with states scaled one by one to [0, 1]."""
    from darts import TimeSeries
    from darts.dataprocessing.transformers import Scaler
    from darts.models import TFTModel
    from darts.utils.likelihood_models.torch import QuantileRegression

    meter.begin()
    frame = _numbers(table).with_columns(pl.col("date").cast(pl.Datetime("ns"))).to_pandas()

    def series(columns: list[str], static: Sequence[str] = ()) -> list[Any]:
        return TimeSeries.from_group_dataframe(
            frame, "state", "date", columns, static_cols=list(static) or None, freq="D",
            drop_group_cols=["state"],
        )  # fmt: skip

    births = series(["births"], ["state_code", "region"])
    past, ahead = series([OBSERVED]), series(known)
    end = np.datetime64("1986-12-31", "ns")
    scaled = []
    scalers = [Scaler() for _ in range(3)]
    for scaler, each in zip(scalers, (births, past, ahead), strict=True):
        scaler.fit([one.drop_after(_next(end)) for one in each])
        scaled.append([one.astype(np.float32) for one in scaler.transform(each)])
    births, past, ahead = scaled
    model = TFTModel(
        input_chunk_length=ENCODER, output_chunk_length=HORIZON, hidden_size=HIDDEN,
        lstm_layers=1, num_attention_heads=HEADS, dropout=DROPOUT, batch_size=BATCH,
        hidden_continuous_size=HIDDEN, likelihood=QuantileRegression(list(LEVELS)),
        optimizer_kwargs={"lr": RATE}, use_static_covariates=True, n_epochs=10**6,
        random_state=seed, pl_trainer_kwargs={"max_steps": updates, **_trainer(meter)},
    )  # fmt: skip
    model.fit([one.drop_after(_next(end)) for one in births], past_covariates=past,
              future_covariates=ahead)  # fmt: skip

    def forecast(origin: dt.date) -> pl.DataFrame:
        at = np.datetime64(origin, "ns")
        found = model.predict(
            HORIZON, series=[one.drop_after(_next(at)) for one in births], past_covariates=past,
            future_covariates=ahead, predict_likelihood_parameters=True,
        )  # fmt: skip
        states = sorted(table["state"].unique())
        columns = []
        for place in range(len(LEVELS)):
            level = [one[one.components[place]] for one in found]
            level = [one.with_columns_renamed(one.components[0], "births") for one in level]
            back = scalers[0].inverse_transform(level)
            columns.append(np.concatenate([one.values()[:, 0] for one in back]))
        days = [origin + dt.timedelta(n) for n in range(1, HORIZON + 1)]
        return _frame(pl.Series(np.repeat(states, HORIZON)), pl.Series(days * len(states)),
                      np.stack(columns, 1))  # fmt: skip

    return forecast


def _next(day: np.datetime64) -> Any:
    import pandas

    return pandas.Timestamp(day) + pandas.Timedelta(days=1)


def _numbers(table: pl.DataFrame) -> pl.DataFrame:
    """Categories as numbers, the state's beside its name."""
    codes = [pl.col(name).rank("dense").cast(pl.Float32)
             for name in (*CATEGORIES, "region")]  # fmt: skip
    state = pl.col("state").rank("dense").cast(pl.Float32).alias("state_code")
    return table.with_columns(state, *codes, pl.col("births", OBSERVED).cast(pl.Float32))


def _around(table: pl.DataFrame, time: str, origin: dt.date) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The days that a window needs before an origin, and those after it."""
    past = pl.col(time).is_between(origin - dt.timedelta(ENCODER - 1), origin)
    ahead = (pl.col(time) > origin) & (pl.col(time) <= origin + dt.timedelta(HORIZON))
    return table.filter(past), table.filter(ahead)


def _frame(states: pl.Series, days: pl.Series, values: np.ndarray) -> pl.DataFrame:
    ordered = np.sort(values.astype(float), axis=1)
    return pl.DataFrame(
        {"state": states, "date": days} | dict(zip(COLUMNS, ordered.T, strict=True))
    )


def _trainer(meter: Meter) -> dict[str, Any]:
    """Lightning's arguments: nothing shown or kept, and the time of every update noted."""
    from pytorch_lightning import Callback

    class Stamps(Callback):
        def on_train_batch_end(self, trainer: Any, *_: object) -> None:
            meter.stamp(trainer.global_step)

    return {
        "accelerator": "cpu", "enable_progress_bar": False, "logger": False,
        "enable_model_summary": False, "enable_checkpointing": False, "callbacks": [Stamps()],
        "gradient_clip_val": 1.0,
    }  # fmt: skip


SIDES: dict[str, Callable[[pl.DataFrame, list[str], int, int, Meter], Forecast]] = {
    "chapbook": chapbook, "chapbook, window scaling": partial(chapbook, scaling="window"),
    "neuralforecast": neuralforecast, "pytorch-forecasting": pytorch_forecasting, "darts": darts,
}  # fmt: skip


def trained(side: str, updates: int, seed: int = 0) -> dict[str, Any]:
    """Trains one side in a process of its own, and returns what it prints."""
    command = [sys.executable, __file__, side, str(updates), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    with TemporaryDirectory() as folder:  # where Lightning leaves what it insists on writing
        os.chdir(folder)
        main()
