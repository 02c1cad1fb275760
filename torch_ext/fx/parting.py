"""Where a run takes more memory than its plan says: for people, when a plan is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from torch_ext.amounts import amount
from torch_ext.memory.meter import measure_peak, no_collections
from torch_ext.program.plan import LeverPlan
from torch_ext.reporting.findings import Findings


def where_above(module: fx.GraphModule, inputs: Sequence[Any], found: LeverPlan) -> str:
    """Say at which op a run of the planned graph first takes more than planned; empty if none.

    The run has all its effects on the inputs.
    """
    timeline = Findings(found.graph, found.plan, edits=found).after.timeline
    watched = _Watched(module, {entry.op: entry.hill_bytes for entry in timeline})
    with no_collections(), watched.memory:
        watched.run(*inputs, enable_io_processing=False)
    return watched.first


class _Watched(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, planned_bytes: Mapping[str, int]) -> None:
        super().__init__(module)
        self.memory = measure_peak()
        self.planned_bytes = planned_bytes
        self.first = ""

    def run_node(self, n: fx.Node) -> Any:
        before_bytes = self.memory.end_bytes
        with measure_peak() as own:
            value = super().run_node(n)
        taken_bytes = before_bytes + own.peak_bytes
        planned_bytes = self.planned_bytes.get(n.name)
        if not self.first and planned_bytes is not None and taken_bytes > planned_bytes:
            taken, planned = amount(taken_bytes), amount(planned_bytes)
            self.first = f"{n.name} is the first op to take more, {taken} for {planned}"
        return value
