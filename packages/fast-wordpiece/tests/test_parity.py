"""The tokenizer beside Hugging Face's and the plain-Python one, in every field; all paths alike."""

import ctypes
import itertools
import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from chapbook.fast_wordpiece import _core, compiled, reference
from chapbook.fast_wordpiece.settings import (
    AddedToken,
    Normalizer,
    Padding,
    Settings,
    SettingsError,
    Template,
    Truncation,
)
from chapbook.fast_wordpiece.tokenizer import Tokenizer

NAMES = ["ids", "offsets", "word_ids", "type_ids"]
NAMES += ["attention_mask", "special_tokens_mask", "sequence_ids"]
ISAS = _core.instruction_sets()


def fields(row: Any) -> dict[str, list]:
    """What an encoding of ours, of the reference or of Hugging Face says, without its windows."""
    out = {name: np.asarray(getattr(row, name), object).tolist() for name in NAMES}
    return out | {"offsets": [tuple(map(int, pair)) for pair in row.offsets]}


def with_windows(row: Any) -> list[dict[str, list]]:
    return [fields(row), *map(fields, row.overflowing)]


def assert_same(settings: Settings, ours: Tokenizer, hf: Any, *args: Any, **options: Any) -> None:
    """All three say the same, or where Hugging Face refuses, ours and the reference do so too.

    Without a template, Hugging Face forgets which text the tokens of windows of overflow and of
    padding are of: there the reference does the same, and ours does not.
    """
    try:
        theirs = hf.encode(*args, **options)
    except Exception:
        with pytest.raises(SettingsError):
            reference.encode(settings, *args, **options)
        with pytest.raises(ValueError):
            list(ours.encode(*args, **options).offsets)
        return
    row = ours.encode(*args, **options)
    kept = NAMES if settings.template is not None else NAMES[:-1]
    for mine, other in zip(with_windows(row), with_windows(theirs), strict=True):
        assert [mine[name] for name in kept] == [other[name] for name in kept], (args, options)
    if settings.template is None:
        assert fields(row)["sequence_ids"] == list(theirs.sequence_ids)
    spelled = {token.id: token.content for token in settings.added_tokens}
    spelled = {number: piece for piece, number in settings.vocab.items()} | spelled
    assert row.tokens == [spelled[number] for number in theirs.ids]
    oracle = reference.encode(settings, *args, **options)
    assert with_windows(oracle) == with_windows(theirs), (args, options)


@pytest.fixture(scope="module")
def vocab(differential: ModuleType) -> dict[str, int]:
    return differential.vocabulary()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Hugging Face's threads gain nothing on short texts, and warn when a test forks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield


# --------------------------------------------------------------------------------- random texts


def test_random_strings_have_the_ids_offsets_and_words_of_tokenizers(differential):
    pytest.importorskip("tokenizers")
    assert differential.run("tests", 6_000) == []


@pytest.mark.slow
def test_many_random_strings_have_the_ids_offsets_and_words_of_tokenizers(differential):
    pytest.importorskip("tokenizers")
    assert differential.run("many tests", 100_000) == []


def test_what_went_wrong_once_is_right_now(differential):
    pytest.importorskip("tokenizers")
    cases = list(differential.corpus())
    assert len(cases) > 5
    assert [path.name for path, case in cases if not differential.is_mended(case)] == []


def test_the_fuzzer_sees_a_difference(differential):
    pytest.importorskip("tokenizers")
    cased, uncased = differential.both("cased")[0], differential.both("uncased")[1]
    assert list(differential.differing(cased, uncased, ["a", "é", "b"])) == ["é"]
    assert not differential.misjudged(b"abc\xff")
    kept, _ = differential.both("uncased, accents kept")
    assert list(differential.differing(kept, uncased, ["a\u0301b", "a"])) == ["a\u0301b"]


@pytest.mark.parametrize("name", ["uncased", "cased", "cased, accents stripped", "nothing cleaned"])
def test_every_field_is_that_of_tokenizers_and_of_the_reference(name, differential, vocab):
    pytest.importorskip("tokenizers")
    settings = replace(Settings.bert(vocab), normalizer=differential.NORMALIZERS[name])
    ours, hf = Tokenizer(settings), differential.huggingface(settings)
    rng = random.Random(name)
    for _ in range(120):
        text, pair = differential.nasty_text(rng, 8), differential.nasty_text(rng, 5)
        special = rng.random() < 0.7
        assert_same(settings, ours, hf, text, add_special_tokens=special)
        assert_same(settings, ours, hf, text, pair, add_special_tokens=special)


