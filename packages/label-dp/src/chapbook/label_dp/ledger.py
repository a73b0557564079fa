"""The privacy ledger: what has been spent on which records, and what it adds up to.

Two ways to say which records a charge is for:

- by the name of a part: equal names are the same records, different names are disjoint;
- by the records themselves, as keyed hashes of their ids: then overlaps with earlier charges are
  found record by record, refused, or added up.

A ledger file holds the entries and the key; the hashes lie beside it in sorted files of 8 bytes a
record, which are mapped into memory rather than read.
"""

import json
import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.core.run import lock
from chapbook.label_dp.certificate import Spend, total_epsilon
from chapbook.label_dp.records import RecordHashes

if TYPE_CHECKING:
    from dp_accounting import DpEvent

FORMAT = "chapbook label-dp ledger 1"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One charge.

    Attributes:
        id: Names the charge; charging the same id again changes nothing.
        spends: The uses of labels that it consists of.
        epsilon: What it cost any one record.
        records: How many records it is for.
        overlap: How many of these had been charged before; 0 where they are known by part only.
        spent: The most that any one of its records had spent after it, or None where the records
            are known by part only.
        zcdp: The same in zero-concentrated differential privacy (rho).
    """

    id: str
    spends: tuple[Spend, ...]
    epsilon: float
    records: int
    overlap: int = 0
    spent: float | None = None
    zcdp: float | None = None


class PrivacyLedger:
    """Charges against records, kept in memory or in a file.

    Args:
        path: The ledger file, made when missing; None keeps the ledger in memory.

    Raises:
        Error: The file is no ledger.
    """

    def __init__(self, path: str | Path | None = None):
        self.path = None if path is None else Path(path)
        self._entries: list[Entry] = []
        self._memory: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.key = secrets.token_bytes(32)
        if self.path is not None:
            with self._locked():
                if self.path.exists():
                    self._read()
                else:
                    self._write()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The charges so far, in order."""
        return tuple(self._entries)

    @property
    def spends(self) -> tuple[Spend, ...]:
        """The uses of labels in all charges, in order."""
        return tuple(spend for entry in self._entries for spend in entry.spends)

    @property
    def epsilon(self) -> float:
        """The most that any one record can have spent, by pure differential privacy.

        `max over records of the sum of its charges`: parallel composition over disjoint records,
        sequential composition over repeated use. Charges by part and charges by record cannot be
        told apart and are added.
        """
        by_part = [s for e in self._entries if e.spent is None for s in e.spends]
        by_record = [e.spent for e in self._entries if e.spent is not None]
        return math.fsum([total_epsilon(by_part), max(by_record, default=0.0)])

    @property
    def zcdp(self) -> float:
        """The most that any one record can have spent in zero-concentrated DP: rho.

        A pure eps-DP use is `eps^2 / 2`-zCDP, and rho adds up.

        Reference:
            Bun and Steinke, Concentrated Differential Privacy, proposition 1.4.
        """
        by_part = [s for e in self._entries if e.spent is None for s in e.spends]
        squares = [Spend(s.part, s.mechanism, _rho(s.epsilon), s.records) for s in by_part]
        by_record = [e.zcdp for e in self._entries if e.zcdp is not None]
        return math.fsum([total_epsilon(squares), max(by_record, default=0.0)])

    def rdp(self, orders: Sequence[float]) -> np.ndarray:
        """Returns the Rényi divergence bound at each order: `min(eps, rho * order)`."""
        return np.minimum(self.epsilon, self.zcdp * np.asarray(orders, np.float64))

    def dp_event(self) -> "DpEvent":
        """Returns the ledger as an event for dp-accounting, to compose with other steps.

        Raises:
            ImportError: The extra `accounting` is not installed.
        """
        return _dp_accounting().ZCDpEvent(self.zcdp)

    def approximate_epsilon(self, delta: float) -> float:
        """Returns the epsilon of (epsilon, delta)-DP over all charges, by dp-accounting.

        It is below the pure `epsilon` only after many small charges.

        Raises:
            ImportError: The extra `accounting` is not installed.
        """
        accounting = _dp_accounting()
        from dp_accounting.rdp import RdpAccountant

        accountant = RdpAccountant(neighboring_relation=accounting.NeighboringRelation.REPLACE_ONE)
        return min(self.epsilon, accountant.compose(self.dp_event()).get_epsilon(delta))

    def charge(
        self,
        *spends: Spend,
        id: str | None = None,  # noqa: A002
        records: RecordHashes | None = None,
        compose: bool = False,
    ) -> Entry:
        """Charges uses of labels; on return the charge is durable, so that labels may be drawn.

        Args:
            *spends: The uses.
            id: Names the charge, so that a program that was killed can charge again without
                paying twice.
            records: The hashes of the records, where they are known.
            compose: Add up what the records have spent, rather than refuse those charged before.

        Returns:
            The entry, or the one that was charged under this id before.

        Raises:
            Error: Records were charged before, or the id stands for another charge.
        """
        with self._locked():
            self._read()
            for entry in self._entries:
                if entry.id == id:
                    if entry.spends != spends:
                        raise Error(f"charge {id} is in the ledger with other spends")
                    return entry
            name = id or secrets.token_hex(8)
            epsilon, count = total_epsilon(spends), max((s.records for s in spends), default=0)
            entry = Entry(name, spends, epsilon, count)
            if records is not None:
                entry = self._with_records(entry, records, compose)
            self._entries.append(entry)
            self._write()
            return entry

    def withdraw(self, id: str) -> None:  # noqa: A002
        """Takes a charge back: only where not one label was drawn under it."""
        with self._locked():
            self._read()
            self._entries = [entry for entry in self._entries if entry.id != id]
            self._write()
            for kind in ("records", "epsilons"):
                if self.path is not None:
                    self._side(id, kind).unlink(missing_ok=True)
            self._memory.pop(id, None)

    def collect(self) -> RecordHashes:
        """Returns an empty collection of record hashes under this ledger's key."""
        folder = None
        if self.path is not None:
            folder = self._folder()
            folder.mkdir(exist_ok=True)
        return RecordHashes(self.key, folder)

    def spent(self, hashes: np.ndarray) -> np.ndarray:
        """Returns what each record, given by its hash, has spent in the charges by record."""
        return self._spent(hashes)[0]

    def _with_records(self, entry: Entry, records: RecordHashes, compose: bool) -> Entry:
        hashes, epsilons = records.sorted()
        overlap, before, most, zcdp = 0, 0.0, 0.0, 0.0
        for start in range(0, len(hashes), _CHUNK):
            part = slice(start, start + _CHUNK)
            spent, rho = self._spent(hashes[part])
            own = np.float64(entry.epsilon) if epsilons is None else epsilons[part]
            overlap += int(np.count_nonzero(spent))
            before = max(before, float(spent.max()))
            most = max(most, float((spent + own).max()))
            zcdp = max(zcdp, float((rho + own**2 / 2).max()))
        if overlap and not compose:
            raise Error(
                f"{self.path or 'ledger'}: {overlap} of {len(hashes)} records were randomised"
                f" before and have spent up to epsilon {before:g}; this run would bring them to"
                f" {most:g}",
                "pass --compose to add up, or leave these records out",
            )
        if self.path is None:
            own = np.full(len(hashes), entry.epsilon) if epsilons is None else epsilons
            self._memory[entry.id] = np.array(hashes), np.array(own)
        else:
            records.keep(self._side(entry.id, "records"), self._side(entry.id, "epsilons"))
        return Entry(entry.id, entry.spends, entry.epsilon, len(hashes), overlap, most, zcdp)

    def _spent(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns epsilon and rho spent so far, by record."""
        spent, rho = np.zeros(len(hashes)), np.zeros(len(hashes))
        for held, epsilons in self._holdings():
            if not len(held):
                continue
            place = np.minimum(np.searchsorted(held, hashes), len(held) - 1)
            hit = held[place] == hashes
            cost = np.where(hit, epsilons[place] if epsilons.ndim else epsilons, 0.0)
            spent += cost
            rho += cost**2 / 2
        return spent, rho

    def _holdings(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the sorted hashes of each charge by record, with their epsilon."""
        for entry in self._entries:
            if entry.spent is None:
                continue
            if self.path is None:
                yield self._memory[entry.id]
                continue
            path = self._side(entry.id, "records")
            if not path.exists() or path.stat().st_size != 8 * entry.records:
                raise Error(
                    f"{path}: the ledger's record hashes are missing or cut short",
                    "restore the file; without it earlier charges of its records go unseen",
                )
            each = self._side(entry.id, "epsilons")
            epsilons = _map(each, "<f8") if each.exists() else np.asarray(entry.epsilon)
            yield _map(path, "<u8"), epsilons

    def _folder(self) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + ".records")

    def _side(self, id: str, kind: str) -> Path:  # noqa: A002
        return self._folder() / f"{id}.{kind}"

    def _locked(self) -> AbstractContextManager[None]:
        if self.path is None:
            return nullcontext()
        return lock(self.path.with_name(self.path.name + ".lock"), str(self.path), wait=60.0)

    def _read(self) -> None:
        if self.path is None or not self.path.exists():
            return
        try:
            content = json.loads(self.path.read_text())
            if content["format"] != FORMAT:
                raise KeyError("format")
            self.key = bytes.fromhex(content["key"])
            self._entries = [_entry(fields) for fields in content["entries"]]
        except (ValueError, KeyError, TypeError):
            raise Error(f"{self.path}: not a label-dp ledger") from None

    def _write(self) -> None:
        if self.path is None:
            return
        entries = [asdict(entry) for entry in self._entries]
        content = {
            "format": FORMAT,
            "epsilon": self.epsilon,
            "key": self.key.hex(),
            "entries": entries,
        }
        write_atomic(self.path, (json.dumps(content, indent=1) + "\n").encode())


def _entry(fields: dict[str, Any]) -> Entry:
    spends = tuple(Spend(**spend) for spend in fields["spends"])
    return Entry(**{**fields, "spends": spends})


def _rho(epsilon: float) -> float:
    return epsilon**2 / 2


def _map(path: Path, dtype: str) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def _dp_accounting() -> Any:
    try:
        import dp_accounting
    except ImportError:
        raise ImportError(
            "composition with other mechanisms needs dp-accounting;"
            " install it with: pip install 'chapbook-label-dp[accounting]'"
        ) from None
    return dp_accounting
