"""A table in, quantiles out: training, prediction, and the model's folder."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import polars as pl
import pytest

from chapbook.core.compilation import compiled_once
from chapbook.core.errors import Error
from chapbook.tft_forecast.backtesting import backtest
from chapbook.tft_forecast.forecaster import Forecaster
from chapbook.tft_forecast.metrics import q_risk
from chapbook.tft_forecast.schema import Schema

SMALL: dict[str, Any] = {"encoder": 14, "horizon": 7, "hidden": 8, "heads": 2, "batch_size": 32}
# Without the parts that take long to compile.
PLAIN: dict[str, Any] = {**SMALL, "attention": False, "lstm": False, "static_encoders": False}
START = pl.date(2024, 5, 30)


def test_forecasts_are_far_better_than_the_last_value(trained, table):
    found = backtest(trained, table, start="2024-05-30", stride=7)
    last = table.select("shop", pl.col("date").alias("origin"), pl.col("sales").alias("last"))
    found = found.join(last, on=["shop", "origin"])
    ours = found.select(q_risk(0.5)).item()
    naive = found.with_columns(pl.col("last").alias("q0.5")).select(q_risk(0.5)).item()
    assert ours < 0.6 * naive
    assert found.select((pl.col("q0.1") <= pl.col("q0.5")).all()).item()


def test_a_forecast_has_a_row_for_each_series_and_step(trained, table):
    history = table.filter(pl.col("date") < START)
    future = table.filter(pl.col("date") >= START).select("shop", "date", "promo", "weekday")
    found = trained.predict(history, future)
    assert found.columns == ["shop", "origin", "date", "step", "q0.1", "q0.5", "q0.9"]
    assert found.height == 21 and found["step"].to_list() == [1, 2, 3, 4, 5, 6, 7] * 3
    assert found["date"].dtype == pl.Date and (found["date"] > found["origin"]).all()
    same = trained.predict(table, origins=["2024-05-29"])
    assert found.equals(same)
    prepared = trained.prepare(table)
    assert trained.predict(prepared, origins=["2024-05-29"]).equals(same)


def test_the_kind_of_table_that_comes_in_goes_out(trained, table):
    import pandas as pd

    found = trained.predict(table.to_pandas(), origins=["2024-05-29"])
    assert isinstance(found, pd.DataFrame)
    np.testing.assert_allclose(
        found["q0.5"], trained.predict(table, origins=["2024-05-29"])["q0.5"]
    )


def test_a_series_that_ends_early_is_forecast_from_its_own_end(trained, table):
    short = table.filter((pl.col("shop") != "s1") | (pl.col("date") < pl.date(2024, 3, 1)))
    history = short.filter(pl.col("date") < START)
    future = pl.concat([
        table.filter(pl.col("date") >= START, pl.col("shop") != "s1"),
        table.filter(pl.col("date").is_between(pl.date(2024, 3, 1), pl.date(2024, 3, 7)),
                     pl.col("shop") == "s1"),
    ]).select("shop", "date", "promo", "weekday")  # fmt: skip
    found = trained.predict(history, future).group_by("shop").agg(pl.col("origin").first())
    ends = dict(found.iter_rows())
    assert str(ends["s1"]) == "2024-02-29" and str(ends["s0"]) == "2024-05-29"


def test_a_future_that_lacks_a_known_value_is_refused_by_name(trained, table):
    history = table.filter(pl.col("date") < START)
    with pytest.raises(Error, match="shop=s0: no row at 2024-05-30"):
        trained.predict(history)
    future = table.filter(pl.col("date") >= START).with_columns(
        promo=pl.when(pl.col("date") == pl.date(2024, 6, 1)).then(None).otherwise("promo")
    )
    with pytest.raises(Error, match="promo is missing at 2024-06-01"):
        trained.predict(history, future.select("shop", "date", "promo", "weekday"))


def test_an_unseen_series_and_category_are_forecast_as_unknown(trained, table):
    new = table.filter(pl.col("shop") == "s0").with_columns(
        shop=pl.lit("new"), region=pl.lit("east")
    )
    found = trained.predict(new, origins=["2024-05-29"])
    assert found.height == 7 and found["q0.5"].is_finite().all()
    assert trained.prepare(new).panel.report["unseen"] == {"shop": 200, "region": 200}


def test_gaps_and_missing_values_are_forecast_over(trained, table):
    holed = table.filter(pl.int_range(pl.len()) % 5 != 0).with_columns(
        warmth=pl.when(pl.int_range(pl.len()) % 3 == 0).then(None).otherwise("warmth"),
        sales=pl.when(pl.int_range(pl.len()) % 11 == 0).then(None).otherwise("sales"),
    )
    with pytest.raises(Error, match="no row"):
        trained.predict(holed, origins=["2024-05-29"])
    ahead = pl.col("date").is_between(pl.date(2024, 5, 30), pl.date(2024, 6, 5))
    mended = pl.concat([holed.filter(~ahead), table.filter(ahead)])
    assert trained.predict(mended, origins=["2024-05-29"])["q0.5"].is_finite().all()


def test_a_saved_model_forecasts_the_same_bits(trained, table, tmp_path):
    trained.save(tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {
        "schema.yaml", "config.yaml", "scalers.parquet", "categories.parquet",
        "weights.safetensors", "train.jsonl",
    }  # fmt: skip
    again = Forecaster.load(tmp_path / "model")
    assert again.config == trained.config and again.facts == trained.facts
    both = [f.predict(table, origins=["2024-06-10"]) for f in (trained, again)]
    assert both[0].equals(both[1])


def test_a_folder_of_another_version_is_refused(trained, tmp_path):
    trained.save(tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("format: 1", "format: 99"))
    with pytest.raises(Error, match="format is 99, this version reads 1"):
        Forecaster.load(tmp_path)
    with pytest.raises(Error, match="is no model"):
        Forecaster.load(tmp_path / "nothing")


def test_calibrated_intervals_cover_what_they_say(trained, table, tmp_path):
    made = Forecaster.load(_saved(trained, tmp_path))
    made.calibrate(table, start="2024-05-30", stride=1, by=())
    after = backtest(made, table, start="2024-05-30", stride=1)
    inside = after.select(pl.col("y").is_between("q0.1", "q0.9").mean()).item()
    assert 0.79 <= inside <= 0.83
    made.save(tmp_path)
    again = Forecaster.load(tmp_path)
    assert backtest(again, table, start="2024-05-30", stride=1).equals(after)


def _saved(forecaster, folder):
    forecaster.save(folder)
    return folder


def test_a_backtest_of_the_training_part_is_refused(trained, table):
    with pytest.raises(Error, match="lies in the training part, which ends at"):
        backtest(trained, table, start="2024-03-01")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"valid_steps": 3}, "valid_steps=3 is less than the horizon, 7"),
        ({"valid_steps": 195}, "no training window"),
    ],
)
def test_a_table_too_short_for_windows_is_refused(table, schema, options, problem):
    with pytest.raises(Error, match=problem):
        Forecaster(schema, **SMALL).fit(table, **options)


def test_what_is_not_fitted_says_so(schema, table):
    with pytest.raises(Error, match="not fitted"):
        Forecaster(schema).predict(table)
    with pytest.raises(Error, match="unknown option hiden"):
        Forecaster(schema, hiden=3)


def test_several_targets_an_ensemble_and_window_scaling_work_together(table):
    two = table.with_columns(returns=pl.col("sales") * 0.1 + 3)
    schema = Schema("shop", "date", ["sales", "returns"], "1d", target_transform="log1p")
    made = Forecaster(schema, **SMALL, members=2, scaling="window", add_scale_inputs=True)
    made.fit(two, steps=30, valid_steps=14)
    found = made.predict(two)
    assert found.columns == ["shop", "origin", "date", "step", "target", "q0.1", "q0.5", "q0.9"]
    assert found.height == 3 * 7 * 2
    assert found["target"].to_list()[:2] == ["sales", "returns"]
    members = jax.tree.leaves(made.network)[0]
    assert members.shape[0] == 2
    middle = found.filter(pl.col("target") == "returns")["q0.5"]
    assert middle.is_between(2, 15).all()


CHILD = """
import signal, sys
import polars as pl
from chapbook.tft_forecast.forecaster import Forecaster
from chapbook.tft_forecast.schema import Schema
table, run, model, kill = sys.argv[1:]
schema = Schema("shop", "date", "sales", "1d", static="shop", known=["promo", "weekday"])
made = Forecaster(schema, encoder=14, horizon=7, hidden=8, heads=2, batch_size=32)
if float(kill):
    from chapbook.core import train
    seen = train.Log.add
    def add(self, step, *told):
        seen(self, step, *told)
        if step == int(kill):
            signal.raise_signal(signal.SIGKILL)
    train.Log.add = add
