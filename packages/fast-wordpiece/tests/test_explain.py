import unicodedata

import polars as pl
import pytest

from chapbook.fast_wordpiece import Normalizer, Settings, Tokenizer
from chapbook.fast_wordpiece.explain import explain
from chapbook.fast_wordpiece.inspection import duplicate_lines, inspect, unreachable
from chapbook.fast_wordpiece.reference import encode

LETTERS = "abcdefghijklmnop"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "x", "中", "!"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_vocab([*PIECES, *LETTERS, *(f"##{letter}" for letter in LETTERS)])


def only(table: pl.DataFrame) -> dict:
    assert table.height == 1
    return table.row(0, named=True)


@pytest.mark.parametrize(
    ("text", "normal", "reason", "pieces"),
    [
        ("cafe", "cafe", "in the vocabulary", ["cafe"]),
        ("CAFÉ", "cafe", "accent stripped, lower-cased, in the vocabulary", ["cafe"]),
        ("abc", "abc", "cut into 3 pieces", ["a", "##b", "##c"]),
        ("a\u200bb", "ab", "deleted control, cut into 2 pieces", ["a", "##b"]),
        ("\u200b\u200b", "", "deleted control U+200B", []),
        ("\u0301", "", "accent stripped", []),
        ("中", "中", "ideograph isolated, in the vocabulary", ["中"]),
        ("国", "国", "ideograph isolated, no piece for '国'", ["[UNK]"]),
        ("!", "!", "punctuation isolated, in the vocabulary", ["!"]),
        ("abz", "abz", "no piece for '##z'", ["[UNK]"]),
        ("z", "z", "no piece for 'z'", ["[UNK]"]),
        ("a" * 101, "a" * 101, "too long: 101 characters, at most 100 are cut", ["[UNK]"]),
        ("[MASK]", "[MASK]", "special added token '[MASK]'", ["[MASK]"]),
    ],
)
def test_every_reason_is_told(tokenizer, text, normal, reason, pieces):
    row = only(explain(tokenizer, text))
    assert (row["start"], row["end"], row["original"]) == (0, len(text), text)
    assert (row["normalized"], row["reason"], row["pieces"]) == (normal, reason, pieces)


def test_the_rows_cover_the_text_and_give_the_tokenizers_ids(tokenizer):
    text = "Café\u0301 x\u200by [MASK] 中国 abz!\u200b \u0301abc  한국 ? cab"
    table = explain(tokenizer.with_truncation(3), text)
    ids = [number for row in table["ids"] for number in row]
    assert ids == encode(tokenizer.settings, text, add_special_tokens=False).ids
    assert tokenizer.explain(text).equals(table)
    covered = set()
    for row in table.iter_rows(named=True):
        assert row["original"] == text[row["start"] : row["end"]]
        covered.update(range(row["start"], row["end"]))
    assert "".join(text[i] for i in sorted({*range(len(text))} - covered)).isspace()


def test_nothing_is_explained_of_nothing(tokenizer):
    for text in ("", " \n"):
        table = explain(tokenizer, text)
        assert table.height == 0 and table.columns[:3] == ["start", "end", "original"]


def test_pieces_that_no_text_can_give_are_found():
    good = ["[UNK]", "[CLS]", "[SEP]", "new", "don", "##t", "国"]
    bad = ["New", "##é", "it's", "中国", "b" * 101, "##中", " "]
    settings = Settings.bert({piece: number for number, piece in enumerate([*good, *bad])})
    lost = unreachable(settings)
    assert list(lost) == bad
    assert lost["New"] == "normalised to new"
    assert lost["it's"] == "always cut into the words it ' s"
    # Each of them given as a text indeed makes other tokens.
    tokenizer = Tokenizer(settings)
    for piece in ("New", "it's", "中国", "b" * 101, " "):
        assert settings.vocab[piece] not in tokenizer.encode_ids(piece)
    cased = Settings(settings.vocab, normalizer=Normalizer(lowercase=False))
    assert "New" not in unreachable(cased) and "##é" not in unreachable(cased)


def test_a_decomposed_accent_that_is_kept_is_reachable():
    settings = Settings.bert({"[UNK]": 0, unicodedata.normalize("NFD", "é"): 1}, False, False)
    assert unreachable(settings) == {}


def test_a_tokenizer_is_described_in_plain_values(tokenizer):
    found = inspect(tokenizer)
    assert found["fingerprint"] == tokenizer.fingerprint
    vocabulary = found["vocabulary"]
    assert vocabulary["pieces"] == len(PIECES) + 32 and vocabulary["continuations"] == 16
    assert vocabulary["single_characters"] == 3 + 32 and vocabulary["longest"] == 6
    assert vocabulary["unreachable"] == 0 and vocabulary["ids_without_piece"] == 0


def test_duplicate_lines_of_a_vocabulary_are_numbered(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\na\nc\nb\na\n")
    for path in (tmp_path, tmp_path / "vocab.txt"):
        assert duplicate_lines(path) == {"a": [1, 3, 6], "b": [2, 5]}
