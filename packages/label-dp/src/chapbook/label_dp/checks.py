"""Checks of the mechanisms at work: exact proofs over random priors, an audit of whole runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import polars as pl

from chapbook.core.errors import Error
from chapbook.label_dp.audit import Audit, audit_epsilon
from chapbook.label_dp.bins import RROnBins
from chapbook.label_dp.certificate import Certificate, total_epsilon
from chapbook.label_dp.labellers import prove_weights
from chapbook.label_dp.privatize import privatize_frame
from chapbook.label_dp.randomized_response import RandomizedResponse, RRTopK, RRWithPrior
from chapbook.label_dp.verify import Proof

MECHANISMS = ("randomized-response", "rr-top-k", "rr-with-prior", "rr-on-bins")


@dataclass(frozen=True)
class Verification:
    """Exact proofs over many priors.

    Attributes:
        mechanism: What was checked.
        num_classes: K.
        epsilon: The claim.
        trials: How many priors.
        held: For how many of them every answer's probabilities stay within e^eps.
        largest_ratio: The largest ratio of an answer's probabilities over all of them.
    """

    mechanism: str
    num_classes: int
    epsilon: float
    trials: int
    held: int
    largest_ratio: float

    @property
    def holds(self) -> bool:
        """Whether all proofs succeeded."""
        return self.held == self.trials


def verify_mechanism(
    mechanism: str, num_classes: int, epsilon: float, trials: Iterable[int], seed: int = 0
) -> Verification:
    """Proves a mechanism's ratio in exact arithmetic under random priors, sparse and flat.

    Args:
        mechanism: One of `MECHANISMS`.
        num_classes: K, or the number of atoms of rr-on-bins.
        epsilon: The claim.
        trials: One prior is drawn for each item.
        seed: Of the priors, which are public.
    """
    if mechanism not in MECHANISMS:
        raise Error(f"mechanism {mechanism} is unknown; it is {', '.join(MECHANISMS)}")
    random = np.random.default_rng(seed)
    count, held, largest = 0, 0, Fraction(0)
    for _ in trials:
        proof = _proof(mechanism, num_classes, epsilon, random)
        count += 1
        held += proof.holds
        largest = max(largest, proof.largest_ratio or Fraction(0))
    return Verification(mechanism, num_classes, epsilon, count, held, float(largest))


def _proof(mechanism: str, classes: int, epsilon: float, random: np.random.Generator) -> Proof:
    if mechanism == "randomized-response":
        return RandomizedResponse(classes, epsilon).verify()
    prior = random.dirichlet(np.full(classes, 10 ** random.uniform(-2, 1)))
    prior /= prior.sum()
    if mechanism == "rr-on-bins":
        return RROnBins.fit(np.sort(random.random(classes)), prior, epsilon).verify()
    if mechanism == "rr-top-k":
        return RRTopK(classes, epsilon, int(random.integers(1, classes + 1))).verify(prior)
    return RRWithPrior(classes, epsilon).verify(prior)


def verify_certificate(certificate: Certificate) -> None:
    """Checks that a certificate's spends add up, and proves the ratio of what it says was drawn.

    Raises:
        Error: The spends exceed epsilon.
        RuntimeError: A mechanism breaks its ratio, which would be a bug.
    """
    shared = int(certificate.group.get("largest", 1))
    total = total_epsilon(certificate.spends) * shared
    # Sums of floats are rounded; the shares themselves were rounded down.
    if total > certificate.epsilon * (1 + 1e-12):
        raise Error(f"the certificate's spends add up to {total:g}, not {certificate.epsilon:g}")
    supports = np.unique(np.geomspace(1, certificate.num_classes, 1000).round().astype(int))
    for spend in certificate.spends:
        prove_weights((spend.epsilon, int(k)) for k in supports)


def audit_privatizer(
    num_classes: int,
    epsilon: float,
    *,
    labels: tuple[int, int] = (0, 1),
    prior: Iterable[float] | None = None,
    trials: int = 1_000_000,
    confidence: float = 0.99,
) -> Audit:
    """Runs the privatiser itself on many copies of a record with either of two labels.

    Args:
        num_classes: K.
        epsilon: The claim.
        labels: The two labels of the adjacent inputs.
        prior: The record's prior; plain randomised response if None.
        trials: Copies of the record with each label.
        confidence: The probability with which the lower bound shall be right.

    Reference:
        Jagielski, Ullman and Oprea, Auditing Differentially Private Machine Learning, 2020.
    """
    for label in labels:
        if not 0 <= label < num_classes:
            raise Error(f"audited label {label} is none of the classes 0 to {num_classes - 1}")
    row = None if prior is None else np.asarray(list(prior), np.float64)[None]

    def sample(label: int, count: int) -> np.ndarray:
        frame = pl.DataFrame({"label": np.full(count, label)})
        private = privatize_frame(
            frame, "label", classes=range(num_classes), epsilon=epsilon, prior=row
        )
        return private.frame["label_private"].to_numpy()

    return audit_epsilon(sample, labels=labels, trials=trials, confidence=confidence)
