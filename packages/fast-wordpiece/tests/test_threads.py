"""Threads, processes and long texts: the same buffers whoever does the work."""

import multiprocessing
import os
import pickle
import random
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from chapbook.fast_wordpiece import tokenizer as module
from chapbook.fast_wordpiece.encoding import EncodingBatch
from chapbook.fast_wordpiece.settings import AddedToken, Settings, Truncation
from chapbook.fast_wordpiece.tokenizer import Tokenizer

METHODS = multiprocessing.get_all_start_methods()


@pytest.fixture(scope="module")
def tok(differential: Any) -> Tokenizer:
    return Tokenizer(Settings.bert(differential.vocabulary()))


@pytest.fixture(scope="module")
def texts(differential: Any) -> list[str]:
    """Texts of a few hundred KiB, so that the threads share several chunks."""
    rng = random.Random(0)
    some = [differential.nasty_text(rng) for _ in range(2000)]
    return [" ".join(rng.choices(some, k=rng.randrange(30))) for _ in range(900)]


def assert_same(one: EncodingBatch, two: EncodingBatch) -> None:
    assert np.array_equal(one.ids, two.ids)
    assert np.array_equal(one.row_offsets, two.row_offsets)
    assert np.array_equal(one.offsets, two.offsets)
    assert np.array_equal(one.word_ids, two.word_ids)
    assert np.array_equal(one.samples, two.samples)
    assert np.array_equal(one.type_ids, two.type_ids)


@pytest.mark.parametrize("threads", [2, 7])
def test_any_number_of_threads_makes_the_same_buffers(threads, tok, texts):
    assert sum(map(len, texts)) > 4 * 64 * 1024
    truncation = Truncation(20, stride=3)
    calls: list[Callable[[int], EncodingBatch]] = [
        lambda n: tok.encode_batch(texts, offsets=True, num_threads=n),
        lambda n: tok.encode_batch(texts, texts[::-1], offsets=True, num_threads=n),
        lambda n: tok.encode_batch(
            texts, truncation=truncation, overflow=True, offsets=True, num_threads=n
        ),
        lambda n: tok.encode_batch(
            [text.split(" ") for text in texts], is_pretokenized=True, offsets=True, num_threads=n
        ),
    ]
    for call in calls:
        assert_same(call(1), call(threads))
    alone = tok.encode_batch(texts, num_threads=1)
    assert np.array_equal(alone.ids, tok.encode_batch(texts, num_threads=threads).ids)
    assert np.array_equal(tok.count_batch(texts, num_threads=threads), alone.lengths)


@pytest.mark.parametrize("threads", [1, 3])
def test_ids_alone_are_those_with_offsets_whatever_tokens_are_added(threads, tok, texts):
    # Only what is asked for may be written: the parts of a batch are put where their ids go.
    word = AddedToken("the", tok.get_vocab()["the"], normalized=True)
    for added in (word, AddedToken("<m>", 10_001)):
        ours = Tokenizer(replace(tok.settings, added_tokens=(added,)))
        for pair in (None, texts[::-1]):
            full = ours.encode_batch(texts, pair, offsets=True, num_threads=1)
            alone = ours.encode_batch(texts, pair, num_threads=threads)
            assert np.array_equal(alone.ids, full.ids)
            assert np.array_equal(alone.row_offsets, full.row_offsets)
            with pytest.raises(ValueError, match="offsets=True"):
                alone.offsets  # noqa: B018


