"""Claim: on one core, ids come 60 times as fast as HuggingFace's, and 25 times from a cold start.

The targets, as ratios of processor time in the same minute: English 100 times HuggingFace's
`encode_batch` and 1.5 times nanotoken once warm, 3 times nanotoken cold; 91 languages, uncased and
cased, twice nanotoken warm and 5 times cold; text without spaces 4 times nanotoken; with offsets,
which no other peer has, 30 times HuggingFace.

Every round makes a new tokenizer, whose first pass over the text is "cold" and whose second is
"warm". HuggingFace, kitoken and TensorFlow Text keep no words from one pass to the next.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from common.corpora import ENGLISH, MULTILINGUAL, cut, large, megabytes, small
from common.systems import DISTRIBUTIONS, OURS, TF_TEXT, limit_threads, passes, systems

from chapbook.fast_wordpiece import data
from chapbook.fast_wordpiece.settings import Settings

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report

CLAIM = "on one core, ids come 60 times as fast as HuggingFace's, and 25 times from a cold start"
OUTPUTS = ("ids", "ids and offsets", "padded")
SLOW = ("HuggingFace", "kitoken", TF_TEXT)
SLOW_MEGABYTES = 1.0  # of the large texts: no slow side keeps words, so that a part tells its rate


def main() -> None:
    """Prints megabytes a second and ratios of every side, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--texts", default="", help="only those whose name contains this")
    parser.add_argument("--small", action="store_true", help="fetch no large texts")
    given = parser.parse_args()
    limit_threads(1)
    uncased = Settings.bert(data.english_vocabulary())
    cased = Settings.bert(data.multilingual_vocabulary(), lowercase=False)
    texts = {f"{name}, uncased": (each, uncased) for name, each in small().items()}
    texts["91 languages, cased"] = (small()["91 languages"], cased)
    if not given.small:
        texts["English manuals and dictionary, uncased"] = (cut(large(*ENGLISH)), uncased)
        texts["manuals in 7 languages, cased"] = (cut(large(*MULTILINGUAL)), cased)
    rows = []
    for name, (each, settings) in texts.items():
        if each and given.texts in name:
            for output in OUTPUTS:
                rows += compare(name, each, settings, output, given.repeats)
            rows += limits(name, each, given.repeats)
    report(__file__, CLAIM, rows, DISTRIBUTIONS, repeats=given.repeats, threads=1)


def compare(
    name: str, texts: list[str], settings: Settings, output: str, repeats: int
) -> list[dict[str, object]]:
    """Measures all systems on one text and output; returns their rates and ratios."""
    few = texts
    if megabytes(texts) > 4 * SLOW_MEGABYTES:
        few = texts[:: round(megabytes(texts) / SLOW_MEGABYTES)]
    sides = systems(settings, output, threads=1)
    given = {side: few if side.startswith(SLOW) else texts for side in sides}
    timers = {side: partial(passes, system, given[side]) for side, system in sides.items()}
    taken = interleaved(timers, repeats)
    seconds = {side: np.array(each) / megabytes(given[side]) for side, each in taken.items()}
    rows = []
    for state, column in (("cold", 0), ("warm", 1)):
        ours = np.median(seconds[OURS][:, column])
        for side, each in seconds.items():
            median = np.median(each[:, column])
            rows.append(
                {
                    "text": name,
                    "megabytes": round(megabytes(given[side]), 3),
                    "output": output,
                    "state": state,
                    "system": side,
                    "mb_per_second": float(1 / median),
                    "ours_over_this": float(median / ours),
                    "spread": [float(1 / each[:, column].max()), float(1 / each[:, column].min())],
                }
            )
    return rows


def limits(name: str, texts: list[str], repeats: int) -> list[dict[str, object]]:
    """Measures what memory allows on the same bytes: a copy, a comparison, a line for each word."""
    content = np.frombuffer("\n".join(texts).encode(), np.uint8)
    copy, spaces = np.empty_like(content), np.empty(len(content), bool)
    count = sum(len(text.split()) for text in texts)
    # One word in each cache line of 64 MB, more than any cache here holds.
    table = np.zeros((1 << 20, 16), np.int32)
    places = np.random.default_rng(0).integers(0, len(table), count)
    found = np.empty(count, np.int32)
    actions: dict[str, Callable[[], object]] = {
        "limit: memory copy": lambda: np.copyto(copy, content),
        "limit: compare each byte with a space": lambda: np.less_equal(content, 32, out=spaces),
        "limit: one random cache line a word": lambda: np.take(table[:, 0], places, out=found),
    }

    def timed(action: Callable[[], object]) -> float:
        start = time.process_time()
        for _ in range(10):
            action()
        return (time.process_time() - start) / 10

    taken = interleaved({side: partial(timed, each) for side, each in actions.items()}, repeats)
    size = len(content) / 1e6
    return [
        {
            "text": name,
            "megabytes": round(size, 3),
            "system": side,
            "mb_per_second": float(size / np.median(each)),
            "spread": [float(size / max(each)), float(size / min(each))],
        }
        for side, each in taken.items()
    ]


if __name__ == "__main__":
    main()
