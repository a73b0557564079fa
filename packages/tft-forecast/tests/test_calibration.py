import math

import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import Error, TableError
from chapbook.tft_forecast.calibration import Calibration
from chapbook.tft_forecast.metrics import score

LEVELS = {"q0.05": -0.8, "q0.1": -0.6, "q0.5": 0.0, "q0.9": 0.6, "q0.95": 0.8}


def too_narrow(rows, seed, steps=4):
    """Forecasts whose intervals are half as wide as they should be, less so at first steps."""
    rng = np.random.default_rng(seed)
    step = np.tile(np.arange(1, steps + 1, dtype=np.int32), rows // steps)
    size = np.repeat(rng.choice([1.0, 30.0], rows // steps), steps)
    center = 100 + rng.normal(0, 1, rows)
    y = center + size * (1 + step / 2) * rng.normal(0, 1, rows)
    bounds = {name: center + size * share for name, share in LEVELS.items()}
    return pl.DataFrame(
        {"id": np.where(size > 1, "large", "small"), "origin": 0, "step": step, **bounds, "y": y}
    )


@pytest.mark.parametrize("unit", ["target", "width"])
def test_calibrated_intervals_cover_what_they_say_over_20_seeds(unit):
    found = []
    for seed in range(20):
        fitted = Calibration.fit(too_narrow(400, seed), unit=unit)
        found.append(fitted.report(too_narrow(2000, 1000 + seed)).filter(metric="coverage"))
    each = pl.concat(found).group_by("level").agg(pl.col("before", "after").mean()).sort("level")
    assert each["level"].to_list() == [0.8, 0.9]
    assert (each["before"] < 0.6).all()
    for level, after in each.select("level", "after").rows():
        assert level - 0.02 <= after <= level + 0.03


def test_a_correction_is_the_finite_sample_quantile_of_the_scores():
    frame = too_narrow(92, 0)
    fitted = Calibration.fit(frame)
    for step, low, high, correction in fitted.table.select(
        "step", "lower", "upper", "correction"
    ).rows():
        part = frame.filter(step=step)
        y = part["y"].to_numpy()
        scores = np.maximum(part[f"q{low:g}"].to_numpy() - y, y - part[f"q{high:g}"].to_numpy())
        rank = math.ceil(round((len(y) + 1) * (high - low), 9))
        assert correction == np.sort(scores)[rank - 1]
    assert fitted.table.height == 8
    assert fitted.table["rows"].unique().to_list() == [23]


def test_a_correction_shifts_both_bounds_and_nothing_else():
    frame = too_narrow(400, 1).with_columns(note=pl.lit("x"))
    fitted = Calibration.fit(frame, by=("id", "step"))
    found = fitted.apply(frame)
    assert found.columns == frame.columns
    assert found.select("id", "step", "y", "q0.5", "note").equals(
        frame.select("id", "step", "y", "q0.5", "note")
    )
    correction = frame.join(
        fitted.table.filter(lower=0.1), on=["id", "step"], how="left", maintain_order="left"
    )["correction"]
    assert (found["q0.1"] - (frame["q0.1"] - correction)).abs().max() == pytest.approx(0, abs=1e-9)
    assert (found["q0.9"] - (frame["q0.9"] + correction)).abs().max() == pytest.approx(0, abs=1e-9)


def test_relative_corrections_leave_small_series_their_narrow_intervals():
    fit, test = too_narrow(2000, 2), too_narrow(2000, 3)
    widths = {
        unit: score(
            Calibration.fit(fit, unit=unit).apply(test), by=["id"], metrics=["width"]
        ).filter(level=0.8, id="small")["value"].item()
        for unit in ("target", "width")
    }  # fmt: skip
    assert widths["width"] < widths["target"] / 5
    covered = Calibration.fit(fit, unit="width").report(test, by=["id"])
    assert (covered.filter(metric="coverage", level=0.8)["after"] > 0.76).all()


def test_too_wide_intervals_become_narrower_and_never_cross():
    frame = too_narrow(400, 4).with_columns(
        **{name: pl.col("q0.5") + 500 * share for name, share in LEVELS.items() if name != "q0.5"}
    )
    found = Calibration.fit(frame).apply(frame)
    report = Calibration.fit(frame).report(frame)
    width = report.filter(metric="width", level=0.8)
    assert width["after"].item() < width["before"].item() / 3
    for low, high in (("q0.05", "q0.1"), ("q0.1", "q0.5"), ("q0.5", "q0.9"), ("q0.9", "q0.95")):
        assert (found[low] <= found[high]).all()


def test_a_group_with_too_few_rows_says_how_many_are_needed():
    frame = too_narrow(400, 5)
    short = frame.filter((pl.col("step") != 2) | (pl.int_range(pl.len()) < 12))
    with pytest.raises(Error, match=r"step=2 has 3 rows with y; the 80% interval needs 4 or more"):
        Calibration.fit(short.drop("q0.05", "q0.95"))
    with pytest.raises(Error, match=r"the frame has 8 rows with y; the 90% interval needs 9"):
        Calibration.fit(frame.head(8), by=())
    assert Calibration.fit(frame.head(9), by=()).table["rows"].to_list() == [9, 9]
    with pytest.raises(Error, match="needs 4 or more"):
        Calibration.fit(frame.with_columns(y=pl.lit(None, pl.Float64)))


def test_rows_without_y_do_not_count_and_rows_without_forecast_stay_so():
    frame = too_narrow(400, 6)
    holed = frame.with_columns(pl.when(pl.int_range(pl.len()) > 99).then("y").alias("y"))
    fitted = Calibration.fit(holed)
    assert fitted.table.equals(Calibration.fit(frame[100:]).table)
    future = frame.drop("y").with_columns(pl.lit(None, pl.Float64).alias("q0.1"))
    assert fitted.apply(future)["q0.1"].null_count() == 400


def test_a_saved_calibration_is_the_same(tmp_path):
    frame = too_narrow(400, 7)
    fitted = Calibration.fit(frame, by=("id", "step"), unit="width")
    fitted.save(tmp_path / "calibration.parquet")
    again = Calibration.load(tmp_path / "calibration.parquet")
    assert again.by == ["id", "step"]
    assert again.apply(frame).equals(fitted.apply(frame))


def test_what_cannot_be_calibrated_is_named():
    frame = too_narrow(400, 8)
    fitted = Calibration.fit(frame)
    with pytest.raises(Error, match="has no rows of step=9"):
        fitted.apply(frame.with_columns(step=pl.lit(9, pl.Int32)))
    with pytest.raises(Error, match=r'no column "q0\.05"'):
        fitted.apply(frame.drop("q0.05"))
    with pytest.raises(TableError, match="no two quantiles mirror"):
        Calibration.fit(frame.select("step", "y", "q0.5", "q0.9"))
    with pytest.raises(Error, match='no column "store"'):
        Calibration.fit(frame, by=("store",))
    flat = frame.with_columns(**dict.fromkeys(LEVELS, pl.col("q0.5")))
    with pytest.raises(Error, match="are equal in too many rows"):
        Calibration.fit(flat, unit="width")
    with pytest.raises(Error, match='unit="share" is none of target, width'):
        Calibration.fit(frame, unit="share")
