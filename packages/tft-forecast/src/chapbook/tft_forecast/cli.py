"""The command line `tft-forecast`: parses, calls the library, prints. It never imports JAX here."""

import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chapbook.core import cli
from chapbook.core.errors import Error

if TYPE_CHECKING:
    import polars as pl

app = cli.app(
    "tft-forecast",
    "Interpretable multi-horizon forecasts of panels of series, with calibrated quantiles.",
    version=metadata.version("chapbook-tft-forecast"),
)
main = cli.main(app)

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The folder that fit wrote.")]
SchemaFile = Annotated[
    Path, typer.Option("--schema", metavar="FILE", help="Roles of the columns; see `schema`.")
]
Out = Annotated[Path, typer.Option("--out", metavar="TABLE", help="File to write; - is stdout.")]
Format = Annotated[
    str | None, typer.Option("--format", help="Of the output, if its suffix does not tell.")
]
Sets = Annotated[
    list[str], typer.Option("--set", metavar="NAME=VALUE", help="A field of the config; repeat.")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="TOML", help="Fields of the config.")
]
Preset = Annotated[
    str | None, typer.Option("--preset", help="electricity, traffic, retail or volatility.")
]
Duplicates = Annotated[
    str, typer.Option("--duplicates", help="Rows of one id and time: error, sum, mean or last.")
]
MaxGap = Annotated[
    int | None, typer.Option("--max-gap", min=0, help="Longest run of missing steps; any if unset.")
]
Start = Annotated[str, typer.Option("--start", help="The first time that is forecast.")]
End = Annotated[str | None, typer.Option("--end", help="The last time that may be forecast.")]
Stride = Annotated[
    int | None, typer.Option("--stride", min=1, help="Steps between origins; a horizon if unset.")
]
With = Annotated[
    str,
    typer.Option("--with", help="Baselines: seasonal-naive, last-weeks, ets, autoarima, lightgbm."),
]
Season = Annotated[int, typer.Option("--season", min=1, help="Steps of a season, for baselines.")]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Processes of the classical models.")]
ValidSteps = Annotated[
    int | None,
    typer.Option("--valid-steps", min=0, help="Last steps for validation; a horizon if unset."),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, gpu or tpu; the best there is if unset.")
]


@app.command()
def schema(
    table: cli.TableIn,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="YAML; printed if unset.")
    ] = None,
    id: Annotated[str | None, typer.Option("--id", metavar="A,B", help="Id columns.")] = None,  # noqa: A002
    time: Annotated[str | None, typer.Option("--time", help="The column of time.")] = None,
    target: Annotated[str | None, typer.Option("--target", metavar="A,B")] = None,
    freq: Annotated[
        str | None, typer.Option("--freq", help="The step: 1h, 1d, 1bd, 1mo ...")
    ] = None,
) -> None:
    """Propose the roles of a table's columns as YAML, to be read and mended.

    Example: tft-forecast schema sales.parquet --target sales -o schema.yaml
    """
    from chapbook.tft_forecast.schema import Schema

    found = Schema.infer(
        table, id=id and id.split(","), time=time, target=target and target.split(","), freq=freq
    )
    if out is None:
        typer.echo(found.yaml(), nl=False)
        return
    found.save(out)
    typer.echo(f"wrote {out}: read it before you fit, a wrong role is a wrong forecast", err=True)


