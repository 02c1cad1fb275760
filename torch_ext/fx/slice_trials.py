"""Programs with slices, tried: planned, verified on the example and elsewhere, and timed.

Which of them is taken is decided by csrc/program/levers/slice_search.h.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch_ext import _sched
from torch_ext.arguments import Planning, without
from torch_ext.fx.graphs import Baseline, Graphs, graph_module_of, measured, seconds_in_turns
from torch_ext.fx.planned import edited, edited_module, own_inputs, plan
from torch_ext.fx.slices import Slicer, at_random
from torch_ext.program.plan import LeverPlan, LeverUse, Reason, SliceTrial, joined
from torch_ext.reporting.report import ProgramReport, held_to
from torch_ext.tensors.compare import first_difference


@dataclasses.dataclass(frozen=True)
class Sliced:
    """A program with slices."""

    program: Graphs
    stretches: Sequence[_sched.Stretch]
    found: LeverPlan
    measured_peak_bytes: int | None
    trial: SliceTrial


class SliceTrials:
    """Slices of a program that the other levers have left at `plain`."""

    def __init__(
        self,
        baseline: Baseline,
        wanted: Planning,
        verify: bool,
        plain: Graphs,
        report: ProgramReport,
    ) -> None:
        self.baseline = baseline
        self.wanted = without(wanted, "slice")
        self.verify = verify
        self.plain = plain
        self.report = report
        self.verified: list[SliceTrial] = []
        self.tried: list[Sliced] = []
        self.slicer = Slicer(self._in_best_order(), self._inputs)
        self.floor_bytes = min(self.slicer.floor_bytes(), report.lower_bound_bytes)

    @property
    def is_needed(self) -> bool:
        """Whether the program without slices does not meet the budget, or there is none."""
        budget = self.wanted.memory_budget
        return budget is None or self.report.peak_bytes > budget

    def best(self) -> Sliced | None:
        """Try, and return the cheapest program below the budget, or the fastest; None: neither."""
        if not self.is_needed:
            return None
        budget = self.wanted.memory_budget
        choices = self.slicer.choose(self.report.peak_bytes, budget)
        place = _sched.best_choice(choices, budget, self._attempt)
        if place is None:
            return None
        wanted = self.slicer.slices(choices[place].stretches)
        best = next(s for s in self.tried if self.slicer.slices(s.stretches) == wanted)
        return dataclasses.replace(best, found=self._told(best))

    def why_none(self) -> tuple[Reason, ...]:
        """Return why there are no slices, if some were needed."""
        if not self.is_needed:
            return ()
        trials = [_native(trial) for trial in self.verified]
        return (self.slicer.why_none(trials, self.wanted.memory_budget is not None),)

    def _in_best_order(self) -> Any:
        program = self.baseline.program
        ordering = without(self.wanted, "overwrite")
        planned = plan(program, graph_module_of(program), self.baseline.given, ordering)
        return edited_module(planned, asks=False)

    def _inputs(self, is_random: bool) -> list[Any]:
        given = self.baseline.given
        return own_inputs(self.baseline.program, at_random(given) if is_random else given)

    def _attempt(self, stretches: list[_sched.Stretch]) -> _sched.SliceTrial | None:
        baseline = self.baseline
        module = self.slicer.sliced(stretches)
        planned = plan(baseline.program, module, baseline.given, self.wanted)
        found = planned.found
        peak_bytes = found.plan.peak_bytes
        if peak_bytes >= self.report.peak_bytes:
            return None
        program = edited(baseline.program, planned)
        seconds_without = seconds = 0.0
        measured_bytes = None
        if self.verify:
            difference, measured_bytes = baseline.compared(program)
            _, refuted = held_to(found.plan, (measured_bytes,))
            if difference or refuted or measured_bytes > baseline.peak_bytes:
                return None
            if not self._is_same_elsewhere(program):
                return None
            seconds_without, seconds = seconds_in_turns(self.plain, program, baseline.given)
        budget = self.wanted.memory_budget
        needed = max(peak_bytes, measured_bytes or 0)
        is_met = budget is not None and needed <= budget
        found = dataclasses.replace(
            found,
            plan=dataclasses.replace(found.plan, budget_met=None if budget is None else is_met),
        )
        trial = SliceTrial(peak_bytes, len(stretches), seconds, seconds_without)
        if self.verify:
            self.verified.append(trial)
        self.tried.append(Sliced(program, stretches, found, measured_bytes, trial))
        return _native(trial, is_met)

    def _is_same_elsewhere(self, program: Graphs) -> bool:
        """On other numbers than the example's, if the program takes them."""
        given = at_random(self.baseline.given)
        try:
            expected, _ = measured(self.baseline.program, given)
        except Exception:
            return True
        try:
            actual, _ = measured(program, given)
        except Exception:
            return False
        return not first_difference(expected, actual)

    def _told(self, best: Sliced) -> LeverPlan:
        """Of the program as it was, and of what the levers did to it in turn."""
        report, found = self.report, best.found
        slices = self.slicer.slices(best.stretches)
        bound_bytes = max(found.plan.lower_bound_bytes, self.floor_bytes)
        is_optimal = bound_bytes == found.plan.peak_bytes
        reasons: tuple[Reason, ...] = ()
        if found.plan.budget_met is False:
            reasons = self.why_none()
        use = LeverUse(
            "slice",
            report.peak_bytes,
            found.plan.peak_bytes,
            len(slices),
            best.trial.seconds - best.trial.seconds_without,
            joined(reasons),
        )
        raised = bound_bytes > found.plan.lower_bound_bytes
        plan_ = dataclasses.replace(
            found.plan,
            original_peak_bytes=report.original_peak_bytes,
            lower_bound_bytes=bound_bytes,
            status="optimal" if is_optimal else "feasible",
            proof=("results" if is_optimal else "") if raised else found.plan.proof,
            bottleneck=None,  # of a program that nobody wrote
        )
        return dataclasses.replace(
            found.named(self._buffer_names(best)),
            graph=report.graph,
            slices=slices,
            slice_trials=tuple(self.verified),
            floor_bytes=self.floor_bytes,
            plan=plan_,
            levers=(*report.levers, use),
        )

    def _buffer_names(self, best: Sliced) -> dict[str, str]:
        """What the original program calls the buffers; others get names that it does not have."""
        edited = best.found.edited
        names = {buffer.name: f"sliced_{buffer.name}" for buffer in edited.buffers}
        original = {op.name: op.writes for op in self.report.graph.ops}
        made_by = {name: op.name for op in self.report.graph.ops for name in op.outputs}
        results = self.slicer.results(best.stretches)
        for op in edited.ops:
            like = [
                buffer
                for name in results.get(op.name, (op.name,))
                for buffer in original.get(made_by.get(name, name), ())
            ]
            if len(like) == len(op.writes):
                names |= zip(op.writes, like, strict=True)
        return names


def _native(trial: SliceTrial, meets_budget: bool = False) -> _sched.SliceTrial:
    return _sched.SliceTrial(
        peak_bytes=trial.peak_bytes,
        slices=trial.slices,
        seconds=trial.seconds,
        seconds_without=trial.seconds_without,
        meets_budget=meets_budget,
    )
