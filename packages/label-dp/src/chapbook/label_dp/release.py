"""One run of the privatiser over one table: surveyed, charged, and drawn block by block."""

import math
import os
import secrets
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from chapbook.core.errors import Error
from chapbook.label_dp.certificate import Certificate, Spend
from chapbook.label_dp.classes import MISSING
from chapbook.label_dp.drawn import DrawnLabels
from chapbook.label_dp.entropy import Entropy
from chapbook.label_dp.ledger import PrivacyLedger
from chapbook.label_dp.priors import (
    SAMPLE,
    Clusters,
    count_labels,
    fit_clusters,
    from_counts,
    noisy_counts,
    small_clusters_warning,
)
from chapbook.label_dp.records import RecordHashes, record_hashes
from chapbook.label_dp.request import Request, share
from chapbook.label_dp.sources import ClusterPrior, HistogramPrior, features
from chapbook.label_dp.stream import Source

# Blocks of so many rows, or prior cells, keep a block's arrays within some tens of megabytes.
_BLOCK_ROWS = 1 << 15
_BLOCK_CELLS = 1 << 22
# The survey reads few columns and keeps none of them: more rows at once, fewer calls.
_SURVEY_CELLS = 1 << 19
_EPSILON_BITS = 12
_PRIOR_NOISE, _FIRST_BLOCK = 0, 1  # which child of the entropy draws what


class _Block(NamedTuple):
    """A block of drawn rows, and what the certificate wants to know of it."""

    frame: pl.DataFrame
    rows: int
    uses: set[tuple[float, int]]
    epsilons: np.ndarray | None