@app.command()
def fit(
    table: cli.TableIn,
    schema: SchemaFile,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the model goes.")],
    valid: Annotated[
        Path | None, typer.Option("--valid", metavar="TABLE", help="Later rows, for validation.")
    ] = None,
    valid_steps: ValidSteps = None,
    preset: Preset = None,
    config: ConfigFile = None,
    sets: Sets = [],  # noqa: B006
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes, at most.")] = 20,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Updates instead.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1)] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Training windows, at most.")
    ] = 450_000,
    patience: Annotated[int, typer.Option("--patience", min=1)] = 5,
    steps_per_dispatch: Annotated[
        int, typer.Option("--steps-per-dispatch", min=1, help="Updates in one call, at most.")
    ] = 1,
    duplicates: Duplicates = "error",
    max_gap: MaxGap = None,
    mesh: cli.MeshText = "auto",
    devices: cli.Devices = None,
    precision: Annotated[str | None, typer.Option("--precision", help="float32, bfloat16")] = None,
    device: Device = None,
    seed: cli.Seed = 0,
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Train a model; the same command goes on with a training that was interrupted.

    Example: tft-forecast fit sales.parquet --schema schema.yaml --out model --set horizon=28
    """
    from chapbook.core.meshes import mesh as mesh_of
    from chapbook.core.meshes import simulate
    from chapbook.tft_forecast.forecaster import Forecaster
    from chapbook.tft_forecast.schema import Schema

    if devices:
        simulate(devices)
    _use(device)
    if (out / "config.yaml").exists() and not fresh:
        raise Error(f"{out} holds a model", "give another --out, or --fresh")
    for name, value in (("precision", precision), ("batch_size", batch_size)):
        if value is not None:
            sets = [*sets, f"{name}={value}"]
    made = Forecaster(Schema.load(schema), _config(preset, config, sets))
    made.fit(
        table, valid, valid_steps=valid_steps, epochs=epochs, steps=steps, samples=samples,
        patience=patience, steps_per_dispatch=steps_per_dispatch, seed=seed,
        run_dir=out / "training", fresh=fresh, mesh=mesh_of(mesh),
        duplicates=_duplicates(duplicates), max_gap=max_gap, quiet=quiet,
    )  # fmt: skip
    made.save(out)
    _remove(out / "training")
    _note(made.report)
    facts = made.facts | {"model": str(out)}
    if made.facts["best_step"] is not None:
        facts["valid_loss"] = float(made.metrics["valid/loss"].drop_nulls().min())  # pyright: ignore
    _show(facts, json)


@app.command()
def predict(
    model: Model,
    history: Annotated[Path, typer.Option("--history", metavar="TABLE", help="Up to the origin.")],
    out: Out,
    future: Annotated[
        Path | None, typer.Option("--future", metavar="TABLE", help="Known columns after it.")
    ] = None,
    wide: Annotated[
        bool, typer.Option("--wide/--long", help="A column per step and quantile, or a row.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Without the calibration.")] = False,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Rows of nulls for series without a history.")
    ] = False,
    duplicates: Duplicates = "error",
    max_gap: MaxGap = None,
    format: Format = None,  # noqa: A002
    device: Device = None,
    quiet: cli.Quiet = False,
) -> None:
    """Forecast the steps after the last target of each series.

    Example: tft-forecast predict model --history sales.parquet --future plan.csv --out next.csv
    """
    from chapbook.core.tables import write_table
    from chapbook.tft_forecast.forecaster import Forecaster
    from chapbook.tft_forecast.forecasts import lazy
    from chapbook.tft_forecast.panels import check_future

    _use(device)
    loaded = Forecaster.load(model)
    options: dict[str, Any] = {"duplicates": _duplicates(duplicates), "max_gap": max_gap}
    prepared = loaded.prepare(history, future, **options)
    _note(prepared.panel.report)
    pairs = loaded.pairs(prepared)
    check_future(prepared.panel, pairs[1], loaded.config.horizon, pairs[0])
    skipped = loaded.skipped(prepared, pairs)
    count = -(-len(pairs[0]) // 256)
    frames = loaded.frames(prepared, pairs, calibrated=not raw)
    shown = cli.progress(frames, "forecasting", total=count, quiet=quiet)
    found = lazy(shown, loaded.empty(prepared.panel), skipped.drop("reason") if keep_all else None)
    _say_skipped(skipped, out)
    if wide:
        names = found.collect_schema().names()
        ids = [*loaded.schema.id, "origin", *(["target"] if "target" in names else [])]
        values = [name for name in names if name.startswith("q0")]
        found = found.collect().pivot("step", index=ids, values=values)
    write_table(found, out, format=format)


@app.command()
def evaluate(
    forecasts: cli.TableIn,
    by: Annotated[str | None, typer.Option("--by", metavar="A,B", help="Score apart.")] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", metavar="A,B", help="q_risk, wql, mae ...")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="TABLE")] = None,
    json: cli.Json = False,
) -> None:
    """Score forecasts that have the actual values beside them, in a column y.

    Example: tft-forecast evaluate backtest.parquet --by step --metrics q_risk,coverage
    """
    from chapbook.core.tables import read_table
    from chapbook.tft_forecast.metrics import score

    chosen = metrics.split(",") if metrics else None
    _table(score(read_table(forecasts), by.split(",") if by else (), chosen), out, json)


@app.command()
def backtest(
    model: Model,
    table: Annotated[Path, typer.Option("--data", metavar="TABLE", help="The whole table.")],
    start: Start,
    out: Out,
    end: End = None,
    stride: Stride = None,
    horizon: Annotated[
        int | None, typer.Option("--horizon", min=1, help="Steps to keep of each forecast.")
    ] = None,
    refit: Annotated[str, typer.Option("--refit", help="never, every, or a count.")] = "never",
    window: Annotated[str, typer.Option("--window", help="expanding or sliding.")] = "expanding",
    valid_steps: ValidSteps = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Updates of a refit.")] = None,
    baselines: With = "",
    season: Season = 7,
    jobs: Jobs = 1,
    duplicates: Duplicates = "error",
    device: Device = None,
    seed: cli.Seed = 0,
    json: cli.Json = False,
) -> None:
    """Forecast from a rolling origin, score, and compare with baselines.

    Example: tft-forecast backtest model --data sales.parquet --start 2025-01-01 --out bt.parquet
    --with seasonal-naive,lightgbm
    """
    import polars as pl

    from chapbook.core.tables import write_table
    from chapbook.tft_forecast.backtesting import backtest as run
    from chapbook.tft_forecast.baselines import forecast
    from chapbook.tft_forecast.comparison import compare
    from chapbook.tft_forecast.forecaster import Forecaster

    _use(device)
    loaded = Forecaster.load(model)
    trained = loaded.config.horizon
    if horizon is not None and horizon > trained:
        raise Error(
            f"--horizon {horizon} is beyond the trained one, {trained}",
            f"train a model with --set horizon={horizon}",
        )
    names = _names(baselines)
    doubles = _duplicates(duplicates)
    options: dict[str, Any] = {"duplicates": doubles}
    if refit != "never":
        options |= {"valid_steps": valid_steps, "steps": steps, "seed": seed}
    kept = pl.col("step") <= (horizon or trained)
    data = loaded.prepare(table, duplicates=doubles)
    _note(data.panel.report)
    source = data if refit == "never" else table
    ours = run(
        loaded, source, start=start, end=end, stride=stride, refit=refit, window=window, **options
    ).filter(kept)
    found = {"tft": ours}
    if names:
        origins = ours["origin"].unique().sort().to_list()
        for name in names:
            found[name] = forecast(
                name, data.panel, loaded.schema, origins, trained, loaded.config.quantiles,
                season=season, jobs=jobs, seed=seed,
            ).filter(kept)  # fmt: skip
    together = pl.concat(
        [each.with_columns(model=pl.lit(name)).select(["model", *ours.columns])
         for name, each in found.items()]
    )  # fmt: skip
    write_table(together, out)
    _table(_scores(together), None, json)
    if len(found) > 1 and ours["origin"].n_unique() > 1:
        others = {name: each for name, each in found.items() if name != "tft"}
        _table(compare(ours, others, time=loaded.schema.time), None, json)


@app.command()
def baselines(
    table: Annotated[Path, typer.Option("--data", metavar="TABLE", help="The whole table.")],
    schema: SchemaFile,
    start: Start,
    out: Out,
    horizon: Annotated[int, typer.Option("--horizon", min=1)],
    baselines: With = "seasonal-naive,last-weeks",
    end: End = None,
    stride: Stride = None,
    season: Season = 7,
    quantiles: Annotated[str, typer.Option("--quantiles", metavar="A,B")] = "0.1,0.5,0.9",
    jobs: Jobs = 1,
    duplicates: Duplicates = "error",
    seed: cli.Seed = 0,
    json: cli.Json = False,
) -> None:
    """Backtest simple, classical and boosted models without any network.

    Example: tft-forecast baselines --data sales.parquet --schema schema.yaml --start 2025-01-01
    --horizon 28 --with seasonal-naive,ets --out baselines.parquet
    """
    import polars as pl

    from chapbook.core.tables import write_table
    from chapbook.tft_forecast.baselines import forecast
    from chapbook.tft_forecast.forecasts import rolling_origins
    from chapbook.tft_forecast.panels import panel
    from chapbook.tft_forecast.schema import Schema

    roles = Schema.load(schema)
    whole = panel(table, roles, duplicates=_duplicates(duplicates))
    steps = rolling_origins(whole, horizon, start, end, stride or horizon)
    origins = whole.grid.times(steps).to_list()
    levels = [float(level) for level in quantiles.split(",")]
    found = [
        forecast(
            name, whole, roles, origins, horizon, levels, season=season, jobs=jobs, seed=seed
        ).with_columns(model=pl.lit(name))
        for name in _names(baselines)
    ]
    together = pl.concat(found)
    write_table(together.select("model", pl.exclude("model")), out)
    _table(_scores(together), None, json)


@app.command()
def explain(
    model: Model,
    history: Annotated[Path, typer.Option("--history", metavar="TABLE")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="For the tables.")],
    future: Annotated[Path | None, typer.Option("--future", metavar="TABLE")] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="Explain a backtest from here, not one forecast.")
    ] = None,
    end: End = None,
    stride: Stride = None,
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="FOLDER", help="For the pictures.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Of significant events; 0.3 if unset.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Hold the weights against permuted variables.")
    ] = False,
    device: Device = None,
    seed: cli.Seed = 0,
    json: cli.Json = False,
) -> None:
    """Tell which variables and which past steps the forecasts rest on.

    Example: tft-forecast explain model --history sales.parquet --start 2025-01-01 --out why
    --plots why --check
    """
    from chapbook.core.tables import write_table
    from chapbook.tft_forecast import faithfulness
    from chapbook.tft_forecast.forecaster import Forecaster
    from chapbook.tft_forecast.forecasts import rolling_origins

    _use(device)
    loaded = Forecaster.load(model)
    origins = None
    prepared = loaded.prepare(history, future)
    if start is not None:
        whole = prepared.panel
        horizon = loaded.config.horizon
        steps = rolling_origins(whole, horizon, start, end, stride or horizon)
        origins = whole.grid.times(steps).to_list()
    found = loaded.explain(prepared, origins=origins)
    importance = found.importance()
    tables = {
        "importance": importance, "patterns": found.patterns(), "summary": found.summary(),
        "events": found.events(threshold), "gates": found.gates(),
        "importance_by_entity": found.importance(by=list(loaded.schema.id)),
        "importance_over_time": found.importance(by=["origin"]),
    }  # fmt: skip
    facts: dict[str, Any] = {"windows": found.windows.height}
    period = found.period()
    facts["period"] = None if period is None else f"{period.steps} steps ({period.time})"
    facts["significant_events"] = int(tables["events"]["significant"].sum())
    if check:
        if origins is None:
            raise Error("--check needs actual values", "give --start")
        checked = faithfulness.check(loaded, prepared, origins=origins, seed=seed)
        tables["faithfulness"] = checked.table
        facts["faithfulness"] = checked.verdict
    for name, table in tables.items():
        out.mkdir(parents=True, exist_ok=True)
        write_table(table, out / f"{name}.parquet")
    if plots is not None:
        found.plot(plots)
    _table(importance, None, json)
    _show(facts, json)


@app.command()
def calibrate(
    model: Model,
    table: Annotated[
        Path, typer.Option("--data", metavar="TABLE", help="With rows after training.")
    ],
    start: Start,
    end: End = None,
    stride: Stride = None,
    by: Annotated[str, typer.Option("--by", metavar="A,B", help="Calibrated apart.")] = "step",
    unit: Annotated[
        str, typer.Option("--unit", help="Of corrections: target, or the interval's width.")
    ] = "target",
    device: Device = None,
    json: cli.Json = False,
) -> None:
    """Make a model's intervals cover what they say, by forecasts of a calibration window.

    Example: tft-forecast calibrate model --data sales.parquet --start 2025-01-01
    """
    from chapbook.tft_forecast.forecaster import Forecaster

    _use(device)
    loaded = Forecaster.load(model)
    names = [name for name in by.split(",") if name]
    made = loaded.calibrate(table, start=start, end=end, stride=stride, by=names, unit=unit)
    loaded.save(model)
    assert loaded.calibration is not None
    _table(loaded.calibration.report(made), None, json)


@app.command()
def tune(
    table: cli.TableIn,
    schema: SchemaFile,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Of the search.")],
    trials: Annotated[int, typer.Option("--trials", min=1)] = 60,
    space: Annotated[
        Path | None, typer.Option("--space", metavar="TOML", help="Lists of values by field.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Updates of the best.")] = 2000,
    halvings: Annotated[int, typer.Option("--halvings", min=0)] = 3,
    preset: Preset = None,
    config: ConfigFile = None,
    sets: Sets = [],  # noqa: B006
    valid_steps: ValidSteps = None,
    device: Device = None,
    seed: cli.Seed = 0,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Search the paper's ranges at random, dropping the worse half again and again.

    Example: tft-forecast tune sales.parquet --schema schema.yaml --out search --trials 20
    """
    import tomllib

    from chapbook.core.tables import write_table
    from chapbook.tft_forecast.schema import Schema
    from chapbook.tft_forecast.tuning import tune as search

    _use(device)
    try:
        values = None if space is None else tomllib.loads(space.read_text())
    except tomllib.TOMLDecodeError as problem:
        raise Error(f"{space}: {problem}") from None
    found = search(
        Schema.load(schema), table, out, config=_config(preset, config, sets), space=values,
        trials=trials, steps=steps, halvings=halvings, seed=seed, quiet=quiet,
        valid_steps=valid_steps,
    )  # fmt: skip
    write_table(found, out / "trials.parquet")
    _table(found, None, json)


