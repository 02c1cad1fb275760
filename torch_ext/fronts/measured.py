"""Fronts of programs: those of less memory, run beside the program."""

import copy
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from torch_ext.arguments import ALL_LEVERS, planning, without
from torch_ext.fx.optimize import reorder
from torch_ext.fx.turns import seconds_in_turns
from torch_ext.reporting.front import Front, FrontPoint, OtherWay, points_of_trials, unbeaten
from torch_ext.reporting.report import ProgramReport
from torch_ext.torchscript.optimize import optimize

Program = torch.nn.Module | ExportedProgram


def measured_front(
    program: Program, example_inputs: Any, time_budget: float, levers: Iterable[str] | None
) -> Front:
    """Return the front of a program, as torch_ext.front."""
    start = time.perf_counter()
    wanted = planning(
        "all", time_budget, None, ALL_LEVERS if levers is None else levers, offered=ALL_LEVERS
    )
    given = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs
    if not isinstance(given, tuple):
        raise ValueError(
            f"example_inputs must be a tuple of arguments, not {type(example_inputs).__name__}"
        )
    free = without(wanted, "slice").levers
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
    reason = report.reason
    if "slice" in wanted.levers:
        _, sliced = _edited(program, given, time_budget, wanted.levers)
        points += points_of_trials(sliced.slice_trials, free)
        floor_bytes = sliced.floor_bytes
        reason = next((use.reason for use in sliced.levers if use.name == "slice"), reason)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        runs = _copied(plain), _copied(program)
        plain_seconds, seconds = seconds_in_turns(runs, lambda: copy.deepcopy(given))
    original_bytes = report.measured_original_peak_bytes or report.original_peak_bytes
    return Front(
        points=unbeaten(points),
        others=(OtherWay("as written", original_bytes, seconds / plain_seconds, ""),),
        call_seconds=plain_seconds,
        floor_bytes=floor_bytes,
        reason=reason,
        threads=torch.get_num_threads(),
        seconds=time.perf_counter() - start,
    )


def _edited(
    program: Program, given: tuple[Any, ...], time_budget: float, levers: Iterable[str]
) -> tuple[Program, ProgramReport]:
    if isinstance(program, fx.GraphModule):
        return reorder(program, given, time_budget=time_budget, levers=levers)
    if isinstance(program, ExportedProgram):
        return reorder(program, given, time_budget=time_budget, levers=levers)
    return optimize(program, given, time_budget=time_budget, levers=levers)


def _copied(program: Program) -> Callable[..., Any]:
    """What can be called without a change of the program's state."""
    callee = program.module() if isinstance(program, ExportedProgram) else program
    copied: Callable[..., Any] = copy.deepcopy(callee)
    return copied
