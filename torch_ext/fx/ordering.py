"""From a probed FX graph to the core's graph, and from an order back to the FX graph."""

import itertools
from collections.abc import Callable, Collection, Sequence

from torch import fx

from torch_ext.fx.hazards import (
    draws_random_numbers,
    has_side_effect,
    is_barrier,
    is_collective,
    written_arguments,
)
from torch_ext.fx.probing import Op, Probe
from torch_ext.labels import LabelledBuffer, LabelledGraph, LabelledOp
from torch_ext.planning import Graph


def to_graph(probe: Probe) -> Graph:
    """Return the core's graph: one op each, named after its node; a buffer for each storage made.

    What the caller holds anyway (inputs, attributes) takes no part in the peak and has no buffer.
    """
    return described(probe).to_graph()


def described(probe: Probe) -> LabelledGraph:
    """Return the same graph, to be labelled (labelling.py)."""
    before = order_edges(probe)
    buffers, ops = [], []
    for op in probe.ops:
        for storage, size_bytes in op.made.items():
            kept = storage in probe.results
            buffers.append(LabelledBuffer(_buffer(storage), size_bytes, kept=kept))
        reads = sorted({s for held in op.storages.values() for s in held} - probe.outside)
        ops.append(
            LabelledOp(
                op.node.name,
                reads=tuple(map(_buffer, reads)),
                writes=tuple(map(_buffer, op.made)),
                workspace_bytes=op.workspace_bytes,
                after=tuple(before[op.node.name]),
            )
        )
    return LabelledGraph(tuple(ops), tuple(buffers))


def order_edges(probe: Probe, without: Collection[str] = ()) -> dict[str, list[str]]:
    """For each op, the earlier ops that must come before it: data flow and hazards.

    `without`: rules to do without, by the names of csrc/jit/hazards.h, to show that a test finds
    what a rule prevents.
    """
    return _Edges(probe, without).find()


def apply_order(module: fx.GraphModule, probe: Probe, order: Sequence[str]) -> None:
    """Put the nodes into the given order of ops and compile the graph anew."""
    ops = {op.node.name: op for op in probe.ops}
    arrange([*probe.first, *(node for name in order for node in ops[name].nodes)])
    module.graph.lint()
    module.recompile()


def arrange(nodes: Sequence[fx.Node]) -> None:
    """Put the nodes of a graph one behind the other, as they come, from the first on."""
    for previous, node in itertools.pairwise(nodes):
        if previous.next is not node:
            previous.append(node)


def written_storages(probe: Probe, op: Op, without: Collection[str] = ()) -> set[int]:
    """Which storages the op writes to, besides those that it makes."""
    nodes: list[fx.Node] = []
    for argument in written_arguments(op.node, without):
        fx.node.map_arg(argument, nodes.append)
    return {storage for node in nodes for storage in op.storages[node]}


def _buffer(storage: int) -> str:
    return f"s{storage}"


class _Edges:
    def __init__(self, probe: Probe, without: Collection[str]) -> None:
        self.probe = probe
        self.without = without
        self.home = {node: op for op in probe.ops for node in op.nodes}
        self.before: dict[str, dict[str, None]] = {op.node.name: {} for op in probe.ops}

    def find(self) -> dict[str, list[str]]:
        def draws(op: Op) -> bool:
            return op.draws or draws_random_numbers(op.node)

        def is_seen(op: Op) -> bool:
            return has_side_effect(op.node)

        self._data_flow()
        self._mutations()
        self._barriers()
        if "random" not in self.without:
            self._chain(draws)
        if "side_effect" not in self.without:
            self._chain(is_seen)
        if "outlives" not in self.without:
            self._against(is_seen, lambda op: draws(op) or self._writes_outside(op))
        self._chain(lambda op: is_collective(op.node))
        return {name: list(before) for name, before in self.before.items()}

    def _writes_outside(self, op: Op) -> bool:
        return not self.probe.outside.isdisjoint(written_storages(self.probe, op))

    def _add(self, earlier: Op | None, later: Op) -> None:
        if earlier is not None and earlier is not later:
            self.before[later.node.name][earlier.node.name] = None

    def _data_flow(self) -> None:
        for op in self.probe.ops:
            for node in op.nodes:
                for used in node.all_input_nodes:
                    self._add(self.home.get(used), op)

    def _mutations(self) -> None:
        writes_of = [written_storages(self.probe, op, self.without) for op in self.probe.ops]
        written = set[int]().union(*writes_of)
        writer: dict[int, Op] = {}
        readers: dict[int, list[Op]] = {}
        for op, writes in zip(self.probe.ops, writes_of, strict=True):
            touched = {s for held in op.storages.values() for s in held} | op.made.keys()
            for storage in sorted(touched & written):
                self._add(writer.get(storage), op)
                if storage in writes:
                    for reader in readers.pop(storage, []):
                        self._add(reader, op)
                    writer[storage] = op
                else:
                    readers.setdefault(storage, []).append(op)

    def _barriers(self) -> None:
        hides = "unknown" not in self.without
        since: list[Op] = []
        last: Op | None = None
        for op in self.probe.ops:
            self._add(last, op)
            if (hides and op.is_hidden) or is_barrier(op.node, self.without):
                for earlier in since:
                    self._add(earlier, op)
                last, since = op, []
            else:
                since.append(op)

    def _chain(self, belongs: Callable[[Op], bool]) -> None:
        last: Op | None = None
        for op in self.probe.ops:
            if belongs(op):
                self._add(last, op)
                last = op

    def _against(self, these: Callable[[Op], bool], those: Callable[[Op], bool]) -> None:
        """Each of these keeps its order to each of those."""
        near, far = filter(these, self.probe.ops), list(filter(those, self.probe.ops))
        place = {op.node: index for index, op in enumerate(self.probe.ops)}
        for op in near:
            for other in far:
                if place[other.node] < place[op.node]:
                    self._add(other, op)
                else:
                    self._add(op, other)
