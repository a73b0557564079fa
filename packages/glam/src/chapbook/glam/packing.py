"""Documents as shards of tokens on disk, and windows over them for training.

A folder of `write_shards` holds:

- `tokenizer.json` or `tokenizer.model`, so that the shards can be read without its source;
- `train/` and, where documents are held out, `held_out/`: shards `tokens-000000.npy`, flat arrays
  of uint16 or uint32 in which an end follows each document, and for each shard a table
  `documents-000000.parquet` of `id`, `shard`, `start`, `tokens` (without the end) and `bytes`;
- `begun.json`, the settings; and `facts.json`, the counts, which appears last and makes the folder
  whole.

Notable choices:

- A shard counts once its table is there, and no document lies in two shards. A killed writer thus
  goes on behind the last whole shard, after checking that the documents before it are the same.
- Whether a document is held out depends on a hash of its id alone, never on its place.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int32

from chapbook.core.data import Source, tokens
from chapbook.core.errors import Error
from chapbook.core.io import write_atomic, write_json
from chapbook.core.run import lock
from chapbook.core.tables import write_table
from chapbook.glam.hashing import uniform
from chapbook.glam.tokenizer import Tokenizer, load_tokenizer

PARTS = ("train", "held_out")
SHARD_TOKENS = 1 << 26
SMALL_VOCABULARY = 1 << 16  # whose ids fit in uint16

_SCHEMA = {"id": pl.String, "shard": pl.Int64, "start": pl.Int64, "tokens": pl.Int64,
           "bytes": pl.Int64}  # fmt: skip


def write_shards(
    documents: Iterable[pl.DataFrame],
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    held_out: float = 0.0,
    seed: int = 0,
    shard_tokens: int = SHARD_TOKENS,
) -> dict[str, Any]:
    """Writes documents as shards of tokens, in memory bounded by a shard for each part.

    The same call on a folder that a killed one left goes on with it.

    Args:
        documents: Frames with `id` and `text`, as `read_documents` gives them; ids of another type
            become text.
        tokenizer: Makes the tokens.
        folder: Made if missing.
        held_out: The share of documents that go to `held_out/` instead of `train/`.
        seed: Decides which ones.
        shard_tokens: A shard ends with the document that reaches so many tokens.

    Returns:
        What `facts.json` holds: the settings, and for each part its `documents`, `empty` ones
        (which are left out), `tokens` with the ends, `bytes` of text, and tokens of its `shards`.

    Raises:
        Error: The folder holds whole shards already, those of other settings or documents, or
            something else; a share is not in [0, 1); no document has any text.
    """
    if not 0 <= held_out < 1 or shard_tokens < 1:
        told = f"held_out={held_out}, shard_tokens={shard_tokens}"
        raise Error(f"{told}: give a share below 1, and one token or more")
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= SMALL_VOCABULARY else np.uint32)
    settings = {
        "tokenizer": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size,
        "end": tokenizer.end, "dtype": dtype.name, "held_out": held_out, "seed": seed,
        "shard_tokens": shard_tokens,
    }  # fmt: skip
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with lock(path / "lock", f"{path}"):
        _begin(path, settings)
        tokenizer.save(path)
        names = PARTS if held_out else PARTS[:1]
        parts = {name: _Part(path / name, tokenizer, dtype, shard_tokens) for name in names}
        for given in documents:
            batch = given.with_columns(pl.col("id").cast(pl.String))
            out = uniform(batch["id"], seed, "held-out") < held_out
            for name, part in parts.items():
                part.add(batch.filter(out if name == "held_out" else ~out))
        facts = settings | {"parts": {name: part.close() for name, part in parts.items()}}
        if not facts["parts"]["train"]["tokens"]:
            raise Error(f"{path}: no document to train on holds any text")
        write_json(path / "facts.json", facts)
    return facts


def _begin(path: Path, settings: dict[str, Any]) -> None:
    """Takes a folder that is empty, or in which the same was begun."""
    held = {each.name for each in path.iterdir() if each.name[0] != "."} - {"lock"}
    if "facts.json" in held:
        raise Error(f"{path} holds whole shards already; use another folder, or remove it")
    if not held:
        write_json(path / "begun.json", settings)
    elif "begun.json" not in held:
        raise Error(f"{path} is not empty and holds no shards; use another folder")
    begun = json.loads((path / "begun.json").read_text())
    if changed := [name for name in settings if begun.get(name) != settings[name]]:
        then = ", ".join(f"{name}={begun.get(name)}" for name in changed)
        now = ", ".join(str(settings[name]) for name in changed)
        raise Error(f"{path} was begun with {then}, you gave {now}", "use another folder")


class _Part:
    """One stream of shards under way, with what a killed writer has finished of it."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, dtype: np.dtype, shard_tokens: int):
        self.folder, self.tokenizer, self.dtype, self.limit = folder, tokenizer, dtype, shard_tokens
        folder.mkdir(exist_ok=True)
        for torn in folder.glob(".*"):
            torn.unlink()
        self.whole = sorted(folder.glob("documents-*.parquet"))
        streams = [folder / f"tokens-{shard:06d}.npy" for shard in range(len(self.whole))]
        self.shards = [len(np.load(stream, mmap_mode="r")) for stream in streams]
        self.known = pl.Series(dtype=pl.String)  # ids of a whole shard that are to come again
        self.empty = self.documents = self.bytes = 0
        self._clear()

    def _clear(self) -> None:
        self.ids: list[str] = []
        self.pieces: list[np.ndarray] = []
        self.counts: list[int] = []
        self.sizes: list[int] = []
        self.length = 0

    def add(self, batch: pl.DataFrame) -> None:
        size = batch["text"].str.len_bytes()
        self.empty += int((size == 0).sum())
        batch = batch.filter(size > 0)
        sizes = size.filter(size > 0).to_list()
        self.documents, self.bytes = self.documents + len(sizes), self.bytes + sum(sizes)
        while batch.height and self._unfinished():
            count = min(batch.height, len(self.known))
            if batch["id"][:count].to_list() != self.known[:count].to_list():
                raise self._other_documents()
            batch, sizes, self.known = batch[count:], sizes[count:], self.known[count:]
        encoded = self.tokenizer.encode_batch(batch["text"].to_list())
        for name, found, size in zip(batch["id"].to_list(), encoded, sizes, strict=True):
            self.ids.append(name)
            self.pieces.append(np.append(found, self.tokenizer.end).astype(self.dtype))
            self.counts.append(len(found))
            self.sizes.append(size)
            self.length += len(found) + 1
            if self.length >= self.limit:
                self.flush()

    def _unfinished(self) -> bool:
        """Whether whole shards hold documents that have not come again yet."""
        while self.whole and not len(self.known):
            self.known = pl.read_parquet(self.whole.pop(0), columns=["id"])["id"]
        return len(self.known) > 0

    def _other_documents(self) -> Error:
        return Error(
            f"{self.folder.parent} was begun with other documents", "remove it to start anew"
        )

    def flush(self) -> None:
        """Writes what is held as the next shard: its tokens, and then its table."""
        shard = len(self.shards)
        stream = np.concatenate(self.pieces)
        write_atomic(self.folder / f"tokens-{shard:06d}.npy", lambda part: np.save(part, stream))
        counts = np.array(self.counts)
        table = pl.DataFrame(
            {
                "id": self.ids, "shard": np.full(len(counts), shard),
                "start": np.cumsum(counts + 1) - counts - 1, "tokens": counts, "bytes": self.sizes,
            },
            schema=_SCHEMA,
        )  # fmt: skip
        write_table(table, self.folder / f"documents-{shard:06d}.parquet")
        self.shards.append(len(stream))
        self._clear()

    def close(self) -> dict[str, Any]:
        if self._unfinished():
            raise self._other_documents()
        if self.pieces:
            self.flush()
        return {
            "documents": self.documents, "empty": self.empty, "tokens": sum(self.shards),
            "bytes": self.bytes, "shards": self.shards,
        }  # fmt: skip


