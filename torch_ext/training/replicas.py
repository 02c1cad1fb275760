"""DistributedDataParallel: processes that train copies of one model and average their gradients.

Every process runs the collectives in one order, that of `reduced`, in the graph and in the eager
loop alike: they stay matched whichever of the two a process runs. Source of the arithmetic:
torch/csrc/distributed/c10d/reducer.cpp (multiply by 1/n, then sum).
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed, fx, nn
from torch.nn.parallel import DistributedDataParallel

from torch_ext.training.updates import UnsupportedError


class Replicas:
    """The processes, seen from one of them."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self.group = model.process_group
        self.count = distributed.get_world_size(self.group)
        self.share = 1.0 / self.count
        self.reduced: list[str] = []  # parameters in the order of their collectives; set once
        self._broadcasts_buffers = model.broadcast_buffers
        if model._comm_hooks:
            raise UnsupportedError(
                "the model has a communication hook, which a captured step cannot call"
            )

    @property
    def group_name(self) -> str:
        """By which the functional collectives know the group."""
        name: str = self.group.group_name
        return name

    def average(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """What the reducer does to the gradients in the eager loop, in our order."""
        for name in self.reduced:
            gradient = parameters[name].grad
            assert gradient is not None  # else the graph was refused
            gradient.mul_(self.share)
            distributed.all_reduce(gradient, group=self.group)

    def sync_buffers(self, module: nn.Module) -> None:
        """Before each forward pass all have the buffers of the first process."""
        if self._broadcasts_buffers:
            for buffer in module.buffers():
                distributed.broadcast(buffer, group=self.group, group_src=0)

    def gathered(self, value: Any) -> list[Any]:
        """The value of every process."""
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def require_same(self, graph: fx.Graph) -> None:
        """Raise UnsupportedError in every process unless all have captured the same graph."""
        lines = [str(graph), *(str(node.meta.get("val")) for node in graph.nodes)]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        if len(set(self.gathered(digest))) > 1:
            raise UnsupportedError(
                "the processes captured different graphs; give all the same model, options, and "
                "shapes of the example batch"
            )


def unwrapped(model: nn.Module) -> tuple[nn.Module, Replicas | None]:
    """The module that computes, and who else trains it."""
    if isinstance(model, DistributedDataParallel):
        return model.module, Replicas(model)
    return model, None
