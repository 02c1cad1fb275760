"""From an order of ops back to the nodes of an FX graph."""

import itertools
from collections.abc import Sequence

from torch import fx

from torch_ext.fx.probe import Probe


def apply_order(module: fx.GraphModule, probe: Probe, order: Sequence[str]) -> None:
    """Put the nodes into the given order of ops and compile the graph anew."""
    ops = {op.node.name: op for op in probe.ops}
    arrange([*probe.first, *(node for name in order for node in ops[name].nodes)])
    module.graph.lint()
    module.recompile()


def arrange(nodes: Sequence[fx.Node]) -> None:
    """Put the nodes of a graph one behind the other, as they come, from the first on."""
    for previous, node in itertools.pairwise(nodes):
        if previous.next is not node:
            previous.append(node)
