"""LinMaxMatch: failure pops and links by definition, pieces as by the older ways, few steps."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chapbook.fast_wordpiece import _core
from chapbook.fast_wordpiece.compiled import compile_settings
from chapbook.fast_wordpiece.reference import max_match
from chapbook.fast_wordpiece.settings import Settings

OLDER = ("substring", "rollback")
UNK = "<unknown>"

# Characters of one to four bytes of UTF-8, with those of which marks are made.
LETTERS = "abé한😀#"
MARKS = ("##", "", "a", "@@", "#", "é😀")


def compiled(pieces: Sequence[str], mark: str = "##", limit: int = 10**9) -> _core.Model:
    vocab = {piece: number for number, piece in enumerate([UNK, *pieces])}
    return compile_settings(
        Settings(vocab, unk_token=UNK, mark=mark, max_input_chars_per_word=limit),
        literal_marks=True,
    )


def cut(model: _core.Model, words: list[str], algorithm: str) -> tuple[list[list[int]], list[int]]:
    """The ids of each word, and the steps that it took."""
    ids, bounds, steps, seconds = _core.match_words(model, words, algorithm)
    assert len(seconds) == len(words) and (seconds >= 0).all()
    rows = [ids[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    return rows, steps.tolist()


def vocabularies(alphabet: str, most: int):
    return st.lists(st.text(alphabet, min_size=1, max_size=6), max_size=most, unique=True)


def test_the_worked_example():
    pieces = ["a", "abcd", "##b", "##bc", "##z"]
    model = compiled(pieces)
    spelled = {
        ("##" if continues else "") + text: (
            [[UNK, *pieces][number] for number in pops],
            link and ("##" if link[0] else "") + link[1],
        )
        for continues, text, pops, link in _core.trie(model)
        # The pieces with a mark are also there as they are spelled, for a word that begins so.
        if continues or not text.startswith(("#", "<"))
    }
    assert spelled == {
        "": ([], None),
        "##": ([], None),
        "a": (["a"], "##"),
        "ab": (["a"], "##b"),
        "abc": (["a"], "##bc"),
        "abcd": (["abcd"], "##"),
        "##b": (["##b"], "##"),
        "##bc": (["##bc"], "##"),
        "##z": (["##z"], "##"),
    }
    rows, steps = cut(model, ["abcz", "abcd", "abcdz", "abd", "abc", ""], "linmaxmatch")
    assert rows == [[1, 4, 5], [2], [2, 5], [0], [1, 4], []]
    # a, b, c, a link, a link, z and the link at the end.
    assert steps[0] == 7


def test_words_that_look_like_the_mark_match_pieces_as_they_are_spelled():
    model = compiled(["#", "##", "##a", "##ing", "###", "##b"])
    words = ["##", "#", "##a", "##ing", "###", "##b", "##ab", "####", "#a"]
    # "####" is "###", and then "#" with the mark before it, which is "###" again.
    expected = [[2], [1], [3], [4], [5], [6], [3, 6], [5, 5], [1, 3]]
    for algorithm in ("linmaxmatch", *OLDER):
        assert cut(model, words, algorithm)[0] == expected


def by_definition(
    text: str, continues: bool, initial: set[str], continuing: set[str], nodes: set[tuple]
) -> tuple[list[tuple[bool, str]], tuple[bool, str] | None]:
    """F and f: MaxMatch on the node's own string until what is left is a node."""
    popped: list[tuple[bool, str]] = []
    while True:
        pieces = continuing if continues else initial
        longest = max((piece for piece in pieces if text.startswith(piece)), key=len, default="")
        if not longest:
            return [], None
        popped.append((continues, longest))
        text, continues = text[len(longest) :], True
        if (True, text) in nodes:
            return popped, (True, text)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(vocabularies("ab", 30), st.lists(st.booleans(), min_size=30, max_size=30))
