"""Joint graphs of forward and backward pass, as AOTAutograd traces them, and the place between."""

import operator
from collections.abc import Collection, Sequence

import torch
from torch import fx
from torch.fx.node import map_arg

from torch_ext.fx.again import Again, Snapshot
from torch_ext.fx.apply import arrange
from torch_ext.fx.arrival import Arrival
from torch_ext.fx.builder import fake_mode_of
from torch_ext.fx.probe import REPEAT

_TAG = "partitioner_tag"  # by which torch knows the pass of a node


def mark_arrival(graph: fx.Graph, lasting: Sequence[int]) -> None:
    """Let the gradients of the results arrive between forward and backward pass.

    In a joint graph they are inputs from the start. Ops of the forward pass that torch has put
    behind the backward pass (updates of buffers) run before it. `lasting`: the places of inputs
    that are parameters.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    arriving = [node for node in inputs if _is_gradient(node)]
    if not arriving:
        return
    given = [node for node in inputs if not _is_gradient(node)]
    ops = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    forward = [node for node in ops if node.meta.get(_TAG) == "is_forward"]
    last = (forward or inputs)[-1]
    for node in ops:
        if node.meta.get(_TAG) == "must_be_in_forward":
            last.append(node)
            last = node
    names = {given[place].name for place in lasting if place < len(given)}
    names |= {node.name for node in ops if node.op == "get_attr"}
    with graph.inserting_after(last):
        arrival = graph.call_function(Arrival(frozenset(names)), tuple(arriving))
    last = arrival
    for index, node in enumerate(arriving):
        with graph.inserting_after(last):
            last = graph.call_function(operator.getitem, (arrival, index))
        node.replace_all_uses_with(last, delete_user_cb=lambda user: user is not arrival)


def make_alike(module: fx.GraphModule, marked: fx.Graph) -> None:
    """Edit the graph of a module like a marked copy that was edited, all but the mark.

    Nodes keep their identity: torch holds some.
    """
    graph = module.graph
    twin = {node.name: node for node in graph.nodes}
    arrival = next((node for node in marked.nodes if isinstance(node.target, Arrival)), None)
    gradients = [] if arrival is None else arrival.all_input_nodes
    twin_of: dict[fx.Node, fx.Node] = {}
    order: list[fx.Node] = []
    again: list[fx.Node] = []
    is_behind = False
    for node in marked.nodes:
        if node is arrival:
            is_behind = True
            continue
        if arrival is not None and arrival in node.all_input_nodes:
            twin_of[node] = twin[gradients[node.args[1]].name]
            continue
        own = twin.get(node.name)
        if own is None:
            with graph.inserting_before(graph.output_node()):
                own = graph.node_copy(node, lambda used: twin_of[used])
            if arrival is not None:  # torch splits the graph behind the last node of that tag
                own.meta[_TAG] = "is_backward" if is_behind else "is_forward"
        if is_behind:  # torch takes what writes in place for the forward pass's without that
            own.meta.setdefault(_TAG, "is_backward")
        own.target = node.target
        own.args = map_arg(node.args, lambda used: twin_of[used])
        own.kwargs = map_arg(node.kwargs, lambda used: twin_of[used])
        twin_of[node] = own
        order.append(own)
        if is_behind and REPEAT in own.meta and isinstance(own.target, torch._ops.OpOverload):
            again.append(own)
    arrange(order)
    if again:
        _under_the_same_modes(graph, again)
    graph.lint()
    module.recompile()


def _under_the_same_modes(graph: fx.Graph, again: Sequence[fx.Node]) -> None:
    """Run ops behind the arrival under the modes of the forward pass."""
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        snapshot = graph.call_function(Snapshot())
    snapshot.meta[_TAG] = "is_forward"
    fake_mode = fake_mode_of(graph.nodes)
    assert fake_mode is not None, "a graph of a compiler has types"
    with fake_mode:
        snapshot.meta["val"] = torch.empty((), dtype=torch.int64)
    for node in again:
        assert isinstance(node.target, torch._ops.OpOverload)
        node.target, node.args = Again(node.target), (snapshot, *node.args)


def place_of_arrival(targets: Collection[object]) -> int:
    """Return the place among the targets of ops; -1 in a graph that is no joint one."""
    places = (place for place, target in enumerate(targets) if isinstance(target, Arrival))
    return next(places, -1)


def _is_gradient(placeholder: fx.Node) -> bool:
    return "tangents" in placeholder.name  # torch's partitioners go by the name, too
