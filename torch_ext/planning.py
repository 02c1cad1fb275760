"""Planning bare graphs: no torch needed, none imported."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch_ext import _sched, arguments
from torch_ext.arguments import FilePath, MemoryAmount, Planning
from torch_ext.summaries import plan_rows, two_columns

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Bottleneck:
    """The op that sets the limit: no order can run it with less than `bytes` in use."""

    op: str
    source: str  # "file:line" of the user's program, empty for a bare graph
    bytes: int
    buffers: tuple[str, ...]  # what must be alive together while it runs


@dataclasses.dataclass(frozen=True)
class Region:
    """A part of the graph that was scheduled on its own."""

    kind: str  # series, parallel or prime
    ops: int
    method: str
    proof: str
    peak_bytes: int


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


@dataclasses.dataclass(frozen=True)
class Plan:
    """An order with its peak, its bound and where both come from. Sizes are bytes."""

    ops: int
    buffers: int
    original_peak_bytes: int
    peak_bytes: int
    lower_bound_bytes: int
    status: str  # "optimal" exactly when peak_bytes == lower_bound_bytes, else "feasible"
    proof: str  # what proves it: "closure" (one op's need), "search" (exhausted), or empty
    method: str  # the part of the engine that found the order, "original" if nothing moved
    bottleneck: Bottleneck | None
    moved_ops: int  # ops less the longest common subsequence with the original order
    seconds: float  # spent planning
    clock_stopped: bool  # the clock, not the counted work, ended the search
    budget_met: bool | None  # with a memory budget: is the peak within it?
    order: tuple[str, ...] = dataclasses.field(repr=False)
    regions: tuple[Region, ...] = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return two_columns(plan_rows(self))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, `"format": 1` included."""
        return {"format": FORMAT, **dataclasses.asdict(self)}


def plan_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of Plan from the dict that the extension modules return."""
    bottleneck = fields["bottleneck"]
    if bottleneck is not None:
        bottleneck = Bottleneck(**{**bottleneck, "buffers": tuple(bottleneck["buffers"])})
    return {
        **fields,
        "bottleneck": bottleneck,
        "order": tuple(fields["order"]),
        "regions": tuple(Region(**region) for region in fields["regions"]),
    }


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why nothing, or nothing more, was gained."""

    kind: str  # a name of csrc/program/reason.h
    text: str  # in English, without capital letter and full stop

    @classmethod
    def of(cls, kind: str, *, detail: str = "", size_bytes: int = 0, other_bytes: int = 0) -> Self:
        """Make one from what it is about."""
        fields = _sched.reason(kind, detail=detail, size_bytes=size_bytes, other_bytes=other_bytes)
        return cls(**fields)


class Graph:
    """A bare graph: the contract for an adaptor of any framework.

    Buffers come before the ops that name them; ops are added in the original order, so an op may
    only read what an earlier op wrote. Every mistake is a ValueError that names the offender.
    """

    def __init__(self) -> None:
        self._builder = _sched.GraphBuilder()

    def add_buffer(
        self, name: str, size_bytes: int, *, input: bool = False, kept: bool = False
    ) -> None:
        """Add a storage. `input`: alive from the start. `kept`: a result, never freed."""
        of = f"of buffer {arguments.text(name, 'the name of a buffer')!r}"
        self._builder.add_buffer(
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
    ) -> None:
        """Add a step. `after`: earlier ops that must run first, although no buffer says so."""
        of = f"of op {arguments.text(name, 'the name of an op')!r}"
        self._builder.add_op(
            name,
            reads=arguments.texts(reads, f"reads {of}"),
            writes=arguments.texts(writes, f"writes {of}"),
            workspace_bytes=arguments.size_bytes(workspace_bytes, f"workspace_bytes {of}"),
            after=arguments.texts(after, f"after {of}"),
        )

    def to_text(self) -> str:
        """The graph in the text format. Raises ValueError if a buffer has no producer."""
        return self._builder.to_text()

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse the text format. Raises ValueError naming the line."""
        graph = cls()
        graph._builder = _sched.parse_text(arguments.text(text, "a graph"), "<text>")
        return graph


def read_graph(path: FilePath, name: str = "") -> Graph:
    """Read a graph from a file: the text format, or what Inductor writes (inductor_dump).

    `name` chooses where a file holds several. Raises ValueError naming file and place, OSError if
    the file cannot be read.
    """
    from torch_ext import inductor_dump

    path = arguments.file_path(path, "the path of a graph")
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file in UTF-8") from None
    if inductor_dump.is_dump(text):
        return inductor_dump.read_dump(text, path, name)
    if name:
        raise ValueError(f"{path}: holds one graph, without a name")
    graph = Graph()
    told = path.encode("utf-8", "backslashreplace").decode()  # names of files can be any bytes
    graph._builder = _sched.parse_text(text, told)
    return graph


def plan(
    graph: Graph | FilePath,
    *,
    time_budget: float = 2.0,
    memory_budget: MemoryAmount | None = None,
    scope: str = "all",
    without: Sequence[str] = (),
) -> Plan:
    """Find an order of low peak memory for a Graph, or for a file that read_graph can read.

    `time_budget` (seconds) is turned into counted work, so results do not depend on the machine; a
    clock ends planning at twice that, and `clock_stopped` says so.
    `memory_budget` (bytes, or text like "512MiB"): stop as soon as the peak is no higher.
    `without`: rules to do without, to measure what each brings (csrc/sched/rules.h). Raises
    ValueError for a bad graph or argument, OSError if the file cannot be read.
    """
    wanted = arguments.planning(scope, time_budget, memory_budget)
    rules = arguments.texts(without, "without")
    builder = (graph if isinstance(graph, Graph) else read_graph(graph))._builder
    fields = _sched.plan(builder, wanted.time_budget, wanted.memory_budget, wanted.scope, rules)
    return Plan(**plan_fields(fields))


def plan_program(program: _sched.Program, wanted: Planning) -> Plan:
    """Plan what an adaptor knows of a program."""
    options = wanted.time_budget, wanted.memory_budget, wanted.scope
    fields, _ = program.plan(*options, explain=False)
    return Plan(**plan_fields(fields))


def plan_and_explain(program: _sched.Program, wanted: Planning) -> tuple[Plan, tuple[Reason, ...]]:
    """The same, with why nothing was gained, if so: that may take planning it once more."""
    options = wanted.time_budget, wanted.memory_budget, wanted.scope
    fields, reasons = program.plan(*options, explain=True)
    return Plan(**plan_fields(fields)), reasons_of(reasons)


def reasons_of(fields: Sequence[Mapping[str, str]]) -> tuple[Reason, ...]:
    """Build them from what the extension modules return."""
    return tuple(Reason(**reason) for reason in fields)


def simulate(graph: Graph, order: Sequence[str]) -> tuple[TimelineEntry, ...]:
    """Return memory along an order of the graph's ops. Raises ValueError if it is not valid."""
    entries = _sched.simulate(_builder_of(graph), arguments.texts(order, "order"))
    return tuple(TimelineEntry(**entry) for entry in entries)


def region_tree(graph: Graph) -> RegionTree:
    """Cut a graph into regions: series, parallel and prime ones, down to single ops."""
    ops, nodes = _sched.region_tree(_builder_of(graph))
    return RegionTree(tuple(ops), tuple(TreeNode(**node) for node in nodes))


def _builder_of(graph: Graph) -> _sched.GraphBuilder:
    if not isinstance(graph, Graph):
        raise ValueError(f"graph must be a torch_ext.Graph, not {type(graph).__name__}")
    return graph._builder
