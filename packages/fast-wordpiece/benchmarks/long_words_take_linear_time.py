"""Claim: the time of a word grows no faster than its length.

The words are the worst there are: a repeated letter whose every run is nearly a longer piece. The
limit of 100 characters, beyond which a word is unknown, is lifted for all sides. HuggingFace looks
up every substring, whose number grows with the square of the length and whose hashing with one
power more; a side stops where one word takes longer than half a second. A call of TensorFlow Text
takes a good part of a millisecond whatever the word, which hides how it grows.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from common.systems import DISTRIBUTIONS, TF_TEXT, limit_threads, tensorflow_text

from chapbook.fast_wordpiece.huggingface import huggingface
from chapbook.fast_wordpiece.settings import Settings
from chapbook.fast_wordpiece.tokenizer import Tokenizer

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report

CLAIM = "the time of a word grows no faster than its length"
LENGTHS = (10, 30, 100, 300, 1000, 3000, 10_000)
LONGEST = 0.5  # seconds
OURS = "fast-wordpiece"


def main() -> None:
    """Prints seconds and exponents of growth of every side, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    limit_threads(1)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##a", "##" + "a" * 100 + "b"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    settings = replace(Settings.bert(vocabulary), max_input_chars_per_word=LENGTHS[-1])
    hf, ours = huggingface(settings), Tokenizer(settings)
    sides: dict[str, Callable[[str], object]] = {
        OURS: ours.encode_ids,
        "fast-wordpiece, offsets": lambda word: ours.encode(word).offsets,
        "HuggingFace": hf.encode,
    }
    if find_spec("nanotoken"):
        from nanotoken import Tokenizer as Nanotoken

        sides["nanotoken"] = Nanotoken.from_json(hf.to_str()).encode
    if find_spec("tensorflow_text"):
        tensorflow = tensorflow_text(settings)
        sides[TF_TEXT] = lambda word: tensorflow.tokenize([word])
    rows, last = [], dict.fromkeys(sides, 0.0)
    for length in LENGTHS:
        timers = {
            side: lambda encode=encode, length=length: timed(encode, "a" * length)
            for side, encode in sides.items()
            if last[side] < LONGEST
        }
        taken = interleaved(timers, given.repeats)
        for side, figures in taken.items():
            last[side] = float(np.median(figures))
            rows.append(
                {
                    "characters": length,
                    "system": side,
                    "seconds": last[side],
                    "ours_over_this": last[side] / last[OURS],
                    "spread": [min(figures), max(figures)],
                }
            )
    report(__file__, CLAIM, rows + exponents(rows), DISTRIBUTIONS, repeats=given.repeats)


def timed(encode: Callable[[str], object], word: str) -> float:
    """Returns the seconds of one word, by as many calls as take a millisecond."""
    calls, total = 0, 0.0
    while total < 1e-3:
        start = time.process_time()
        encode(word)
        total += time.process_time() - start
        calls += 1
    return total / calls


def exponents(rows: list[dict]) -> list[dict[str, object]]:
    """Fits the slope of log time over log length, from 100 characters on."""
    found = []
    for side in dict.fromkeys(row["system"] for row in rows):
        points = [
            (math.log(row["characters"]), math.log(row["seconds"]))
            for row in rows
            if row["system"] == side and row["characters"] >= 100
        ]
        slope = float(np.polyfit(*zip(*points, strict=True), 1)[0])
        found.append({"system": side, "exponent": slope})
    return found


if __name__ == "__main__":
    main()
