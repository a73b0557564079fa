"""Random search with successive halving, the trainings themselves replaced by a formula."""

import math
from typing import Any

import pytest

from chapbook.core.errors import Error
from chapbook.tft_forecast import tuning as module
from chapbook.tft_forecast.tuning import SPACE, tune

SPACE_SMALL = {"hidden": [8, 16, 32], "learning_rate": [1e-4, 1e-3, 1e-2]}


@pytest.fixture
def trainings(monkeypatch):
    """Loss |log10(rate) + 3| + 1 / hidden, less the longer it trains."""
    done = []

    def trained(schema, train, config, steps, seed, quiet, options):
        done.append((config.hidden, config.learning_rate, steps))
        return abs(math.log10(config.learning_rate) + 3) + 1 / config.hidden + 1 / steps

    monkeypatch.setattr(module, "_trained", trained)
    return done


def test_the_best_trials_train_longest_and_all_stay_in_the_table(schema, tmp_path, trainings):
    found = tune(schema, None, tmp_path, space=SPACE_SMALL, trials=8, steps=800, halvings=3)
    assert found.height == 8
    assert sorted(found["steps"].to_list()) == [100] * 4 + [200] * 2 + [400] + [800]
    best = found.row(0, named=True)
    assert best["steps"] == 800 and best["learning_rate"] == 1e-3
    assert len(trainings) == 8 + 4 + 2 + 1


def test_a_search_that_was_killed_repeats_nothing(schema, tmp_path, trainings, monkeypatch):
    whole = tune(schema, None, tmp_path / "a", space=SPACE_SMALL, trials=4, steps=40, halvings=1)
    count, honest = len(trainings), module._trained

    def dying(*arguments):
        if len(trainings) == count + 3:
            raise KeyboardInterrupt
        return honest(*arguments)

    again = {"space": SPACE_SMALL, "trials": 4, "steps": 40, "halvings": 1}
    monkeypatch.setattr(module, "_trained", dying)
    with pytest.raises(KeyboardInterrupt):
        tune(schema, None, tmp_path / "b", **again)
    monkeypatch.setattr(module, "_trained", honest)
    assert tune(schema, None, tmp_path / "b", **again).equals(whole)
    assert len(trainings) == 2 * count


def test_another_search_in_the_folder_and_unknown_fields_are_refused(schema, tmp_path, trainings):
    tune(schema, None, tmp_path, space=SPACE_SMALL, trials=2, steps=4, halvings=0)
    with pytest.raises(Error, match="holds another search"):
        tune(schema, None, tmp_path, space=SPACE_SMALL, trials=3, steps=4, halvings=0)
    with pytest.raises(Error, match="unknown field hiden"):
        tune(schema, None, tmp_path / "b", space={"hiden": [1]})
    number: Any = 8
    with pytest.raises(Error, match="no list of values for hidden"):
        tune(schema, None, tmp_path / "b", space={"hidden": number})


def test_the_papers_space_draws_valid_configurations(schema, tmp_path, trainings):
    found = tune(schema, None, tmp_path, trials=60, steps=1, halvings=0)
    assert all(set(found[name]) <= set(values) for name, values in SPACE.items())
