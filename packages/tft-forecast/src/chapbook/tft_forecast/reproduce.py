"""The claims: lower q-Risk than the alternatives, and explanations that show what is known.

Births per day in the United States (51 series, 20 years) are forecast 28 days ahead: trained up to
1986, chosen on 1987, tested on 1988 from 13 origins. Nothing is chosen on 1988. On the volatility
of four stock indices, unusual attention is held against the turbulent weeks.
"""

import copy
import datetime as dt
from pathlib import Path
from typing import Any

import polars as pl

from chapbook.core import cli
from chapbook.core.compilation import compiled_once
from chapbook.core.run import Run
from chapbook.core.tables import write_table
from chapbook.tft_forecast import plots
from chapbook.tft_forecast.comparison import compare
from chapbook.tft_forecast.experiments import (
    ABLATION,
    BIRTHS,
    EXPERIMENTS,
    LIGHTGBM,
    LSTM,
    PLAIN,
    TFT,
    VOLATILITY,
    Experiment,
    accuracies,
    kept,
)
from chapbook.tft_forecast.forecaster import Forecaster
from chapbook.tft_forecast.leakage import probe
from chapbook.tft_forecast.metrics import coverage

Row = tuple[str, Any, float, str, float | None, float | None]

DAY = dt.timedelta(1)
TURBULENT = 0.9  # quantile of volatility from which a week is turbulent
# The paper's mean rise of the loss without a part, in percent.
PARTS = {
    "self-attention": ("attention", 6.0), "LSTM": ("lstm", 6.0),
    "variable selection": ("selection", 4.1), "static encoders": ("static_encoders", 2.6),
    "gating": ("gating", 1.9),
}  # fmt: skip


def reproduce(
    path: str | Path, *, full: bool = False, seed: int = 0, fresh: bool = False, quiet: bool = False
) -> None:
    """Trains, backtests, compares and explains; a run that was interrupted goes on.

    Args:
        path: The run's folder.
        full: Whether to train three seeds beside classical models, on four panels more, and
            without each part of the model.
        seed: Of the first training.
        fresh: Whether to empty the run's folder first.
        quiet: Whether to show no progress.

    Raises:
        MissingExtra: The extra `reproduce` is not installed.
        typer.Exit: With code 3, when a claim does not hold.
    """
    with Run(path, {"full": full, "seed": seed}, fresh=fresh) as run, compiled_once():
        seeds = [seed + number for number in range(3 if full else 1)]
        births, tests = _compared(run, "births", seeds, full, quiet)
        model = BIRTHS.train(run, f"births-{seed}", seed=seed, quiet=quiet)
        table, schema = BIRTHS.load()
        rows = _accuracy(run, births, tests, schema.time)
        rows += _calibrated(run, model, table)
        rows += _leaks(model, table)
        rows += _explained(run, model, table)
        rows += _regimes(run, seed, quiet)
        if full:
            others = [
                _compared(run, name, seeds, full, quiet)[0]
                for name in EXPERIMENTS if name != "births"
            ]  # fmt: skip
            births = pl.concat([births, *others])
            rows += _ablation(run, seed, quiet)
        write_table(births, run.path / "accuracy.csv")
        plots.fans(run.plots / "fans.png", tests[TFT], schema, unit="births per day")
        cli.claims(rows, run)


def _compared(
    run: Run, name: str, seeds: list[int], full: bool, quiet: bool
) -> tuple[pl.DataFrame, dict[str, pl.DataFrame]]:
    """Returns a panel's accuracies and forecasts; TFT's is the mean of its seeds' q-Risks."""
    each, tests = EXPERIMENTS[name], {}
    for number in seeds:
        label = TFT if number == seeds[0] else f"{TFT}, seed {number}"
        tests[label] = _trained_and_tested(run, each, f"{name}-{number}", number, (), quiet)
    if full and name == "births":
        tests[LSTM] = _trained_and_tested(run, each, f"{name}-lstm", seeds[0], PLAIN, quiet)
    origins = tests[TFT]["origin"].unique().sort().to_list()
    made = each.alternatives(origins, full=full)
    for other, make in cli.progress(made.items(), name, total=len(made), quiet=quiet):
        tests[other] = kept(run, f"{name} {other}", make)
    found = accuracies(name, tests)
    ours = pl.col("model").str.starts_with(TFT)
    mean = found.filter(ours).group_by("panel", maintain_order=True).agg(
        pl.lit(f"{TFT}, mean of {len(seeds)}").alias("model"), pl.exclude("panel", "model").mean()
    )  # fmt: skip
    return pl.concat([mean, found]), tests


