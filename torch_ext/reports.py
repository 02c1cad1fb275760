"""What is known of a program after a door has looked at it. Needs no torch."""

import dataclasses
from typing import Any

from torch_ext.arguments import FilePath
from torch_ext.labels import LabelledBuffer, LabelledGraph
from torch_ext.planning import Plan, TimelineEntry
from torch_ext.summaries import report_rows, two_columns


@dataclasses.dataclass(frozen=True)
class PeakBuffer:
    """A buffer that is alive when the peak is reached."""

    name: str
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    op: str
    module_path: str
    source: str


@dataclasses.dataclass(frozen=True)
class ProgramReport(Plan):
    """A plan, what it is a plan of, and what was measured. Peaks are bytes of activations.

    Parameters and the caller's inputs are reported beside the peaks, not in them.
    """

    measured_original_peak_bytes: int | None  # by the allocator
    measured_peak_bytes: int | None
    identical: bool | None  # all that a run leaves behind; None: not compared
    threads: int
    parameter_bytes: int
    input_bytes: int
    reason: str  # why nothing was gained, else empty
    timeline_before: tuple[TimelineEntry, ...] = dataclasses.field(repr=False)
    timeline_after: tuple[TimelineEntry, ...] = dataclasses.field(repr=False)
    at_peak: tuple[PeakBuffer, ...] = dataclasses.field(repr=False)  # of the planned order
    graph: LabelledGraph = dataclasses.field(repr=False, compare=False)  # in its original order

    def __str__(self) -> str:
        return two_columns(report_rows(self))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, `"format": 1` included; without the graph."""
        fields = Plan.to_dict(dataclasses.replace(self, graph=LabelledGraph((), ())))
        del fields["graph"]
        return fields

    def save_html(self, path: FilePath, title: str = "") -> None:
        """Write the page that shows it, whole or not at all, as files.writing does."""
        from torch_ext.files import write_text
        from torch_ext.reporting import Findings, to_html

        write_text(path, to_html(Findings(self.graph, self, title)))


def described(graph: LabelledGraph, plan: Plan) -> dict[str, Any]:
    """Those fields of a ProgramReport that follow from the graph and its plan."""
    from torch_ext.reporting import Findings

    findings = Findings(graph, plan)
    fields = {field.name: getattr(plan, field.name) for field in dataclasses.fields(Plan)}
    bottleneck = plan.bottleneck
    if bottleneck is not None:
        source = findings.ops[bottleneck.op].source
        fields["bottleneck"] = dataclasses.replace(bottleneck, source=source)

    def at_peak(buffer: LabelledBuffer) -> PeakBuffer:
        op = findings.maker[buffer.name]
        look = buffer.shape, buffer.dtype
        return PeakBuffer(buffer.name, buffer.bytes, *look, op.name, op.module_path, op.source)

    after = findings.after
    return {
        **fields,
        "timeline_before": findings.before.timeline,
        "timeline_after": after.timeline,
        "at_peak": tuple(map(at_peak, findings.alive(after, after.peak_step))),
        "graph": graph,
    }