@app.command("probe-leakage")
def probe_leakage(
    model: Model,
    table: Annotated[
        Path, typer.Option("--data", metavar="TABLE", help="With rows after training.")
    ],
    origins: Annotated[
        str | None, typer.Option("--origins", metavar="A,B", help="Three are chosen if unset.")
    ] = None,
    device: Device = None,
    seed: cli.Seed = 0,
    json: cli.Json = False,
) -> None:
    """Check that nothing of the future, or of the test part, reaches a forecast; 1 if it does.

    Example: tft-forecast probe-leakage model --data sales.parquet
    """
    import dataclasses

    from chapbook.tft_forecast.forecaster import Forecaster
    from chapbook.tft_forecast.leakage import probe

    _use(device)
    times = origins.split(",") if origins else None
    found = probe(Forecaster.load(model), table, origins=times, seed=seed)
    if json:
        typer.echo(_text([dataclasses.asdict(each) for each in found]))
    else:
        for each in found:
            word = {True: "ok", False: "LEAK", None: "warning"}[each.passed]
            columns = f" [{', '.join(each.columns)}]" if each.columns else ""
            typer.echo(f"{word}: {each.check}{columns}: {each.detail}")
    if any(each.passed is False for each in found):
        raise typer.Exit(1)


@app.command()
def reproduce(
    run: cli.RunDir = Path("run"),
    full: Annotated[bool, typer.Option("--full", help="Three seeds, all panels.")] = False,
    seed: cli.Seed = 0,
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
) -> None:
    """Show the paper's claims on real panels: accuracy beside baselines, and interpretation."""
    from chapbook.tft_forecast.reproduce import reproduce as check

    check(run, full=full, seed=seed, fresh=fresh, quiet=quiet)


