"""Graphs as Inductor's scheduler sees them, as bare graphs: no torch needed, none imported.

The scheduler's own account of memory (torch/_inductor/memory.py) is kept exactly: a node allocates
`allocated_bytes` of each buffer it writes, and after the last reader `freed_bytes` come back. They
differ where one op has several results: its buffer allocates all of them and frees nothing, each
result allocates nothing and frees its part. A buffer that is written in place has a second name
with 0 bytes; a saved activation is an input that is alive from the start and may be freed.

With `torch._inductor.config.reorder_for_peak_memory_debug = True` Inductor writes each graph, in
the order before its own methods change it, as JSON into the log of `TORCH_TRACE=FOLDER`. The JSON
holds no edges of order alone (a write in place after the earlier reads, one collective after the
other), so the peak found for such a graph may ask for an order that Inductor may not take; the
lower bound holds for it all the same.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch_ext.program.graph import Graph

_RECORD = re.compile(r"V\d{4} [\d:.]+ \d+ [^\]]*\] (?=\{)")  # of torch's structured log
_SUFFIX = "_fused"  # of the names under which graphs are written


@dataclasses.dataclass(frozen=True)
class Buffer:
    """What Inductor calls a buffer."""

    name: str
    allocated_bytes: int  # when the node that writes it runs
    freed_bytes: int  # after its last reader
    is_input: bool = False
    is_output: bool = False


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of Inductor's scheduler: one kernel, or one call."""

    name: str
    writes: tuple[str, ...]
    reads: tuple[str, ...]
    after: tuple[str, ...] = ()  # nodes that must run first
    is_kernel: bool = False  # of C++: neighbours become one call (inductor_calls)


def to_graph(buffers: Sequence[Buffer], nodes: Sequence[Node]) -> Graph:
    """The core's graph, its original order that of `nodes`.

    Raises ValueError naming the buffer or node that is at fault.
    """
    writers = {name: node for node in nodes for name in node.writes}
    lent = {b.name: b.allocated_bytes - b.freed_bytes for b in buffers if not b.is_input}
    graph = Graph()
    made: dict[str, list[str]] = {node.name: [] for node in nodes}
    makers: dict[str, str] = {}  # of buffers: the nodes that allocate them
    for buffer in buffers:
        graph.add_buffer(
            buffer.name, buffer.freed_bytes, input=buffer.is_input, kept=buffer.is_output
        )
        if not buffer.is_input:
            maker = _allocating_node(buffer, writers, lent).name
            made[maker].append(buffer.name)
            makers[buffer.name] = maker
    for name, left_bytes in lent.items():
        if left_bytes > 0:  # nobody frees it
            graph.add_buffer(f"{name}.rest", left_bytes, kept=True)
            made[writers[name].name].append(f"{name}.rest")
    for node in nodes:
        reads = [
            n for n in dict.fromkeys((*node.reads, *node.writes)) if makers.get(n) != node.name
        ]
        # One of several results can be read only behind the node that takes it from the others.
        after = [writers[name].name for name in node.reads if name in writers] + [*node.after]
        implied = {node.name, *(makers.get(name, "") for name in reads)}
        graph.add_op(
            node.name,
            reads=reads,
            writes=made[node.name],
            after=[name for name in dict.fromkeys(after) if name not in implied],
        )
    return graph


def _allocating_node(buffer: Buffer, writers: dict[str, Node], lent: dict[str, int]) -> Node:
    """The node that allocates a buffer: of a result among several, that of the op that made all."""
    if buffer.name not in writers:
        raise ValueError(f"buffer '{buffer.name}' is written by no node and is no input")
    writer = writers[buffer.name]
    owed_bytes = -lent[buffer.name]
    if owed_bytes <= 0:
        return writer
    for name in (*writer.reads, *writer.writes):
        if lent.get(name, 0) >= owed_bytes:
            lent[name] -= owed_bytes
            return writers[name]
    raise ValueError(f"buffer '{buffer.name}' frees {owed_bytes} bytes that nobody allocated")


# --- files ----------------------------------------------------------------------------------------


def is_dump(text: str) -> bool:
    """Is it JSON, or a log of TORCH_TRACE, rather than the text format?"""
    return text.lstrip().startswith("{") or _RECORD.match(text) is not None


