"""Tables of any length: read in blocks of rows, written in blocks of rows."""

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from chapbook.core.errors import Error, TableError
from chapbook.core.io import write_atomic
from chapbook.core.tables import expand, scan_table

WRITERS = (".parquet", ".csv", ".jsonl", ".ndjson", ".ipc", ".arrow", ".feather")
_GUESS_ROWS = 10_000
_GROUP_ROWS = 1 << 16  # the writer holds a few row groups in memory


class Source:
    """A table that is read lazily, in blocks of rows, as often as needed.

    Args:
        lazy: The table.
        name: What errors call it.
        first_row: The number that its first row has in errors.
        path: The file that it is, or None for a frame.
    """

    def __init__(self, lazy: pl.LazyFrame, name: str, first_row: int = 0, path: Path | None = None):
        self.lazy, self.name, self.path = lazy, name, path
        self.first_row = first_row
        self.schema = dict(lazy.collect_schema())

    @classmethod
    def file(cls, path: str | Path, label: str | None = None) -> "Source":
        """Returns a file as a source.

        Args:
            path: A file that `chapbook.core.tables.scan_table` reads.
            label: The private column; it is read as text from text files, so that no reader ever
                fails on one of its values.

        Raises:
            Error: The file is missing, empty or of no known format.
        """
        if str(path) == "-":
            raise Error("stdin cannot be read twice, which a table may need; name a file")
        path = Path(path)
        many = len(expand(path)) > 1
        text = bool({".csv", ".tsv"} & set(path.suffixes[-2:]))  # packed perhaps: d.csv.gz
        lines = text or path.suffix.lower() in (".jsonl", ".ndjson")
        lazy = scan_table(path)
        if text:
            # Types guessed from 100 rows are too often wrong; a label has no type to be wrong in.
            guess = pl.scan_csv(
                path,
                separator="\t" if ".tsv" in path.suffixes else ",",
                infer_schema_length=_GUESS_ROWS,
            )
            types = {f"{name}?": dtype for name, dtype in guess.collect_schema().items()}
            if label is not None:
                types[f"{label}?"] = pl.String()
            lazy = scan_table(path, schema=types)
        # Of many files only the row within all of them is known, not the line.
        first_row = 0 if many else 2 if text else 1 if lines else 0
        return cls(lazy, str(path), first_row, path)

    @classmethod
    def frame(cls, frame: pl.DataFrame) -> "Source":
        """Returns a frame in memory as a source."""
        return cls(frame.lazy(), "the frame")

    def require(self, *columns: str) -> None:
        """Raises an error that names the first column that is not there."""
        for column in columns:
            if column not in self.schema:
                near = difflib.get_close_matches(column, self.schema, 1)
                meant = f". Did you mean {near[0]}?" if near else ""
                raise TableError(
                    f"{self.name}: no column {column}; it has {', '.join(self.schema)}{meant}",
                    path=self.path,
                    column=column,
                )

    def fault(self, row: int, column: str, what: str, hint: str | None = None) -> TableError:
        """Returns an error about one cell, which names its place and never its value.

        Args:
            row: Counted from 0 over all rows.
            column: The column.
            what: What is wrong with it.
            hint: How to mend it.
        """
        number = row + self.first_row
        place = f"{self.name}:{number}" if self.first_row else f"{self.name}, row {number}"
        return TableError(
            f"{place}: column {column}: {what}",
            path=self.path,
            column=column,
            row=number,
            hint=hint,
        )

    def blocks(self, rows: int, columns: Iterable[str] | None = None) -> Iterator[pl.DataFrame]:
        """Yields the table in order, in blocks of so many rows; the last may be shorter."""
        lazy = self.lazy if columns is None else self.lazy.select(list(columns))
        held: pl.DataFrame | None = None
        try:
            for batch in lazy.collect_batches(chunk_size=rows, maintain_order=True):
                table = batch if held is None else held.vstack(batch)
                while table.height >= rows:
                    yield table[:rows]
                    table = table[rows:]
                held = table if table.height else None
        except pl.exceptions.PolarsError as problem:
            # The reader's own words could quote a label, so that only their kind is passed on.
            kind = type(problem).__name__
            raise TableError(
                f"{self.name}: the table cannot be read to its end ({kind})",
                path=self.path,
                hint="check it with chapbook.core.read_table, or convert it to Parquet",
            ) from None
        if held is not None:
            yield held


def fingerprint(path: Path) -> list[dict[str, Any]]:
    """Returns what tells a file, or each file of a pattern, from another version of it."""
    return [_facts(file) for file in expand(path)]


def _facts(path: Path) -> dict[str, Any]:
    """Returns a file's size, time of change, and a hash of 64 pieces spread over it."""
    facts = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in range(64):
            file.seek(max(0, facts.st_size - 4096) * piece // 63)
            digest.update(file.read(4096))
    return {"size": facts.st_size, "changed": facts.st_mtime_ns, "sample": digest.hexdigest()}


def write_blocks(
    path: Path,
    blocks: Iterable[pl.DataFrame],
    schema: Mapping[str, pl.DataType],
    metadata: Callable[[], Mapping[str, str]],
) -> None:
    """Writes blocks of rows to a file as they come: whole and durably, or not at all.

    Args:
        path: The file; its suffix names the format.
        blocks: Frames of one schema.
        schema: That schema.
        metadata: Called once all blocks are written, for formats with metadata (Parquet).
    """
    fault: list[BaseException] = []

    def source(columns: Any, predicate: Any, rows: Any, size: Any) -> Iterator[pl.DataFrame]:
        try:
            yield from blocks
        except BaseException as problem:
            fault.append(problem)
            raise

    lazy = register_io_source(source, schema=dict(schema))

    def sink(part: Path) -> None:
        suffix = part.suffix.lower()
        if suffix == ".parquet":
            lazy.sink_parquet(
                part,
                metadata=lambda _: dict(metadata()),
                maintain_order=True,
                row_group_size=_GROUP_ROWS,
            )
        elif suffix == ".csv":
            lazy.sink_csv(part, maintain_order=True)
        elif suffix in (".jsonl", ".ndjson"):
            lazy.sink_ndjson(part, maintain_order=True)
        elif suffix in (".ipc", ".arrow", ".feather"):
            lazy.sink_ipc(part, maintain_order=True)
        else:
            raise Error(f"{path}: cannot write {suffix or 'no suffix'}; use {', '.join(WRITERS)}")

    try:
        write_atomic(path, sink)
    except Exception as problem:
        # What the blocks raised, and not how Polars puts it.
        raise (fault[0] if fault else problem) from None
