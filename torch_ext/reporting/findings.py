"""A graph and its plan, and what follows from the two."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch_ext import _sched
from torch_ext.program.graph import Graph, RegionTree, TimelineEntry, region_tree, simulate
from torch_ext.program.plan import LeverPlan, Plan, Reason, Region
from torch_ext.program.program import Buffer, Hoist, Op, Overwrite, Program, Slice
from torch_ext.reporting.diff import Block, diff


@dataclasses.dataclass(frozen=True)
class LifeSpan:
    """The steps of an order at which a buffer is alive, the last one included."""

    first: int
    last: int

    def __contains__(self, step: int) -> bool:
        return self.first <= step <= self.last


NEVER = LifeSpan(0, -1)
_PLACING_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Placed:
    """A block of an arena: a buffer that ends inside the program, or scratch memory of an op."""

    name: str  # of the buffer, or of the op
    is_scratch: bool
    begin: int  # it lives in the steps begin, ..., end - 1
    end: int
    offset: int  # bytes above the start of the arena
    bytes: int  # a whole multiple of 64


@dataclasses.dataclass(frozen=True)
class Run:
    """One order, and memory along it."""

    order: tuple[str, ...]
    timeline: tuple[TimelineEntry, ...]
    life_spans: tuple[LifeSpan, ...]  # by buffer
    slice_of: Mapping[str, str]  # of each op that runs in parts: what stands for it in the order

    @functools.cached_property
    def step_of(self) -> dict[str, int]:
        """The step at which each op runs, from 0."""
        steps = {op: step for step, op in enumerate(self.order)}
        return steps | {op: steps[stretch] for op, stretch in self.slice_of.items()}

    @property
    def peak_step(self) -> int:
        """The first step at which the peak is reached; -1 without ops."""
        hills = [entry.hill_bytes for entry in self.timeline]
        return hills.index(max(hills)) if hills else -1


class _Edits(NamedTuple):
    edited: Program
    overwrites: tuple[Overwrite, ...]
    hoists: tuple[Hoist, ...]
    slices: tuple[Slice, ...]


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a report is made of.

    `plan` may be a report of any door; what it says beyond a Plan (edits, what was measured,
    parameters, inputs, a reason) is shown as well.
    """

    graph: Program
    plan: Plan
    title: str = ""
    inputs: tuple[str, ...] = ()
    process_bytes: int | None = None  # resident before the model was loaded
    gradient_peak_bytes: int | None = None  # measured with gradients enabled, if there can be any
    edits: LeverPlan | None = None  # None: those that the report in `plan` tells of, if it is one

    def measured(self, field: str) -> int | None:
        """A number that only some doors know, None where this one does not."""
        value: int | None = getattr(self.plan, field, None)
        return value

    @property
    def measured_original_bytes(self) -> int | None:
        """The peak that the allocator measured in the original order."""
        return self.measured("measured_original_peak_bytes")

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why nothing was gained, so far as the door knows."""
        known: tuple[Reason, ...] = getattr(self.plan, "reasons", ())
        return known

    @property
    def identical(self) -> bool | None:
        """Whether the outputs were the same, None if they were not compared."""
        value: bool | None = getattr(self.plan, "identical", None)
        return value

    @functools.cached_property
    def _edits(self) -> _Edits:
        source: Any = self.edits or self.plan
        if not hasattr(source, "edited"):
            return _Edits(self.graph, (), (), ())
        return _Edits(source.edited, source.overwrites, source.hoists, source.slices)

    @property
    def edited(self) -> Program:
        """What the plan is of."""
        return self._edits.edited

    @functools.cached_property
    def program(self) -> Program:
        """The graph, and behind its ops and buffers those that only the edited one has."""
        ops = {op.name for op in self.graph.ops}
        buffers = {buffer.name for buffer in self.graph.buffers}
        edited = self._edits.edited
        return Program(
            (*self.graph.ops, *(op for op in edited.ops if op.name not in ops)),
            (*self.graph.buffers, *(b for b in edited.buffers if b.name not in buffers)),
        )

    @functools.cached_property
    def ops(self) -> dict[str, Op]:
        """Ops by name."""
        return {op.name: op for op in self.program.ops}

    @functools.cached_property
    def buffers(self) -> dict[str, Buffer]:
        """Buffers by name."""
        return {buffer.name: buffer for buffer in self.program.buffers}

    @functools.cached_property
    def maker(self) -> dict[str, Op]:
        """The op that makes a buffer; inputs have none."""
        return {buffer: op for op in reversed(self.program.ops) for buffer in op.writes}

    @functools.cached_property
    def before(self) -> Run:
        """The original order."""
        original = _Edits(self.graph, (), (), ())
        return self._run(self.graph.to_graph(), [op.name for op in self.graph.ops], original)

    @functools.cached_property
    def after(self) -> Run:
        """The planned order."""
        return self._run(self.edited.to_graph(), self.plan.order, self._edits)

    @functools.cached_property
    def memory_graph(self) -> Program:
        """The ops that touch memory."""
        return self.graph.of_memory()

    @functools.cached_property
    def diff(self) -> list[Block]:
        """The two orders of the ops that touch memory; the others count as steps."""
        left_out = self.ops.keys() - {op.name for op in self.memory_graph.ops}
        left_out |= {op.name for op in self.graph.ops} - {op.name for op in self.edited.ops}
        return diff(self.before.order, self.after.order, left_out)

    @functools.cached_property
    def regions(self) -> RegionTree:
        """The region tree of the ops that touch memory: others tie together what is apart."""
        return region_tree(self.memory_graph.to_graph())

    @functools.cached_property
    def planned_region_of(self) -> dict[str, Region]:
        """The region of the plan that each op belongs to; empty if the plan has other regions.

        Those of a plan are the children of the tree's root, single ops next to each other as one.
        """
        tree = region_tree(self.edited.to_graph())
        cuts = {node.end for node in tree.nodes if node.parent == 0} | {len(tree.ops)}
        ends = list(itertools.accumulate(region.ops for region in self.plan.regions))
        if not cuts.issuperset(ends) or ends[-1:] != [len(tree.ops)]:
            return {}
        return {
            op: region
            for end, region in zip(ends, self.plan.regions, strict=True)
            for op in tree.ops[end - region.ops : end]
        }

    @functools.cached_property
    def arena(self) -> tuple[Placed, ...]:
        """Where all blocks of the planned order lie, if addresses were planned."""
        if self.measured("arena_bytes") is None:
            return ()
        order = list(self.plan.order)
        placed = _sched.place_along(self.edited.to_graph().builder, order, _PLACING_SECONDS)
        return tuple(Placed(*fields) for fields in placed)

    def alive(self, run: Run, step: int) -> list[Buffer]:
        """The buffers alive at a step, the largest first."""
        buffers = zip(self.program.buffers, run.life_spans, strict=True)
        alive = [buffer for buffer, span in buffers if step in span]
        return sorted(alive, key=lambda buffer: -buffer.bytes)

    def _run(self, graph: Graph, order: Sequence[str], edits: _Edits) -> Run:
        timeline = simulate(graph, order)
        step_of = {op: step for step, op in enumerate(order)}
        last: dict[str, int] = {}

        def touch(buffer: str, op: str) -> None:
            last[buffer] = max(last.get(buffer, -1), step_of[op])

        touched = {op.name: {*op.reads, *op.writes} for op in edits.edited.ops}
        slice_of = {op: use.name for use in edits.slices for op in use.ops if op not in touched}
        copies: dict[str, list[str]] = {}  # of each op that has some hoisted
        for hoist in edits.hoists:
            copies.setdefault(hoist.op, []).append(hoist.copy)
            touch(hoist.copy, hoist.op)
        storage_of = {overwrite.result: overwrite.argument for overwrite in edits.overwrites}
        for op in self.graph.ops:
            for buffer in (*op.reads, *op.writes):
                storage = buffer
                while storage in storage_of:
                    storage = storage_of[storage]
                for toucher in (slice_of.get(op.name, op.name), *copies.get(op.name, ())):
                    if storage in touched.get(toucher, ()):
                        touch(buffer, toucher)
        known = {op.name for op in self.graph.ops}
        for op in edits.edited.ops:
            if op.name not in known:  # a repeat, or a copy
                for buffer in (*op.reads, *op.writes):
                    touch(buffer, op.name)
        for overwrite in edits.overwrites:  # from there on the memory is the result's
            if overwrite.result in self.buffers:
                last[overwrite.argument] = step_of[overwrite.op] - 1

        def span(buffer: Buffer) -> LifeSpan:
            if buffer.name not in last and not (buffer.is_input and buffer.kept):
                return NEVER
            maker = "" if buffer.is_input else self.maker[buffer.name].name
            first = 0 if buffer.is_input else step_of[slice_of.get(maker, maker)]
            return LifeSpan(first, len(order) - 1 if buffer.kept else last[buffer.name])

        spans = tuple(span(buffer) for buffer in self.program.buffers)
        return Run(tuple(order), timeline, spans, slice_of)
