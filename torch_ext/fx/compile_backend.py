"""The backend "torch_ext" of torch.compile: ATen's own kernels, in an order of lower peak memory.

    torch.compile(model, backend="torch_ext")

Forward and backward are planned as one program: what the forward pass saves is alive until the op
of the backward pass that needs it last. The compiler has the types of values and not the values,
so sizes come from types and scratch memory from running each kind of op once (fx/estimate.py).
Nothing is verified by running: as in the pass for TorchScript, only what the rules of
csrc/program/hazards.h allow is moved, only for a gain, and after any error the graph stays as it
is. Ops write over arguments by the table of csrc/program/operators, each entry of which is tested;
torch runs both graphs without gradients.

Both graphs free their inputs as they use them up, which the planner counts on.

With a memory budget, or the lever "slice", graphs without gradients run stretches of ops part by
part, or some ops again. That is tried, and verified, in the first call (fx/first_call.py). With a
memory budget, and gradients, the backward pass runs ops of the forward pass again, so that less is
saved: the planner chooses them on the joint graph, by times of ops run alone, and torch splits it.

Environment: `TORCH_EXT_DISABLE=1` leaves every graph in its order; `TORCH_EXT_LOG=info` logs the
peak and the bound of each through the logger "torch_ext".
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import default_partition
from torch.fx.graph import _BoxedCodeGen

from torch_ext.arguments import GRAPH_LEVERS, Planning, planning, without
from torch_ext.fx.apply import copied
from torch_ext.fx.choice import why_failed
from torch_ext.fx.estimate import estimate_probe
from torch_ext.fx.first_call import EditedAtFirstCall, has_symbolic_inputs
from torch_ext.fx.joint import make_alike, mark_arrival, place_of_arrival
from torch_ext.fx.overwritable import Overwritable, find_overwritable
from torch_ext.fx.planned import Planned, edited_module
from torch_ext.fx.probe import Probe
from torch_ext.fx.program import labelled_program_of
from torch_ext.fx.repeat import with_repeats
from torch_ext.fx.repeats import told
from torch_ext.logs import Peaks, is_disabled, set_up_logging
from torch_ext.program.plan import LeverPlan, plan_program, plan_repeats
from torch_ext.program.repeats import not_needed, why_missed

_PLAIN = "torch_ext_plain"  # in the meta of a backward pass: the same without overwrites
_TRIED = ("slice", "repeat")  # levers that graphs without gradients try by running
MIB = 2**20
_log = logging.getLogger("torch_ext")

Partition = tuple[fx.GraphModule, fx.GraphModule]


def backend(
    module: fx.GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile for torch.compile.

    `options`: "time_budget" in seconds, "memory_budget", "levers" (names), as of
    torch_ext.optimize. Raises ValueError for other options and values.
    """
    set_up_logging()
    options = dict(options or {})
    given = {name: options.pop(name, None) for name in ("memory_budget", "levers")}
    wanted = planning("all", options.pop("time_budget", 2.0), **given, offered=GRAPH_LEVERS)
    if options:
        raise ValueError(
            f"the backend torch_ext has no option '{next(iter(options))}'; it has 'levers', "
            "'memory_budget' and 'time_budget'"
        )
    places = [
        place for place, one in enumerate(example_inputs) if isinstance(one, torch.nn.Parameter)
    ]
    compile_with = aot_autograd(
        fw_compiler=_boxed,
        bw_compiler=_compile_backward,
        inference_compiler=functools.partial(_compile_inference, wanted),
        partition_fn=functools.partial(
            _partition, without(wanted, "slice"), len(example_inputs), places
        ),
        keep_inference_input_mutations=True,
    )
    return compile_with(module, example_inputs)


def _compile_inference(
    wanted: Planning, module: fx.GraphModule, _: Sequence[Any]
) -> Callable[..., Any]:
    def compile_graph(graph: fx.GraphModule, *, edits: bool) -> Callable[..., Any]:
        if edits:
            _edit(graph, without(wanted, *_TRIED))
        return _boxed(graph, _)

    if not has_symbolic_inputs(module) and any(lever in wanted.levers for lever in _TRIED):
        return EditedAtFirstCall(module, wanted, compile_graph)
    return compile_graph(module, edits=True)


