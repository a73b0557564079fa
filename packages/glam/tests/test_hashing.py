import re

import numpy as np
import polars as pl

from chapbook.glam.hashing import joined_grams, mix, uniform, word_grams

TEXTS = ["The cat, the DOG.", "", "  a1 b2\nthe—cat ", "Füße", "x"]
MASK = (1 << 64) - 1


def mixed(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def word_hash(word: bytes) -> int:
    return mixed(
        sum((b + 1) * pow(0x9E3779B97F4A7C15, i, 1 << 64) for i, b in enumerate(word)) & MASK
    )


def words(text: str) -> list[bytes]:
    return re.findall(rb"[a-z0-9\x80-\xff]+", text.encode().lower())  # bytes lower ASCII alone


def test_words_hash_as_the_sum_over_their_bytes_says():
    found = word_grams(pl.Series(TEXTS))
    wanted = [(i, word_hash(word)) for i, text in enumerate(TEXTS) for word in words(text)]
    assert list(zip(found.text.tolist(), found.hashes.tolist(), strict=True)) == wanted


def test_grams_do_not_cross_texts_and_tell_the_order_of_words():
    for n in (1, 2, 3, 9):
        found = joined_grams(word_grams(pl.Series(TEXTS)), n)
        wanted = [i for i, text in enumerate(TEXTS) for _ in range(len(words(text)) - n + 1)]
        assert found.text.tolist() == wanted
    pairs = joined_grams(word_grams(pl.Series(["a b", "b a", "A. B!", "b"])), 2).hashes.tolist()
    assert pairs[0] == pairs[2] != pairs[1]


def test_hashes_do_not_depend_on_the_company():
    alone = [word_grams(pl.Series([text])).hashes.tolist() for text in TEXTS]
    assert word_grams(pl.Series(TEXTS)).hashes.tolist() == [h for each in alone for h in each]


def test_no_texts_have_no_words():
    for texts in ([], [""], ["..."]):
        found = joined_grams(word_grams(pl.Series(texts, dtype=pl.String)), 2)
        assert len(found.hashes) == len(found.text) == 0
    assert len(uniform(pl.Series([], dtype=pl.String), 0, "x")) == 0


def test_uniform_numbers_are_uniform_and_independent_over_seeds_and_purposes():
    ids = pl.Series([f"document-{i:07d}" for i in range(100_000)])
    a, b, c = uniform(ids, 0, "x"), uniform(ids, 1, "x"), uniform(ids, 0, "y")
    for each in (a, b, c):
        counts, _ = np.histogram(each, 100, (0, 1))
        # Chi-squared of 99 degrees of freedom: mean 99, deviation 14.
        assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 5 * 14
    for one, other in ((a, b), (a, c)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(len(ids))
    assert uniform(ids.reverse(), 0, "x").tolist() == a[::-1].tolist()


def test_uniform_numbers_never_change():
    found = uniform(pl.Series(["a", "doc-1"]), 7, "held-out")
    wanted = []
    for name in (b"a", b"doc-1"):
        mixed_names = mixed(word_hash(name) ^ word_hash(b"held-out:7"))
        wanted.append((mixed_names >> 11) / 2**53)
    assert found.tolist() == wanted


def test_mix_is_splitmix():
    assert mix(np.array([1, 2**63], np.uint64)).tolist() == [mixed(1), mixed(2**63)]
