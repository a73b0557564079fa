"""Files of token ids, written in parts that a kill cannot tear, and read again.

Notable choices:

- A part is a file of its own, whole or absent. A journal beside the parts tells, for each, where
  in the input it ends: what a kill leaves unfinished is encoded again from there.
- When the input is through, the parts become one file. An output that is a folder keeps them.
- Parquet and the flat arrays carry the fingerprint of the tokenizer, and readers check it.
"""

import contextlib
import dataclasses
import glob
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from chapbook.core.errors import Error
from chapbook.core.io import append_jsonl, read_jsonl, write_atomic, write_json
from chapbook.core.run import lock

KINDS = {"parquet": ".parquet", "ipc": ".arrow", "jsonl": ".jsonl", "bin": ".npz"}
_SUFFIXES = {
    ".parquet": "parquet",
    **dict.fromkeys((".ipc", ".arrow", ".feather"), "ipc"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
}
FINGERPRINT = "fast_wordpiece.fingerprint"
JOB = "fast_wordpiece.job"


def kind_of(output: Path, format: str | None = None) -> tuple[str, bool]:  # noqa: A002
    """Returns the kind of an output, and whether it is a folder that keeps its parts.

    Args:
        output: The file or folder; `-` is stdout.
        format: `parquet`, `ipc`, `jsonl` or `bin`; None means by the suffix.

    Raises:
        Error: There is no such kind, or the suffix says another.
    """
    told = _SUFFIXES.get(output.suffix.lower())
    if format is not None and format not in KINDS:
        raise Error(f"--format {format} is unknown; it is {', '.join(KINDS)}")
    if str(output) == "-":
        if format not in (None, "jsonl"):
            raise Error(f"--format {format} cannot be written to stdout; jsonl can")
        return "jsonl", False
    if format == "bin":
        return "bin", False
    if told is None and output.suffix and format is None:
        raise Error(
            f"{output}: {output.suffix} is no kind of output; known are {', '.join(_SUFFIXES)}, and"
            " a folder",
            "say it with --format",
        )
    if format is not None and told not in (None, format):
        raise Error(f"{output} does not go with --format {format}")
    return format or told or "parquet", told is None


@dataclasses.dataclass
class Parts:
    """The parts of an output that is being written.

    Attributes:
        output: The file or folder that they will be.
        kind: Its kind.
        folder: Where they are.
        facts: What decides what is written: the tokenizer, the options and the inputs.
        journal: What was said of each part when it was written.
        is_done: Whether no part is to come.
        is_published: Whether the output is there, as it will be.
    """

    output: Path
    kind: str
    folder: Path
    facts: Mapping[str, Any]
    journal: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    is_done: bool = False
    is_published: bool = False

    @property
    def part_kind(self) -> str:
        """The kind of the parts; those that become one parquet file are packed only then."""
        is_one = self.kind == "parquet" and self.folder != self.output
        return "ipc" if is_one else self.kind

    def add(self, table: pl.DataFrame, facts: Mapping[str, Any]) -> None:
        """Writes the next part, and then what the journal says of it."""
        path = self._path(len(self.journal))
        write_atomic(path, lambda part: _write(table, part, self.part_kind, self._metadata()))
        row = {"part": path.name, "rows": table.height, **facts}
        append_jsonl(self.folder / "journal.jsonl", row)
        self.journal.append(row)

    def finish(self) -> None:
        """Says that no part is to come, and makes the output of the parts."""
        if self.is_published:
            return
        if not self.is_done:
            append_jsonl(self.folder / "journal.jsonl", {"done": True})
            self.is_done = True
        if self.folder == self.output:
            self.is_published = True
            return
        paths = [self._path(number) for number in range(len(self.journal))]
        whole = self.folder / f"whole{self.output.suffix}"
        if self.kind != "bin":
            write_atomic(whole, lambda part: _join(paths, part, self.kind, self._metadata()))
            whole.replace(self.output)
        elif _made_by(self.output, self.kind) != self.facts:
            shutil.rmtree(whole, ignore_errors=True)
            whole.mkdir()
            _join_arrays(paths, whole, self.facts, self.journal)
            whole.replace(self.output)
        # From here on the parts can go. A kill leaves some of them, and this mark.
        write_json(self.folder / "job.json", {**self.facts, "published": True})
        self.is_published = True

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05}{KINDS[self.part_kind]}"

    def _metadata(self) -> dict[str, str]:
        return {FINGERPRINT: self.facts["tokenizer"], JOB: json.dumps(self.facts, sort_keys=True)}


