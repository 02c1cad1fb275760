"""Lowers the peak memory of a PyTorch program by changing only the order of its operations.

Names are resolved on first use: importing this package is cheap, imports no torch and has no side
effect.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch_ext import inductor
    from torch_ext.asserting import assert_peak_below
    from torch_ext.fitting import Capacity, capacity, training_capacity
    from torch_ext.measuring import PeakMemory, measure_peak
    from torch_ext.optimizing import Report, analyze, optimize
    from torch_ext.passing import disable, enable, enabled, is_enabled, pass_stats
    from torch_ext.planning import Graph, Plan, plan
    from torch_ext.training import training_step

__version__ = "0.1.0"

__all__ = [
    "Capacity",
    "Graph",
    "PeakMemory",
    "Plan",
    "Report",
    "analyze",
    "assert_peak_below",
    "capacity",
    "disable",
    "enable",
    "enabled",
    "inductor",
    "is_enabled",
    "measure_peak",
    "optimize",
    "pass_stats",
    "plan",
    "training_capacity",
    "training_step",
]

_HOME = {
    "Capacity": "fitting",
    "Graph": "planning",
    "PeakMemory": "measuring",
    "Plan": "planning",
    "Report": "optimizing",
    "analyze": "optimizing",
    "assert_peak_below": "asserting",
    "capacity": "fitting",
    "disable": "passing",
    "enable": "passing",
    "enabled": "passing",
    "is_enabled": "passing",
    "measure_peak": "measuring",
    "optimize": "optimizing",
    "pass_stats": "passing",
    "plan": "planning",
    "training_capacity": "fitting",
    "training_step": "training",
}

_MODULES = {"fx", "inductor"}  # reached as attributes


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"torch_ext.{name}")  # which sets the attribute
    if name not in _HOME:
        raise AttributeError(f"module 'torch_ext' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"torch_ext.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
