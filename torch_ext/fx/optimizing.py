"""Graph modules and exported programs in an order of lower peak memory, verified by running."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from torch_ext.comparing import first_difference
from torch_ext.fx.hazards import is_barrier, written_arguments
from torch_ext.fx.labelling import labelled
from torch_ext.fx.ordering import apply_order
from torch_ext.fx.probing import Probe, run_probe, tensors_of
from torch_ext.labels import LabelledGraph
from torch_ext.logs import is_disabled
from torch_ext.measuring import measure_peak, no_collections
from torch_ext.planning import Plan, plan
from torch_ext.reports import ProgramReport, described, held_to, in_original_order

Graphs = fx.GraphModule | ExportedProgram
Program = TypeVar("Program", fx.GraphModule, ExportedProgram)


@dataclasses.dataclass(frozen=True)
class GraphReport(ProgramReport):
    """What was found out about a graph. Peaks are bytes of activations.

    Compared are results, inputs, state and random state.
    """


def reorder(
    program: Program,
    example_inputs: Sequence[Any] | torch.Tensor,
    *,
    scope: str = "all",
    time_budget: float = 2.0,
    memory_budget: int | None = None,
    verify: bool = True,
) -> tuple[Program, GraphReport]:
    """Return the program with its operations in an order of lower peak memory, and a report.

    `program`: an fx.GraphModule of ATen ops (from make_fx, export or aot_autograd), or an
    ExportedProgram, whose `.module()` then runs in the new order, also after saving and loading.
    The result shares parameters and buffers with it; neither it nor the inputs nor the random
    state are changed. `example_inputs`: the arguments, by position. With `verify` both versions run
    and must be equal bit for bit, with a measured peak that is lower and not below the bound;
    otherwise the original comes back and `report.reason` says why. Other arguments as of
    torch_ext.optimize. All runs without gradients.

    Raises ValueError for inputs that do not fit, and whatever the program raises when it runs.
    """
    given = _arguments(example_inputs)
    with torch.no_grad():
        if why := _why_left_alone():
            return program, _unplanned(program, given, why, memory_budget)
        probe, graph, found = _plan(program, given, scope, time_budget, memory_budget)
        reason, reordered = _why_no_gain(found), program
        if not reason:
            reordered = cast(Program, _reordered(program, probe, found.order))
        if not verify:
            return reordered, _report(program, given, graph, found, reason=reason)
        expected, before_bytes = _measured(program, given)
        after_bytes, difference = before_bytes, ""
        if not reason:
            actual, after_bytes = _measured(reordered, given)
            difference = first_difference(expected, actual)
            if difference:
                reason = f"verification failed: {difference} differs"
            elif after_bytes >= before_bytes:
                falls = f"{before_bytes} bytes, then {after_bytes}"
                reason = f"the allocator's peak does not fall: {falls}"
    found, refuted = held_to(found, (before_bytes, after_bytes))
    if refuted:
        reason = f"{reason}; {refuted}" if difference else refuted
    if reason:
        found = in_original_order(found, graph, memory_budget)
    report = _report(
        program,
        given,
        graph,
        found,
        reason=reason,
        measured_original_peak_bytes=before_bytes,
        measured_peak_bytes=before_bytes if reason else after_bytes,
        identical=not difference,
    )
    return (program if reason else reordered), report


def analyze(
    program: fx.GraphModule | ExportedProgram,
    example_inputs: Sequence[Any] | torch.Tensor,
    *,
    scope: str = "all",
    time_budget: float = 2.0,
) -> GraphReport:
    """Report what reorder could gain. Changes nothing and measures only the original."""
    given = _arguments(example_inputs)
    with torch.no_grad():
        if why := _why_left_alone():
            return _unplanned(program, given, why, None)
        _, graph, found = _plan(program, given, scope, time_budget, None)
        _, peak_bytes = _measured(program, given)
    reason = _why_no_gain(found)
    found, refuted = held_to(found, (peak_bytes,))
    if refuted:
        reason, found = refuted, in_original_order(found, graph, None)
    return _report(
        program, given, graph, found, reason=reason, measured_original_peak_bytes=peak_bytes
    )


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


def _flat_inputs(program: Graphs, given: Sequence[Any]) -> list[Any]:
    """What the placeholders stand for."""
    if isinstance(program, fx.GraphModule):
        return list(program.graph.process_inputs(*given))
    leaves = iter(pytree.tree_leaves((tuple(given), {})))
    state = _state(program)
    flat = []
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            flat.append(next(leaves, None))
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
    return copy.deepcopy(program) if writes else program


def _runnable(program: Graphs) -> Callable[..., Any]:
    if isinstance(program, fx.GraphModule):
        return program
    module: Callable[..., Any] = program.module()
    return module


def _reordered(program: Graphs, probe: Probe, order: Sequence[str]) -> Graphs:
    module = _graph_module(program)
    result = fx.GraphModule(module, copy.deepcopy(module.graph), type(module).__name__)
    result.meta.update(module.meta)
    result.train(module.training)
    nodes = {node.name: node for node in result.graph.nodes}
    apply_order(result, _on(probe, nodes), order)
    if isinstance(program, ExportedProgram):
        updated: ExportedProgram = program._update(result, copy.deepcopy(program.graph_signature))
        return updated
    return result


def _on(probe: Probe, nodes: dict[str, fx.Node]) -> Probe:
    """The same probe for a copy of the graph."""
    ops = [
        dataclasses.replace(
            op, node=nodes[op.node.name], behind=[nodes[node.name] for node in op.behind]
        )
        for op in probe.ops
    ]
    return dataclasses.replace(probe, first=[nodes[n.name] for n in probe.first], ops=ops)


# --- running --------------------------------------------------------------------------------------


def _arguments(example_inputs: Sequence[Any] | torch.Tensor) -> tuple[Any, ...]:
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs)
    raise ValueError(
        f"example_inputs must be a tuple of arguments, not {type(example_inputs).__name__}"
    )


def _plan(
    program: Graphs,
    given: tuple[Any, ...],
    scope: str,
    time_budget: float,
    memory_budget: int | None,
) -> tuple[Probe, LabelledGraph, Plan]:
    """The probe's nodes are those of the program."""
    with torch.random.fork_rng(devices=[]):
        scratch = _copied(program)
        module = _graph_module(scratch)
        probe = run_probe(module, _flat_inputs(scratch, copy.deepcopy(given)))
    graph = labelled(probe)
    found = plan(
        graph.to_graph(), time_budget=time_budget, memory_budget=memory_budget, scope=scope
    )
    nodes = {node.name: node for node in _graph_module(program).graph.nodes}
    return _on(probe, nodes), graph, found


