"""Bad and odd input: an error that names the place, or the right answer, and never a crash."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from chapbook.core.errors import Error
from chapbook.fast_wordpiece import _core, compiled
from chapbook.fast_wordpiece.settings import Settings, SettingsError, Template, Truncation
from chapbook.fast_wordpiece.tokenizer import Tokenizer

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "é", "中", "\ufffd", "!"]


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.from_vocab(VOCAB)


# ------------------------------------------------------------------------------- what comes in


@pytest.mark.parametrize("bad", [None, float("nan"), 1, b"a", ["a"]])
@pytest.mark.wrong_types
def test_what_is_no_string_is_named_with_its_index_and_type(bad, tok):
    kind = type(bad).__name__
    with pytest.raises(TypeError, match=rf"text 2 is of type {kind}, not str"):
        tok.encode_batch(["a", "b", bad, None])
    with pytest.raises(TypeError, match=rf"pair 1 is of type {kind}, not str"):
        tok.encode_batch(["a", "b"], ["a", bad])
    with pytest.raises(TypeError, match=rf"text 1 is of type {kind}, not str"):
        tok.count_batch(["a", bad])
    for call in (tok.encode_ids, tok.encode):
        with pytest.raises(TypeError, match=rf"text 0 is of type {kind}, not str"):
            call(bad)
    with pytest.raises(TypeError, match=rf"text 1, word 2 is of type {kind}, not str"):
        tok.encode_batch([["a"], ["a", "b", bad]], is_pretokenized=True)


@pytest.mark.wrong_types
def test_one_string_is_not_taken_for_a_batch_or_for_words(tok):
    with pytest.raises(TypeError, match="one string; a list of strings is wanted"):
        tok.encode_batch("ab")
    with pytest.raises(TypeError, match="text 1 is a string; with is_pretokenized a list of words"):
        tok.encode_batch([["a"], "ab"], is_pretokenized=True)
    with pytest.raises(TypeError):
        tok.encode_batch(7)


def test_a_lone_surrogate_is_named_with_row_and_character(tok):
    for bad in ("ab\ud800c", "é中\udfff", "\ud83d\ude00"):
        place = next(at for at, char in enumerate(bad) if "\ud800" <= char < "\ue000")
        with pytest.raises(ValueError, match=f"text 1 holds a lone surrogate at character {place}"):
            tok.encode_batch(["a", bad])
        with pytest.raises(ValueError, match=f"text 0 holds a lone surrogate at character {place}"):
            tok.encode_ids(bad)
        with pytest.raises(ValueError, match=f"pair 0 holds a lone surrogate at character {place}"):
            tok.encode("a", bad)
        with pytest.raises(ValueError, match=rf"text 0, word 1 .* surrogate at character {place}"):
            tok.encode_batch([["a", bad]], is_pretokenized=True)


def test_each_lone_surrogate_can_be_read_as_a_replacement_character():
    settings = Settings.bert({piece: number for number, piece in enumerate(VOCAB)})
    normalizer = replace(settings.normalizer, clean_text=False)
    tok = Tokenizer(replace(settings, normalizer=normalizer))
    for text in ("a \ud800 b", "\udfff", "\ud83d\ude00 a", "\ude00\ud83d", "no such thing", "é"):
        mended = "".join("\ufffd" if "\ud800" <= char < "\ue000" else char for char in text)
        ours = tok.encode_batch([text], offsets=True, errors="replace")
        expected = tok.encode_batch([mended], offsets=True)
        assert np.array_equal(ours.ids, expected.ids)
        assert np.array_equal(ours.offsets, expected.offsets)
    words = tok.encode_batch([["a", "\ud800"]], is_pretokenized=True, errors="replace")
    assert words[0].tokens == ["[CLS]", "a", "\ufffd", "[SEP]"]


def test_the_first_byte_that_is_not_utf8_is_where_python_finds_it(differential):
    rng = random.Random(0)
    wrong = 0
    for _ in range(3_000):
        data = differential.nasty_bytes(rng)
        assert not differential.misjudged(data), data
        try:
            data.decode()
        except UnicodeDecodeError:
            wrong += 1
    assert 500 < wrong < 2_900


def test_bytes_that_are_not_utf8_do_no_harm_where_nobody_checks_them(differential, tok):
    """The core trusts its callers, but stays within the text whatever they give it."""
    rng = random.Random(1)
    model = compiled.compile_settings(tok.settings)
    made = [compiled.encoder(model, tok.settings, None, isa) for isa in _core.instruction_sets()]
    for _ in range(2_000):
        data = np.frombuffer(differential.nasty_bytes(rng), np.uint8)
        starts, ends = np.array([0], np.int64), np.array([len(data)], np.int64)
        rows = []
        for encoder in made:
            for unit in (False, True):
                ids, _, offsets, *_ = encoder.encode_flat(
                    data, starts, ends, None, True, True, True, unit, False, 1
                )
                assert offsets is not None and (offsets <= len(data)).all()
                assert (ids >= 0).all() and (ids < len(VOCAB)).all()
            rows.append(
                encoder.encode_flat(data, starts, ends, None, True, False, False, False, False, 1)[
                    0
                ].tolist()
            )
        assert all(row == rows[0] for row in rows)


@pytest.mark.parametrize(
    ("starts", "ends", "valid"),
    [
        ([0], [4], None),
        ([-1], [1], None),
        ([2], [1], None),
        ([0, 1], [1], None),
        ([2**62], [2**63 - 1], None),
        ([0], [1], [True, True]),
    ],
)
def test_texts_outside_of_their_buffer_are_refused(starts, ends, valid, tok):
    encoder = compiled.encoder(compiled.compile_settings(tok.settings), tok.settings, None, "auto")
    with pytest.raises(ValueError, match=r"outside of the data|for each text"):
        encoder.encode_flat(
            np.frombuffer(b"abc", np.uint8),
            np.array(starts, np.int64),
            np.array(ends, np.int64),
            None if valid is None else np.array(valid),
            *[False] * 5,
            threads=1,
        )


# ------------------------------------------------------------------------------------- nothing


def test_an_empty_batch_has_no_rows(tok):
    for batch in (
        tok.encode_batch([]),
        tok.encode_batch([], []),
        tok.encode_batch([], is_pretokenized=True, offsets=True),
    ):
        assert len(batch) == 0 and list(batch) == []
        assert batch.row_offsets.tolist() == [0]
        assert batch.ids.shape == (0,) and batch.ids.dtype == np.int32
        padded = batch.padded(multiple_of=8)
        assert {array.shape for array in padded.values()} == {(0, 0)}
    assert tok.encode_batch([], offsets=True).offsets.shape == (0, 2)
    assert tok.count_batch([]).tolist() == []
    assert list(tok.stream([])) == []
    assert tok.decode_batch(tok.encode_batch([])) == []


@pytest.mark.parametrize(
    "text", ["", " \t\n", "\0", "\0\0\x01\x7f", "\u200b\ufeff\u00ad", "\u0301"]
)
def test_texts_of_which_nothing_is_left(text, tok):
    assert tok.encode_ids(text).tolist() == [2, 3]
    assert tok.encode_ids(text, add_special_tokens=False).tolist() == []
    batch = tok.encode_batch([text] * 3, add_special_tokens=False, offsets=True)
    assert len(batch) == 3 and batch.row_offsets.tolist() == [0, 0, 0, 0]
    assert batch.padded()["input_ids"].shape == (3, 0)
    assert batch.padded(length=4)["attention_mask"].tolist() == [[0] * 4] * 3
    row = batch[1]
    assert row.tokens == row.word_ids == row.sequence_ids == row.overflowing == []
    assert row.offsets.shape == (0, 2)
    assert tok.encode(text, text).ids.tolist() == [2, 3, 3]
    assert tok.decode(tok.encode_ids(text)) == ""


def test_nul_is_deleted_and_joins_its_neighbours(tok):
    assert tok.encode("a\0b").tokens == ["[CLS]", "a", "##b", "[SEP]"]
    assert tok.encode("a\0b").offsets.tolist() == [[0, 0], [0, 1], [2, 3], [0, 0]]


def test_no_words_are_an_empty_row(tok):
    batch = tok.encode_batch([[], [""], ["a", "", "b"]], is_pretokenized=True, offsets=True)
    assert [row.ids.tolist() for row in batch] == [[2, 3], [2, 3], [2, 5, 6, 3]]
    assert batch[2].word_ids == [None, 0, 2, None]


# ------------------------------------------------------------------------- what cannot be done


def test_truncation_that_cannot_be_done_is_refused_with_its_numbers(tok):
    text = "a b a b"
    with pytest.raises(ValueError, match="max_length 1 is less than the 2 tokens"):
        tok.with_truncation(1).encode(text)
    with pytest.raises(ValueError, match="max_length 2 is less than the 3 tokens"):
        tok.with_truncation(2).encode(text, "a")
    with pytest.raises(SettingsError, match="stride 5 must be less than max_length 5"):
        tok.with_truncation(5, stride=5)
    with pytest.raises(ValueError, match="text 1: stride 3 must be less than the 3 tokens"):
        tok.encode_batch(["a", text], truncation=Truncation(5, 3))
    with pytest.raises(ValueError, match=r"text 1: .* only_second .* no second text"):
        tok.encode_batch(["a", text], truncation=Truncation(5, 0, "only_second"))
    with pytest.raises(ValueError, match=r"text 0: only_first .* 4 tokens from a first text of 4"):
        tok.encode_batch([text], ["a b a"], truncation=Truncation(6, 0, "only_first"))
    with pytest.raises(
        ValueError, match=r"text 0: only_second .* 2 tokens from a second text of 1"
    ):
        tok.encode_batch([text], ["a"], truncation=Truncation(6, 0, "only_second"))
    # Nothing is wrong where nothing is too long.
    assert tok.encode_batch(["a"], truncation=Truncation(5, 0, "only_second")).ids.size == 3
    assert tok.with_truncation(2).encode(text).ids.tolist() == [2, 3]
    assert tok.with_truncation(0).encode_ids(text, add_special_tokens=False).tolist() == []


def test_texts_and_pairs_must_be_equally_many(tok):
    with pytest.raises(ValueError, match="2 texts and 1 pairs"):
        tok.encode_batch(["a", "b"], ["a"])


def test_padding_to_less_than_a_row_is_refused_with_the_row(tok):
    with pytest.raises(ValueError, match="row 1 has 5 tokens and the length is 4"):
        tok.encode_batch(["a", "a b a"]).padded(length=4)


def test_special_tokens_that_are_missing_are_named_when_they_are_needed():
    without = Tokenizer.from_vocab(["[UNK]", "a", "[SEP]"])
    assert without.encode_ids("a a", add_special_tokens=False).tolist() == [1, 1]
    for call in (without.encode_ids, without.encode, lambda text: without.encode_batch([text])):
        with pytest.raises(SettingsError, match=r"lacks \[CLS\]"):
            call("a")
    with pytest.raises(SettingsError, match=r"lacks \[CLS\]"):
        without.count_batch(["a"])


def test_an_unknown_token_that_is_missing_is_named_at_the_first_text_that_needs_it():
    tok = Tokenizer.from_vocab(["a", "[CLS]", "[SEP]"])
    assert tok.encode_ids("a a").tolist() == [1, 0, 0, 2]
    with pytest.raises(SettingsError, match=r"text 1 .* lacks the unknown token '\[UNK\]'"):
        tok.encode_batch(["a", "a b", "b"])
    for call in (tok.encode_ids, tok.encode):
        with pytest.raises(SettingsError, match=r"unknown token '\[UNK\]'"):
            call("b")
    single = Settings(
        {"a": 0}, unk_token=None, template=Template((("A", 0),), (("A", 0), ("B", 1)))
    )
    with pytest.raises(SettingsError, match="unknown token"):
        Tokenizer(single).encode_ids("x")
    with pytest.raises(SettingsError, match="unknown token"):
        Tokenizer(single).count_batch(["a", "x"])


def test_pieces_and_ids_that_are_too_large_are_refused():
    with pytest.raises(SettingsError, match="255 characters"):
        Tokenizer.from_vocab(["[UNK]", "a" * 256])
    with pytest.raises(SettingsError, match="16777215"):
        Tokenizer.from_vocab({"[UNK]": 0, "a": 1 << 24})


def test_a_damaged_compiled_file_is_refused(tok, tmp_path):
    path = tmp_path / "model.fwp"
    tok.save(path)
    whole = path.read_bytes()
    assert Tokenizer.from_file(path).encode_ids("ab").tolist() == [2, 5, 7, 3]
    rng = random.Random(2)
    damaged = [whole[: len(whole) // 2], whole[:100], whole[:7], b"", whole + b"\0" * 64]
    for _ in range(40):
        at = rng.randrange(len(whole))
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
    # The other byte order, another version.
    damaged += [whole[:8] + whole[8:12][::-1] + whole[12:], whole[:12] + b"\x63" + whole[13:]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(Error, match="cannot be used"):
            Tokenizer.from_file(path)
    with pytest.raises(FileNotFoundError):
        Tokenizer.from_file(tmp_path / "none.fwp")


# ----------------------------------------------------------------------------------- interrupts


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_control_c_stops_a_long_call(tok):
    texts = ["a b é 中 " * 2_000] * 20_000
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            for _ in range(50):
                tok.encode_batch(texts, offsets=True, num_threads=2)
        assert time.monotonic() - start < 10
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert tok.encode_ids("a").tolist() == [2, 5, 3]


# --------------------------------------------------------------------------------------- import


def test_import_is_light():
    program = (
        "import time, sys, numpy\n"
        "start = time.process_time()\n"
        "from chapbook.fast_wordpiece import Tokenizer\n"
        "taken = time.process_time() - start\n"
        "Tokenizer.from_vocab(['[UNK]', '[CLS]', '[SEP]', 'a']).encode('a b').offsets\n"
        "heavy = 'jax torch tensorflow tokenizers transformers pyarrow polars pandas scipy'\n"
        "print(taken, *(name for name in heavy.split() if name in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    taken, *heavy = done.stdout.split()
    assert heavy == []
    print(f"importing the tokenizer took {1000 * float(taken):.1f} ms of CPU beyond NumPy")  # noqa: T201
