import datetime as dt

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chapbook.core.errors import Error
from chapbook.tft_forecast.panels import Panel, panel
from chapbook.tft_forecast.scaling import METHODS, Scalers
from chapbook.tft_forecast.schema import Schema

SCHEMA = Schema(
    "id", "t", ("y", "z"), "1d", static=("area", "kind"), known=("price", "flag"), observed="heat"
)
NAN = float("nan")


def ragged(seed: int, entities: int = 5, steps: int = 20) -> pl.DataFrame:
    """Random series that begin and end anywhere, with gaps, nulls and a constant one."""
    draw = np.random.default_rng(seed)
    rows = []
    for e in range(entities):
        first, last = sorted(draw.integers(0, steps, 2))
        for n in range(first, last + 1):
            if n in (first, last) or draw.random() > 0.3:
                y = None if draw.random() < 0.2 else float(draw.normal(e * 10, 1 + e))
                z = 7.0 if e == 1 else float(draw.poisson(0.5))
                rows.append(
                    (f"s{e}", dt.date(2024, 1, 1) + dt.timedelta(n), y, z, 3.5 * e, "k",
                     float(draw.normal()), bool(n % 2), None if n % 3 == 0 else float(n))
                )  # fmt: skip
    names = ("id", "t", "y", "z", "area", "kind", "price", "flag", "heat")
    return pl.DataFrame(rows, names, orient="row", infer_schema_length=None)


def statistics(values: list[float], method: str) -> tuple[float, float]:
    """Location and scale of what is no NaN, the slow way."""
    if method in ("window", "none"):
        return 0, 1
    if method == "entity_mean":
        mean = float(np.mean(np.abs(values))) if values else 0
        return 0, mean if mean > 0 else 1
    if not values:
        return 0, 1
    spread = 1.0 if max(values) == min(values) else float(np.std(values))
    if method == "entity_robust":
        low, middle, high = np.percentile(values, [25, 50, 75])
        return middle, high - low if high > low else spread
    return float(np.mean(values)), spread


@pytest.mark.parametrize("method", METHODS)
def test_scaled_values_equal_a_slow_loop_over_entities(method):
    for seed in range(4):
        made = panel(ragged(seed), SCHEMA)
        until = 12
        if not made.present[:, :until].any():
            continue
        scaled = Scalers.fit(made, method, until).transform(made)
        for group, reals in (("observed", made.observed.real), ("known", made.known.real)):
            for v in range(reals.shape[-1]):
                kind = method if group == "observed" and v < 2 else "entity"
                kind = "none" if method == "none" else kind
                everyone = [x for x in reals[:, :until, v].ravel() if not np.isnan(x)]
                for e in range(len(made.ids)):
                    own = [x for x in reals[e, :until, v] if not np.isnan(x)]
                    local = method.startswith("entity") and len(own) >= 2
                    location, scale = statistics(own if local else everyone, kind)
                    np.testing.assert_allclose(
                        getattr(scaled, group).real[e, :, v],
                        (reals[e, :, v] - location) / scale, rtol=1e-9, atol=1e-9,
                    )  # fmt: skip
        area = made.static.real[made.present[:, :until].any(1), 0]
        location, scale = (0, 1) if method == "none" else statistics(list(area), "global")
        np.testing.assert_allclose(
            scaled.static.real[:, 0], (made.static.real[:, 0] - location) / scale, atol=1e-9
        )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(METHODS))
def test_scaling_comes_back(seed, method):
    made = panel(ragged(seed), SCHEMA)
    scalers = Scalers.fit(made, method)
    scaled = scalers.transform(made)
    entity = np.arange(len(made.ids))
    steps = scaled.observed.real[..., :2]
    back = scalers.invert(made, entity, steps.transpose(0, 2, 1))
    np.testing.assert_allclose(back.transpose(0, 2, 1), made.observed.real[..., :2], atol=1e-9)
    quantiles = np.stack([steps] * 3, -1)  # (rows, horizon, targets, quantiles)
    np.testing.assert_allclose(
        scalers.invert(made, entity, quantiles)[..., 1], made.observed.real[..., :2], atol=1e-9
    )
    for name in ("static", "observed", "known"):
        before, after = getattr(made, name), getattr(scaled, name)
        np.testing.assert_array_equal(np.isnan(before.real), np.isnan(after.real))
        np.testing.assert_array_equal(before.categorical, after.categorical)


