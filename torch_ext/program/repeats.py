"""What is said of ops that run again so that a memory budget is met. Needs no torch."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from torch_ext.amounts import amount
from torch_ext.columns import Rows
from torch_ext.program.plan import LeverPlan, LeverUse, Reason, RepeatPlan, left_out
from torch_ext.program.program import Repeat

_MOST_REPEATS = 12


def told(plain: LeverPlan, found: LeverPlan, chosen: RepeatPlan) -> LeverPlan:
    """Return the plan of a program with repeats as one of the original program.

    `found` is of the program with repeats, `plain` of the original.
    """
    peak_bytes = found.plan.peak_bytes
    labels = {op.name: op for op in plain.graph.ops}
    ops = {op.name for op in found.graph.ops}
    counts: Counter[str] = Counter()
    repeats = []
    for op in chosen.runs:
        counts[op] += 1
        name = f"{op}/{counts[op]}"
        if counts[op] > 1 and name in ops:  # else it is a view, which comes with what it views
            label = labels[op]
            seconds = chosen.op_nanoseconds[op] / 1e9
            repeats.append(Repeat(name, op, seconds, label.module_path, label.source))
    use = LeverUse(
        "repeat",
        plain.plan.peak_bytes,
        peak_bytes,
        len(repeats),
        chosen.extra_nanoseconds / 1e9,
        "" if found.plan.budget_met else why_missed(chosen, peak_bytes).text,
    )
    times = chosen.times
    if not found.plan.budget_met:  # what is proven is of programs that meet it
        times = dataclasses.replace(times, extra_seconds_bound=None)
    return dataclasses.replace(
        found,
        graph=plain.graph,
        repeats=tuple(repeats),
        times=times,
        floor_bytes=chosen.floor_bytes,
        plan=dataclasses.replace(
            found.plan,
            original_peak_bytes=plain.plan.original_peak_bytes,
            bottleneck=None,
            clock_stopped=found.plan.clock_stopped or chosen.clock_stopped,
        ),
        levers=(*plain.levers, use),
    )


def extra_time(seconds: float | None, bound: float | None, call_seconds: float | None) -> str:
    """What repeats take, and what is proven of that: for people."""

    def part(seconds: float) -> str:
        share = seconds / call_seconds if call_seconds else 0.0
        return f"{seconds * 1e3:.1f} ms ({100 * share:.1f} %)"

    proven = "" if bound is None else f"; no order and no repeats take less than {part(bound)}"
    return f"{part(seconds or 0.0)}, as ops were timed{proven}"


def rows_of(repeats: Sequence[Repeat], extra: str) -> Rows:
    """Which ops run again, the dearest first, and what all of them take: for people."""
    if not repeats:
        return []
    dearest = sorted(repeats, key=lambda use: -use.seconds)[:_MOST_REPEATS]
    rows = [("ops that run again", str(len(repeats))), *(("", str(use)) for use in dearest)]
    if len(repeats) > _MOST_REPEATS:
        rows.append(("", f"and {len(repeats) - _MOST_REPEATS} more"))
    return [*rows, ("  extra time of a call", extra)]


def not_needed(plain: LeverPlan, memory_budget: int | None) -> LeverPlan | None:
    """Return the plan without repeats, and why, where none are to be tried."""
    if memory_budget is None:
        return left_out(plain, "repeat", Reason.of("no_budget").text)
    return left_out(plain, "repeat", "") if plain.plan.peak_bytes <= memory_budget else None


def given_up(plain: LeverPlan, chosen: RepeatPlan, why: str = "") -> LeverPlan:
    """Return the plan without the repeats that were chosen; without `why` they do not help."""
    why = why or why_missed(chosen, chosen.peak_bytes).text
    return dataclasses.replace(
        left_out(plain, "repeat", why),
        floor_bytes=chosen.floor_bytes,
        times=dataclasses.replace(chosen.times, extra_seconds=0.0, extra_seconds_bound=None),
    )


def why_missed(chosen: RepeatPlan, peak_bytes: int) -> Reason:
    """Say why the budget is not met, though ops run again."""
    if chosen.extra_bound_nanoseconds is None:
        detail = chosen.floor_detail
        return Reason.of("below_floor", size_bytes=chosen.floor_bytes, detail=detail)
    share = f"{100 * chosen.extra_nanoseconds / max(chosen.nanoseconds, 1):.0f} %"
    sizes = {"size_bytes": peak_bytes, "other_bytes": chosen.floor_bytes}
    return Reason.of("missed", detail=share, **sizes)


def why_no_lower(lowest: RepeatPlan) -> str:
    """Say of a front where it ends, and what is proven of that: for people."""
    floor = f"no program with these levers gets below {amount(lowest.floor_bytes)}"
    return f"{floor}: {lowest.floor_detail}"
