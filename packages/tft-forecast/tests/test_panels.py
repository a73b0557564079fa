import datetime as dt
import math
import re
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chapbook.core.errors import Error, TableError
from chapbook.tft_forecast.categories import Categories
from chapbook.tft_forecast.panels import check_future, panel
from chapbook.tft_forecast.schema import Schema

START = dt.date(2024, 1, 1)
SCHEMA = Schema(
    "store", "day", "sales", "1d", static="city", known=("promotion", "price"), observed="traffic"
)
NAN = math.nan


def day(number: int) -> dt.date:
    return START + dt.timedelta(number)


def table(*rows: tuple) -> pl.DataFrame:
    names = ("store", "day", "sales", "city", "promotion", "price", "traffic")
    types = (pl.String, pl.Date, pl.Float64, pl.String, pl.String, pl.Float64, pl.Float64)
    filled = [(store, day(d), y, *rest, *(None,) * (4 - len(rest))) for store, d, y, *rest in rows]
    return pl.DataFrame(filled, dict(zip(names, types, strict=True)), orient="row")


SMALL = table(
    ("b", 1, 10.0, "x", "yes", 1.5, 3.0),
    ("a", 3, 4.0, "y", "no", 2.5, 4.0),
    ("a", 0, 1.0, "y", "yes", 3.5, 5.0),
    ("a", 1, 2.0, None, "no", None, NAN),
    ("b", 2, None, "x", None, 4.5, 6.0),
)


def problem(frame, schema=SCHEMA, **options: Any) -> Error:
    with pytest.raises(Error) as caught:
        panel(frame, schema, **options)
    assert "\n" not in caught.value.message
    return caught.value


# ------------------------------------------------------------------------------------------- grid


def test_rows_find_their_cells_and_what_is_missing_is_masked():
    made = panel(SMALL, SCHEMA)
    assert made.ids["store"].to_list() == ["a", "b"]
    assert made.times.to_list() == [day(i) for i in range(4)]
    assert made.times.name == "day"
    np.testing.assert_array_equal(made.present, [[1, 1, 0, 1], [0, 1, 1, 0]])
    np.testing.assert_array_equal(
        made.observed.real,
        [[[1, 5], [2, NAN], [NAN, NAN], [4, 4]], [[NAN, NAN], [10, 3], [NAN, 6], [NAN, NAN]]],
    )
    np.testing.assert_array_equal(
        made.known.real[..., 0], [[3.5, NAN, NAN, 2.5], [NAN, 1.5, 4.5, NAN]]
    )
    np.testing.assert_array_equal(made.known.categorical[..., 0], [[2, 1, -1, 1], [-1, 2, -1, -1]])
    np.testing.assert_array_equal(made.static.categorical, [[2], [1]])
    assert made.static.real.shape == (2, 0)
    assert made.report.pop("notices") == [
        "1 series lack 1 steps, which are masked; the longest gap is 1",
        *(f"{name}: 1 missing values are masked" for name in made.report["missing"]),
        "targets that never change: store=b",
    ]
    assert made.report == {
        "rows": 5, "entities": 2, "steps": 4, "ignored": [], "duplicates": 0,
        "missing": {"sales": 1, "city": 1, "promotion": 1, "price": 1, "traffic": 1},
        "gaps": {"store=a": 1}, "longest_gap": 1, "unseen": {}, "constant": ["store=b"],
    }  # fmt: skip


