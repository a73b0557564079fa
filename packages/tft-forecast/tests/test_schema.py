import dataclasses
import datetime as dt

import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.tft_forecast.categories import Categories
from chapbook.tft_forecast.inputs import Group
from chapbook.tft_forecast.schema import Schema

FULL = Schema(
    ["store", "item"], "day", ["sales", "returns"], "1d",
    static=["store", "city"], known=["promotion", "price"], observed="traffic",
    categorical=["price"], weight="w", target_transform="log1p",
)  # fmt: skip


def problem(*arguments, **options) -> str:
    with pytest.raises(Error) as caught:
        Schema(*arguments, **options)
    assert "\n" not in caught.value.message
    return caught.value.message


def sales(future: bool = True) -> pl.DataFrame:
    days = [dt.date(2024, 1, 1) + dt.timedelta(i) for i in range(8)]
    return pl.DataFrame(
        {
            "store": ["a"] * 8 + ["b"] * 8,
            "date": days * 2,
            "sales": ([1.0, 2, 3, 4, 5] + ([None] * 3 if future else [6.0, 7, 8])) * 2,
            "city": ["x"] * 8 + ["y"] * 8,
            "promotion": [True, False] * 8,
            "traffic": ([5.0, 4, 3, 2, 1] + [None] * 3) * 2,
        }
    )


def test_one_name_and_a_list_of_one_are_the_same():
    assert Schema("id", "t", "y", "1d", known="k") == Schema(["id"], "t", ("y",), "1d", known=["k"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known": "y"}, 'column "y" is target and known; it can have one role'),
        ({"observed": "t"}, 'column "t" is time and observed; it can have one role'),
        ({"known": "a", "observed": "a"}, 'column "a" is known and observed; it can have one role'),
        ({"known": ["a", "a"]}, 'column "a" is known twice; it can have one role'),
        ({"weight": "y"}, 'column "y" is weight and target; it can have one role'),
        ({"known": "id"}, 'column "id" is id and known; it can have one role'),
        (
            {"categorical": "z", "known": "a"},
            'categorical column "z" is neither static, known nor observed; these are a',
        ),
        ({"target_transform": "log"}, 'target_transform "log" is none of none, log1p, logit'),
        ({"known": [3]}, "known: 3 is no column name; put it into quotes"),
    ],
)
@pytest.mark.wrong_types  # one case is no text, as a YAML file may hold
def test_a_schema_that_makes_no_sense_is_refused(options, message):
    assert problem("id", "t", "y", "1d", **options) == message


@pytest.mark.parametrize("freq", ["day", "0d", "1.5h", "", "-1d", "1d12h"])
def test_a_step_that_is_none_is_refused(freq):
    said = f'freq "{freq}" is no step such as 30m, 1h, 1d, 1bd, 1w, 1mo or 1i'
    assert problem("id", "t", "y", freq) == said


def test_an_id_and_a_target_are_needed():
    said = "the schema names no id column; a single series needs a column of one value"
    assert problem([], "t", "y", "1d") == said
    assert problem("id", "t", [], "1d") == "the schema names no target column"


@pytest.mark.parametrize(
    ("ids", "time", "message"),
    [
        ("origin", "t", 'column "origin" is id, and forecasts have a column of that name'),
        (["shop", "q0.5"], "t", 'column "q0.5" is id, and forecasts have a column of that name'),
        ("shop", "step", 'column "step" is time, and forecasts have a column of that name'),
    ],
)
def test_ids_and_the_time_are_not_named_as_columns_of_forecasts_are(ids, time, message):
    assert problem(ids, time, "sales", "1d") == message


def test_only_several_targets_take_the_name_target():
    assert Schema("target", "t", "sales", "1d").id == ("target",)
    said = 'column "target" is id, and forecasts have a column of that name'
    assert problem("target", "t", ["sales", "returns"], "1d") == said


def test_an_id_may_be_a_static_input():
    assert Schema("id", "t", "y", "1d", static="id").columns == ("id", "t", "y")


def test_yaml_keeps_a_schema(tmp_path):
    for schema in (FULL, Schema("id", "t", "y", "1mo")):
        schema.save(tmp_path / "schema.yaml")
        assert Schema.load(tmp_path / "schema.yaml") == schema


def test_replace_and_asdict_work_as_for_any_dataclass():
    assert Schema(**dataclasses.asdict(FULL)) == FULL
    assert dataclasses.replace(FULL, weight=None).weight is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id: a\ntime: t\ntargets: y\nfreq: 1d\n",
            'unknown key "targets"; valid are id, time, target, freq, static, known, observed,'
            " categorical, weight, target_transform. Did you mean target?",
        ),
        ("id: a\ntime: t\nfreq: 1d\n", "there is no target; it is needed"),
        ("id: no\ntime: t\ntarget: y\nfreq: 1d\n",
         "id: false is no column name; put it into quotes"),
        ("id: a\ntime: t\ntarget: y\nfreq: 1d\nknown: y\n",
         'column "y" is target and known; it can have one role'),
        ("id: a\ntime: t\ntarget: y\nfreq: 5\n", "freq: 5 is no text"),
    ],
)  # fmt: skip
@pytest.mark.wrong_types
def test_a_wrong_yaml_file_is_named_with_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "schema.yaml"
    path.write_text(text)
    with pytest.raises(Error) as caught:
        Schema.load(path)
    assert caught.value.message == f"{path}: {message}"