def _measured(program: Graphs, given: tuple[Any, ...]) -> tuple[dict[str, Any], int]:
    """All that a run leaves behind, and its peak; on copies, after a first run."""
    with torch.random.fork_rng(devices=[]):
        _runnable(_copied(program))(*copy.deepcopy(given))
    with torch.random.fork_rng(devices=[]), no_collections():
        scratch = _copied(program)
        run, inputs = _runnable(scratch), copy.deepcopy(given)
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
    graph: LabelledGraph,
    found: Plan,
    *,
    reason: str = "",
    measured_original_peak_bytes: int | None = None,
    measured_peak_bytes: int | None = None,
    identical: bool | None = None,
) -> GraphReport:
    return GraphReport(
        **described(graph, found),
        measured_original_peak_bytes=measured_original_peak_bytes,
        measured_peak_bytes=measured_peak_bytes,
        identical=identical,
        threads=torch.get_num_threads(),
        parameter_bytes=_storage_bytes(_state(program)),
        input_bytes=_storage_bytes(given),
        reason=reason,
    )


def _storage_bytes(value: Any) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors_of(value)}
    return sum(storage.nbytes() for storage in storages.values())


def _unplanned(
    program: Graphs, given: tuple[Any, ...], why: str, memory_budget: int | None
) -> GraphReport:
    """What is known of a program that nobody planned is what it takes."""
    nothing = LabelledGraph((), ())
    _, peak_bytes = _measured(program, given)
    found = dataclasses.replace(plan(nothing.to_graph()), original_peak_bytes=peak_bytes)
    return _report(
        program,
        given,
        nothing,
        in_original_order(found, nothing, memory_budget),
        reason=why,
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


def _why_no_gain(found: Plan) -> str:
    """Empty if the order lowers the peak."""
    if found.peak_bytes < found.original_peak_bytes:
        return ""
    if found.status == "optimal" and found.bottleneck is not None:
        return f"order gains nothing: no order runs {found.bottleneck.op} with less"
    return "no better order was found within the budget"
