"""Label differential privacy: private labels with an exact guarantee, and training on them.

Every public name is imported on first use, so that the privatiser never pays for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chapbook.label_dp.entropy import Entropy as Entropy
    from chapbook.label_dp.randomized_response import PrivateLabels as PrivateLabels
    from chapbook.label_dp.randomized_response import RandomizedResponse as RandomizedResponse
    from chapbook.label_dp.randomized_response import RRTopK as RRTopK
    from chapbook.label_dp.randomized_response import RRWithPrior as RRWithPrior
    from chapbook.label_dp.verify import Proof as Proof
    from chapbook.label_dp.verify import prove as prove

# Public name -> the module of this package that holds it; None for the modules themselves.
_HOMES = {
    "Entropy": "entropy",
    "PrivateLabels": "randomized_response",
    "Proof": "verify",
    "RRTopK": "randomized_response",
    "RRWithPrior": "randomized_response",
    "RandomizedResponse": "randomized_response",
    "prove": "verify",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    module = import_module(f"{__name__}.{home or name}")
    value = getattr(module, name) if home else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
