"""Batches in an order that depends on the seed, the epoch and the position alone.

- A source is anything with `len(source)` and `source[rows] -> dict of NumPy arrays`; `arrays`,
  `frame` and `tokens` make the usual ones.
- `Batches` walks a source in a shuffled order and can be stopped and resumed at any batch.
- `place` puts batches onto a mesh. Each process reads only the rows that its own devices hold, so
  the global batch is the same on 1, 2 or 64 processes.

Only `place` needs JAX.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np

from chapbook.core.errors import Error, TableError

if TYPE_CHECKING:
    import jax

Batch = dict[str, np.ndarray]
State = dict[str, Any]
Map = Callable[[Batch, np.random.Generator], Mapping[str, Any]]

# Bytes from which a batch is put onto a single device ahead of its use. A compiled program takes a
# smaller one from NumPy in less time than a thread takes to hand it over; and since steps are
# dispatched without waiting, it is read while they run.
LARGE = 1 << 20


@runtime_checkable
class Source(Protocol):
    """Rows that can be read in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray, /) -> Batch: ...


@dataclass
class _Arrays:
    columns: Batch

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, rows: np.ndarray) -> Batch:
        return {name: column[rows] for name, column in self.columns.items()}


def arrays(**columns: Any) -> Source:
    """Makes a source of arrays that share their first dimension.

    Args:
        columns: Arrays of numbers or booleans, `[rows, ...]` each. Memory-mapped arrays stay on
            disk.

    Returns:
        A source whose batches have the same names.

    Raises:
        Error: If there are no columns, a column is a scalar or not numeric, or the lengths differ.
    """
    found = {name: np.asanyarray(column) for name, column in columns.items()}
    if not found:
        raise Error("a source needs at least one column")
    for name, column in found.items():
        if column.ndim == 0:
            raise Error(f"column {name} is a scalar; give one value per row")
        # Numbers that NumPy does not know itself, as bfloat16, are of kind V without fields.
        if column.dtype.kind not in "biufcV" or column.dtype.names:
            raise TableError(
                f"column {name} is not numeric ({column.dtype}); encode it as numbers or drop it",
                column=name,
            )
    lengths = {name: len(column) for name, column in found.items()}
    if len(set(lengths.values())) > 1:
        raise Error(f"columns differ in length: {_listed(lengths)}")
    return _Arrays(found)


def frame(table: Any) -> Source:
    """Makes a source of a table's columns.

    Args:
        table: A Polars or pandas frame. Columns hold numbers or booleans; Polars columns of fixed
            size arrays become `[rows, ...]`.

    Returns:
        A source with one array per column.

    Raises:
        TableError: If a column is not numeric or holds nulls.
    """
    for name in table.columns:
        column = table[name]
        nulls = int(column.null_count() if hasattr(column, "null_count") else column.isna().sum())
        # pandas writes a missing float as NaN, which is a number here as it is in Polars.
        if nulls and getattr(column.dtype, "kind", "") != "f":
            told = f"column {name} holds {nulls} missing values; fill them or drop their rows"
            raise TableError(told, column=str(name))
    return arrays(**{str(name): table[name].to_numpy() for name in table.columns})


@dataclass
class _Tokens:
    windows: np.ndarray
    end: int | None

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, rows: np.ndarray) -> Batch:
        tokens = self.windows[rows]
        if self.end is None:
            return {"tokens": tokens}
        # An end token belongs to the document that it ends, so each count starts one later.
        segment = np.ones(tokens.shape, np.int32)
        segment[..., 1:] += np.cumsum(tokens[..., :-1] == self.end, axis=-1, dtype=np.int32)
        return {"tokens": tokens, "segment": segment}


