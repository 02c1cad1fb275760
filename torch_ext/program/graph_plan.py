"""Plans of bare graphs with all levers that these have. No torch needed."""

import dataclasses
from collections.abc import Sequence
from typing import Self

from torch_ext import _sched
from torch_ext.arguments import Planning, without
from torch_ext.columns import Rows
from torch_ext.program import repeats
from torch_ext.program.graph import Graph
from torch_ext.program.plan import (
    LeverPlan,
    LeverUse,
    Plan,
    Reason,
    left_out,
    plan_and_levers,
    plan_program,
    plan_repeats,
    why_given_up,
)
from torch_ext.program.program import Program, Repeat


@dataclasses.dataclass(frozen=True)
class GraphPlan(Plan):
    """A plan of a bare graph, and what the levers did; the second run of an op is "NAME/2"."""

    levers: tuple[LeverUse, ...] = dataclasses.field(repr=False)  # those asked for
    repeats: tuple[Repeat, ...] = dataclasses.field(repr=False)
    floor_bytes: int | None  # proven under any use of the levers asked for
    # Sums of the times given; None where repeats were not planned.
    call_seconds: float | None  # all ops, each run once
    extra_seconds: float | None  # the repeats
    extra_seconds_bound: float | None  # of all orders and repeats that meet the budget
    reason: str  # why levers did nothing, or no more; empty if there is nothing to say

    def rows(self) -> Rows:
        """The plan and its repeats: for people."""
        seconds = self.extra_seconds, self.extra_seconds_bound, self.call_seconds
        again = repeats.rows_of(self.repeats, repeats.extra_time(*seconds))
        return [*super().rows(), *again, *why_given_up(self.levers)]

    @classmethod
    def of(cls, found: LeverPlan) -> Self:
        """Take what is known of a plan with levers."""
        plan = {field.name: getattr(found.plan, field.name) for field in dataclasses.fields(Plan)}
        times = found.times
        return cls(
            **plan,
            levers=found.levers,
            repeats=found.repeats,
            floor_bytes=found.held_floor_bytes,
            call_seconds=times.call_seconds if times else None,
            extra_seconds=times.extra_seconds if times else None,
            extra_seconds_bound=times.extra_seconds_bound if times else None,
            reason="; ".join(use.reason for use in found.levers if use.reason),
        )


def plan_with_levers(graph: Graph, wanted: Planning, rules: Sequence[str] = ()) -> GraphPlan:
    """Plan a bare graph, without the rules named (csrc/sched/rules.h)."""
    plain = plan_in_order(graph, wanted, rules)
    if "repeat" in wanted.levers:
        plain = _repeated(plain, graph.builder.program(), wanted)
    return GraphPlan.of(plain)


def plan_in_order(graph: Graph, wanted: Planning, rules: Sequence[str] = ()) -> LeverPlan:
    """Plan it without repeats, and without saying what it is a plan of, which is `described`."""
    plan, levers = plan_and_levers(graph, without(wanted, "repeat"), rules)
    return dataclasses.replace(LeverPlan.of_original(Program((), ()), plan), levers=levers)


def described(plain: LeverPlan, program: _sched.Program) -> LeverPlan:
    """Return the plan with the program that it is of."""
    original = Program.from_fields(program.fields())
    return dataclasses.replace(plain, graph=original, edited=original)


def why_no_repeats(program: _sched.Program) -> str:
    """Say why no op may run again; empty if one may."""
    return "" if program.repeatable() else Reason.of("no_times").text


def _repeated(plain: LeverPlan, program: _sched.Program, wanted: Planning) -> LeverPlan:
    """Run ops again where that meets the budget; return the plain plan, and why, if not."""
    if found := repeats.not_needed(plain, wanted.memory_budget):
        return found
    if why := why_no_repeats(program):
        found = left_out(plain, "repeat", why)
        return dataclasses.replace(found, floor_bytes=plain.floor_bytes)
    plain = described(plain, program)
    chosen = plan_repeats(program, plain.plan.order, wanted)
    if chosen.peak_bytes >= plain.plan.peak_bytes:
        return repeats.given_up(plain, chosen)
    edited = plan_program(program.with_repeats(chosen.runs), without(wanted, "repeat"))
    return repeats.told(plain, edited, chosen)
