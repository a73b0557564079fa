"""Claim: two threads encode 1.9 times as much as one, of many texts and of one large document.

Wall time, on a machine with at least two free cores; a new tokenizer's first pass is "cold", its
second "warm". HuggingFace gets a part of the texts, and of the document its beginning, since it
keeps no words and has one thread for one document.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from common.corpora import ENGLISH, MULTILINGUAL, cut, large, megabytes
from common.systems import DISTRIBUTIONS, HF, HF_FAST, OURS, limit_threads, passes, systems

from chapbook.fast_wordpiece import data
from chapbook.fast_wordpiece.settings import Settings

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report

CLAIM = "two threads encode 1.9 times as much as one"
OUTPUTS = ("ids", "ids and offsets", "padded")


def main() -> None:
    """Prints megabytes a second with one and two threads, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=50, help="of the largest text")
    given = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("error: this machine has one core")
    limit_threads(2)
    settings = Settings.bert(data.english_vocabulary())
    english, several = large(*ENGLISH), large(*MULTILINGUAL)
    if not english:
        raise SystemExit("error: the large texts cannot be fetched")
    count = int(given.megabytes * 1000)
    texts = {
        "texts of 1,000 characters, English": cut(english)[:count],
        "texts of 1,000 characters, 7 languages": cut(several)[:count],
        "one document, English and 7 languages": [(english + several)[: count * 1000]],
    }
    rows = [
        row
        for name, each in texts.items()
        # Of one document there is nothing to pad.
        for output in (OUTPUTS if len(each) > 1 else OUTPUTS[:2])
        for row in compare(name, each, settings, output, given.repeats)
    ]
    report(__file__, CLAIM, rows, DISTRIBUTIONS, repeats=given.repeats)


def compare(
    name: str, texts: list[str], settings: Settings, output: str, repeats: int
) -> list[dict[str, object]]:
    """Measures all systems that have threads with one and with two; returns rates and ratios."""
    few = texts[:500] if len(texts) > 1 else [texts[0][:500_000]]
    sides = {threads: systems(settings, output, threads) for threads in (1, 2)}
    timers, sizes = {}, {}
    for threads, here in sides.items():
        for side in sides[2]:
            given = few if side in (HF, HF_FAST) else texts
            timers[side, threads] = partial(measure, here[side], given, threads)
            sizes[side, threads] = megabytes(given)
    taken = interleaved(timers, repeats)
    rates = {key: sizes[key] / np.array(each) for key, each in taken.items()}
    rows = []
    for (side, threads), each in rates.items():
        for state, column in (("cold", 0), ("warm", 1)):
            median = float(np.median(each[:, column]))
            row = {
                "text": name,
                "megabytes": round(sizes[side, threads], 3),
                "output": output,
                "state": state,
                "system": side,
                "threads": threads,
                "mb_per_second": median,
                "times_one_thread": median / float(np.median(rates[side, 1][:, column])),
                "ours_over_this": float(np.median(rates[OURS, threads][:, column])) / median,
                "spread": [float(each[:, column].min()), float(each[:, column].max())],
            }
            rows.append(row)
    return rows


def measure(system: tuple, texts: list[str], threads: int) -> tuple[float, float]:
    """Returns the wall time of a new tokenizer's first and second pass."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if threads == 1 else "true"
    return passes(system, texts, time.perf_counter)


if __name__ == "__main__":
    main()
