"""Answers are compared as the published rules of SQuAD say."""

import pytest

from chapbook.glam.answers import exact_match, f1, normalized


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Denver Broncos!", "denver broncos"),
        ("a theory of an anthem", "theory of anthem"),  # articles are whole words
        ("Levi's  Stadium,\n Santa Clara.", "levis stadium santa clara"),
        ("«24»!", "«24»"),  # what is not ASCII stays
        ("a.b", "ab"),  # punctuation goes first, so that no article is left alone
        ("the-end", "theend"),
        ("U.S.", "us"),
        ("The", ""),
        ("  ", ""),
    ],
)
def test_an_answer_is_normalized(answer, expected):
    assert normalized(answer) == expected


@pytest.mark.parametrize(
    ("answer", "references", "match", "score"),
    [
        ("the Cat.", ["cat"], 1.0, 1.0),
        ("a black cat", ["cat"], 0.0, 2 / 3),
        ("cat cat dog", ["cat dog dog"], 0.0, 2 / 3),  # as often as both have a word
        ("cat", ["dog", "big cat", "black big cat"], 0.0, 2 / 3),  # the best reference
        ("cat", ["dog", "Cat"], 1.0, 1.0),
        ("cat", ["dog"], 0.0, 0.0),
        ("", ["dog"], 0.0, 0.0),
        ("the", [""], 1.0, 1.0),  # neither has a word
    ],
)
def test_an_answer_is_compared_with_its_best_reference(answer, references, match, score):
    assert exact_match(answer, references) == match
    assert f1(answer, references) == pytest.approx(score)
