"""Real panels with a date from which they are tested, and what is trained and forecast on them.

Everything before the test trains and validates; nothing is chosen on what comes after. Trainings
and forecasts are kept in a run's folder, so that an interrupted experiment goes on.
"""

import dataclasses
import datetime as dt
import functools
import time
import zoneinfo
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from chapbook.core.run import Run
from chapbook.core.tables import read_table, write_table
from chapbook.tft_forecast import baselines, data
from chapbook.tft_forecast.backtesting import backtest
from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.forecaster import Forecaster
from chapbook.tft_forecast.metrics import coverage, q_risk
from chapbook.tft_forecast.schema import Schema

TFT, LSTM = "TFT", "LSTM seq2seq"
LIGHTGBM = "LightGBM quantile"
PLAIN = ("attention", "selection", "static_encoders")  # what the LSTM alone is without
SECONDS = "seconds"

Table = tuple[pl.DataFrame, Schema]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A panel, how it is divided in time, and a model for it.

    Attributes:
        load: Returns its table and schema.
        config: Of the model.
        trained: The last time that is learned from; what follows until the test validates.
        test: The first time that is forecast.
        stride: Steps between two origins.
        season: Steps of a season.
        steps: Updates of a training, which looks at the validation part six times.
        year: Steps of a year, where the panel has several.
        history: Steps that ETS sees, and AutoARIMA; None where they take no part.
        trees: Whether boosted trees take part, which learn ratios to a positive mean.
    """

    load: Callable[[], Table]
    config: TFTConfig
    trained: dt.date
    test: dt.date
    stride: int
    season: int
    steps: int = 400
    year: int | None = None
    history: tuple[int, int] | None = None
    trees: bool = True

    def train(
        self,
        run: Run,
        name: str,
        *,
        seed: int,
        without: tuple[str, ...] = (),
        quiet: bool = False,
    ) -> Forecaster:
        """Trains a forecaster, goes on with one that was interrupted, or loads a finished one.

        Args:
            run: Where it is kept.
            name: Of its folder.
            seed: Of the training.
            without: Parts of the model that are left out.
            quiet: Whether to show no progress.
        """
        folder = run.path / "models" / name
        if (folder / "config.yaml").exists():
            return Forecaster.load(folder)
        table, schema = self.load()
        at = pl.col(schema.time)
        config = dataclasses.replace(self.config, **dict.fromkeys(without, False))
        made = Forecaster(schema, config).fit(
            table.filter(at <= self.trained),
            table.filter((at > self.trained) & (at < self.test)),
            steps=self.steps, samples=200_000, evaluate_every=max(self.steps // 6, 1), patience=6,
            seed=seed, run_dir=run.path / "training" / name, quiet=quiet,
        )  # fmt: skip
        made.save(folder)
        return made

    def tested(self, run: Run, name: str, model: Callable[[], Forecaster]) -> pl.DataFrame:
        """Returns a forecaster's forecasts from all origins of the test, beside what came."""

        def make() -> pl.DataFrame:
            return backtest(model(), self.load()[0], start=self.test, stride=self.stride)

        return kept(run, name, make)

    def alternatives(self, origins: list[Any], *, full: bool) -> dict[str, Callable]:
        """Returns what makes the baselines' forecasts from the same origins, by name.

        Args:
            origins: The last observed times.
            full: Whether classical models, which take minutes, are among them.
        """
        table, schema = self.load()
        common = (table, schema, origins, self.config.horizon)
        season, year = self.season, self.year
        made = {
            "seasonal naive": lambda: baselines.seasonal_naive(*common, season=season),
            "mean of the last four": lambda: baselines.last_weeks(*common, season=season),
        }
        if year:
            made["naive, a year ago"] = lambda: baselines.seasonal_naive(*common, season=year)
        if self.trees:
            made[LIGHTGBM] = lambda: baselines.lightgbm(
                *common, season=season, year=year, until=self.trained
            )
        if full and self.history:
            ets, arima = self.history
            made["ETS"] = lambda: baselines.ets(*common, season=season, history=ets, jobs=-1)
            made["AutoARIMA"] = lambda: baselines.autoarima(
                *common, season=season, history=arima, jobs=-1
            )
        return made


