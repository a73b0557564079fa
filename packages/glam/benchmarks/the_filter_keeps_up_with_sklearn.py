"""Claim: the quality filter fits and scores at least as fast as scikit-learn, and ranks as well.

Python's own library, split into what its authors wrote for readers (docstrings, the good class) and
for the machine (code without them, the bad one), in pieces of up to 2,000 characters. Word uni- and
bigrams in 2^20 bins: `QualityClassifier` against HashingVectorizer with SGDClassifier, and against
fastText where it is installed. Every fifth piece is held back for the area under the curve.
Targets: at least the documents per second of the faster peer, and an area within 0.005.

Needs the packages in `requirements.txt`.
"""

import argparse
import ast
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import SGDClassifier

from chapbook.glam.quality import QualityClassifier, area_under_curve

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report, seconds

CLAIM = "the quality filter fits and scores at least as fast as scikit-learn, and ranks as well"
PIECE, BITS, HELD = 2000, 20, 5

Score = Callable[[list[str]], np.ndarray]


def pieces(most: int) -> tuple[list[str], list[str]]:
    """Returns pieces of docstrings, and of the code around them, up to a number of each."""
    good, bad = [], []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if len(good) >= most:
            break
        if "site-packages" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):  # files that test the parser
            continue
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef
        holders = [each for each in ast.walk(tree) if isinstance(each, kinds)]
        told = "\n\n".join(filter(None, map(ast.get_docstring, holders)))
        for each in holders:
            if ast.get_docstring(each):
                each.body[0] = ast.Pass(lineno=0, col_offset=0)
        for text, found in ((told, good), (ast.unparse(tree), bad)):
            found += [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    return good[:most], bad[:most]


def ours(good: list[str], bad: list[str]) -> Score:
    """Fits our classifier."""
    return QualityClassifier(bits=BITS).fit(good, bad).score


def sklearn(good: list[str], bad: list[str]) -> Score:
    """Fits scikit-learn's, by the settings of its user guide for text."""
    vectors = HashingVectorizer(ngram_range=(1, 2), n_features=1 << BITS, alternate_sign=False)
    model = SGDClassifier(loss="log_loss", alpha=1e-5, class_weight="balanced", random_state=0)
    model.fit(vectors.transform([*good, *bad]), [1] * len(good) + [0] * len(bad))
    return lambda texts: model.decision_function(vectors.transform(texts))


def fasttext(good: list[str], bad: list[str]) -> Score:
    """Fits fastText on the same grams."""
    import fasttext as peer

    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        for name, texts in (("good", good), ("bad", bad)):
            file.writelines(f"__label__{name} {' '.join(text.split())}\n" for text in texts)
        file.flush()
        model = peer.train_supervised(file.name, wordNgrams=2, bucket=1 << BITS, verbose=0)

    def score(texts: list[str]) -> np.ndarray:
        labels, shares = model.predict([" ".join(text.split()) for text in texts])
        good_first = np.array([each[0] == "__label__good" for each in labels])
        found = np.array([each[0] for each in shares])
        return np.where(good_first, found, 1 - found)

    return score


def main() -> None:
    """Measures all sides, interleaved, and writes the medians."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--pieces", type=int, default=2000)
    given = options.parse_args()
    sides = {"chapbook": ours, "scikit-learn": sklearn}
    try:
        import fasttext as _  # noqa: F401

        sides["fastText"] = fasttext
    except ModuleNotFoundError:
        print("fastText is not installed and is left out", file=sys.stderr)
    good, bad = pieces(given.pieces)
    held = good[::HELD], bad[::HELD]
    used = [[text for i, text in enumerate(each) if i % HELD] for each in (good, bad)]
    everything = [*good, *bad]
    fits = {name: partial(seconds, side, *used) for name, side in sides.items()}
    fit_times = medians(interleaved(fits, given.repeats, warm=1))
    scores = {name: side(*used) for name, side in sides.items()}
    timers = {name: partial(seconds, score, everything) for name, score in scores.items()}
    times = medians(interleaved(timers, given.repeats, warm=1))
    rows = [
        {
            "side": name,
            "fit, documents/s": sum(map(len, used)) / fit_times[name],
            "score, documents/s": len(everything) / times[name],
            "score, MB/s": sum(len(text.encode()) for text in everything) / times[name] / 1e6,
            "area under curve": area_under_curve(*(scores[name](each) for each in held)),
        }
        for name in sides
    ]
    peers = ("scikit-learn", "fasttext-numpy2-wheel", "numpy", "polars")
    report(__file__, CLAIM, rows, ("chapbook-glam", *peers), good=len(good), bad=len(bad))


if __name__ == "__main__":
    main()
