"""Our tokenizer beside Hugging Face's on random strings: ids, offsets and words must be the same.

The strings are made of what has gone wrong in tokenizers: characters of all planes, combining marks
out of order, control and zero-width characters, ideographs, Hangul, words about as long as the
limit, and special tokens spelled out. Strings that differ are kept in `corpus/`, one file each, and
are tried again in every later run and in the tests.

    python fuzz/differential.py --strings 2000000 --seed 1 --jobs 2
"""

# ruff: noqa: T201

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from chapbook.fast_wordpiece import _core, files
from chapbook.fast_wordpiece.huggingface import huggingface
from chapbook.fast_wordpiece.reference import Char, normalized
from chapbook.fast_wordpiece.settings import Normalizer, Settings
from chapbook.fast_wordpiece.tokenizer import Tokenizer

CORPUS = Path(__file__).parent / "corpus"

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    *("cafe", "naive", "the", "they", "un", "hugging", "dont", "istanbul", "strasse", "ΣΑΣ", "σας"),
    *("ab", "abc", "2", "20", "#", "##", "##!", "##aff", "##able", "##y", "##ing", "##a", "##s"),
    *("##gingface", "##bc", "##abab", "##ος", "##20", "##1"),
)
POOLS = (
    "abcxyzABXYZ",
    "etaoinshr",
    "ab",
    "ÀéñçßİıŁΣςσЖйЁїאבגٱंािคำที่ẞǅﬀ",
    # Marks of many combining classes; some that BERT does not know as marks.
    "\u0301\u0308\u0323\u0327\u0334\u0345\u0330\u05b0\u05bc\u0651\u064b\u093c\u094d\u0bcd\u0e38"
    "\u0e48\u1734\u1dfa\u20d0\u3099\u302a\U0001d165\U0001d16d\U0001e8d0\U00010f46",
    "한국각ᄀ각힣한",
    "中国\u3400\u4dbf\uf900\ufa0e\U00020000\U0002b820\U0002b920\U0002f800ー々かがプ",
    # Characters that decompose to others of another kind.
    "\u0149\u0344\u037e\u0387\u0958\u0f73\u0f81\u1e9b\u1fef\u2000\u2126\u212a\u212b\ufb1d\U00011938"
    "\U0001d15e",
    " ",
    "  \t\n\r\u00a0\u2003\u3000\u2028\u1680",
    # What clean_text deletes.
    "\0\x0b\x0c\x1f\x7f\x85\u200b\u200c\u200d\u202e\u2060\ufeff\u00ad\ufffd\ue000\U000e0041"
    "\U000f0000\U0010fffd",
    ".,!?'\"#-_()[]<>$+=^`|~/\\@",
    "\u166d\u3002\u2e43\u061d\U000111c9\u2019\u00bf\u0589",
    "😀👍🏽\U0010ffff\u0378\u2460\U0001f1e6",
    "0123456789",
)
LITERALS = (*SPECIAL, "[MASK", "CLS]", "[cls]", "[ MASK ]", "##ing", "##", "caf\u0065\u0301")
LENGTHS = (15, 16, 17, 31, 32, 33, 63, 64, 65, 99, 100, 101, 255, 256)
NORMALIZERS = {
    "uncased": Normalizer(),
    "cased": Normalizer(lowercase=False),
    "uncased, accents kept": Normalizer(strip_accents=False),
    "cased, accents stripped": Normalizer(lowercase=False, strip_accents=True),
    "nothing cleaned": Normalizer(clean_text=False, handle_chinese_chars=False),
    "nothing done": Normalizer(False, False, False, False),
}


@cache
def vocabulary() -> dict[str, int]:
    """Words, and pieces for most of what the characters of the pools turn into."""
    pieces = [*SPECIAL, *WORDS]
    for char in dict.fromkeys("".join(POOLS)):
        for normalizer in NORMALIZERS.values():
            for part in normalized([Char(char, 0, 1)], normalizer):
                if part.char not in "kK😀8@":
                    pieces += [part.char, f"##{part.char}"]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def nasty_text(rng: random.Random, most: int = 14, literals: Sequence[str] = LITERALS) -> str:
    """A random string of up to `most` parts."""
    parts = []
    for _ in range(rng.randrange(most)):
        kind = rng.random()
        if kind < 0.08:
            parts.append(rng.choice(literals))
        elif kind < 0.15:
            parts.append(rng.choice(WORDS).removeprefix("##") + rng.choice(("", "", " ")))
        elif kind < 0.20:
            point = rng.randrange(rng.choice((0x3000, 0x30000, 0x110000)))
            parts.append("" if 0xD800 <= point < 0xE000 else chr(point))
        elif kind < 0.21:
            parts.append(rng.choice("abé中\u0301") * rng.choice(LENGTHS))
        else:
            pool = rng.choice(POOLS)
            parts.append("".join(rng.choice(pool) for _ in range(rng.randrange(1, 5))))
    return "".join(parts)