ROWS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from([1, 2]),
        st.integers(0, 12),
        st.one_of(st.none(), st.just(NAN), st.floats(-5, 5)),
        st.one_of(st.none(), st.sampled_from("xyz")),
    ),
    min_size=1,
    max_size=40,
)
STEPS = {
    "1d": lambda n: dt.datetime(2024, 2, 27) + dt.timedelta(n),
    "2h": lambda n: dt.datetime(2024, 2, 27, 1) + n * dt.timedelta(hours=2),
    "1w": lambda n: dt.datetime(2024, 2, 27) + n * dt.timedelta(7),
    "1mo": lambda n: dt.datetime(2024 + n // 12, n % 12 + 1, 17, 6),
    "1i": lambda n: n - 4,
}


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from(list(STEPS)), st.sampled_from(["sum", "mean", "last"]))
def test_any_ragged_table_equals_a_slow_loop_over_its_rows(rows, freq, duplicates):
    schema = Schema(("letter", "number"), "t", "y", freq, known="k", categorical="k")
    time = STEPS[freq]
    frame = pl.DataFrame(
        {
            "letter": [r[0] for r in rows],
            "number": [r[1] for r in rows],
            "t": [time(r[2]) for r in rows],
            "y": pl.Series([r[3] for r in rows], dtype=pl.Float64),
            "k": pl.Series([r[4] for r in rows], dtype=pl.String),
        }
    )
    cells: dict = {}
    for letter, number, n, y, k in rows:
        cells.setdefault((letter, number), {}).setdefault(n, []).append((y, k))
    first = min(r[2] for r in rows)
    last = max(r[2] for r in rows)
    kinds = sorted({r[4] for r in rows} - {None})

    how: Any = duplicates
    made = panel(frame, schema, duplicates=how)
    assert made.ids.rows() == sorted(cells)
    assert made.times.to_list() == [time(n) for n in range(first, last + 1)]
    gaps = {}
    for e, key in enumerate(sorted(cells)):
        held = cells[key]
        for n in range(first, last + 1):
            assert made.present[e, n - first] == (n in held)
            ys = [y for y, _ in held.get(n, []) if y is not None and not math.isnan(y)]
            ks = [k for _, k in held.get(n, []) if k is not None]
            if duplicates == "last" and n in held:
                y, k = held[n][-1]
                ys = [] if y is None or math.isnan(y) else [y]
                ks = [] if k is None else [k]
            want = sum(ys) / (len(ys) if duplicates == "mean" else 1) if ys else NAN
            np.testing.assert_allclose(made.observed.real[e, n - first, 0], want, atol=1e-12)
            assert made.known.categorical[e, n - first, 0] == (
                kinds.index(ks[-1]) + 1 if ks else -1
            )
        missing = max(held) - min(held) + 1 - len(held)
        if missing:
            gaps[f"letter={key[0]} number={key[1]}"] = missing
    assert made.report["gaps"] == gaps
    assert made.report["duplicates"] == len(rows) - sum(len(held) for held in cells.values())


@pytest.mark.parametrize("kind", ["lazy", "pandas", "pyarrow", "parquet", "csv"])
def test_every_kind_of_table_gives_the_same_panel(tmp_path, kind):
    from chapbook.core.tables import write_table

    path = tmp_path / f"table.{kind}"
    if kind in ("parquet", "csv"):
        write_table(SMALL, path)
    frame = {
        "lazy": SMALL.lazy,
        "pandas": SMALL.to_pandas,
        "pyarrow": SMALL.to_arrow,
        "parquet": lambda: path,
        "csv": lambda: str(path),
    }[kind]()
    made, want = panel(frame, SCHEMA), panel(SMALL, SCHEMA)
    assert made.ids.equals(want.ids)
    np.testing.assert_array_equal(made.present, want.present)
    for name in ("static", "observed", "known"):
        for got, other in zip(getattr(made, name), getattr(want, name), strict=True):
            np.testing.assert_array_equal(got, other)


def test_columns_without_a_role_are_ignored_with_one_notice():
    frame = SMALL.with_columns(pl.lit(1).alias("note"), pl.lit(2).alias("other"))
    report = panel(frame, SCHEMA).report
    assert report["ignored"] == ["note", "other"]
    said = "columns without a role in the schema are ignored: note, other"
    assert report["notices"] == [said, *panel(SMALL, SCHEMA).report["notices"]]