@contextlib.contextmanager
def parts(
    output: Path,
    kind: str,
    facts: Mapping[str, Any],
    *,
    keeps_parts: bool = False,
    resume: bool = False,
) -> Iterator[Parts]:
    """Opens an output for writing, new or to be continued.

    Args:
        output: The file, or the folder that keeps its parts.
        kind: Its kind.
        facts: What decides what is written, with the tokenizer's fingerprint as `tokenizer`.
        keeps_parts: Whether the output is a folder that keeps its parts.
        resume: Whether to go on with what is there.

    Yields:
        The parts. If the output is whole already, they are done.

    Raises:
        Error: The output is there and is not to be resumed, was made from something else, or is
            being written by another process.
    """
    facts = json.loads(json.dumps(facts))
    folder = output if keeps_parts else output.with_name(output.name + ".parts")
    held = Parts(output, kind, folder, facts)
    job, journal = folder / "job.json", folder / "journal.jsonl"
    if output.exists() and not job.exists() and not _is_bare(output):
        if not (resume and _made_by(output, kind) == facts):
            raise Error(
                f"{output} exists" + ", and does not tell that it was made of this" * resume,
                "delete it, or write to another place",
            )
        held.is_done = held.is_published = True
        with contextlib.suppress(OSError):  # not there, or not empty
            folder.rmdir()
        yield held
        return
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / "lock", str(output)):
        _begin(folder, facts, resume, keeps_parts)
        rows = read_jsonl(journal)
        held.journal = [row for row in rows if "part" in row]
        held.is_published = json.loads(job.read_text()).get("published", False)
        held.is_done = held.is_published or any("done" in row for row in rows)
        held.is_published |= held.is_done and keeps_parts
        if output.exists() and not held.is_done and not keeps_parts:
            raise Error(f"{output} exists, beside parts of it in {folder}", "delete either")
        yield held
        if held.is_published and not keeps_parts:
            # What says that all of it is old goes last.
            for path in (*sorted(folder.glob("part-*")), journal, job):
                path.unlink(missing_ok=True)
    if held.is_published and not keeps_parts:
        folder.rmdir()


def _is_bare(output: Path) -> bool:
    """Whether an output is a folder in which nothing has been begun."""
    return output.is_dir() and not [path for path in output.iterdir() if path.name != "lock"]


def _begin(folder: Path, facts: Mapping[str, Any], resume: bool, keeps_parts: bool) -> None:
    """Takes a folder that is new or that holds the same job, and rids it of what a kill left."""
    job = folder / "job.json"
    if job.exists():
        if not resume:
            what = "an encoding" if keeps_parts else "an encoding that is not finished"
            raise Error(f"{folder} holds {what}", "go on with --resume, or delete the folder")
        _compare(folder, json.loads(job.read_text()), facts)
        torn = list(folder.glob(".*"))
    else:
        torn = [path for path in folder.iterdir() if path.name != "lock"]
    for path in torn:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not job.exists():
        write_json(job, facts)


def _compare(folder: Path, held: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """Raises what is different between the job that a folder holds and the one that is wanted."""
    mend = "use what it was begun with, or delete the folder"
    if held.get("tokenizer") != facts["tokenizer"]:
        before, now = str(held.get("tokenizer"))[:12], facts["tokenizer"][:12]
        raise Error(
            f"{folder} was begun with another tokenizer (fingerprint {before}, not {now})", mend
        )
    for name in facts:
        if held.get(name) != facts[name]:
            what = f"{name} was {_short(held.get(name))} and is {_short(facts[name])}"
            if name == "inputs":
                what = "the input files are others, or have changed since"
            raise Error(f"{folder} was begun otherwise: {what}", mend)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _made_by(output: Path, kind: str) -> Any:
    """Returns the job that a whole output tells of, or None."""
    if kind == "bin" and (output / "about.json").exists():
        return json.loads((output / "about.json").read_text()).get("job")
    if kind == "parquet" and output.is_file():
        with contextlib.suppress(pl.exceptions.PolarsError, OSError):
            return json.loads(pl.read_parquet_metadata(output).get(JOB, "null"))
    return None


# ------------------------------------------------------------------------------------------ write


def _write(table: pl.DataFrame, path: Path, kind: str, metadata: dict[str, str]) -> None:
    if kind == "parquet":
        table.write_parquet(path, metadata=metadata)
    elif kind == "ipc":
        table.write_ipc(path)
    elif kind == "jsonl":
        table.write_ndjson(path)
    else:
        rows = table["ids"]
        lengths = rows.list.len().fill_null(0).to_numpy().astype(np.int64)
        flat = rows.filter(rows.list.len() > 0).explode().to_numpy()
        with path.open("wb") as file:
            np.savez(file, ids=flat, lengths=lengths)


def _join(paths: list[Path], whole: Path, kind: str, metadata: dict[str, str]) -> None:
    """Writes the rows of all parts to one file, in bounded memory."""
    if kind == "jsonl":
        with whole.open("wb") as file:
            for path in paths:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, file, 1 << 20)
        return
    lazy = pl.scan_ipc([glob.escape(str(path)) for path in paths], hive_partitioning=False)
    if kind == "parquet":
        lazy.sink_parquet(whole, metadata=metadata, maintain_order=True)
    else:
        lazy.sink_ipc(whole, maintain_order=True)


