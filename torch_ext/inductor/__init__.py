"""Inductor: our order among its candidates, and the graphs that it dumps."""

from typing import TYPE_CHECKING

from torch_ext._lazy import importer

if TYPE_CHECKING:
    from torch_ext.inductor.hook import enabled

__all__ = ["enabled"]

__getattr__ = importer(__name__, dict.fromkeys(__all__, "hook"))
