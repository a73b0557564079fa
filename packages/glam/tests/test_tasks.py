"""Tasks say what is asked, and what is wrong with them before a model is run."""

import json
from typing import Any

import polars as pl
import pytest

from chapbook.core.errors import Error, TableError
from chapbook.glam.tasks import Example, Task, read_task

SOURCE = pl.DataFrame(
    {
        "land": ["France", "Peru"],
        "first": ["Paris", "Rome"],
        "second": ["Oslo", "Lima"],
        "right": [0, 1],
        "name": ["Paris", "Lima"],
        "all": [["Paris", "Lutetia"], ["Lima"]],
    }
)
CHOICE: dict[str, Any] = {
    "name": "capitals", "source": SOURCE, "prompt": "Capital of {{land}}?\n",
    "choices": ["{{first}}", "{{second}}"], "gold": "right", "metric": "accuracy",
}  # fmt: skip
WRITTEN: dict[str, Any] = {
    "name": "w",
    "source": SOURCE,
    "prompt": "{{land}}:",
    "metric": ["em", "f1"],
}


def test_a_choice_among_templates_shows_the_right_one():
    options = [("Paris", "Oslo"), ("Rome", "Lima")]
    assert Task(**CHOICE).examples == [
        Example("Capital of France?\n", "Paris", options[0], 0),
        Example("Capital of Peru?\n", "Lima", options[1], 1),
    ]


def test_the_right_option_may_be_told_by_its_text_and_options_by_a_column():
    source = SOURCE.with_columns(both=pl.concat_list("first", "second"))
    task = Task(**CHOICE | {"source": source, "choices": "both", "gold": "name"})
    assert task.examples == Task(**CHOICE).examples


def test_references_are_a_text_or_a_list_and_the_first_is_shown():
    one, several = (Task(**WRITTEN, references=column).examples for column in ("name", "all"))
    assert one[0] == Example("France:", "Paris", references=("Paris",))
    assert several[0] == Example("France:", "Paris", references=("Paris", "Lutetia"))
    told = Task(**WRITTEN, references="name", answer="It is {{name|upper}}.").examples
    assert told[1].answer == "It is LIMA."


def test_examples_for_prompts_come_from_the_training_table():
    task = Task(**CHOICE, train=SOURCE[1:])
    assert task.pool == task.examples[1:]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": "{{country}}"}, "names country; the columns are land, first, second, right"),
        ({"prompt": "{{land"}, "the template '{{land' is none"),
        ({"prompt": "{{land.__class__.mro()}}"}, "source, row 0: the template .* cannot be filled"),
        ({"choices": "options"}, "names options; the columns are"),
        ({"choices": ["{{first}}", "{{capital}}"]}, "names capital; the columns are"),
        ({"choices": ["Rome", "Oslo"], "gold": "name"}, "row 0: name is 'Paris', none of the opt"),
        ({"choices": ["{{first}}"]}, "row 1: right is 1, none of the options 'Rome'"),
        ({"choices": ["{{first}}", " "]}, "row 0: option 1 is empty"),
        ({"gold": "gold"}, "names gold; the columns are"),
        ({"gold": None}, "accuracy needs gold"),
        ({"metric": "bleu"}, "unknown metric bleu; known are accuracy, "),
        ({"metric": []}, "no metric is given"),
        ({"metric": "f1"}, "f1 needs references"),
        ({"source": SOURCE[:0]}, "the source has no rows"),
        ({"train": SOURCE.select("land")}, "capitals, train: the template .* names first"),
        ({"source": SOURCE.with_columns(land=pl.lit(None))}, "'land' is undefined"),
        ({"metric": "em", "references": "none"}, "names none; the columns"),
    ],
)
def test_what_cannot_be_asked_is_told(changes, told):
    with pytest.raises(Error, match=told):
        Task(**CHOICE | changes).pool  # noqa: B018
        Task(**CHOICE | changes).examples  # noqa: B018


def test_a_file_says_what_a_task_is(tmp_path):
    SOURCE.write_parquet(tmp_path / "lands.parquet")
    SOURCE.drop("all").write_csv(tmp_path / "train.csv")
    text = """
source: lands.parquet
train: train.csv
prompt: "Capital of {{land}}?\\n"
choices: ["{{first}}", "{{second}}"]
gold: right
metric: accuracy
stop: "."
"""
    (tmp_path / "capitals.yaml").write_text(text)
    task = read_task(tmp_path / "capitals.yaml")
    assert (task.name, task.stop, task.metrics) == ("capitals", ["."], ("accuracy",))
    assert task.examples == task.pool == Task(**CHOICE).examples
    told: dict[str, Any] = {
        "name": "lands", "source": "lands.parquet", "prompt": "{{land}}:", "metric": "em",
        "references": "all", "beam": 1,
    }  # fmt: skip
    (tmp_path / "task.json").write_text(json.dumps(told))
    task = read_task(tmp_path / "task.json")
    assert (task.name, task.beam, task.examples[1].references) == ("lands", 1, ("Lima",))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("source: [", "is no YAML"),
        ("- a", "holds no task"),
        ("source: lands.csv\nprompt: a", "lacks metric"),
        ("source: lands.csv\nquestion: a", "unknown name question; known are name, source"),
        ("prompt: 3", "prompt is not a text$"),
        ("choices: [a, 3]", "choices is not a text or a list of texts"),
        ("beam: wide", "beam is not a whole number"),
        ("source: lands.csv\nprompt: a\nmetric: em\nreferences: b", "references|names b"),
    ],
)
def test_a_file_that_says_no_task_is_told(tmp_path, text, told):
    SOURCE.drop("all").write_csv(tmp_path / "lands.csv")
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(Error, match=told):
        read_task(tmp_path / "task.yaml").examples  # noqa: B018


def test_a_missing_column_names_the_column():
    with pytest.raises(TableError) as caught:
        Task(**{**CHOICE, "prompt": "{{country}}"}).examples  # noqa: B018
    assert caught.value.column == "country"
