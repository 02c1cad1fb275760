"""torch.fx graphs: probed by running, ordered by the core, reordered in place."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch_ext.fx.optimizing import GraphReport, analyze, reorder

__all__ = ["GraphReport", "analyze", "reorder"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'torch_ext.fx' has no attribute '{name}'")
    return getattr(importlib.import_module("torch_ext.fx.optimizing"), name)
