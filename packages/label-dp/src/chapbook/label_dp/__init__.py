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
    from chapbook.label_dp.entropy import Entropy as Entropy
    from chapbook.label_dp.estimation import Estimate as Estimate
    from chapbook.label_dp.estimation import PlanRow as PlanRow
    from chapbook.label_dp.estimation import debiased_accuracy as debiased_accuracy
    from chapbook.label_dp.estimation import debiased_confusion as debiased_confusion
    from chapbook.label_dp.estimation import debiased_counts as debiased_counts
    from chapbook.label_dp.estimation import epsilon_for_accuracy as epsilon_for_accuracy
    from chapbook.label_dp.estimation import plan as plan
    from chapbook.label_dp.randomized_response import PrivateLabels as PrivateLabels
    from chapbook.label_dp.randomized_response import RandomizedResponse as RandomizedResponse
    from chapbook.label_dp.randomized_response import RRTopK as RRTopK
    from chapbook.label_dp.randomized_response import RRWithPrior as RRWithPrior
    from chapbook.label_dp.verify import Proof as Proof
    from chapbook.label_dp.verify import prove as prove

# The public names by the module that holds them.
_MODULES = {
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