def tokens(
    stream: str | Path | np.ndarray,
    length: int = 1024,
    *,
    end: int | None = None,
    dtype: Any = np.uint16,
) -> Source:
    """Makes a source of overlapping windows over one long stream of token ids.

    Window `i` is `stream[i * length : (i + 1) * length + 1]`, so that inputs `[:, :-1]` and targets
    `[:, 1:]` cover every token once. Tokens after the last whole window are left out.

    Args:
        stream: The ids: an array, an `.npy` file, or a raw little-endian file. Files are
            memory-mapped.
        length: Tokens to predict per window.
        end: The id that ends a document. With it, batches have a `segment` of the tokens' shape,
            int32, which numbers the documents of a window from 1.
        dtype: The ids' type in a raw file.

    Returns:
        A source of `tokens`, `[rows, length + 1]`.

    Raises:
        Error: If the stream is missing, holds no integers, or is shorter than one window.
    """
    where = "the token stream"
    if isinstance(stream, str | Path):
        where = str(stream)
        try:
            stream = _mapped(where, np.dtype(dtype))
        except (FileNotFoundError, ValueError) as error:  # ValueError: empty, or not whole tokens
            raise Error(f"{where} is no file of {np.dtype(dtype)} tokens: {error}") from error
    if stream.ndim != 1 or stream.dtype.kind not in "iu":
        raise Error(f"{where} is {stream.dtype}{list(stream.shape)}; give a flat array of integers")
    if not 0 < length < len(stream):
        raise Error(f"{where} holds {len(stream)} tokens, no window of {length} + 1")
    windows = np.lib.stride_tricks.sliding_window_view(stream, length + 1)[::length]
    return _Tokens(windows, end)


def _mapped(path: str, dtype: np.dtype) -> np.ndarray:
    if path.endswith(".npy"):
        return np.load(path, mmap_mode="r")
    return np.memmap(path, dtype.newbyteorder("<"), mode="r")