class Release:
    """A table with private labels, whose blocks are drawn when they are read.

    Making it surveys the table where that is needed, charges the ledger, and draws the prior's
    histogram if there is one.

    Args:
        source: The table.
        request: What to do with it.
        drawn: Keeps what is drawn, so that a run that was killed goes on; None keeps nothing.
        ledger: Charged before the first draw, where given.
        compose: Add to what the records have spent in the ledger, rather than refuse.
        workers: Threads that draw; one per core if None.

    Raises:
        Error: The table does not hold what the request needs, or the ledger refuses.
    """

    def __init__(
        self,
        source: Source,
        request: Request,
        *,
        drawn: DrawnLabels | None = None,
        ledger: PrivacyLedger | None = None,
        compose: bool = False,
        workers: int | None = None,
    ):
        answers = request.labeller.schema(request.label)
        source.require(request.label, *request.public_columns())
        if taken := [name for name in answers if name in source.schema]:
            raise Error(f"{source.name} has a column {taken[0]} already; rename it")
        public = {n: t for n, t in source.schema.items() if n != request.label}
        self.schema = {**public, **answers}
        self.rows = 0
        self._source, self._request, self._drawn = source, request, drawn
        self._workers = workers or os.cpu_count() or 1
        self._entropy = Entropy(request.seed)
        self._block_rows = max(1, min(_BLOCK_ROWS, _BLOCK_CELLS // request.labeller.num_answers))
        self._warnings: list[str] = list(request.warnings)
        self._answered, self._surveyed = 0, None
        self._uses: set[tuple[float, int]] = set()
        self._epsilons: Counter[str] = Counter()
        self._largest = 0.0
        self._group = self._largest_group()
        self._prior, histogram = request.prior, request.histogram
        self._prior_epsilon = 0.0 if histogram is None else share(histogram.epsilon, self._group)
        epsilon = None
        if request.epsilon is not None:
            epsilon = share(request.epsilon, self._group, self._prior_epsilon)
        self._epsilon = epsilon
        sample = None
        if ledger is not None or request.id_columns or histogram is not None:
            sample = self._survey(ledger, compose)
        counts = None
        if histogram is not None and sample is not None:
            groups, counts = self._histogram(histogram, sample)
            self._prior = HistogramPrior(
                histogram.columns, groups, from_counts(counts, smoothing=histogram.smoothing)
            )
        self._labeller = request.labeller.prepared(epsilon, counts)

    def blocks(self) -> Iterator[pl.DataFrame]:
        """Yields the table in order, in blocks of rows whose labels are drawn.

        Raises:
            Error: A label or a prior row cannot be drawn for, or the table has changed.
        """
        frames = self._source.blocks(self._block_rows)
        with_prior = ((frame, None) for frame in frames)
        if self._prior is not None:
            with_prior = self._prior.rows(frames, self._block_rows)
        waiting: deque[Future[_Block]] = deque()
        first = 0
        with ThreadPoolExecutor(self._workers) as pool:
            try:
                for number, (frame, prior) in enumerate(with_prior):
                    waiting.append(pool.submit(self._draw, number, first, frame, prior))
                    first += frame.height
                    if len(waiting) > self._workers:
                        yield self._note(waiting.popleft().result())
                while waiting:
                    yield self._note(waiting.popleft().result())
            finally:
                for block in waiting:
                    block.cancel()
        if not self.rows:
            raise Error(f"{self._source.name}: no rows")
        self._same_length(self.rows)

    def certificate(self) -> Certificate:
        """Returns the certificate, once all blocks have been read."""
        request, labeller, group = self._request, self._labeller, self._group
        drawn = self._largest if self._epsilon is None else self._epsilon
        spends = [Spend("all", labeller.mechanism, drawn, self._answered)]
        if self._prior_epsilon:
            spends.insert(0, Spend("all", "histogram prior", self._prior_epsilon, self._answered))
        total = request.epsilon
        if total is None:
            total = math.fsum([drawn, self._prior_epsilon]) * group
        dropped = self.rows - self._answered
        leaks = (
            ["records without a label were left out: which these were is not protected"]
            if dropped
            else []
        )
        details = {
            "rows": self._answered,
            **({"rows dropped for a missing label": dropped} if dropped else {}),
            "private column": f"{request.label}_private",
            "prior": None if request.prior is None else request.prior.plan(),
            **labeller.details(),
        }
        shared = {"column": request.group_column, "largest": group, "epsilon per record": drawn}
        return Certificate(
            mechanism=labeller.mechanism,
            num_classes=labeller.num_answers,
            epsilon=total,
            spends=tuple(spends),
            seeded=self._entropy.seeded,
            schema={name: str(dtype) for name, dtype in self._source.schema.items()},
            verification=labeller.verify(self._uses),
            epsilon_histogram=dict(sorted(self._epsilons.items(), key=lambda kv: float(kv[0]))),
            group=shared if request.group_column is not None else {},
            warnings=(*self._warnings, *leaks),
            details=details,
        )

    # ---------------------------------------------------------------------------- drawing

    def _draw(
        self, number: int, first: int, frame: pl.DataFrame, prior: np.ndarray | None
    ) -> _Block:
        """Draws a block of rows, or finds what was drawn for it."""
        labels, present = self._labels(frame[self._request.label], first)
        epsilon = self._record_epsilons(frame, first)
        rows, kept = frame.height, prior
        if not present.all():
            frame, labels = frame.filter(present), labels[present]
            kept = None if prior is None else prior[present]
            epsilon = epsilon[present] if epsilon.ndim else epsilon

        def draw() -> dict[str, np.ndarray]:
            entropy = self._entropy.child(_FIRST_BLOCK + number)
            try:
                return self._labeller.draw(labels, kept, epsilon, entropy)
            except Error:
                # The mechanism counts rows from the block's first; the file counts from its own.
                if prior is not None and prior.shape[1] == self._labeller.num_answers:
                    self._labeller.check_prior(prior, first)
                raise

        drawn = draw() if self._drawn is None else self._drawn.once(number, draw)
        if any(len(values) != len(labels) for values in drawn.values()):
            raise Error(f"{self._source.name} has changed since its labels were drawn")
        answers = self._labeller.columns(self._request.label, drawn, epsilon)
        out = frame.drop(self._request.label).with_columns(answers)
        return _Block(
            out, rows, self._labeller.uses(drawn, epsilon), epsilon if epsilon.ndim else None
        )

    def _note(self, block: _Block) -> pl.DataFrame:
        self.rows += block.rows
        self._answered += block.frame.height
        self._uses |= block.uses
        if block.epsilons is not None and len(block.epsilons):
            self._largest = max(self._largest, float(block.epsilons.max()))
            totals = pl.Series(block.epsilons + self._prior_epsilon).round_sig_figs(2)
            values, counts = np.unique(totals.to_numpy(), return_counts=True)
            self._epsilons.update({f"{v:g}": int(c) for v, c in zip(values, counts, strict=True)})
        return block.frame

    def _labels(self, column: pl.Series, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns labels as numbers and which are there; faults name the row, never the value."""
        labels, state = self._request.labeller.encode(column)
        present = state != MISSING
        bad = state != 0 if self._request.missing == "refuse" else (state != 0) & present
        if bad.any():
            row = int(np.argmax(bad))
            if present[row]:
                raise self._source.fault(
                    first + row, self._request.label, self._request.labeller.unknown()
                )
            hint = "--missing drop leaves such records out, --missing class makes it a class"
            raise self._source.fault(first + row, self._request.label, "the label is missing", hint)
        return labels, present

    def _record_epsilons(self, frame: pl.DataFrame, first: int) -> np.ndarray:
        """Returns the epsilon of the draw: one number, or one for each record."""
        if self._epsilon is not None:
            return np.asarray(self._epsilon)
        name = self._request.epsilon_column or ""
        if not frame[name].dtype.is_numeric():
            raise Error(f"column {name} is {frame[name].dtype}; epsilons must be numbers")
        values = frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        # Every rounding goes down, so that a record's share never exceeds what it was given.
        if self._group > 1:
            values = np.nextafter(values / self._group, -np.inf)
        if self._prior_epsilon:
            values = np.nextafter(values - self._prior_epsilon, -np.inf)
        if not (values >= 0).all():
            left = f" after {self._prior_epsilon:g} for the prior" if self._prior_epsilon else ""
            row = int(np.argmin(values >= 0))
            raise self._source.fault(first + row, name, f"epsilon must be 0 or more{left}")
        # Exact weights take some time for each epsilon: a column may hold only so many.
        mantissas, exponents = np.frexp(values)
        return np.ldexp(np.floor(mantissas * 2**_EPSILON_BITS) / 2**_EPSILON_BITS, exponents)

    # ---------------------------------------------------------------------------- surveying

    def _largest_group(self) -> int:
        column = self._request.group_column
        if column is None:
            return 1
        sizes = self._source.lazy.group_by(column).len().select(pl.col("len").max())
        largest = sizes.collect(engine="streaming").item()
        return int(largest or 1)

    def _survey(self, ledger: PrivacyLedger | None, compose: bool) -> np.ndarray | None:
        """Checks labels and ids, charges the ledger, and returns features to find clusters by."""
        request = self._request
        records, identity = self._records(ledger)
        charge = None if self._drawn is None else self._charge_id(self._drawn)
        paid = ledger is not None and any(entry.id == charge for entry in ledger.entries)
        sample = None if request.histogram is None else _Sample(request.histogram.seed)
        wanted = dict.fromkeys((request.label, *request.public_columns(), *identity))
        block_rows = max(self._block_rows, _SURVEY_CELLS // len(wanted))
        rows, answered = 0, 0
        try:
            for frame in self._source.blocks(block_rows, wanted):
                _, present = self._labels(frame[request.label], rows)
                epsilon = self._record_epsilons(frame, rows)
                if request.histogram is not None and sample is not None:
                    sample.add(features(frame, request.histogram.columns, rows))
                if records is not None and not paid:
                    each = epsilon[present] + self._prior_epsilon if epsilon.ndim else None
                    here = frame if present.all() else frame.filter(present)
                    records.add(here.select(identity), each)
                    self._largest = max(self._largest, float(epsilon.max(initial=0)))
                rows, answered = rows + frame.height, answered + int(present.sum())
            self._surveyed = rows
            if not rows:
                raise Error(f"{self._source.name}: no rows")
            if records is not None and request.id_columns and len(again := records.repeated()):
                self._refuse_repeated(records.key, again[0])
            if ledger is not None and not paid:
                drawn = self._largest if self._epsilon is None else self._epsilon
                spends = [Spend("all", request.labeller.mechanism, drawn, answered)]
                if self._prior_epsilon:
                    spends.append(Spend("all", "histogram prior", self._prior_epsilon, answered))
                ledger.charge(*spends, id=charge, records=records, compose=compose)
        finally:
            if records is not None:
                records.discard()
        return None if sample is None else sample.rows

    def _records(self, ledger: PrivacyLedger | None) -> tuple[RecordHashes | None, list[str]]:
        """Returns where record hashes are gathered, and the columns that they are made of."""
        request = self._request
        if ledger is None:
            folder = None if self._drawn is None else self._drawn.folder
            identity = list(request.id_columns)
            return (RecordHashes(secrets.token_bytes(32), folder) if identity else None), identity
        prior = () if request.prior is None or request.histogram else request.prior.columns
        other = {request.label, request.epsilon_column, *prior}
        identity = list(request.id_columns) or [n for n in self._source.schema if n not in other]
        if not identity:
            raise Error(
                f"{self._source.name} has no column that tells its records apart, which a ledger"
                " needs",
                "add a column of ids and pass --id-column",
            )
        return ledger.collect(), identity

    def _charge_id(self, drawn: DrawnLabels) -> str:
        named = drawn.once("charge", lambda: {"id": np.asarray(secrets.token_hex(8))})
        return named["id"].item()

    def _refuse_repeated(self, key: bytes, target: np.uint64) -> None:
        """Raises an error that names two rows of one id, and says whether their labels differ."""
        request, ids = self._request, list(self._request.id_columns)
        rows: list[int] = []
        labels: list[Any] = []
        first = 0
        for frame in self._source.blocks(self._block_rows, [request.label, *ids]):
            found = np.flatnonzero(record_hashes(frame.select(ids), key) == target)
            codes, _ = request.labeller.encode(frame[request.label])
            rows += [first + int(row) for row in found]
            labels += codes[found].tolist()
            first += frame.height
        differ = " and different labels" if len(set(labels)) > 1 else ""
        raise self._source.fault(
            rows[1],
            ", ".join(ids),
            f"this row is the same record as row {rows[0] + self._source.first_row}{differ};"
            " its label would be drawn twice",
            "keep one row of each record",
        )

    def _histogram(
        self, histogram: ClusterPrior, sample: np.ndarray
    ) -> tuple[Clusters, np.ndarray]:
        """Returns the clusters and their noisy label counts, drawn now or found."""
        arrays = None if self._drawn is None else self._drawn.get("prior")
        if arrays is None:
            arrays = self._count(histogram, sample)
            if self._drawn is not None:
                arrays = self._drawn.put("prior", arrays)
        warning = small_clusters_warning(arrays["sizes"], self._prior_epsilon)
        if warning:
            self._warnings.append(warning)
        groups = Clusters(arrays["centres"], arrays["shift"], arrays["scale"])
        return groups, arrays["counts"]

    def _count(self, histogram: ClusterPrior, sample: np.ndarray) -> dict[str, np.ndarray]:
        groups = fit_clusters(
            sample, histogram.clusters, standardize=histogram.standardize, seed=histogram.seed
        )
        labeller, count = self._request.labeller, histogram.clusters
        counts = np.zeros((count, labeller.num_cells), np.int64)
        sizes, rows = np.zeros(count, np.int64), 0
        wanted = dict.fromkeys((self._request.label, *histogram.columns))
        for frame in self._source.blocks(self._block_rows, wanted):
            labels, present = self._labels(frame[self._request.label], rows)
            cluster = groups.assign(features(frame, histogram.columns, rows))[present]
            counts += count_labels(
                cluster, labeller.cells(labels[present]), count, labeller.num_cells
            )
            sizes += np.bincount(cluster, minlength=count)
            rows += frame.height
        self._same_length(rows)
        entropy = self._entropy.child(_PRIOR_NOISE)
        noisy = noisy_counts(counts, self._prior_epsilon, entropy=entropy)
        centres = {"centres": groups.centres, "shift": groups.shift, "scale": groups.scale}
        return {"counts": noisy, "sizes": sizes, **centres}

    def _same_length(self, rows: int) -> None:
        if self._surveyed is not None and rows != self._surveyed:
            raise Error(
                f"{self._source.name} changed while it was read: {self._surveyed} rows in the first"
                f" pass, {rows} in the next"
            )


class _Sample:
    """A random sample of at most `SAMPLE` rows of a stream, of public values."""

    def __init__(self, seed: int):
        self._random = np.random.default_rng(seed)
        self._keys = np.empty(0)
        self.rows = np.empty((0, 0))

    def add(self, rows: np.ndarray) -> None:
        keys = np.append(self._keys, self._random.random(len(rows)))
        rows = np.concatenate([self.rows, rows]) if self.rows.size else rows
        if len(keys) > SAMPLE:
            kept = np.sort(np.argpartition(keys, SAMPLE)[:SAMPLE])
            keys, rows = keys[kept], rows[kept]
        self._keys, self.rows = keys, rows
