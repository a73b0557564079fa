"""Questions out of manual pages, quotations and tables, with the right answers that stand there.

Each has four options, the right one and three that stand in the same place elsewhere, so that one
in four is right by chance.
"""

import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from chapbook.core.errors import Error
from chapbook.glam.tasks import Task

OPTIONS = 4
MOST = 400  # questions of a task, at which a standard error is 2 %
BEFORE = 400  # characters in front of a heading, too few to fill a context

# The sections of `man-pages(7)`; other lines in capitals are names of errors and constants.
SECTIONS = (
    "SYNOPSIS", "CONFIGURATION", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "RETURN VALUE", "ERRORS",
    "ENVIRONMENT", "FILES", "ATTRIBUTES", "VERSIONS", "STANDARDS", "CONFORMING TO", "HISTORY",
    "NOTES", "CAVEATS", "BUGS", "EXAMPLES", "AUTHORS", "REPORTING BUGS", "COPYRIGHT", "SEE ALSO",
)  # fmt: skip

_HEADING = re.compile(rf"\n\n({'|'.join(SECTIONS)})\n")
_NAME = re.compile(r"NAME\n(.+?) - (.+)\n\n")
_SAID_BY = re.compile(r"(.+\n\s*--) *([^,(\n]+)", re.DOTALL)


def manual_tasks(pages: Sequence[str], *, seed: int = 0) -> list[Task]:
    """Returns three tasks out of the texts of manual pages.

    - `heading`: which section comes next, after 400 characters of a page;
    - `purpose`: what the functions, files or commands of a page are for, by their names alone;
    - `last word`: with which word the sentence ends that says so.

    Args:
        pages: As `chapbook.glam.corpus.plain` returns them.
        seed: Of the options, and of their order.

    Raises:
        Error: There are fewer than four different answers to draw options from.

    Reference:
        Du et al., "GLaM" (2022), section 6.1, at the scale of a desk; the last one is after Paperno
        et al., "The LAMBADA dataset" (2016).
    """
    headings, purposes, words = [], [], []
    for page in pages:
        headings += [
            (page[max(found.start() - BEFORE, 0) : found.start()], found[1])
            for found in _HEADING.finditer(page)
        ]
        if name := _NAME.match(page):
            purposes.append((f"NAME\n{name[1]} -", name[2]))
            begin, _, last = name[2].rpartition(" ")
            if begin:
                words.append((f"NAME\n{name[1]} - {begin}", last))
    draw = np.random.default_rng(seed)
    return [
        _task("heading", headings, draw, delimiter="\n\n"),
        _task("purpose", purposes, draw),
        _task("last word", words, draw),
    ]


def quotation_task(quotations: Sequence[str], *, seed: int = 0) -> Task:
    """Returns a task of who said what, as far as that stands at the end, behind two dashes.

    Args:
        quotations: One by one.
        seed: Of the choice, of the options, and of their order.

    Raises:
        Error: Fewer than four said something.
    """
    told = [found for each in quotations if (found := _SAID_BY.match(each))]
    return _task("quotation", [(m[1], m[2].strip()) for m in told], np.random.default_rng(seed))


def territory_task(territories: Sequence[tuple[str, str]], *, seed: int = 0) -> Task:
    """Returns a task of which country a province, a state or the like is a part of.

    Args:
        territories: Names, and the countries that they are parts of.
        seed: Of the choice, of the options, and of their order.

    Raises:
        Error: There are fewer than four countries.
    """
    asked = [(f"{place} is a part of", country) for place, country in territories]
    return _task("territory", asked, np.random.default_rng(seed))


def _task(
    name: str, found: Sequence[tuple[str, str]], draw: np.random.Generator, delimiter: str = " "
) -> Task:
    answers = sorted({answer for _, answer in found})
    if len(answers) < OPTIONS:
        raise Error(f"{name}: {len(answers)} different answers in the pages, {OPTIONS} needed")
    if len(found) > MOST:
        found = [found[at] for at in draw.choice(len(found), MOST, replace=False)]
    rows = []
    for prompt, answer in found:
        others = [each for each in answers if each != answer]
        options = [answer, *draw.choice(others, OPTIONS - 1, replace=False).tolist()]
        draw.shuffle(options)
        rows.append((prompt, options, options.index(answer)))
    return Task(
        name=name,
        source=pl.DataFrame(rows, schema=["prompt", "options", "right"], orient="row"),
        prompt="{{prompt}}",
        choices="options",
        gold="right",
        metric=["accuracy", "accuracy_per_byte"],
        delimiter=delimiter,
    )
