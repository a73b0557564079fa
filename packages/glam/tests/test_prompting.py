"""Prompts show other examples, drawn anew for each question, as many as fit."""

import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.glam.prompting import prompts
from chapbook.glam.tasks import Task

ROWS = pl.DataFrame({"q": [f"q{n}" for n in range(30)], "a": [f"a{n}" for n in range(30)]})
TASK = Task(name="t", source=ROWS, prompt="{{q}}:", references="a", metric="em", max_new_tokens=8)


def shown(prompt):
    return prompt.text.split("\n\n")[:-1]


def test_examples_stand_before_the_question_with_an_empty_line_between(tokenizer):
    found = prompts(TASK, tokenizer, 1000, shots=2)
    for number, each in enumerate(found):
        *examples, question = each.text.split("\n\n")
        assert question == f"q{number}:"
        assert len(set(examples)) == 2
        for example in examples:
            place = example.removeprefix("q").partition(":")[0]
            assert example == f"q{place}: a{place}"
            assert int(place) != number
    assert prompts(TASK, tokenizer, 1000)[3].text == "q3:"


def test_a_draw_depends_on_the_seed_and_the_question_alone(tokenizer):
    one = prompts(TASK, tokenizer, 1000, shots=3, seed=1)
    assert prompts(TASK, tokenizer, 1000, shots=3, seed=1, limit=5) == one[:5]
    other = prompts(TASK, tokenizer, 1000, shots=3, seed=2)
    assert sum(shown(a) != shown(b) for a, b in zip(one, other, strict=True)) > 20
    assert len({tuple(shown(each)) for each in one}) > 20


def test_all_others_are_drawn_alike_often(tokenizer):
    counts = dict.fromkeys(range(30), 0)
    for seed in range(100):
        for example in shown(prompts(TASK, tokenizer, 1000, shots=5, seed=seed, limit=1)[0]):
            counts[int(example.removeprefix("q").partition(":")[0])] += 1
    assert counts.pop(0) == 0
    # 500 draws among 29: about 17 each, with a standard deviation of 4.
    assert all(abs(count - 500 / 29) < 4 * 4 for count in counts.values())


def test_a_training_table_that_holds_the_question_does_not_show_it(tokenizer):
    task = Task(
        name="t", source=ROWS[:2], train=ROWS[:3], prompt="{{q}}:", references="a", metric="em"
    )
    for number, each in enumerate(prompts(task, tokenizer, 1000, shots=2)):
        assert not any(example.startswith(f"q{number}:") for example in shown(each))
    with pytest.raises(Error, match="shots=3, but there are 2 other examples"):
        prompts(task, tokenizer, 1000, shots=3)


def test_examples_that_do_not_fit_are_left_out_whole_from_the_first_on(tokenizer):
    whole = prompts(TASK, tokenizer, 1000, shots=4, limit=3)
    # Room for an end and 26 tokens besides the 8 of the answer.
    cut = prompts(TASK, tokenizer, 35, shots=4, limit=3)
    for all_of, some in zip(whole, cut, strict=True):
        assert some.text == "\n\n".join(all_of.text.split("\n\n")[some.dropped :])
        assert 0 < some.dropped < 4
        assert len(some.text) <= 26
        longer = all_of.text.split("\n\n")[some.dropped - 1 :]
        assert len("\n\n".join(longer)) > 26


def test_the_longest_option_needs_its_room(tokenizer):
    task = Task(
        name="t", source=ROWS, prompt="{{q}}:", choices=["{{a}}", "x" * 9], gold="a",
        metric="accuracy",
    )  # fmt: skip
    # The last of 10 tokens, the space among them, is never read.
    cut = prompts(task, tokenizer, 1 + 26 + 9, shots=4, limit=3)
    assert all(len(each.text) <= 26 for each in cut)
    assert any(len(each.text) > 20 for each in cut)


def test_a_question_that_fits_alone_no_more_keeps_no_example(tokenizer):
    found = prompts(TASK, tokenizer, 9, shots=2, limit=1)[0]
    assert (found.text, found.dropped) == ("q0:", 2)
