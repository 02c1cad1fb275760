"""What a report says of planned addresses. Needs no torch."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from torch_ext import _sched
from torch_ext.program.program import Program
from torch_ext.reporting.report import ProgramReport

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

    csrc/sched/arena_order.h says why.
    """
    return _sched.arena_bound_bytes(program.to_graph().builder, 2.0)