def nasty_bytes(rng: random.Random) -> bytes:
    """UTF-8 with some bytes that are wrong, missing or too many."""
    data = bytearray(nasty_text(rng, 8).encode())
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        kind = rng.random()
        if kind < 0.4:
            data[at:at] = rng.choice(
                (b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\x80", b"\xf0\x9f")
            )
        elif kind < 0.7:
            del data[at : at + rng.randrange(1, 3)]
        else:
            data[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(data)


@cache
def both(name: str, vocabulary_file: str | None = None) -> tuple[Tokenizer, Any]:
    """Our tokenizer and Hugging Face's under the normaliser of this name."""
    vocab = vocabulary() if vocabulary_file is None else files.read(vocabulary_file).vocab
    settings = replace(Settings.bert(vocab), normalizer=NORMALIZERS[name])
    return Tokenizer(settings), huggingface(settings)


def differing(ours: Tokenizer, theirs: Any, texts: list[str]) -> Iterator[str]:
    """Yields the texts that have other ids, offsets or words, by the quick path or the whole."""
    quick = ours.encode_batch(texts, num_threads=1)
    whole = ours.encode_batch(texts, offsets=True, num_threads=1)
    ids, bounds = whole.ids.tolist(), whole.row_offsets.tolist()
    offsets, words = list(map(tuple, whole.offsets.tolist())), whole.word_ids.tolist()
    quick_ids, quick_bounds = quick.ids.tolist(), quick.row_offsets.tolist()
    for row, (text, hf) in enumerate(zip(texts, theirs.encode_batch(texts), strict=True)):
        here = slice(bounds[row], bounds[row + 1])
        if (
            ids[here] != hf.ids
            or offsets[here] != hf.offsets
            or words[here] != [-1 if word is None else word for word in hf.word_ids]
            or quick_ids[quick_bounds[row] : quick_bounds[row + 1]] != hf.ids
        ):
            yield text


def misjudged(data: bytes) -> bool:
    """Whether we find the first byte that is not UTF-8 at another place than Python."""
    try:
        data.decode()
        expected = -1
    except UnicodeDecodeError as fault:
        expected = fault.start
    return _core.first_invalid_utf8(np.frombuffer(data, np.uint8)) != expected


def keep(case: dict[str, str]) -> Path:
    """Writes a case that went wrong into the corpus."""
    text = json.dumps(case, ensure_ascii=True, indent=1, sort_keys=True) + "\n"
    path = CORPUS / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    path.write_text(text)
    return path


def corpus() -> Iterator[tuple[Path, dict[str, str]]]:
    """The cases that went wrong once."""
    for path in sorted(CORPUS.glob("*.json")):
        yield path, json.loads(path.read_text())


def is_mended(case: dict[str, str]) -> bool:
    """Whether a case of the corpus is right now."""
    if "bytes" in case:
        return not misjudged(bytes.fromhex(case["bytes"]))
    ours, theirs = both(case["normalizer"], case.get("vocabulary"))
    return not list(differing(ours, theirs, [case["text"]]))


def run(seed: str, strings: int, vocabulary_file: str | None = None) -> list[dict[str, str]]:
    """Tries random strings, a fifth of their number of byte strings, and returns the bad ones."""
    rng = random.Random(seed)
    bad: list[dict[str, str]] = []
    while strings > 0:
        # Short batches, so that caches are as often cold as warm.
        texts = [nasty_text(rng) for _ in range(min(strings, rng.choice((1, 20, 200))))]
        strings -= len(texts)
        # The two that everybody uses come most often.
        name = rng.choice([*NORMALIZERS, "uncased", "uncased", "uncased", "cased"])
        ours, theirs = both(name, vocabulary_file)
        case = {"normalizer": name}
        if vocabulary_file is not None:
            case["vocabulary"] = vocabulary_file
        bad += [{**case, "text": text} for text in differing(ours, theirs, texts)]
        some = [nasty_bytes(rng) for _ in range(len(texts) // 5 + (len(texts) == 1))]
        bad += [{"bytes": data.hex()} for data in some if misjudged(data)]
    return bad


def main() -> int:
    """Returns 1 if a string differs, now or in the corpus."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--strings", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--vocabulary", help="vocab.txt or tokenizer.json, instead of a small one")
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    start = time.monotonic()
    worse = [path for path, case in corpus() if not is_mended(case)]
    for path in worse:
        print(f"still wrong: {path.name}")
    size = 10_000
    shares = [min(size, given.strings - at) for at in range(0, given.strings, size)]
    seeds = [f"{given.seed}/{number}" for number in range(len(shares))]
    kept = done = 0
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        found = pool.map(run, seeds, shares, [given.vocabulary] * len(shares))
        for share, bad in zip(shares, found, strict=True):
            done += share
            kept += len(bad)
            for case in bad[:20]:
                print(f"differs: {keep(case).name} {case}")
            if done % 100_000 == 0 or done == given.strings:
                seconds = time.monotonic() - start
                print(f"{done:,} strings, {kept} differ, {seconds:.0f} s", flush=True)
    return int(bool(kept or worse))


if __name__ == "__main__":
    sys.exit(main())
