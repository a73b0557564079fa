"""Claim: documents are packed at 20 MB/s or more on a core, and windows are read faster still.

The sources of Python's own library as a jsonl file, read by `read_documents` and written by
`write_shards` as bytes (the rate of all but the tokenizer), by a BPE of 8,192 tokens, whose own
rate is the limit of the second, and by a WordPiece of as many, which fast-wordpiece cuts. Then
windows of 1,025 tokens are read back in shuffled batches.
"""

import argparse
import json
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import tokenizers

from chapbook import fast_wordpiece
from chapbook.core.data import Batches
from chapbook.glam.documents import read_documents
from chapbook.glam.packing import PackedDataset, write_shards
from chapbook.glam.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    train_tokenizer,
)

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report, seconds

CLAIM = "documents are packed at 20 MB/s or more on a core, and windows are read faster still"
VOCABULARY, CONTEXT, BATCH = 8192, 1024, 32


class WordPiece(HuggingFaceTokenizer):
    """The tokenizer of the guide that joins the two packages."""

    def __init__(self, path: Path):
        super().__init__(tokenizers.Tokenizer.from_file(str(path)), end="[SEP]")
        self.fast = fast_wordpiece.Tokenizer.from_file(path)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text."""
        batch = self.fast.encode_batch(list(texts), add_special_tokens=False)
        return np.split(np.asarray(batch.ids, np.int32), batch.row_offsets[1:-1])


def corpus(folder: Path, megabytes: float) -> Path:
    """Writes the library's sources as documents, up to a size."""
    file, left = folder / "library.jsonl", 1e6 * megabytes
    with file.open("w") as lines:
        for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
            if left > 0 and "site-packages" not in path.parts:
                text = path.read_bytes().decode(errors="replace").replace("\0", "")
                left -= len(text)
                lines.write(json.dumps({"id": str(path), "text": text}) + "\n")
    return file


def main() -> None:
    """Measures each stage, interleaved, and writes the medians."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--megabytes", type=float, default=20)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, fresh = Path(name), count()
        file = corpus(folder, given.megabytes)
        texts = [text for batch in read_documents(file) for text in batch["text"]]
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        bpe, raw = train_tokenizer(read_documents(file), VOCABULARY), ByteTokenizer()
        vocabulary = fast_wordpiece.train_vocab(texts, vocab_size=VOCABULARY)
        fast_wordpiece.Tokenizer.from_vocab(vocabulary).save(folder / "tokenizer.json")
        pieces = WordPiece(folder / "tokenizer.json")
        write_shards(read_documents(file), raw, folder / "read")
        data = PackedDataset(folder / "read", CONTEXT)

        def read() -> None:
            for _ in read_documents(file):
                pass

        def pack(tokenizer: Tokenizer) -> Callable[[], object]:
            return lambda: write_shards(read_documents(file), tokenizer, folder / str(next(fresh)))

        def windows() -> None:
            for _ in Batches(data, BATCH, epochs=1):
                pass

        stages = {
            "read documents": read,
            "read and pack as bytes": pack(raw),
            "read and pack as BPE": pack(bpe),
            "read and pack as WordPiece": pack(pieces),
            "BPE alone": lambda: bpe.encode_batch(texts),
            "windows, shuffled": windows,
        }
        timers = {name: lambda stage=stage: seconds(stage) for name, stage in stages.items()}
        times = medians(interleaved(timers, given.repeats, warm=1))
        rows = [{"stage": name, "MB/s": megabytes / each} for name, each in times.items()]
        versions = ("chapbook-glam", "chapbook-fast-wordpiece", "tokenizers", "numpy", "polars")
        report(__file__, CLAIM, rows, versions, megabytes=megabytes)


if __name__ == "__main__":
    main()
