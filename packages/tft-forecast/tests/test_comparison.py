import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from chapbook.core.errors import Error, TableError
from chapbook.tft_forecast.comparison import bootstrap, compare, diebold_mariano
from chapbook.tft_forecast.metrics import score

HORIZON = 7


def forecasts(noise, origins=12, seed=0, shift=0.0):
    """Forecasts of one truth for three shops; all arguments but `origins` concern the errors."""
    truth, rng = np.random.default_rng(99), np.random.default_rng(seed)
    days = origins * HORIZON
    y = truth.gamma(5, 10, (3, 12 * HORIZON))[:, :days].ravel()
    median = y + shift + rng.normal(0, noise, 3 * days)
    origin = np.tile(np.repeat(np.arange(origins) * HORIZON, HORIZON), 3)
    step = np.tile(np.arange(1, HORIZON + 1, dtype=np.int32), 3 * origins)
    columns = {
        "shop": np.repeat(["a", "b", "c"], days), "origin": origin, "day": origin + step,
        "step": step, "q0.1": median - 1.3 * noise, "q0.5": median, "y": y,
    }  # fmt: skip
    return pl.DataFrame(columns)


def test_the_difference_is_that_of_the_reported_q_risks():
    ours, theirs = forecasts(3), forecasts(6, seed=1)
    found = compare(ours, {"naive": theirs}, time="day", draws=500)
    for frame, side in ((ours, "ours"), (theirs, "theirs")):
        expected = score(frame, metrics=["q_risk"])["value"].to_list()
        assert found[side].to_list() == pytest.approx(expected, rel=1e-12)
    assert found["level"].to_list() == [0.1, 0.5]
    assert found["difference"].to_list() == pytest.approx(
        (found["ours"] - found["theirs"]).to_list()
    )
    assert found["rows"].to_list() == [252, 252]
    assert found["origins"].to_list() == [12, 12]


def test_a_clear_winner_a_clear_loser_and_a_tie_are_told_apart():
    ours = forecasts(4)
    others = {"bad": forecasts(12, seed=1), "like": forecasts(4, seed=2), "good": forecasts(1)}
    found = compare(ours, others, time="day", draws=2000).filter(level=0.5)
    assert found["verdict"].to_list() == ["better", "not distinguishable", "worse"]
    low, high = found["low"].to_list(), found["high"].to_list()
    assert high[0] < 0
    assert low[1] < 0 < high[1]
    assert low[2] > 0
    assert found["p_value"][0] < 0.01 < found["p_value"][1]
    assert found["dm"][0] < 0 < found["dm"][2]


def test_a_forecaster_is_not_distinguishable_from_itself():
    ours = forecasts(4)
    row = compare(ours, {"itself": ours}, time="day", draws=200).row(0, named=True)
    assert (row["difference"], row["low"], row["high"]) == (0, 0, 0)
    assert (row["dm"], row["p_value"], row["verdict"]) == (0, 1, "not distinguishable")


def test_the_bootstrap_draws_what_every_resample_by_hand_gives():
    rng = np.random.default_rng(0)
    ours, theirs, size = (rng.gamma(3, 1, 3) for _ in range(3))
    draws = [list(draw) for draw in np.ndindex(3, 3, 3)]
    all_draws = np.array([2 * (ours - theirs)[d].sum() / size[d].sum() for d in draws])
    drawn = bootstrap(ours, theirs, size, draws=20_000)
    assert {round(x, 12) for x in drawn} == {round(x, 12) for x in all_draws}
    assert drawn.mean() == pytest.approx(
        float(np.mean(all_draws)), abs=float(4 * np.std(all_draws) / 140)
    )
    assert drawn.std() == pytest.approx(float(np.std(all_draws)), rel=0.03)


