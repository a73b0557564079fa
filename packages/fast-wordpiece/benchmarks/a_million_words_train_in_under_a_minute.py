"""Claim: a million distinct words become a vocabulary of 30,000 pieces in under a minute.

The words are counted and merged on all cores, beside Hugging Face's `WordPieceTrainer` with its
own threads, in the same process, one after the other on the same texts. Both are given the whole
alphabet as special tokens, which leaves nothing to chance: the vocabularies must be equal, piece
by piece and id by id, or the script fails.

The million words are made of syllables, the frequent ones frequent as in a language (Zipf's law);
the other text is the source code of the standard library.
"""

import argparse
import os
import random
import sys
import sysconfig
import time
from collections.abc import Sequence
from itertools import islice, takewhile
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from chapbook.fast_wordpiece import train_vocab
from chapbook.fast_wordpiece.settings import SPECIAL_TOKENS

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report, seconds

CLAIM = "A million distinct words become a vocabulary of 30,000 pieces in under a minute"


def made_of_syllables(distinct: int) -> list[str]:
    """Returns lines of 40 words with that many distinct ones; the n-th comes about 1/n as often."""
    draw = random.Random(3)
    ends = ("", "n", "r", "s", "l", "t", "ng", "ck")
    syllables = [a + b + c for a in "bcdfghklmnprstvwz" for b in "aeiou" for c in ends]
    draw.shuffle(syllables)
    weights = [1 / n for n in range(1, len(syllables) + 1)]
    words: dict[str, None] = {}
    while len(words) < distinct:
        some = iter(draw.choices(syllables, weights, k=200_000))
        for length in draw.choices((1, 2, 2, 3, 3, 3, 4, 4, 5), k=50_000):
            words["".join(islice(some, length))] = None
    ranked = list(words)[:distinct]
    draw.shuffle(ranked)
    text = [w for n, w in enumerate(ranked, 1) for _ in range(max(1, distinct // (10 * n)))]
    draw.shuffle(text)
    return [" ".join(text[i : i + 40]) for i in range(0, len(text), 40)]


def source_code() -> list[str]:
    """Returns the lines of the standard library's modules, without its packages' tests."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = sorted(p for p in folder.rglob("*.py") if not {"test", "site-packages"} & {*p.parts})
    return [line for p in found for line in p.read_text("utf-8", errors="replace").splitlines()]


def ours(texts: Sequence[str], size: int, special_tokens: Sequence[str]) -> list[float]:
    """Returns the seconds that counting and merging take in `train_vocab`."""
    times = {"start": time.perf_counter()}

    def progress(stage: str, done: int, total: int | None) -> None:
        times.setdefault(stage, time.perf_counter())

    train_vocab(texts, size, special_tokens=special_tokens, progress=progress)
    return [times["merge"] - times["start"], time.perf_counter() - times["merge"]]


def huggingface(
    texts: Sequence[str], size: int, special_tokens: Sequence[str], expected: Sequence[str]
) -> list[float]:
    """Returns the seconds of `WordPieceTrainer`, which must give the expected pieces."""
    tokenizer = Tokenizer(models.WordPiece())
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(special_tokens),
        limit_alphabet=1000,
        show_progress=False,
    )
    taken = seconds(tokenizer.train_from_iterator, texts, trainer)
    vocab = tokenizer.get_vocab()
    if sorted(vocab, key=lambda piece: vocab[piece]) != expected:
        raise SystemExit("the vocabularies differ")
    return [taken]


def compare(name: str, texts: Sequence[str], size: int, repeats: int) -> list[dict[str, object]]:
    """Returns one row for each side."""
    pieces = list(train_vocab(texts, size))
    alphabet = takewhile(lambda p: len(p.removeprefix("##")) == 1, pieces[len(SPECIAL_TOKENS) :])
    head = [*SPECIAL_TOKENS, *alphabet]
    taken = interleaved(
        {
            "train_vocab": lambda: ours(texts, size, head),
            "WordPieceTrainer": lambda: huggingface(texts, size, head, pieces),
        },
        repeats,
    )
    totals = {side: [sum(each) for each in figures] for side, figures in taken.items()}
    middle = medians(totals)
    counting = dict.fromkeys(taken) | medians({"train_vocab": [c for c, _ in taken["train_vocab"]]})
    return [
        {
            "text": name,
            "side": side,
            "megabytes": sum(len(text.encode()) for text in texts) / 1e6,
            "pieces": len(pieces),
            "seconds": middle[side],
            "of_these_counting": counting[side],
            "ours_is_faster": middle[side] / middle["train_vocab"],
            "repeats": totals[side],
        }
        for side in taken
    ]


def main() -> None:
    """Prints both sides' seconds on both texts, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--words", type=int, default=1_000_000, help="distinct words")
    parser.add_argument("--pieces", type=int, default=30_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    rows = []
    for name, texts in (
        ("words made of syllables", made_of_syllables(given.words)),
        ("source code", source_code()),
    ):
        rows += compare(name, texts, given.pieces, given.repeats)
    report(__file__, CLAIM, rows, ("chapbook-fast-wordpiece", "tokenizers"))


if __name__ == "__main__":
    main()
