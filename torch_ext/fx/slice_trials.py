"""Programs with slices, tried one after the other; what is said of the best.

Which are tried and which is best is decided by csrc/program/levers/slice_search.h.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from torch_ext import _sched
from torch_ext.arguments import Planning
from torch_ext.fx.slices import Slicer
from torch_ext.program.plan import LeverPlan, LeverUse, Reason, SliceTrial, joined


@dataclasses.dataclass(frozen=True)
class Tried:
    """A program with slices that does what the original does, or is not to be verified."""

    program: Any
    found: LeverPlan
    measured_peak_bytes: int | None = None
    seconds: tuple[float, float] | None = None  # of a call without slices, and with them

    @property
    def peak_bytes(self) -> int:
        """As planned and as measured."""
        return max(self.found.plan.peak_bytes, self.measured_peak_bytes or 0)


class SliceTrials:
    """Slices of a program that the other levers have left as `plain` says."""

    def __init__(
        self,
        slicer: Slicer,
        plain: LeverPlan,
        wanted: Planning,
        attempt: Callable[[fx.GraphModule], Tried | None],
    ) -> None:
        """`attempt`: plans a graph with stretches, edits, verifies and times it.

        It returns None for what is no lower than `plain`, or not verified.
        """
        self.slicer = slicer
        self.plain = plain
        self.budget = wanted.memory_budget
        self.attempt = attempt
        self.tried: list[tuple[Sequence[_sched.Stretch], Tried]] = []
        self.verified: list[SliceTrial] = []
        self.floor_bytes = min(slicer.floor_bytes, plain.plan.lower_bound_bytes)

    def best(self) -> Tried | None:
        """Try, and return the cheapest program below the budget, or the fastest.

        Its plan tells of the program as it was, and of what the levers did to it in turn. None if
        the budget is met without slices, or none are good.
        """
        if not self._is_needed:
            return None
        choices = self.slicer.choose(self.plain.plan.peak_bytes, self.budget)
        place = _sched.best_choice(choices, self.budget, self._attempt)
        if place is None:
            return None
        wanted = self.slicer.slices(choices[place].stretches)
        stretches, best = next(
            (stretches, tried)
            for stretches, tried in self.tried
            if self.slicer.slices(stretches) == wanted
        )
        return dataclasses.replace(best, found=self._told(stretches, best))

    def told_of_none(self) -> LeverPlan:
        """Return the plan without slices, with why there are none."""
        why = joined(self._why_none()) if self._is_needed else ""
        return dataclasses.replace(
            self.plain,
            levers=(
                *self.plain.levers,
                LeverUse.left_out("slice", self.plain.plan.peak_bytes, why),
            ),
            slice_trials=tuple(self.verified),
            floor_bytes=self.floor_bytes,
        )

    @property
    def _is_needed(self) -> bool:
        return self.budget is None or self.plain.plan.peak_bytes > self.budget

    def _why_none(self) -> tuple[Reason, ...]:
        trials = [_native(trial) for trial in self.verified]
        return (self.slicer.why_none(trials, self.budget is not None),)

    def _attempt(self, stretches: list[_sched.Stretch]) -> _sched.SliceTrial | None:
        tried = self.attempt(self.slicer.sliced(stretches))
        if tried is None:
            return None
        without, with_slices = tried.seconds or (0.0, 0.0)
        peaks = tried.found.plan.peak_bytes, tried.measured_peak_bytes or 0
        trial = SliceTrial(*peaks, len(stretches), with_slices, without)
        if tried.seconds is not None:
            self.verified.append(trial)
        self.tried.append((stretches, tried))
        return _native(trial, self._is_met(tried))

    def _is_met(self, tried: Tried) -> bool:
        return self.budget is not None and tried.peak_bytes <= self.budget

    def _told(self, stretches: Sequence[_sched.Stretch], best: Tried) -> LeverPlan:
        plan, plain = best.found.plan, self.plain
        slices = self.slicer.slices(stretches)
        is_missed = self.budget is not None and not self._is_met(best)
        without, with_slices = best.seconds or (0.0, 0.0)
        use = LeverUse(
            "slice",
            plain.plan.peak_bytes,
            plan.peak_bytes,
            len(slices),
            with_slices - without,
            joined(self._why_none()) if is_missed else "",
        )
        bound_bytes = max(plan.lower_bound_bytes, self.floor_bytes)
        is_optimal = bound_bytes == plan.peak_bytes
        proof = plan.proof
        if bound_bytes > plan.lower_bound_bytes:
            proof = "results" if is_optimal else ""
        return dataclasses.replace(
            best.found.named(self._buffer_names(stretches, best)),
            graph=plain.graph,
            slices=slices,
            slice_trials=tuple(self.verified),
            floor_bytes=self.floor_bytes,
            plan=dataclasses.replace(
                plan,
                original_peak_bytes=plain.plan.original_peak_bytes,
                lower_bound_bytes=bound_bytes,
                status="optimal" if is_optimal else "feasible",
                proof=proof,
                bottleneck=None,  # of a program that nobody wrote
                budget_met=None if self.budget is None else not is_missed,
            ),
            levers=(*plain.levers, use),
        )

    def _buffer_names(self, stretches: Sequence[_sched.Stretch], best: Tried) -> dict[str, str]:
        """What the original program calls the buffers; others get names that it does not have."""
        # An overwrite is told of buffers of which the edited program has one.
        sliced, original = (best.found.graph, best.found.edited), self.plain.graph
        names = {b.name: f"sliced_{b.name}" for program in sliced for b in program.buffers}
        writes = {op.name: op.writes for op in original.ops}
        made_by = {name: op.name for op in original.ops for name in op.outputs}
        results = self.slicer.results(stretches)
        for op in (op for program in sliced for op in program.ops):
            like = [
                buffer
                for name in results.get(op.name, (op.name,))
                for buffer in writes.get(made_by.get(name, name), ())
            ]
            if len(like) == len(op.writes):
                names |= zip(op.writes, like, strict=True)
        return names


def _native(trial: SliceTrial, meets_budget: bool = False) -> _sched.SliceTrial:
    return _sched.SliceTrial(
        peak_bytes=trial.peak_bytes,
        measured_peak_bytes=trial.measured_peak_bytes,
        slices=trial.slices,
        seconds=trial.seconds,
        seconds_without=trial.seconds_without,
        meets_budget=meets_budget,
    )
