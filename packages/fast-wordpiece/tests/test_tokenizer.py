"""The tokenizer's and the encodings' public face."""

import copy
import itertools
import random
from typing import Any

import numpy as np
import pytest

import chapbook.fast_wordpiece
from chapbook.fast_wordpiece.settings import AddedToken, Padding, Settings, Truncation
from chapbook.fast_wordpiece.tokenizer import Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["hello", "world", "cafe", "un", "##aff", "##able", "中", "a", "b", "##s", "!"]
ENCODED = ["ids", "offsets", "word_ids", "type_ids", "attention_mask", "special_tokens_mask"]


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.from_vocab(SPECIAL + WORDS)


def test_what_the_package_offers_is_there():
    for name in chapbook.fast_wordpiece.__all__:
        assert getattr(chapbook.fast_wordpiece, name).__name__ == name
    assert chapbook.fast_wordpiece.Tokenizer is Tokenizer
    assert chapbook.fast_wordpiece.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'tokenizer_of_everything'"):
        _ = chapbook.fast_wordpiece.tokenizer_of_everything
    assert set(dir(chapbook.fast_wordpiece)) >= set(chapbook.fast_wordpiece.__all__)


def test_a_text_becomes_ids_with_the_special_tokens_around_them(tok):
    row = tok.encode("Hello, café unaffables!")
    assert row.tokens == [
        "[CLS]",
        "hello",
        "[UNK]",
        "cafe",
        "un",
        "##aff",
        "##able",
        "##s",
        "!",
        "[SEP]",
    ]
    assert row.ids.dtype == np.int32
    assert row.offsets.tolist()[1:4] == [[0, 5], [5, 6], [7, 11]]
    assert row.word_ids == [None, 0, 1, 2, 3, 3, 3, 3, 4, None]
    assert row.sequence_ids == [None, *[0] * 8, None]
    assert row.special_tokens_mask.tolist() == [1, *[0] * 8, 1]
    assert row.attention_mask.tolist() == [1] * 10
    assert row.type_ids.tolist() == [0] * 10
    assert row.overflowing == []
    assert len(row) == 10
    assert repr(row) == f"Encoding(10 tokens: {' '.join(row.tokens)})"
    assert np.array_equal(tok.encode_ids("Hello, café unaffables!"), row.ids)
    assert tok.encode_ids("a", add_special_tokens=False).tolist() == [12]
    assert tok.encode_ids("a", False).tolist() == [12]


def test_a_pair_has_types_and_sequences(tok):
    row = tok.encode("a b", "hello")
    assert row.tokens == ["[CLS]", "a", "b", "[SEP]", "hello", "[SEP]"]
    assert row.type_ids.tolist() == [0, 0, 0, 0, 1, 1]
    assert row.sequence_ids == [None, 0, 0, None, 1, None]
    assert row.word_ids == [None, 0, 1, None, 0, None]
    bare = tok.encode("a b", "hello", add_special_tokens=False)
    assert bare.tokens == ["a", "b", "hello"]
    assert bare.type_ids.tolist() == [0, 0, 1]


def test_characters_words_and_tokens_are_found_from_one_another_as_by_tokenizers(tok, differential):
    pytest.importorskip("tokenizers")
    hf = differential.huggingface(tok.settings)
    rng = random.Random(0)
    for _ in range(60):
        text, pair = (
            " ".join(rng.choices(("unaffable!", "é", "中中", "caf\u00e9"), k=3)) for _ in "ab"
        )
        ours, theirs = tok.encode(text, pair), hf.encode(text, pair)
        for sequence, place in itertools.product((0, 1), range(len(text) + 3)):
            assert ours.char_to_token(place, sequence) == theirs.char_to_token(place, sequence)
            assert ours.char_to_word(place, sequence) == theirs.char_to_word(place, sequence)
        for sequence, word in itertools.product((0, 1), range(12)):
            assert ours.word_to_tokens(word, sequence) == theirs.word_to_tokens(word, sequence)
            assert ours.word_to_chars(word, sequence) == theirs.word_to_chars(word, sequence)
        for token in range(len(ours)):
            assert ours.token_to_sequence(token) == theirs.token_to_sequence(token)
            span = theirs.token_to_chars(token)
            assert ours.token_to_chars(token) == (
                span and (span[1] if isinstance(span[1], tuple) else span)
            )
            word = theirs.token_to_word(token)
            assert ours.token_to_word(token) == (word[1] if isinstance(word, tuple) else word)