def test_weights_lie_on_the_grid_and_are_0_where_no_row_is():
    schema = Schema("store", "day", "sales", "1d", weight="price")
    made = panel(SMALL, schema).weight
    np.testing.assert_array_equal(made, [[3.5, 0, 0, 2.5], [0, 1.5, 4.5, 0]])
    found = problem(SMALL.with_columns(price=-pl.col("price")), schema)
    assert found.message == "row 0: price is -1.5; a weight is 0 or more"


def test_targets_are_transformed():
    schema = Schema("store", "day", "sales", "1d", observed="traffic", target_transform="log1p")
    np.testing.assert_allclose(panel(SMALL, schema).observed.real[0, 0], [math.log(2), 5])


# -------------------------------------------------------------------------------------- bad input


def test_a_column_that_is_not_there_is_named_with_the_closest_ones(tmp_path):
    path = tmp_path / "sales.parquet"
    SMALL.rename({"traffic": "trafic"}).write_parquet(path)
    assert problem(path).message == (
        f'{path}: no column "traffic"; there are store, day, sales, city, promotion, price,'
        " trafic. Did you mean trafic or price?"
    )


def test_text_where_numbers_belong_shows_the_first_bad_value_and_its_row():
    frame = SMALL.with_columns(sales=pl.Series(["1", "2", "3,5", "4", "x"]))
    found = problem(frame)
    assert found.message == (
        'row 2: sales "3,5" is text; it must be a number, or listed as categorical'
    )
    assert isinstance(found, TableError)
    assert (found.row, found.column) == (2, "sales")
    dates = SMALL.with_columns(price=pl.col("day"))
    assert problem(dates).message == "row 0: price 2024-01-02 is Date; it must be a number"


def test_a_number_that_was_text_in_training_is_refused():
    fitted = Categories.fit(SMALL, SCHEMA)
    frame = SMALL.with_columns(price=pl.col("price").cast(pl.String))
    assert problem(frame, categories=fitted).message.startswith('row 0: price "1.5" is text')


def test_a_time_that_cannot_be_read_is_shown():
    frame = SMALL.with_columns(day=pl.Series(["2024-01-01", "2024-01-02", "soon", "", "x"]))
    assert problem(frame).message.startswith('row 2: day "soon" is no time such as 2024-03-31')


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_what_is_infinite_is_refused_with_its_row(value):
    for column in ("sales", "price", "traffic"):
        values = SMALL[column].to_list()
        values[3] = value
        found = problem(SMALL.with_columns(pl.Series(column, values)))
        assert found.message == f"row 3: {column} is {value}; it must be finite, or missing"


def test_a_missing_id_is_refused_with_its_row():
    frame = SMALL.with_columns(store=pl.Series(["a", None, "b", "b", "b"]))
    assert problem(frame).message == "row 1: store is missing"


@pytest.mark.parametrize(
    ("transform", "values", "message"),
    [
        ("log1p", [0.0, 1, -2, 3, -4],
         "row 2: sales is -2; a target must be 0 or more under log1p"),
        ("logit", [0.5, 1, 0.2, 0, None],
         "row 1: sales is 1; a target must be between 0 and 1 under logit"),
    ],
)  # fmt: skip
def test_a_target_outside_its_transform_is_refused(transform, values, message):
    schema = Schema("store", "day", "sales", "1d", target_transform=transform)
    assert problem(SMALL.with_columns(sales=pl.Series(values)), schema).message == message


def test_duplicates_are_counted_and_the_first_three_are_shown():
    found = problem(table(("a", 0, 1.0), ("a", 0, 2.0), ("a", 1, 2.0), ("a", 0, 3.0)))
    assert found.message == (
        "2 rows have an id and time that an earlier row has: row 1, store=a day=2024-01-01;"
        " row 3, store=a day=2024-01-01"
    )
    assert found.hint == "merge them with --duplicates sum, mean or last (`duplicates=`)"
    many = problem(table(*[("a", 0, 1.0)] * 9)).message
    assert many.startswith("8 rows have an id and time that an earlier row has: row 1, ")
    assert many.endswith("row 3, store=a day=2024-01-01, ...")


