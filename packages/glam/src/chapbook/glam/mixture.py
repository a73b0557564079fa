"""Several sources drawn in proportion to weights, in an order that can be taken up anywhere.

Notable choices:

- A mixture is itself a source of a given number of rows, so `chapbook.core.Batches` walks it,
  stops, resumes, and splits it over processes as it does any other.
- Which source a row comes from is drawn block by block by systematic sampling: point j of block b
  is (j + u_b) / BLOCK for one uniform u_b, and takes the source in whose share of [0, 1] it falls;
  the block is then shuffled. Every source gets its share of each block to within a row, in
  expectation exactly, and the counts before any row come without a walk over the rows before.
- Each source is walked in an order drawn from the seed, its place among the sources and the epoch:
  all of its rows once, then all again in another order.
"""

import logging
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import Int64

from chapbook.core.data import Batch, Source
from chapbook.core.errors import Error
from chapbook.glam.packing import PackedDataset
from chapbook.glam.tokenizer import Tokenizer

BLOCK = 1024  # rows
By = Literal["tokens", "documents"]

_log = logging.getLogger(__name__)


class MixtureSampler:
    """Rows of several sources in proportion to their weights: a source for `Batches`.

    Walk it in its own order: `Batches(mixture, batch, shuffle=False, epochs=1)`, whose
    `get_state` and `set_state` stop and resume it. Sources that are seen more than once are warned
    about when the mixture is made.

    Args:
        sources: For each name, a source and its weight; weights need not sum to 1. A source of
            weight 0 is left out. All rows must be of one shape.
        rows: How many rows the mixture has: steps times batch.
        seed: Of all draws.
        by: What the weights are shares of. Rows are windows of equally many tokens, so shares of
            `tokens` are those of rows; shares of `documents` are made into them by each source's
            `tokens_per_document`, which `PackedDataset` has.

    Attributes:
        shares: Each source's share of the rows.

    Raises:
        Error: There is no source, a weight is negative or not finite, all weights are 0, a source
            is empty, or the sources differ in their tokenizers or the shapes of their rows.

    Reference:
        Du et al., GLaM, 2022, section 3, table 3: the weights of the paper's sources.
    """

    def __init__(
        self,
        sources: Mapping[str, tuple[Source, float]],
        *,
        rows: int,
        seed: int = 0,
        by: By = "tokens",
    ):
        _check(sources)
        if rows < 1:
            raise Error(f"rows={rows}: a mixture needs a positive number of rows")
        held = {name: each for name, each in sources.items() if each[1] > 0}
        self.rows, self.seed = rows, seed
        self._names = list(held)
        self._sources = [source for source, _ in held.values()]
        weights = np.array([float(weight) for _, weight in held.values()])
        if by == "documents":
            weights *= [_tokens_per_document(name, source) for name, (source, _) in held.items()]
        self._upper = np.cumsum(weights) / weights.sum()
        self._upper[-1] = 1.0
        self.shares = dict(zip(held, np.diff(self._upper, prepend=0.0).tolist(), strict=True))
        self._before = self._counts_before_blocks()
        self._block = lru_cache(maxsize=8)(self._drawn_block)
        self._order = lru_cache(maxsize=2 * len(held))(self._drawn_order)
        often = [
            f"{name} {passes:.1f} times" for name, passes in self.epochs().items() if passes > 1
        ]
        if often:
            _log.warning("the mixture sees %s", ", ".join(often))

    def __len__(self) -> int:
        return self.rows

    @property
    def tokenizer(self) -> Tokenizer:
        """What made the tokens of all sources.

        Raises:
            Error: The sources do not tell.
        """
        for source in self._sources:
            if isinstance(source, PackedDataset):
                return source.tokenizer
        raise Error("the sources of the mixture do not tell what made their tokens")

    def __getitem__(self, rows: np.ndarray) -> Batch:
        """Returns rows by their numbers, with the columns of the sources."""
        rows = np.asarray(rows)
        source, place = self._places(rows)
        found: Batch = {}
        for number in np.unique(source):
            at = np.flatnonzero(source == number)
            for name, values in self._read(int(number), place[at]).items():
                whole = found.setdefault(
                    name, np.empty((len(rows), *values.shape[1:]), values.dtype)
                )
                whole[at] = values
        return found

    def epochs(self, rows: int | None = None) -> dict[str, float]:
        """Returns how often each source has been passed through.

        Args:
            rows: After so many rows of the mixture; after all if None.
        """
        counts = self._counts_before(self.rows if rows is None else rows)
        pairs = zip(self._names, self._sources, counts, strict=True)
        return {name: float(count / len(source)) for name, source, count in pairs}

    def _counts_before_blocks(self) -> Int64[np.ndarray, "blocks sources"]:
        """Returns how many rows of each source come before each block, and after the last."""
        blocks = math.ceil(self.rows / BLOCK)
        offsets = _generator(self.seed, 0).random(blocks)
        # Points j + u below BLOCK * upper are those with j below this.
        below = np.ceil(BLOCK * self._upper - offsets[:, None])
        counts = np.diff(below, axis=1, prepend=0).astype(np.int64)
        return np.concatenate([np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)])

    def _drawn_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns for each row of a block its source, and how many of it came before."""
        counts = self._before[block + 1] - self._before[block]
        sources = np.repeat(np.arange(len(counts)), counts)
        before = np.arange(BLOCK) + np.repeat(
            self._before[block] - np.cumsum(counts) + counts, counts
        )
        mixed = _generator(self.seed, 1, block).permutation(sources)
        place = np.empty(BLOCK, np.int64)
        place[np.argsort(mixed, kind="stable")] = before
        return mixed, place

    def _counts_before(self, row: int) -> Int64[np.ndarray, " sources"]:
        block, within = divmod(row, BLOCK)
        counts = self._before[block].copy()
        if within:
            counts += np.bincount(self._block(block)[0][:within], minlength=len(counts))
        return counts

    def _places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        source, place = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        blocks = rows // BLOCK
        for block in np.unique(blocks):
            at = blocks == block
            sources, places = self._block(int(block))
            source[at], place[at] = sources[rows[at] % BLOCK], places[rows[at] % BLOCK]
        return source, place

    def _read(self, number: int, place: np.ndarray) -> Batch:
        """Returns the rows that a source's own walk has at some places."""
        epochs, within = np.divmod(place, len(self._sources[number]))
        rows = np.empty(len(place), np.int64)
        for epoch in np.unique(epochs):
            at = epochs == epoch
            rows[at] = self._order(number, int(epoch))[within[at]]
        return self._sources[number][rows]

    def _drawn_order(self, number: int, epoch: int) -> np.ndarray:
        return _generator(self.seed, 2 + number, epoch).permutation(len(self._sources[number]))


