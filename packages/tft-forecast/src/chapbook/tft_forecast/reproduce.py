"""The claims: lower q-Risk than the alternatives, and explanations that show what is known.

Births per day in the United States (51 series, 20 years) are forecast 28 days ahead: trained up to
1986, chosen on 1987, tested on 1988 from 13 origins. Nothing is chosen on 1988. On the volatility
of four stock indices, unusual attention is held against the turbulent weeks.
"""

import copy
import dataclasses
import datetime as dt
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from chapbook.core import cli
from chapbook.core.run import Run
from chapbook.core.tables import read_table, write_table
from chapbook.tft_forecast import baselines, data, plots
from chapbook.tft_forecast.backtesting import backtest
from chapbook.tft_forecast.comparison import compare
from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.forecaster import Forecaster
from chapbook.tft_forecast.leakage import probe
from chapbook.tft_forecast.metrics import coverage, q_risk

Row = tuple[str, Any, float, str, float | None, float | None]

BIRTHS = TFTConfig(
    encoder=84, horizon=28, hidden=32, heads=4, dropout=0.1, batch_size=128, learning_rate=2e-3,
    schedule="cosine", max_norm=1.0, clip="global", scaling="window",
)  # fmt: skip
VOLATILITY = TFTConfig(
    encoder=63, horizon=5, hidden=16, heads=1, dropout=0.3, batch_size=64, scaling="global",
)  # fmt: skip
TRAINED, VALID, TEST = dt.date(1986, 12, 31), dt.date(1987, 1, 1), dt.date(1988, 1, 1)
STRIDE, YEAR = 28, 364
TFT, LSTM = "TFT", "LSTM seq2seq"
TURBULENT = 0.9  # quantile of volatility from which a week is turbulent