def test_merging_adds_targets_and_keeps_the_last_of_all_else():
    frame = table(
        ("a", 0, 5.0, "x", "yes", 1.0, 7.0), ("a", 1, None), ("a", 0, 2.0, "x", "no", 2.0, None),
        ("a", 1, None),
    )  # fmt: skip
    for duplicates, sales in (("sum", 7), ("mean", 3.5), ("last", 2)):
        how: Any = duplicates
        made = panel(frame, SCHEMA, duplicates=how)
        np.testing.assert_array_equal(made.observed.real[0, :, 0], [sales, NAN])
        assert made.known.real[0, 0, 0] == 2
        assert made.observed.real[0, 0, 1] == 7 or duplicates == "last"
        assert made.report["duplicates"] == 2


def test_several_targets_are_merged_each_on_its_own():
    frame = pl.DataFrame(
        {"id": "a", "t": [1, 1, 1], "y": [1.0, 2, 3], "z": [None, None, None], "w": [1.0, 1, 2]},
        schema_overrides={"z": pl.Float64},
    )
    made = panel(frame, Schema("id", "t", ("y", "z"), "1i", weight="w"), duplicates="sum")
    np.testing.assert_array_equal(made.observed.real[0, 0], [6, NAN])
    assert made.weight is not None
    assert made.weight[0, 0] == 4


def test_duplicates_in_the_future_are_rows_of_the_future():
    future = ahead(*[("a", 4, None, None, "yes", 1.0)] * 2)
    said = "future frame: 1 row has an id and time that an earlier row has: row 1, store=a "
    assert problem(SMALL, future=future).message.startswith(said)


def test_the_future_may_hold_its_columns_in_other_types():
    frame = SMALL.with_columns(promotion=pl.Series([1, 2, 1, 2, None], dtype=pl.Int8))
    schema = Schema("store", "day", "sales", "1d", known=("promotion", "price"),
                    categorical="promotion")  # fmt: skip
    future = ahead(("a", 4, None, None, "2", None)).with_columns(price=pl.lit(None, pl.Null))
    made = panel(frame, schema, future=future)
    np.testing.assert_array_equal(made.known.categorical[0, :, 0], [1, 2, -1, 2, 2])
    numbered = frame.with_columns(store=pl.Series([1, 2, 2, 2, 1]))
    found = problem(numbered, schema, future=future)
    assert found.message == "future frame: store is String, but Int64 in the history"


@pytest.mark.wrong_types
def test_an_unknown_way_of_merging_is_refused():
    said = 'duplicates="first" is none of error, sum, mean, last'
    assert problem(SMALL, duplicates="first").message == said


def test_a_row_between_the_steps_is_shown_with_the_fix(tmp_path):
    times = [dt.datetime(2024, 1, 1) + dt.timedelta(i) for i in range(4)]
    frame = pl.DataFrame({"store": "a", "day": times, "sales": [1.0, 2, 3, 4]})
    frame[2, "day"] = dt.datetime(2024, 1, 3, 13, 30)
    path = tmp_path / "sales.parquet"
    frame.write_parquet(path)
    found = problem(path, Schema("store", "day", "sales", "1d"))
    assert found.message == (
        f"{path}: row 2: day 2024-01-03 13:30:00 of store=a lies between the steps"
        " 2024-01-03 00:00:00 and 2024-01-04 00:00:00 of freq=1d (rows like it: 1);"
        " set freq, or bring the rows to one frequency"
    )
    assert isinstance(found, TableError)
    assert (found.row, found.column) == (2, "day")


