import random
import re

import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.glam import overlap
from chapbook.glam.overlap import EvaluationOverlap, drop_duplicates, near_duplicates

WORDS = [f"w{i}" for i in range(50)]


def sentence(draw: random.Random, count: int) -> list[str]:
    return draw.choices(WORDS, k=count)


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return list(zip(*(words[i:] for i in range(n)), strict=False))


@pytest.mark.parametrize("n", [8, 13])
def test_shared_runs_are_those_that_sets_of_words_share(n, monkeypatch):
    draw = random.Random(0)
    evaluation = [" ".join(sentence(draw, draw.randint(5, 40))) for _ in range(50)]
    texts = [""]
    for _ in range(200):
        words = sentence(draw, draw.randint(0, 60))
        if draw.random() < 0.4:  # a run of an evaluation text, of any length, written otherwise
            found = draw.choice(evaluation).split()
            start = draw.randrange(len(found))
            words[5:5] = [w.upper() + "," for w in found[start : start + draw.randint(5, 20)]]
        texts.append(" ".join(words))
    known = {gram for text in evaluation for gram in grams(text, n)}
    wanted = [sum(gram in known for gram in grams(text, n)) for text in texts]
    finder = EvaluationOverlap(pl.Series(evaluation), n)
    assert finder.short == sum(len(text.split()) < n for text in evaluation)
    assert finder.count(pl.Series(texts)).tolist() == wanted
    monkeypatch.setattr(overlap, "CHUNK", 7)
    assert finder.count(pl.Series(texts)).tolist() == wanted
    assert 0 < sum(count > 0 for count in wanted) < 100
    kept = finder.remove(pl.DataFrame({"text": texts, "n": wanted}))
    assert kept["n"].to_list() == [0] * wanted.count(0)


def test_the_length_of_runs_follows_the_evaluation():
    def of(*lengths: int) -> int:
        texts = [" ".join(["word"] * length) for length in lengths]
        return EvaluationOverlap(pl.Series(texts)).n

    assert of(*[10] * 100) == 10
    assert of(*[2] * 50, *[40] * 50) == 8
    assert of(*[100] * 100) == 13


def test_evaluations_without_a_run_are_refused():
    for texts, n, told in [
        (["a b"], None, "no evaluation text has 8 words"),
        ([], None, "no evaluation text has 8 words"),
        (["a b"], 3, "runs of 3 words: give 8 to 13"),
    ]:
        with pytest.raises(Error, match=told):
            EvaluationOverlap(pl.Series(texts, dtype=pl.String), n)


def test_the_first_of_equal_texts_stays_over_all_batches():
    texts = ["a", "b", "a", "A", "", "b", "c", ""]
    table = pl.DataFrame({"text": texts, "n": range(8)})
    kept = pl.concat(drop_duplicates(table.iter_slices(3)))
    assert kept["n"].to_list() == [0, 1, 3, 4, 6]


def changed(words: list[str], draw: random.Random, count: int) -> list[str]:
    words = list(words)
    for place in draw.sample(range(len(words)), count):
        words[place] = "other"
    return words


def test_near_duplicates_are_those_of_high_similarity():
    draw = random.Random(1)
    originals = [sentence(draw, 200) for _ in range(30)]
    near = [changed(words, draw, 2) for words in originals]  # similarity about 0.9
    far = [changed(words, draw, 30) for words in originals]  # below 0.4
    texts = [" ".join(words) for words in [*originals, *near, *far]]
    similarity = [
        len(a & b) / len(a | b)
        for i in range(30)
        for a, b in [(set(grams(texts[i], 5)), set(grams(texts[30 + i], 5)))]
    ]
    assert min(similarity) > 0.88
    found = near_duplicates(pl.Series(texts))
    assert not found[:30].any()
    assert found[30:60].mean() > 0.9
    assert not found[60:].any()


def test_the_estimate_is_the_similarity():
    draw = random.Random(2)
    words = sentence(draw, 300)
    texts = pl.Series([" ".join(words), " ".join(changed(words, draw, 10))])
    a, b = (set(grams(text, 5)) for text in texts)
    wanted = len(a & b) / len(a | b)
    first, second = overlap._signatures(texts, 5, 4000, 0)
    assert abs((first == second).mean() - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 4000)


def test_equal_texts_are_near_duplicates_however_short():
    texts = ["", "One.", "one", "two", "a b c d e f", "", "A b c d e f!", "b a", "a b"]
    wanted = [False, False, True, False, False, False, True, False, False]
    assert near_duplicates(pl.Series(texts)).tolist() == wanted
    assert len(near_duplicates(pl.Series([], dtype=pl.String))) == 0
    assert near_duplicates(pl.Series(["", ""])).tolist() == [False, False]


def test_chains_of_similar_texts_keep_one():
    draw = random.Random(3)
    chain = [sentence(draw, 200)]
    for _ in range(5):
        chain.append(changed(chain[-1], draw, 1))
    texts = pl.Series([" ".join(words) for words in chain])
    assert near_duplicates(texts, threshold=0.85, bands=40, rows=4).tolist() == [False] + [True] * 5
    with pytest.raises(Error, match="threshold=0"):
        near_duplicates(texts, threshold=0.0)
