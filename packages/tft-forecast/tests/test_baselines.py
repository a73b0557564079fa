import datetime
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.tft_forecast import baselines
from chapbook.tft_forecast.metrics import score
from chapbook.tft_forecast.panels import panel
from chapbook.tft_forecast.schema import Schema

FIRST = datetime.date(2020, 1, 1)
SCHEMA = Schema("shop", "day", "sold", "1d", static="shop", known=("weekday", "price"))
DAYS = 500
HORIZON = 10


def day(index):
    return FIRST + datetime.timedelta(int(index))


ORIGINS = [day(400), day(430)]


def days_of(count):
    return [day(i) for i in range(count)]


def table(shops=3, days=DAYS, noise=0.1, seed=0):
    """Sales with a weekly pattern, which a known price lowers."""
    rng = np.random.default_rng(seed)
    t = np.arange(days)
    parts = []
    for shop in range(shops):
        price = rng.choice([1.0, 2.0], days)
        week = 2 + np.sin(2 * np.pi * t / 7 + shop)
        sold = 10 * 3**shop * week / price * np.exp(noise * rng.normal(size=days))
        columns = {"weekday": t % 7, "price": price, "sold": sold}
        parts.append(pl.DataFrame({"shop": f"s{shop}", "day": days_of(days), **columns}))
    return pl.concat(parts).with_columns(pl.col("weekday").cast(pl.String))


def value(frame, shop, index):
    return frame.filter(shop=shop, day=day(index))["sold"].item()


def test_every_entity_origin_and_step_has_a_forecast_and_its_actual_value():
    frame = table()
    made = baselines.seasonal_naive(frame, SCHEMA, ORIGINS, HORIZON, season=7)
    assert made.columns == ["shop", "origin", "day", "step", "q0.1", "q0.5", "q0.9", "y"]
    assert made.height == 3 * 2 * HORIZON
    assert made["step"].dtype == pl.Int32
    assert (made["day"] - made["origin"]).dt.total_days().cast(pl.Int32).equals(made["step"])
    joined = made.join(frame, on=["shop", "day"])
    assert joined["y"].equals(joined["sold"], check_names=False)


def test_the_seasonal_naive_median_is_the_last_value_of_the_season():
    frame = table()
    made = baselines.seasonal_naive(frame, SCHEMA, ORIGINS, HORIZON, season=7)
    for step, back in ((1, 394), (7, 400), (8, 394), (10, 396)):
        found = made.filter(shop="s1", origin=day(400), step=step)["q0.5"].item()
        assert found == value(frame, "s1", back)
    year = baselines.seasonal_naive(frame, SCHEMA, ORIGINS, HORIZON, season=364)
    found = year.filter(shop="s2", origin=day(430), step=10)["q0.5"].item()
    assert found == value(frame, "s2", 440 - 364)


