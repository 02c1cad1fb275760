"""Graph modules and exported programs in an order of lower peak memory, verified by running."""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from torch_ext._native import _jit
from torch_ext.arguments import (
    MemoryAmount,
    Planning,
    flag,
    misfit,
    planning,
    without_overwrites,
)
from torch_ext.fx.apply import apply, copied
from torch_ext.fx.copyable import find_copyable
from torch_ext.fx.effects import is_barrier, written_arguments
from torch_ext.fx.overwritable import Overwritable, can_be_required, find_overwritable
from torch_ext.fx.probe import Probe, run_probe, storages_of, tensors_of
from torch_ext.fx.program import labelled_program_of
from torch_ext.logs import is_disabled
from torch_ext.memory.meter import measure_peak, no_collections
from torch_ext.program.plan import LeverPlan, LeverUse, Reason, plan_and_explain, plan_graph
from torch_ext.program.program import Program
from torch_ext.reporting.report import (
    ProgramReport,
    described,
    held_to,
    in_original_order,
    kept_original,
)
from torch_ext.tensors.compare import first_difference

Graphs = fx.GraphModule | ExportedProgram
AnyGraphs = TypeVar("AnyGraphs", fx.GraphModule, ExportedProgram)
_Copied = TypeVar("_Copied")


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
    verify: bool = True,
) -> tuple[AnyGraphs, GraphReport]:
    """Return the program, edited so that its peak of memory is lower, and a report.

    `program`: an fx.GraphModule of ATen ops (from make_fx, export or aot_autograd), or an
    ExportedProgram, whose `.module()` then runs in the new order, also after saving and loading.
    The result shares parameters and buffers with it; neither it nor the inputs nor the random
    state are changed. `example_inputs`: the arguments, by position. With `verify` both versions run
    and must be equal bit for bit, with a measured peak that is lower and not below the bound;
    otherwise the original comes back and `report.reason` says why. Other arguments as of
    torch_ext.optimize. All runs without gradients.

    A program that overwrites is for calls without gradients, in which torch may raise, and outside
    of autocast. So without `levers` it is only done where no parameter requires gradients; what is
    left out, and why, stands in `report.levers`.

    Raises ValueError for inputs that do not fit or other bad arguments, and whatever the program
    raises when it runs.
    """
    wanted = planning(scope, time_budget, memory_budget, levers)
    verify = flag(verify, "verify")
    given = _arguments(program, example_inputs)
    wanted, why = _allowed(program, wanted, is_asked=levers is not None)
    edited, report, is_edited = _reorder(program, given, wanted, verify)
    if edited is program and is_edited:  # an order alone may still be good
        why = report.reason
        wanted = without_overwrites(wanted)
        edited, report, _ = _reorder(program, given, wanted, verify)
    return edited, _with_given_up(report, why)


def _reorder(
    program: AnyGraphs, given: tuple[Any, ...], wanted: Planning, verify: bool
) -> tuple[AnyGraphs, GraphReport, bool]:
    """Also, whether edits beside the order were tried."""
    with torch.no_grad():
        if why := _why_left_alone():
            return program, _unplanned(program, given, why, wanted.memory_budget), False
        probe, uses, found, reasons = _plan(program, given, wanted)
        reordered = program
        if not reasons:
            reordered = cast(AnyGraphs, _edited(program, probe, uses, found))
        is_edited = bool(found.overwrites or found.hoists)
        if not verify:
            return reordered, _report(program, given, found, reasons), is_edited
        expected, before_bytes = _measured(program, given)
        after_bytes, difference = before_bytes, ""
        if not reasons:
            actual, after_bytes = _measured(reordered, given)
            difference = first_difference(expected, actual)
            reasons = _why_unverified(difference, before_bytes, after_bytes)
    plan, refuted = held_to(found.plan, (before_bytes, after_bytes))
    found = dataclasses.replace(found, plan=plan)
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
    return (program if reasons else reordered), report, is_edited


def analyze(
    program: fx.GraphModule | ExportedProgram,
    example_inputs: Sequence[Any] | torch.Tensor,
    *,
    scope: str = "all",
    time_budget: float = 2.0,
    levers: Iterable[str] | None = None,
) -> GraphReport:
    """Report what reorder could gain. Changes nothing and measures only the original."""
    wanted = planning(scope, time_budget, levers=levers)
    given = _arguments(program, example_inputs)
    wanted, unwanted = _allowed(program, wanted, is_asked=levers is not None)
    with torch.no_grad():
        if why := _why_left_alone():
            return _unplanned(program, given, why, None)
        _, _, found, reasons = _plan(program, given, wanted)
        _, peak_bytes = _measured(program, given)
    plan, refuted = held_to(found.plan, (peak_bytes,))
    found = dataclasses.replace(found, plan=plan)
    if refuted:
        reasons, found = refuted, kept_original(found, None)
    report = _report(program, given, found, reasons, measured_original_peak_bytes=peak_bytes)
    return _with_given_up(report, unwanted)