def test_failure_pops_and_links_are_those_of_the_definition(texts, marked):
    pieces = list(dict.fromkeys(m * "@" + t for t, m in zip(texts, marked, strict=False)))
    model = compiled(pieces, "@")
    initial = {UNK, *pieces}
    continuing = {piece[1:] for piece in pieces if piece[0] == "@"}
    listed = _core.trie(model)
    nodes = {(continues, text) for continues, text, _, _ in listed}
    assert nodes == {
        (continues, piece[:end])
        for continues, some in ((False, initial | {""}), (True, continuing | {""}))
        for piece in some
        for end in range(len(piece) + 1)
    }
    names = dict(enumerate([UNK, *pieces]))
    for continues, text, pops, link in listed:
        expected, end = ([], None)
        if text:
            expected, end = by_definition(text, continues, initial, continuing, nodes)
        assert [names[number] for number in pops] == ["@" * c + piece for c, piece in expected]
        assert link == end


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.sampled_from(MARKS),
    vocabularies(LETTERS, 25),
    st.lists(st.booleans(), min_size=25, max_size=25),
    st.lists(st.text(LETTERS + "z", max_size=14), min_size=1, max_size=30),
    st.sampled_from((10**9, 10**9, 4, 0)),
)
def test_all_ways_give_the_pieces_of_the_reference_in_linearly_many_steps(
    mark, texts, marked, words, limit
):
    pieces = list(dict.fromkeys(m * mark + t for t, m in zip(texts, marked, strict=False)))
    model = compiled(pieces, mark, limit)
    vocab = {piece: number for number, piece in enumerate([UNK, *pieces])}
    expected = [
        [vocab[piece] for piece in max_match(word, vocab, mark, UNK)]
        if len(word) <= limit
        else [vocab[UNK]]
        for word in words
    ]
    rows, steps = cut(model, words, "linmaxmatch")
    assert rows == expected
    assert all(count <= 2 * len(word) + 1 for count, word in zip(steps, words, strict=True))
    for algorithm in OLDER:
        assert cut(model, words, algorithm)[0] == expected


@pytest.mark.parametrize("length", [10, 100, 1_000])
def test_steps_grow_linearly_where_those_of_the_older_ways_do_not(length):
    width = 50
    model = compiled(["a", "##a", "##" + "a" * width + "b"])
    word = "a" * length
    expected = [1] + [2] * (length - 1)
    (row,), (steps,) = cut(model, [word], "linmaxmatch")
    assert row == expected
    assert steps <= 2 * length + 1
    (row,), (steps,) = cut(model, [word], "substring")
    assert row == expected
    assert steps == length * (length + 1) // 2
    (row,), (steps,) = cut(model, [word], "rollback")
    assert row == expected
    # Every piece but the last ones is found after walking down the long one and back.
    assert steps >= max(length - width, 0) * width


def test_a_thousand_pieces_put_together_take_linearly_many_steps():
    parts = [a + b + c for a in "abcd" for b in "abcd" for c in "abcd"]
    model = compiled(
        [*"abcd", *("##" + p for p in "abcd"), *parts, *("##" + p for p in parts[::3])]
    )
    word = "".join(parts * 8)
    (row,), (steps,) = cut(model, [word], "linmaxmatch")
    assert steps <= 2 * len(word) + 1
    assert [row] == cut(model, [word], "substring")[0] == cut(model, [word], "rollback")[0]


def test_a_piece_may_have_255_characters_and_no_more():
    pieces = ["a" * 255, "##" + "é" * 255, "a", "##é"]
    model = compiled(pieces)
    words = ["a" * 255, "a" + "é" * 255, "a" + "é" * 254, "a" * 256]
    rows, _ = cut(model, words, "linmaxmatch")
    assert rows == [[1], [3, 2], [3] + [4] * 254, [0]]
    with pytest.raises(ValueError, match="255 characters"):
        compiled(["a" * 256])


def test_pieces_with_nul_and_white_space_do_no_harm():
    pieces = ["\0", "a\0b", "##\0", " ", "a b", "##\n"]
    model = compiled(pieces)
    words = ["\0", "a\0b", "a b", " \0", "a", "\0\n"]
    for algorithm in ("linmaxmatch", *OLDER):
        assert cut(model, words, algorithm)[0] == [[1], [2], [5], [4, 3], [0], [1, 6]]


@pytest.mark.parametrize("pieces", [[], [UNK], ["a"], ["##a"], ["##"], [""]])
def test_vocabularies_of_hardly_anything(pieces):
    for mark in ("##", ""):
        vocab = {piece: number for number, piece in enumerate(dict.fromkeys([UNK, *pieces]))}
        model = compile_settings(Settings(vocab, unk_token=UNK, mark=mark), literal_marks=True)
        words = ["a", "aa", "##", "##a", "b", UNK, ""]
        expected = [[vocab[p] for p in max_match(word, vocab, mark, UNK)] for word in words]
        for algorithm in ("linmaxmatch", *OLDER):
            assert cut(model, words, algorithm)[0] == expected


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="linmaxmatch, substring and rollback"):
        _core.match_words(compiled(["a"]), ["a"], "greedy")
    with pytest.raises(ValueError, match="at least 1"):
        _core.match_words(compiled(["a"]), ["a"], "linmaxmatch", 0)
    bert = compile_settings(Settings({UNK: 0}))
    with pytest.raises(ValueError, match="literal_marks"):
        _core.match_words(bert, ["a"], "linmaxmatch")