def test_rows_of_a_finer_frequency_are_refused_with_that_frequency():
    times = [dt.datetime(2024, 1, 1) + dt.timedelta(hours=i) for i in range(48)]
    frame = pl.DataFrame({"store": "a", "day": times, "sales": 1.0})
    said = problem(frame, Schema("store", "day", "sales", "1d")).message
    assert "(rows like it: 46; the commonest step is 1h); set freq, or" in said


def test_gaps_are_counted_and_long_ones_are_refused():
    frame = table(("a", 0, 1.0), ("a", 5, 1.0), ("a", 8, 2.0), ("b", 2, 1.0), ("b", 3, 1.0))
    report = panel(frame, SCHEMA, max_gap=4).report
    assert report["gaps"] == {"store=a": 6}
    assert report["longest_gap"] == 4
    assert problem(frame, max_gap=3).message == (
        "store=a has no rows between 2024-01-01 and 2024-01-06, which is 4 steps; at most 3 may be"
        " missing (--max-gap)"
    )


def test_a_stray_time_is_refused_before_it_fills_the_memory():
    times = [dt.datetime(2024, 1, 1), dt.datetime(2204, 1, 1)]
    frame = pl.DataFrame({"store": "a", "day": times, "sales": 1.0})
    steps = (times[1] - times[0]).days * 1440 + 1
    assert problem(frame, Schema("store", "day", "sales", "1m")).message == (
        f"from 2024-01-01 00:00:00 to 2204-01-01 00:00:00 there are {steps} steps of 1m for 2 rows"
        " of 1 series; is a time or freq wrong?"
    )


def test_a_static_column_that_changes_is_refused():
    frame = table(("a", 0, 1.0, "x"), ("b", 0, 1.0, "y"), ("a", 1, 1.0, "z"))
    assert problem(frame).message == (
        "city of store=a changes from x to z though it is static; make it known or observed"
    )


def test_an_empty_table_is_refused():
    assert problem(SMALL.clear()).message == "the table has no rows"


def test_a_time_zone_is_told_and_hours_are_counted_in_utc():
    times = pl.datetime_range(
        dt.datetime(2024, 10, 26, 22), dt.datetime(2024, 10, 27, 6), "1h",
        time_zone="Europe/Berlin", eager=True,
    )  # fmt: skip
    frame = pl.DataFrame({"store": "a", "day": times, "sales": np.arange(len(times), dtype=float)})
    made = panel(frame, Schema("store", "day", "sales", "1h"))
    assert made.present.all()
    assert len(made.times) == 10  # the hour from 2 to 3 comes twice
    assert made.times.dtype == times.dtype
    np.testing.assert_array_equal(made.observed.real[0, :, 0], np.arange(10))
    assert made.report["notices"] == ["day is in Europe/Berlin: steps of 1h are counted in UTC"]
    daily = panel(
        frame.with_columns(pl.col("day").dt.truncate("1d")),
        Schema("store", "day", "sales", "1d"), duplicates="sum",
    )  # fmt: skip
    np.testing.assert_array_equal(daily.observed.real[0, :, 0], [0 + 1, sum(range(2, 10))])
    said = "day is in Europe/Berlin: steps of 1d are its calendar's"
    assert daily.report["notices"] == [said, "8 rows were merged into others of their id and time"]


def test_categories_that_training_has_not_seen_are_counted():
    fitted = Categories.fit(SMALL, SCHEMA)
    frame = SMALL.with_columns(promotion=pl.Series(["maybe", "no", "maybe", None, "yes"]))
    made = panel(frame, SCHEMA, fitted)
    assert made.report["unseen"] == {"promotion": 2}
    np.testing.assert_array_equal(made.known.categorical[..., 0], [[0, -1, -1, 1], [-1, 0, 2, -1]])


def test_constant_targets_are_noted():
    frame = table(("a", 0, 0.0), ("a", 1, 0.0), ("b", 0, 1.0), ("b", 1, 2.0), ("c", 0, None))
    assert panel(frame, SCHEMA).report["constant"] == ["store=a"]