def reproduce(
    path: str | Path, *, full: bool = False, seed: int = 0, fresh: bool = False, quiet: bool = False
) -> None:
    """Trains, backtests, compares and explains; a run that was interrupted goes on.

    Args:
        path: The run's folder.
        full: Whether to train three seeds for longer, beside classical models and an ablation.
        seed: Of the first training.
        fresh: Whether to empty the run's folder first.
        quiet: Whether to show no progress.

    Raises:
        MissingExtra: The extra `reproduce` is not installed.
        typer.Exit: With code 3, when a claim does not hold.
    """
    with Run(path, {"full": full, "seed": seed}, fresh=fresh) as run:
        births, schema = data.births()
        seeds = [seed + number for number in range(3 if full else 1)]
        steps = 4000 if full else 600
        models = [
            _trained(run, f"births-{s}", births, schema, BIRTHS, s, steps, quiet) for s in seeds
        ]
        tests = [
            _kept(run, f"tft-{s}", lambda m=m: backtest(m, births, start=TEST, stride=STRIDE))
            for s, m in zip(seeds, models, strict=True)
        ]
        others = _others(run, births, schema, tests[0], full, quiet)
        rows = _accuracy(run, tests, others, schema.time)
        rows += _calibrated(run, models[0], births)
        rows += _leaks(models[0], births)
        rows += _explained(run, models[0], births)
        rows += _regimes(run, seed, quiet)
        if full:
            rows += _ablation(run, births, schema, tests[0], seed, steps // 4, quiet)
        plots.fans(run.plots / "fans.png", tests[0], schema, unit="births per day")
        cli.claims(rows, run)


def _trained(
    run: Run,
    name: str,
    table: pl.DataFrame,
    schema: Any,
    config: TFTConfig,
    seed: int,
    steps: int,
    quiet: bool,
) -> Forecaster:
    """Returns a forecaster that knows the years up to 1986, trained now or before."""
    folder = run.path / "models" / name
    if (folder / "config.yaml").exists():
        return Forecaster.load(folder)
    begun = time.time()
    made = Forecaster(schema, config).fit(
        table.filter(pl.col(schema.time) < TEST), valid_steps=365, steps=steps, samples=200_000,
        evaluate_every=steps // 6, patience=6, seed=seed, run_dir=run.path / "training" / name,
        quiet=quiet,
    )  # fmt: skip
    made.facts["seconds"] = round(time.time() - begun, 1)
    made.save(folder)
    return made


def _kept(run: Run, name: str, make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
    """Returns a table that is made once, with the seconds that it took in its last column."""
    path = run.path / "forecasts" / f"{name}.parquet"
    if not path.exists():
        begun = time.time()
        made = make()
        path.parent.mkdir(exist_ok=True)
        write_table(made.with_columns(seconds=pl.lit(time.time() - begun)), path)
    return read_table(path)


def _others(
    run: Run, births: pl.DataFrame, schema: Any, ours: pl.DataFrame, full: bool, quiet: bool
) -> dict[str, pl.DataFrame]:
    """Returns the forecasts of the alternatives at the same origins."""
    origins = ours["origin"].unique().sort().to_list()
    common = (births, schema, origins, BIRTHS.horizon)
    made: dict[str, Callable[[], pl.DataFrame]] = {
        "seasonal naive": lambda: baselines.seasonal_naive(*common, season=7),
        "naive 364": lambda: baselines.seasonal_naive(*common, season=YEAR),
        "mean of the last four weeks": lambda: baselines.last_weeks(*common, season=7),
        "LightGBM quantile": lambda: baselines.lightgbm(
            *common, season=7, year=YEAR, until=TRAINED
        ),
    }
    if full:
        made["ETS"] = lambda: baselines.ets(*common, season=7, history=YEAR)
        made["AutoARIMA"] = lambda: baselines.autoarima(*common, season=7, history=YEAR // 2)

        def lstm() -> pl.DataFrame:
            config = _without("attention", "selection", "static_encoders")
            model = _trained(run, "births-lstm", births, schema, config, 0, 4000, quiet)
            return backtest(model, births, start=TEST, stride=STRIDE)

        made[LSTM] = lstm
    return {
        name: _kept(run, name.lower().replace(" ", "-"), make)
        for name, make in cli.progress(made.items(), "alternatives", total=len(made), quiet=quiet)
    }


def _without(*parts: str) -> TFTConfig:
    """Returns the configuration without some parts of the model."""
    return dataclasses.replace(BIRTHS, **dict.fromkeys(parts, False))


def _accuracy(
    run: Run, tests: list[pl.DataFrame], others: dict[str, pl.DataFrame], at: str
) -> list[Row]:
    """Returns the claims about q-Risk, and writes the table of all models."""
    levels = (0.1, 0.5, 0.9)
    risks = {
        TFT: [statistics.mean(t.select(q_risk(q)).item() for t in tests) for q in levels],
        **{name: [t.select(q_risk(q)).item() for q in levels] for name, t in others.items()},
    }
    y = tests[0]["y"].drop_nulls()
    # Poisson counts of these means have this error even if their means are known.
    limit = float(np.sqrt(2 / np.pi) * np.sqrt(y).sum() / y.sum())
    shown = [
        {
            "model": name, "P10": risk[0], "P50": risk[1], "P90": risk[2],
            "coverage of 80 %": (tests[0] if name == TFT else others[name])
            .select(coverage(0.1, 0.9)).item(),
            "seconds": None if name == TFT else others[name]["seconds"][0],
            "limit of counting noise, P50": limit,
        }
        for name, risk in risks.items()
    ]  # fmt: skip
    write_table(pl.DataFrame(shown), run.path / "accuracy.csv")
    verdicts = compare(tests[0], others, time=at)
    write_table(verdicts, run.path / "comparison.csv")
    rows: list[Row] = []
    for level, place in ((0.5, 1), (0.9, 2)):
        ours = risks[TFT][place]
        for name, least in (("seasonal naive", 20.0), ("mean of the last four weeks", 8.0)):
            less = 100 * (1 - ours / risks[name][place])
            rows.append((f"births, P{100 * level:.0f} q-Risk below {name}", None, less,
                         "%", least, None))  # fmt: skip
        for name in ("ETS", "AutoARIMA", LSTM):
            if name in risks:
                less = 100 * (1 - ours / risks[name][place])
                low = None if name == LSTM else 0.0
                rows.append((f"births, P{100 * level:.0f} q-Risk below {name}", None, less, "%",
                             low, None))  # fmt: skip
        rows.append((f"births, P{100 * level:.0f} q-Risk of TFT", None, ours, "", None, None))
        best = risks["LightGBM quantile"][place]
        rows.append((f"births, P{100 * level:.0f} q-Risk of LightGBM", None, best, "", None, None))
        verdict = verdicts.filter(pl.col("other") == "LightGBM quantile", pl.col("level") == level)
        # Above 0 the whole interval of the difference is on LightGBM's side.
        rows.append((f"births, P{100 * level:.0f}: least difference to LightGBM (95 % interval)",
                     None, verdict["low"][0], "", None, 0.0))  # fmt: skip
    plots.reliability(run.plots / "reliability.png", **{TFT: tests[0], **others})
    return rows


def _calibrated(run: Run, model: Forecaster, births: pl.DataFrame) -> list[Row]:
    """Returns the claim about calibrated intervals; they are calibrated on 1987."""
    made = copy.copy(model)
    made.calibrate(births, start=VALID, end=TEST - dt.timedelta(1), stride=14, by=["step"],
                   unit="width")  # fmt: skip
    test = _kept(run, "calibrated", lambda: backtest(made, births, start=TEST, stride=STRIDE))
    share = 100 * test.select(coverage(0.1, 0.9)).item()
    return [("births, coverage of the calibrated 80 % interval", None, share, "%", 78.0, 82.0)]


def _leaks(model: Forecaster, births: pl.DataFrame) -> list[Row]:
    """Returns the claim that nothing of the future reaches a forecast."""
    found = probe(model, births, origins=[TEST - dt.timedelta(1)])
    failed = sum(each.passed is False for each in found)
    return [("births, leaks that the probe finds", None, float(failed), "", 0.0, 0.0)]


def _explained(run: Run, model: Forecaster, births: pl.DataFrame) -> list[Row]:
    """Returns the claims about what the forecasts of births rest on."""
    origins = [TEST - dt.timedelta(1) + dt.timedelta(STRIDE * n) for n in range(13)]
    told = model.explain(births, origins=origins)
    importance = told.importance()
    write_table(importance, run.path / "importance.csv")
    told.plot(run.plots)
    period = told.period()
    future = importance.filter(pl.col("group") == "future").sort("mean", descending=True)
    top = set(future["variable"][:4])
    static = importance.filter(pl.col("group") == "static").sort("mean", descending=True)
    calendar = {"weekday", "holiday"}
    return [
        ("births, period of the attention, days", None, float(period.steps if period else 0), "",
         7.0, 7.0),
        ("births, of weekday and holiday: among the four heaviest known variables", None,
         float(len(top & calendar)), "", 2.0, 2.0),
        ("births, weight of the state among the static variables", None,
         float(static.filter(pl.col("variable") == "state")["mean"][0]), "", 0.5, None),
    ]  # fmt: skip


def _regimes(run: Run, seed: int, quiet: bool) -> list[Row]:
    """Returns the claim that attention is unusual in turbulent weeks."""
    table, schema = data.volatility()
    folder = run.path / "models" / "volatility"
    if (folder / "config.yaml").exists():
        model = Forecaster.load(folder)
    else:
        model = Forecaster(schema, VOLATILITY).fit(
            table.filter(pl.col("date") < dt.date(1997, 1, 1)), valid_steps=260, steps=400,
            evaluate_every=50, seed=seed, run_dir=run.path / "training" / "volatility",
            quiet=quiet,
        )  # fmt: skip
        model.save(folder)
    days = table["date"].unique().sort()
    origins = days.filter(days.is_between(dt.date(1992, 1, 1), days[-6])).to_list()
    told = model.explain(table, origins=origins)
    events = told.events(quantile=0.95).join(
        table.select("index", pl.col("date").alias("origin"), "log_volatility"),
        on=["index", "origin"],
    )
    write_table(events, run.path / "events.csv")
    target = table.select(pl.col("date").alias("origin"), "log_volatility")
    plots.events(run.plots / "regimes.png", told, target=target, quantile=0.95)
    high = pl.col("log_volatility") >= pl.col("log_volatility").quantile(TURBULENT).over("index")
    apart = events.group_by(high.alias("turbulent")).agg(pl.col("distance").mean())
    means = dict(apart.iter_rows())
    return [("volatility, distance of attention in the most turbulent tenth over the rest", None,
             means[True] / means[False], "x", 1.0, None)]  # fmt: skip


def _ablation(
    run: Run,
    births: pl.DataFrame,
    schema: Any,
    ours: pl.DataFrame,
    seed: int,
    steps: int,
    quiet: bool,
) -> list[Row]:
    """Returns how much the q-Risk rises without each part; shown, not judged."""
    parts = {
        "self-attention": ("attention", 6.0), "LSTM": ("lstm", 6.0),
        "variable selection": ("selection", 4.1), "static encoders": ("static_encoders", 2.6),
        "gating": ("gating", 1.9),
    }  # fmt: skip

    def risk(name: str, config: TFTConfig) -> float:
        model = _trained(run, f"ablation-{name}", births, schema, config, seed, steps, quiet)
        made = _kept(
            run, f"ablation-{name}", lambda: backtest(model, births, start=TEST, stride=STRIDE)
        )
        return made.select(q_risk(0.5)).item()

    whole = risk("none", BIRTHS)
    rows: list[Row] = []
    for name, (part, paper) in parts.items():
        rise = 100 * (risk(part, _without(part)) / whole - 1)
        rows.append((f"births, rise of P50 q-Risk without {name}", paper, rise, "%", None, None))
    return rows