def test_a_batch_is_its_rows(tok):
    texts = ["a", "", "hello world", "unaffable café"]
    batch = tok.encode_batch(texts, offsets=True)
    assert len(batch) == 4
    assert batch.lengths.tolist() == [3, 2, 4, 6]
    assert batch.samples.tolist() == [0, 1, 2, 3]
    assert repr(batch) == "EncodingBatch(4 rows, 15 tokens)"
    for text, row in zip(texts, batch, strict=True):
        alone = tok.encode(text)
        for name in ENCODED:
            assert np.array_equal(getattr(row, name), getattr(alone, name))
    assert batch[-1].tokens == batch[3].tokens
    for index in (4, -5):
        with pytest.raises(IndexError, match="of a batch of 4"):
            batch[index]
    for part in (slice(1, 3), slice(None, None, -1), slice(3, 0, -2), slice(2, 2), slice(-2, None)):
        rows = batch[part]
        assert [row.tokens for row in rows] == [batch[i].tokens for i in range(4)[part]]
        for name in ENCODED[1:]:
            assert np.array_equal(
                np.concatenate([getattr(row, name) for row in rows]) if len(rows) else [],
                np.concatenate([getattr(batch[i], name) for i in range(4)[part]])
                if len(rows)
                else [],
            )


def test_offsets_and_words_that_were_not_asked_for_are_not_made_up(tok):
    batch = tok.encode_batch(["a"])
    with pytest.raises(ValueError, match="offsets=True"):
        _ = batch.offsets
    with pytest.raises(ValueError, match="word_ids=True"):
        _ = batch.word_ids


def test_rows_become_rectangles(tok):
    batch = tok.encode_batch(["a", "hello world !"], ["b", "b"])
    padded = batch.padded(multiple_of=8)
    assert {name: array.shape for name, array in padded.items()} == {
        "input_ids": (2, 8),
        "token_type_ids": (2, 8),
        "attention_mask": (2, 8),
    }
    assert padded["input_ids"].tolist()[0] == [2, 12, 3, 13, 3, 0, 0, 0]
    assert padded["token_type_ids"].tolist()[1] == [0, 0, 0, 0, 0, 1, 1, 0]
    assert padded["attention_mask"].sum(1).tolist() == [5, 7]
    left = batch.padded(length=9, side="left", dtype=np.int64)
    assert left["input_ids"].dtype == np.int64
    assert left["input_ids"].tolist()[0] == [0, 0, 0, 0, 2, 12, 3, 13, 3]
    again = batch.padded(multiple_of=8, out=padded)
    assert again["input_ids"] is padded["input_ids"]
    with pytest.raises(ValueError, match=r"shape \(2, 16\)"):
        batch.padded(length=16, out=padded)


def test_windows_of_overflow_tell_their_text(tok):
    texts = ["a b a b a", "a", "b b b b b b b"]
    batch = tok.encode_batch(texts, truncation=Truncation(5, 1), overflow=True)
    assert batch.samples.tolist() == [0, 0, 1, 2, 2, 2]
    first = tok.with_truncation(5, stride=1).encode(texts[0])
    assert [row.tokens[1:-1] for row in first.overflowing] == [["a", "b", "a"]]
    assert tok.encode_batch(texts, truncation=Truncation(5, 1)).samples.tolist() == [0, 1, 2]
    counts = tok.with_truncation(5).count_batch(texts)
    assert counts.tolist() == [5, 3, 5]


def test_a_tokenizer_is_never_changed(tok):
    before = tok.settings
    longer = tok.with_truncation(4).with_padding(6, side="left").add_tokens(["<x>"])
    assert longer.encode_ids("a b a b").tolist() == [0, 0, 2, 12, 13, 3]
    assert longer.no_truncation().no_padding().encode_ids("a b").tolist() == [2, 12, 13, 3]
    assert tok.settings == before
    assert tok.encode_ids("a b").tolist() == [2, 12, 13, 3]
    assert longer.fingerprint != tok.fingerprint
    assert Tokenizer(before).fingerprint == tok.fingerprint
    assert copy.deepcopy(longer).settings == longer.settings


def test_the_call_can_truncate_and_pad_in_another_way_than_the_tokenizer(tok):
    own = tok.with_truncation(4).with_padding(6)
    assert own.encode_batch(["a b a b"]).lengths.tolist() == [6]
    assert own.encode_batch(["a b a b"], truncation=None, padding=None).lengths.tolist() == [6]
    assert own.encode_batch(["a b a b a"], truncation=None).lengths.tolist() == [7]
    assert own.encode_batch(["a b a b"], padding=None).lengths.tolist() == [4]
    assert own.encode_batch(["a"], padding=Padding(8)).lengths.tolist() == [8]