class PackedDataset:
    """Windows over shards of tokens: a source for `chapbook.core.Batches`.

    Window `i` of a shard is its tokens `i * context` to `(i + 1) * context`, the last one included,
    so that inputs `[:, :-1]` and targets `[:, 1:]` cover every token once. Tokens after the last
    whole window of a shard are left out. Files are memory-mapped.

    Args:
        folder: As `write_shards` made it.
        context: Tokens to predict in a window.
        part: `train` or `held_out`.

    Attributes:
        facts: What `facts.json` holds.
        part_facts: What it holds of this part.

    Raises:
        Error: The folder is not whole, has no such part, or has no window of that many tokens.
    """

    def __init__(self, folder: str | Path, context: int, part: str = "train"):
        self.folder, self.context = Path(folder), context
        if not (self.folder / "facts.json").exists():
            begun = (self.folder / "begun.json").exists()
            what = (
                "is half-written; run the same glam prepare again" if begun else "holds no shards"
            )
            raise Error(f"{self.folder} {what}")
        self.facts: dict[str, Any] = json.loads((self.folder / "facts.json").read_text())
        if part not in self.facts["parts"]:
            known = ", ".join(self.facts["parts"])
            raise Error(f"{self.folder} has no part {part}; it has {known}")
        self.part_facts: dict[str, Any] = self.facts["parts"][part]
        self._files = self.folder / part
        sizes = self.part_facts["shards"]
        self._shards = [self._shard(i, size) for i, size in enumerate(sizes) if size > context >= 1]
        if not self._shards:
            longest = f"its longest shard has {max(sizes, default=0)}"
            raise Error(f"{self._files} holds no window of {context} + 1 tokens; {longest}")
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def _shard(self, number: int, size: int) -> Source:
        file = self._files / f"tokens-{number:06d}.npy"
        with suppress(OSError, ValueError):
            stream = np.load(file, mmap_mode="r")
            if stream.shape == (size,) and stream.dtype == self.facts["dtype"]:
                return tokens(stream, self.context)
        raise Error(f"{file} is not the shard of {size} tokens that facts.json tells of")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: np.ndarray) -> dict[str, Int32[np.ndarray, "rows window"]]:
        """Returns windows.

        Args:
            rows: Their numbers.

        Returns:
            `tokens`, and `segment`, which numbers the documents of each window from 1. An end is
            the first token of the document behind it, of which it is all that stands before the
            first word; the document in front predicts it.
        """
        rows = np.asarray(rows)
        found = np.empty((len(rows), self.context + 1), np.int32)
        held = np.searchsorted(self._ends, rows, side="right")
        for shard in np.unique(held):
            at = held == shard
            first = self._ends[shard] - len(self._shards[shard])
            found[at] = self._shards[shard][rows[at] - first]["tokens"]
        segment = 1 + np.cumsum(found == self.facts["end"], axis=-1, dtype=np.int32)
        return {"tokens": found, "segment": segment}

    @property
    def fingerprint(self) -> str:
        """Tells whether two datasets have the same tokenizer."""
        return self.facts["tokenizer"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What made the tokens."""
        name = self.facts["tokenizer"]
        return load_tokenizer("bytes" if name == "bytes" else self.folder)

    @property
    def tokens_per_document(self) -> float:
        """The mean over the part's documents, their ends included."""
        return self.part_facts["tokens"] / self.part_facts["documents"]

    def documents(self) -> pl.LazyFrame:
        """Returns the table of the documents: `id`, `shard`, `start`, `tokens` and `bytes`."""
        return pl.scan_parquet(self._files / "documents-*.parquet")