# ----------------------------------------------------------------------------------------- future


def ahead(*rows: tuple) -> pl.DataFrame:
    return table(*rows).drop("sales", "traffic", "city")


def test_a_future_table_is_known_ahead_and_has_no_targets():
    future = ahead(("a", 4, None, None, "yes", 1.0), ("a", 5, None, None, "no", 2.0))
    made = panel(SMALL, SCHEMA, future=future)
    assert len(made.times) == 6
    assert made.present[0, 4:].all()
    np.testing.assert_array_equal(made.known.real[0, 4:, 0], [1, 2])
    assert np.isnan(made.observed.real[:, 4:]).all()
    assert made.report["rows"] == 5


def test_the_future_may_start_after_the_history_of_the_entity_or_of_all():
    for start in (3, 4):
        rows = [("b", d, None, None, "yes", 1.0) for d in range(start, 6)]
        assert panel(SMALL, SCHEMA, future=ahead(*rows)).present[1, start:].all()
    new = panel(SMALL, SCHEMA, future=ahead(("z", 4, None, None, "yes", 1.0)))
    assert new.ids["store"].to_list() == ["a", "b", "z"]


@pytest.mark.parametrize(("start", "entity", "end"), [(3, "a", 3), (5, "a", 3), (2, "b", 2)])
def test_a_future_that_does_not_start_right_after_the_history_is_refused(start, entity, end):
    future = ahead((entity, start, None, None, "yes", 1.0))
    assert problem(SMALL, future=future).message == (
        f"future frame: store={entity} starts at {day(start)}, but its history ends at {day(end)};"
        " the future must start one step of 1d after that"
    )


def test_a_future_table_needs_the_known_columns(tmp_path):
    path = tmp_path / "future.csv"
    ahead(("a", 4, None, None, "yes", 1.0)).drop("price").write_csv(path)
    said = f'{path}: no column "price"; there are store, day, promotion.'
    assert problem(SMALL, future=path).message.startswith(said)


def test_check_future_passes_where_all_is_known():
    rows = [(s, d, None, None, "yes", 1.0) for s in "ab" for d in range(4, 6)]
    made = panel(SMALL, SCHEMA, future=ahead(*rows))
    check_future(made, 3, 2)
    check_future(panel(SMALL, Schema("store", "day", "sales", "1d")), 3, 2)  # nothing is known


def test_check_future_lists_entity_column_and_first_time():
    rows = [("a", 4, None, None, "yes", 1.0), ("a", 5, None, None, "yes", None),
            ("a", 6, None, None, None, None), ("b", 4, None, None, "yes", 1.0)]  # fmt: skip
    made = panel(SMALL, SCHEMA, future=ahead(*rows))
    with pytest.raises(TableError) as caught:
        check_future(made, 3, 3)
    assert caught.value.message == (
        "what is known ahead must be there for 3 steps: store=a: price is missing at 2024-01-06;"
        " store=a: promotion is missing at 2024-01-07; store=b: no row at 2024-01-06"
    )
    assert caught.value.column == "price"
    assert caught.value.hint is not None
    assert "never filled in" in caught.value.hint


def test_check_future_looks_beyond_the_panel_and_at_chosen_windows():
    made = panel(SMALL, SCHEMA)
    with pytest.raises(TableError, match=r"2 steps: store=a: no row at 2024-01-05$"):
        check_future(made, np.array([3]), 2, np.array([0]))
    check_future(made, np.array([2]), 1, np.array([0]))
    many = table(*[(f"s{i}", d, 1.0, "x", "yes", 1.0) for i in range(9) for d in range(2)])
    with pytest.raises(TableError, match=re.escape("store=s2: no row at 2024-01-03; and 6 more")):
        check_future(panel(many, SCHEMA), 1, 1)