def _allowed(program: Graphs, wanted: Planning, is_asked: bool) -> tuple[Planning, str]:
    """What of it may be done, and why not all of it."""
    why = _why_not_overwritten(program, wanted, is_asked)
    return (without_overwrites(wanted) if why else wanted), why


def _why_not_overwritten(program: Graphs, wanted: Planning, is_asked: bool) -> str:
    """Why the lever is not used, or not unasked; empty if it is."""
    if "overwrite" not in wanted.levers:
        return ""
    if isinstance(program, ExportedProgram) and program.dialect != "TRAINING":
        return (
            "torch allows no ops that write in place in a program that was decomposed: reorder it "
            "before run_decompositions, or reorder its module()"
        )
    if not is_asked and any(tensor.requires_grad for tensor in tensors_of(_state(program))):
        return (
            "parameters require gradients, and a program that overwrites is for calls without: "
            'ask for it by levers=["order", "overwrite"]'
        )
    return ""


def _with_given_up(report: GraphReport, why: str) -> GraphReport:
    if not why:
        return report
    use = LeverUse("overwrite", report.peak_bytes, report.peak_bytes, 0, 0.0, why)
    return dataclasses.replace(report, levers=(*report.levers, use))


# --- both kinds of programs -----------------------------------------------------------------------


def _graph_module(program: Graphs) -> fx.GraphModule:
    return program.graph_module if isinstance(program, ExportedProgram) else program


def _state(program: Graphs) -> dict[str, Any]:
    if isinstance(program, ExportedProgram):
        return {**program.state_dict, **program.constants}
    names = [str(node.target) for node in program.graph.nodes if node.op == "get_attr"]
    values = {name: _attribute(program, name) for name in names}
    return {n: v.state_dict() if isinstance(v, nn.Module) else v for n, v in values.items()}


