"""Scores are those that the definitions give, question by question."""

import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.glam.evaluating import bootstrap, evaluate
from chapbook.glam.generating import Decoding, complete
from chapbook.glam.tasks import CHOSEN, Task

N = 12
ROWS = pl.DataFrame(
    {
        "q": ["abcdefghijkl"[n] * (n + 1) for n in range(N)],
        "right": [n % 3 for n in range(N)],
        "long": ["x" * 50] * N,
    }
)
OPTIONS = ["it", "ïx", "up"]  # of which this model likes different ones
TASK = Task(
    name="numbers", source=ROWS, prompt="{{q}}:", choices=OPTIONS, gold="right", metric=CHOSEN
)


@pytest.fixture(scope="module")
def scores(model, tokenizer):
    return evaluate(model, tokenizer, [TASK], shots=(0, 1), seed=3)


def test_each_metric_chooses_by_its_own_scale(scores, next_logs):
    def log(context, option):
        before, after = [256, *context.encode()], list(f" {option}".encode())
        logs = next_logs((before + after)[:-1])[-len(after) :]
        return sum(each[token] for each, token in zip(logs, after, strict=True))

    right: dict[str, int] = dict.fromkeys(CHOSEN[:-1], 0)
    classes = []
    for question, gold, _ in ROWS.iter_rows():
        totals = np.array([log(f"{question}:", option) for option in OPTIONS])
        alone = np.array([log("Answer:", option) for option in OPTIONS])
        scales = {
            "accuracy": totals,
            "accuracy_per_token": totals / [3, 4, 3],
            "accuracy_per_byte": totals / [2, 3, 2],
            "accuracy_unconditional": totals - alone,
        }
        for metric, scale in scales.items():
            right[metric] += scale.argmax() == gold
        classes.append((totals.argmax(), gold))
    zero = scores.filter(pl.col("shots") == 0)
    assert zero["metric"].to_list() == list(CHOSEN)
    shares = [count / N for count in right.values()]
    each = []
    for label in range(3):
        hits = sum(a == b == label for a, b in classes)
        chosen, gold = (sum(pair[side] == label for pair in classes) for side in (0, 1))
        precision, recall = hits / max(chosen, 1), hits / gold
        each.append(2 * precision * recall / (precision + recall) if hits else 0)
    np.testing.assert_allclose(zero["value"] / 100, [*shares, float(np.mean(each))])
    assert len(set(right.values())) == 4


def test_a_row_tells_task_shots_and_questions(scores):
    assert scores.columns == [
        "task", "shots", "metric", "value", "n", "stderr", "shots_dropped", "truncated",
    ]  # fmt: skip
    assert scores["shots"].to_list() == [0] * 5 + [1] * 5
    assert set(scores["task"]) == {"numbers"}
    assert set(scores["n"]) == {N}
    assert scores["truncated"].sum() == scores["shots_dropped"].sum() == 0


def test_an_option_that_truncates_the_prompt_is_counted(model, tokenizer):
    task = Task(
        name="long", source=ROWS, prompt="{{q}}{{long}}", choices=OPTIONS, gold="right",
        metric="accuracy",
    )  # fmt: skip
    found = evaluate(model, tokenizer, [task], shots=(2,), limit=5).row(0, named=True)
    assert (found["truncated"], found["shots_dropped"], found["n"]) == (5, 10, 5)


def test_what_the_model_writes_is_right_where_it_is_the_reference(model, tokenizer):
    prompts = [f"{q}:" for q in ROWS["q"]]
    written = complete(model, tokenizer, prompts, Decoding(4, beam=2, stop=("\n",)))
    texts = [f"the {each.text.strip()}!" if n % 4 else "zzz qqq" for n, each in enumerate(written)]
    source = ROWS.with_columns(answer=pl.Series(texts))
    task = Task(
        name="written", source=source, prompt="{{q}}:", references="answer",
        metric=("em", "f1"), max_new_tokens=4, beam=2,
    )  # fmt: skip
    found = evaluate(model, tokenizer, [task])
    assert found["value"].to_list() == pytest.approx([75.0, 75.0])


def test_the_bootstrap_gives_the_standard_error_of_a_mean():
    values = np.repeat([0.0, 1.0], [300, 100])
    expected = np.sqrt(0.25 * 0.75 / 400)
    # A deviation of 1,000 means is known to 1 / sqrt(2,000), 2.2%.
    assert bootstrap(values, seed=1) == pytest.approx(expected, rel=0.09)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(np.ones(5)) == 0


def test_what_cannot_be_asked_is_told(model, tokenizer):
    with pytest.raises(Error, match=r"shots=\[-1\], limit=None: shots start at 0"):
        evaluate(model, tokenizer, [TASK], shots=(-1,))
    with pytest.raises(Error, match="shots=12, but there are 11 other examples"):
        evaluate(model, tokenizer, [TASK], shots=(12,))
    assert evaluate(model, tokenizer, []).height == 0
    mixed = Task(
        name="t", source=ROWS, prompt="{{q}}", choices=["{{q}}", "b", "c"], gold="right",
        metric="class_f1",
    )  # fmt: skip
    with pytest.raises(Error, match="t: class_f1 needs the same options in every row"):
        evaluate(model, tokenizer, [mixed], limit=2)
