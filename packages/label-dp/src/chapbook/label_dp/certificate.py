"""The privacy certificate: what was spent on which labels, by what, and how it was checked."""

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic

METADATA_KEY = "chapbook.label_dp.certificate"
FORMAT = "chapbook label-dp certificate 1"
SEEDED = "seeded: not private"


@dataclass(frozen=True)
class Spend:
    """One use of the labels.

    Attributes:
        part: The records that were used, by name; equal names are the same records, different
            names are disjoint records, and "all" is every record.
        mechanism: What answered, such as "rr-with-prior".
        epsilon: The largest privacy loss of any of those labels.
        records: How many labels were used.
    """

    part: str
    mechanism: str
    epsilon: float
    records: int


@dataclass(frozen=True)
class Certificate:
    """What an owner of labels can show about a release: pure eps-LabelDP, itemised.

    The hash over all other fields reveals edits and broken copies. It is no signature: whoever
    edits the file can also compute the hash anew.

    Attributes:
        mechanism: The mechanism that drew the released labels.
        num_classes: K, or the number of answers of a regression mechanism.
        epsilon: The largest privacy loss of any label (or of any group's labels, see `group`).
        spends: The uses of the labels that make up `epsilon`.
        seeded: Whether the noise came from a seed; then nothing is private.
        schema: Column name to type of the input, without its values.
        verification: How the ratio was checked, with the result.
        epsilon_histogram: Records by their epsilon (to 2 digits), where records differ.
        group: Column, largest group and epsilon of one record, where groups share a budget.
        warnings: What an owner should know about the use of these labels.
        details: Anything else a mechanism states about itself, as JSON values.
        software: Versions of what drew the noise.
    """

    mechanism: str
    num_classes: int
    epsilon: float
    spends: tuple[Spend, ...]
    seeded: bool
    schema: Mapping[str, str] = field(default_factory=dict)
    verification: Mapping[str, Any] = field(default_factory=dict)
    epsilon_histogram: Mapping[str, int] = field(default_factory=dict)
    group: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=lambda: versions())

    @property
    def private(self) -> bool:
        """Whether the guarantee holds: the noise cannot be computed by anybody."""
        return not self.seeded

    @property
    def hash(self) -> str:
        """SHA-256 over the canonical JSON of everything else."""
        return _hash(self._content())

    def to_dict(self) -> dict[str, Any]:
        """Returns the certificate as JSON values, with its hash."""
        content = self._content()
        return {**content, "hash": _hash(content)}

    def to_json(self) -> str:
        """Returns the certificate as JSON text, with its hash."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        """Writes the certificate to a JSON file, atomically."""
        write_atomic(Path(path), self.to_json().encode())

    @classmethod
    def from_json(cls, text: str, where: str = "certificate") -> "Certificate":
        """Reads a certificate and checks its hash.

        Raises:
            Error: The text is no certificate, or was edited.
        """
        try:
            content = json.loads(text)
            claimed = content.pop("hash")
            if content["format"] != FORMAT:
                raise KeyError("format")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Error(f"{where}: not a label-dp certificate") from None
        if _hash(content) != claimed:
            raise Error(
                f"{where}: the certificate was edited: its hash does not match its content",
                "use the file as it was written, or the copy in the Parquet file's metadata",
            )
        known = {name: content[name] for name in cls.__dataclass_fields__}
        known["epsilon"] = float(content["epsilon"])
        known["spends"] = tuple(
            Spend(**{**spend, "epsilon": float(spend["epsilon"])}) for spend in content["spends"]
        )
        known["warnings"] = tuple(content["warnings"])
        return cls(**known)

    @classmethod
    def load(cls, path: str | Path) -> "Certificate":
        """Reads a certificate from its JSON file, or from the metadata of a Parquet file.

        Raises:
            Error: The file holds no certificate, or one that was edited.
        """
        path = Path(path)
        if not path.is_file():
            raise Error(f"{path}: no such file")
        if path.suffix == ".parquet":
            import polars as pl

            try:
                found = pl.read_parquet_metadata(path)
            except pl.exceptions.PolarsError as problem:
                raise Error(f"{path}: not a readable Parquet file ({problem})") from None
            if METADATA_KEY not in found:
                raise Error(f"{path}: its metadata holds no label-dp certificate")
            return cls.from_json(found[METADATA_KEY], str(path))
        try:
            return cls.from_json(path.read_text(), str(path))
        except UnicodeDecodeError:
            raise Error(f"{path}: not a label-dp certificate") from None

    def _content(self) -> dict[str, Any]:
        content = {
            "format": FORMAT,
            "guarantee": SEEDED if self.seeded else f"pure {self.epsilon:g}-LabelDP",
            "delta": 0,
            "adjacency": f"all labels of one {self.group['column']} replaced"
            if self.group
            else "one label replaced",
            "entropy": "seeded generator" if self.seeded else "operating system, by ChaCha20",
            **asdict(self),
            "schema_hash": _hash(dict(self.schema)),
        }
        return _json_values(content)


def total_epsilon(spends: Sequence[Spend]) -> float:
    """Returns the largest privacy loss of any record over several uses of the labels.

    `sum over uses of "all" + max over parts of (sum over uses of the part)`: sequential composition
    where the same records are used again, parallel composition over disjoint parts.
    """
    parts: dict[str, list[float]] = {"all": []}
    for spend in spends:
        parts.setdefault(spend.part, []).append(spend.epsilon)
    everywhere = parts.pop("all")
    # fsum rounds once, so that 0.05 + 0.95 is 1 and not a last digit more.
    return max(
        (math.fsum([*everywhere, *part]) for part in parts.values()), default=math.fsum(everywhere)
    )


def versions() -> dict[str, str]:
    """Returns the versions of what drew the noise."""
    names = ("chapbook-label-dp", "chapbook-core", "numpy", "polars", "cryptography")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}


def _json_values(value: Any) -> Any:
    """Returns tuples as lists and infinities as text, which JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(k): _json_values(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_values(v) for v in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return value


def _hash(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
