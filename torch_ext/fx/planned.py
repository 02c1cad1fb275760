"""From a graph of torch.fx to its plan, and to the program that was planned."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from torch_ext.arguments import Planning
from torch_ext.fx.apply import apply, copied
from torch_ext.fx.copyable import find_copyable
from torch_ext.fx.graphs import Graphs, deepcopy, flat_inputs, with_own_state
from torch_ext.fx.overwritable import Overwritable, can_be_required, find_overwritable
from torch_ext.fx.probe import Probe, run_probe
from torch_ext.fx.program import labelled_program_of
from torch_ext.fx.stretch import inline_parts
from torch_ext.fx.timing import add_times
from torch_ext.program.plan import LeverPlan, Reason, plan_and_explain


@dataclasses.dataclass(frozen=True)
class Planned:
    """A graph, and what is planned for it."""

    module: fx.GraphModule
    probe: Probe  # of its nodes
    uses: Sequence[Overwritable]
    found: LeverPlan
    reasons: tuple[Reason, ...]  # why nothing is gained


def plan(
    program: Graphs, module: fx.GraphModule, given: tuple[Any, ...], wanted: Planning
) -> Planned:
    """Probe and plan the graph, which is that of the program or a sliced one."""
    with torch.random.fork_rng(devices=[]):
        probe = run_probe(with_own_state(module), own_inputs(program, given))
    is_edited = "overwrite" in wanted.levers
    uses = find_overwritable(probe) if is_edited else []
    uses = [use for use in uses if can_be_required(probe, use)]
    copies = find_copyable(probe) if is_edited else []
    found, reasons = plan_and_explain(labelled_program_of(probe, uses, copies), wanted)
    nodes = {node.name: node for node in module.graph.nodes}
    return Planned(module, probe.on(nodes), uses, found, reasons)


def timed(
    program: Graphs, module: fx.GraphModule, given: tuple[Any, ...], wanted: Planning
) -> tuple[Probe, Sequence[Overwritable]]:
    """Probe the graph and time its ops; return what may be overwritten, too. As of plan."""
    own = with_own_state(module)
    with torch.random.fork_rng(devices=[]):
        probe = run_probe(own, own_inputs(program, given))
        add_times(probe, own, lambda: own_inputs(program, given), wanted.op_seconds)
    uses = find_overwritable(probe) if "overwrite" in wanted.levers else []
    return probe, [use for use in uses if can_be_required(probe, use)]


def own_inputs(program: Graphs, given: tuple[Any, ...]) -> list[Any]:
    """Return what the placeholders of a run stand for: copies, where the run may write to them."""
    owner = with_own_state(program) if isinstance(program, ExportedProgram) else program
    return flat_inputs(owner, deepcopy(given, given))


def edited(program: Graphs, planned: Planned) -> Graphs:
    """Return the program as planned. It raises for tensors that look unlike those of the probe
    where its edits depend on that.
    """
    result = edited_module(planned, asks=True)
    if isinstance(program, ExportedProgram):
        updated: Graphs = program._update(result, copy.deepcopy(program.graph_signature))
        return updated
    return result


def edited_module(planned: Planned, *, asks: bool) -> fx.GraphModule:
    """Return the graph as planned."""
    module = planned.module
    result = fx.GraphModule(module, copied(module.graph), type(module).__name__)
    result.meta.update(module.meta)
    result.train(module.training)
    nodes = {node.name: node for node in result.graph.nodes}
    apply(result, planned.probe.on(nodes), planned.uses, planned.found, asks=asks)
    inline_parts(result, asks=asks)
    return result
