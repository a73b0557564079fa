import math

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import mean_pinball_loss

from chapbook.core.errors import Error, TableError
from chapbook.tft_forecast import metrics
from chapbook.tft_forecast.metrics import in_sample_scale, levels, pairs, score

NINE = [round(0.1 * k, 1) for k in range(1, 10)]


def forecasts(quantiles=(0.1, 0.5, 0.9), rows=240, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.gamma(4, 10, rows)
    center = y + rng.normal(0, 8, rows)
    spread = np.sort(rng.normal(0, 10, (rows, len(quantiles))), 1)
    return pl.DataFrame(
        {
            "state": np.repeat(["OH", "TX", "WY"], rows // 3),
            "step": np.tile(np.arange(1, 9, dtype=np.int32), rows // 8),
            **{metrics.column(q): center + spread[:, i] for i, q in enumerate(quantiles)},
            "y": y,
        }
    )


def value(frame, name, level=None, **options):
    found = score(frame, metrics=[name], **options)
    return (found if level is None else found.filter(pl.col("level") == level))["value"].item()


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_q_risk_is_sklearns_pinball_loss_over_the_mean_of_y(level):
    frame = forecasts()
    y, f = frame["y"].to_numpy(), frame[f"q{level}"].to_numpy()
    expected = 2 * mean_pinball_loss(y, f, alpha=level) / y.mean()
    assert value(frame, "q_risk", level) == pytest.approx(expected, rel=1e-12)
    assert frame.select(metrics.q_risk(level)).item() == pytest.approx(expected, rel=1e-12)


def test_a_perfect_forecast_has_no_q_risk_and_zero_has_twice_the_level():
    y = pl.DataFrame({"y": [1.0, 2.0, 7.0]})
    perfect = y.with_columns(**{"q0.1": "y", "q0.9": "y"})
    zero = y.with_columns(**{"q0.1": pl.lit(0.0), "q0.9": pl.lit(0.0)})
    assert score(perfect, metrics=["q_risk"])["value"].to_list() == [0.0, 0.0]
    assert score(zero, metrics=["q_risk"])["value"].to_list() == pytest.approx([0.2, 1.8])


def test_q_risk_is_one_ratio_of_sums_however_the_table_is_split():
    frame = forecasts()
    parts = frame.group_by("state", "step").agg(
        loss=metrics.pinball(0.9).sum(), size=pl.col("y").abs().sum()
    )
    pooled = 2 * parts["loss"].to_numpy().sum() / parts["size"].to_numpy().sum()
    assert value(frame, "q_risk", 0.9) == pytest.approx(pooled, rel=1e-12)
    assert value(frame.sample(fraction=1, shuffle=True, seed=1), "q_risk", 0.9) == pytest.approx(
        pooled, rel=1e-12
    )
    mean_of_ratios = score(frame, by=["state"], metrics=["q_risk"]).filter(level=0.9)["value"]
    assert mean_of_ratios.to_numpy().mean() != pytest.approx(pooled, rel=1e-4)


def test_wql_and_crps_are_means_over_levels():
    frame = forecasts(NINE)
    y = frame["y"].to_numpy()
    losses = [mean_pinball_loss(y, frame[f"q{q}"].to_numpy(), alpha=q) for q in NINE]
    assert value(frame, "wql") == pytest.approx(2 * np.mean(losses) / y.mean(), rel=1e-12)
    assert value(frame, "crps") == pytest.approx(2 * np.mean(losses), rel=1e-12)


def test_crps_nears_the_closed_form_of_a_normal():
    from scipy.stats import norm

    fine = [round((k + 0.5) / 200, 6) for k in range(200)]
    y = 0.7
    frame = pl.DataFrame({"y": [y], **{f"q{q:g}": [float(norm.ppf(q))] for q in fine}})
    closed = y * (2 * norm.cdf(y) - 1) + 2 * norm.pdf(y) - 1 / math.sqrt(math.pi)
    assert value(frame, "crps") == pytest.approx(closed, abs=2e-3)


def test_crps_says_which_quantiles_it_needs():
    with pytest.raises(Error, match=r"crps needs at least 9 evenly spaced.*q0.1, q0.5, q0.9"):
        score(forecasts(), metrics=["crps"])
    with pytest.raises(Error, match="evenly spaced"):
        metrics.crps([0.01, *NINE[1:]])


def test_intervals_have_their_closed_forms():
    frame = pl.DataFrame(
        {"q0.1": [0.0, 0.0, 0.0, 0.0], "q0.9": [10.0] * 4, "y": [5.0, 10.0, -1.0, 13.0]}
    )
    assert value(frame, "coverage") == 0.5  # the bounds belong to the interval
    assert value(frame, "width") == 10
    assert value(frame, "winkler") == pytest.approx(10 + (10 * 1 + 10 * 3) / 4)
    assert score(frame, metrics=["below"])["value"].to_list() == [0.25, 0.75]
    assert score(frame, metrics=["coverage"])["level"].to_list() == [0.8]


def test_point_metrics_have_their_closed_forms():
    frame = pl.DataFrame({"id": ["a", "a", "b"], "q0.5": [1.0, 5.0, 0.0], "y": [2.0, 2.0, 0.0]})
    assert value(frame, "mae") == pytest.approx(4 / 3)
    assert value(frame, "rmse") == pytest.approx(math.sqrt(10 / 3))
    assert value(frame, "bias") == pytest.approx(2 / 3)
    assert value(frame, "smape") == pytest.approx((2 / 3 + 6 / 7 + 0) / 3)


def test_mase_divides_by_the_seasonal_change_in_the_training_rows():
    past = pl.DataFrame(
        {"id": ["a"] * 4 + ["b"] * 4, "t": [*range(4)] * 2, "v": [1.0, 2, 5, 8, 3, 3, 3, 3]}
    )
    scale = in_sample_scale(past, by=["id"], time="t", target="v", season=2)
    assert scale["scale"].to_list() == [5.0, 0.0]
    frame = pl.DataFrame({"id": ["a", "a", "b"], "q0.5": [1.0, 5.0, 0.0], "y": [2.0, 2.0, 3.0]})
    found = score(frame, metrics=["mase", "mae"], scale=scale)
    assert found["value"].to_list() == pytest.approx([(1 + 3) / 2 / 5, 7 / 3])
    assert found["rows"].to_list() == [2, 3]
    assert found["missing"].to_list() == [1, 0]
    with pytest.raises(Error, match="in_sample_scale"):
        score(frame, metrics=["mase"])


def test_rows_without_y_or_forecast_are_left_out_and_counted():
    whole = forecasts(NINE)
    gap = pl.int_range(pl.len()) % 5
    holed = whole.with_columns(
        pl.when(gap == 1).then(None).when(gap == 2).then(math.nan).otherwise("y").alias("y"),
        pl.when(gap == 3).then(None).otherwise("q0.3").alias("q0.3"),
    )
    left = whole.filter(gap.is_in([0, 4]))
    found, expected = score(holed), score(left)
    assert found["value"].to_list() == pytest.approx(expected["value"].to_list(), rel=1e-12)
    assert found["rows"].unique().to_list() == [96]
    assert found["missing"].unique().to_list() == [144]


def test_a_group_without_rows_has_no_value():
    frame = forecasts().with_columns(
        pl.when(pl.col("state") != "TX").then("y").alias("y"),
    )
    texas = score(frame, by=["state"]).filter(state="TX")
    assert texas["value"].null_count() == texas.height
    assert texas["rows"].sum() == 0


def test_scores_are_tidy_and_each_group_is_scored_as_if_alone():
    frame = forecasts()
    found = score(frame, by=["state", "step"])
    assert found.columns == ["state", "step", "metric", "level", "value", "rows", "missing"]
    assert found.select("state", "step").unique().height == 24
    one = score(frame.filter(state="TX", step=3))
    same = found.filter(state="TX", step=3).drop("state", "step")
    assert same["value"].to_list() == pytest.approx(one["value"].to_list(), rel=1e-12)
    assert same["metric"].to_list() == one["metric"].to_list()


def test_what_cannot_be_scored_is_named():
    with pytest.raises(Error, match=r'no metric "mape"; there are q_risk, wql'):
        score(forecasts(), metrics=["mape"])
    with pytest.raises(Error, match="coverage needs two quantiles that mirror each other"):
        score(forecasts((0.5, 0.9)), metrics=["coverage"])
    with pytest.raises(Error, match="bias needs the median"):
        score(forecasts((0.1, 0.9)), metrics=["bias"])
    with pytest.raises(Error, match='no column "y"'):
        score(forecasts().drop("y"))
    with pytest.raises(TableError, match="no column of a quantile"):
        score(forecasts().select("y", "step"))


def test_quantile_columns_are_known_by_their_names():
    names = ["q0.9", "q1e-05", "quarter", "q", "q2", "q0.50", "q0.1", "y"]
    assert levels(names) == (1e-05, 0.1, 0.9)
    assert pairs(["q0.1", "q0.25", "q0.5", "q0.75", "q0.9", "q0.95"]) == ((0.25, 0.75), (0.1, 0.9))