def read_mixture(
    path: str | Path, context: int, *, rows: int, seed: int = 0, part: str = "train"
) -> MixtureSampler:
    """Reads a mixture of folders of shards from a YAML file.

    The file names the sources, with their folders from its own folder on, and weights:

        by: tokens            # or documents; tokens if left out
        sources:
          web: {path: shards/web, weight: 0.42}
          books: {path: shards/books, weight: 0.2}

    Args:
        path: The file.
        context: Tokens to predict in a row.
        rows: As for `MixtureSampler`.
        seed: As for `MixtureSampler`.
        part: The part of each folder: `train` or `held_out`.

    Raises:
        Error: The file is no such YAML, a folder is missing or not whole, or the weights are not
            those of a mixture; the message names the file and the source.
    """
    file = Path(path)
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        told = " ".join(str(problem).split())
        raise Error(f"{file} is no YAML: {told}") from problem
    example = "it needs sources, such as web: {path: shards/web, weight: 0.42}"
    if not isinstance(content, dict) or not isinstance(content.get("sources"), dict):
        raise Error(f"{file}: {example}")
    by: Any = content.get("by", "tokens")
    if unknown := [str(name) for name in content if name not in ("by", "sources")]:
        raise Error(f"{file}: {', '.join(unknown)} is unknown; it has by and sources")
    if by not in ("tokens", "documents"):
        raise Error(f"{file}: by is {by}; it is tokens or documents")
    sources: dict[str, tuple[Source, float]] = {}
    for name, told in content["sources"].items():
        if not isinstance(told, dict) or set(told) != {"path", "weight"}:
            raise Error(f"{file}: source {name} needs a path and a weight, and nothing else")
        weight, folder = told["weight"], file.parent / str(told["path"])
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise Error(f"{file}: the weight of {name} is {weight}, which is no number")
        if not folder.is_dir():
            raise Error(f"{file}: source {name} has a weight, but its folder {folder} is missing")
        sources[str(name)] = (PackedDataset(folder, context, part), float(weight))
    try:
        return MixtureSampler(sources, rows=rows, seed=seed, by=by)
    except Error as problem:
        raise Error(f"{file}: {problem.message}", problem.hint) from None


def _check(sources: Mapping[str, tuple[Source, float]]) -> None:
    if not sources:
        raise Error("a mixture needs at least one source")
    for name, (source, weight) in sources.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise Error(f"the weight of {name} is {weight}; give a number of 0 or more")
        if not len(source):
            raise Error(f"source {name} holds no rows")
    if not sum(weight for _, weight in sources.values()):
        raise Error(f"the weights of {', '.join(sources)} sum to 0")
    _same(
        "tokenizer", {n: getattr(source, "fingerprint", None) for n, (source, _) in sources.items()}
    )
    _same("rows", {name: _shape(source) for name, (source, _) in sources.items()})


def _same(what: str, found: Mapping[str, Any]) -> None:
    first = next(iter(found))
    for name, value in found.items():
        if value != found[first]:
            told = f"{first} has {found[first]}, {name} has {value}"
            raise Error(f"the sources differ in their {what}: {told}")


def _shape(source: Source) -> str:
    row = source[np.array([0])]
    return ", ".join(
        f"{name} {values.dtype}{list(values.shape[1:])}" for name, values in row.items()
    )


def _tokens_per_document(name: str, source: Source) -> float:
    found = getattr(source, "tokens_per_document", None)
    if found is None:
        raise Error(f"source {name} does not count its documents, so it has no share by documents")
    return found


def _generator(seed: int, stream: int, place: int = 0) -> np.random.Generator:
    # A word of the counter for each place keeps the streams from overlapping.
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, place, 0, 0]))