def _compile_backward(module: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
    """Under an autocast that the forward pass did not have, results may not be written over.

    They are of another dtype then than they were planned with.
    """
    run = _boxed(module, _)
    if _PLAIN not in module.meta:
        return run
    run_plain = _boxed(module.meta[_PLAIN], _)

    def choose(inputs: list[Any]) -> Any:
        return (run_plain if torch.is_autocast_enabled("cpu") else run)(inputs)

    choose._boxed_call = True  # type: ignore[attr-defined]
    return choose


def _partition(
    wanted: Planning,
    inputs: int,
    parameters: Sequence[int],
    joint: fx.GraphModule,
    joint_inputs: Any,
    **options: Any,
) -> Partition:
    """Order the joint graph, then split it where it was to be split anyway.

    torch splits it by the tags of its nodes and keeps their order. `parameters`: which of the
    `inputs` of the module that was traced are parameters.
    """

    def split(module: fx.GraphModule) -> Partition:
        halves: Partition = default_partition(module, joint_inputs, **options)
        return halves

    lasting = parameters if len(joint_inputs[0]) == inputs else ()
    original = fx.GraphModule(joint, copied(joint.graph))
    planned = _edit(joint, wanted, lasting)
    try:
        halves = split(joint)
        if planned is None or not planned.found.overwrites:
            return halves
        plain = fx.GraphModule(original, copied(original.graph))
        _make(plain, _without_overwrites(planned))
        others = split(plain)
        if _inputs(others[1]) != _inputs(halves[1]):
            return others
        halves[1].meta[_PLAIN] = others[1]
        return halves
    except Exception as error:  # so it cannot be split as it was edited
        _log.warning("a graph keeps its order: %s: %s", type(error).__name__, error)
        return split(original)


def _inputs(module: fx.GraphModule) -> list[str]:
    return [node.name for node in module.graph.find_nodes(op="placeholder")]


def _boxed(module: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
    """The graph as a function of one list, which it empties: so its inputs can be freed."""
    module.graph.set_codegen(_BoxedCodeGen())
    module.recompile()
    forward = module.forward

    def run(inputs: list[Any]) -> Any:
        return forward(inputs)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


# --- editing --------------------------------------------------------------------------------------


def _edit(module: fx.GraphModule, wanted: Planning, lasting: Sequence[int] = ()) -> Planned | None:
    """Edit the graph so that its peak is lower, if that can be; else leave it.

    `lasting`: as of mark_arrival. Returns what was made, if anything.
    """
    if is_disabled():
        return None
    try:
        draft = fx.GraphModule(module, copied(module.graph))
        mark_arrival(draft.graph, lasting)
        planned = _planned(draft, without(wanted, "repeat"))
        found, repeats = planned.found, ""
        if "repeat" in wanted.levers and not not_needed(found, wanted.memory_budget):
            try:
                planned, found, repeats = _with_repeats(planned, wanted)
            except Exception as error:
                repeats = why_failed("repeats", error)
        is_lower = found.plan.peak_bytes < found.plan.original_peak_bytes
        if is_lower:
            _make(module, planned)
    except Exception as error:
        _log.warning("a graph keeps its order: %s: %s", type(error).__name__, error)
        return None
    _log.info(
        "a graph of %d ops: %.2f MiB, was %.2f, bound %.2f (%s)%s",
        found.plan.ops,
        found.plan.peak_bytes / MIB,
        found.plan.original_peak_bytes / MIB,
        found.plan.lower_bound_bytes / MIB,
        found.plan.status,
        repeats and f"; {repeats}",
        extra={"peaks": Peaks.of(found.plan)},
    )
    return planned if is_lower else None


def _make(module: fx.GraphModule, planned: Planned) -> None:
    make_alike(module, edited_module(planned, asks=False).graph)


def _without_overwrites(planned: Planned) -> Planned:
    return dataclasses.replace(planned, found=dataclasses.replace(planned.found, overwrites=()))


def _planned(module: fx.GraphModule, wanted: Planning) -> Planned:
    probe = estimate_probe(module)
    uses = _own(probe, find_overwritable(probe)) if "overwrite" in wanted.levers else []
    return Planned(module, probe, uses, plan_program(labelled_program_of(probe, uses), wanted), ())


def _with_repeats(plain: Planned, wanted: Planning) -> tuple[Planned, LeverPlan, str]:
    """Run ops again where that helps to meet the budget.

    Returns what to make, its plan as one of the original graph, and what there is to say of it.
    """
    if any("recompute" in node.meta for node in plain.module.graph.nodes):
        return plain, plain.found, "torch.utils.checkpoint has chosen what runs again"
    probe = estimate_probe(plain.module, timed=True)
    chosen = plan_repeats(labelled_program_of(probe, plain.uses), plain.found.plan.order, wanted)
    if chosen.peak_bytes >= plain.found.plan.peak_bytes:
        return plain, plain.found, why_missed(chosen, chosen.peak_bytes).text
    repeated = with_repeats(plain.module, probe, chosen.runs)
    again = _planned(repeated, without(wanted, "repeat"))
    if again.found.plan.peak_bytes >= plain.found.plan.peak_bytes:
        return plain, plain.found, "repeats do not lower the peak"
    found = told(plain.found, again.found, chosen)
    extra = 100 * chosen.extra_nanoseconds / chosen.nanoseconds
    said = f"{len(found.repeats)} ops run again, for {extra:.1f} % of the time of all"
    return again, found, "; ".join(filter(None, (said, found.levers[-1].reason)))


def _own(probe: Probe, uses: Sequence[Overwritable]) -> list[Overwritable]:
    """Those by which no backward pass overwrites what it was given.

    The gradients are the caller's, and what the forward pass has saved may be needed again, by
    `backward(retain_graph=True)`.
    """
    arrival = place_of_arrival([op.node.target for op in probe.ops])
    given = {storage for op in probe.ops[: arrival + 1] for storage in op.made}
    return [use for use in uses if use.op <= arrival or use.argument not in given]
