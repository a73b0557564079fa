"""The label privatiser: a table goes in, the same table with private labels comes out.

Notable choices:

- A record's label is drawn once. Every block of drawn labels is fsynced under its own name before
  anything reads it, so that a run that was killed goes on with the labels that it had drawn.
- What a run is going to spend is durably in the ledger before its first draw.
- Where public columns have to be seen as a whole (groups, ids, clusters) a pass over the table
  comes first; it also checks every label before the first draw.
- The output, its certificate and the end of the run appear in this order, each of them whole.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import narwhals as nw
import numpy as np
import polars as pl

from chapbook.core.errors import Error
from chapbook.core.run import lock
from chapbook.label_dp.certificate import METADATA_KEY, Certificate
from chapbook.label_dp.classes import Classes
from chapbook.label_dp.drawn import DrawnLabels, publish
from chapbook.label_dp.labellers import ClassLabeller
from chapbook.label_dp.ledger import PrivacyLedger
from chapbook.label_dp.release import Release
from chapbook.label_dp.request import Request
from chapbook.label_dp.sources import ColumnsPrior, MatrixPrior, Prior
from chapbook.label_dp.stream import WRITERS, Source, fingerprint, write_blocks


@dataclass(frozen=True)
class PrivateFrame:
    """A table with private labels.

    Attributes:
        frame: The table without the true labels and with the private ones.
        certificate: What was spent and how it was checked.
    """

    frame: pl.DataFrame
    certificate: Certificate


def privatize_frame(
    frame: Any,
    label: str,
    *,
    classes: Iterable[object],
    epsilon: float | None = None,
    prior: Prior | Iterable[str] | np.ndarray | None = None,
    missing: Literal["refuse", "drop", "class"] = "refuse",
    normalize_prior: bool = False,
    ledger: PrivacyLedger | None = None,
    compose: bool = False,
    seed: int | None = None,
    **columns: Any,
) -> PrivateFrame:
    """Returns a frame with private labels, in one call.

    Args:
        frame: A Polars or pandas frame.
        label: The private column; `<label>_private`, `<label>_k` and `<label>_keep` replace it
            (see `ClassLabeller`).
        classes: The declared classes, in the order of the prior's columns.
        epsilon: The privacy budget of each label.
        prior: Names of the frame's columns of probabilities, a matrix of shape (rows, classes) or
            (1, classes), a `ClusterPrior`, or None for plain randomised response.
        missing: What becomes of a missing label; "class" makes it one more class, the last.
        normalize_prior: Whether rows of the prior are divided by their sum instead of refused.
        ledger: Charged before the first draw, where given.
        compose: Add to what the records have spent in the ledger, rather than refuse.
        seed: For repeatable noise, which is not private.
        **columns: `epsilon_column`, `group_column` and `id_columns`, see `Request`.

    Returns:
        The frame, as Polars, and its certificate.

    Raises:
        Error: A label is missing or undeclared, or a prior row is no distribution; the row is
            named, the label never.
    """
    table = as_polars(frame)
    if isinstance(prior, np.ndarray):
        prior = MatrixPrior(np.atleast_2d(prior))
    elif prior is not None and not hasattr(prior, "rows"):
        prior = ColumnsPrior(tuple(prior))  # pyright: ignore[reportArgumentType]
    labeller = ClassLabeller(
        Classes(list(classes), with_missing=missing == "class"), prior is not None, normalize_prior
    )
    request = Request(
        label=label,
        labeller=labeller,
        epsilon=epsilon,
        prior=prior,  # pyright: ignore[reportArgumentType]
        missing="drop" if missing == "drop" else "refuse",
        seed=seed,
        **columns,
    )
    return privatize_rows(table, request, ledger=ledger, compose=compose)


def as_polars(frame: Any) -> pl.DataFrame:
    """Returns a Polars or pandas frame as Polars; pandas needs no pyarrow for it."""
    if isinstance(frame, pl.DataFrame):
        return frame
    table = nw.from_native(frame, eager_only=True)
    columns = {}
    for series in table.iter_columns():
        missing = series.is_null()
        if series.dtype.is_numeric() and not missing.any():
            columns[series.name] = series.to_numpy()
        else:
            pairs = zip(series.to_list(), missing.to_list(), strict=True)
            columns[series.name] = [None if absent else value for value, absent in pairs]
    return pl.DataFrame(columns)


def privatize_rows(
    frame: pl.DataFrame,
    request: Request,
    *,
    ledger: PrivacyLedger | None = None,
    compose: bool = False,
) -> PrivateFrame:
    """Returns a Polars frame with private labels, as a `Request` says."""
    release = Release(Source.frame(frame), request, ledger=ledger, compose=compose)
    return PrivateFrame(pl.concat(list(release.blocks())), release.certificate())


def privatize_table(
    source: str | Path,
    output: str | Path,
    request: Request,
    *,
    certificate: str | Path | None = None,
    ledger: PrivacyLedger | None = None,
    compose: bool = False,
    workers: int | None = None,
    progress: Callable[[int], Any] = lambda rows: None,
) -> Certificate:
    """Writes a table with private labels, in bounded memory, and never draws a label twice.

    The folder `<output>.drawn` holds the labels drawn so far. After a kill the same call goes on
    from there: the labels that were drawn stand, and the result is the same as without the kill.

    Args:
        source: A csv, tsv, parquet, ipc or jsonl file.
        output: The file to write, of one of these formats; it must not exist.
        request: What to do.
        certificate: The JSON file to write the certificate to; Parquet carries it as well.
        ledger: Charged before the first draw, where given.
        compose: Add to what the records have spent in the ledger, rather than refuse.
        workers: Threads that draw; one per core if None.
        progress: Called with the number of rows written so far.

    Raises:
        Error: The table, the prior or the request does not hold what it should, the output
            exists, or the ledger shows that records were randomised before. Nothing is released.
        OSError: Nothing can be written; the labels drawn so far are kept for the next call.
    """
    output = Path(output)
    if output.suffix.lower() not in WRITERS:
        raise Error(f"{output}: cannot write {output.suffix or 'no suffix'}; use {WRITERS}")
    if not output.parent.is_dir():
        raise Error(f"{output.parent}: no such folder")
    folder = output.with_name(output.name + ".drawn")
    for path in (output, certificate):
        if path is not None and Path(path).exists() and not folder.exists():
            raise Error(f"{path} exists; name another file, or remove it")
    table = Source.file(source, request.label)
    table.require(request.label, *request.public_columns())
    fresh = not folder.exists()
    folder.mkdir(mode=0o700, exist_ok=True)
    with lock(folder / "lock", str(output)):
        try:
            drawn = DrawnLabels(folder, {"input": fingerprint(Path(source)), **request.plan()})
            if (done := drawn.get("released")) is not None and output.exists():
                made = Certificate.from_json(done["certificate"].item())
            elif output.exists():
                raise Error(f"{output} exists; name another file, or remove it")
            else:
                release = Release(
                    table, request, drawn=drawn, ledger=ledger, compose=compose, workers=workers
                )
                made = _write(release, output, drawn, progress)
        except Error:
            # Nobody has been shown a label that this call drew, and its input cannot be used.
            if fresh:
                _forget(folder, ledger)
            raise
        if certificate is not None:
            made.save(certificate)
        drawn.remove()
    return made


def _write(
    release: Release, output: Path, drawn: DrawnLabels, progress: Callable[[int], Any]
) -> Certificate:
    """Writes the release beside its name, notes that it is done, then gives it the name."""
    part = drawn.folder / f"output{output.suffix.lower()}"
    part.unlink(missing_ok=True)

    def blocks() -> Iterator[pl.DataFrame]:
        for block in release.blocks():
            yield block
            progress(release.rows)

    def metadata() -> Mapping[str, str]:
        return {METADATA_KEY: release.certificate().to_json()}

    write_blocks(part, blocks(), release.schema, metadata)
    made = release.certificate()
    drawn.once("released", lambda: {"certificate": np.asarray(made.to_json())})
    if not publish(part, output):
        raise Error(f"{output} exists; name another file, or remove it")
    return made


def _forget(folder: Path, ledger: PrivacyLedger | None) -> None:
    drawn = DrawnLabels(folder)
    if ledger is not None and (charge := drawn.get("charge")) is not None:
        ledger.withdraw(charge["id"].item())
    drawn.remove()
