"""The step that replaces forward, backward, optimizer.step() and zero_grad()."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from torch_ext.arguments import FilePath, Planning
from torch_ext.memory.arena import ArenaStatistics
from torch_ext.memory.process import return_free_memory
from torch_ext.progress import progress
from torch_ext.training.alone import OwnStep
from torch_ext.training.capture import Batch, Clipping, LossFunction, Objective
from torch_ext.training.planned_graph import (
    PlannedGraph,
    Runtime,
    TrainingReport,
    copied,
    make_graph,
)
from torch_ext.training.replicas import unwrapped
from torch_ext.training.scripting import save_step
from torch_ext.training.updates import UnsupportedError
from torch_ext.training.world import Key, Now, World

_log = logging.getLogger("torch_ext")
# What of a key may be another when a step is saved.
_VARYING = ("batch", "modes", "states", "paces", "accumulated")


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What training_step was asked for, checked; it says what each one means."""

    clipping: Clipping
    accumulate: int
    on_new_shape: Literal["capture", "eager"]
    max_graphs: int
    runtime: Runtime
    planning: Planning


class TrainingStep:
    """See training_step."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        optimizer: torch.optim.Optimizer,
        example_batch: Sequence[Any] | Mapping[str, Any],
        options: StepOptions,
    ) -> None:
        module, replicas = unwrapped(model)
        if replicas is not None and options.accumulate != 1:
            raise UnsupportedError("DistributedDataParallel needs accumulate=1")
        self._world = World(Objective(module, loss_fn), optimizer, options.clipping, replicas)
        update = self._world.update
        if options.runtime == "torchscript" and isinstance(update, OwnStep):
            raise UnsupportedError(
                f"the step of {update.name} is Python code, which TorchScript cannot run; use "
                "runtime='fx', or SGD, Adam or AdamW"
            )
        self._options = options
        # With and without an update, one for each answer to what a step asks about its batch.
        self._graphs: dict[tuple[bool, Key], list[PlannedGraph]] = {}
        self._told: set[str] = set()  # why the loop made a step
        self._batches = 0  # since the last update
        now = self._world.look(as_batch(example_batch, loss_fn))
        if now.why_no_graph:
            raise UnsupportedError(f"{now.why_no_graph}, which a captured step cannot")
        self._first = self._add_graph(now)
        self._example_key = now.key
        self._last_key = now.key  # of the last step that had a graph
        self._settled = self._last = self._add_second_graph(now) or self._first
        return_free_memory()

    @property
    def report(self) -> TrainingReport:
        """Of the graph that ran last, or was captured for the example."""
        return self._last.report

    @property
    def arena_statistics(self) -> ArenaStatistics | None:
        """How the calls of that graph went; None if it has no planned addresses."""
        pinned = self._last.captured and self._last.captured.pinned
        return pinned.statistics if pinned else None

    def __call__(self, *batch: Any, **named: Any) -> Any:
        """Train on a batch as the example was: `(*inputs, target)`, or the model's arguments.

        Returns what loss_fn returns, detached. An exception in the middle leaves some parameters
        updated and some not; a note says so.
        """
        if batch and named:
            raise ValueError("a batch is given by position or by name, not both")
        now = self._world.look(named or batch)
        graph = self._graph_for(now)
        self._last = graph or self._last
        if graph is None or graph.captured is None:
            result = self._world.run_eagerly(now, self._updates())
        else:
            result = self._world.run(graph.captured, now)
        self._batches = (self._batches + 1) % self._options.accumulate
        return result

    def _graph_for(self, now: Now) -> PlannedGraph | None:
        """The graph that does what the loop would do now; captured if it may be."""
        known = () if now.why_no_graph else self._graphs.get((self._updates(), now.key), ())
        for graph in known:
            if graph.answers.hold(now.tensors):
                self._last_key = now.key
                return graph
        if now.key.era != self._last_key.era:
            self._drop_past_graphs()
        why = now.why_no_graph or now.key.why_not(self._last_key)
        why = why or "masks or lengths of the batch lead another way"
        if now.why_no_graph or not self._may_capture(now.key):
            if why not in self._told:
                self._told.add(why)
                _log.warning("the plain loop makes this training step: %s", why)
            return None
        self._last_key = now.key
        _log.warning("another graph of the training step is captured: %s", why)
        graph = self._add_graph(now)
        _log.warning("captured in %.1f s", graph.report.capture_seconds)
        return_free_memory()
        return graph

    def _add_second_graph(self, first: Now) -> PlannedGraph | None:
        """Where the first update makes state, all later steps run another graph: make it now."""
        if not self._updates():
            return None
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            later = self._world.copy()
            looked = later.look(copied(first.batch))
            if self._first.captured is None:
                later.run_eagerly(looked, updates=True)
            else:
                later.run(self._first.captured, looked)
        now = later.look(first.batch)
        known = self._graphs.setdefault((True, now.key), [])
        if not known:
            known.append(self._make_graph(later, now))
        return known[0]

    def save(self, path: FilePath) -> None:
        """Write a TorchScript file that trains from here on without Python, torch_ext or autograd.

        Its `forward(*tensors of a batch)` makes one step and returns what loss_fn returns; batches
        must have the example's shapes. Needs runtime="torchscript" and accumulate=1. The file is
        written whole or not at all, as files.writing does. See docs/training.md.
        """
        if (
            self._options.runtime != "torchscript"
            or self._options.accumulate != 1
            or self._world.replicas
        ):
            raise ValueError('save needs runtime="torchscript", accumulate=1 and one process')
        first, settled = self._first.captured, self._settled.captured
        if first is None or settled is None:
            raise ValueError(f"there is no graph to save: {self._settled.report.reason}")
        then, now = self._example_key, self._world.look(()).key
        if dataclasses.replace(now, **{name: getattr(then, name) for name in _VARYING}) != then:
            raise ValueError(
                "model or optimizer are no longer as they were captured; construct the step anew"
            )
        if first.answers.questions or settled.answers.questions:
            raise ValueError(
                "the step asks about values of its batch (an `if` on a mask, a length), which a "
                "file cannot; train with runtime='fx'"
            )
        started = any(self._world.optimizer.state.values())
        save_step(self._world, settled if started else first, settled, path)

    def _updates(self) -> bool:
        """Does the coming batch end with an update?"""
        return self._batches + 1 == self._options.accumulate

    def _may_capture(self, key: Key) -> bool:
        """Is it the same batch in another role, or a new one that may have a graph?

        Capturing takes all processes: where others train too, who knows what they do just now.
        """
        if self._world.replicas is not None:
            return False
        is_new = all(known.batch != key.batch for _, known in self._graphs)
        count = sum(map(len, self._graphs.values()))
        return count < self._options.max_graphs and not (
            is_new and self._options.on_new_shape == "eager"
        )

    def _drop_past_graphs(self) -> None:
        past = self._world.past_eras()
        self._graphs = {
            known: graphs for known, graphs in self._graphs.items() if known[1].era not in past
        }

    def _add_graph(self, now: Now) -> PlannedGraph:
        graph = self._make_graph(self._world, now)
        self._graphs.setdefault((self._updates(), now.key), []).append(graph)
        return graph

    def _make_graph(self, world: World, now: Now) -> PlannedGraph:
        with progress("capturing a training step"):
            return make_graph(
                world, now, self._updates(), self._options.runtime, self._options.planning
            )


def as_batch(example: Sequence[Any] | Mapping[str, Any], loss_fn: LossFunction | None) -> Batch:
    """Return a batch of the user's as a step takes it. Raises ValueError."""
    if not isinstance(example, Sequence | Mapping) or isinstance(example, str | bytes):
        raise ValueError(
            "example_batch must be a tuple (*inputs, target) or a dict of the model's arguments, "
            f"not {type(example).__name__}"
        )
    if isinstance(example, Mapping):
        return dict(example)
    if loss_fn is None:
        raise ValueError("loss_fn may be None only if a batch is a dict of the model's arguments")
    return tuple(example)