def _attribute(module: fx.GraphModule, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _user_inputs(program: Graphs) -> list[fx.Node]:
    """The placeholders of what the caller gives."""
    nodes = [n for n in _graph_module(program).graph.nodes if n.op == "placeholder"]
    if isinstance(program, fx.GraphModule):
        return nodes
    specs = program.graph_signature.input_specs
    return [n for n, s in zip(nodes, specs, strict=True) if s.kind == InputKind.USER_INPUT]


def _leaves(program: Graphs, given: Sequence[Any]) -> list[Any]:
    """What the caller gives, as it comes to these placeholders."""
    if isinstance(program, fx.GraphModule):
        return list(program.graph.process_inputs(*given))
    return pytree.tree_leaves(tuple(given))


def _flat_inputs(program: Graphs, given: Sequence[Any]) -> list[Any]:
    """What the placeholders stand for."""
    if isinstance(program, fx.GraphModule):
        return _leaves(program, given)
    leaves = iter(_leaves(program, given))
    state = _state(program)
    flat = []
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            flat.append(next(leaves))
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            flat.append(state[str(spec.target)])
        elif spec.kind == InputKind.TOKEN:  # only its place in a chain of effects matters
            flat.append(torch.empty(0))
        else:
            raise ValueError(f"input '{spec.arg.name}' is a {spec.kind.name}: not supported")
    return flat


def _copied(program: Graphs) -> Graphs:
    """With state of its own, if the program may write to it; running it must change nothing."""
    module = _graph_module(program)
    writes = any(
        is_barrier(node) or any(True for _ in written_arguments(node))
        for node in module.graph.nodes
        if node.op.startswith("call_")
    )
    if isinstance(program, ExportedProgram):
        signature = program.graph_signature  # `.module()` writes what the graph only returns
        writes |= bool(signature.buffers_to_mutate or signature.user_inputs_to_mutate)
    return _deepcopy(program, _state(program)) if writes else program


def _deepcopy(value: _Copied, tensors: Any) -> _Copied:
    """A deep copy of a value that holds the tensors: torch itself cannot copy all kinds of them."""
    rare = [tensor for tensor in tensors_of(tensors) if _is_rare(tensor)]
    copies = zip(map(id, rare), _jit.copied(rare), strict=True)
    return copy.deepcopy(value, dict(copies))


def _is_rare(tensor: torch.Tensor) -> bool:
    if type(tensor) is not torch.Tensor:
        return False
    is_strided = tensor.layout is torch.strided and not tensor.is_nested
    is_as_stored = not tensor.is_conj() and not tensor.is_neg()
    return not (is_strided and is_as_stored and _jit.has_stand_in(tensor.dtype))


def _runnable(program: Graphs) -> Callable[..., Any]:
    if isinstance(program, fx.GraphModule):
        return program
    module: Callable[..., Any] = program.module()
    return module


def _edited(
    program: Graphs, probe: Probe, uses: Sequence[Overwritable], found: LeverPlan
) -> Graphs:
    module = _graph_module(program)
    result = fx.GraphModule(module, copied(module.graph), type(module).__name__)
    result.meta.update(module.meta)
    result.train(module.training)
    nodes = {node.name: node for node in result.graph.nodes}
    apply(result, probe.on(nodes), uses, found, asks=True)
    if isinstance(program, ExportedProgram):
        updated: ExportedProgram = program._update(result, copy.deepcopy(program.graph_signature))
        return updated
    return result


# --- running --------------------------------------------------------------------------------------


def _arguments(program: Graphs, example_inputs: Sequence[Any] | torch.Tensor) -> tuple[Any, ...]:
    """Those of a call. Raises ValueError if the program is none, or does not take them."""
    if not isinstance(program, fx.GraphModule | ExportedProgram):
        kind = type(program).__name__
        raise ValueError(f"program must be an fx.GraphModule or an ExportedProgram, not {kind}")
    given = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs
    if not isinstance(given, tuple | list):
        raise ValueError(f"example_inputs must be a tuple of arguments, not {type(given).__name__}")
    wrong = _misfit(program, tuple(given))
    if wrong:
        raise ValueError(f"example_inputs do not fit the program, {wrong}")
    return tuple(given)


def _misfit(program: Graphs, given: tuple[Any, ...]) -> str:
    """What the program takes, if that is something else; else empty."""
    nodes = _user_inputs(program)
    if isinstance(program, ExportedProgram):
        args, kwargs = pytree.tree_unflatten(nodes, program.call_spec.in_spec)
        if kwargs:
            return f"which takes {kwargs} by name: export it with all by position"
        if _paths(args) != _paths(given):
            return f"which takes {args}"
    elif wrong := misfit(program.forward, given):
        return wrong
    values = _leaves(program, given)
    if len(values) != len(nodes):
        return f"which takes {len(nodes)} values, {nodes}: there are {len(values)}"
    for node, value in zip(nodes, values, strict=True):
        takes_tensor = isinstance(node.meta.get("val"), torch.Tensor)
        if takes_tensor and not isinstance(value, torch.Tensor):
            return (
                f"which takes a tensor as {node.name}: it is a value of type {type(value).__name__}"
            )
    return ""


def _paths(arguments: tuple[Any, ...]) -> set[str]:
    """Where values stand in nested ones."""
    return {pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(arguments)[0]}


def _plan(
    program: Graphs, given: tuple[Any, ...], wanted: Planning
) -> tuple[Probe, list[Overwritable], LeverPlan, tuple[Reason, ...]]:
    """The probe's nodes are those of the program."""
    with torch.random.fork_rng(devices=[]):
        scratch = _copied(program)
        module = _graph_module(scratch)
        probe = run_probe(module, _flat_inputs(scratch, _deepcopy(given, given)))
    is_edited = "overwrite" in wanted.levers
    uses = find_overwritable(probe) if is_edited else []
    uses = [use for use in uses if can_be_required(probe, use)]
    copies = find_copyable(probe) if is_edited else []
    found, reasons = plan_and_explain(labelled_program_of(probe, uses, copies), wanted)
    nodes = {node.name: node for node in _graph_module(program).graph.nodes}
    return probe.on(nodes), uses, found, reasons


def _measured(program: Graphs, given: tuple[Any, ...]) -> tuple[dict[str, Any], int]:
    """All that a run leaves behind, and its peak; on copies, after a first run."""
    with torch.random.fork_rng(devices=[]):
        _runnable(_copied(program))(*_deepcopy(given, given))
    with torch.random.fork_rng(devices=[]), no_collections():
        scratch = _copied(program)
        run, inputs = _runnable(scratch), _deepcopy(given, given)
        with measure_peak() as memory:
            result = run(*inputs)
        left = {
            "a result": result,
            "an input": inputs,
            "the state": _state(scratch),
            "the random state": torch.get_rng_state(),
        }
    return left, memory.peak_bytes


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
        parameter_bytes=sum(storages_of(_state(program)).values()),
        input_bytes=sum(storages_of(given).values()),
    )


def _unplanned(
    program: Graphs, given: tuple[Any, ...], why: str, memory_budget: int | None
) -> GraphReport:
    """What is known of a program that nobody planned is what it takes."""
    nothing = Program((), ())
    _, peak_bytes = _measured(program, given)
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