def test_last_weeks_is_the_mean_of_four():
    frame = table()
    made = baselines.last_weeks(frame, SCHEMA, ORIGINS, HORIZON)
    expected = np.mean([value(frame, "s0", 396 - 7 * back) for back in range(4)])
    found = made.filter(shop="s0", origin=day(400), step=10)["q0.5"].item()
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("errors", ["ratio", "difference"])
def test_the_quantiles_are_those_of_the_errors_before_the_first_origin(errors):
    frame = table()
    made = baselines.seasonal_naive(
        frame, SCHEMA, ORIGINS, HORIZON, season=7, calibration=5, errors=errors
    )
    sold = frame.filter(shop="s1")["sold"].to_numpy()
    found = []
    for origin in range(400 - 5 * HORIZON, 400, HORIZON):
        for step in range(1, HORIZON + 1):
            point = sold[origin + step - 7 * -(-step // 7)]
            actual = sold[origin + step]
            found.append(actual / point if errors == "ratio" else actual - point)
    low, high = np.quantile(found, [0.1, 0.9])
    row = made.filter(shop="s1", origin=day(430), step=2).row(0, named=True)
    point = row["q0.5"]
    expected = (point * low, point * high) if errors == "ratio" else (point + low, point + high)
    assert (row["q0.1"], row["q0.9"]) == pytest.approx(expected)


def test_nothing_after_an_origin_is_used():
    frame = table()
    late = pl.when(pl.col("day") <= ORIGINS[0]).then("sold").otherwise(1e6).alias("sold")
    cases: list[tuple[Callable[..., pl.DataFrame], dict]] = [
        (baselines.seasonal_naive, {"season": 7}),
        (baselines.last_weeks, {}),
        (baselines.lightgbm, {"season": 7, "year": 91, "rows": 500, "trees": 3, "jobs": 1}),
    ]
    for function, options in cases:
        whole, cut = (
            function(each, SCHEMA, ORIGINS[:1], HORIZON, **options).drop("y")
            for each in (frame, frame.with_columns(late))
        )
        assert whole.equals(cut), function.__name__


def test_a_short_history_gives_nulls_and_gaps_are_passed_over():
    frame = table().filter((pl.col("shop") != "s2") | (pl.col("day") > day(398)))
    frame = frame.filter((pl.col("shop") != "s0") | (pl.col("day") != day(389)))
    made = baselines.last_weeks(frame, SCHEMA, ORIGINS[:1], HORIZON)
    young = made.filter(shop="s2")
    assert young.select("q0.1", "q0.5", "q0.9").null_count().row(0) == (10, 10, 10)
    expected = np.mean([value(frame, "s0", 396 - 7 * back) for back in (0, 2, 3)])
    assert made.filter(shop="s0", step=10)["q0.5"].item() == pytest.approx(expected)
    assert score(made, metrics=["q_risk"])["missing"].to_list() == [10, 10, 10]


def test_forecasts_beyond_the_table_have_no_actual_value():
    made = baselines.last_weeks(table(), SCHEMA, [day(DAYS - 1)], HORIZON)
    assert made["y"].null_count() == made.height
    assert made["q0.5"].null_count() == 0
    assert made["day"].max() == day(DAYS - 1 + HORIZON)


def test_several_targets_are_forecast_apart():
    frame = table().with_columns(twice=2 * pl.col("sold"))
    schema = Schema("shop", "day", ("sold", "twice"), "1d")
    made = baselines.last_weeks(frame, schema, ORIGINS, HORIZON)
    assert made.height == 2 * 3 * 2 * HORIZON
    keys = ["shop", "origin", "step"]
    both = made.filter(target="sold").join(made.filter(target="twice"), on=keys)
    assert both["q0.9_right"].to_list() == pytest.approx((2 * both["q0.9"]).to_list())
    assert both["y_right"].to_list() == pytest.approx((2 * both["y"]).to_list())


def test_trees_learn_what_a_known_price_does():
    frame = table(noise=0.05)
    prepared = panel(frame, SCHEMA)
    options = {
        "season": 7,
        "rows": 4000,
        "trees": 60,
        "leaves": 15,
        "learning_rate": 0.1,
        "jobs": 1,
    }
    made = baselines.lightgbm(prepared, SCHEMA, ORIGINS, HORIZON, **options)
    naive = baselines.last_weeks(prepared, SCHEMA, ORIGINS, HORIZON)
    errors = [score(each, metrics=["wql"])["value"].item() for each in (made, naive)]
    assert errors[0] < errors[1] / 3
    assert (made["q0.1"] <= made["q0.5"]).all()
    assert (made["q0.5"] <= made["q0.9"]).all()
    again = baselines.lightgbm(prepared, SCHEMA, ORIGINS, HORIZON, **options)
    assert again.equals(made)


def test_trees_do_not_learn_what_comes_after_the_last_time_to_learn_from():
    frame = table()
    late = pl.when(pl.col("day") <= day(300)).then("sold").otherwise(pl.col("sold") * 50)
    changed = frame.with_columns(late.alias("sold"))
    options = {"season": 7, "rows": 500, "trees": 5, "until": day(300), "jobs": 1}
    made = [
        baselines.lightgbm(each, SCHEMA, ORIGINS[1:], HORIZON, **options)
        for each in (frame, changed)
    ]
    # Levels are ratios to the recent mean, so that the same trees forecast 50 times as much.
    ratio = (made[1]["q0.5"] / made[0]["q0.5"]).to_numpy()
    assert ratio == pytest.approx(np.full(len(ratio), 50), rel=0.5)
    with pytest.raises(Error, match="what is to be forecast is learned"):
        baselines.lightgbm(frame, SCHEMA, ORIGINS, HORIZON, season=7, until=day(401))
    with pytest.raises(Error, match="year=12 is not longer than horizon=10 and half a season"):
        baselines.lightgbm(frame, SCHEMA, ORIGINS, HORIZON, season=7, year=12)


def test_a_table_without_enough_history_is_named():
    frame = table(days=45)
    with pytest.raises(Error, match="2020-01-31 is too short to learn from"):
        baselines.lightgbm(frame, SCHEMA, [day(30)], HORIZON, season=7)
    with pytest.raises(Error, match="no forecast before the first origin"):
        baselines.last_weeks(frame, SCHEMA, [day(2)], HORIZON)
    with pytest.raises(Error, match="2021-01-01 is no step of the table"):
        baselines.last_weeks(frame, SCHEMA, [datetime.date(2021, 1, 1)], HORIZON)
    zero = frame.with_columns(pl.lit(0.0).alias("sold"))
    with pytest.raises(Error, match="errors are no ratios"):
        baselines.last_weeks(zero, SCHEMA, [day(40)], 2, errors="ratio")
    made = baselines.last_weeks(zero, SCHEMA, [day(40)], 2)
    assert made["q0.9"].to_list() == [0.0] * 6


def test_baselines_go_by_name():
    frame = table()
    common = (frame, SCHEMA, ORIGINS, HORIZON)
    found = baselines.forecast("last-weeks", *common, season=7)
    assert found.equals(baselines.last_weeks(*common))
    found = baselines.forecast("seasonal-naive", *common, season=14)
    assert found.equals(baselines.seasonal_naive(*common, season=14))
    with pytest.raises(Error, match='no baseline "prophet"; there are seasonal-naive, last-weeks'):
        baselines.forecast("prophet", *common, season=7)


@pytest.mark.slow
@pytest.mark.parametrize("function", [baselines.ets, baselines.autoarima])
def test_classical_models_forecast_the_season_with_normal_intervals(function):
    frame = table(shops=2, days=160).with_columns(pl.col("sold") * pl.col("price"))
    schema = Schema("shop", "day", "sold", "1d")
    holed = frame.filter(pl.int_range(pl.len()) % 50 > 0)
    levels = (0.025, 0.1, 0.5, 0.9, 0.975)
    made = function(holed, schema, [day(130), day(145)], 7, levels, season=7, history=84)
    assert made.height == 2 * 2 * 7
    assert score(made, metrics=["q_risk"]).filter(level=0.5)["value"].item() < 0.2
    width = made["q0.975"] - made["q0.025"]
    assert (width / (made["q0.9"] - made["q0.1"])).to_list() == pytest.approx(
        [1.959964 / 1.281552] * made.height, rel=1e-4
    )
    middle = (made["q0.9"] + made["q0.1"]) / 2
    assert middle.to_list() == pytest.approx(made["q0.5"].to_list(), rel=1e-9)
