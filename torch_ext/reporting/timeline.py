"""Memory over the ops for other tools: Chrome's trace format, which Perfetto reads, and CSV."""

import csv
import io
import json
from typing import Any

from torch_ext.reporting.findings import Findings, Run


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


def _runs(findings: Findings) -> tuple[tuple[str, Run], ...]:
    return ("before", findings.before), ("after", findings.after)


def _named(what: str, process: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": process, "tid": 1, "args": {"name": name}}
