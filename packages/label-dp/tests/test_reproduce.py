"""The reproduction's frame: what it writes, what it says, and that its arithmetic is right."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
import typer

from chapbook.core.errors import Error
from chapbook.label_dp import reproduce
from chapbook.label_dp.data import Split
from chapbook.label_dp.dp_sgd import DPSGD


@pytest.fixture
def films(monkeypatch):
    """A few hundred ratings in place of the fetched ones: users who like half of the films."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 12, 400), rng.integers(0, 10, 400)
    rating = np.clip(3 + 2 * ((user + item) % 2) - rng.integers(0, 3, 400), 1, 5)
    table = pl.DataFrame({"user": user, "item": item, "rating": rating})
    monkeypatch.setattr(reproduce, "movielens_100k", lambda: table)


def test_the_exact_parts_hold_and_leave_tables_pictures_and_results(tmp_path, films):
    run = tmp_path / "run"
    reproduce.reproduce(run, parts=("regression", "mechanism"), quiet=True)
    found = json.loads((run / "results.json").read_text())["claims"]
    assert all(row["held"] for row in found)
    ours = {row["claim"]: row["ours"] for row in found}
    assert ours["RR among ten classes is right, epsilon ln 9"] == pytest.approx(0.5)
    assert ours["RRWithPrior, prior of two classes, is right"] == pytest.approx(0.9)
    assert ours["RRWithPrior over the published code's k, largest gain"] > 0.07
    for name in ("regression", "mechanism"):
        assert (run / "plots" / f"{name}.png").stat().st_size > 10_000
        assert (run / "plots" / f"{name}.csv").exists()
        assert (run / f"{name}.parquet").exists()
    table = pl.read_parquet(run / "regression.parquet")
    for _, part in table.group_by("data", "mechanism", maintain_order=True):
        assert part["squared_error"].is_sorted(descending=True), "more budget, less noise"


def test_a_claim_that_does_not_hold_exits_with_three(tmp_path, monkeypatch):
    claim = ("never", None, 1.0, "", 2.0, None)
    monkeypatch.setitem(reproduce.PARTS, "mechanism", lambda *_: [claim])
    with pytest.raises(typer.Exit) as ended:
        reproduce.reproduce(tmp_path / "run", parts=("mechanism",), quiet=True)
    assert ended.value.exit_code == 3
    assert not json.loads((tmp_path / "run/results.json").read_text())["claims"][0]["held"]


def test_an_unknown_part_is_named(tmp_path):
    with pytest.raises(Error, match="part pictures is none of images, ratings"):
        reproduce.reproduce(tmp_path / "run", parts=("pictures",))
    assert not (tmp_path / "run").exists()


def test_the_noise_of_dp_sgd_keeps_its_budget():
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    settings = DPSGD(1.0, steps=50, batch_size=64)
    noise = settings.noise_multiplier(1000)
    sampled = dp_accounting.PoissonSampledDpEvent(0.064, dp_accounting.GaussianDpEvent(noise))
    spent = RdpAccountant().compose(sampled, 50).get_epsilon(1e-5)
    assert 0.98 < spent <= 1.0 + 1e-6
    assert DPSGD(float("inf")).noise_multiplier(1000) == 0
    assert DPSGD(4.0, steps=50, batch_size=64).noise_multiplier(1000) < noise


@pytest.mark.slow
def test_every_method_runs_at_every_epsilon(tmp_path, monkeypatch, films):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 400).astype(np.int32)
    x = (rng.normal(size=(400, 8, 8, 1)) + y[:, None, None, None]).astype(np.float32)
    monkeypatch.setattr(reproduce, "mnist_5k", lambda: Split(x[:300], y[:300], x[300:], y[300:]))
    for name in ("IMAGES", "RATINGS"):
        quick = dataclasses.replace(getattr(reproduce, name), steps=2)
        monkeypatch.setattr(reproduce, name, quick)
    with pytest.raises(typer.Exit):  # two steps teach too little for the claims to hold
        reproduce.reproduce(tmp_path / "run", parts=("images", "ratings"), quiet=True)
    table = pl.read_parquet(tmp_path / "run/images.parquet")
    assert len(table) == 8 * 4 + 1
    assert (table["seeds"] == 3).all()
    assert (tmp_path / "run/plots/images.png").exists()
