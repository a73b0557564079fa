import datetime

import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.tft_forecast.inputs import Group, Interpretation, Layout
from chapbook.tft_forecast.interpretation import Explanation

LAYOUT = Layout(
    Group((), ("state", "region"), (52, 6)),
    Group(("births", "nation")),
    Group(("holiday", "year"), ("weekday",), (8,)),
)
PAST, HORIZON = 42, 7


def softmax(logits):
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def attention(windows, logit, past=PAST, horizon=HORIZON, seed=0, noise=0.3):
    """Causal attention whose logits are those of `logit(step, position)`, with noise per window."""
    step = np.arange(1, horizon + 1)[:, None]
    position = np.arange(1 - past, horizon + 1)[None]
    rng = np.random.default_rng(seed)
    shape = (windows, horizon, past + horizon)
    logits = logit(step, position) + noise * rng.normal(size=shape)
    return softmax(np.where(position <= step, logits, -np.inf))


def explanation(weights=None, windows=60, seed=0, **options):
    rng = np.random.default_rng(seed)
    if weights is None:
        weights = attention(windows, lambda step, position: 0.1 * position, seed=seed)
    windows, horizon, positions = weights.shape
    told = Interpretation(
        softmax(rng.normal(size=(windows, 2))),
        softmax(rng.normal(size=(windows, positions - horizon, 5))),
        softmax(rng.normal(size=(windows, horizon, 3)) + np.arange(3)),
        weights,
        {"enrichment": rng.uniform(size=windows), "final": rng.uniform(size=windows) / 10},
    )
    first = datetime.date(2020, 1, 1)
    frame = pl.DataFrame(
        {
            "state": [("OH", "TX", "WY")[i % 3] for i in range(windows)],
            "origin": [first + datetime.timedelta(days=i // 3) for i in range(windows)],
        }
    )
    return Explanation(told, LAYOUT, frame, options.pop("freq", "1d"), **options)


def test_importance_is_the_percentiles_of_the_selection_weights():
    made = explanation()
    table = made.importance()
    assert table.columns == ["group", "variable", "mean", "p10", "p50", "p90"]
    assert table.filter(group="past")["variable"].to_list() == [
        "births", "nation", "holiday", "year", "weekday"
    ]  # fmt: skip
    row = table.filter(group="future", variable="weekday").row(0, named=True)
    flat = made.told.future[:, :, 2].ravel()
    assert [row[f"p{p}"] for p in (10, 50, 90)] == pytest.approx(np.percentile(flat, [10, 50, 90]))
    sums = table.group_by("group").agg(pl.col("mean").sum())["mean"].to_list()
    assert sums == pytest.approx([1, 1, 1])
    assert table.filter(group="future").sort("p50")["variable"].to_list()[-1] == "weekday"


def test_importance_is_shown_by_entity_in_time_and_by_step():
    made = explanation()
    by_state = made.importance(["state"])
    rows = [i for i in range(60) if i % 3 == 1]
    texas = by_state.filter(state="TX", group="static", variable="region")["p90"].item()
    assert texas == pytest.approx(np.percentile(made.told.static[rows, 1], 90))
    assert made.importance(["origin"])["origin"].n_unique() == 20
    by_step = made.importance(["step"])
    assert by_step["step"].unique().sort().to_list() == list(range(1 - PAST, HORIZON + 1))
    last = by_step.filter(step=0, variable="births", group="past")["mean"].item()
    assert last == pytest.approx(made.told.past[:, -1, 0].mean())
    both = made.importance(["state", "step"])
    assert both.columns[:4] == ["state", "step", "group", "variable"]
    with pytest.raises(Error, match='no column "region"'):
        made.importance(["region"])


def test_weights_of_steps_without_a_row_are_left_out():
    mask = np.ones((60, PAST), bool)
    mask[:, :30] = False
    mask[5, :] = False
    made = explanation(mask=mask)
    there = np.delete(made.told.past[:, 30:], 5, 0).reshape(-1, 5)
    table = made.importance().filter(group="past")
    assert table["p50"].to_list() == pytest.approx(np.percentile(there, 50, 0).tolist())
    steps = made.importance(["step"]).filter(group="past")["step"].unique().sort()
    assert steps.to_list() == list(range(-11, 1))


def test_groups_without_variables_are_not_shown():
    made = explanation()
    layout = Layout(Group(), LAYOUT.observed, LAYOUT.known)
    told = made.told._replace(static=np.zeros((60, 0)))
    table = Explanation(told, layout, made.windows, "1d").importance()
    assert table["group"].unique().sort().to_list() == ["future", "past"]


def test_gates_tell_how_far_each_is_open():
    made = explanation()
    table = made.gates()
    assert table["gate"].to_list() == ["enrichment", "final"]
    opened = made.told.gates["final"]
    assert table["mean"][1] == pytest.approx(opened.mean())
    assert table["p90"][1] == pytest.approx(np.percentile(opened, 90))
    assert made.gates(["state"]).height == 6


def test_patterns_are_the_percentiles_of_what_each_step_sees():
    made = explanation()
    table = made.patterns()
    assert table.height == sum(PAST + step for step in range(1, HORIZON + 1))
    row = table.filter(step=3, position=-10).row(0, named=True)
    values = made.told.attention[:, 2, PAST - 1 - 10]
    expected = [values.mean(), *np.percentile(values, [10, 50, 90])]
    assert [row[name] for name in ("mean", "p10", "p50", "p90")] == pytest.approx(expected)
    assert table.group_by("step").agg(pl.col("mean").sum())["mean"].to_list() == pytest.approx(
        [1] * HORIZON
    )


WEEKLY = {
    "of the same weekday": lambda step, position: 1.5 * ((step - position) % 7 == 0),
    "of one weekday": lambda step, position: 1.5 * (position % 7 == 3) + 0 * step,
    "on top of recency": lambda step, position: ((step - position) % 7 == 0) + 0.2 * position,
    "as a wave": lambda step, position: np.cos(2 * np.pi * (step - position) / 7),
}


@pytest.mark.parametrize("name", WEEKLY)
def test_a_weekly_pattern_has_the_period_7(name):
    period = explanation(attention(200, WEEKLY[name])).period()
    assert period is not None
    assert (period.steps, period.time) == (7, "7d")
    assert period.strength > 0.4
    assert period.p_value <= 0.01


def test_a_period_is_told_in_units_of_time():
    weights = attention(50, lambda s, p: 1.5 * ((s - p) % 12 == 0), past=96)
    period = explanation(weights, freq="30m").period()
    assert period is not None
    assert (period.steps, period.time) == (12, "360m")


def test_attention_without_a_pattern_has_no_period():
    flat = attention(20, lambda step, position: 0 * position + 0.0 * step, noise=0)
    assert explanation(flat).period() is None
    recent = attention(20, lambda step, position: 0.2 * position - 0.01 * position**2, noise=0)
    assert explanation(recent).period() is None
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        smooth = np.convolve(rng.normal(size=PAST + HORIZON + 4), np.ones(5) / 2, "valid")
        weights = attention(1, lambda s, p, curve=smooth: curve + 0.05 * p + 0 * s, seed=seed)
        found += explanation(weights).period() is not None
    assert found <= 3


def test_the_summary_marks_the_peaks():
    weights = attention(200, WEEKLY["of one weekday"])
    table = explanation(weights).summary()
    assert table["position"].to_list() == list(range(1 - PAST, 1))
    expected = weights[:, :, :PAST].mean((0, 1))
    assert table["attention"].to_list() == pytest.approx(expected.tolist())
    assert table.filter("peak")["position"].to_list() == [-39, -32, -25, -18, -11, -4]


def test_a_distance_is_that_of_the_paper():
    made = explanation(attention(9, lambda s, p: 0.1 * p, past=5, horizon=3, noise=1.0))
    weights = made.told.attention
    mean = weights.mean(0)
    for t in range(9):
        steps = [np.sqrt(1 - np.sum(np.sqrt(mean[h] * weights[t, h]))) for h in range(3)]
        assert made.distances()[t] == pytest.approx(np.mean(steps), rel=1e-9)
    alike = explanation(np.repeat(weights[:1], 9, 0)).distances()
    assert alike.tolist() == pytest.approx([0] * 9, abs=1e-7)


def test_another_regime_is_a_significant_event():
    usual = attention(60, lambda s, p: 0.3 * p + 0 * s)
    usual[40:43] = attention(3, lambda s, p: -0.3 * p + 0 * s, seed=1)
    made = explanation(usual)
    found = made.events()
    assert found.columns == ["state", "origin", "distance", "significant"]
    assert np.flatnonzero(found["significant"].to_numpy()).tolist() == [40, 41, 42]
    assert made.events(quantile=0.9)["significant"].sum() == 6
    assert made.events(1.0)["significant"].sum() == 0
    with pytest.raises(Error, match="not both"):
        made.events(0.3, quantile=0.9)
    with pytest.raises(Error, match=r"quantile=2 is not in \[0, 1\]"):
        made.events(quantile=2)


def test_the_attention_of_one_forecast_is_found_by_its_id_and_origin():
    made = explanation()
    table = made.attention("TX", datetime.date(2020, 1, 4))
    weights = made.told.attention[10]
    assert table.filter(step=2, position=-3)["attention"].item() == weights[1, PAST - 1 - 3]
    assert table["attention"].sum() == pytest.approx(HORIZON)
    assert (table["position"] <= table["step"]).all()
    with pytest.raises(Error, match="no window of state=TX starts from 2021-01-01; it has 2020"):
        made.attention("TX", datetime.date(2021, 1, 1))
    with pytest.raises(Error, match="there is no such id"):
        made.attention("AK", datetime.date(2020, 1, 4))
    with pytest.raises(Error, match="not one value for each of state"):
        made.attention(("TX", 1), datetime.date(2020, 1, 4))


def test_windows_must_be_as_many_as_weights():
    made = explanation()
    with pytest.raises(Error, match="59 rows for 60 windows"):
        Explanation(made.told, LAYOUT, made.windows[1:], "1d")