def _use(device: str | None) -> None:
    """Computes on devices of one kind, or refuses where JAX has none of it."""
    if device is None:
        return
    if device not in ("cpu", "gpu", "tpu"):
        raise Error(f"--device {device} is none of cpu, gpu, tpu")
    import jax

    if device == "cpu":
        jax.config.update("jax_platforms", device)
    # Where there is an accelerator that JAX is installed for, it is the default.
    elif jax.default_backend() != device:
        raise Error(
            f"--device {device}: JAX finds {jax.default_backend()} alone",
            f"install JAX for {device}, or leave the option out",
        )


def _config(preset: str | None, file: Path | None, sets: list[str]) -> Any:
    from chapbook.core.config import configure
    from chapbook.tft_forecast.config import TFTConfig

    base = TFTConfig.preset(preset) if preset else TFTConfig()
    return configure(TFTConfig, file, sets, base)


def _duplicates(text: str) -> Any:
    if text not in ("error", "sum", "mean", "last"):
        raise Error(f"--duplicates {text} is none of error, sum, mean, last")
    return text


def _names(text: str) -> list[str]:
    from chapbook.tft_forecast.baselines import BASELINES

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in BASELINES:
            raise Error(f"--with {name} is none of {', '.join(BASELINES)}")
    return names


def _scores(together: "pl.DataFrame") -> "pl.DataFrame":
    from chapbook.tft_forecast.metrics import score

    by = ["model", *(["target"] if "target" in together.columns else [])]
    return score(together, by, ["q_risk", "wql", "coverage", "width"])


