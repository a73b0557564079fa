"""Interpretable multi-horizon forecasts of panels of series, with calibrated quantiles.

Every public name is imported on first use, so that reading tables and scoring never pay for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chapbook.tft_forecast import baselines, data
    from chapbook.tft_forecast.backtesting import backtest
    from chapbook.tft_forecast.calendar_features import CalendarFeatures
    from chapbook.tft_forecast.calibration import Calibration
    from chapbook.tft_forecast.comparison import compare
    from chapbook.tft_forecast.config import TFTConfig, preset
    from chapbook.tft_forecast.faithfulness import check
    from chapbook.tft_forecast.forecaster import Forecaster
    from chapbook.tft_forecast.inputs import Group, Inputs, Interpretation, Layout, Windows
    from chapbook.tft_forecast.interpretation import Explanation
    from chapbook.tft_forecast.leakage import probe
    from chapbook.tft_forecast.metrics import q_risk, score
    from chapbook.tft_forecast.network import TemporalFusionTransformer
    from chapbook.tft_forecast.panels import Panel, panel
    from chapbook.tft_forecast.quantile_loss import pinball
    from chapbook.tft_forecast.schema import Schema
    from chapbook.tft_forecast.tuning import tune

# The public names by the module that holds them.
_MODULES = {
    "backtesting": ("backtest",),
    "calendar_features": ("CalendarFeatures",),
    "calibration": ("Calibration",),
    "comparison": ("compare",),
    "config": ("TFTConfig", "preset"),
    "faithfulness": ("check",),
    "forecaster": ("Forecaster",),
    "inputs": ("Group", "Inputs", "Interpretation", "Layout", "Windows"),
    "interpretation": ("Explanation",),
    "leakage": ("probe",),
    "metrics": ("q_risk", "score"),
    "network": ("TemporalFusionTransformer",),
    "panels": ("Panel", "panel"),
    "quantile_loss": ("pinball",),
    "schema": ("Schema",),
    "tuning": ("tune",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CalendarFeatures",
    "Calibration",
    "Explanation",
    "Forecaster",
    "Group",
    "Inputs",
    "Interpretation",
    "Layout",
    "Panel",
    "Schema",
    "TFTConfig",
    "TemporalFusionTransformer",
    "Windows",
    "backtest",
    "baselines",
    "check",
    "compare",
    "data",
    "panel",
    "pinball",
    "preset",
    "probe",
    "q_risk",
    "score",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in ("baselines", "data"):
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