class Batches:
    """An endless or counted walk over a source that can be stopped and resumed at any batch.

    The order of epoch `e` is a permutation drawn from NumPy's Philox keyed by `(seed, e)`, and a
    batch is its next `batch` entries. Iterating again goes on where the last loop stopped; after
    the last epoch was exhausted, it starts anew from the first.

    Args:
        source: The rows: see `arrays`, `frame` and `tokens`.
        batch: Rows per batch, over all processes together.
        seed: Fixes the order and the random numbers of `map`.
        shuffle: Whether to permute each epoch; otherwise rows come in the source's order.
        epochs: Passes over the source; None never ends.
        drop_last: Whether to leave out the last rows of an epoch that do not fill a batch.
            Otherwise the last batch repeats its last row up to the full size, and every batch has
            a `mask`, bool `[batch]`, that is False on the repeated rows.
        map: Maps one example, a dict of arrays without the batch dimension, and a generator seeded
            by `(seed, epoch, row)` to the example to use: augmentation that does not depend on
            how far the run was, nor on the number of processes.
        workers: Threads among which a batch's examples are mapped; 0 maps in the calling thread.

    Raises:
        Error: If the source is empty, or holds less than a batch while `drop_last` is set.
    """

    def __init__(
        self,
        source: Source,
        batch: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        drop_last: bool = True,
        map: Map | None = None,  # noqa: A002
        workers: int = 0,
    ):
        if len(source) == 0:
            raise Error("the data holds no rows")
        if batch < 1 or seed < 0:
            raise Error(f"batch={batch}, seed={seed}: give a positive batch and no negative seed")
        if drop_last and batch > len(source):
            raise Error(
                f"batch={batch} is larger than the data ({len(source)} rows); "
                "take a smaller batch or drop_last=False"
            )
        self.source, self.batch, self.epochs, self.seed = source, batch, epochs, seed
        self.shuffle, self.drop_last, self.map, self.workers = shuffle, drop_last, map, workers
        self._epoch = self._position = 0
        self._exhausted = False
        self._order, self._drawn = np.empty(0, int), (-1, -1)
        self._pool = ThreadPoolExecutor(workers, "chapbook-map") if workers else None

    def __iter__(self) -> Self:
        if self._exhausted:
            self._epoch = self._position = 0
            self._exhausted = False
        return self

    def __next__(self) -> Batch:
        return self.take(None)

    def take(self, part: np.ndarray | None) -> Batch:
        """Returns the next batch, or only some of its rows.

        Args:
            part: The positions in the batch to read, int `[rows]`; None reads all.

        Raises:
            StopIteration: After the last epoch.
        """
        left = len(self.source) - self._position
        if left <= 0 or (self.drop_last and left < self.batch):
            self._epoch, self._position = self._epoch + 1, 0
        if self.epochs is not None and self._epoch >= self.epochs:
            self._exhausted = True
            raise StopIteration
        epoch, start = self._epoch, self._position
        rows = self._permutation(epoch)[start : start + self.batch]
        self._position += len(rows)
        mask = np.arange(self.batch) < len(rows)
        if len(rows) < self.batch:
            rows = np.pad(rows, (0, self.batch - len(rows)), mode="edge")
        if part is not None:
            rows, mask = rows[part], mask[part]
        try:
            batch = self.source[rows]
        except Exception as error:
            error.add_note(f"while reading rows {np.array2string(rows, threshold=16)} of the data")
            raise
        if self.map is not None:
            batch = self._mapped(batch, rows, epoch, self.map)
        if not self.drop_last:
            if "mask" in batch:
                raise Error("column mask is taken by drop_last=False; rename the column")
            batch["mask"] = mask
        return batch

    def get_state(self) -> State:
        """Returns the place after the last batch, as JSON values."""
        place = {"seed": self.seed, "epoch": self._epoch, "position": self._position}
        return place | {"fingerprint": self._fingerprint}

    def set_state(self, state: State) -> None:
        """Goes to a place that `get_state` returned, in this or another process.

        The seed of the state replaces this object's own.

        Raises:
            Error: If the source is not the one that the state was taken from.
        """
        then, now = state["fingerprint"], self._fingerprint
        if then != now:
            told = "as many rows as then, but other values"
            if then["rows"] != now["rows"]:
                told = f"{then['rows']} rows then, {now['rows']} now"
            elif then["columns"] != now["columns"]:
                told = f"{_listed(then['columns'])} then, {_listed(now['columns'])} now"
            raise Error(
                f"the data changed since the checkpoint ({told}); pass --fresh or restore the file"
            )
        self.seed, self._epoch, self._position = state["seed"], state["epoch"], state["position"]
        self._exhausted = False

    @cached_property
    def _fingerprint(self) -> State:
        """What tells whether the data changed: its size, its types and a hash of its ends."""
        rows, digest = len(self.source), hashlib.blake2b(digest_size=8)
        ends = self.source[np.array([*range(min(rows, 8)), *range(max(rows - 8, 0), rows)])]
        for name, column in ends.items():
            digest.update(name.encode() + np.ascontiguousarray(column).tobytes())
        columns = {name: f"{a.dtype}{list(a.shape[1:])}" for name, a in ends.items()}
        return {"rows": rows, "columns": columns, "values": digest.hexdigest()}

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._drawn != (self.seed, epoch):
            rows, drawn = len(self.source), _generator(self.seed, epoch)
            self._order = drawn.permutation(rows) if self.shuffle else np.arange(rows)
            self._drawn = (self.seed, epoch)
        return self._order

    def _mapped(self, batch: Batch, rows: np.ndarray, epoch: int, augment: Map) -> Batch:
        def some(places: np.ndarray) -> list[Mapping[str, Any]]:
            return [one(place) for place in places]

        def one(place: int) -> Mapping[str, Any]:
            row = int(rows[place])
            example = {name: column[place] for name, column in batch.items()}
            try:
                return augment(example, _generator(self.seed, epoch, row))
            except Exception as error:
                error.add_note(f"while mapping row {row} of the data in epoch {epoch}")
                raise

        shares = np.array_split(np.arange(len(rows)), max(self.workers, 1))
        mapped = (self._pool.map if self._pool else map)(some, shares)
        examples = list(chain.from_iterable(mapped))
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _generator(seed: int, epoch: int, row: int | None = None) -> np.random.Generator:
    """Returns the generator of an epoch's order, or of one row's augmentation in it."""
    # Philox counts in four words; a word of its own per row keeps the streams from overlapping.
    counter = [0, 0 if row is None else row + 1, 0, 0]
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=counter))


def _listed(pairs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in pairs.items())


