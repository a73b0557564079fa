"""The probe finds no leak where there is none, and each kind of leak by name."""

import copy
import dataclasses

import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.tft_forecast import leakage
from chapbook.tft_forecast.leakage import probe


def test_an_honest_model_passes_every_check(trained, table):
    found = probe(trained, table)
    assert [each.passed for each in found] == [True] * 6
    assert found[0].check.startswith("targets and observed columns after the origin do not")


def test_a_forecast_that_sees_ahead_is_found_out(trained, table, monkeypatch):
    honest = leakage._forecast

    def peeking(forecaster, whole, pairs):
        found = honest(forecaster, whole, pairs)
        # As if warmth, the first observed column after the target, were known one step ahead.
        return found + whole.observed.real[pairs[0], pairs[1] + 1, 1][:, None, None, None]

    monkeypatch.setattr(leakage, "_forecast", peeking)
    found = probe(trained, table, origins=["2024-06-05"])[0]
    assert found.passed is False and found.columns == ("warmth",)


def test_a_known_column_that_is_never_used_is_a_warning(trained, table, monkeypatch):
    monkeypatch.setattr(leakage, "_forecast", lambda f, whole, pairs: pairs[0] * 1.0)
    found = probe(trained, table, origins=["2024-06-05"])[1]
    assert found.passed is None and set(found.columns) == {"weekday", "promo"}


def test_an_origin_in_the_training_part_is_a_leak(trained, table):
    found = probe(trained, table, origins=["2024-04-01"])[-1]
    assert found.passed is False and "were trained on" in found.detail


def test_statistics_of_later_rows_are_a_leak(trained, table):
    late = copy.copy(trained)
    frame = trained.scalers.frame.with_columns(fitted_until=pl.date(2024, 6, 30))
    late.scalers = dataclasses.replace(trained.scalers, frame=frame)
    found = probe(late, table, origins=["2024-06-05"])[2]
    assert found.passed is False and "scalers have seen 2024-06-30" in found.detail


def test_a_table_that_ends_with_the_training_is_refused(trained, table):
    with pytest.raises(Error, match="does not go on for 7 steps"):
        probe(trained, table.filter(pl.col("date") < pl.date(2024, 5, 10)))