def test_words_that_come_cut_are_encoded_as_by_tokenizers(differential, vocab):
    pytest.importorskip("tokenizers")
    settings = Settings.bert(vocab)
    ours, hf = Tokenizer(settings), differential.huggingface(settings)
    rng = random.Random(4)
    for _ in range(120):
        first, second = (
            [differential.nasty_text(rng, 4) for _ in range(rng.randrange(5))] for _ in "ab"
        )
        assert_same(settings, ours, hf, first, is_pretokenized=True)
        assert_same(settings, ours, hf, first, second, is_pretokenized=True)


@pytest.mark.parametrize("mark", ["a", "@", "@@", "#", "ab", "é", "\u2581", "+a", ""])
@pytest.mark.parametrize("limit", [100, 3, 0])
def test_any_mark_is_read_as_by_tokenizers(mark, limit, differential):
    pytest.importorskip("tokenizers")
    rng = random.Random(f"{mark} {limit}")
    for _ in range(6):
        pieces = ["".join(rng.choices("ab@#é", k=rng.randrange(1, 4))) for _ in range(20)]
        pieces += [mark, mark * 2, "a", f"{mark}a", f"{mark}b", *(mark + p for p in pieces[::2])]
        vocab = {
            p: number for number, p in enumerate(["[UNK]", *dict.fromkeys(filter(None, pieces))])
        }
        settings = Settings(
            vocab,
            mark=mark,
            max_input_chars_per_word=limit,
            normalizer=Normalizer(lowercase=False),
        )
        ours, hf = Tokenizer(settings), differential.huggingface(settings)
        for _ in range(40):
            text = "".join(rng.choices(("a", "b", "@", "#", "é", " ", "\u2581", "ab", mark), k=9))
            assert_same(settings, ours, hf, text)
            assert ours.encode_ids(text).tolist() == hf.encode(text).ids


CONTENTS = (
    "<m>",
    "<m",
    "m>",
    "x<m>y",
    "ab",
    "a b",
    "abc",
    "café",
    "the",
    " the",
    "the ",
    "中国",
    "한",
)


def added_tokens(rng: random.Random, vocab: dict[str, int]) -> tuple[AddedToken, ...]:
    """Tokens that overlap and touch, with random flags, some of them in the vocabulary."""
    new = itertools.count(len(vocab))
    out = []
    for content in rng.sample(CONTENTS, rng.randrange(1, 6)):
        flags = ("special", "normalized", "single_word", "lstrip", "rstrip")
        chosen = {flag: rng.random() < 0.5 for flag in flags}
        # Where white space is asked to take the white space before it, Hugging Face may panic.
        chosen["lstrip"] &= content[0] != " "
        number = vocab[content] if content in vocab else next(new)
        out.append(AddedToken(content, number, **chosen))
    return tuple(out)


@pytest.mark.parametrize("encode_special_tokens", [False, True])
def test_added_tokens_with_any_flags_are_cut_out_as_by_tokenizers(
    encode_special_tokens, differential, vocab
):
    pytest.importorskip("tokenizers")
    rng = random.Random(3)
    around = ("", "", " ", "  ", "\t", "x", "é", "_", "\u0301", ".", "\u00a0", "\u200b", "中", "A")
    for _ in range(25):
        settings = Settings(
            vocab,
            normalizer=rng.choice([*differential.NORMALIZERS.values()]),
            added_tokens=added_tokens(rng, vocab),
            encode_special_tokens=encode_special_tokens,
        )
        ours, hf = Tokenizer(settings), differential.huggingface(settings)
        contents = [token.content for token in settings.added_tokens]
        for _ in range(8):
            text = "".join(
                rng.choice(around) + rng.choice((str.upper, str.lower, str))(rng.choice(contents))
                for _ in range(rng.randrange(1, 6))
            )
            text += rng.choice(around)
            assert_same(settings, ours, hf, text)
            assert_same(settings, ours, hf, differential.nasty_text(rng, 5, contents))
            # The ids alone take another path.
            assert ours.encode_ids(text).tolist() == hf.encode(text).ids
            batch = ours.encode_batch([text, text[1:]])
            assert batch[1].ids.tolist() == hf.encode(text[1:]).ids


