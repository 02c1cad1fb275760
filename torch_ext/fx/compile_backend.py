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
part. These are cut, and verified, in the first call (fx/first_call.py).

Environment: `TORCH_EXT_DISABLE=1` leaves every graph in its order; `TORCH_EXT_LOG=info` logs the
peak and the bound of each through the logger "torch_ext".
"""

import functools
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import default_partition
from torch.fx.graph import _BoxedCodeGen

from torch_ext.arguments import ALL_LEVERS, Planning, planning, without
from torch_ext.fx.apply import apply_order, arrange, chosen_of, copied
from torch_ext.fx.estimate import estimate_probe
from torch_ext.fx.first_call import CutAtFirstCall, has_symbolic_inputs
from torch_ext.fx.overwritable import Overwritable, find_overwritable, overwrite
from torch_ext.fx.probe import Probe
from torch_ext.fx.program import program_of
from torch_ext.logs import Peaks, is_disabled, set_up_logging
from torch_ext.program.plan import plan_program

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
    wanted = planning("all", options.pop("time_budget", 2.0), **given, offered=ALL_LEVERS)
    if options:
        raise ValueError(
            f"the backend torch_ext has no option '{next(iter(options))}'; it has 'levers', "
            "'memory_budget' and 'time_budget'"
        )
    compile_with = aot_autograd(
        fw_compiler=_boxed,
        bw_compiler=_boxed,
        inference_compiler=functools.partial(_compile_inference, wanted),
        partition_fn=functools.partial(_partition, without(wanted, "slice")),
        keep_inference_input_mutations=True,
    )
    return compile_with(module, example_inputs)


def _compile_inference(
    wanted: Planning, module: fx.GraphModule, _: Sequence[Any]
) -> Callable[..., Any]:
    def compile_graph(graph: fx.GraphModule, *, edits: bool) -> Callable[..., Any]:
        if edits:
            _edit(graph, without(wanted, "slice"))
        return _boxed(graph, _)

    if "slice" in wanted.levers and not has_symbolic_inputs(module):
        return CutAtFirstCall(module, wanted, compile_graph)
    return compile_graph(module, edits=True)


def _partition(
    wanted: Planning, joint: fx.GraphModule, joint_inputs: Any, **options: Any
) -> Partition:
    """Order the joint graph, then split it where it was to be split anyway.

    torch splits it by the tags of its nodes and keeps their order.
    """
    _edit(joint, wanted)
    halves: Partition = default_partition(joint, joint_inputs, **options)
    return halves


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


def _edit(module: fx.GraphModule, wanted: Planning) -> None:
    """Edit the graph so that its peak is lower, if that can be; else leave it."""
    if is_disabled():
        return
    try:
        draft = fx.GraphModule(module, copied(module.graph))
        _mark_boundary(draft.graph)
        probe = estimate_probe(draft)
        uses = _own(probe, find_overwritable(probe)) if "overwrite" in wanted.levers else []
        planned = plan_program(program_of(probe, uses), wanted)
        found = planned.plan
        if found.peak_bytes < found.original_peak_bytes:
            nodes = {node.name: node for node in module.graph.nodes}
            chosen = chosen_of(probe, uses, planned)
            apply_order(draft, probe, found.order)
            arrange([nodes[node.name] for node in draft.graph.nodes if node.name in nodes])
            for node, form in chosen:
                overwrite(nodes[node.name], form)
            module.graph.lint()
            module.recompile()
    except Exception as error:
        _log.warning("a graph keeps its order: %s: %s", type(error).__name__, error)
        return
    _log.info(
        "a graph of %d ops: %.2f MiB, was %.2f, bound %.2f (%s)",
        found.ops,
        found.peak_bytes / MIB,
        found.original_peak_bytes / MIB,
        found.lower_bound_bytes / MIB,
        found.status,
        extra={"peaks": Peaks.of(found)},
    )


def _own(probe: Probe, uses: Sequence[Overwritable]) -> list[Overwritable]:
    """Those by which no backward pass overwrites what it was given.

    The gradients are the caller's, and what the forward pass has saved may be needed again, by
    `backward(retain_graph=True)`.
    """
    calls = [op.node.target for op in probe.ops]
    arrival = calls.index(_arrive) if _arrive in calls else -1
    given = {storage for op in probe.ops[: arrival + 1] for storage in op.made}
    return [use for use in uses if use.op <= arrival or use.argument not in given]


def _mark_boundary(graph: fx.Graph) -> None:
    """Let the gradients of the results arrive between forward and backward.

    In a joint graph they are inputs from the start. Nothing may pass the place where they arrive:
    user code runs there, and draws random numbers or changes parameters. Ops of the forward pass
    that torch has put behind the backward pass (updates of buffers) run before it.
    """
    arriving = [node for node in graph.nodes if node.op == "placeholder" and _is_gradient(node)]
    if not arriving:
        return
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    ops = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    forward = [node for node in ops if node.meta.get("partitioner_tag") == "is_forward"]
    last = (forward or placeholders)[-1]
    for node in ops:
        if node.meta.get("partitioner_tag") == "must_be_in_forward":
            last.append(node)
            last = node
    with graph.inserting_after(last):
        arrival = graph.call_function(_arrive, tuple(arriving))
    last = arrival
    for index, node in enumerate(arriving):
        with graph.inserting_after(last):
            last = graph.call_function(operator.getitem, (arrival, index))
        node.replace_all_uses_with(last, delete_user_cb=lambda user: user is not arrival)


def _is_gradient(placeholder: fx.Node) -> bool:
    return "tangents" in placeholder.name  # torch's partitioners go by the name, too


def _arrive(*gradients: torch.Tensor) -> list[torch.Tensor]:
    return [torch.empty_like(gradient) for gradient in gradients]