def long_text(differential: Any, size: int, joint: str = " ") -> str:
    rng = random.Random(size)
    some = [differential.nasty_text(rng) for _ in range(3000)]
    parts: list[str] = []
    length = 0
    while length < size:
        parts.append(rng.choice(some))
        length += len(parts[-1].encode()) + len(joint)
    return joint.join(parts)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_long_text_is_cut_among_threads_and_nobody_can_tell(threads, differential, tok):
    text = long_text(differential, 3 << 19)
    assert len(text.encode()) > 1 << 20
    for unit in ("char", "byte"):
        batch = tok.encode_batch(
            ["a b", text, "", text[::2]], offsets=True, offset_unit=unit, num_threads=threads
        )
        # Pieces of less than a MiB, cut where a new line of ours cannot be part of anything.
        rows = [tok.encode_batch([part], offsets=True, offset_unit=unit) for part in ("a b", "")]
        assert np.array_equal(batch[0].ids, rows[0].ids)
        assert np.array_equal(batch[2].ids, rows[1].ids)
        ids, offsets, words = unsplit(tok, text, unit)
        row = batch[1]
        assert np.array_equal(row.ids[1:-1], ids)
        assert np.array_equal(row.offsets[1:-1], offsets)
        assert row.word_ids[1:-1] == words
    ids_alone = tok.encode_batch([text], num_threads=threads).ids
    assert np.array_equal(ids_alone[1:-1], ids)
    assert tok.count_batch([text], num_threads=threads).tolist() == [len(ids) + 2]
    assert np.array_equal(tok.encode_ids(text), ids_alone)


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("special", [True, False])
def test_long_texts_are_put_together_the_same_by_any_number_of_threads(
    threads, special, differential, tok, texts
):
    one, two = long_text(differential, 3 << 20), long_text(differential, 5 << 18)
    cut = Truncation(300, stride=20)
    wanted = {"offsets": True, "add_special_tokens": special}
    batches = ([one], [*texts[:300], one, two, *texts[300:], two], [one, "", one])
    for batch in batches:
        calls: list[Callable[[int], EncodingBatch]] = [
            lambda n, batch=batch: tok.encode_batch(batch, **wanted, num_threads=n),
            lambda n, batch=batch: tok.encode_batch(batch, batch[::-1], **wanted, num_threads=n),
            lambda n, batch=batch: tok.encode_batch(
                batch, truncation=cut, overflow=True, **wanted, num_threads=n
            ),
        ]
        for call in calls:
            assert_same(call(1), call(threads))
        counts, ids = (
            call(batch, add_special_tokens=special, num_threads=threads)
            for call in (tok.count_batch, tok.encode_batch)
        )
        alone = calls[0](1)
        assert np.array_equal(counts, alone.lengths)
        assert np.array_equal(ids.ids, alone.ids)
        # Whoever stands alone is the same as among others.
        row = tok.encode_batch([two], **wanted, num_threads=threads)[0]
        if two in batch:
            assert np.array_equal(alone[batch.index(two)].offsets, row.offsets)
            assert np.array_equal(alone[batch.index(two)].word_ids, row.word_ids)


