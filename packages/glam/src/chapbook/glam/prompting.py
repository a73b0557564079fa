"""Prompts with examples in front of the question, drawn anew for each question."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chapbook.core.errors import Error
from chapbook.glam.language_model import opened
from chapbook.glam.tasks import Example, Task
from chapbook.glam.tokenizer import Tokenizer

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Prompt:
    """What a model reads before it answers.

    Attributes:
        text: The examples that are shown, and the question.
        example: The question.
        dropped: How many examples were left out, the first ones, as all did not fit.
    """

    text: str
    example: Example
    dropped: int


def prompts(
    task: Task,
    tokenizer: Tokenizer,
    context: int,
    *,
    shots: int = 0,
    seed: int = 0,
    limit: int | None = None,
) -> list[Prompt]:
    """Returns a prompt for each question of a task, with K other examples in front of it.

    They are drawn by the seed and the question's place; none asks the question itself.

    Args:
        task: The questions.
        tokenizer: Tells what fits.
        context: How many tokens a model looks at.
        shots: K.
        seed: Of the draw.
        limit: How many questions are asked, the first ones; all if None.

    Raises:
        Error: There are less than K examples to show.

    Reference:
        Du et al., "GLaM" (2022), section 6.1, after Brown et al., "Language Models are Few-Shot
        Learners" (2020), section 2.4.
    """
    same = defaultdict(set)
    for place, example in enumerate(task.pool if shots else ()):
        same[example.prompt].add(place)
    found = []
    for place, example in enumerate(task.examples[:limit]):
        shown = _drawn(task, same[example.prompt], shots, (seed, place))
        written = [each.prompt + task.delimiter + each.answer for each in shown]
        room = context - _room(task, tokenizer, example)
        for dropped in range(len(written) + 1):
            text = SEPARATOR.join([*written[dropped:], example.prompt])
            if dropped == len(written) or len(opened(tokenizer, text)) <= room:
                found.append(Prompt(text, example, dropped))
                break
    return found


def _drawn(task: Task, same: set[int], shots: int, seed: Sequence[int]) -> list[Example]:
    if not shots:
        return []
    if len(task.pool) - len(same) < shots:
        others = len(task.pool) - len(same)
        raise Error(
            f"{task.name}: shots={shots}, but there are {others} other examples to show",
            "take fewer, or give the task a larger train table",
        )
    # As many more as may have to be passed over.
    drawn = np.random.default_rng(seed).choice(
        len(task.pool), min(len(task.pool), shots + len(same)), replace=False
    )
    return [task.pool[place] for place in drawn.tolist() if place not in same][:shots]


def _room(task: Task, tokenizer: Tokenizer, example: Example) -> int:
    """Returns how many tokens the answer may take; the last of an option is never read."""
    if not example.options:
        return task.max_new_tokens + len(tokenizer.encode(task.delimiter.rstrip(" ")))
    return max(len(tokenizer.encode(task.delimiter + option)) for option in example.options) - 1