def test_blocks_keep_neighbouring_origins_together():
    ours, theirs, size = np.arange(4.0), np.zeros(4), np.ones(4)
    drawn = {round(x, 12) for x in bootstrap(ours, theirs, size, draws=500, block=2)}
    starts = [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert drawn == {round(2 * (sum(a) + sum(b)) / 4, 12) for a in starts for b in starts}
    with pytest.raises(Error, match="1 origins cannot be drawn"):
        bootstrap(np.ones(1), np.ones(1), np.ones(1))


def test_the_same_seed_gives_the_same_interval():
    frames = forecasts(4), {"other": forecasts(5, seed=3)}
    first, again, other = (compare(*frames, time="day", draws=300, seed=s) for s in (1, 1, 2))
    assert first.equals(again)
    assert first["low"].to_list() != other["low"].to_list()


def test_one_step_ahead_the_statistic_is_students_t():
    difference = np.random.default_rng(0).normal(0.3, 1, 40)
    statistic, p_value = diebold_mariano(difference, 1)
    expected, expected_p = stats.ttest_1samp(difference, 0)
    assert statistic == pytest.approx(expected, rel=1e-12)
    assert p_value == pytest.approx(expected_p, rel=1e-9)


def test_the_long_run_variance_has_bartletts_weights():
    d, h = np.random.default_rng(1).normal(0.2, 1, 30), 4
    n, mean = len(d), d.mean()
    covariance = [
        sum((d[t] - mean) * (d[t - lag] - mean) for t in range(lag, n)) / n for lag in range(h)
    ]
    variance = covariance[0] + 2 * sum((1 - lag / h) * covariance[lag] for lag in range(1, h))
    expected = mean / math.sqrt(variance / n) * math.sqrt((n + 1 - 2 * h + h * (h - 1) / n) / n)
    assert diebold_mariano(d, h)[0] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(Error, match="4 times are too few"):
        diebold_mariano(np.ones(4), 4)


def test_the_test_rejects_true_nulls_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 1, (1000, 203))
    overlapping = noise[:, 3:] + noise[:, 2:-1] + noise[:, 1:-2] + noise[:, :-3]
    rejected = np.mean([diebold_mariano(d, 4)[1] < 0.05 for d in overlapping])
    assert 0.02 < rejected < 0.13  # Bartlett's weights make it a little too keen
    deviation = overlapping.std(1, ddof=1) / math.sqrt(overlapping.shape[1])
    naive = np.abs(overlapping.mean(1) / deviation) > stats.t.ppf(0.975, overlapping.shape[1] - 1)
    assert naive.mean() > 0.2


def test_rows_of_one_side_only_are_left_out_and_counted():
    ours, theirs = forecasts(3), forecasts(5, seed=1)
    holed = theirs.with_columns(
        pl.when(pl.int_range(pl.len()) % 10 > 0).then("q0.5").alias("q0.5")
    ).head(200)
    found = compare(ours, {"holed": holed}, time="day", draws=100).row(0, named=True)
    assert found["rows"] == 180
    assert found["left_out"] == 252 + 200 - 2 * 180


def test_frames_that_cannot_be_compared_are_named():
    ours = forecasts(3)
    for theirs, message in (
        (ours.with_columns(pl.col("y") + 1), r"y is .* in ours and .* in naive \(shop=a"),
        (ours.with_columns(pl.col("day") + 1000), "share no row of the same shop, origin, day"),
        (ours.drop("step"), 'do not share the column "step"'),
        (ours.drop("y"), 'naive has no column "y"'),
        (ours.vstack(ours), "naive has more than one forecast for some shop"),
    ):
        with pytest.raises(TableError, match=message):
            compare(ours, {"naive": theirs}, time="day")
    with pytest.raises(Error, match="none of our quantiles"):
        compare(ours, {"naive": ours.rename({"q0.1": "q0.2"}).drop("q0.5")}, time="day")
    with pytest.raises(Error, match="1 origins cannot be drawn"):
        compare(forecasts(3, origins=1), {"naive": forecasts(5, origins=1)}, time="day")