# ------------------------------------------------------------ truncation, templates and padding


def templates(vocab: dict[str, int]) -> dict[str, Template | None]:
    first, last = (("[CLS]", (vocab["[CLS]"],), 0), ("[SEP]", (vocab["[SEP]"],), 0))
    return {
        "bert": Settings.bert(vocab).template,
        "none": None,
        "other types": Template(
            (("A", 3), (*last[:2], 4)), (first, ("B", 2), last, ("A", 5), (*last[:2], 1))
        ),
        "roberta": Template(
            (first, ("A", 0), last), (first, ("A", 0), last, last, ("B", 0), last), roberta=True
        ),
    }


@pytest.mark.parametrize("name", ["bert", "none", "other types", "roberta"])
@pytest.mark.parametrize("direction", ["right", "left"])
def test_truncation_makes_the_rows_and_windows_of_tokenizers(name, direction, differential, vocab):
    pytest.importorskip("tokenizers")
    rng = random.Random(5)
    base = Settings(vocab, template=templates(vocab)[name])
    whole = Tokenizer(base)
    refused = 0
    for strategy in ("longest_first", "only_first", "only_second"):
        for _ in range(40):
            stride = rng.choice((0, 0, 1, 2, 3))
            truncation = Truncation(stride + rng.randrange(1, 9), stride, strategy, direction)
            settings = replace(base, truncation=truncation)
            ours = whole.with_truncation(
                truncation.max_length, stride=stride, strategy=strategy, direction=direction
            )
            first, second = (" ".join("abcxyz"[: rng.randrange(7)]) for _ in "ab")
            args = (first, second) if rng.random() < 0.7 else (first,)
            special = rng.random() < 0.7
            try:
                reference.encode(settings, *args, add_special_tokens=special)
            except SettingsError as problem:
                # Hugging Face panics here, or does not truncate.
                if "stride" in str(problem) or "tokens of the template" in str(problem):
                    with pytest.raises(ValueError, match=r"\d+ .* less than the \d+"):
                        ours.encode(*args, add_special_tokens=special)
                    refused += 1
                    continue
            try:
                hf = differential.huggingface(settings)
            except Exception as problem:
                assert "stride" in str(problem)
                continue
            assert_same(settings, ours, hf, *args, add_special_tokens=special)
    assert refused < 60


def test_without_a_template_windows_know_which_text_they_are_of(vocab):
    ours = Tokenizer(Settings(vocab)).with_truncation(4, stride=1)
    rows = [ours.encode("a b c x y z", "a b c"), ours.encode("a b c x y z")]
    pair, single = ([row.sequence_ids for row in (first, *first.overflowing)] for first in rows)
    assert len(pair) == 10 and all(each == [0, 0, 1, 1] for each in pair)
    assert single == [[0] * 4, [0] * 3]


