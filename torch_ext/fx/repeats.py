"""The plan of a graph of torch.fx with repeats, as one of the original program."""

from torch_ext.program import repeats
from torch_ext.program.plan import LeverPlan, RepeatPlan


def told(plain: LeverPlan, found: LeverPlan, chosen: RepeatPlan) -> LeverPlan:
    """Return the plan of a graph with repeats as one of the original program.

    `found` is of the graph with repeats, `plain` of the original.
    """
    return repeats.told(plain, found.named(_buffer_names(plain, found)), chosen)


def _buffer_names(plain: LeverPlan, found: LeverPlan) -> dict[str, str]:
    """What the original program calls the buffers: that of a second run is called NAME/2."""
    names = {b.name: b.name for program in (found.graph, found.edited) for b in program.buffers}
    writes = {op.name: op.writes for op in plain.graph.ops}
    for op in found.graph.ops:
        first, _, run = op.name.partition("/")
        for own, original in zip(op.writes, writes.get(first, ()), strict=False):
            names[own] = f"{original}/{run}" if run else original
    return names
