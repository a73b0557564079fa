"""The command, verb by verb, on a model that is trained once."""

import json
import subprocess
import sys

import polars as pl
import pytest

from chapbook.tft_forecast.cli import main

FUTURE = ("shop", "date", "promo", "weekday")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code if isinstance(end.value.code, int) else 1


@pytest.fixture
def files(trained, table, tmp_path):
    trained.save(tmp_path / "model")
    table.write_parquet(tmp_path / "all.parquet")
    before = pl.col("date") < pl.date(2024, 5, 30)
    table.filter(before).write_csv(tmp_path / "history.csv")
    table.filter(~before).select(FUTURE).write_csv(tmp_path / "future.csv")
    return tmp_path


def test_a_schema_is_proposed_and_can_be_loaded(files, capsys):
    (files / "both.csv").write_text(
        pl.concat(
            [pl.read_csv(files / "history.csv"), pl.read_csv(files / "future.csv")], how="diagonal"
        ).write_csv()
    )
    out = files / "schema.yaml"
    assert run("schema", files / "both.csv", "--target", "sales", "-o", out) == 0
    from chapbook.tft_forecast.schema import Schema

    found = Schema.load(out)
    assert (found.id, found.time, found.freq) == (("shop",), "date", "1d")
    assert set(found.known) == {"promo", "weekday"} and found.observed == ("warmth",)
    assert "read it before you fit" in capsys.readouterr().err


def test_a_table_goes_in_and_forecasts_come_out(files, capsys):
    model, history, future = files / "model", files / "history.csv", files / "future.csv"
    long, wide = files / "next.csv", files / "wide.jsonl"
    common = ("predict", model, "--history", history, "--future", future)
    assert run(*common, "--out", long) == 0
    found = pl.read_csv(long)
    assert found.height == 21 and found["q0.5"].is_finite().all()
    assert run(*common, "--out", wide, "--wide") == 0
    assert pl.read_ndjson(wide).height == 3


def test_series_without_a_history_are_listed(files, capsys):
    model, out = files / "model", files / "out" / "next.parquet"
    table = pl.read_csv(files / "history.csv", try_parse_dates=True)
    empty = table.filter(pl.col("shop") == "s0").with_columns(
        shop=pl.lit("new"), sales=pl.lit(None, pl.Float64)
    )
    pl.concat([table, empty]).write_csv(files / "more.csv")
    out.parent.mkdir()
    more = ("--history", files / "more.csv", "--future", files / "future.csv", "--out", out)
    assert run("predict", model, *more) == 0
    skipped = pl.read_parquet(out.parent / "skipped.parquet")
    assert skipped.rows() == [("new", "no target")]
    assert pl.read_parquet(out).height == 21
    assert run("predict", model, *more, "--keep-all") == 0
    kept = pl.read_parquet(out)
    assert kept.height == 22 and kept.filter(pl.col("shop") == "new")["q0.5"].to_list() == [None]


