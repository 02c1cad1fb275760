"""Planning bare graphs, of Python or from files: no torch needed, none imported."""

import pathlib
from collections.abc import Sequence

from torch_ext import _sched, arguments
from torch_ext.arguments import FilePath, MemoryAmount
from torch_ext.inductor import dump
from torch_ext.program.graph import Graph
from torch_ext.program.plan import Plan, plan_graph


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
    return plan_graph(graph if isinstance(graph, Graph) else read_graph(graph), wanted, rules)
