"""Runs ops of a graph again: the edit of the lever repeat (csrc/program/levers/repeat.h)."""

import operator
from collections.abc import Sequence
from typing import cast

from torch import fx

from torch_ext.fx.apply import arrange, copied
from torch_ext.fx.effects import without_statistics
from torch_ext.fx.probe import REPEAT, Probe
from torch_ext.fx.program import is_apart_again


def with_repeats(module: fx.GraphModule, probe: Probe, runs: Sequence[str]) -> fx.GraphModule:
    """Return a copy of the module that runs its ops as `runs` names them, some more than once.

    `probe` is of the module. A node reads what the latest run of another has made.
    """
    result = fx.GraphModule(module, copied(module.graph), type(module).__name__)
    result.meta.update(module.meta)
    result.train(module.training)
    graph = result.graph
    nodes = {node.name: node for node in graph.nodes}
    own = probe.on(nodes)
    ops = {op.node.name: op for op in own.ops}
    apart = {op.node.name for op in probe.ops if is_apart_again(probe, op)}
    counts = dict.fromkeys(ops, 0)
    latest: dict[fx.Node, fx.Node] = {}  # the node that stands for one of the original
    arguments = {node: (node.args, node.kwargs) for node in graph.nodes}

    def read_latest(node: fx.Node, original: fx.Node) -> None:
        node.args, node.kwargs = fx.node.map_arg(
            arguments[original], lambda used: latest.get(used, used)
        )

    placed = list(own.first)
    end = graph.output_node()
    for name in runs:
        counts[name] += 1
        for original in ops[name].nodes:
            if counts[name] > 1 and name in apart and _is_statistic(original):
                continue  # of the first run
            node = original
            if counts[name] > 1:
                with graph.inserting_before(end):
                    node = graph.node_copy(original)
                node.meta[REPEAT] = (original.name, counts[name])
            read_latest(node, original)
            if counts[name] > 1 and original is ops[name].node and name in apart:
                (node.target, node.kwargs), node.args = without_statistics(node), ()
            latest[original] = node
            placed.append(node)
    read_latest(end, end)
    arrange([*placed, end])
    graph.lint()
    result.recompile()
    return result


def _is_statistic(node: fx.Node) -> bool:
    """Is it an item that the norm has not when it runs without statistics?"""
    if node.target is not operator.getitem:
        return False
    norm, place = node.args
    target, _ = without_statistics(cast(fx.Node, norm))
    return cast(int, place) >= len(target._schema.returns)
