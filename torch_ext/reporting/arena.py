"""What a report says of planned addresses. Needs no torch."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from torch_ext.arguments import planning
from torch_ext.program.graph_plan import plan_in_order
from torch_ext.program.program import Buffer, Op, Program
from torch_ext.reporting.report import ProgramReport

ALIGNMENT = 64  # of torch's CPU memory, and of arenas (csrc/memory/arena.h)

AnyReport = TypeVar("AnyReport", bound=ProgramReport)


def with_arena(report: AnyReport, heights: Sequence[int]) -> AnyReport:
    """Return the report with what is known of the arenas of its program, one for each example.

    `heights`: of those arenas that are planned, in bytes.
    """
    if not heights:
        return report
    height = max(heights)
    bound = arena_bound_bytes(report.edited) if report.lower_bound_bytes else None
    if bound is not None and bound > height:  # the program that ran is not the one that was planned
        bound = None
    return dataclasses.replace(report, arena_bytes=height, arena_bound_bytes=bound)


def arena_bound_bytes(program: Program) -> int:
    """Return what every arena of a program holds at least, in any order and any placement.

    What is alive at once has an address each, so it is the lower bound on the peak, where buffers
    that outlive a call weigh nothing, for they lie elsewhere, and sizes are whole multiples of 64.
    The scratch memory of an op may be gone when its results are made: what these weigh more for
    being whole multiples is taken off it.
    """
    arena_bytes = {buffer.name: _in_arena(buffer) for buffer in program.buffers}
    more_bytes = {
        buffer.name: arena_bytes[buffer.name] - buffer.bytes for buffer in program.buffers
    }

    def weighed(op: Op) -> Op:
        more = sum(max(0, more_bytes[name]) for name in op.writes)
        return dataclasses.replace(op, workspace_bytes=max(0, op.workspace_bytes - more))

    weighed_program = Program(
        tuple(map(weighed, program.ops)),
        tuple(
            dataclasses.replace(buffer, bytes=arena_bytes[buffer.name])
            for buffer in program.buffers
        ),
    )
    found = plan_in_order(weighed_program.to_graph(), planning("all", 2.0))
    return found.plan.lower_bound_bytes


def _in_arena(buffer: Buffer) -> int:
    outlives = buffer.is_input or buffer.kept
    return 0 if outlives else -(-buffer.bytes // ALIGNMENT) * ALIGNMENT
