r"""What a model is asked: a table, templates, right answers, and how answers are measured.

A task's file, in YAML or JSON; paths start from its folder:

    source: capitals.csv                  # or parquet, jsonl, ...
    train: more_capitals.csv              # examples for prompts; the source's others if left out
    prompt: "Q: What is the capital of {{country}}?\nA:"
    choices: ["{{first}}", "{{second}}"]  # templates, or the name of a column of lists
    gold: right                           # a column: place of the right choice from 0, or its text
    metric: [accuracy, accuracy_per_byte]

A task without choices has `references: column` instead, texts or lists of texts, and is measured by
`em` or `f1`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import polars as pl
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chapbook.core.errors import Error, TableError
from chapbook.core.tables import read_table

CHOSEN = (
    "accuracy", "accuracy_per_token", "accuracy_per_byte", "accuracy_unconditional", "class_f1",
)  # fmt: skip
WRITTEN = ("em", "f1")

# What is written is no page of HTML, and ends as the template does.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
)


@dataclass(frozen=True)
class Example:
    """One row of a task, in words.

    Attributes:
        prompt: What comes before the answer.
        answer: What a prompt shows if this is one of its examples.
        options: The answers to choose from.
        gold: Which of them is right; None without options.
        references: Right answers in other tasks.
    """

    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    gold: int | None = None
    references: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Questions with right answers.

    Attributes:
        name: Of the task.
        source: A row for each question.
        prompt: Template of the question, in which `{{column}}` stands for the row's value.
        metric: `accuracy`, `accuracy_per_token`, `accuracy_per_byte`, `accuracy_unconditional`,
            `class_f1`, `em`, `f1`, or several.
        train: Further rows, shown in prompts as examples; other rows of the source if None.
        choices: Templates of the options, or the column of lists that holds them.
        gold: The column that tells the right option, by its place from 0 or by its text.
        references: The column of the right answers, texts or lists of texts.
        answer: Template of the answer that an example shows; the right option, or the first
            reference, if None.
        delimiter: Between prompt and answer.
        max_new_tokens: Of an answer that is written.
        beam: Hypotheses of the search for it; 1 takes the most likely tokens.
        stop: Texts that end it.

    Raises:
        Error: A metric is unknown or lacks what it compares, or a template is none.
        TableError: A template names a column that is not there.
    """

    name: str
    source: pl.DataFrame
    prompt: str
    metric: str | Sequence[str]
    train: pl.DataFrame | None = None
    choices: str | Sequence[str] | None = None
    gold: str | None = None
    references: str | None = None
    answer: str | None = None
    delimiter: str = " "
    max_new_tokens: int = 32
    beam: int = 4
    stop: Sequence[str] = ("\n",)

    def __post_init__(self):
        for metric in self.metrics:
            if metric not in CHOSEN + WRITTEN:
                known = ", ".join(CHOSEN + WRITTEN)
                raise Error(f"{self.name}: unknown metric {metric}; known are {known}")
            needs = ("choices", "gold") if metric in CHOSEN else ("references",)
            for need in needs:
                if getattr(self, need) is None:
                    raise Error(f"{self.name}: {metric} needs {need}")
        if not self.metrics:
            raise Error(f"{self.name}: no metric is given")
        if not self.source.height:
            raise TableError(f"{self.name}: the source has no rows")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of its metrics."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @functools.cached_property
    def examples(self) -> list[Example]:
        """The questions."""
        return self._read(self.source, "source")

    @functools.cached_property
    def pool(self) -> list[Example]:
        """What prompts show: examples of the training table, or of the source."""
        return self.examples if self.train is None else self._read(self.train, "train")

    def _read(self, table: pl.DataFrame, place: str) -> list[Example]:
        where = f"{self.name}, {place}"
        write = functools.partial(_template, columns=table.columns, where=where)
        prompt, options = write(self.prompt), self._options(table, write, where)
        answer = None if self.answer is None else write(self.answer)
        for column in (self.gold, self.references):
            if column is not None:
                _check_column(column, table.columns, where)
        found = []
        for number, values in enumerate(table.iter_rows(named=True)):
            at = f"{where}, row {number}"
            given = options(values, at)
            gold = None if self.gold is None else _gold(values[self.gold], given, at, self.gold)
            right = [] if self.references is None else list(_texts(values[self.references], at))
            if answer is not None:
                shown = answer(values, at)
            else:
                shown = right[0] if gold is None else given[gold]
            found.append(Example(prompt(values, at), shown, given, gold, tuple(right)))
        return found

    def _options(
        self, table: pl.DataFrame, write: Callable, where: str
    ) -> Callable[[Mapping[str, Any], str], tuple[str, ...]]:
        choices = self.choices
        if choices is None:
            return lambda values, at: ()
        if isinstance(choices, str):
            _check_column(choices, table.columns, where)
            return lambda values, at: _options(_texts(values[choices], at), at)
        templates = [write(choice) for choice in choices]
        return lambda values, at: _options([write(values, at) for write in templates], at)


