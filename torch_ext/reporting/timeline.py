"""Memory over the ops for other tools: Chrome's trace format, which Perfetto reads, CSV, and the
snapshots of torch's memory_viz (pytorch.org/memory_viz).
"""

import csv
import io
import json
import pickle
from typing import Any

from torch_ext.reporting.findings import Findings, Run

_ALIGNMENT = 64


def to_trace(findings: Findings) -> str:
    """Return a trace: an op takes 1 us, before and after are processes with a track of memory."""
    events: list[dict[str, Any]] = []
    for process, (name, run) in enumerate(_runs(findings), start=1):
        events.append(_named("process_name", process, f"{name} ({findings.title})"))
        events.append(_named("thread_name", process, "ops, nominal time: 1 us each"))
        for step, entry in enumerate(run.timeline):
            op = findings.ops[entry.op]
            events.append(
                {
                    "name": entry.op,
                    "cat": op.kind or "op",
                    "ph": "X",
                    "pid": process,
                    "tid": 1,
                    "ts": step,
                    "dur": 1,
                    "args": {
                        "kind": op.kind,
                        "module_path": op.module_path,
                        "source": op.source,
                        "hill_bytes": entry.hill_bytes,
                        "valley_bytes": entry.valley_bytes,
                        "written_bytes": sum(findings.buffers[b].bytes for b in op.writes),
                        "workspace_bytes": op.workspace_bytes,
                    },
                }
            )
            for time, size_bytes in ((step, entry.hill_bytes), (step + 0.5, entry.valley_bytes)):
                events.append(
                    {
                        "name": f"memory {name}",
                        "ph": "C",
                        "pid": process,
                        "ts": time,
                        "args": {"bytes": size_bytes},
                    }
                )
    trace = {
        "displayTimeUnit": "ns",
        "otherData": {
            "original_peak_bytes": findings.plan.original_peak_bytes,
            "peak_bytes": findings.plan.peak_bytes,
            "lower_bound_bytes": findings.plan.lower_bound_bytes,
        },
        "traceEvents": events,
    }
    return json.dumps(trace, separators=(",", ":")) + "\n"


def to_csv(findings: Findings) -> str:
    """Return a table with a row for each step of the order before and of the order after."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow("order step op module_path source valley_bytes hill_bytes".split())
    for name, run in _runs(findings):
        for step, entry in enumerate(run.timeline):
            op = findings.ops[entry.op]
            place = [op.module_path, op.source]
            writer.writerow([name, step, entry.op, *place, entry.valley_bytes, entry.hill_bytes])
    return text.getvalue()


def to_snapshot(findings: Findings) -> bytes:
    """Return a pickle as of `torch.cuda.memory._snapshot()`: the planned order, a step an us.

    No two buffers share an address: it shows what is alive, and who made it.
    """
    run = findings.after
    begins: list[list[dict[str, Any]]] = [[] for _ in run.order]
    ends: list[list[dict[str, Any]]] = [[] for _ in run.order]
    free = _ALIGNMENT

    def add(size_bytes: int, first: int, last: int, op: str) -> None:
        nonlocal free
        block = {"addr": free, "size": size_bytes, "stream": 0, "frames": _frames(findings, op)}
        free += size_bytes + -size_bytes % _ALIGNMENT
        begins[first].append({"action": "alloc", "time_us": first, **block})
        for action in ("free_requested", "free_completed"):
            ends[last].append({"action": action, "time_us": last, **block})

    for buffer, span in zip(findings.program.buffers, run.life_spans, strict=True):
        if buffer.bytes and span.first <= span.last:
            maker = findings.maker.get(buffer.name)
            add(buffer.bytes, span.first, span.last, maker.name if maker else "")
    for step, op in enumerate(run.order):
        if findings.ops[op].workspace_bytes:
            add(findings.ops[op].workspace_bytes, step, step, op)
    events = [event for pair in zip(begins, ends, strict=True) for step in pair for event in step]
    return pickle.dumps({"segments": [], "device_traces": [events]})


def _frames(findings: Findings, op: str) -> list[dict[str, Any]]:
    if not op:
        return [{"filename": "??", "line": 0, "name": "input"}]
    of = findings.ops[op]
    filename, _, line = of.source.rpartition(":")
    name = f"{of.kind or op} ({of.module_path})" if of.module_path else of.kind or op
    return [{"filename": filename, "line": int(line) if line.isdigit() else 0, "name": name}]


def _runs(findings: Findings) -> tuple[tuple[str, Run], ...]:
    return ("before", findings.before), ("after", findings.after)


def _named(what: str, process: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": process, "tid": 1, "args": {"name": name}}
