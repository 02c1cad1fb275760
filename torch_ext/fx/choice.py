"""Which of several edited programs is best, and what is said of the levers of the others."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from torch_ext.arguments import Planning
from torch_ext.files import first_line
from torch_ext.program.plan import LeverPlan, LeverUse

_CHEAP = 0.02  # of the time of a call: repeats that cost less are taken without a look at slices


class Planned(Protocol):
    """An edited program."""

    @property
    def found(self) -> LeverPlan:
        """What is planned for it."""


_Program = TypeVar("_Program", bound=Planned)


def best_of(
    wanted: Planning,
    plain: _Program,
    repeat: Callable[[], _Program],
    slice_: Callable[[], _Program],
) -> tuple[_Program, LeverPlan]:
    """Try the levers that cost time; return the cheapest program that meets the budget.

    If none does, return the one with the lowest peak. Without a budget only slices are tried to an
    end, which may save time. The plan that comes with it tells of the levers of the others, too.
    """
    tried = []
    if "repeat" in wanted.levers:
        tried.append(repeat())
    if "slice" in wanted.levers and not (tried and _is_cheap(tried[-1].found)):
        tried.append(slice_())
    if not tried:
        return plain, plain.found
    best = tried[-1]
    if wanted.memory_budget is not None:
        best = min(tried, key=lambda one: _cost(one.found))
    return best, _with_levers_of(best.found, [one.found for one in tried], wanted.levers)


def _is_cheap(found: LeverPlan) -> bool:
    """Whether the budget is met, and repeats for it cost next to nothing."""
    times = found.times
    is_met = bool(found.plan.budget_met)
    return is_met and (times is None or times.extra_seconds <= _CHEAP * times.call_seconds)


def _cost(found: LeverPlan) -> tuple[float, ...]:
    """What is lower is better: seconds where the budget is met, and bytes where it is not."""
    if found.plan.budget_met is False:
        return 1, found.plan.peak_bytes
    return 0, sum(use.extra_seconds for use in found.levers)


def _with_levers_of(best: LeverPlan, tried: Sequence[LeverPlan], asked: Sequence[str]) -> LeverPlan:
    """Say of the levers that were tried, and are not in the best program, why they are not.

    `asked`: the levers asked for, over all of which the floor has to hold. That of slices does hold
    with repeats, too: results are there at the end, and an op that cannot run in parts has all that
    it reads and makes at once in whichever run. That of repeats says nothing of parts.
    """
    levers = {use.name: use for use in best.levers}
    times, floor_bytes = best.times, best.floor_bytes
    is_joint = {"slice", "repeat"} <= set(asked)
    if is_joint:
        floor_bytes = None
    for other in tried:
        for use in other.levers:
            if use.name == "slice" and is_joint:
                floor_bytes = other.floor_bytes
            if use.name not in levers:
                why = use.reason or "another lever does better"
                levers[use.name] = LeverUse.left_out(use.name, best.plan.peak_bytes, why)
        if times is None and other.times is not None:
            times = dataclasses.replace(other.times, extra_seconds=0.0)
    if times is not None and not best.repeats:  # slices may take less than any repeats
        times = dataclasses.replace(times, extra_seconds_bound=None)
    return dataclasses.replace(
        best, levers=tuple(levers.values()), times=times, floor_bytes=floor_bytes
    )


def why_failed(what: str, error: Exception) -> str:
    """Say why a program stays as it is, after an error while others were made and verified."""
    return f"trying {what} failed: {type(error).__name__}: {first_line(error)}"
