"""Fronts of programs: those of less memory, run beside the program."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from torch_ext.arguments import GRAPH_LEVERS, Planning, planning, without
from torch_ext.fx.optimize import reorder
from torch_ext.fx.turns import seconds_in_turns
from torch_ext.reporting.front import Front, FrontPoint, OtherWay, points_of_trials, unbeaten
from torch_ext.reporting.report import ProgramReport
from torch_ext.torchscript.optimize import optimize

Program = torch.nn.Module | ExportedProgram
_BUDGETS = 4  # for which ops run again


def measured_front(
    program: Program, example_inputs: Any, time_budget: float, levers: Iterable[str] | None
) -> Front:
    """Return the front of a program, as torch_ext.front."""
    start = time.perf_counter()
    chosen = GRAPH_LEVERS if levers is None else levers
    wanted = planning("all", time_budget, None, chosen, offered=GRAPH_LEVERS)
    given = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs
    if not isinstance(given, tuple):
        raise ValueError(
            f"example_inputs must be a tuple of arguments, not {type(example_inputs).__name__}"
        )
    free = without(wanted, "slice", "repeat").levers
    plain, report = _edited(program, given, time_budget, free)
    points = [
        FrontPoint(
            peak_bytes=report.peak_bytes,
            measured_peak_bytes=report.measured_peak_bytes,
            extra_seconds=0.0,
            extra_seconds_bound=None,
            time_ratio=1.0,
            levers=free,
            edits=report.levers[-1].edits if report.levers else 0,
        )
    ]
    floor_bytes: int | None = report.lower_bound_bytes
    reasons = [report.reason]
    if "repeat" in wanted.levers:
        repeated = list(_repeated(program, given, without(wanted, "slice"), report.peak_bytes))
        points += [
            _point(plain, one, found, given, is_proven="slice" not in wanted.levers)
            for one, found in repeated
            if found.repeats
        ]
        floor_bytes = repeated[0][1].floor_bytes
        reasons = [use.reason for use in repeated[0][1].levers if use.name == "repeat"]
    if "slice" in wanted.levers:
        _, sliced = _edited(program, given, time_budget, without(wanted, "repeat").levers)
        points += points_of_trials(sliced.slice_trials, free)
        floor_bytes = sliced.floor_bytes  # which holds with repeats, too
        reasons = [use.reason for use in sliced.levers if use.name == "slice"]
    plain_seconds, seconds = _seconds(plain, program, given)
    original_bytes = report.measured_original_peak_bytes or report.original_peak_bytes
    return Front(
        points=unbeaten(points),
        others=(OtherWay("as written", original_bytes, seconds / plain_seconds, ""),),
        call_seconds=plain_seconds,
        floor_bytes=floor_bytes,
        reason=next(filter(None, reasons), ""),
        threads=torch.get_num_threads(),
        seconds=time.perf_counter() - start,
    )


def _repeated(
    program: Program, given: tuple[Any, ...], wanted: Planning, peak_bytes: int
) -> Iterator[tuple[Program, ProgramReport]]:
    """The lowest program that is found, and those between it and the peak without repeats.

    All are planned with the same times of ops.
    """

    def within(memory_budget: int, op_seconds: Mapping[str, float] | None) -> Any:
        return _edited(
            *(program, given, wanted.time_budget, wanted.levers),
            memory_budget=memory_budget,
            op_seconds=op_seconds,
        )

    lowest, report = within(0, None)
    yield lowest, report
    step = (peak_bytes - report.peak_bytes) // _BUDGETS
    for number in range(1, _BUDGETS if step else 1):
        yield within(report.peak_bytes + number * step, report.op_seconds)


def _point(
    plain: Program, one: Program, report: ProgramReport, given: tuple[Any, ...], *, is_proven: bool
) -> FrontPoint:
    seconds, own_seconds = _seconds(plain, one, given)
    return FrontPoint(
        peak_bytes=report.peak_bytes,
        measured_peak_bytes=report.measured_peak_bytes,
        extra_seconds=report.extra_seconds or 0.0,
        extra_seconds_bound=report.extra_seconds_bound if is_proven else None,
        time_ratio=own_seconds / seconds,
        levers=tuple(use.name for use in report.levers),
        edits=len(report.repeats),
    )


def _edited(
    program: Program,
    given: tuple[Any, ...],
    time_budget: float,
    levers: Iterable[str],
    **asked: Any,
) -> tuple[Program, ProgramReport]:
    if isinstance(program, fx.GraphModule):
        return reorder(program, given, time_budget=time_budget, levers=levers, **asked)
    if isinstance(program, ExportedProgram):
        return reorder(program, given, time_budget=time_budget, levers=levers, **asked)
    return optimize(program, given, time_budget=time_budget, levers=levers, **asked)


def _seconds(a: Program, b: Program, given: tuple[Any, ...]) -> tuple[float, float]:
    """Of a call of each, in turns."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return seconds_in_turns((_copied(a), _copied(b)), lambda: list(copy.deepcopy(given)))


def _copied(program: Program) -> Callable[..., Any]:
    """What can be called without a change of the program's state."""
    callee = program.module() if isinstance(program, ExportedProgram) else program
    copied: Callable[..., Any] = copy.deepcopy(callee)
    return copied
