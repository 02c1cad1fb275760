"""The edit: a stretch of a graph of torch.fx, unrolled part by part.

First the parts are one function (parts.py), so that the graph around them is planned as any other;
then its nodes take the place of the one that calls it (inline).
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx

from torch_ext import _sched
from torch_ext.fx.builder import Builder, fake_mode_of
from torch_ext.fx.effects import arguments_of
from torch_ext.fx.parts import Parts, Required
from torch_ext.fx.probe import Probe
from torch_ext.fx.same_threads import require_threads

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


@dataclasses.dataclass(frozen=True)
class Made:
    """What a node of the parts makes."""

    place: int  # of the op in the stretch
    part: int
    runs: bool  # the op itself; else rows of what it made


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """A stretch as nodes of a graph of its own."""

    parts: Parts
    older: tuple[fx.Node, ...]  # of the graph around it: what the parts are called with
    made: Mapping[fx.Node, Made]  # of the nodes of the parts


def unroll(
    name: str,
    program: _sched.Program,
    stretch: _sched.SlicedStretch,
    probe: Probe,
) -> Unrolled:
    """Write the parts one behind the other. `program` and `stretch` are of the probe's ops."""
    return _Unroller(program, stretch, probe).unrolled(name)


def call_parts(
    module: fx.GraphModule,
    probe: Probe,
    stretch: _sched.SlicedStretch,
    unrolled: Unrolled,
) -> dict[str, fx.Node]:
    """Let one node call the parts instead of the stretch. `probe` is of the module.

    Returns what stands for the results, by their names.
    """
    nodes = [probe.ops[op.op].node for op in stretch.ops]
    for index in stretch.ahead:
        nodes[0].prepend(probe.ops[index].node)
    with module.graph.inserting_after(nodes[-1]):
        call = module.graph.call_function(unrolled.parts, unrolled.older)
    call._rename(unrolled.parts.name)
    results = [node for node in nodes if node.name in stretch.results]
    call.meta = {key: value for key, value in nodes[-1].meta.items() if key != "val"}
    call.meta["val"] = tuple(node.meta.get("val") for node in results)
    last = call
    inside, items = set(nodes), {}
    for place, result in enumerate(results):
        with module.graph.inserting_after(last):
            last = module.graph.call_function(operator.getitem, (call, place))
        last.meta = dict(result.meta)
        result.replace_all_uses_with(last, delete_user_cb=lambda user: user not in inside)
        items[result.name] = last
    for index in reversed(stretch.behind):
        last.append(probe.ops[index].node)
    for node in reversed(nodes):
        module.graph.erase_node(node)
    for name, item in items.items():  # an exported program knows its results by name
        item.name = name
    return items


def inline_parts(module: fx.GraphModule, *, asks: bool) -> None:
    """Put the nodes of all parts where they are called.

    `asks`: the graph raises for tensors of other sizes, strides and dtypes than those it was cut
    for, and with another number of threads.
    """
    calls = [node for node in module.graph.nodes if isinstance(node.target, Parts)]
    if calls and asks:
        first = next(node for node in module.graph.nodes if node.op != "placeholder")
        with module.graph.inserting_before(first):
            require_threads(module.graph, fake_mode_of(module.graph.nodes))
    for node in calls:
        parts, older = node.target, node.args
        inner = parts.module.graph
        values = dict(zip(inner.find_nodes(op="placeholder"), older, strict=True))
        with module.graph.inserting_before(node):
            if asks:
                for argument, required in zip(older, parts.required, strict=True):
                    _require(module.graph, argument, required)
            results = cast(tuple[fx.Node, ...], module.graph.graph_copy(inner, values))
        for item in list(node.users):
            result = results[cast(int, item.args[1])]
            item.replace_all_uses_with(result)
            module.graph.erase_node(item)
            result.name = item.name
        module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()


def _require(graph: fx.Graph, argument: fx.Node, required: Required | None) -> None:
    if required is None or argument.op == "get_attr":
        return
    sizes, strides, dtype = required
    check = graph.call_function(
        torch.ops.aten._assert_tensor_metadata.default,
        (argument, list(sizes), list(strides), dtype),
    )
    check.meta = {**argument.meta, "val": None}


