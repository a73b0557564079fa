"""How fast this machine encodes a user's own files."""

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from chapbook.core.errors import Error
from chapbook.fast_wordpiece import documents
from chapbook.fast_wordpiece.compare import hugging_face
from chapbook.fast_wordpiece.documents import Input, Reading
from chapbook.fast_wordpiece.tokenizer import Tokenizer, processors

HF_BYTES = 1 << 20  # it is given less, so that it does not take most of the time


def measure(
    path: str | Path,
    inputs: Sequence[str | Path],
    reading: Reading | None = None,
    *,
    most_bytes: int = 16 << 20,
    rounds: int = 5,
) -> list[dict[str, Any]]:
    """Times the encoding of the first documents of files, held in memory.

    All ways run in turn, round after round; the median of each is told.

    Args:
        path: The tokenizer.
        inputs: Files and patterns.
        reading: How they are read.
        most_bytes: Bytes of text that are taken.
        rounds: How often each way is timed.

    Returns:
        For each way its name, `threads`, `mb_per_s` of UTF-8, `documents_per_s`, and `times_hf`,
        how many times faster than Hugging Face's `tokenizers` on one thread it is (None if that
        is not installed).

    Raises:
        Error: The files hold no text.
    """
    tokenizer = Tokenizer.from_file(path)
    texts, size = _first(inputs, reading or Reading(), most_bytes)
    if not size:
        raise Error("the input holds no text to measure with")
    column = pl.Series(texts)
    threads = processors()

    def cold() -> Callable[[], Any]:
        new = Tokenizer(tokenizer.settings)
        return lambda: new.encode_batch(texts, num_threads=1)

    def warm(count: int, **options: Any) -> Callable[[], Callable[[], Any]]:
        return lambda: lambda: tokenizer.encode_batch(texts, num_threads=count, **options)

    def arrow(count: int) -> Callable[[], Callable[[], Any]]:
        return lambda: lambda: tokenizer.encode_arrow(column, num_threads=count)

    ways: dict[str, tuple[int, int, int, Callable[[], Callable[[], Any]]]] = {
        "ids, first pass": (1, size, len(texts), cold),
        "ids": (1, size, len(texts), warm(1)),
        "ids of a Polars column": (1, size, len(texts), arrow(1)),
        "ids and offsets": (1, size, len(texts), warm(1, offsets=True)),
    }
    if threads > 1:
        ways["ids, all threads"] = (threads, size, len(texts), warm(threads))
        ways["ids of a Polars column, all threads"] = (threads, size, len(texts), arrow(threads))
    if importlib.util.find_spec("tokenizers"):
        some, few = _cut(texts, HF_BYTES)
        hf = hugging_face(path, tokenizer)
        ways["Hugging Face encode_batch"] = (
            1,
            few,
            len(some),
            lambda: lambda: hf.encode_batch(some),
        )
    seconds = _timed({name: way[3] for name, way in ways.items()}, rounds)
    speeds = {name: ways[name][1] / 1e6 / seconds[name] for name in ways}
    theirs = speeds.get("Hugging Face encode_batch")
    return [
        {
            "way": name,
            "threads": count,
            "mb_per_s": speeds[name],
            "documents_per_s": number / seconds[name],
            "times_hf": None if theirs is None else speeds[name] / theirs,
        }
        for name, (count, _, number, _) in ways.items()
    ]


def _timed(ways: dict[str, Callable[[], Callable[[], Any]]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each way; Hugging Face's library keeps to one thread."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    taken: dict[str, list[float]] = {name: [] for name in ways}
    try:
        for turn in range(-1, rounds):
            for name, prepare in ways.items():
                run = prepare()
                start = time.perf_counter()
                result = run()
                seconds = time.perf_counter() - start
                del result
                if turn >= 0:
                    taken[name].append(seconds)
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before
    return {name: statistics.median(each) for name, each in taken.items()}


def _first(
    inputs: Sequence[str | Path], reading: Reading, most_bytes: int
) -> tuple[list[str], int]:
    texts: list[str] = []
    size = 0
    for block in documents.documents([*map(Input, documents.expand(inputs))], reading):
        texts += [text for text in block.strings() if text is not None]
        size += block.size
        if size >= most_bytes:
            break
    return _cut(texts, most_bytes)


def _cut(texts: list[str], most_bytes: int) -> tuple[list[str], int]:
    """Returns as many of the texts as make up so many bytes, and their size."""
    size = 0
    for number, text in enumerate(texts):
        size += len(text.encode())
        if size >= most_bytes:
            return texts[: number + 1], size
    return texts, size
