"""A stretch of ops as one function: what stands for it in a graph while that is planned."""

import dataclasses
from typing import Any

import torch
from torch import fx

Required = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # sizes, strides


@dataclasses.dataclass(eq=False)
class Parts:
    """Runs a stretch part by part. Its arguments are what the stretch reads that is older.

    `module` has a placeholder for each of them, and its output is a tuple of the results.
    """

    name: str
    module: fx.GraphModule
    required: tuple[Required | None, ...]  # of the arguments

    def __post_init__(self) -> None:
        self.__name__ = self.name  # torch.fx wants it of what a node calls

    def __call__(self, *older: Any) -> Any:
        """Return the results."""
        return self.module(*older)