class _Unroller:
    def __init__(
        self, program: _sched.Program, stretch: _sched.SlicedStretch, probe: Probe
    ) -> None:
        self.program = program
        self.stretch = stretch
        self.probe = probe
        self.nodes = [probe.ops[op.op].node for op in stretch.ops]
        self.place_of = {node: place for place, node in enumerate(self.nodes)}
        self.graph = fx.Graph()
        self.older: dict[fx.Node, fx.Node] = {}  # to the placeholder
        self.made: dict[fx.Node, Made] = {}
        self.build = Builder(self.graph, fake_mode_of(self.nodes))

    def unrolled(self, name: str) -> Unrolled:
        for node in self.nodes:
            for used in node.all_input_nodes:
                if used not in self.place_of and used not in self.older:
                    self._add_older(used)
        whole = {
            node: self._empty(node) for node in self.nodes if node.name in self.stretch.results
        }
        for part in range(len(self.stretch.ops[-1].parts)):
            self._add_part(part, whole)
        self.graph.output(tuple(whole.values()))
        looks = [self.probe.looks.get(node) for node in self.older]
        required = tuple(
            None if look is None else (look.shape, look.stride, look.dtype) for look in looks
        )
        parts = Parts(name, fx.GraphModule(torch.nn.Module(), self.graph), required)
        # The module has a copy of the graph.
        twins = zip(self.graph.nodes, parts.module.graph.nodes, strict=True)
        made = {twin: self.made[node] for node, twin in twins if node in self.made}
        return Unrolled(parts, tuple(self.older), made)

    def _add_older(self, node: fx.Node) -> None:
        placeholder = self.graph.placeholder(f"older_{len(self.older)}")
        placeholder.meta = dict(node.meta)
        self.older[node] = placeholder

    def _empty(self, node: fx.Node) -> fx.Node:
        look = self.probe.looks[node]
        return self.build.call(
            torch.ops.aten.empty.memory_format, ([*look.shape],), {"dtype": look.dtype}, node
        )

    def _add_part(self, part: int, whole: Mapping[fx.Node, fx.Node]) -> None:
        made: dict[fx.Node, fx.Node] = {}  # this part of what the stretch makes
        views: dict[Any, fx.Node] = {}

        def rows(value: fx.Node, of: fx.Node, dimension: int, begin: int, end: int) -> fx.Node:
            key = value, dimension, begin, end
            if key not in views:
                views[key] = self.build.call(
                    torch.ops.aten.slice.Tensor, (value, dimension, begin, end), {}, of
                )
            return views[key]

        def argument(node: fx.Node, dimension: int, begin: int, end: int) -> fx.Node:
            if node not in made:
                size = self.probe.looks[node].shape[dimension]
                older = self.older[node]
                is_all = (begin, end) == (0, size)
                return older if is_all else rows(older, node, dimension, begin, end)
            first, last = self.stretch.ops[self.place_of[node]].parts[part]
            if (first, last) == (begin, end):
                return made[node]
            return rows(made[node], node, dimension, begin - first, end - first)

        for place, op in enumerate(self.stretch.ops):
            node = self.nodes[place]
            begin, end = op.parts[part]
            slicing = self.program.slicing(op.op, op.dimension)
            assert slicing is not None
            needs = dict(slicing.needs)
            given = dict(arguments_of(node))
            offset = 0
            replaced: dict[fx.Node, fx.Node] = {}
            for used in node.all_input_nodes:
                need = needs.get(used.name)
                if need is None:
                    replaced[used] = made.get(used) or self.older[used]
                    continue
                size = self.probe.looks[used].shape[need.dimension]
                interval = slicing.argument_of(need, begin, end, size)
                assert interval is not None
                replaced[used] = argument(used, need.dimension, *interval[:2])
                if slicing.padding:
                    _, _, padding, offset = interval
                    given[slicing.padding] = _with(
                        given[slicing.padding], slicing.padding_place, padding
                    )
            if slicing.sizes:
                given[slicing.sizes] = _with(given[slicing.sizes], slicing.sizes_place, end - begin)
            target = torch.ops.aten.reshape.default if node.target in _VIEWS else node.target
            args, kwargs = _arguments(target, given, replaced)
            result = self.build.call(target, args, kwargs, node)
            is_cut = bool(slicing.padding)
            self.made[result] = Made(place, part, runs=True)
            if is_cut:
                shown = rows(result, node, op.dimension, offset, offset + end - begin)
                self.made[shown] = Made(place, part, runs=False)
                result = shown
            made[node] = result
            if node in whole:
                target_rows = rows(whole[node], node, op.dimension, begin, end)
                self.build.call(torch.ops.aten.copy_.default, (target_rows, result), {}, node)


def _with(numbers: Sequence[int], place: int, number: int) -> list[int]:
    changed = list(numbers)
    changed[place] = number
    return changed


def _arguments(
    target: Any, given: Mapping[str, Any], replaced: Mapping[fx.Node, fx.Node]
) -> tuple[list[Any], dict[str, Any]]:
    """As a call of the target takes them, less defaults of keywords."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    names = [argument.name for argument in target._schema.arguments]
    values = dict(zip(names, given.values(), strict=True))  # `view` calls sizes otherwise
    for argument in target._schema.arguments:
        value = fx.node.map_arg(values[argument.name], replaced.__getitem__)
        if not argument.kwarg_only:
            args.append(value)
        elif value != argument.default_value:
            kwargs[argument.name] = value
    return args, kwargs
