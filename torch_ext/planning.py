"""Planning bare graphs, of Python or from files: no torch needed, none imported."""

import dataclasses
import pathlib
import time
from collections.abc import Iterable, Sequence

from torch_ext import _sched, arguments
from torch_ext.arguments import BARE_LEVERS, FilePath, MemoryAmount
from torch_ext.inductor import dump
from torch_ext.program import repeats
from torch_ext.program.graph import Graph
from torch_ext.program.graph_plan import (
    GraphPlan,
    plan_in_order,
    plan_with_levers,
    why_no_repeats,
)
from torch_ext.program.plan import plan_repeat_front
from torch_ext.reporting.front import Front, FrontPoint, point_of_repeats, unbeaten


def read_graph(path: FilePath, name: str = "") -> Graph:
    """Read a graph from a file: the text format, or what Inductor writes (inductor_dump).

    `name` chooses where a file holds several. Raises ValueError naming file and place, OSError if
    the file cannot be read.
    """

    path = arguments.file_path(path, "the path of a graph")
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file in UTF-8") from None
    if dump.is_dump(text):
        return dump.read_dump(text, path, name)
    if name:
        raise ValueError(f"{path}: holds one graph, without a name")
    told = path.encode("utf-8", "backslashreplace").decode()  # names of files can be any bytes
    return Graph.of(_sched.parse_text(text, told))


def plan(
    graph: Graph | FilePath,
    *,
    time_budget: float = 2.0,
    memory_budget: MemoryAmount | None = None,
    scope: str = "all",
    levers: Iterable[str] | None = None,
    without: Sequence[str] = (),
) -> GraphPlan:
    """Find an order of low peak memory for a Graph, or for a file that read_graph can read.

    `time_budget` (seconds) is turned into counted work, so results do not depend on the machine; a
    clock ends planning at twice that, and `clock_stopped` says so.
    `memory_budget` (bytes, or text like "512MiB"): stop as soon as the peak is no higher. Where no
    order that is found meets it, ops run again, as little as meets it; `nanoseconds` of
    Graph.add_op says which may. In the order "NAME/2" is the second run of NAME: it reads what the
    latest runs before it made, and what was made before may be freed.
    `levers`: names of "order" and "repeat"; without "order" the original order is the start.
    `without`: rules to do without, to measure what each brings (csrc/sched/rules.h). Raises
    ValueError for a bad graph or argument, OSError if the file cannot be read.
    """
    wanted = arguments.planning(scope, time_budget, memory_budget, levers, offered=BARE_LEVERS)
    return plan_with_levers(_graph_of(graph), wanted, arguments.texts(without, "without"))


def graph_front(
    graph: Graph | FilePath,
    *,
    points: int = 10,
    time_budget: float = 2.0,
    levers: Iterable[str] | None = None,
) -> Front:
    """Return the front of a bare graph: its peak memory against the time of its ops.

    As torch_ext.front; nothing is run, and times are those that the ops were given.
    """
    start = time.perf_counter()
    points = arguments.count(points, "points", most=100)
    chosen = BARE_LEVERS if levers is None else levers
    wanted = arguments.planning("all", time_budget, None, chosen, offered=BARE_LEVERS)
    bare = _graph_of(graph)
    plain, program = plan_in_order(bare, wanted), bare.builder.program()
    free = arguments.without(wanted, "repeat").levers
    plan = plain.plan
    found = [FrontPoint(plan.peak_bytes, None, 0.0, 0.0, None, free, plan.moved_ops)]
    nanoseconds, floor_bytes, reason = 0, plain.floor_bytes, why_no_repeats(program)
    if "repeat" in wanted.levers and not reason:
        shared = dataclasses.replace(wanted, time_budget=min(points * wanted.time_budget, 1e6))
        first, *plans = plan_repeat_front(program, plan.order, shared, points)
        found += [
            point_of_repeats(one, wanted.levers, len(one.runs) - len(first.runs)) for one in plans
        ]
        nanoseconds, floor_bytes = first.nanoseconds, first.floor_bytes
        reason = repeats.why_no_lower(first)
    return Front(
        points=unbeaten(found),
        others=(),
        call_seconds=nanoseconds / 1e9,
        floor_bytes=floor_bytes,
        reason=reason,
        threads=0,
        seconds=time.perf_counter() - start,
    )


def _graph_of(graph: Graph | FilePath) -> Graph:
    return graph if isinstance(graph, Graph) else read_graph(graph)
