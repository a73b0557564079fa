import datetime as dt
import math
import sys

import polars as pl
import pytest

from chapbook.core.errors import Error, MissingExtra
from chapbook.tft_forecast.calendar_features import FEATURES, CalendarFeatures
from chapbook.tft_forecast.schema import Schema

DAYS = pl.date_range(dt.date(1999, 12, 20), dt.date(2001, 1, 5), "1d", eager=True).alias("day")


def test_every_feature_equals_what_the_standard_library_says():
    times = pl.datetime_range(
        dt.datetime(2023, 12, 30, 5), dt.datetime(2024, 3, 2), "7h30m", eager=True
    )
    made = CalendarFeatures(FEATURES).extend(pl.DataFrame({"t": times}), "t")
    for row in made.iter_rows(named=True):
        t = row["t"]
        clock = (t.hour * 60 + t.minute) / 1440
        cycles = {
            "time_of_day": clock,
            "day_of_week": (t.weekday() + clock) / 7,
            "day_of_year": (t.timetuple().tm_yday - 1 + clock) / 365.2425,
        }
        want = {
            "minute": t.minute, "hour": t.hour, "weekday": t.isoweekday(),
            "weekend": t.isoweekday() > 5, "day": t.day, "week": t.isocalendar().week,
            "month": t.month, "quarter": (t.month + 2) // 3, "year": t.year,
            "day_of_year": t.timetuple().tm_yday,
            "hours_from_start": (t - dt.datetime(2000, 1, 1)).total_seconds() / 3600,
            "days_from_start": (t - dt.datetime(2000, 1, 1)).total_seconds() / 86400,
        }  # fmt: skip
        for name, share in cycles.items():
            want[f"{name}_sin"] = math.sin(2 * math.pi * share)
            want[f"{name}_cos"] = math.cos(2 * math.pi * share)
        assert set(want) == set(FEATURES)
        for name, value in want.items():
            assert row[name] == pytest.approx(value, abs=1e-9), (name, t)


def test_the_local_calendar_counts_where_there_is_a_time_zone():
    utc = pl.Series("t", [dt.datetime(2024, 1, 1, 3)]).dt.replace_time_zone("UTC")
    local = utc.dt.convert_time_zone("America/New_York")
    made = CalendarFeatures(("hour", "day")).extend(local.to_frame(), "t")
    assert made.select("hour", "day").row(0) == (22, 31)


def test_a_country_has_its_holidays_and_the_days_they_are_observed_on():
    made = CalendarFeatures((), holidays="US").extend(DAYS.to_frame(), "day")
    named = dict(made.select("day", "holiday").iter_rows())
    assert named[dt.date(1999, 12, 25)] == "Christmas Day"
    assert named[dt.date(1999, 12, 24)] == "Christmas Day (observed)"
    assert named[dt.date(2000, 7, 4)] == "Independence Day"
    assert named[dt.date(2000, 7, 5)] == "none"
    plain = CalendarFeatures((), holidays="US", observed=False).extend(DAYS.to_frame(), "day")
    assert plain.filter(day=dt.date(1999, 12, 24))["holiday"].item() == "none"


def test_distances_are_signed_and_cut_and_reach_over_the_ends_of_the_table():
    features = CalendarFeatures((), "US", ("New Year's Day", "Thanksgiving Day"), reach=10)
    made = features.extend(DAYS.to_frame(), "day")
    assert features.columns == ("holiday", "days_from_new_years_day", "days_from_thanksgiving_day")
    for row in made.iter_rows(named=True):
        for column, marks in (
            ("days_from_new_years_day", [dt.date(y, 1, 1) for y in range(1999, 2003)]),
            ("days_from_thanksgiving_day",
             [dt.date(1999, 11, 25), dt.date(2000, 11, 23), dt.date(2001, 11, 22)]),
        ):  # fmt: skip
            nearest = min(((row["day"] - mark).days for mark in marks), key=abs)
            assert row[column] == max(-10, min(10, nearest)), (row["day"], column)


def test_the_columns_are_the_same_for_any_table():
    features = CalendarFeatures(("weekday",), holidays="US", distances=None)
    old = pl.DataFrame({"t": [dt.date(1950, 1, 1)]})
    assert features.extend(old, "t").columns == ["t", *features.columns]
    assert "days_from_juneteenth_national_independence_day" in features.columns


def test_a_table_of_holidays_is_as_good_as_a_country():
    table = pl.DataFrame({"date": ["2000-05-01", "2001-05-01"], "holiday": ["May Day"] * 2})
    features = CalendarFeatures(("month",), holidays=table, reach=3)
    made = features.extend(DAYS.to_frame(), "day")
    assert made.filter(pl.col("holiday") != "none")["day"].to_list() == [dt.date(2000, 5, 1)]
    near = made.filter(pl.col("days_from_may_day").abs() < 3)["days_from_may_day"]
    assert near.to_list() == [-2, -1, 0, 1, 2]


@pytest.mark.parametrize("kind", ["lazy", "to_pandas", "to_arrow"])
def test_the_same_kind_of_frame_comes_back(kind):
    frame = getattr(DAYS.to_frame(), kind)()
    made = CalendarFeatures(("weekday",)).extend(frame, "day")
    assert type(made) is type(frame)


def test_the_new_columns_become_known():
    schema = Schema("id", "day", "y", "1d", known="price")
    features = CalendarFeatures(("weekday", "day_of_year_sin"), holidays="US", distances=())
    assert features.roles(schema) == Schema(
        "id", "day", "y", "1d", known=("price", "weekday", "day_of_year_sin", "holiday"),
        categorical=("weekday", "holiday"),
    )  # fmt: skip


def test_what_cannot_be_is_refused():
    with pytest.raises(Error, match=r'^calendar feature "moon" is none of minute, hour, weekday'):
        CalendarFeatures(("moon",))
    with pytest.raises(Error, match=r"^reach=0 is below 1$"):
        CalendarFeatures((), holidays="US", reach=0)
    with pytest.raises(Error, match=r"^distances to holidays need holidays"):
        CalendarFeatures((), distances=("Easter",))
    with pytest.raises(Error, match=r'^column "day" is there already; drop it first$'):
        CalendarFeatures(("day",)).extend(DAYS.to_frame(), "day")
    with pytest.raises(Error, match=r'^column "day" holds integers, which have no calendar$'):
        CalendarFeatures(("weekday",)).extend(pl.DataFrame({"day": [1]}), "day")
    with pytest.raises(Error, match=r'^holidays="Atlantis" is no country'):
        CalendarFeatures((), holidays="Atlantis", distances=()).extend(DAYS.to_frame(), "day")
    with pytest.raises(Error, match=r'^holidays: no column "holiday"; there are date, name'):
        table = pl.DataFrame({"date": ["2000-05-01"], "name": ["May Day"]})
        CalendarFeatures((), holidays=table).extend(DAYS.to_frame(), "day")


def test_without_the_holidays_package_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "holidays", None)
    with pytest.raises(MissingExtra) as caught:
        CalendarFeatures((), holidays="US").extend(DAYS.to_frame(), "day")
    assert caught.value.hint == "pip install 'chapbook-tft-forecast[holidays]'"
