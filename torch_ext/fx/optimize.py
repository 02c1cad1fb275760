"""Graph modules and exported programs in an order of lower peak memory, verified by running."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import fx
from torch.export import ExportedProgram

from torch_ext.amounts import amount
from torch_ext.arguments import (
    ALL_LEVERS,
    GRAPH_LEVERS,
    MemoryAmount,
    Planning,
    flag,
    planning,
    without,
)
from torch_ext.fx.choice import best_of, why_failed
from torch_ext.fx.graphs import (
    Baseline,
    Graphs,
    checked_arguments,
    graph_module_of,
    measured,
    state_of,
    with_own_state,
)
from torch_ext.fx.parting import where_above
from torch_ext.fx.planned import edited, edited_module, own_inputs, plan, timed
from torch_ext.fx.probe import storages_of, tensors_of
from torch_ext.fx.program import labelled_program_of
from torch_ext.fx.repeat import with_repeats
from torch_ext.fx.repeats import told
from torch_ext.fx.slice_trials import SliceTrials, Tried
from torch_ext.fx.slices import Slicer, at_random
from torch_ext.fx.timing import UnknownOpError
from torch_ext.logs import is_disabled
from torch_ext.program import repeats
from torch_ext.program.plan import (
    LeverPlan,
    LeverUse,
    Reason,
    joined,
    left_out,
    plan_graph,
    plan_repeats,
)
from torch_ext.program.program import Program
from torch_ext.reporting.report import (
    ProgramReport,
    Verification,
    described,
    held_to,
    in_original_order,
    kept_original,
)

_QUESTION_BYTES = 2**13  # what the question about threads takes (same_threads.py), and more
# Fields of a report that tell of levers that were tried as well.
_OF_LEVERS = (
    "levers",
    "slice_trials",
    "floor_bytes",
    "call_seconds",
    "extra_seconds",
    "extra_seconds_bound",
    "op_seconds",
)
AnyGraphs = TypeVar("AnyGraphs", fx.GraphModule, ExportedProgram)


@dataclasses.dataclass(frozen=True)
class GraphReport(ProgramReport):
    """What was found out about a graph. Peaks are bytes of activations.

    Compared are results, inputs, state and random state.
    """


def reorder(
    program: AnyGraphs,
    example_inputs: Sequence[Any] | torch.Tensor,
    *,
    scope: str = "all",
    time_budget: float = 2.0,
    memory_budget: MemoryAmount | None = None,
    levers: Iterable[str] | None = None,
    op_seconds: Mapping[str, float] | None = None,
    verify: bool = True,
) -> tuple[AnyGraphs, GraphReport]:
    """Return the program, edited so that its peak of memory is lower, and a report.

    `program`: an fx.GraphModule of ATen ops (from make_fx, export or aot_autograd), or an
    ExportedProgram, whose `.module()` then runs in the new order, also after saving and loading.
    The result shares parameters and buffers with it; neither it nor the inputs nor the random
    state are changed. `example_inputs`: the arguments, by position. With `verify` both versions run
    and must be equal bit for bit, with a measured peak that is lower and not below the bound;
    otherwise the original comes back and `report.reason` says why. Other arguments as of
    torch_ext.optimize; `levers` has "repeat", too: with a memory budget that is not met otherwise
    some ops run again, as in training_step, or stretches of ops run part by part, whichever costs
    less; `op_seconds`, of a report, are used for that instead of measured ones. All runs without
    gradients.

    A program that overwrites is for calls without gradients, in which torch may raise, and outside
    of autocast. So without `levers` it is only done where no parameter requires gradients; what is
    left out, and why, stands in `report.levers`.

    Raises ValueError for inputs that do not fit or other bad arguments, and whatever the program
    raises when it runs.
    """
    wanted = planning(scope, time_budget, memory_budget, levers, GRAPH_LEVERS, op_seconds)
    verify = flag(verify, "verify")
    given = checked_arguments(program, example_inputs)
    if why := _why_left_alone():
        return program, _unplanned(program, given, why, wanted.memory_budget)
    wanted, unwanted = _allowed(program, wanted, is_asked=levers is not None)
    baseline = Baseline(program, given)
    plain = _reordered(baseline, without(wanted, "slice", "repeat"), verify)
    if plain.program is program and plain.is_edited:  # an order alone may still be good
        unwanted = {"overwrite": plain.report.reason}
        wanted = without(wanted, "overwrite")
        plain = _reordered(baseline, without(wanted, "slice", "repeat"), verify)
    best = _best(baseline, wanted, verify, plain) if plain.found.graph.ops else plain
    return cast(AnyGraphs, best.program), _with_given_up(best.report, unwanted)


def _best(baseline: Baseline, wanted: Planning, verify: bool, plain: "_Reordered") -> "_Reordered":
    best, found = best_of(
        wanted,
        plain,
        lambda: _tried(_with_repeats, "repeat", baseline, wanted, verify, plain),
        lambda: _tried(_with_slices, "slice", baseline, without(wanted, "repeat"), verify, plain),
    )
    fields = described(found, best.report.reasons)
    report = dataclasses.replace(best.report, **{name: fields[name] for name in _OF_LEVERS})
    return dataclasses.replace(best, found=found, report=report)


def _tried(
    lever: Callable[..., "_Reordered"],
    name: str,
    baseline: Baseline,
    wanted: Planning,
    verify: bool,
    plain: "_Reordered",
) -> "_Reordered":
    """Use the lever, or return the plain program with why it failed."""
    try:
        return lever(baseline, wanted, verify, plain)
    except UnknownOpError:
        raise
    except Exception as error:
        why = why_failed(f"{name}s", error)
        return dataclasses.replace(plain, found=left_out(plain.found, name, why))


@dataclasses.dataclass(frozen=True)
class _Reordered:
    program: Graphs
    found: LeverPlan
    report: GraphReport
    is_edited: bool  # whether edits beside the order were tried


def _reordered(baseline: Baseline, wanted: Planning, verify: bool) -> _Reordered:
    program, given = baseline.program, baseline.given
    with torch.no_grad():
        planned = plan(program, graph_module_of(program), given, wanted)
        found, reasons = planned.found, planned.reasons
        result = program if reasons else edited(program, planned)
        is_edited = bool(found.overwrites or found.hoists)
        if not verify:
            return _Reordered(result, found, _report(program, given, found, reasons), is_edited)
        before_bytes = after_bytes = baseline.peak_bytes
        difference = ""
        if not reasons:
            difference, after_bytes = baseline.compared(result)
            reasons = _why_unverified(difference, before_bytes, after_bytes)
    held, refuted = held_to(found.plan, (before_bytes, after_bytes))
    found = dataclasses.replace(found, plan=held)
    if refuted:
        reasons = reasons + refuted if difference else refuted
    if reasons:
        found = kept_original(found, wanted.memory_budget)
    report = _report(
        program,
        given,
        found,
        reasons,
        measured_original_peak_bytes=before_bytes,
        measured_peak_bytes=before_bytes if reasons else after_bytes,
        identical=not difference,
    )
    return _Reordered(program if reasons else result, found, report, is_edited)


def _with_repeats(
    baseline: Baseline, wanted: Planning, verify: bool, plain: _Reordered
) -> _Reordered:
    """Run ops again where that meets the budget; return the plain program, and why, if not."""
    if untouched := repeats.not_needed(plain.found, wanted.memory_budget):
        return dataclasses.replace(plain, found=untouched)
    program, given = baseline.program, baseline.given
    module = graph_module_of(program)
    with torch.no_grad():
        probe, uses = timed(program, module, given, wanted)
        names = {op.name for op in probe.ops}
        order = [name for name in plain.found.plan.order if name in names]
        chosen = plan_repeats(labelled_program_of(probe, uses), order, wanted)
        if chosen.peak_bytes >= plain.found.plan.peak_bytes:
            return dataclasses.replace(plain, found=repeats.given_up(plain.found, chosen))
        again = with_repeats(module, probe, chosen.runs)
        planned = plan(program, again, given, without(wanted, "slice", "repeat"))
        result = edited(program, planned)
        peak_bytes = planned.found.plan.peak_bytes
        difference, measured_bytes = baseline.compared(result) if verify else ("", peak_bytes)
    _, refuted = held_to(planned.found.plan, (measured_bytes,))
    why = f"{difference} differs" if difference else joined(refuted)
    if not why and peak_bytes >= plain.found.plan.peak_bytes:
        why = "repeats do not lower the peak"
    if not why and measured_bytes > _most_bytes(peak_bytes):
        with torch.no_grad():
            own = with_own_state(graph_module_of(result))
            where = where_above(own, own_inputs(program, given), planned.found)
        taken = f"planned to take {amount(peak_bytes)} and takes {amount(measured_bytes)}"
        why = f"the program with repeats was {taken}; {where}"
    if why:
        return dataclasses.replace(plain, found=repeats.given_up(plain.found, chosen, why))
    found = told(plain.found, planned.found, chosen)
    report = _report(
        program,
        given,
        found,
        (),
        measured_original_peak_bytes=baseline.peak_bytes if verify else None,
        measured_peak_bytes=measured_bytes if verify else None,
        identical=True if verify else None,
    )
    return _Reordered(result, found, report, is_edited=True)


def _most_bytes(planned_bytes: int) -> int:
    """What a program that was planned to take so much may take."""
    return int(1.01 * planned_bytes) + _QUESTION_BYTES


def _with_slices(
    baseline: Baseline, wanted: Planning, verify: bool, plain: _Reordered
) -> _Reordered:
    """Cut stretches into parts; return the plain program, and why, if it is better not to."""
    program, given = baseline.program, baseline.given

    def inputs() -> list[Any]:
        return own_inputs(program, given)

    def attempt(module: fx.GraphModule) -> Tried | None:
        planned = plan(program, module, given, without(wanted, "slice"))
        if planned.found.plan.peak_bytes >= plain.report.peak_bytes:
            return None
        sliced = edited(program, planned)
        if not verify:
            return Tried(sliced, planned.found)
        difference, peak_bytes = baseline.compared(sliced)
        _, refuted = held_to(planned.found.plan, (peak_bytes,))
        most_bytes = min(_most_bytes(planned.found.plan.peak_bytes), baseline.peak_bytes)
        if difference or refuted or peak_bytes > most_bytes:
            return None
        if not baseline.is_same_elsewhere(sliced, at_random(given)):
            return None
        seconds = baseline.seconds(plain.program, sliced)
        return Tried(sliced, planned.found, peak_bytes, seconds)

    with torch.no_grad():
        ordering = without(wanted, "overwrite", "slice")
        ordered = plan(program, graph_module_of(program), given, ordering)
        slicer = Slicer(edited_module(ordered, asks=False), inputs)
        trials = SliceTrials(slicer, plain.found, wanted, attempt)
        best = trials.best()
    if best is None:
        return dataclasses.replace(plain, found=trials.told_of_none())
    report = _report(
        program,
        given,
        best.found,
        (),
        measured_original_peak_bytes=baseline.peak_bytes if verify else None,
        measured_peak_bytes=best.measured_peak_bytes,
        identical=True if verify else None,
    )
    return _Reordered(best.program, best.found, report, is_edited=True)


def analyze(
    program: fx.GraphModule | ExportedProgram,
    example_inputs: Sequence[Any] | torch.Tensor,
    *,
    scope: str = "all",
    time_budget: float = 2.0,
    levers: Iterable[str] | None = None,
) -> GraphReport:
    """Report what reorder could gain. Changes nothing and measures only the original."""
    wanted = planning(scope, time_budget, levers=levers, offered=ALL_LEVERS)
    given = checked_arguments(program, example_inputs)
    if why := _why_left_alone():
        return _unplanned(program, given, why, None)
    wanted, unwanted = _allowed(program, wanted, is_asked=levers is not None)
    with torch.no_grad():
        planned = plan(program, graph_module_of(program), given, without(wanted, "slice"))
        found, reasons = planned.found, planned.reasons
        peak_bytes = Baseline(program, given).peak_bytes
    held, refuted = held_to(found.plan, (peak_bytes,))
    found = dataclasses.replace(found, plan=held)
    if refuted:
        reasons, found = refuted, kept_original(found, None)
    if "slice" in wanted.levers:
        untried = LeverUse.left_out("slice", held.peak_bytes, Reason.of("not_tried").text)
        found = dataclasses.replace(found, levers=(*found.levers, untried))
    report = _report(program, given, found, reasons, measured_original_peak_bytes=peak_bytes)
    return _with_given_up(report, unwanted)


def verify(
    program: Graphs, original: Graphs, example_inputs: Sequence[Any] | torch.Tensor
) -> Verification:
    """Compare a program that reorder edited with the original, on this machine.

    Slices give the same bits where kernels are chosen as on the machine that made them, so check
    after loading a file somewhere else: an exported program does not hold its original. Raises
    ValueError for inputs that do not fit, and whatever the programs raise.
    """
    given = checked_arguments(original, example_inputs)
    checked_arguments(program, example_inputs)
    with torch.no_grad():
        baseline = Baseline(original, given)
        difference, peak_bytes = baseline.compared(program)
        return Verification(difference, baseline.peak_bytes, peak_bytes)


def _allowed(program: Graphs, wanted: Planning, is_asked: bool) -> tuple[Planning, dict[str, str]]:
    """What of it may be done, and why levers are left out."""
    edits = [lever for lever in wanted.levers if lever in ("overwrite", "slice")]
    why = _why_not_edited(program, is_asked) if edits else ""
    return (without(wanted, *edits), dict.fromkeys(edits, why)) if why else (wanted, {})


def _why_not_edited(program: Graphs, is_asked: bool) -> str:
    """Why ops may not write in place, or not unasked; empty if they may."""
    if isinstance(program, ExportedProgram) and program.dialect != "TRAINING":
        return (
            "torch allows no ops that write in place in a program that was decomposed: reorder it "
            "before run_decompositions, or reorder its module()"
        )
    if not is_asked and any(tensor.requires_grad for tensor in tensors_of(state_of(program))):
        return (
            "parameters require gradients, and a program that writes in place is for calls "
            'without: ask for it by levers=["order", "overwrite"]'
        )
    return ""


def _with_given_up(report: GraphReport, unwanted: dict[str, str]) -> GraphReport:
    """What is known of levers that were left out."""
    uses = [LeverUse.left_out(name, report.peak_bytes, why) for name, why in unwanted.items()]
    return dataclasses.replace(report, levers=(*report.levers, *uses))


# --- reporting ------------------------------------------------------------------------------------


def _report(
    program: Graphs,
    given: tuple[Any, ...],
    found: LeverPlan,
    reasons: Sequence[Reason],
    *,
    measured_original_peak_bytes: int | None = None,
    measured_peak_bytes: int | None = None,
    identical: bool | None = None,
) -> GraphReport:
    return GraphReport(
        **described(found, reasons),
        measured_original_peak_bytes=measured_original_peak_bytes,
        measured_peak_bytes=measured_peak_bytes,
        identical=identical,
        threads=torch.get_num_threads(),
        parameter_bytes=sum(storages_of(state_of(program)).values()),
        input_bytes=sum(storages_of(given).values()),
    )


def _unplanned(
    program: Graphs, given: tuple[Any, ...], why: str, memory_budget: int | None
) -> GraphReport:
    """What is known of a program that nobody planned is what it takes."""
    nothing = Program((), ())
    with torch.no_grad():
        _, peak_bytes = measured(program, given)
    found = dataclasses.replace(
        plan_graph(nothing.to_graph(), planning("all", 0.0)), original_peak_bytes=peak_bytes
    )
    return _report(
        program,
        given,
        LeverPlan.of_original(nothing, in_original_order(found, nothing, memory_budget)),
        (Reason.of("left_alone", detail=why),),
        measured_original_peak_bytes=peak_bytes,
        measured_peak_bytes=peak_bytes,
    )


def _why_left_alone() -> str:
    """Empty if a program may be planned."""
    if is_disabled():
        return "TORCH_EXT_DISABLE is set in the environment"
    if torch.is_autocast_enabled("cpu"):
        return (
            "autocast is enabled, and its casts are no part of the graph: leave torch.autocast for "
            "this call"
        )
    return ""


def _why_unverified(difference: str, before_bytes: int, after_bytes: int) -> tuple[Reason, ...]:
    """Empty if the program that was made is as good as planned."""
    if difference:
        return (Reason.of("differs", detail=f"{difference} differs"),)
    if after_bytes > before_bytes:
        return (Reason.of("rises", size_bytes=before_bytes, other_bytes=after_bytes),)
    if after_bytes == before_bytes:
        return (Reason.of("does_not_fall", size_bytes=before_bytes),)
    return ()