@pytest.mark.parametrize("name", ["bert", "none", "other types", "roberta"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_padded_as_by_tokenizers(name, side, differential, vocab):
    pytest.importorskip("tokenizers")
    rng = random.Random(6)
    whole = Tokenizer(Settings(vocab, template=templates(vocab)[name]))
    for length, multiple_of, truncation in itertools.product(
        (None, 0, 5, 12), (None, 0, 4), (None, Truncation(8, 1, direction="left"))
    ):
        padding = Padding(length, multiple_of, side, id=vocab["[PAD]"], type_id=7, token="[PAD]")
        settings = replace(whole.settings, truncation=truncation, padding=padding)
        hf = differential.huggingface(settings)
        texts = [" ".join("abcxyz"[: rng.randrange(7)]) for _ in range(4)]
        for pairs, theirs in ((None, texts), (["a b"] * 4, [(text, "a b") for text in texts])):
            ours = whole.encode_batch(
                texts, pairs, truncation=truncation, padding=padding, offsets=True
            )
            kept = whole.encode_batch(
                texts, pairs, truncation=truncation, padding=padding, offsets=True, overflow=True
            )
            rows = hf.encode_batch(theirs)
            windows = [each for row in rows for each in (row, *row.overflowing)]
            for mine, other in ((ours, rows), (kept, windows)):
                for one, two in zip(map(fields, mine), map(fields, other), strict=True):
                    if name == "none":  # see assert_same
                        one["sequence_ids"] = two["sequence_ids"] = []
                    assert one == two


def test_a_tokenizer_takes_over_that_of_tokenizers(differential, vocab):
    pytest.importorskip("tokenizers")
    settings = replace(
        Settings.bert(vocab, truncation=Truncation(9, 2), padding=Padding(12)),
        added_tokens=(
            *Settings.bert(vocab).added_tokens,
            AddedToken("<m>", len(vocab), lstrip=True),
        ),
    )
    hf = differential.huggingface(settings)
    ours = Tokenizer.from_pretrained(hf)
    rng = random.Random(7)
    for _ in range(60):
        text = differential.nasty_text(rng, 8, ("<m>", " <m>", "[SEP]"))
        row = ours.encode(text)
        assert with_windows(row) == with_windows(hf.encode(text))
        assert ours.decode(row.ids) == hf.decode(hf.encode(text).ids)
    unlimited = Tokenizer.from_pretrained(hf, ignore_limits=True)
    assert len(ours.encode_ids("a " * 30)) == 12
    assert len(unlimited.encode_ids("a " * 30)) == 32


# ------------------------------------------------------------------------------------ all paths


def test_byte_offsets_are_those_of_the_characters_in_utf8(differential, vocab):
    ours = Tokenizer(Settings.bert(vocab))
    rng = random.Random(8)
    texts = [differential.nasty_text(rng) for _ in range(400)]
    chars, in_bytes = (
        ours.encode_batch(texts, offsets=True, offset_unit=unit) for unit in ("char", "byte")
    )
    assert np.array_equal(chars.ids, in_bytes.ids)
    assert np.array_equal(chars.word_ids, in_bytes.word_ids)
    for text, row, other in zip(texts, chars, in_bytes, strict=True):
        places = np.cumsum([0] + [len(char.encode()) for char in text])
        assert np.array_equal(places[row.offsets], other.offsets)


def test_ids_do_not_depend_on_what_else_is_asked_for(differential, vocab):
    ours = Tokenizer(Settings.bert(vocab))
    rng = random.Random(9)
    texts = [differential.nasty_text(rng) for _ in range(600)]
    alone = ours.encode_batch(texts)
    for offsets, words in ((True, None), (False, True), (True, False)):
        batch = ours.encode_batch(texts, offsets=offsets, word_ids=words)
        assert np.array_equal(batch.ids, alone.ids)
        assert np.array_equal(batch.row_offsets, alone.row_offsets)
    assert np.array_equal(ours.count_batch(texts), alone.lengths)
    for text, row in zip(texts, alone, strict=True):
        assert np.array_equal(ours.encode_ids(text), row.ids)
        assert np.array_equal(ours.encode(text).ids, row.ids)
    streamed = [row.ids for batch in ours.stream(iter(texts), 500) for row in batch]
    assert all(map(np.array_equal, streamed, (row.ids for row in alone)))


def encoders(settings: Settings) -> dict[str, _core.Encoder]:
    """The settings' encoders for each instruction set, none with a cache that another filled."""
    block = compiled.compile_settings(settings).block
    return {isa: compiled.encoder(_core.open(block), settings, None, isa) for isa in ISAS}


def flat(encoder: _core.Encoder, data: np.ndarray, starts: Any, ends: Any, **options: bool) -> list:
    """The arrays that an encoder makes of texts in a buffer."""
    wanted = [options.get(name, False) for name in ("special", "offsets", "words", "bytes")]
    places = np.asarray(starts, np.int64), np.asarray(ends, np.int64)
    return list(encoder.encode_flat(data, *places, None, *wanted, overflow=False, threads=1))


def assert_all_equal(results: list[list]) -> None:
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert (one is None) == (two is None)
            assert one is None or np.array_equal(one, np.asarray(two))


EDGES = sorted({length + more for length in (16, 32, 64, 128, 4096, 8192) for more in (-1, 0, 1)})


@pytest.mark.parametrize("name", ["uncased", "cased"])
def test_all_instruction_sets_give_the_same_at_every_length(name, differential, vocab):
    settings = replace(Settings.bert(vocab), normalizer=differential.NORMALIZERS[name])
    made = encoders(settings)
    oracle = Tokenizer(settings)
    rng = random.Random(10)
    alphabets = ("a", "ab ", "aB.", "Az@[`{/:09 \t\n\r\x0b", "aé ", "中a", ".", " ", "a😀 \u0301")
    for length in [*range(70), *EDGES]:
        for alphabet in alphabets if length < 200 else rng.sample(alphabets, 4):
            text = "".join(rng.choices(alphabet, k=length))
            # By bytes, as a scan sees it: characters are dropped until the length is right.
            data = text.encode()[:length].decode(errors="ignore").encode()
            data += b"x" * (length - len(data))
            array = np.frombuffer(data, np.uint8)
            results = [flat(encoder, array, [0], [len(data)]) for encoder in made.values()]
            assert_all_equal(results)
            whole = oracle.encode_batch([data.decode()], offsets=True, add_special_tokens=False)
            assert np.array_equal(results[0][0], whole.ids), (length, alphabet)


def test_a_long_word_is_one_stretch_across_blocks_and_tiles(vocab):
    settings = Settings(vocab, max_input_chars_per_word=10**6)
    made = encoders(settings)
    for before, length in itertools.product((0, 1, 60, 63, 64, 4000), (*EDGES, 200, 20_000)):
        data = np.frombuffer(b"." * before + b"a" * length + b" b", np.uint8)
        results = [
            flat(encoder, data, [0], [len(data)], offsets=False) for encoder in made.values()
        ]
        assert_all_equal(results)
        ids = results[0][0].tolist()
        assert ids == [vocab["."]] * before + [vocab["a"]] + [vocab["##a"]] * (length - 1) + [
            vocab["b"]
        ]


@pytest.fixture
def page() -> Iterator[np.ndarray]:
    """Two pages of memory, behind which a page lies that cannot be read."""
    if os.name == "nt":
        pytest.skip("guards memory with mprotect")
    size = mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    memory = mmap.mmap(-1, 3 * size)
    whole = (ctypes.c_uint8 * (3 * size)).from_buffer(memory)
    guard = ctypes.addressof(whole) + 2 * size
    assert libc.mprotect(guard, size, 0) == 0  # PROT_NONE
    yield np.ctypeslib.as_array(whole)[: 2 * size]
    assert libc.mprotect(guard, size, mmap.PROT_READ | mmap.PROT_WRITE) == 0


def test_nothing_behind_a_text_is_read(page, vocab):
    made = encoders(Settings.bert(vocab))
    rng = random.Random(11)
    texts = [
        "".join(rng.choices(alphabet, k=length)).encode()
        for length in [*range(1, 70), 127, 128, 129, 2047, 4000]
        for alphabet in ("ab. ", "a", "aé中😀 ", "한国")
    ]
    for data in texts:
        data = data[: len(page)]
        page[len(page) - len(data) :] = np.frombuffer(data, np.uint8)
        view = page[len(page) - len(data) :]
        for options in ({}, {"offsets": True, "words": True}):
            results = [
                flat(encoder, view, [0], [len(data)], **options) for encoder in made.values()
            ]
            copied = flat(
                made["scalar"], np.frombuffer(data, np.uint8), [0], [len(data)], **options
            )
            assert_all_equal([copied, *results])
        # A character that the end of memory cuts in two.
        for rest in (b"\xc3", b"\xe4\xb8", b"\xf0\x9f\x98"):
            page[-len(rest) :] = np.frombuffer(rest, np.uint8)
            assert_all_equal([flat(each, view, [0], [len(view)]) for each in made.values()])


def test_texts_at_every_alignment_are_the_same(vocab):
    made = encoders(Settings.bert(vocab))
    text = ("Hugging cafe\u0301 a.b 中国 " * 9).encode()
    room = np.zeros(len(text) + 200, np.uint8)
    results = []
    for at in range(130):
        room[:] = ord("x")
        room[at : at + len(text)] = np.frombuffer(text, np.uint8)
        results += [flat(encoder, room, [at], [at + len(text)]) for encoder in made.values()]
    assert_all_equal(results)


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_chooses_the_instruction_set(isa, monkeypatch, vocab):
    monkeypatch.setenv("CHAPBOOK_FWP_ISA", isa)
    assert Tokenizer(Settings.bert(vocab)).encode_ids("a b").tolist() == [
        vocab[piece] for piece in ("[CLS]", "a", "b", "[SEP]")
    ]
    monkeypatch.setenv("CHAPBOOK_FWP_ISA", "mmx")
    with pytest.raises(ValueError, match="auto, scalar, avx2 and avx512"):
        Tokenizer(Settings.bert(vocab))


@pytest.mark.parametrize("bits", [0, 1, 2, 4, 15])
def test_the_size_of_the_cache_changes_no_id(bits, differential, vocab):
    settings = Settings.bert(vocab)
    block = compiled.compile_settings(settings).block
    encoder = compiled.encoder(_core.open(block, bits), settings, None, "auto")
    rng = random.Random(12)
    # Few words, often: they are found, and they displace one another.
    words = [differential.nasty_text(rng, 3) for _ in range(60)]
    words += ["a" * 15, "a" * 16, "a" * 17, "ab" * 8, "a" * 32, "a" * 33, "\0", "a\0", "\0\0"]
    texts = [" ".join(rng.choices(words, k=rng.randrange(9))) for _ in range(400)]
    tokenizer = Tokenizer(settings)
    expected = tokenizer.encode_batch(texts, offsets=True)
    for _ in range(2):
        ids, bounds, *_ = encoder.encode_batch(
            texts, None, False, True, False, False, False, False, 1
        )
        assert np.array_equal(ids, expected.ids)
        assert np.array_equal(bounds, expected.row_offsets)


# ----------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("normalizer", [Normalizer(), Normalizer(lowercase=False)])
def test_offsets_are_ordered_inside_the_text_and_cover_all_that_is_not_deleted(
    normalizer, differential, vocab
):
    settings = replace(Settings.bert(vocab), normalizer=normalizer)
    ours = Tokenizer(settings)
    rng = random.Random(13)
    # Marks that canonical ordering moves leave their origins behind, as in Hugging Face.
    texts = [differential.nasty_text(rng).replace("\U0001d165", "") for _ in range(500)]
    for text, row in zip(
        texts, ours.encode_batch(texts, offsets=True, add_special_tokens=False), strict=True
    ):
        offsets = row.offsets
        assert (offsets[:, 0] <= offsets[:, 1]).all() and (offsets <= len(text)).all()
        assert (np.diff(offsets[:, 0].astype(int)) >= 0).all()
        assert (np.diff(offsets[:, 1].astype(int)) >= 0).all()
        covered = np.zeros(len(text), bool)
        for start, end in offsets:
            covered[start:end] = True
        for place, char in enumerate(text):
            alone = reference.words(settings, char)
            assert covered[place] or not alone or text[place - 1 : place + 2] != char, (text, place)


def test_decoding_what_was_decoded_once_changes_nothing_more(differential, vocab):
    ours = Tokenizer(Settings.bert(vocab))
    rng = random.Random(14)
    for _ in range(300):
        once = ours.decode(ours.encode_ids(differential.nasty_text(rng, 8)))
        twice = ours.decode(ours.encode_ids(once))
        assert ours.decode(ours.encode_ids(twice)) == twice


def test_texts_with_a_space_between_them_give_their_tokens_one_after_the_other(differential, vocab):
    ours = Tokenizer(replace(Settings.bert(vocab), added_tokens=()))
    rng = random.Random(15)
    texts = [differential.nasty_text(rng) for _ in range(300)]
    rows = [row.ids for row in ours.encode_batch(texts, add_special_tokens=False)]
    for one, two in itertools.pairwise(range(len(texts))):
        joined = ours.encode_ids(f"{texts[one]} {texts[two]}", add_special_tokens=False)
        assert np.array_equal(joined, np.concatenate([rows[one], rows[two]]))


def test_this_machine_tests_more_than_the_portable_scan():
    assert ISAS[0] == "scalar"
    processor = Path("/proc/cpuinfo")
    if processor.exists() and " avx2 " in processor.read_text():
        assert "avx2" in ISAS