def _note(report: dict[str, Any]) -> None:
    """Says what was found in a table and dealt with."""
    for notice in report["notices"]:
        typer.echo(f"note: {notice}", err=True)


def _say_skipped(skipped: "pl.DataFrame", out: Path) -> None:
    """Writes which series were not forecast beside the output."""
    if not skipped.height:
        return
    from chapbook.core.tables import write_table

    if str(out) == "-":
        typer.echo(f"{skipped.height} series are not forecast", err=True)
        return
    path = out.parent / "skipped.parquet"
    write_table(skipped, path)
    typer.echo(f"{skipped.height} series are not forecast; {path} says why", err=True)


def _table(table: "pl.DataFrame", out: Path | None, as_json: bool) -> None:
    import polars as pl

    if out is not None:
        from chapbook.core.tables import write_table

        write_table(table, out)
    if as_json:
        typer.echo(_text(table.to_dicts()))
        return
    with pl.Config(
        tbl_rows=200, tbl_cols=30, tbl_width_chars=160, tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True, float_precision=4,
    ):  # fmt: skip
        typer.echo(str(table))


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(_text(facts))
        return
    for name, value in facts.items():
        typer.echo(f"{name}: {value}")


def _text(value: Any) -> str:
    return json.dumps(value, default=str)


def _remove(folder: Path) -> None:
    """Removes what a finished training needs no more."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