def read_task(path: str | Path) -> Task:
    """Reads a task's file.

    Args:
        path: YAML or JSON with the attributes of a `Task`, of which `source` and `train` are
            paths of tables, from the folder of the file on. `name` is the file's if left out.

    Raises:
        Error: The file does not say what a task is.
        TableError: A table does not hold what the task names.
        OSError: A file cannot be read.
    """
    path = Path(path)
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise Error(f"{path} is no YAML: {problem}") from None
    fields = {field.name: field for field in dataclasses.fields(Task)}
    if not isinstance(told, dict):
        raise Error(f"{path} holds no task; it needs source, prompt and metric")
    for name, value in told.items():
        if name not in fields:
            raise Error(f"{path}: unknown name {name}; known are {', '.join(fields)}")
        number = name in ("max_new_tokens", "beam")
        lists = name in ("metric", "choices", "stop")
        parts = value if lists and isinstance(value, list) else [value]
        if not all(type(part) is (int if number else str) for part in parts):
            wanted = "a whole number" if number else "a text"
            raise Error(f"{path}: {name} is not {wanted}" + (" or a list of texts" * lists))
    for name in ("source", "prompt", "metric"):
        if name not in told:
            raise Error(f"{path} lacks {name}")
    for name in ("source", "train"):
        if name in told:
            told[name] = read_table(path.parent / told[name])
    if isinstance(told.get("stop"), str):
        told["stop"] = [told["stop"]]
    fitting: dict[str, Any] = {"name": path.stem} | told
    return Task(**fitting)


def _template(
    text: str, *, columns: Sequence[str], where: str
) -> Callable[[Mapping[str, Any], str], str]:
    """Returns what fills a template with the values of a row, whose place errors name."""
    try:
        names = jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
        made = _ENVIRONMENT.from_string(text)
    except jinja2.TemplateError as problem:
        raise Error(f"{where}: the template {text!r} is none: {problem}") from None
    for name in sorted(names):
        _check_column(name, columns, f"{where}: the template {text!r}")

    def filled(values: Mapping[str, Any], at: str) -> str:
        try:
            # A cell without a value is undefined, so that no prompt says None.
            return made.render({n: values[n] for n in names if values[n] is not None})
        except (jinja2.TemplateError, TypeError, ValueError) as problem:
            raise Error(f"{at}: the template {text!r} cannot be filled: {problem}") from None

    return filled


def _check_column(name: str, columns: Sequence[str], where: str) -> None:
    if name not in columns:
        known = ", ".join(columns)
        raise TableError(f"{where} names {name}; the columns are {known}", column=name)


def _texts(value: Any, at: str) -> tuple[str, ...]:
    """Returns the texts of a cell: one, or a list."""
    values = value if isinstance(value, list) else [value]
    if not values or any(each is None for each in values):
        raise Error(f"{at}: a text is missing")
    return tuple(str(each) for each in values)


def _options(options: Sequence[str], at: str) -> tuple[str, ...]:
    for number, option in enumerate(options):
        if not option.strip():
            raise Error(f"{at}: option {number} is empty; its probability says nothing")
    return tuple(options)


def _gold(value: Any, options: Sequence[str], at: str, column: str) -> int:
    if type(value) is int and 0 <= value < len(options):
        return value
    if isinstance(value, str) and value in options:
        return options.index(value)
    shown = ", ".join(map(repr, options))
    raise Error(f"{at}: {column} is {value!r}, none of the options {shown}")
