"""A distilled set: a few inputs and their labels that stand for a whole data set."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from chapbook.core.errors import Error
from chapbook.core.io import plain
from chapbook.kip_distill.arrays import read_arrays, write_arrays
from chapbook.kip_distill.preprocessing import Preprocess

VERSION = 1


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """Inputs, labels, and how inputs become what the kernel saw.

    Attributes:
        images: Processed inputs, of shape (size, height, width, channels) or (size, features).
        labels: Vectors of shape (size, classes); learned ones are dense.
        preprocess: What raw inputs go through; None where it is not known, as in sets that others
            released.
        facts: How it was made: `arch`, `reg`, `get`, `step`, `seed`, `names` of the classes or the
            outputs, ...
        targets: What numbers to be predicted went through; None where labels are classes.
    """

    images: Float[np.ndarray, "size ..."]
    labels: Float[np.ndarray, "size classes"]
    preprocess: Preprocess | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    targets: Preprocess | None = None

    @property
    def names(self) -> list[str]:
        """Names of the classes or the outputs; numbers where none are known."""
        return self.facts.get("names") or [str(each) for each in range(self.labels.shape[1])]

    @property
    def classes(self) -> Int[np.ndarray, " size"]:
        """The class of every image: the greatest entry of its label."""
        return self.labels.argmax(1)

    def save(self, path: str | Path) -> None:
        """Writes an `npz` file with `images` and `labels`, as the paper's authors released theirs.

        Args:
            path: Of the file.
        """
        arrays = {"images": np.asarray(self.images), "labels": np.asarray(self.labels)}
        for kind in ("preprocess", "targets"):
            made = getattr(self, kind)
            arrays |= {
                f"{kind}_{name}": np.asarray(value)
                for name, value in (vars(made).items() if made else ())
                if value is not None
            }
        facts = json.dumps({"version": VERSION} | self.facts, default=plain)
        arrays["metadata"] = np.frombuffer(facts.encode(), np.uint8)
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | Path) -> "DistilledSet":
        """Reads what `save` wrote, or a set that the paper's authors released.

        Args:
            path: Of the file.

        Raises:
            Error: The file is no `npz`, or has no `images` or `labels` that belong together.
        """
        arrays = read_arrays(Path(path))
        for name in ("images", "labels"):
            if name not in arrays:
                raise Error(f"{path}: no array {name}; it has {', '.join(arrays) or 'none'}")
        images, labels = arrays["images"], arrays["labels"]
        if labels.ndim != 2 or len(labels) != len(images):
            raise Error(
                f"{path}: images of shape {images.shape} and labels of shape {labels.shape}; "
                "labels are one vector for each image"
            )

        def transform(kind: str) -> Preprocess | None:
            parts = {
                name.removeprefix(kind): value
                for name, value in arrays.items() if name.startswith(kind)
            }  # fmt: skip
            return Preprocess(**parts) if parts else None

        text = arrays.get("metadata", np.frombuffer(b"{}", np.uint8)).tobytes()
        facts = json.loads(text)
        if facts.pop("version", VERSION) > VERSION:
            raise Error(f"{path}: written by a newer version; update chapbook-kip-distill")
        return cls(images, labels, transform("preprocess_"), facts, transform("targets_"))

    def process(self, x: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n ..."]:
        """Returns raw inputs as the set's kernel expects them.

        Args:
            x: Pixels or features, on the scale of those that the set was made from.

        Raises:
            Error: Their shape is not that of the set, or the set does not know its preprocessing.
        """
        if x.shape[1:] != self.images.shape[1:]:
            raise Error(
                f"inputs of shape {x.shape[1:]} do not fit a set of {self.images.shape[1:]}"
            )
        if self.preprocess is None:
            raise Error("the set does not say how its images were preprocessed")
        return self.preprocess(x)

    def view(self) -> Float[np.ndarray, "size ..."]:
        """Returns the inputs as raw ones: pixels on the scale that was read."""
        if self.preprocess is None:
            return self.images
        return np.asarray(self.preprocess.view(self.images))

    def table(self) -> pl.DataFrame:
        """Returns a row per image: its values as a list, its class, and its label vector.

        Where numbers are predicted there is a column for each instead of class and vector.
        """
        flat = self.view().reshape(len(self.images), -1)
        values = {"values": list(flat.astype(np.float32))}
        if self.targets is not None:
            numbers = np.asarray(self.targets.view(self.labels), np.float32)
            return pl.DataFrame(values | dict(zip(self.names, numbers.T, strict=True)))
        return pl.DataFrame(
            values | {
                "class": [self.names[place] for place in self.classes],
                "label": list(np.asarray(self.labels, np.float32)),
            }
        )  # fmt: skip
