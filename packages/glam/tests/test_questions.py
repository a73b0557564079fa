"""Questions and right answers, as they stand in manual pages."""

import pytest

from chapbook.core.errors import Error
from chapbook.glam.questions import MOST, manual_tasks, quotation_task, territory_task


def page(name: str, purpose: str, *sections: str) -> str:
    return "\n\n".join(
        [f"NAME\n{name} - {purpose}", *(f"{s}\nSome text of {s}." for s in sections)]
    )


PAGES = [
    page("ls", "list the contents", "SYNOPSIS", "ENOENT", "SEE ALSO"),
    page("cp", "copy some files", "SYNOPSIS", "BUGS"),
    page("mv", "move or rename", "OPTIONS"),
    page("w", "tell", "FILES"),
]


def test_the_right_option_is_what_stands_in_the_page():
    heading, purpose, word = manual_tasks([*PAGES, page("rm", "remove all", "NOTES")])
    asked = {
        task.name: [(prompt, options[right]) for prompt, options, right in task.source.iter_rows()]
        for task in (heading, purpose, word)
    }
    assert asked["heading"][:2] == [
        ("NAME\nls - list the contents", "SYNOPSIS"),
        ("NAME\nls - list the contents\n\nSYNOPSIS\nSome text of SYNOPSIS.\n\n"
         "ENOENT\nSome text of ENOENT.", "SEE ALSO"),
    ]  # fmt: skip
    assert ("NAME\ncp -", "copy some files") in asked["purpose"]
    assert len(asked["purpose"]) == 5
    # A purpose of a single word has no sentence to end.
    assert [answer for _, answer in asked["last word"]] == ["contents", "files", "rename", "all"]


def test_options_are_four_different_answers_in_an_order_of_their_own():
    pages = [*PAGES * 10, page("rm", "remove all", "NOTES")]
    for task, again in zip(manual_tasks(pages, seed=1), manual_tasks(pages, seed=1), strict=True):
        assert all(len(set(each)) == 4 for each in task.source["options"].to_list())
        assert task.source["right"].n_unique() == 4
        assert task.source.equals(again.source)


def test_text_that_holds_too_few_answers_is_refused():
    with pytest.raises(Error, match="heading: 0 different answers in the pages, 4 needed"):
        manual_tasks(["no page"])


QUOTATIONS = [
    'Be brief, but not\ntoo brief.\n\t\t-- A. Writer, "Letters"',
    "He wrote:\n  -- no, he said:\n  Nothing.\n\t\t-- Nobody (a hero)",
    "Nobody knows who said so",
    "One.\n\t\t-- First",
    "Two.\n\t\t-- Second",
]


def test_who_said_something_stands_behind_the_last_dashes():
    task = quotation_task(QUOTATIONS)
    asked = [(prompt, options[right]) for prompt, options, right in task.source.iter_rows()]
    assert asked == [
        ("Be brief, but not\ntoo brief.\n\t\t--", "A. Writer"),
        ("He wrote:\n  -- no, he said:\n  Nothing.\n\t\t--", "Nobody"),
        ("One.\n\t\t--", "First"),
        ("Two.\n\t\t--", "Second"),
    ]
    assert all(sorted(o) == sorted(a for _, a in asked) for o in task.source["options"].to_list())


def test_of_many_territories_some_are_asked_and_each_at_most_once():
    parts = [(f"Part {n}", f"Country {n % 7}") for n in range(2 * MOST)]
    task, other = territory_task(parts), territory_task(parts, seed=1)
    answers = {f"{place} is a part of": country for place, country in parts}
    for prompt, options, right in task.source.iter_rows():
        assert options[right] == answers[prompt]
    assert task.source["prompt"].n_unique() == MOST
    assert 0 < len(set(task.source["prompt"]) & set(other.source["prompt"])) < MOST
