"""Dataset distillation with infinitely wide networks: neural kernels, KIP and Label Solve.

Every public name is imported on first use, so that `kip-distill --help` never pays for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chapbook.kip_distill import kernels
    from chapbook.kip_distill.augmentation import Augmentation
    from chapbook.kip_distill.data import Examples, read
    from chapbook.kip_distill.distilled import DistilledSet
    from chapbook.kip_distill.distilling import distil, predicted, regressor, scores, solve_labels
    from chapbook.kip_distill.kip import KIP, Support
    from chapbook.kip_distill.labels import centred
    from chapbook.kip_distill.matrices import write_matrices
    from chapbook.kip_distill.networks import Network
    from chapbook.kip_distill.preprocessing import Preprocess
    from chapbook.kip_distill.prototypes import k_means
    from chapbook.kip_distill.regression import KernelRidge, regularised, solve
    from chapbook.kip_distill.sheet import write_sheet
    from chapbook.kip_distill.solving import Solved, label_solve
    from chapbook.kip_distill.targets import Targets
    from chapbook.kip_distill.transferring import Transferred, Trial, max_learning_rate, transfer

# The public names by the module that holds them.
_MODULES = {
    "augmentation": ("Augmentation",),
    "data": ("Examples", "read"),
    "distilled": ("DistilledSet",),
    "distilling": ("distil", "predicted", "regressor", "scores", "solve_labels"),
    "kip": ("KIP", "Support"),
    "solving": ("Solved", "label_solve"),
    "labels": ("centred",),
    "matrices": ("write_matrices",),
    "networks": ("Network",),
    "preprocessing": ("Preprocess",),
    "prototypes": ("k_means",),
    "regression": ("KernelRidge", "regularised", "solve"),
    "sheet": ("write_sheet",),
    "targets": ("Targets",),
    "transferring": ("Transferred", "Trial", "max_learning_rate", "transfer"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "KIP",
    "Augmentation",
    "DistilledSet",
    "Examples",
    "KernelRidge",
    "Network",
    "Preprocess",
    "Solved",
    "Support",
    "Targets",
    "Transferred",
    "Trial",
    "centred",
    "distil",
    "k_means",
    "kernels",
    "label_solve",
    "max_learning_rate",
    "predicted",
    "read",
    "regressor",
    "regularised",
    "scores",
    "solve",
    "solve_labels",
    "transfer",
    "write_matrices",
    "write_sheet",
]


def __getattr__(name: str) -> Any:
    if name == "kernels":
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