def _join_arrays(
    paths: list[Path], folder: Path, facts: Mapping[str, Any], journal: list[dict[str, Any]]
) -> None:
    """Writes `ids.npy` and `row_offsets.npy`, to be mapped into memory, and `about.json`."""
    rows = sum(row["rows"] for row in journal)
    tokens = sum(row["tokens"] for row in journal)
    dtype = np.dtype(facts["options"]["dtype"])
    with (folder / "ids.npy").open("wb") as ids, (folder / "row_offsets.npy").open("wb") as offsets:
        _header(ids, dtype, tokens)
        _header(offsets, np.dtype(np.int64), rows + 1)
        offsets.write(np.zeros(1, np.int64).tobytes())
        end = 0
        for path in paths:
            with np.load(path) as part:
                ids.write(part["ids"].astype(dtype).tobytes())
                ends = end + np.cumsum(part["lengths"])
            offsets.write(ends.astype(np.int64).tobytes())
            end = int(ends[-1]) if len(ends) else end
        for file in (ids, offsets):
            file.flush()
            os.fsync(file.fileno())
    about = {"fingerprint": facts["tokenizer"], "rows": rows, "tokens": tokens, "job": facts}
    write_json(folder / "about.json", about)


def _header(file: Any, dtype: np.dtype, size: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**header, "shape": (size,)})


# ------------------------------------------------------------------------------------------- read


def check_fingerprint(path: str | Path, fingerprint: str) -> None:
    """Checks that a file of ids was made by a tokenizer, as far as the file tells.

    Args:
        path: A parquet file, or a folder of flat arrays. Other files tell nothing.
        fingerprint: Of the tokenizer.

    Raises:
        Error: It was made by another.
    """
    path = Path(path)
    told = None
    if path.is_dir() and (path / "about.json").exists():
        told = json.loads((path / "about.json").read_text())["fingerprint"]
    elif path.suffix == ".parquet":
        told = pl.read_parquet_metadata(path).get(FINGERPRINT)
    if told not in (None, fingerprint):
        raise Error(
            f"{path} was encoded by another tokenizer (fingerprint {told[:12]}, not"
            f" {fingerprint[:12]})",
            "give that tokenizer, or --unchecked to go on nevertheless",
        )


def id_rows(
    path: Path, column: str = "ids", read: Callable[[], bytes] | None = None
) -> Iterator[pl.Series]:
    """Reads ids, some rows at a time.

    Args:
        path: A parquet, ipc or jsonl file with a column of lists, a folder of flat arrays, or a
            text file with the ids of a row on each line.
        column: The column.
        read: Reads all of stdin, for `-`.

    Yields:
        Lists of integers; null stays null.

    Raises:
        Error: The file holds no such column.
    """
    if path.is_dir():
        yield from _flat_rows(path)
        return
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind in ("parquet", "ipc"):
        scan = pl.scan_parquet(path) if kind == "parquet" else pl.scan_ipc(path)
        _require_lists(path, column, dict(scan.collect_schema()))
        for frame in scan.select(column).collect_batches(chunk_size=4096, maintain_order=True):
            yield frame[column]
        return
    text = read() if read and str(path) == "-" else None
    with contextlib.ExitStack() as stack:
        lines = text.splitlines() if text is not None else stack.enter_context(path.open("rb"))
        rows: list[list[int] | None] = []
        for number, line in enumerate(lines, 1):
            rows.append(_row(line, kind == "jsonl", column, f"{path}:{number}"))
            if len(rows) == 4096:
                yield pl.Series(column, rows, pl.List(pl.Int64))
                rows = []
        yield pl.Series(column, rows, pl.List(pl.Int64))


def _flat_rows(path: Path) -> Iterator[pl.Series]:
    try:
        ids = np.load(path / "ids.npy", mmap_mode="r")
        offsets = np.load(path / "row_offsets.npy", mmap_mode="r")
    except FileNotFoundError as problem:
        raise Error(f"{path} holds no {Path(problem.filename).name}") from None
    for first in range(0, len(offsets) - 1, 4096):
        bounds = np.asarray(offsets[first : first + 4097])
        rows = [ids[a:b].tolist() for a, b in itertools.pairwise(bounds)]
        yield pl.Series("ids", rows, pl.List(pl.Int64))


def _require_lists(path: Path, column: str, schema: Mapping[str, Any]) -> None:
    if column not in schema:
        raise Error(f'{path}: no column "{column}"; it has {", ".join(schema)}')
    inner = getattr(schema[column], "inner", None)
    if inner is None or not inner.is_integer():
        raise Error(f'{path}: column "{column}" is {schema[column]}, not lists of ids')


def _row(line: bytes, is_json: bool, column: str, place: str) -> list[int] | None:
    try:
        if not is_json:
            return [int(word) for word in line.replace(b",", b" ").split()]
        row = json.loads(line)[column]
    except KeyError:
        raise Error(f'{place}: no "{column}"') from None
    except (ValueError, TypeError):
        raise Error(f"{place}: these are no ids") from None
    if row is not None and not (
        isinstance(row, list) and all(type(number) is int for number in row)
    ):
        raise Error(f'{place}: "{column}" is no list of ids')
    return row