def test_what_is_no_yaml_is_named_by_line(tmp_path):
    path = tmp_path / "schema.yaml"
    path.write_text("id: a\ntime: [t\n")
    with pytest.raises(Error, match=r"schema.yaml:3: not YAML: "):
        Schema.load(path)
    path.write_text("- a\n")
    with pytest.raises(Error, match="holds no keys; valid ones are id, time"):
        Schema.load(path)
    path.write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(Error, match="not YAML"):
        Schema.load(path)


def test_roles_are_proposed_from_what_lies_after_the_last_target():
    proposed = Schema.infer(sales())
    assert proposed == Schema(
        "store", "date", "sales", "1d", static="city", known="promotion", observed="traffic",
        categorical=("city", "promotion"),
    )  # fmt: skip


def test_without_a_future_nothing_is_proposed_as_known():
    assert Schema.infer(sales(future=False)).observed == ("promotion", "traffic")


@pytest.mark.parametrize(
    ("interval", "freq"),
    [("1d", "1d"), ("1w", "1w"), ("1mo", "1mo"), ("3mo", "1q"), ("1y", "1y"), ("2d", "2d")],
)
def test_the_step_of_dates_is_found(interval, freq):
    days = pl.date_range(dt.date(2019, 1, 31), dt.date(2029, 1, 31), interval, eager=True)
    table = pl.DataFrame({"unique_id": "a", "ds": days, "y": np.arange(float(len(days)))})
    assert Schema.infer(table).freq == freq


@pytest.mark.parametrize(("interval", "freq"), [("30m", "30m"), ("1h", "1h"), ("90s", "90s")])
def test_the_step_of_times_is_found(interval, freq):
    start, end = dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 2)
    times = pl.datetime_range(start, end, interval, eager=True)
    table = pl.DataFrame({"unique_id": "a", "ds": times, "y": np.arange(float(len(times)))})
    assert Schema.infer(table).freq == freq


def test_business_days_and_integers_are_found():
    days = pl.date_range(dt.date(2024, 1, 1), dt.date(2024, 2, 1), "1d", eager=True)
    days = days.filter(days.dt.weekday() <= 5)
    table = pl.DataFrame({"unique_id": "a", "ds": days, "y": np.arange(float(len(days)))})
    assert Schema.infer(table).freq == "1bd"
    numbered = table.with_columns(ds=pl.int_range(0, 2 * pl.len(), 2))
    assert Schema.infer(numbered, time="ds").freq == "2i"


def test_what_cannot_be_guessed_is_asked_for():
    with pytest.raises(Error, match=r"^no column of dates or times was found; name it as time$"):
        Schema.infer(sales().drop("date"))
    with pytest.raises(Error, match=r"^which of sold, traffic is forecast. name the target$"):
        Schema.infer(sales().rename({"sales": "sold"}))
    with pytest.raises(Error, match=r'^no column "sale"; there are store, date, .*mean sales'):
        Schema.infer(sales(), target="sale")
    with pytest.raises(Error, match=r"^no columns were found that, with date, are different in"):
        Schema.infer(pl.concat([sales(), sales()]))


def test_nixtla_names_are_known():
    assert Schema.nixtla("1h", known="promo") == Schema("unique_id", "ds", "y", "1h", known="promo")


def test_the_layout_has_targets_first_and_reals_before_categories():
    table = pl.DataFrame(
        {
            "store": ["a", "b"], "item": [1, 2], "day": [dt.date(2024, 1, 1)] * 2,
            "sales": [1.0, 2], "returns": [0.0, 1], "city": ["x", "x"], "promotion": [True, False],
            "price": [1, 2], "traffic": [3.0, 4], "w": [1.0, 1],
        }
    )  # fmt: skip
    layout = FULL.layout(Categories.fit(table, FULL))
    assert layout.static == Group((), ("store", "city"), (3, 2))
    assert layout.observed == Group(("sales", "returns", "traffic"))
    assert layout.known == Group((), ("promotion", "price"), (3, 3))
    assert layout.targets == 2
    scaled = FULL.layout(Categories.fit(table, FULL), add_scale_inputs=True)
    assert scaled.static.real == ("sales_level", "sales_scale", "returns_level", "returns_scale")


def test_without_known_columns_the_step_is_what_is_known():
    schema = Schema("id", "t", "y", "1d")
    table = pl.DataFrame({"id": ["a"], "t": [dt.date(2024, 1, 1)], "y": [1.0]})
    assert schema.layout(Categories.fit(table, schema)).known == Group(("relative_step",))


@pytest.mark.parametrize(("kind", "low"), [("none", -3.0), ("log1p", 0.0), ("logit", 0.01)])
def test_transforms_come_back_and_rise(kind, low):
    schema = Schema("id", "t", "y", "1d", target_transform=kind)
    values = np.linspace(low, 0.99, 50)
    there = schema.transformed(values)
    np.testing.assert_allclose(schema.restored(there), values, atol=1e-12)
    assert (np.diff(there) > 0).all()