def place(
    iterator: Any, mesh: "jax.sharding.Mesh", rules: Mapping[str, Any] | None = None, depth: int = 2
) -> "Placed":
    """Puts batches onto a mesh, ahead of their use, in a thread.

    The first dimension of every array is split over the mesh axes that `rules["batch"]` names.

    Args:
        iterator: `Batches`, of which each process then reads only the rows of its own devices; or
            any iterable of dicts of arrays, a grain iterator say, which yields this process's
            rows.
        mesh: The devices.
        rules: From logical names to mesh axes; `chapbook.core.RULES` if not given.
        depth: Batches held ready beyond the one in use.

    Returns:
        An iterator of dicts of global `jax.Array`s. Batches of less than 1 MiB for a single device
        are read when they are asked for and stay in NumPy, which compiled functions take at less
        cost. Its `get_state()` belongs to the last batch that it yielded, however many were read
        ahead. Close it, or use it as a context manager, to stop reading.

    Raises:
        Error: If the batch does not divide among the devices, or holds integers that JAX would
            cut to 32 bits.
    """
    import jax

    from chapbook.core.sharding import RULES, specs

    ours = isinstance(iterator, Batches)
    shapes = {"batches": jax.ShapeDtypeStruct((iterator.batch,), bool)} if ours else None
    spec = specs({"batches": ("batch",)}, RULES if rules is None else rules, mesh, shapes)
    sharding = jax.sharding.NamedSharding(mesh, spec["batches"])
    part = _own_rows(sharding, iterator.batch) if ours else None

    def checked(name: str, column: Any) -> np.ndarray:
        column = np.asarray(column)
        kept = jax.dtypes.canonicalize_dtype(column.dtype)
        if column.size and column.dtype.kind in "iu" and kept != column.dtype:
            bounds = np.iinfo(kept)
            if column.min() < bounds.min or column.max() > bounds.max:
                raise Error(f"column {name} holds integers of over 32 bits; encode them as smaller")
        return column

    def put(column: np.ndarray) -> "jax.Array":
        shape = (iterator.batch, *column.shape[1:]) if ours else None
        return jax.make_array_from_process_local_data(sharding, column, shape)

    def produce(running: Any) -> tuple[dict[str, Any], bool]:
        batch = running.take(part) if ours else next(running)
        batch = {name: checked(name, column) for name, column in batch.items()}
        if mesh.size == 1 and sum(column.nbytes for column in batch.values()) < LARGE:
            return batch, False
        return {name: put(column) for name, column in batch.items()}, True

    return Placed(iterator, produce, depth)


def _own_rows(sharding: "jax.sharding.NamedSharding", batch: int) -> np.ndarray | None:
    """Returns the batch's rows that this process's devices hold, or None for all of them."""
    held = sharding.addressable_devices_indices_map((batch,))
    spans = {index[0].indices(batch) for index in held.values() if index}
    rows = np.concatenate([np.arange(*span) for span in sorted(spans)])
    return None if len(rows) == batch else rows


class Placed(AbstractContextManager):
    """An iterator over batches on devices that keeps the state of the last one it yielded.

    Made by `place`.
    """

    def __init__(self, source: Any, produce: Callable[[Any], tuple[Any, bool]], depth: int):
        self._source, self._produce, self._depth = source, produce, depth
        self._running = iter(source)
        # One worker that is handed a task per batch, not a loop over a queue: whatever happens to
        # the consumer, it never waits for room, so the interpreter can always join it.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="chapbook-data")
        self._ahead: deque[Future] = deque()
        self._state, self._ended = _state_of(self._running), False

    def __iter__(self) -> Self:
        if self._ended:
            self._running, self._ended = iter(self._source), False
        return self

    def __next__(self) -> dict[str, Any]:
        try:
            made = self._ahead.popleft().result() if self._ahead else self._make()
        except BaseException as error:
            self._drain()
            self._ended = isinstance(error, StopIteration)
            raise
        batch, in_thread, self._state = made
        while in_thread and len(self._ahead) < self._depth:
            self._ahead.append(self._pool.submit(self._make))
        return batch

    def _make(self) -> tuple[dict[str, Any], bool, Any]:
        return *self._produce(self._running), _state_of(self._running)

    def _drain(self) -> None:
        wait([future for future in self._ahead if not future.cancel()])
        self._ahead.clear()

    def get_state(self) -> Any:
        """Returns the state after the last batch that was yielded; None if there is none."""
        return self._state

    def set_state(self, state: Any) -> None:
        """Drops what was read ahead and goes on from a state."""
        self._drain()
        self._running.set_state(state)
        self._state, self._ended = state, False

    def close(self) -> None:
        """Stops reading ahead and joins the thread."""
        self._drain()
        self._pool.shutdown()

    def __exit__(self, *exception: object) -> None:
        self.close()


def _state_of(running: Any) -> Any:
    return running.get_state() if hasattr(running, "get_state") else None
