"""From a plan of ops back to the nodes of an FX graph."""

import copy
import itertools
from collections.abc import Mapping, Sequence

from torch import fx

from torch_ext._sched import OverwritingForm
from torch_ext.fx.copyable import hoist
from torch_ext.fx.overwritable import Overwritable, overwrite, require_looks, shaped_arguments
from torch_ext.fx.probe import Probe, buffer_name
from torch_ext.program.plan import LeverPlan


def apply(
    module: fx.GraphModule,
    probe: Probe,
    uses: Sequence[Overwritable],
    found: LeverPlan,
    *,
    asks: bool,
) -> None:
    """Edit the graph as planned. `probe` is of it; `uses` are those that were planned with.

    `asks`: the graph raises for tensors of other strides and dtypes where it overwrites them.
    """
    chosen = chosen_of(probe, uses, found)
    copies = hoist(module, found.hoists)
    apply_order(module, probe, found.plan.order, copies)
    if asks:
        for copy_node in copies.values():
            require_looks(copy_node, copy_node.all_input_nodes, probe)
        for node, form in chosen:
            require_looks(node, shaped_arguments(node, form), probe)
    for node, form in chosen:
        overwrite(node, form)
    module.graph.lint()
    module.recompile()


def chosen_of(
    probe: Probe, uses: Sequence[Overwritable], found: LeverPlan
) -> list[tuple[fx.Node, OverwritingForm]]:
    """The nodes that the plan lets overwrite, and how."""
    chosen = {(done.op, done.argument) for done in found.overwrites}
    return [
        (probe.ops[use.op].node, use.form)
        for use in uses
        if (probe.ops[use.op].name, buffer_name(use.argument)) in chosen
    ]


def apply_order(
    module: fx.GraphModule,
    probe: Probe,
    order: Sequence[str],
    copies: Mapping[str, fx.Node] | None = None,
) -> None:
    """Put the nodes into the given order of ops and compile the graph anew.

    `copies`: nodes that are not of the probe, by their names in the order.
    """
    nodes = {op.name: op.nodes for op in probe.ops}
    nodes |= {name: [node] for name, node in (copies or {}).items()}
    arrange([*probe.first, *(node for name in order for node in nodes[name])])
    module.graph.lint()
    module.recompile()


def copied(graph: fx.Graph) -> fx.Graph:
    """A copy with the names of the original: torch's own renames what is called like a builtin."""
    copy_of = copy.deepcopy(graph)
    for node, twin in zip(graph.nodes, copy_of.nodes, strict=True):
        twin.name = node.name
    return copy_of


def arrange(nodes: Sequence[fx.Node]) -> None:
    """Put the nodes of a graph one behind the other, as they come, from the first on."""
    for previous, node in itertools.pairwise(nodes):
        if previous.next is not node:
            previous.append(node)