def kept(run: Run, name: str, make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
    """Returns a table that is made once; its file also says how many seconds that took."""
    path = run.path / "forecasts" / f"{name.lower().replace(' ', '-').replace(',', '')}.parquet"
    if not path.exists():
        begun = time.time()
        made = make()
        path.parent.mkdir(exist_ok=True)
        write_table(made.with_columns(pl.lit(time.time() - begun).alias(SECONDS)), path)
    return read_table(path).drop(SECONDS)


def accuracies(panel: str, forecasts: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Returns a row per model: q-Risk at 0.1, 0.5 and 0.9, and the share that 80 % covers.

    The last column is the P50 q-Risk of who knows the mean of each target, if targets are counts
    with Poisson's distribution: about `sqrt(2 / pi) sum(sqrt(y)) / sum(y)`. Null where they are
    not counts.
    """
    rows = []
    for name, frame in forecasts.items():
        y = frame["y"].drop_nulls()
        count = bool((y >= 0).all() and (y == y.round()).all())
        rows.append(
            frame.select(
                pl.lit(panel).alias("panel"), pl.lit(name).alias("model"),
                *(q_risk(q).alias(f"P{100 * q:.0f}") for q in (0.1, 0.5, 0.9)),
                coverage(0.1, 0.9).alias("coverage of 80 %"),
                pl.lit(
                    float(np.sqrt(2 / np.pi) * np.sqrt(y).sum() / y.sum()) if count else None,
                    pl.Float64,
                ).alias("limit of counting noise, P50"),
            )
        )  # fmt: skip
    return pl.concat(rows)


def _small(**changes: Any) -> TFTConfig:
    """Settings of the panels beside births, taken as they are: none was tuned."""
    return TFTConfig(
        **{
            "hidden": 16, "heads": 4, "dropout": 0.1, "batch_size": 64, "learning_rate": 2e-3,
            "schedule": "cosine", "clip": "global", "scaling": "window",
        } | changes
    )  # fmt: skip


NEW_YORK = zoneinfo.ZoneInfo("America/New_York")
BIRTHS = Experiment(
    functools.cache(data.births), _small(encoder=84, horizon=28, hidden=32, batch_size=128),
    trained=dt.date(1986, 12, 31), test=dt.date(1988, 1, 1), stride=28, season=7, steps=600,
    year=364, history=(364, 182),
)  # fmt: skip
# Six trainings, with and without each part: half as wide and half as long.
ABLATION = dataclasses.replace(
    BIRTHS, config=dataclasses.replace(BIRTHS.config, hidden=16), steps=300
)
VOLATILITY = Experiment(
    functools.cache(data.volatility),
    TFTConfig(encoder=63, horizon=5, hidden=16, heads=1, dropout=0.3, scaling="global"),
    trained=dt.date(1995, 12, 31), test=dt.date(1997, 1, 1), stride=5, season=5, trees=False,
    history=(260, 260),
)  # fmt: skip
EXPERIMENTS = {
    "births": BIRTHS,
    "volatility": VOLATILITY,
    "chicago": Experiment(
        functools.cache(data.chicago), _small(encoder=56, horizon=14),
        trained=dt.date(2014, 12, 31), test=dt.date(2016, 1, 1), stride=14,
        season=7, year=364, history=(364, 182),
    ),
    "elecdemand": Experiment(
        functools.cache(data.elecdemand), _small(encoder=336, horizon=48),
        trained=dt.datetime(2014, 9, 30, 23, 30), test=dt.datetime(2014, 11, 1),
        stride=48, season=336,
    ),
    "flights": Experiment(
        functools.cache(data.flights), _small(encoder=168, horizon=24, scaling="entity"),
        trained=dt.datetime(2013, 9, 30, 23, tzinfo=NEW_YORK),
        test=dt.datetime(2013, 11, 1, tzinfo=NEW_YORK), stride=120, season=168, trees=False,
    ),
}  # fmt: skip
