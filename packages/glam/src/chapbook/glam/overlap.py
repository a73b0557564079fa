"""Removal of documents that repeat evaluation text or each other.

Notable choices:

- Words and their n-grams are compared by 64-bit hashes, without case and punctuation.
- Of documents that are alike the first one stays, so the result depends on their order alone.
"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64, UInt64

from chapbook.core.errors import Error
from chapbook.glam.hashing import Grams, joined_grams, mix, word_grams

GRAM = (8, 13)  # words; shorter runs are common phrases
CHUNK = 1 << 12  # texts whose words are held at once

_EMPTY = np.iinfo(np.uint64).max  # the minimum over no grams


class EvaluationOverlap:
    """Finds documents that share a run of n words with evaluation text.

    Args:
        texts: Of the evaluation: its questions, passages and answers.
        n: Words of a run; the 5th percentile of the texts' lengths, but 8 to 13, if None.

    Attributes:
        n: Words of a run.
        short: How many texts have fewer words, and are thus not looked for.

    Raises:
        Error: n is not in 8 to 13, or no text has so many words.

    Reference:
        Brown et al., Language Models are Few-Shot Learners, 2020, appendix C: the choice of n.
    """

    def __init__(self, texts: pl.Series, n: int | None = None):
        words = word_grams(texts)
        lengths = np.bincount(words.text, minlength=len(texts))
        if n is None:
            n = int(np.clip(np.percentile(lengths, 5), *GRAM)) if len(texts) else GRAM[0]
        if not GRAM[0] <= n <= GRAM[1]:
            raise Error(f"runs of {n} words: give {GRAM[0]} to {GRAM[1]}")
        self.n, self.short = n, int((lengths < n).sum())
        self._grams = np.unique(joined_grams(words, n).hashes)
        if not len(self._grams):
            raise Error(f"no evaluation text has {n} words")

    def count(self, texts: pl.Series) -> Int64[np.ndarray, " texts"]:
        """Returns how many runs of each text occur in the evaluation.

        Args:
            texts: Any number.
        """
        found = [np.zeros(0, np.int64)]
        for start in range(0, len(texts), CHUNK):
            part = texts[start : start + CHUNK]
            grams = joined_grams(word_grams(part), self.n)
            held = self._grams[np.searchsorted(self._grams[:-1], grams.hashes)] == grams.hashes
            found.append(np.bincount(grams.text[held], minlength=len(part)))
        return np.concatenate(found)

    def remove(self, documents: pl.DataFrame) -> pl.DataFrame:
        """Returns the documents that share no run with the evaluation.

        Args:
            documents: Frame with a column `text`.
        """
        return documents.filter(self.count(documents["text"]) == 0)


def drop_duplicates(documents: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yields frames without the documents whose text came before, letter by letter.

    Args:
        documents: Frames with a column `text`. Of each text 16 bytes are remembered.
    """
    seen: set[bytes] = set()
    for batch in documents:
        fresh = []
        for text in batch["text"].to_list():
            digest = blake2b(text.encode(), digest_size=16).digest()
            fresh.append(digest not in seen)
            seen.add(digest)
        yield batch.filter(pl.Series(fresh, dtype=pl.Boolean))


def near_duplicates(
    texts: pl.Series,
    *,
    threshold: float = 0.8,
    n: int = 5,
    bands: int = 20,
    rows: int = 8,
    seed: int = 0,
) -> Bool[np.ndarray, " texts"]:
    """Returns which texts are nearly the same as an earlier one, by MinHash.

    The similarity of two texts is |A ∩ B| / |A ∪ B| of their sets of word n-grams. It is estimated
    by the share of `bands * rows` hash functions whose minima over A and B agree. Pairs are looked
    at if all rows of a band agree, which at a similarity s has the probability
    `1 - (1 - s^rows)^bands`: 0.98 at 0.8, and 0.08 at 0.5.

    Args:
        texts: All of them; 8 bytes are held for each text and hash function.
        threshold: The estimated similarity from which two texts are nearly the same.
        n: Words of a gram. Texts of fewer words are the same if their words are.
        bands: Of hash functions.
        rows: Hash functions of a band.
        seed: Of the hash functions.

    Returns:
        True for each text but the first of those that chains of similar pairs tie together, and
        False for texts without words.

    Reference:
        Broder, On the Resemblance and Containment of Documents, 1997; Leskovec, Rajaraman, Ullman,
        Mining of Massive Datasets, section 3.4: the bands.
    """
    if not 0 < threshold <= 1 or min(n, bands, rows) < 1:
        raise Error(
            f"threshold={threshold}, n={n}, bands={bands}, rows={rows} are no near duplicates"
        )
    parts = [
        _signatures(texts[start : start + CHUNK], n, bands * rows, seed)
        for start in range(0, len(texts), CHUNK)
    ]
    signatures = np.concatenate([np.zeros((0, bands * rows), np.uint64), *parts])
    worded = np.flatnonzero((signatures != _EMPTY).any(axis=1))
    root = np.arange(len(texts))
    for band in range(bands):
        keys = np.zeros(len(worded), np.uint64)
        for function in range(band * rows, (band + 1) * rows):
            keys = mix(keys) + signatures[worded, function]
        _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
        several = np.flatnonzero(counts[group] > 1)
        order = several[np.argsort(group[several], kind="stable")]
        for alike in np.split(worded[order], np.flatnonzero(np.diff(group[order])) + 1):
            _tie(alike, signatures, threshold, root)
    found = np.array([_find(root, text) for text in range(len(texts))], np.int64)
    return found != np.arange(len(texts))


def _signatures(
    texts: pl.Series, n: int, functions: int, seed: int
) -> UInt64[np.ndarray, "texts functions"]:
    """Returns for each text the minima of all hash functions over its n-grams."""
    grams = _grams_or_whole(word_grams(texts), n, len(texts))
    found = np.full((len(texts), functions), _EMPTY, np.uint64)
    if not len(grams.hashes):
        return found
    first = np.flatnonzero(np.diff(grams.text, prepend=-1))
    salts = np.random.Generator(np.random.Philox(key=[seed, 0])).integers(
        0, _EMPTY, functions, np.uint64, endpoint=True
    )
    for function, salt in enumerate(salts):
        found[grams.text[first], function] = np.minimum.reduceat(mix(grams.hashes ^ salt), first)
    return found


def _grams_or_whole(words: Grams, n: int, texts: int) -> Grams:
    """Returns the n-grams, and for each shorter text its words as one."""
    hashes, text = joined_grams(words, n)
    lengths = np.bincount(words.text, minlength=texts)
    for length in range(1, n):
        of_length = lengths[words.text] == length
        whole = joined_grams(Grams(words.hashes[of_length], words.text[of_length]), length)
        hashes, text = np.append(hashes, whole.hashes), np.append(text, whole.text)
    order = np.argsort(text, kind="stable")
    return Grams(hashes[order], text[order])


def _tie(group: np.ndarray, signatures: np.ndarray, threshold: float, root: np.ndarray) -> None:
    """Ties each text of a band's group to the earliest ones that it is similar to."""
    while len(group) > 1:
        first, rest = group[0], group[1:]
        alike = (signatures[rest] == signatures[first]).mean(axis=1) >= threshold
        for text in rest[alike]:
            low, high = sorted((_find(root, first), _find(root, text)))
            root[high] = low
        group = rest[~alike]


def _find(root: np.ndarray, text: int) -> int:
    while (above := int(root[text])) != text:
        root[text] = root[above]
        text = above
    return text
