"""Zero-, one- and few-shot scores of tasks."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from chapbook.core.errors import Error
from chapbook.glam.answers import class_f1, exact_match, f1
from chapbook.glam.generating import Decoding, complete
from chapbook.glam.language_model import LanguageModel
from chapbook.glam.prompting import Prompt, prompts
from chapbook.glam.scoring import LogLikelihood, log_likelihoods
from chapbook.glam.tasks import CHOSEN, WRITTEN, Task
from chapbook.glam.tokenizer import Tokenizer

RESAMPLES = 1000
UNCONDITIONAL = "Answer:"  # the context that tells how likely an option is by itself

# Of each question; for `class_f1` the class that is chosen and the right one.
Values = dict[str, Float[np.ndarray, "n ..."]]
_COMPARED: Mapping[str, Callable] = {"em": exact_match, "f1": f1}


def evaluate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    *,
    shots: Sequence[int] = (0,),
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 16,
    batch_tokens: int = 8192,
) -> pl.DataFrame:
    """Asks a model all questions of some tasks, and counts right answers.

    With the log-likelihood `l_o = log P(option | prompt)`, a model chooses the option whose
    - `accuracy`: l_o is highest,
    - `accuracy_per_token`: l_o / tokens is highest,
    - `accuracy_per_byte`: l_o / bytes is highest, those of the option without the delimiter,
    - `accuracy_unconditional`: l_o - log P(option | "Answer:") is highest,
    - `class_f1`: l_o is highest, and the mean is over options, of their F1 as classes.

    Other answers are written, by beam search up to a stop text, and compared by `em` and `f1`.

    Args:
        model: Causal.
        tokenizer: The model's.
        tasks: What is asked.
        shots: Numbers of examples in front of a question; each is an evaluation of its own.
        seed: Of the examples, and of the bootstrap.
        limit: Questions of each task, the first ones; all if None.
        batch_size: Answers that are written together.
        batch_tokens: Tokens that are scored together.

    Returns:
        A row for each task, number of shots and metric: `value` from 0 to 100, `n` questions,
        `stderr` of the value (bootstrap, 1,000 resamples), `shots_dropped` (examples that were
        left out as they did not fit) and `truncated` (questions that lost tokens themselves).

    Raises:
        Error: A number of shots or the limit is out of its range, or a task cannot be asked so.

    Reference:
        Du et al., "GLaM" (2022), section 6.1; the last metric: Brown et al., "Language Models are
        Few-Shot Learners" (2020), section 2.4.
    """
    if min(shots, default=0) < 0 or (limit is not None and limit < 1):
        raise Error(f"shots={list(shots)}, limit={limit}: shots start at 0, the limit at 1")
    rows = []
    for task in tasks:
        for count in shots:
            asked = prompts(
                task, tokenizer, model.config.context, shots=count, seed=seed, limit=limit
            )
            values: Values = {}
            truncated = np.zeros(len(asked), bool)
            if set(task.metrics) & set(CHOSEN):
                values |= _choices(model, tokenizer, task, asked, batch_tokens, truncated)
            if set(task.metrics) & set(WRITTEN):
                values |= _answers(model, tokenizer, task, asked, batch_size, truncated)
            dropped = sum(each.dropped for each in asked)
            rows += [
                {
                    "task": task.name, "shots": count, "metric": metric,
                    "value": 100 * _measure(values[metric]), "n": len(asked),
                    "stderr": 100 * bootstrap(values[metric], seed=seed),
                    "shots_dropped": dropped, "truncated": int(truncated.sum()),
                }
                for metric in task.metrics
            ]  # fmt: skip
    schema = {
        "task": pl.String, "shots": pl.Int64, "metric": pl.String, "value": pl.Float64,
        "n": pl.Int64, "stderr": pl.Float64, "shots_dropped": pl.Int64, "truncated": pl.Int64,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def _choices(
    model: LanguageModel,
    tokenizer: Tokenizer,
    task: Task,
    asked: Sequence[Prompt],
    batch_tokens: int,
    truncated: np.ndarray,
) -> Values:
    """Returns which questions are answered rightly; tells whose prompt an option truncated."""
    pairs = [(p.text, task.delimiter + option) for p in asked for option in p.example.options]
    scores = iter(log_likelihoods(model, tokenizer, pairs, batch_tokens=batch_tokens))
    by_itself: dict[str, LogLikelihood] = {}
    if "accuracy_unconditional" in task.metrics:
        options = sorted({option for _, option in pairs})
        context = [(UNCONDITIONAL, option) for option in options]
        alone = log_likelihoods(model, tokenizer, context, batch_tokens=batch_tokens)
        by_itself = dict(zip(options, alone, strict=True))
    right: Values = {m: np.zeros(len(asked)) for m in CHOSEN if m in task.metrics}
    if "class_f1" in right:
        right["class_f1"] = np.zeros((len(asked), 2))
        if len({prompt.example.options for prompt in asked}) > 1:
            raise Error(f"{task.name}: class_f1 needs the same options in every row")
    for place, prompt in enumerate(asked):
        options = prompt.example.options
        found = [next(scores) for _ in options]
        truncated[place] |= any(each.truncated for each in found)
        totals = np.array([each.total for each in found])
        ranked = {
            "accuracy": totals,
            "accuracy_per_token": totals / [each.tokens for each in found],
            "accuracy_per_byte": totals / [len(option.encode()) for option in options],
        }
        if by_itself:
            prior = [by_itself[task.delimiter + option].total for option in options]
            ranked["accuracy_unconditional"] = totals - prior
        for metric, values in right.items():
            if metric == "class_f1":
                values[place] = totals.argmax(), prompt.example.gold
            else:
                values[place] = ranked[metric].argmax() == prompt.example.gold
    return right


def _answers(
    model: LanguageModel,
    tokenizer: Tokenizer,
    task: Task,
    asked: Sequence[Prompt],
    batch_size: int,
    truncated: np.ndarray,
) -> Values:
    """Returns how right the written answers are; tells which prompts were truncated."""
    how = Decoding(task.max_new_tokens, task.beam, stop=tuple(task.stop))
    # The space between both belongs to the answer's first token.
    texts = [(prompt.text + task.delimiter).rstrip(" ") for prompt in asked]
    found = complete(model, tokenizer, texts, how, batch_size=batch_size)
    truncated |= [each.truncated > 0 for each in found]
    return {
        metric: np.array(
            [
                _COMPARED[metric](each.text, prompt.example.references)
                for each, prompt in zip(found, asked, strict=True)
            ]
        )
        for metric in WRITTEN
        if metric in task.metrics
    }


def _measure(values: Float[np.ndarray, "n ..."]) -> float:
    """Returns the mean of values, or the F1 of classes."""
    return float(values.mean()) if values.ndim == 1 else class_f1(*values.T.astype(int))


def bootstrap(values: Float[np.ndarray, "n ..."], *, seed: int = 0) -> float:
    """Returns the standard deviation of the mean, or of the F1, over resamples of the values.

    Args:
        values: One for each question, or its chosen class and the right one.
        seed: Of the resamples, of which there are 1,000.

    Reference:
        Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979).
    """
    rng, n = np.random.default_rng(seed), len(values)
    return float(np.std([_measure(values[rng.integers(n, size=n)]) for _ in range(RESAMPLES)]))
