"""Lowers the peak memory of a PyTorch program by changing only the order of its operations.

Names are resolved on first use: importing this package is cheap, imports no torch and has no side
effect.
"""

from typing import TYPE_CHECKING

from torch_ext._lazy import importer
from torch_ext._version import __version__ as __version__

if TYPE_CHECKING:
    from torch_ext import fx as fx
    from torch_ext import inductor as inductor
    from torch_ext.capacities.search import Capacity as Capacity
    from torch_ext.capacities.search import capacity as capacity
    from torch_ext.capacities.search import training_capacity as training_capacity
    from torch_ext.fronts import front as front
    from torch_ext.memory.arena import ArenaStatistics as ArenaStatistics
    from torch_ext.memory.arena import PinnedFunction as PinnedFunction
    from torch_ext.memory.arena import arena_statistics as arena_statistics
    from torch_ext.memory.arena import pin_addresses as pin_addresses
    from torch_ext.memory.limit import assert_peak_below as assert_peak_below
    from torch_ext.memory.meter import PeakMemory as PeakMemory
    from torch_ext.memory.meter import measure_peak as measure_peak
    from torch_ext.planning import plan as plan
    from torch_ext.program.graph import Graph as Graph
    from torch_ext.program.graph import simulate as simulate
    from torch_ext.program.plan import Plan as Plan
    from torch_ext.reporting.front import Front as Front
    from torch_ext.reporting.report import Verification as Verification
    from torch_ext.torchscript.optimize import Report as Report
    from torch_ext.torchscript.optimize import analyze as analyze
    from torch_ext.torchscript.optimize import optimize as optimize
    from torch_ext.torchscript.optimize import verify as verify
    from torch_ext.torchscript.pinned import load as load
    from torch_ext.torchscript.pinned import save as save
    from torch_ext.torchscript.registered_pass import disable as disable
    from torch_ext.torchscript.registered_pass import enable as enable
    from torch_ext.torchscript.registered_pass import enabled as enabled
    from torch_ext.torchscript.registered_pass import is_enabled as is_enabled
    from torch_ext.torchscript.registered_pass import pass_stats as pass_stats
    from torch_ext.training import training_front as training_front
    from torch_ext.training import training_step as training_step

_HOMES = {  # public name -> where it lives; "": a module
    "ArenaStatistics": "memory.arena",
    "Capacity": "capacities.search",
    "Front": "reporting.front",
    "Graph": "program.graph",
    "PeakMemory": "memory.meter",
    "PinnedFunction": "memory.arena",
    "Plan": "program.plan",
    "Report": "torchscript.optimize",
    "Verification": "reporting.report",
    "analyze": "torchscript.optimize",
    "arena_statistics": "memory.arena",
    "assert_peak_below": "memory.limit",
    "capacity": "capacities.search",
    "disable": "torchscript.registered_pass",
    "enable": "torchscript.registered_pass",
    "enabled": "torchscript.registered_pass",
    "front": "fronts",
    "fx": "",
    "inductor": "",
    "is_enabled": "torchscript.registered_pass",
    "load": "torchscript.pinned",
    "measure_peak": "memory.meter",
    "optimize": "torchscript.optimize",
    "pass_stats": "torchscript.registered_pass",
    "pin_addresses": "memory.arena",
    "plan": "planning",
    "save": "torchscript.pinned",
    "simulate": "program.graph",
    "training_capacity": "capacities.search",
    "training_front": "training",
    "training_step": "training",
    "verify": "torchscript.optimize",
}

__all__ = [*_HOMES]

__getattr__ = importer(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
