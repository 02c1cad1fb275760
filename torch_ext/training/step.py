"""The step that replaces forward, backward, optimizer.step() and zero_grad()."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from torch_ext.arguments import FilePath
from torch_ext.progress import progress
from torch_ext.training.capturing import Clipping, LossFunction, Objective
from torch_ext.training.making import (
    PlannedGraph,
    Runtime,
    TrainingReport,
    copied,
    make_graph,
    return_free_memory,
)
from torch_ext.training.replicas import unwrapped
from torch_ext.training.scripting import save_step
from torch_ext.training.updates import UnsupportedError
from torch_ext.training.world import Key, Now, World


class TrainingStep:
    """See training_step."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        optimizer: torch.optim.Optimizer,
        example_batch: Sequence[Any],
        *,
        clip_grad_norm: float | None,
        clip_grad_value: float | None,
        accumulate: int,
        on_new_shape: Literal["capture", "eager"],
        max_graphs: int,
        runtime: Runtime,
        time_budget: float,
    ) -> None:
        module, replicas = unwrapped(model)
        if replicas is not None and accumulate != 1:
            raise UnsupportedError("DistributedDataParallel needs accumulate=1")
        clipping = Clipping(clip_grad_norm, clip_grad_value)
        self._world = World(Objective(module, loss_fn), optimizer, clipping, replicas)
        self._accumulate = accumulate
        self._on_new_shape = on_new_shape
        self._max_graphs = max_graphs
        self._runtime = runtime
        self._time_budget = time_budget
        self._graphs: dict[Key, PlannedGraph] = {}
        self._batches = 0  # since the last update
        now = self._world.look(example_batch)
        self._first = self._last = self._add_graph((self._updates(), *now.key), now)
        self._settled = self._add_second_graph(now) or self._first
        self._last = self._settled
        return_free_memory()

    @property
    def report(self) -> TrainingReport:
        """Of the graph that ran last, or was captured for the example."""
        return self._last.report

    def __call__(self, *batch: Any) -> Any:
        """Train on a batch `(*inputs, target)`; return what loss_fn returns, detached.

        An exception in the middle leaves some parameters updated and some not; a note says so.
        """
        now = self._world.look(batch)
        key = (self._updates(), *now.key)
        graph = self._graphs.get(key)
        if graph is None and self._may_capture(key):
            graph = self._add_graph(key, now)
            return_free_memory()
        self._last = graph or self._last
        if graph is None or graph.captured is None:
            result = self._world.run_eagerly(now, self._updates())
        else:
            result = self._world.run(graph.captured, now)
        self._batches = (self._batches + 1) % self._accumulate
        return result

    def _add_second_graph(self, first: Now) -> PlannedGraph | None:
        """Where the first update makes state, all later steps run another graph: make it now."""
        if not self._updates():
            return None
        with torch.random.fork_rng(devices=[]):
            later = self._world.copy()
            later.run_eagerly(later.look(copied(first.batch)), updates=True)
        now = later.look(first.batch)
        key = (True, *now.key)
        if key not in self._graphs:
            self._graphs[key] = self._make_graph(later, now)
        return self._graphs[key]

    def save(self, path: FilePath) -> None:
        """Write a TorchScript file that trains from here on without Python, torch_ext or autograd.

        Its `forward(*tensors of a batch)` makes one step and returns what loss_fn returns; batches
        must have the example's shapes. Needs runtime="torchscript" and accumulate=1. The file is
        written whole or not at all, as files.writing does. See docs/training.md.
        """
        if self._runtime != "torchscript" or self._accumulate != 1 or self._world.replicas:
            raise ValueError('save needs runtime="torchscript", accumulate=1 and one process')
        first, settled = self._first.captured, self._settled.captured
        if first is None or settled is None:
            raise ValueError(f"there is no graph to save: {self._settled.report.reason}")
        started = any(self._world.optimizer.state.values())
        save_step(self._world, settled if started else first, settled, path)

    def _updates(self) -> bool:
        """Does the coming batch end with an update?"""
        return self._batches + 1 == self._accumulate

    def _may_capture(self, key: Key) -> bool:
        """Is it the same batch in another role, or a new one that may have a graph?

        Capturing takes all processes: where others train too, who knows what they do just now.
        """
        if self._world.replicas is not None:
            return False
        is_new = all(known[1] != key[1] for known in self._graphs)
        return len(self._graphs) < self._max_graphs and not (
            is_new and self._on_new_shape == "eager"
        )

    def _add_graph(self, key: Key, now: Now) -> PlannedGraph:
        graph = self._graphs[key] = self._make_graph(self._world, now)
        return graph

    def _make_graph(self, world: World, now: Now) -> PlannedGraph:
        with progress("capturing a training step"):
            return make_graph(world, now, self._updates(), self._runtime, self._time_budget)
