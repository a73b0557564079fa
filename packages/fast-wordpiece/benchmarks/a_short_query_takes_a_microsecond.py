"""Claim: the ids of a 40-character query come in about a microsecond, 25 times HuggingFace's speed.

The targets: `encode_ids` no slower than nanotoken's `encode`; the whole `encode`, whose parts are
made when they are asked for, 10 times HuggingFace's speed. Each call has another query out of a
thousand, so that the words are known and the query is not. Processor time is told: everything runs
on the calling thread.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from common.systems import DISTRIBUTIONS, TF_TEXT, limit_threads, tensorflow_text

from chapbook.fast_wordpiece import data
from chapbook.fast_wordpiece.huggingface import huggingface
from chapbook.fast_wordpiece.settings import Settings
from chapbook.fast_wordpiece.tokenizer import Tokenizer

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report

CLAIM = "the ids of a short query come in about a microsecond"
OURS = "fast-wordpiece encode_ids"


def main() -> None:
    """Prints microseconds a query of every side, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    limit_threads(1)
    settings = Settings.bert(data.english_vocabulary())
    hf, ours = huggingface(settings), Tokenizer(settings)
    sides: dict[str, Callable[[str], object]] = {
        OURS: ours.encode_ids,
        "fast-wordpiece encode": ours.encode,
        "fast-wordpiece encode, offsets read": lambda text: ours.encode(text).offsets,
        "HuggingFace encode": hf.encode,
        "HuggingFace encode, ids read": lambda text: hf.encode(text).ids,
    }
    if find_spec("nanotoken"):
        from nanotoken import Tokenizer as Nanotoken

        sides["nanotoken encode"] = Nanotoken.from_json(hf.to_str()).encode
    if find_spec("tensorflow_text"):
        tensorflow = tensorflow_text(settings)
        sides[f"{TF_TEXT} tokenize"] = lambda text: tensorflow.tokenize([text])
    rows = [
        row
        for kind, texts in queries().items()
        for row in compare(kind, texts, sides, given.repeats)
    ]
    report(__file__, CLAIM, rows, DISTRIBUTIONS, repeats=given.repeats)


def queries() -> dict[str, list[str]]:
    """Returns a thousand queries of each kind."""
    prose = " ".join(data.english_prose())
    words = [word for word in data.english_vocabulary() if word.isalpha() and len(word) > 3]
    return {
        "40 characters of English": [prose[at : at + 40] for at in range(0, 40_000, 40)],
        "one word": words[:1000],
        "128 characters of English": [prose[at : at + 128] for at in range(0, 128_000, 128)],
    }


def compare(
    kind: str, texts: list[str], sides: dict[str, Callable[[str], object]], repeats: int
) -> list[dict[str, object]]:
    """Measures every side on the queries; returns microseconds and ratios."""

    def each(encode: Callable[[str], object]) -> float:
        start = time.process_time()
        for text in texts:
            encode(text)
        return (time.process_time() - start) / len(texts) * 1e6

    timers = {side: partial(each, encode) for side, encode in sides.items()}
    timers["limit: a call that does nothing"] = partial(each, len)
    taken = interleaved(timers, repeats, warm=2)
    median = {side: float(np.median(figures)) for side, figures in taken.items()}
    return [
        {
            "query": kind,
            "system": side,
            "microseconds": median[side],
            "ours_over_this": median[side] / median[OURS],
            "spread": [min(figures), max(figures)],
        }
        for side, figures in taken.items()
    ]


if __name__ == "__main__":
    main()
