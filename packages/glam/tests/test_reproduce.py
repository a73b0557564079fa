"""The claims that need no training hold, and how the others are counted."""

import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.glam.reproduce import FULL, QUICK, _reached, _trainings, reproduce


def test_the_papers_sizes_and_energy_are_reproduced(tmp_path):
    reproduce(tmp_path / "run", claims=["sizes"], quiet=True)
    assert pl.read_csv(tmp_path / "run" / "sizes.csv").height == 22
    assert (tmp_path / "run" / "results.json").exists()


def test_a_claim_that_there_is_not_is_an_error(tmp_path):
    with pytest.raises(Error, match="there is no claim size; there are sizes, "):
        reproduce(tmp_path / "run", claims=["size"])


def test_a_level_is_reached_between_two_points():
    curve = pl.DataFrame({"tokens": [100, 200, 300], "held": [3.0, 2.0, 1.9]})
    assert _reached(curve, 2.5) == pytest.approx(150)
    assert _reached(curve, 3.5) == 100
    assert _reached(curve, 1.0) == float("inf")


def test_a_budget_is_shared_by_all_trainings():
    assert _trainings(["sizes", "stability"], QUICK, False) == 0
    assert _trainings(["sparse-vs-dense", "few-shot"], QUICK, False) == 2
    assert _trainings(["sparse-vs-dense", "quality", "experts"], QUICK, False) == 4
    # Three seeds of seven models, and two rates more for the sparse and the dense one.
    assert _trainings(["sparse-vs-dense", "quality", "experts"], FULL, True) == 7 * 3 + 2 * 2
    assert _trainings(["quality"], FULL, True) == 2 * 3 + 3


def test_tokens_and_a_budget_exclude_each_other(tmp_path):
    with pytest.raises(Error, match="both tokens and a budget"):
        reproduce(tmp_path / "run", tokens=1000, budget=3)