def test_a_backtest_scores_and_compares(files, capsys):
    out = files / "bt.parquet"
    options = ("--data", files / "all.parquet", "--start", "2024-05-30", "--out", out)
    more = ("--with", "seasonal-naive,last-weeks", "--json")
    assert run("backtest", files / "model", *options, *more) == 0
    scores, compared = map(json.loads, capsys.readouterr().out.splitlines())
    risk = {r["model"]: r["value"] for r in scores if (r["metric"], r["level"]) == ("q_risk", 0.5)}
    assert set(risk) == {"tft", "seasonal-naive", "last-weeks"}
    assert {row["other"] for row in compared} == {"seasonal-naive", "last-weeks"}
    assert set(pl.read_parquet(out)["model"]) == set(risk)
    assert run("evaluate", out, "--by", "model,step", "--metrics", "mae", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 3 * 7


def test_a_model_explains_is_probed_and_calibrated(files, capsys):
    pytest.importorskip("matplotlib")
    model, data = files / "model", files / "all.parquet"
    why = ("--history", data, "--start", "2024-05-30", "--out", files / "why", "--check")
    assert run("explain", model, *why, "--plots", files / "plots", "--json") == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["windows"] == 21 and "rank correlation" in facts["faithfulness"]
    names = {path.stem for path in (files / "why").glob("*.parquet")}
    assert {"importance", "patterns", "events", "gates", "faithfulness"} <= names
    assert len(list((files / "plots").glob("*.png"))) == 3
    assert run("probe-leakage", model, "--data", data) == 0
    assert capsys.readouterr().out.count("ok: ") == 6
    assert run("probe-leakage", model, "--data", data, "--origins", "2024-04-01") == 1
    assert "LEAK: no cell that is tested" in capsys.readouterr().out
    calibrate = ("--data", data, "--start", "2024-05-30", "--stride", "1", "--by", "")
    assert run("calibrate", model, *calibrate) == 0
    assert (model / "calibration.parquet").exists()


def test_simple_baselines_need_no_model(files, capsys):
    (files / "schema.yaml").write_text(
        "id: shop\ntime: date\ntarget: sales\nfreq: 1d\nknown: [promo, weekday]\n"
    )
    options = ("--schema", files / "schema.yaml", "--start", "2024-06-01", "--horizon", 7)
    out = files / "b.csv"
    assert run("baselines", "--data", files / "all.parquet", *options, "--out", out) == 0
    assert set(pl.read_csv(out)["model"]) == {"seasonal-naive", "last-weeks"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("predict", "nothing", "--history", "h", "--out", "o.csv"), "nothing is no model"),
        (("predict", "model", "--history", "none.csv", "--out", "o.csv"), "none.csv"),
        (("predict", "model", "--history", "history.csv", "--out", "o.csv"), "no row at 2024-"),
        (
            ("backtest", "model", "--data", "all.parquet", "--start", "2024-05-30",
             "--out", "o.csv", "--horizon", "9"),
            "--horizon 9 is beyond the trained one, 7",
        ),
        (
            ("backtest", "model", "--data", "all.parquet", "--start", "2024-05-30",
             "--out", "o.csv", "--with", "prophet"),
            "--with prophet is none of",
        ),
        (
            ("fit", "all.parquet", "--schema", "no.yaml", "--out", "m"),
            "no.yaml",
        ),
        (
            ("fit", "all.parquet", "--schema", "model/schema.yaml", "--out", "model"),
            "model holds a model",
        ),
        (
            ("fit", "all.parquet", "--schema", "model/schema.yaml", "--out", "m", "--set",
             "hiden=8"),
            "unknown name hiden",
        ),
        (
            ("fit", "all.parquet", "--schema", "model/schema.yaml", "--out", "m", "--preset",
             "gas"),
            'there is no preset "gas"',
        ),
    ],
)  # fmt: skip
def test_what_the_user_can_mend_is_one_line_and_exit_2(
    files, capsys, monkeypatch, arguments, problem
):
    monkeypatch.chdir(files)
    assert run(*arguments) == 2
    errors = capsys.readouterr().err
    assert problem in errors and "Traceback" not in errors
    assert errors.count("error:") == 1
    assert not (files / "o.csv").exists() and not (files / "m").exists()


def test_help_starts_without_jax():
    code = (
        "import sys\n"
        "from chapbook.tft_forecast.cli import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "probe-leakage" in done.stdout


@pytest.mark.parametrize(("device", "told"), [("tpu", "JAX finds"), ("abacus", "is none of")])
def test_a_device_that_is_not_there_is_refused(tmp_path, device, told):
    # The test's own process has its devices already.
    code = "from chapbook.tft_forecast.cli import main; main()"
    given = ["probe-leakage", tmp_path, "--data", tmp_path / "no.csv", "--device", device]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
    assert done.returncode == 2 and f"--device {device}" in done.stderr and told in done.stderr
    assert len(done.stderr.splitlines()) <= 2