def read_dump(text: str, file: str, name: str = "") -> Graph:
    """The graph that Inductor wrote: as JSON, or the one called `name` in a log of TORCH_TRACE.

    Without `name` the log must hold exactly one. Raises ValueError naming the file and the place.
    """
    line = 1
    if _RECORD.match(text):
        line, text = _choose(text, file, name)
    elif name:
        raise ValueError(f"{file}: not a trace log, so it holds one graph, without a name")
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: line {line + error.lineno - 1}: {error.msg}") from None
    try:
        return to_graph(*_parse(fields))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _choose(text: str, file: str, wanted: str) -> tuple[int, str]:
    """Line and text of the wanted graph in a log."""
    found: dict[str, tuple[int, str]] = {}
    for line, name, payload in _artifacts(text):
        if name.endswith(_SUFFIX):
            times = sum(name in (known, known.rpartition(".")[0]) for known in found)
            found[f"{name}.{times + 1}" if times else name] = line, payload
    if not found:
        raise ValueError(
            f"{file}: holds no graph; compile with "
            "torch._inductor.config.reorder_for_peak_memory_debug = True"
        )
    if not wanted and len(found) == 1:
        [wanted] = found
    if wanted not in found:
        fault = f"holds no graph '{wanted}'" if wanted else f"holds {len(found)} graphs"
        raise ValueError(f"{file}: {fault}; choose one with --name: {', '.join(found)}")
    return found[wanted]


def _artifacts(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, name and text of whatever a log holds as a named text.

    A record is one line, ending in JSON; what belongs to it follows in lines that begin with a tab.
    """
    lines = text.split("\n")
    for number, line in enumerate(lines):
        record = _RECORD.match(line)
        if record is None or '"artifact"' not in line:
            continue
        try:
            artifact = json.loads(line[record.end() :]).get("artifact", {})
        except json.JSONDecodeError:
            continue  # cut off, as at the end of the log of a process that was killed
        end = number + 1
        while end < len(lines) and lines[end].startswith("\t"):
            end += 1
        payload = "\n".join(belonging[1:] for belonging in lines[number + 1 : end])
        yield number + 2, str(artifact.get("name", "")), payload


def _parse(fields: Any) -> tuple[list[Buffer], list[Node]]:
    """Buffers and nodes as `export_graph_for_simulator` in torch/_inductor/memory.py writes them.

    Raises ValueError naming the entry that is at fault.
    """
    buffers, reads = [], {}
    for place, entry in _entries(fields, "buffers"):
        name = _field(entry, place, "name", str)
        place = f"{place} '{name}'"
        sizes = [_field(entry, place, key, int) for key in ("size_alloc", "size_free")]
        kinds = [_field(entry, place, key, bool) for key in ("is_input", "is_output")]
        reads[name] = _names(entry, place, "deps")
        buffers.append(Buffer(name, *sizes, *kinds))
    nodes = []
    for place, entry in _entries(fields, "nodes"):
        writes = _names(entry, place, "buffer_names")
        # What stands for no memory is named here only.
        buffers += [Buffer(name, 0, 0) for name in writes if name not in reads]
        node_reads = dict.fromkeys(read for name in writes for read in reads.get(name, ()))
        nodes.append(Node(_field(entry, place, "name", str), writes, tuple(node_reads)))
    return buffers, nodes


def _entries(fields: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = fields.get(key) if isinstance(fields, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"not a graph of Inductor's: '{key}' is not a list")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{key}[{index}]: not an object")
        yield f"{key}[{index}]", entry


def _field(entry: dict[str, Any], place: str, key: str, kind: type) -> Any:
    value = entry.get(key)
    if type(value) is not kind:
        raise ValueError(f"{place}: '{key}' is not {_KINDS[kind]}")
    return value


def _names(entry: dict[str, Any], place: str, key: str) -> tuple[str, ...]:
    names = _field(entry, place, key, list)
    if not all(type(name) is str for name in names):
        raise ValueError(f"{place}: '{key}' is not a list of names")
    return tuple(names)


_KINDS = {str: "a text", int: "a whole number", bool: "true or false", list: "a list of names"}
