import datetime as dt

import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import TableError
from chapbook.tft_forecast.grid import fit_grid, parse_times

BERLIN = "Europe/Berlin"


def problem(times: pl.Series, where: str = "") -> TableError:
    with pytest.raises(TableError) as caught:
        parse_times(times, where)
    assert "\n" not in caught.value.message
    return caught.value


def grid_of(times: pl.Series, freq: str) -> tuple[list[bool], list[int]]:
    grid = fit_grid(times, freq)
    index = grid.index(times)
    assert grid.times(index).dtype == times.dtype
    return grid.on_grid(times).tolist(), index.tolist()


@pytest.mark.parametrize("freq", ["1d", "2d", "1w", "1mo", "1q", "1y", "15m", "1h", "6h", "90s"])
def test_the_steps_are_those_that_polars_counts(freq):
    start = dt.datetime(2019, 1, 31, 6)
    count = 40
    times = pl.Series([start])
    times = pl.concat([times.dt.offset_by(_times(freq, i)) for i in range(count)]).alias("t")
    on, index = grid_of(times, freq)
    assert all(on)
    assert index == list(range(count))


def _times(freq: str, count: int) -> str:
    number = "".join(c for c in freq if c.isdigit())
    return f"{int(number) * count}{freq[len(number) :]}"


def test_months_may_begin_on_any_day():
    for day in (1, 15, 28, 29, 30, 31):
        times = pl.Series(
            "t", [dt.date(2023 + m // 12, m % 12 + 1, min(day, _length(m))) for m in range(24)]
        )
        on, index = grid_of(times, "1mo")
        assert all(on), day
        assert index == list(range(24))


def _length(month: int) -> int:
    first = dt.date(2023 + month // 12, month % 12 + 1, 1)
    return ((first + dt.timedelta(31)).replace(day=1) - first).days


def test_a_yearly_series_of_the_28th_of_february_is_on_its_grid_in_leap_years():
    times = pl.Series("t", [dt.date(year, 2, 28) for year in range(2019, 2027)])
    assert all(grid_of(times, "1y")[0])


def test_steps_before_the_first_and_after_the_last_have_times():
    grid = fit_grid(pl.Series("t", [dt.date(2024, 1, 31)]), "1mo")
    assert grid.times(np.array([-1, 1])).to_list() == [dt.date(2023, 12, 31), dt.date(2024, 2, 29)]


def test_business_days_leave_out_weekends():
    days = pl.date_range(dt.date(2024, 3, 1), dt.date(2024, 3, 12), "1d", eager=True).alias("t")
    grid = fit_grid(days.filter(days.dt.weekday() <= 5), "1bd")
    assert grid.on_grid(days).tolist() == (days.dt.weekday() <= 5).to_list()
    assert grid.times(np.arange(3)).to_list() == [
        dt.date(2024, 3, 1), dt.date(2024, 3, 4), dt.date(2024, 3, 5),
    ]  # fmt: skip


def test_hours_of_days_with_23_and_25_hours_are_counted_in_absolute_time():
    for day, hours in ((dt.datetime(2024, 3, 31), 23), (dt.datetime(2024, 10, 27), 25)):
        times = pl.datetime_range(
            day, day + dt.timedelta(1), "1h", closed="left", time_zone=BERLIN, eager=True
        ).alias("t")
        assert len(times) == hours
        on, index = grid_of(times, "1h")
        assert all(on)
        assert index == list(range(hours))


def test_days_of_23_and_25_hours_are_one_step_of_the_local_calendar():
    for first in (dt.datetime(2024, 3, 29), dt.datetime(2024, 10, 25)):
        times = pl.datetime_range(
            first, first + dt.timedelta(5), "1d", time_zone=BERLIN, eager=True
        ).alias("t")
        on, index = grid_of(times, "1d")
        assert all(on)
        assert index == list(range(6))


def test_a_day_whose_midnight_does_not_exist_begins_an_hour_late():
    days = [dt.datetime(2018, 11, d, 1 if d == 4 else 0) for d in (2, 3, 4, 5)]
    times = pl.Series("t", days).dt.replace_time_zone("America/Sao_Paulo")
    on, index = grid_of(times, "1d")
    assert all(on)
    assert index == [0, 1, 2, 3]


def test_most_rows_decide_where_the_grid_lies():
    times = pl.Series("t", [dt.datetime(2024, 1, 1, 5), *(
        dt.datetime(2024, 1, d) for d in (2, 3, 4))])  # fmt: skip
    assert grid_of(times, "1d")[0] == [False, True, True, True]


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024-03-31", dt.date(2024, 3, 31)),
        ("2024/03/31", dt.date(2024, 3, 31)),
        ("2024-03", dt.date(2024, 3, 1)),
        ("2024-03-31T23:05:06", dt.datetime(2024, 3, 31, 23, 5, 6)),
        ("2024-03-31 23:05", dt.datetime(2024, 3, 31, 23, 5)),
        ("2024-03-31T23:05:06.25Z", dt.datetime(2024, 3, 31, 23, 5, 6, 250_000, dt.UTC)),
        ("2024-03-31 23:05:06+02:00", dt.datetime(2024, 3, 31, 21, 5, 6, 0, dt.UTC)),
    ],
)
def test_iso_times_are_read(text, time):
    assert parse_times(pl.Series("t", [text])).to_list() == [time]


def test_a_time_that_cannot_be_read_is_shown_with_its_row():
    found = problem(pl.Series("day", ["2024-01-01", "2024-02-30", "x"]), "sales.csv: ")
    assert found.message == (
        'sales.csv: row 1: day "2024-02-30" is no time such as 2024-03-31 or 2024-03-31T23:00:00,'
        " or is not written as the first one is"
    )
    assert (found.row, found.column) == (1, "day")
    assert problem(pl.Series("day", ["31.12.2024"])).row == 0


def test_a_missing_time_and_a_wrong_type_are_refused():
    assert problem(pl.Series("day", [dt.date(2024, 1, 1), None])).message == "row 1: day is missing"
    said = 'column "day" is Float64; it must hold dates, times or integers'
    assert problem(pl.Series("day", [1.5])).message == said


@pytest.mark.parametrize(
    ("times", "freq", "message"),
    [
        ([1, 2], "1d", 'column "t" is Int64; it needs a freq such as "1i"'),
        ([dt.date(2024, 1, 1)], "1i", 'column "t" is Date; it needs a freq such as 1d'),
        ([dt.date(2024, 1, 1)], "1h", 'column "t" holds dates, which freq=1h is finer than'),
    ],
)
def test_a_step_that_the_column_cannot_have_is_refused(times, freq, message):
    with pytest.raises(TableError) as caught:
        fit_grid(pl.Series("t", times), freq)
    assert caught.value.message == message


def test_integers_are_steps_too():
    assert grid_of(pl.Series("t", [10, 14, 12]), "2i") == ([True] * 3, [0, 2, 1])
