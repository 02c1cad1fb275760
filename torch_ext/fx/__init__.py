"""torch.fx graphs: probed by running, ordered by the core, reordered in place."""

from typing import TYPE_CHECKING

from torch_ext._lazy import importer

if TYPE_CHECKING:
    from torch_ext.fx.optimize import GraphReport, analyze, reorder, verify

__all__ = ["GraphReport", "analyze", "reorder", "verify"]

__getattr__ = importer(__name__, dict.fromkeys(__all__, "optimize"))