def unsplit(tok: Tokenizer, text: str, unit: Any) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The tokens of a long text as one word that was cut by the caller: never split."""
    batch = tok.encode_batch(
        [[text]], is_pretokenized=True, offsets=True, offset_unit=unit, add_special_tokens=False
    )
    # The words are those of the text, not of the list: a new one begins where offsets have a gap,
    # so they are counted by a tokenizer that takes the text as the second of a pair.
    pair = tok.encode_batch(["a"], [text], offsets=True, offset_unit=unit, add_special_tokens=False)
    assert np.array_equal(pair.ids[1:], batch.ids)
    assert np.array_equal(pair.offsets[1:], batch.offsets)
    return batch.ids, batch.offsets, pair.word_ids[1:].tolist()


@pytest.mark.parametrize("joint", ["", "\x0b", "\u200b", "\u0301", "\u3000", "中"])
def test_a_long_text_without_white_space_to_cut_at_is_the_same(joint, differential, tok):
    text = long_text(differential, 5 << 18, joint).translate(dict.fromkeys(map(ord, " \t\n\r")))
    batch = tok.encode_batch([text], offsets=True, num_threads=3)
    ids, offsets, words = unsplit(tok, text, "char")
    assert np.array_equal(batch.ids[1:-1], ids)
    assert np.array_equal(batch.offsets[1:-1], offsets)
    assert batch.word_ids[1:-1].tolist() == words


@pytest.mark.parametrize(
    "tokens",
    [
        (AddedToken("<m>", 10_000, lstrip=True, rstrip=True),),
        (AddedToken("a b", 10_001), AddedToken("x", 10_002, rstrip=True)),
        (AddedToken("the", 10_003, normalized=True, single_word=True),),
        (AddedToken("Un", 10_004, normalized=True, lstrip=True), AddedToken("<m>", 10_005)),
    ],
)
def test_a_long_text_with_added_tokens_at_the_joints_is_the_same(tokens, differential, tok):
    known = [token for token in tokens if token.content not in tok.get_vocab()]
    known += [
        replace(token, id=tok.get_vocab()[token.content])
        for token in tokens
        if token.content in tok.get_vocab()
    ]
    ours = Tokenizer(replace(tok.settings, added_tokens=tuple(known)))
    rng = random.Random(1)
    parts = ("a b", "a", " ", "  ", "\n", "<m>", "the", "Un", "x", "café", "[CLS]", "other words ")
    text = "".join(rng.choices(parts, k=500_000))
    assert len(text) > 1 << 20
    batch = ours.encode_batch([text], offsets=True, num_threads=3)
    ids, offsets, words = unsplit(ours, text, "char")
    assert np.array_equal(batch.ids[1:-1], ids)
    assert np.array_equal(batch.offsets[1:-1], offsets)
    assert batch.word_ids[1:-1].tolist() == words


def test_one_tokenizer_serves_eight_threads_at_once(tok, texts):
    expected = [tok.encode_batch(texts[n::8], offsets=True, num_threads=1) for n in range(8)]
    start = threading.Barrier(8)

    def work(n: int) -> list[EncodingBatch]:
        start.wait()
        return [
            tok.encode_batch(texts[n::8], offsets=True, num_threads=1 + n % 3) for _ in range(3)
        ]

    def queries(n: int) -> bool:
        start.wait()
        return all(
            np.array_equal(tok.encode_ids(text), row.ids)
            for text, row in zip(texts[n::8], expected[n], strict=True)
        )

    with ThreadPoolExecutor(8) as pool:
        for n, batches in enumerate(pool.map(work, range(8))):
            for batch in batches:
                assert_same(batch, expected[n])
        assert all(pool.map(queries, range(8)))


def test_strings_that_nobody_else_holds_live_as_long_as_the_call(tok, texts):
    expected = tok.encode_batch([f"{text}!é" for text in texts], num_threads=1)
    for threads in (1, 3):
        batch = tok.encode_batch((f"{text}!é" for text in texts), num_threads=threads)
        assert np.array_equal(batch.ids, expected.ids)
        pairs = tok.encode_batch(iter(texts), (f"{text}!é" for text in texts), num_threads=threads)
        assert len(pairs) == len(texts)


@pytest.mark.parametrize("method", METHODS)
def test_worker_processes_give_the_same(method, tok, texts):
    some = texts[:60]
    expected = tok.encode_batch(some, num_threads=2)  # and there were threads before the fork
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
        for ids, row in zip(pool.map(tok.encode_ids, some), expected, strict=True):
            assert np.array_equal(ids, row.ids)
        assert_same(
            pool.submit(partial(tok.encode_batch, offsets=True), some).result(),
            tok.encode_batch(some, offsets=True),
        )
        assert pool.submit(module._threads, None).result() == 1
    assert module._threads(None) == module.processors()


@pytest.mark.skipif("fork" not in METHODS, reason="no fork here")
def test_a_child_forked_in_the_middle_of_the_work_of_threads_can_encode(tok, texts):
    expected = tok.encode_batch(texts[:40]).ids
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            tok.encode_batch(texts, num_threads=3)

    busy = [threading.Thread(target=keep_busy) for _ in range(3)]
    for thread in busy:
        thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                right = np.array_equal(tok.encode_batch(texts[:40], num_threads=2).ids, expected)
                os._exit(0 if right else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in busy:
            thread.join()


def test_a_tokenizer_is_pickled_with_all_that_it_is(tok):
    made = tok.with_truncation(8, stride=1).with_padding(12).add_tokens(["<m>"], special=True)
    again = pickle.loads(pickle.dumps(made))
    assert again.settings == made.settings
    assert again.fingerprint == made.fingerprint
    assert again.encode_ids("a <m> b").tolist() == made.encode_ids("a <m> b").tolist()


def test_a_batch_is_pickled_with_its_rows(tok, texts):
    batch = tok.encode_batch(texts[:20], texts[20:40], offsets=True)
    assert batch.type_ids.any()
    again = pickle.loads(pickle.dumps(batch))
    assert_same(batch, again)
    assert again[3].tokens == batch[3].tokens


def test_threads_must_be_at_least_one(tok):
    with pytest.raises(ValueError, match="num_threads is 0"):
        tok.encode_batch(["a"], num_threads=0)
