"""Bare graphs: ops and sized buffers. No torch needed, none imported."""

import dataclasses
from collections.abc import Sequence
from typing import Self

from torch_ext import _sched, arguments


@dataclasses.dataclass(frozen=True)
class TimelineEntry:
    """Memory around one op: while it runs (hill) and after it (valley)."""

    op: str
    valley_bytes: int
    hill_bytes: int


@dataclasses.dataclass(frozen=True)
class TreeNode:
    """A region: `RegionTree.ops[begin:end]`."""

    kind: str  # op, series, parallel or prime
    begin: int
    end: int
    parent: int  # index of a node, -1 of the root


@dataclasses.dataclass(frozen=True)
class RegionTree:
    """How a graph falls into regions. A parent comes before its children, which are in order."""

    ops: tuple[str, ...]
    nodes: tuple[TreeNode, ...]


class Graph:
    """A bare graph: the contract for an adaptor of any framework.

    Buffers come before the ops that name them; ops are added in the original order, so an op may
    only read what an earlier op wrote. Every mistake is a ValueError that names the offender.
    """

    def __init__(self) -> None:
        self.builder = _sched.GraphBuilder()

    def add_buffer(
        self, name: str, size_bytes: int, *, input: bool = False, kept: bool = False
    ) -> None:
        """Add a storage. `input`: alive from the start. `kept`: a result, never freed."""
        of = f"of buffer {arguments.text(name, 'the name of a buffer')!r}"
        self.builder.add_buffer(
            name,
            arguments.size_bytes(size_bytes, f"size_bytes {of}"),
            input=arguments.flag(input, f"input {of}"),
            kept=arguments.flag(kept, f"kept {of}"),
        )

    def add_op(
        self,
        name: str,
        *,
        reads: Sequence[str] = (),
        writes: Sequence[str] = (),
        workspace_bytes: int = 0,
        after: Sequence[str] = (),
        nanoseconds: int = 0,
        once: bool = False,
        mutates: Sequence[str] = (),
    ) -> None:
        """Add a step. `after`: earlier ops that must run first, although no buffer says so.

        The rest is for the lever "repeat". `nanoseconds`: what a run takes; 0: nobody knows, so the
        op runs once. `once`: it must not run again, as it draws random numbers, or shows something.
        `mutates`: of what it reads, the buffers that it writes to in place.
        """
        of = f"of op {arguments.text(name, 'the name of an op')!r}"
        self.builder.add_op(
            name,
            reads=arguments.texts(reads, f"reads {of}"),
            writes=arguments.texts(writes, f"writes {of}"),
            workspace_bytes=arguments.size_bytes(workspace_bytes, f"workspace_bytes {of}"),
            after=arguments.texts(after, f"after {of}"),
            nanoseconds=arguments.nanoseconds(nanoseconds, f"nanoseconds {of}"),
            once=arguments.flag(once, f"once {of}"),
            mutates=arguments.texts(mutates, f"mutates {of}"),
        )

    def to_text(self) -> str:
        """The graph in the text format, in the lowest version that can say it.

        Raises ValueError if a buffer has no producer, or a name is a word of that version.
        """
        return self.builder.to_text()

    @classmethod
    def of(cls, builder: _sched.GraphBuilder) -> Self:
        """Return the graph that a builder of the extension module holds."""
        graph = cls()
        graph.builder = builder
        return graph

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse the text format. Raises ValueError naming the line."""
        return cls.of(_sched.parse_text(arguments.text(text, "a graph"), "<text>"))


def simulate(graph: Graph, order: Sequence[str]) -> tuple[TimelineEntry, ...]:
    """Return memory along an order of the graph's ops, of which "NAME/2" is NAME's second run.

    Raises ValueError if it is not valid.
    """
    entries = _sched.simulate(builder_of(graph), arguments.texts(order, "order"))
    return tuple(TimelineEntry(**entry) for entry in entries)


def region_tree(graph: Graph) -> RegionTree:
    """Cut a graph into regions: series, parallel and prime ones, down to single ops."""
    ops, nodes = _sched.region_tree(builder_of(graph))
    return RegionTree(tuple(ops), tuple(TreeNode(**node) for node in nodes))


def builder_of(graph: Graph) -> _sched.GraphBuilder:
    """Raises ValueError if it is none."""
    if not isinstance(graph, Graph):
        raise ValueError(f"graph must be a torch_ext.Graph, not {type(graph).__name__}")
    return graph.builder
