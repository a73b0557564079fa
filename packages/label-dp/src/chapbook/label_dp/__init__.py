"""Label differential privacy: private labels with an exact guarantee, and training on them.

Every public name is imported on first use, so that the privatiser never pays for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chapbook.label_dp.additive import ExponentialMechanism as ExponentialMechanism
    from chapbook.label_dp.additive import LaplaceMechanism as LaplaceMechanism
    from chapbook.label_dp.additive import StaircaseMechanism as StaircaseMechanism
    from chapbook.label_dp.audit import Audit as Audit
    from chapbook.label_dp.audit import audit_epsilon as audit_epsilon
    from chapbook.label_dp.bins import Loss as Loss
    from chapbook.label_dp.bins import PrivateValues as PrivateValues
    from chapbook.label_dp.bins import RROnBins as RROnBins
    from chapbook.label_dp.bins import histogram_prior as histogram_prior
    from chapbook.label_dp.certificate import Certificate as Certificate
    from chapbook.label_dp.certificate import Spend as Spend
    from chapbook.label_dp.classes import Classes as Classes
    from chapbook.label_dp.dp_sgd import DPSGD as DPSGD
    from chapbook.label_dp.drawn import DrawnLabels as DrawnLabels
    from chapbook.label_dp.entropy import Entropy as Entropy
    from chapbook.label_dp.estimation import Estimate as Estimate
    from chapbook.label_dp.estimation import PlanRow as PlanRow
    from chapbook.label_dp.estimation import debiased_accuracy as debiased_accuracy
    from chapbook.label_dp.estimation import debiased_confusion as debiased_confusion
    from chapbook.label_dp.estimation import debiased_counts as debiased_counts
    from chapbook.label_dp.estimation import epsilon_for_accuracy as epsilon_for_accuracy
    from chapbook.label_dp.estimation import plan as plan
    from chapbook.label_dp.labellers import ClassLabeller as ClassLabeller
    from chapbook.label_dp.ledger import PrivacyLedger as PrivacyLedger
    from chapbook.label_dp.losses import cross_entropy as cross_entropy
    from chapbook.label_dp.losses import (
        forward_corrected_cross_entropy as forward_corrected_cross_entropy,
    )
    from chapbook.label_dp.losses import unbiased_cross_entropy as unbiased_cross_entropy
    from chapbook.label_dp.models import MLP as MLP
    from chapbook.label_dp.models import Batched as Batched
    from chapbook.label_dp.models import ConvNet as ConvNet
    from chapbook.label_dp.models import Logistic as Logistic
    from chapbook.label_dp.models import Rater as Rater
    from chapbook.label_dp.models import ResNet18 as ResNet18
    from chapbook.label_dp.multi_stage import LPMST as LPMST
    from chapbook.label_dp.multi_stage import Stage as Stage
    from chapbook.label_dp.multi_stage import Trained as Trained
    from chapbook.label_dp.numbers import NumberLabeller as NumberLabeller
    from chapbook.label_dp.privatize import PrivateFrame as PrivateFrame
    from chapbook.label_dp.privatize import privatize_frame as privatize_frame
    from chapbook.label_dp.privatize import privatize_rows as privatize_rows
    from chapbook.label_dp.privatize import privatize_table as privatize_table
    from chapbook.label_dp.randomized_response import PrivateLabels as PrivateLabels
    from chapbook.label_dp.randomized_response import RandomizedResponse as RandomizedResponse
    from chapbook.label_dp.randomized_response import RRTopK as RRTopK
    from chapbook.label_dp.randomized_response import RRWithPrior as RRWithPrior
    from chapbook.label_dp.request import Request as Request
    from chapbook.label_dp.sources import ClusterPrior as ClusterPrior
    from chapbook.label_dp.sources import ColumnsPrior as ColumnsPrior
    from chapbook.label_dp.sources import FilePrior as FilePrior
    from chapbook.label_dp.sources import MatrixPrior as MatrixPrior
    from chapbook.label_dp.trainer import ModelTrainer as ModelTrainer
    from chapbook.label_dp.trainer import SklearnTrainer as SklearnTrainer
    from chapbook.label_dp.trainer import Trainer as Trainer
    from chapbook.label_dp.trainer import Training as Training
    from chapbook.label_dp.verify import Proof as Proof
    from chapbook.label_dp.verify import prove as prove

# The public names by the module that holds them.
_MODULES = {
    "sources": ("ClusterPrior", "ColumnsPrior", "FilePrior", "MatrixPrior"),
    "request": ("Request",),
    "privatize": ("PrivateFrame", "privatize_frame", "privatize_rows", "privatize_table"),
    "numbers": ("NumberLabeller",),
    "labellers": ("ClassLabeller",),
    "drawn": ("DrawnLabels",),
    "classes": ("Classes",),
    "additive": ("ExponentialMechanism", "LaplaceMechanism", "StaircaseMechanism"),
    "audit": ("Audit", "audit_epsilon"),
    "bins": ("Loss", "PrivateValues", "RROnBins", "histogram_prior"),
    "entropy": ("Entropy",),
    "estimation": (
        "Estimate",
        "PlanRow",
        "debiased_accuracy",
        "debiased_confusion",
        "debiased_counts",
        "epsilon_for_accuracy",
        "plan",
    ),
    "randomized_response": ("PrivateLabels", "RRTopK", "RRWithPrior", "RandomizedResponse"),
    "certificate": (
        "Certificate",
        "Spend",
    ),
    "ledger": ("PrivacyLedger",),
    "dp_sgd": ("DPSGD",),
    "losses": (
        "cross_entropy",
        "forward_corrected_cross_entropy",
        "unbiased_cross_entropy",
    ),
    "models": (
        "MLP",
        "Batched",
        "ConvNet",
        "Logistic",
        "Rater",
        "ResNet18",
    ),
    "multi_stage": (
        "LPMST",
        "Stage",
        "Trained",
    ),
    "trainer": (
        "ModelTrainer",
        "SklearnTrainer",
        "Trainer",
        "Training",
    ),
    "verify": ("Proof", "prove"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
