"""The generated tables against the `tokenizers` that is installed."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from chapbook.fast_wordpiece import _unicode
from chapbook.fast_wordpiece.reference import Char, decomposed, is_in, normalized
from chapbook.fast_wordpiece.settings import Normalizer

HEADER = Path(__file__).parent.parent / "src/core/unicode_tables.hpp"
RANGES = {
    "Control": _unicode.CONTROL,
    "SpaceClean": _unicode.SPACE_CLEAN,
    "WhiteSpace": _unicode.WHITE_SPACE,
    "Punctuation": _unicode.PUNCTUATION,
    "Word": _unicode.WORD,
    "Mark": _unicode.MARK,
    "CjkHf": _unicode.CJK_HF,
    "CjkTfText": _unicode.CJK_TF_TEXT,
}
CONFIGURATIONS = (
    (True, True, None, True),
    (True, True, None, False),
    (True, True, False, True),
    (True, True, True, False),
    (False, False, True, True),
)
EVERY = [
    pytest.param(50, id="one in fifty"),
    pytest.param(1, id="all", marks=pytest.mark.slow),
]


def scalar_values(step: int) -> Iterator[str]:
    """Every step-th character, and those on both sides of every border in the tables."""
    points = set(range(0, 0x110000, step))
    for first, last, *_ in (*sum(RANGES.values(), ()), *_unicode.CCC):
        points |= {first - 1, first, last, last + 1}
    points |= _unicode.DECOMPOSE.keys() | _unicode.LOWER.keys()
    surrogates = range(0xD800, 0xE000)
    return (chr(p) for p in sorted(points) if 0 <= p < 0x110000 and p not in surrogates)


@pytest.mark.parametrize("step", EVERY)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_character_is_normalised_as_by_tokenizers(configuration, step):
    normalizers = pytest.importorskip("tokenizers.normalizers")
    theirs = normalizers.BertNormalizer(*configuration).normalize_str
    ours = Normalizer(*configuration)
    wrong = [
        f"U+{ord(char):04X}"
        for char in scalar_values(step)
        if "".join(part.char for part in normalized([Char(char, 0, 1)], ours)) != theirs(char)
    ]
    assert not wrong


@pytest.mark.parametrize("step", EVERY)
def test_every_character_splits_words_as_by_tokenizers(step):
    pre_tokenizers = pytest.importorskip("tokenizers.pre_tokenizers")
    pre_tokenize = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    for char in scalar_values(step):
        is_space = is_in(_unicode.WHITE_SPACE, char)
        is_punctuation = is_in(_unicode.PUNCTUATION, char)
        words = ["a", "b"] if is_space else ["a", char, "b"] if is_punctuation else [f"a{char}b"]
        assert [word for word, _ in pre_tokenize(f"a{char}b")] == words


@pytest.mark.parametrize("step", EVERY)
def test_every_character_stands_next_to_added_tokens_as_in_tokenizers(step):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    for content, flag in (("<w>", "single_word"), ("<l>", "lstrip"), ("<r>", "rstrip")):
        tokenizer.add_tokens([tokenizers.AddedToken(content, normalized=False, **{flag: True})])
    for char in scalar_values(step):
        text = f"{char}<w>\0<w>{char}\0{char}<l>\0<r>{char}"
        tokens = tokenizer.encode(text).tokens
        is_space = is_in(_unicode.WHITE_SPACE, char)
        assert tokens.count("<w>") == (0 if is_in(_unicode.WORD, char) else 2)
        assert (f"{char}<l>" in tokens) == is_space
        assert (f"<r>{char}" in tokens) == is_space


@pytest.mark.parametrize("step", EVERY)
def test_sequences_of_characters_decompose_and_reorder_as_by_tokenizers(step):
    normalizers = pytest.importorskip("tokenizers.normalizers")
    nfd = normalizers.NFD().normalize_str
    rng = random.Random(step)
    marks = [chr(p) for first, last, _ in _unicode.CCC for p in range(first, last + 1)]
    pools = (marks, marks, [chr(p) for p in _unicode.DECOMPOSE], [*"ab한", "\u1dfa"])
    for _ in range(200_000 // step):
        text = "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(1, 7)))
        assert "".join(part.char for part in decomposed([Char(c, 0, 1) for c in text])) == nfd(text)


def test_the_header_holds_the_tables_of_the_module():
    if not HEADER.exists():
        pytest.skip("the sources of the compiled core are not here")
    source = HEADER.read_text(encoding="utf-8")

    def array(name: str) -> list[list[int]]:
        body = re.search(rf"\b{name}\[\] = {{\n(.*?)}};", source, re.DOTALL)
        assert body is not None
        entries = re.findall(r"\{([^}]*)\}", body[1]) or body[1].split(",")
        return [[int(part, 0) for part in entry.split(",")] for entry in entries if entry.strip()]

    assert f"tokenizers {_unicode.TOKENIZERS_VERSION} " in source
    for name, table in RANGES.items():
        assert array(f"k{name}") == [list(row) for row in table]
    assert array("kCcc") == [list(row) for row in _unicode.CCC]
    for name, table in (("kDecompose", _unicode.DECOMPOSE), ("kLower", _unicode.LOWER)):
        pool = [entry[0] for entry in array(f"{name}Pool")]
        read = {
            point: "".join(map(chr, pool[offset : offset + length]))
            for point, offset, length in array(name)
        }
        assert read == table
        assert list(read) == sorted(read)


def test_the_sizes_are_those_that_the_specification_counted():
    sizes = {name: sum(b - a + 1 for a, b in table) for name, table in RANGES.items()}
    assert sizes["WhiteSpace"] == 25
    assert sizes["Punctuation"] == 726
    assert sizes["CjkTfText"] - sizes["CjkHf"] == 256
    assert len(_unicode.LOWER) == 1488
    assert _unicode.LOWER[0x130] == "i\u0307"
    assert _unicode.LOWER[0x3A3] == "\u03c3"