def _trained_and_tested(
    run: Run, each: Experiment, name: str, seed: int, without: tuple[str, ...], quiet: bool
) -> pl.DataFrame:  # fmt: skip
    def model() -> Forecaster:
        return each.train(run, name, seed=seed, without=without, quiet=quiet)

    return each.tested(run, name, model)


def _accuracy(run: Run, found: pl.DataFrame, tests: dict[str, pl.DataFrame], at: str) -> list[Row]:
    """Returns the claims about the q-Risk on births, and writes the comparisons."""
    others = {name: test for name, test in tests.items() if not name.startswith(TFT)}
    verdicts = compare(tests[TFT], others, time=at)
    write_table(verdicts, run.path / "comparison.csv")
    mean = found.row(0, named=True)
    risks = {row["model"]: row for row in found.iter_rows(named=True)}
    least = {"seasonal naive": 20.0, "mean of the last four": 8.0, "ETS": 0.0, "AutoARIMA": 0.0}
    rows: list[Row] = []
    for level, q in (("P50", 0.5), ("P90", 0.9)):
        for name in (*least, LSTM):
            if name in risks:
                less = 100 * (1 - mean[level] / risks[name][level])
                rows.append((f"births, {level} q-Risk below {name}", None, less, "%",
                             least.get(name), None))  # fmt: skip
        rows.append((f"births, {level} q-Risk of TFT", None, mean[level], "", None, None))
        best = risks[LIGHTGBM][level]
        rows.append((f"births, {level} q-Risk of LightGBM", None, best, "", None, None))
        verdict = verdicts.filter(pl.col("other") == LIGHTGBM, pl.col("level") == q)
        # Above 0 the whole interval of the difference is on LightGBM's side.
        rows.append((f"births, {level}: least difference to LightGBM (95 % interval)",
                     None, verdict["low"][0], "", None, 0.0))  # fmt: skip
    plots.reliability(run.plots / "reliability.png", **{TFT: tests[TFT], **others})
    return rows


def _calibrated(run: Run, model: Forecaster, births: pl.DataFrame) -> list[Row]:
    """Returns the claim about calibrated intervals; they are calibrated on 1987."""
    made = copy.copy(model)
    validation = {"start": BIRTHS.trained + DAY, "end": BIRTHS.test - DAY, "stride": 14}
    made.calibrate(births, **validation, by=["step"], unit="width")
    test = BIRTHS.tested(run, "births-calibrated", lambda: made)
    share = 100 * test.select(coverage(0.1, 0.9)).item()
    return [("births, coverage of the calibrated 80 % interval", None, share, "%", 78.0, 82.0)]


def _leaks(model: Forecaster, births: pl.DataFrame) -> list[Row]:
    """Returns the claim that nothing of the future reaches a forecast."""
    found = probe(model, births, origins=[BIRTHS.test - DAY])
    failed = sum(each.passed is False for each in found)
    return [("births, leaks that the probe finds", None, float(failed), "", 0.0, 0.0)]


def _explained(run: Run, model: Forecaster, births: pl.DataFrame) -> list[Row]:
    """Returns the claims about what the forecasts of births rest on."""
    origins = [BIRTHS.test - DAY + BIRTHS.stride * n * DAY for n in range(13)]
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
         float(static.filter(pl.col("variable") == "state")["mean"][0]), "", None, None),
    ]  # fmt: skip


def _regimes(run: Run, seed: int, quiet: bool) -> list[Row]:
    """Returns the claim that attention is unusual in turbulent weeks."""
    table, _ = VOLATILITY.load()
    model = VOLATILITY.train(run, f"volatility-{seed}", seed=seed, quiet=quiet)
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


def _ablation(run: Run, seed: int, quiet: bool) -> list[Row]:
    """Returns how much the P50 q-Risk rises without each part; shown, not judged."""

    def risk(name: str, *without: str) -> float:
        made = _trained_and_tested(run, ABLATION, f"ablation-{name}", seed, without, quiet)
        return accuracies("births", {name: made})["P50"][0]

    whole = risk("none")
    rows: list[Row] = []
    for name, (part, paper) in PARTS.items():
        rise = 100 * (risk(part, part) / whole - 1)
        rows.append((f"births, rise of P50 q-Risk without {name}", paper, rise, "%", None, None))
    return rows
