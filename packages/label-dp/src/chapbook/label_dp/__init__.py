"""Label differential privacy: private labels with an exact guarantee, and training on them.

Every public name is imported on first use, so that the privatiser never pays for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chapbook.label_dp.additive import (
        ExponentialMechanism,
        LaplaceMechanism,
        StaircaseMechanism,
    )
    from chapbook.label_dp.audit import Audit, audit_epsilon
    from chapbook.label_dp.bins import Loss, PrivateValues, RROnBins, histogram_prior
    from chapbook.label_dp.certificate import Certificate, Spend
    from chapbook.label_dp.classes import Classes
    from chapbook.label_dp.dp_sgd import DPSGD
    from chapbook.label_dp.drawn import DrawnLabels
    from chapbook.label_dp.entropy import Entropy
    from chapbook.label_dp.estimation import (
        Estimate,
        PlanRow,
        debiased_accuracy,
        debiased_confusion,
        debiased_counts,
        epsilon_for_accuracy,
        plan,
    )
    from chapbook.label_dp.labellers import ClassLabeller
    from chapbook.label_dp.ledger import PrivacyLedger
    from chapbook.label_dp.losses import (
        cross_entropy,
        forward_corrected_cross_entropy,
        unbiased_cross_entropy,
    )
    from chapbook.label_dp.models import MLP, Batched, ConvNet, Logistic, Rater, ResNet18
    from chapbook.label_dp.multi_stage import LPMST, Stage, Trained
    from chapbook.label_dp.numbers import NumberLabeller
    from chapbook.label_dp.privatize import (
        PrivateFrame,
        privatize_frame,
        privatize_rows,
        privatize_table,
    )
    from chapbook.label_dp.randomized_response import (
        PrivateLabels,
        RandomizedResponse,
        RRTopK,
        RRWithPrior,
    )
    from chapbook.label_dp.request import Request
    from chapbook.label_dp.sources import ClusterPrior, ColumnsPrior, FilePrior, MatrixPrior
    from chapbook.label_dp.trainer import ModelTrainer, SklearnTrainer, Trainer, Training
    from chapbook.label_dp.verify import Proof, prove

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

__all__ = [
    "DPSGD", "LPMST", "MLP", "Audit", "Batched", "Certificate", "ClassLabeller", "Classes",
    "ClusterPrior", "ColumnsPrior", "ConvNet", "DrawnLabels", "Entropy", "Estimate",
    "ExponentialMechanism", "FilePrior", "LaplaceMechanism", "Logistic", "Loss", "MatrixPrior",
    "ModelTrainer", "NumberLabeller", "PlanRow", "PrivacyLedger", "PrivateFrame", "PrivateLabels",
    "PrivateValues", "Proof", "RROnBins", "RRTopK", "RRWithPrior", "RandomizedResponse", "Rater",
    "Request", "ResNet18", "SklearnTrainer", "Spend", "Stage", "StaircaseMechanism", "Trained",
    "Trainer", "Training", "audit_epsilon", "cross_entropy", "debiased_accuracy",
    "debiased_confusion", "debiased_counts", "epsilon_for_accuracy",
    "forward_corrected_cross_entropy", "histogram_prior", "plan", "privatize_frame",
    "privatize_rows", "privatize_table", "prove", "unbiased_cross_entropy",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
