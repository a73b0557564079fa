"""Hashes of words and names that are the same in every version and on every machine.

Notable choices:

- A word of bytes b_0 b_1 ... hashes to mix(sum_i (b_i + 1) P^i mod 2^64) with an odd P. The sums of
  all words of a batch are differences of one running sum over its bytes, times P to the power of
  minus the word's start: a few passes of NumPy, whatever the number of words.
- A word is a run of ASCII letters, digits and bytes above ASCII; only ASCII letters are lowered,
  since the lower case of others changes with the Unicode version.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64, UInt8, UInt64

_P = 0x9E3779B97F4A7C15
_INVERSE = pow(_P, -1, 1 << 64)
_ASCII = 128
_LOWER = np.frombuffer(bytes(range(256)).lower(), np.uint8)  # which lowers ASCII alone
_IN_WORD = np.array([byte >= _ASCII or chr(byte).isalnum() for byte in range(256)])


class Grams(NamedTuple):
    """The word n-grams of some texts, in their order.

    Attributes:
        hashes: Of each.
        text: The number of the text that holds it.
    """

    hashes: UInt64[np.ndarray, " grams"]
    text: Int64[np.ndarray, " grams"]


def mix(values: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Returns a permutation of the 64-bit numbers in which every bit depends on every other.

    Args:
        values: Any numbers.

    Reference:
        Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, 2014: SplitMix64.
    """
    found = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return found ^ (found >> np.uint64(31))


def uniform(names: pl.Series, seed: int, purpose: str) -> Float64[np.ndarray, " names"]:
    """Returns a number in [0, 1) for each name that depends on nothing but it, seed and purpose.

    Args:
        names: Such as the ids of documents.
        seed: Another one gives other numbers.
        purpose: What is drawn; numbers for different purposes are independent.
    """
    data, ends = _joined(names.cast(pl.String))
    hashes = _span_hashes(data, np.append(0, ends[:-1] + 1) if len(ends) else ends, ends)
    salt = _span_hashes(*_whole(f"{purpose}:{seed}"))
    return (mix(hashes ^ salt) >> np.uint64(11)) * 2.0**-53


def word_grams(texts: pl.Series) -> Grams:
    """Returns the words of texts.

    Args:
        texts: Strings.
    """
    data, ends = _joined(texts)
    inside = _IN_WORD[data]
    border = np.flatnonzero(np.diff(inside, prepend=False, append=False))
    starts = border[::2]
    hashes = _span_hashes(_LOWER[data], starts, border[1::2])
    return Grams(hashes, np.searchsorted(ends, starts, side="right").astype(np.int64))


def joined_grams(words: Grams, n: int) -> Grams:
    """Returns the runs of n words that lie in one text.

    Args:
        words: As `word_grams` gives them.
        n: How many words a gram has.
    """
    count = max(len(words.hashes) - n + 1, 0)
    hashes = words.hashes[:count]
    for place in range(1, n):
        hashes = mix(hashes) + words.hashes[place : place + count]
    whole = words.text[:count] == words.text[n - 1 : n - 1 + count]
    return Grams(mix(hashes)[whole], words.text[:count][whole])


def _joined(texts: pl.Series) -> tuple[UInt8[np.ndarray, " bytes"], Int64[np.ndarray, " texts"]]:
    """Returns the bytes of all texts, a line feed after each, and the place of that line feed."""
    data = np.frombuffer("\n".join([*texts.to_list(), ""]).encode(), np.uint8)
    ends = np.cumsum(texts.str.len_bytes().to_numpy().astype(np.int64) + 1) - 1
    return data, ends


def _whole(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    data = np.frombuffer(name.encode(), np.uint8)
    return data, np.array([0]), np.array([len(data)])


def _span_hashes(
    data: UInt8[np.ndarray, " bytes"],
    starts: Int64[np.ndarray, " spans"],
    ends: Int64[np.ndarray, " spans"],
) -> UInt64[np.ndarray, " spans"]:
    powers, inverses = _powers(1 << max(len(data), 1).bit_length())
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum((data + np.uint64(1)) * powers[: len(data)], out=sums[1:])
    return mix((sums[ends] - sums[starts]) * inverses[starts])


@lru_cache(maxsize=4)
def _powers(count: int) -> tuple[UInt64[np.ndarray, " count"], UInt64[np.ndarray, " count"]]:
    """Returns the first powers of P, and of its inverse."""
    found = []
    for base in (_P, _INVERSE):
        powers = np.full(count, base, np.uint64)
        powers[0] = 1
        found.append(np.cumprod(powers))
    return found[0], found[1]