made.fit(table, steps=24, valid_steps=14, evaluate_every=6, run_dir=run)
made.save(model)
"""


def test_a_killed_training_ends_with_the_bits_of_an_unbroken_one(table, tmp_path):
    table.write_parquet(tmp_path / "t.parquet")

    def child(run, model, kill):
        paths = [tmp_path / "t.parquet", tmp_path / run, tmp_path / model, str(kill)]
        # All three compile the same program: the first one's is kept for the others.
        kept = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
        return subprocess.run(
            [sys.executable, "-c", CHILD, *paths], timeout=300, env=kept
        ).returncode

    assert child("whole", "a", 0) == 0
    assert child("broken", "b", 15) == -signal.SIGKILL
    assert not (tmp_path / "b").exists()
    assert child("broken", "b", 0) == 0
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    rows = [json.loads(line) for line in (tmp_path / "b/train.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 24


@pytest.mark.parametrize(("window", "first"), [("expanding", "2024-01-01"), ("sliding", None)])
def test_a_refit_sees_what_came_before_its_origin(trained, table, monkeypatch, window, first):
    seen = []

    def fit(self, part, **options):
        learned = part.filter(pl.col("sales").is_not_null())
        assert learned["warmth"].null_count() == 0
        # Rows after the origin tell what is known ahead, and no more.
        later = part.filter(pl.col("date") > learned["date"].max())
        assert later.select(pl.col("sales", "warmth").is_null().all()).row(0) == (True, True)
        seen.append((learned["date"].min(), learned["date"].max()))
        return self

    monkeypatch.setattr(Forecaster, "fit", fit)
    texts = table.with_columns(pl.col("date").cast(pl.String))
    found = backtest(trained, texts, start="2024-05-30", stride=7, refit=2, window=window)
    never = backtest(trained, table, start="2024-05-30", stride=7)
    # Other origins share a batch, and XLA rounds a product by its shape.
    np.testing.assert_allclose(found["q0.5"].sort(), never["q0.5"].sort(), rtol=1e-5)
    assert [str(last) for _, last in seen] == [
        "2024-05-29",
        "2024-06-12",
        "2024-06-26",
        "2024-07-10",
    ]
    lengths = {(last - begin).days for begin, last in seen}
    assert all(str(begin) == first for begin, _ in seen) if first else lengths == {149}


def test_refits_compile_once_and_equal_trainings_on_the_rows_before(schema, table, monkeypatch):
    misses, refits = [], []

    def note(event: str, **facts: str | int) -> None:
        misses.append(event == "/jax/compilation_cache/cache_misses")

    def fit(self, *args, **given):
        before = sum(misses)
        made = learn(self, *args, **given)
        refits.append(sum(misses) - before)
        return made

    learn = Forecaster.fit
    options: dict[str, Any] = {"valid_steps": 7, "steps": 3, "seed": 1}
    dates: dict[str, Any] = {"start": "2024-06-27", "end": "2024-07-10", "stride": 7}
    seen = table.filter(pl.col("date") < pl.date(2024, 7, 4))
    with compiled_once():
        alone = Forecaster(schema, **PLAIN).fit(seen, **options)
        with monkeypatch.context() as patch:
            patch.setattr(Forecaster, "fit", fit)
            jax.monitoring.register_event_listener(note)
            try:
                two = backtest(alone, table, **dates, refit="every", **options)
            finally:
                jax.monitoring.unregister_event_listener(note)
        assert two["origin"].n_unique() == len(refits) == 2
        assert refits[0] > 0 and refits[1] == 0
        expected = alone.predict(table, origins=["2024-07-03"])
        found = two.filter(pl.col("origin") == pl.date(2024, 7, 3))
        np.testing.assert_allclose(found["q0.5"], expected["q0.5"], rtol=1e-5)
        # What comes after an origin changes nothing that is forecast from it.
        known = pl.col("date") < pl.date(2024, 7, 4)
        changed = table.with_columns(
            pl.when(known).then(pl.col(name)).otherwise(99.0).alias(name)
            for name in ("sales", "warmth")
        )
        again = backtest(alone, changed, **dates, refit="every", **options)
        assert again.drop("y").equals(two.drop("y"))


def test_categories_of_rows_without_a_target_are_not_learned(table):
    day = pl.col("date") < START
    ahead = table.with_columns(
        pl.when(day).then(pl.col("sales")),
        pl.when(day).then(pl.col("weekday")).otherwise(pl.lit("new")),
    )
    schema = Schema("shop", "date", "sales", "1d", static="shop", known=["promo", "weekday"])
    made = Forecaster(schema, **PLAIN).fit(ahead, valid_steps=0, steps=1)
    learned = made.categories.frame.filter(pl.col("variable") == "weekday")["value"].to_list()
    assert "0" in learned and "new" not in learned
    assert made.facts["trained_until"].startswith("2024-05-29")