def test_forecasts_come_back_through_the_transform():
    schema = Schema("id", "t", "z", "1d", target_transform="log1p")
    made = panel(ragged(0), schema)
    scalers = Scalers.fit(made, "entity")
    scaled = scalers.transform(made).observed.real[..., 0][:, None]
    back = scalers.invert(made, np.arange(len(made.ids)), scaled)[:, 0]
    np.testing.assert_allclose(back, np.expm1(made.observed.real[..., 0]), atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_rows_after_training_change_no_statistic(method):
    table = ragged(3).sort("t")
    made = panel(table, SCHEMA)
    until = 11
    time = made.times[until]
    late = pl.col("t") >= time
    changed = table.with_columns(
        pl.when(late).then(pl.col(name) * 1000 + 1).otherwise(name).alias(name)
        for name in ("y", "z", "price", "heat")
    )
    later = panel(changed, SCHEMA).observed.real[:, until:, 0]
    assert (later != made.observed.real[:, until:, 0]).any()
    want = Scalers.fit(made, method, until)
    assert Scalers.fit(panel(changed, SCHEMA), method, until).frame.equals(want.frame)
    assert want.fitted_until == table.filter(~late)["t"].max()


def constant(method: str) -> tuple[Panel, Scalers]:
    days = [dt.date(2024, 1, d) for d in range(1, 7)]
    table = pl.DataFrame({"id": ["a"] * 6 + ["b"] * 6, "t": days * 2, "y": [0.1] * 6 + [0.0] * 6})
    made = panel(table, Schema("id", "t", "y", "1d"))
    return made, Scalers.fit(made, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_series_has_scale_1_or_its_own_size(method):
    made, scalers = constant(method)
    location, scale = scalers.target(made)
    if method == "entity_mean":
        np.testing.assert_allclose(scale[:, 0], [0.1, 1])
    elif method == "global":
        np.testing.assert_allclose(scale[:, 0], [0.05, 0.05])
    else:
        np.testing.assert_array_equal(scale[:, 0], [1, 1])
    if method in ("entity", "entity_robust"):
        np.testing.assert_allclose(location[:, 0], [0.1, 0])


def test_entities_that_training_has_not_seen_take_the_statistics_of_all():
    table = ragged(2)
    scalers = Scalers.fit(panel(table, SCHEMA), "entity")
    new = panel(table.with_columns(pl.col("id") + "new"), SCHEMA)
    location, scale = scalers.target(new)
    everyone = scalers.frame.filter(pl.col("id").is_null(), variable="y").row(0, named=True)
    assert set(location[:, 0]) == {everyone["location"]}
    assert set(scale[:, 0]) == {everyone["scale"]}


def test_level_and_scale_can_be_inputs():
    made = panel(ragged(1), SCHEMA)
    scalers = Scalers.fit(made, "entity")
    static = scalers.transform(made, add_scale_inputs=True).static.real
    assert static.shape == (len(made.ids), 1 + 4)
    location, _ = scalers.target(made)
    order = np.argsort(location[:, 0], kind="stable")
    assert (np.diff(static[order, 1]) >= 0).all()
    layout = SCHEMA.layout(made.categories, add_scale_inputs=True)
    assert layout.static.real[1:] == ("y_level", "y_scale", "z_level", "z_scale")


def test_a_file_keeps_the_statistics(tmp_path):
    made = panel(ragged(1), SCHEMA)
    scalers = Scalers.fit(made, "entity_robust", 15)
    scalers.save(tmp_path / "scalers.parquet")
    loaded = Scalers.load(tmp_path / "scalers.parquet")
    assert loaded.frame.equals(scalers.frame)
    assert (loaded.method, loaded.fitted_until) == ("entity_robust", scalers.fitted_until)
    for got, want in zip(loaded.transform(made), scalers.transform(made), strict=True):
        np.testing.assert_array_equal(got.real, want.real)


def test_what_cannot_be_fitted_or_read_is_refused(tmp_path):
    made = panel(ragged(1), SCHEMA)
    with pytest.raises(Error, match=r'^scaling="log" is none of entity, entity_robust, '):
        Scalers.fit(made, "log")
    with pytest.raises(Error, match=r"^there is no row before step 0 to fit scalers on$"):
        Scalers.fit(made, "entity", 0)
    ragged(1).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(Error, match=r"holds no statistics: there is no column role$"):
        Scalers.load(tmp_path / "other.parquet")
    other = panel(ragged(1).rename({"heat": "cold"}), Schema(
        "id", "t", ("y", "z"), "1d", static=("area", "kind"), observed="cold"))  # fmt: skip
    with pytest.raises(Error, match=r"^the scalers were not fitted on the observed variable cold$"):
        Scalers.fit(made, "entity").transform(other)
    numbered = panel(ragged(1).with_columns(pl.col("id").str.slice(1).cast(pl.Int64)), SCHEMA)
    said = "^id column id is Int64; the scalers were fitted on String$"
    with pytest.raises(Error, match=said):
        Scalers.fit(made, "entity").transform(numbered)