def test_tokens_are_added_with_new_ids_or_those_of_the_vocabulary(tok):
    more = tok.add_tokens(["<x>", "hello", AddedToken("ab", 99, single_word=True)])
    assert more.token_to_id("<x>") == len(SPECIAL + WORDS)
    assert more.token_to_id("hello") == tok.token_to_id("hello")
    assert more.encode("<X>ab cab").tokens[1:-1] == ["<x>", "ab", "[UNK]"]
    assert more.encode("ab").ids.tolist() == [2, 99, 3]
    assert more.vocab_size == tok.vocab_size + 2
    special = tok.add_tokens(["<x>"], special=True)
    assert special.decode(special.encode_ids("a <x>")) == "a"
    assert special.encode("<X>").tokens[1:-1] == ["[UNK]"] * 3
    text = special.with_encode_special_tokens()
    assert text.encode("<x>").tokens[1:-1] == ["[UNK]"] * 3
    assert text.encode("[MASK]").tokens[1:-1] == ["[UNK]"] * 3
    assert tok.encode("[MASK] [mask]").tokens[1:3] == ["[MASK]", "[UNK]"]


def test_pieces_and_ids_are_looked_up(tok):
    assert tok.vocab_size == len(SPECIAL + WORDS)
    assert tok.get_vocab() == {piece: number for number, piece in enumerate(SPECIAL + WORDS)}
    assert tok.token_to_id("##aff") == 9
    assert tok.id_to_token(9) == "##aff"
    assert tok.token_to_id("nope") is None and tok.id_to_token(10_000) is None
    assert tok.tokens_of([5, 9]) == ["hello", "##aff"]
    with pytest.raises(KeyError):
        tok.tokens_of([10_000])
    assert repr(tok) == f"Tokenizer({len(SPECIAL + WORDS)} pieces, uncased)"


def test_ids_become_text(tok):
    ids = tok.encode_ids("Hello unaffables!")
    assert tok.decode(ids) == "hello unaffables!"
    assert tok.decode(ids, skip_special_tokens=False) == "[CLS] hello unaffables! [SEP]"
    batch = tok.encode_batch(["a b", "", "cafe"])
    assert tok.decode_batch(batch) == ["a b", "", "cafe"]
    assert tok.detokenize_words(tok.encode_ids("unaffable a", False)) == ["unaffable", "a"]


def test_a_vocabulary_may_be_a_list_or_name_its_ids_with_gaps():
    gaps = Tokenizer.from_vocab({"[UNK]": 7, "a": 3, "##b": 1000, "[CLS]": 2, "[SEP]": 5})
    assert gaps.encode_ids("ab a x").tolist() == [2, 3, 1000, 3, 7, 5]
    assert gaps.encode("ab").offsets.tolist() == [[0, 0], [0, 1], [1, 2], [0, 0]]
    cased = Tokenizer.from_vocab([*SPECIAL, "A"], lowercase=False)
    assert cased.encode("A a").tokens[1:-1] == ["A", "[UNK]"]
    kept = Tokenizer.from_vocab([*SPECIAL, "é"], strip_accents=False)
    assert kept.encode("É").tokens[1:-1] == ["é"]


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "model.fwp"])
def test_a_tokenizer_is_saved_and_read(name, tok, tmp_path):
    made = tok
    if name != "vocab.txt":
        made = tok.with_truncation(9, stride=2).with_padding(10).add_tokens(["<x>"])
    path = tmp_path / name
    made.save(path)
    again = Tokenizer.from_file(path)
    texts = ["Hello <x> unaffable", "中a! " * 9, ""]
    one, two = (each.encode_batch(texts, offsets=True) for each in (made, again))
    for field in ENCODED:
        assert np.array_equal(getattr(one, field), getattr(two, field))
    assert again.settings.vocab == made.settings.vocab
    assert again.fingerprint == made.fingerprint
    free = Tokenizer.from_file(path, ignore_limits=True)
    assert len(free.encode_ids("a " * 30)) == 32


@pytest.mark.parametrize("batch_bytes", [1, 50, 1 << 20])
def test_a_stream_gives_all_rows_in_order_and_reads_no_further_than_it_must(batch_bytes, tok):
    read: list[str] = []

    def source() -> Any:
        for number in range(200):
            read.append("a b " * (number % 9))
            yield read[-1]

    rows: list[list[int]] = []
    for batch in tok.stream(source(), batch_bytes):
        rows += [row.ids.tolist() for row in batch]
        assert len(read) == len(rows)
    assert rows == [tok.encode_ids(text).tolist() for text in read]
    assert len(rows) == 200


def test_settings_without_a_template_add_nothing(tok):
    bare = Tokenizer(Settings(tok.settings.vocab))
    assert bare.encode_ids("a b").tolist() == [12, 13]
    assert bare.encode("a", "b").type_ids.tolist() == [0, 1]
