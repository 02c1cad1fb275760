"""Edits that gain nothing themselves, and let more ops run in parts. They keep all bits.

- A view that is what it is a view of (a shape and back, an alias): its readers read that instead.
- What is left of several results, where only the first is read, by the operator that has no others
  and runs the same kernel: graphs of torch.compile have pools with indices, norms with statistics.
  Not so attention, which would choose its kernel anew in every call.
- The negative log likelihood of all rows reads one number of each row, and sums them up. It is
  given those numbers alone, which are picked before (`gather`), so that rows need not be whole at
  once. The sum is by the same kernel over the same numbers in the same order, as if there were one
  class. How many rows count, which the gradient divides by, is found out apart, from the targets
  alone; and so are the ones that a backward pass begins with. Then a loss's gradient does not wait
  for the loss, and logits, loss and their gradient are made row by row.
"""

import operator
from typing import Any, cast

import torch
from torch import fx

from torch_ext.fx.builder import Builder, fake_mode_of
from torch_ext.fx.effects import arguments_of, has_side_effect, schema_of
from torch_ext.fx.probe import Look, Probe

ORIGIN = "torch_ext_origin"  # in `meta` of new nodes: the name of the one that they stand for

_aten = torch.ops.aten
_SUMMED = (1, 2)  # reductions: mean, sum
_IGNORED = -1  # no class


def loosen(graph: fx.Graph, probe: Probe) -> bool:
    """Edit the graph, which the probe is of, with its nodes apart; no op may be a barrier.

    Returns whether anything has changed.
    """
    before = list(graph.nodes)
    _skip_views(graph, probe)
    build = Builder(graph, fake_mode_of(graph.nodes))
    first_alone = [node for node in graph.nodes if _is_first_alone(node, probe)]
    for node in first_alone:
        _make_first_alone(node, build)
    for node in graph.find_nodes(op="call_function", target=_aten.nll_loss_forward.default):
        if _can_be_picked(node, probe):
            _pick(node, probe, build)
    graph.lint()
    return list(graph.nodes) != before


def _skip_views(graph: fx.Graph, probe: Probe) -> None:
    made = {storage for op in probe.ops for storage in op.made}
    views = {op.node for op in probe.ops if not op.made and _is_pure(op.node)}
    first: dict[Look, fx.Node] = {}
    kept = set(graph.output_node().all_input_nodes)
    for node in graph.nodes:
        look = probe.looks.get(node)
        if look is None or not (look.is_alone and look.fills_it and look.storage in made):
            continue
        if node in views:
            original = first.setdefault(look, node)
            if original is not node and node not in kept:
                node.replace_all_uses_with(original)
        else:
            first[look] = node  # what is read later is what it has changed
    for node in reversed(graph.nodes):
        if node in views and not node.users:
            graph.erase_node(node)


def _is_pure(node: fx.Node) -> bool:
    schema = schema_of(node)
    return schema is not None and not schema.is_mutable and not has_side_effect(node)


def _pool(given: dict[str, Any]) -> tuple[Any, list[Any]]:
    return _aten.max_pool2d.default, list(given.values())


def _batch_norm(given: dict[str, Any]) -> tuple[Any, list[Any]]:
    *tensors, momentum, eps = (value for name, value in given.items() if name != "training")
    return _aten.batch_norm.default, [*tensors, False, momentum, eps, False]


def _layer_norm(given: dict[str, Any]) -> tuple[Any, list[Any]]:
    return _aten.layer_norm.default, [*given.values(), False]


def _group_norm(given: dict[str, Any]) -> tuple[Any, list[Any]]:
    names = ("input", "group", "weight", "bias", "eps")
    return _aten.group_norm.default, [*(given[name] for name in names), False]


# To the operator that makes the first result alone, and what it is called with.
_OF_FIRST = {
    _aten.max_pool2d_with_indices.default: _pool,
    _aten.native_batch_norm.default: _batch_norm,
    _aten._native_batch_norm_legit_no_training.default: _batch_norm,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_group_norm.default: _group_norm,
}


def _is_first_alone(node: fx.Node, probe: Probe) -> bool:
    if node.target not in _OF_FIRST:
        return False
    given = arguments_of(node)
    if given.get("training", False) is not False:
        return False
    if node.target is _aten.native_group_norm.default:
        look = probe.looks.get(given["input"])
        if look is None or look.shape[:2] != (given["N"], given["C"]):
            return False
    read = [item for item in node.users if item.target is not operator.getitem or item.users]
    are_first = all(item.target is operator.getitem and item.args[1] == 0 for item in read)
    return bool(read) and are_first


def _make_first_alone(node: fx.Node, build: Builder) -> None:
    target, args = _OF_FIRST[node.target](arguments_of(node))  # type: ignore[index]
    with node.graph.inserting_before(node):
        first = build.call(target, args, {}, node)
    first.meta[ORIGIN] = node.name
    for item in list(node.users):
        name = item.name
        is_read = bool(item.users)
        item.replace_all_uses_with(first)
        node.graph.erase_node(item)
        if is_read:
            first.name = name
    node.graph.erase_node(node)


def _can_be_picked(node: fx.Node, probe: Probe) -> bool:
    given = arguments_of(node)
    look, target = probe.looks.get(given["self"]), probe.looks.get(given["target"])
    return (
        look is not None
        and len(look.shape) == 2
        and target is not None
        and target.dtype is torch.int64  # gather takes no bytes
        and given["weight"] is None
        and given["reduction"] in _SUMMED
    )


def _pick(node: fx.Node, probe: Probe, build: Builder) -> None:
    given = arguments_of(node)
    scores, target = given["self"], given["target"]
    look = probe.looks[scores]

    def call(function: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> fx.Node:
        made = build.call(function, args, kwargs, node)
        made.meta[ORIGIN] = node.name
        return made

    def loss_of(numbers: fx.Node) -> fx.Node:
        reduction = given["reduction"]
        return call(_aten.nll_loss_forward.default, numbers, only, None, reduction, _IGNORED)

    with node.graph.inserting_before(node):
        is_ignored = call(_aten.eq.Scalar, target, given["ignore_index"])
        classes = call(_aten.masked_fill.Scalar, target, is_ignored, 0)
        only = call(_aten.neg.default, call(_aten._to_copy.default, is_ignored, dtype=torch.int64))
        nothing = call(_aten.zeros.default, [look.shape[0], 1], dtype=look.dtype)
        weight = build.call(operator.getitem, (loss_of(nothing), 1), {}, node)
        picked = call(_aten.gather.default, scores, 1, call(_aten.unsqueeze.default, classes, 1))
        pair = loss_of(picked)
        loss = build.call(operator.getitem, (pair, 0), {}, node)
    for item in list(node.users):
        item.replace_all_uses_with((loss, weight)[cast(int, item.args[1])])
        node.graph.erase_node(item)
    node.graph.erase_node(node)
    pair.name = node.name
    for begun in _computed_from(loss):
        seen = probe.looks.get(begun)
        is_alike = seen is not None and (seen.shape, seen.dtype) == ((), look.dtype)
        if begun.target is _aten.ones_like.default and is_alike:
            with node.graph.inserting_after(weight):  # one for each: they may be changed in place
                ones = build.call(_aten.ones_like.default, (weight,), {}, begun)
            begun.replace_all_uses_with(ones)
            node.graph.erase_node(begun)
            ones.name = begun.name


def _computed_from(node: fx.Node) -> list[fx.Node]:
    found, todo = dict[fx.Node, None](), [node]
    while todo:
        new = [reader for reader in todo.pop().users if reader not in found]
        found.update(dict.fromkeys(new))
        todo += new
    return list(found)
