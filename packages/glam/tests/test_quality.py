import random

import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.glam import quality
from chapbook.glam.quality import QualityClassifier, area_under_curve

COMMON = [f"common{i}" for i in range(300)]
GOOD = [f"good{i}" for i in range(60)]
BAD = [f"bad{i}" for i in range(60)]


def texts(words: list[str], count: int, seed: int, share: float = 0.06) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(
            draw.choice(words if draw.random() < share else COMMON)
            for _ in range(draw.randint(5, 60))
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def fitted() -> QualityClassifier:
    return QualityClassifier(bits=18).fit(texts(GOOD, 500, 0), texts(BAD, 700, 1))


def test_counts_are_those_of_words_and_pairs_in_rows_of_norm_one():
    table = pl.Series(["a b a b", "", "c!", "B a"])
    found = quality._matrix(table, 20)
    assert found.lengths.tolist() == [4, 0, 1, 3]  # a, b, (a b), (b a); c; a, b, (b a)
    rows = np.repeat(np.arange(4), found.lengths)
    sums = np.bincount(rows, found.values**2, 4)
    assert sums == pytest.approx([1, 0, 1, 1])
    first = sorted((found.values[:4] ** 2 * 13).round(9).tolist())
    assert first == [1, 4, 4, 4]  # (b a) once, the others twice
    alone = quality._matrix(pl.Series(["a"]), 20).bins
    assert alone[0] in found.bins[:4]


def test_the_minimum_is_that_of_the_loss_in_float64():
    good, bad = texts(GOOD, 40, 2), texts(BAD, 60, 3)
    fitted = QualityClassifier(bits=12, penalty=1e-2).fit(good, bad)
    parts = [quality._matrix(pl.Series(each), 12) for each in (good, bad)]
    x = np.zeros((100, 1 << 12))
    for offset, part in zip((0, 40), parts, strict=True):
        rows = offset + np.repeat(np.arange(len(part.lengths)), part.lengths)
        x[rows, part.bins] = part.values
    assert fitted.weights is not None
    y = np.repeat([1.0, 0.0], [40, 60])
    share = np.where(y == 1, 0.5 / 40, 0.5 / 60)
    p = 1 / (1 + np.exp(-(x @ fitted.weights + fitted.bias)))
    gradient = x.T @ (share * (p - y)) + 1e-2 * fitted.weights
    assert np.abs(gradient).max() < 1e-5
    assert abs((share * (p - y)).sum()) < 1e-5
    assert fitted.score([*good, *bad]) == pytest.approx(p, abs=1e-6)


def test_it_ranks_as_well_as_scikit_learn(fitted):
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    vectors = HashingVectorizer(ngram_range=(1, 2), n_features=1 << 18, alternate_sign=False)
    train = vectors.transform(texts(GOOD, 500, 0) + texts(BAD, 700, 1))
    labels = [1] * 500 + [0] * 700
    peer = LogisticRegression(C=1 / (1e-5 * 1200), max_iter=1000, class_weight="balanced")
    peer.fit(train, labels)
    good, bad = texts(GOOD, 300, 4), texts(BAD, 300, 5)
    scores = [peer.predict_proba(vectors.transform(each))[:, 1] for each in (good, bad)]
    ours = [fitted.score(each) for each in (good, bad)]
    areas = [area_under_curve(*each) for each in (ours, scores)]
    assert areas[1] == pytest.approx(roc_auc_score([1] * 300 + [0] * 300, np.concatenate(scores)))
    assert 0.7 < areas[1] < 1
    assert abs(areas[0] - areas[1]) < 0.005
    assert np.corrcoef(np.concatenate(ours), np.concatenate(scores))[0, 1] > 0.99


def test_ties_count_for_half_in_the_area():
    assert area_under_curve(np.array([1.0, 0.5]), np.array([0.5, 0.0])) == 3.5 / 4


def test_scores_do_not_depend_on_the_company(fitted, monkeypatch):
    some = [*texts(GOOD, 20, 6), "", *texts(BAD, 20, 7)]
    whole = fitted.score(pl.Series(some))
    assert whole == pytest.approx(
        np.concatenate([fitted.score([text]) for text in some]), abs=1e-12
    )
    monkeypatch.setattr(quality, "CHUNK", 500)
    assert np.array_equal(fitted.score(some), whole)
    assert fitted.score([""]) == pytest.approx(1 / (1 + np.exp(-fitted.bias)))
    assert len(fitted.score([])) == 0


def test_the_share_of_a_class_does_not_move_the_scores():
    good, bad = texts(GOOD, 100, 0), texts(BAD, 100, 1)
    once = QualityClassifier(bits=14).fit(good, bad)
    often = QualityClassifier(bits=14).fit(good, bad * 5)
    assert often.score(good) == pytest.approx(once.score(good), abs=2e-3)


def test_what_was_saved_scores_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "q.safetensors")
    loaded = QualityClassifier.load(tmp_path / "q.safetensors")
    some = texts(GOOD, 20, 8)
    assert np.array_equal(loaded.score(some), fitted.score(some))
    assert (loaded.bits, loaded.penalty) == (fitted.bits, fitted.penalty)
    fitted.save(tmp_path / "again.safetensors")
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == (tmp_path / "q.safetensors").read_bytes()


def test_what_cannot_be_done_is_told(tmp_path):
    empty = QualityClassifier()
    for act in (lambda: empty.score(["x"]), lambda: empty.save(tmp_path / "q")):
        with pytest.raises(Error, match="has not been fitted"):
            act()
    with pytest.raises(Error, match="no good text has a word"):
        empty.fit(["", "..."], ["x"])
    with pytest.raises(Error, match="no bad text has a word"):
        empty.fit(["x"], [])
    with pytest.raises(Error, match="bits=40: give 8 to 26"):
        QualityClassifier(bits=40)
    with pytest.raises(Error, match="penalty=0"):
        QualityClassifier(penalty=0.0)
    (tmp_path / "cut").write_bytes(b"12")
    with pytest.raises(Error, match="is not a whole safetensors file"):
        QualityClassifier.load(tmp_path / "cut")
    from safetensors.numpy import save_file

    save_file({"x": np.ones(1)}, tmp_path / "other")
    with pytest.raises(Error, match="holds no quality classifier"):
        QualityClassifier.load(tmp_path / "other")
