"""A linear classifier of text that tells curated from raw, at the speed of reading.

Notable choices:

- Features are word uni- and bigrams, hashed to 2^bits bins without a vocabulary; a text is its
  counts, divided by their Euclidean norm.
- The loss is convex and its minimum is found by L-BFGS over the bins that occur, so the result
  depends on neither an order nor a learning rate.
- Both classes count for half of the loss, however many texts either has: a score above 1/2 says
  that the text is more like the good ones.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.glam.hashing import joined_grams, word_grams

BITS = (8, 26)
CHUNK = 1 << 21  # bytes of text that are hashed at once: the running sums then stay near 50 MB

_KEY = "chapbook.glam.quality"  # of the metadata in a file; a single one, so that files compare

Texts = pl.Series | Sequence[str]


@dataclass(frozen=True)
class QualityClassifier:
    """A score `1 / (1 + exp(-(w . x / |x| + b)))` of the counts x of hashed word uni- and bigrams.

    Attributes:
        bits: There are 2^bits bins.
        penalty: On `|w|^2 / 2`, beside the mean loss.
        weights: Of the bins; None before `fit`.
        bias: b.

    Reference:
        Brown et al., Language Models are Few-Shot Learners, 2020, appendix A; Du et al., GLaM,
        2022, section 3: a feature-hash based linear classifier for text quality.
    """

    bits: int = 20
    penalty: float = 1e-5
    weights: Float32[np.ndarray, " bins"] | None = field(default=None, repr=False)
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not BITS[0] <= self.bits <= BITS[1]:
            raise Error(f"bits={self.bits}: give {BITS[0]} to {BITS[1]}")
        if not self.penalty > 0:
            raise Error(f"penalty={self.penalty}: give a positive number")

    def fit(self, good: Texts, bad: Texts) -> "QualityClassifier":
        """Returns the classifier that minimises the logistic loss of both classes and the penalty.

        The counts of all texts are held in memory: about 12 bytes for each two bytes of text.

        Args:
            good: Texts to be scored near 1.
            bad: Texts to be scored near 0.

        Raises:
            Error: Either class has no text with a word.
        """
        from scipy.optimize import minimize
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits

        parts = [_matrix(_series(texts), self.bits) for texts in (good, bad)]
        for name, part in zip(("good", "bad"), parts, strict=True):
            if not len(part.values):
                raise Error(f"no {name} text has a word; give texts of both kinds")
        bins = np.concatenate([part.bins for part in parts])
        occurs = np.bincount(bins, minlength=1 << self.bits) > 0
        used, columns = np.flatnonzero(occurs), (np.cumsum(occurs, dtype=np.int32) - 1)[bins]
        values = np.concatenate([part.values for part in parts])
        lengths = np.concatenate([part.lengths for part in parts])
        x = csr_matrix(
            (values, columns, np.append(0, np.cumsum(lengths))), (len(lengths), len(used))
        )
        counts = np.array([len(part.lengths) for part in parts])
        sign = np.repeat([1.0, -1.0], counts)
        share = np.repeat(0.5 / counts, counts)

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            w, b = theta[:-1], theta[-1]
            margin = sign * (x @ w + b)
            # d/dm log(1 + exp(-m)) = -1 / (1 + exp(m)) = -exp(-log(1 + exp(m)))
            slope = -share * sign * np.exp(-np.logaddexp(0, margin))
            value = share @ np.logaddexp(0, -margin) + self.penalty / 2 * (w @ w)
            return value, np.append(x.T @ slope + self.penalty * w, slope.sum())

        # Between the solver's many sums of vectors OpenBLAS's threads wait for each other, on busy
        # cores for ten times as long as one of them computes.
        with threadpool_limits(1, "blas"):
            found: Any = minimize(
                loss, np.zeros(len(used) + 1), jac=True, method="L-BFGS-B",
                options={"maxiter": 500, "gtol": 5e-6, "ftol": 1e-10},
            )  # fmt: skip
        weights = np.zeros(1 << self.bits, np.float32)
        weights[used] = found.x[:-1]
        return replace(self, weights=weights, bias=float(found.x[-1]))

    def score(self, texts: Texts) -> Float64[np.ndarray, " texts"]:
        """Returns a score in [0, 1] for each text; one without words has that of the bias.

        Args:
            texts: Any number.

        Raises:
            Error: The classifier has not been fitted.
        """
        if self.weights is None:
            raise Error("the classifier has not been fitted")
        margins = [_margins(each, self.weights, self.bits) for each in _chunks(_series(texts))]
        return np.exp(-np.logaddexp(0, -(np.concatenate([np.empty(0), *margins]) + self.bias)))

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file.

        Args:
            path: The file.

        Raises:
            Error: The classifier has not been fitted.
        """
        from safetensors.numpy import save

        if self.weights is None:
            raise Error("the classifier has not been fitted")
        settings = {"bits": self.bits, "penalty": self.penalty, "bias": self.bias}
        write_atomic(path, save({"weights": self.weights}, {_KEY: json.dumps(settings)}))

    @staticmethod
    def load(path: str | Path) -> "QualityClassifier":
        """Reads a file of `save`.

        Args:
            path: The file.

        Raises:
            Error: The file holds no classifier.
            OSError: The file cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                held = (file.metadata() or {}).get(_KEY)
                if held is None:
                    raise Error(f"{path} holds no quality classifier; make one by glam filter fit")
                return QualityClassifier(weights=file.get_tensor("weights"), **json.loads(held))
        except SafetensorError as problem:
            raise Error(f"{path} is not a whole safetensors file: {problem}") from problem


def area_under_curve(good: Float64[np.ndarray, " good"], bad: Float64[np.ndarray, " bad"]) -> float:
    """Returns how often a good text scores above a bad one; ties count for half.

    Args:
        good: Scores of good texts.
        bad: Scores of bad texts.

    Reference:
        Mann and Whitney, On a Test of Whether one of Two Random Variables is Stochastically Larger
        than the Other, 1947.
    """
    ordered = np.sort(bad)
    wins = np.searchsorted(ordered, good) + np.searchsorted(ordered, good, side="right")
    return float(wins.mean() / (2 * len(bad)))


@dataclass(frozen=True)
class _Counts:
    """Texts as rows of a sparse matrix: bins, their values in rows of norm 1, and row lengths."""

    bins: np.ndarray
    values: np.ndarray
    lengths: np.ndarray


def _series(texts: Texts) -> pl.Series:
    return texts if isinstance(texts, pl.Series) else pl.Series(texts, dtype=pl.String)


def _chunks(texts: pl.Series) -> Iterator[pl.Series]:
    """Yields runs of texts of bounded size."""
    group = texts.str.len_bytes().cast(pl.Int64).cum_sum() // CHUNK
    borders = np.flatnonzero(np.diff(group.to_numpy(), prepend=-1, append=-1))
    for start, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        yield texts[start:end]


def _features(texts: pl.Series, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each text and bin that it has `text << bits | bin`, in order, and the count."""
    words = word_grams(texts)
    shift = np.uint64(64 - bits)
    keys = [
        grams.text << bits | (grams.hashes >> shift).astype(np.int64)
        for grams in (words, joined_grams(words, 2))
    ]
    ordered = np.sort(np.concatenate(keys))
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    return ordered[first], np.diff(first, append=len(ordered))


def _matrix(texts: pl.Series, bits: int) -> _Counts:
    parts = []
    for chunk in _chunks(texts):
        keys, counts = _features(chunk, bits)
        text = keys >> bits
        norms = np.sqrt(np.bincount(text, counts.astype(float) ** 2, len(chunk)))
        bins = (keys & ((1 << bits) - 1)).astype(np.int32)
        lengths = np.bincount(text, minlength=len(chunk))
        parts.append(_Counts(bins, counts / norms[text], lengths))
    empty = _Counts(np.empty(0, np.int32), np.empty(0), np.empty(0, np.int64))
    columns = [
        [getattr(part, name) for part in (empty, *parts)] for name in ("bins", "values", "lengths")
    ]
    return _Counts(*map(np.concatenate, columns))


def _margins(texts: pl.Series, weights: np.ndarray, bits: int) -> np.ndarray:
    """Returns w . x / |x| for each text, 0 for one without words."""
    keys, counts = _features(texts, bits)
    text = keys >> bits
    dots = np.bincount(text, counts * weights[keys & ((1 << bits) - 1)], len(texts))
    norms = np.sqrt(np.bincount(text, counts.astype(float) ** 2, len(texts)))
    return dots / np.maximum(norms, 1)
