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
from torch_ext.fx.overwritable import FormsOfArguments, overwrite
from torch_ext.fx.parts import Parts, Required
from torch_ext.fx.probe import Probe
from torch_ext.fx.same_threads import require_threads

_aten = torch.ops.aten
_VIEWS = (_aten.view.default, _aten._unsafe_view.default)


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
    forms: FormsOfArguments,
    *,
    alone: bool = False,
) -> Unrolled:
    """Write the parts one behind the other. All that is given is of the probe's ops.

    `alone`: for trials. Each op is given parts of whole values, whatever the others make, and there
    are no results.
    """
    return _Unroller(program, stretch, probe, forms, alone).unrolled(name)


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
        _aten._assert_tensor_metadata.default,
        (argument, list(sizes), list(strides), dtype),
    )
    check.meta = {**argument.meta, "val": None}


class _Unroller:
    def __init__(
        self,
        program: _sched.Program,
        stretch: _sched.SlicedStretch,
        probe: Probe,
        forms: FormsOfArguments,
        alone: bool,
    ) -> None:
        self.alone = alone
        self.forms = forms
        self.program = program
        self.stretch = stretch
        self.probe = probe
        self.nodes = [probe.ops[op.op].node for op in stretch.ops]
        self.place_of = {node: place for place, node in enumerate(self.nodes)}
        self.graph = fx.Graph()
        self.build = Builder(self.graph, fake_mode_of(self.nodes))
        self.older: dict[fx.Node, fx.Node] = {}  # to the placeholder
        self.whole: dict[fx.Node, fx.Node] = {}  # results, to their memory
        self.made: dict[fx.Node, Made] = {}

    def unrolled(self, name: str) -> Unrolled:
        for node in self.nodes:
            for used in node.all_input_nodes:
                if (self.alone or used not in self.place_of) and used not in self.older:
                    self._add_older(used)
        for node in self.nodes:
            if node.name in self.stretch.results and not self.alone:
                self.whole[node] = self._empty(node)
        part: _Part | None = None
        for number in range(len(self.stretch.ops[-1].parts)):
            part = _Part(self, number, part.kept if part else {})
            for place in range(len(self.nodes)):
                part.add(place)
        self.graph.output(tuple(self.whole.values()))
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
        options = {"dtype": look.dtype, "device": torch.device("cpu")}
        if look.has_new_strides:
            return self.build.call(_aten.empty.memory_format, ([*look.shape],), options, node)
        arguments = [*look.shape], [*look.stride]
        return self.build.call(_aten.empty_strided.default, arguments, options, node)


class _Part:
    """One part of each op of a stretch."""

    def __init__(self, stretch: _Unroller, number: int, before: Mapping[fx.Node, fx.Node]) -> None:
        self.of = stretch
        self.number = number
        self.before = before  # rows that the part before has kept
        self.kept: dict[fx.Node, fx.Node] = {}  # for the next part
        self.made: dict[fx.Node, fx.Node] = {}
        self.views: dict[tuple[fx.Node, int, int, int], fx.Node] = {}

    def add(self, place: int) -> None:
        """Add the op, as its slicing says, and copy what it makes to its place in a result."""
        node, op = self.of.nodes[place], self.of.stretch.ops[place]
        begin, end = op.computed[self.number]
        slicing = self.of.program.slicing(op.op, op.dimension)
        assert slicing is not None
        needs = dict(slicing.needs)
        given = dict(arguments_of(node))
        first_row = 0
        replaced: dict[fx.Node, fx.Node] = {}
        changed: fx.Node | None = None  # the part that the op changes
        for used in node.all_input_nodes:
            need = needs.get(used.name)
            if need is None:
                replaced[used] = self.of.older[used]
                continue
            size = self.of.probe.looks[used].shape[need.dimension]
            interval = slicing.argument_of(need, begin, end, size)
            assert interval is not None
            replaced[used] = self._argument(used, need.dimension, *interval[:2])
            is_changed = slicing.changes_argument or op.overwrites == used.name
            if self.of.alone and is_changed:  # others are given it, too
                replaced[used] = self.of.build.call(
                    _aten.clone.default, (replaced[used],), {}, node
                )
            if slicing.changes_argument and used.name == slicing.needs[0][0]:
                changed = replaced[used]
            if op.is_placed:
                place_of_part = need.dimension, begin, end
                replaced[used] = self._placed(used, replaced[used], node, *place_of_part)
            if slicing.padding:
                _, _, padding, first_row = interval
                paddings = given[slicing.padding]
                given[slicing.padding] = _with(paddings, slicing.padding_place, padding)
        if slicing.size:
            given[slicing.size] = end - begin
        if slicing.sizes:
            given[slicing.sizes] = _with(given[slicing.sizes], slicing.sizes_place, end - begin)
        # A part of a view may have strides that `view` does not take.
        target = _aten.reshape.default if node.target in _VIEWS else node.target
        result = self.of.build.call(target, *_arguments(target, given, replaced), node)
        self.of.made[result] = Made(place, self.number, runs=True)
        if op.overwrites:
            called, result = result, overwrite(result, self.of.forms[op.op, op.overwrites])
            if result is not called:
                self.of.made[result] = Made(place, self.number, runs=False)
        if slicing.padding:  # rows that are spoilt by it go
            last_row = first_row + end - begin
            result = self._rows(result, node, op.dimension, first_row, last_row)
            self.of.made[result] = Made(place, self.number, runs=False)
        if op.is_placed:
            rows = self._rows(result, node, op.dimension, begin, end)
            if changed is not None:
                result = self.of.build.call(_aten.copy_.default, (changed, rows), {}, node)
            else:
                result = self.of.build.call(_aten.clone.default, (rows,), {}, node)
            self.of.made[result] = Made(place, self.number, runs=False)
        if node in self.of.whole:
            target_rows = self._rows(self.of.whole[node], node, op.dimension, begin, end)
            self.of.build.call(_aten.copy_.default, (target_rows, result), {}, node)
        keeps_rows = op.keeps_rows and not self.of.alone
        self.made[node] = self._with_kept_rows(result, node, op) if keeps_rows else result

    def _with_kept_rows(self, rows: fx.Node, node: fx.Node, op: _sched.PartOp) -> fx.Node:
        """Return the rows behind those kept of the part before; keep what the next one needs."""
        begin, end = op.parts[self.number]
        joined = rows
        if node in self.before:
            arguments = [self.before[node], rows], op.dimension
            joined = self.of.build.call(_aten.cat.default, arguments, {}, node)
        if self.number + 1 < len(op.parts):
            next_begin = op.parts[self.number + 1][0]
            if next_begin < end:
                last = self._rows(joined, node, op.dimension, next_begin - begin, end - begin)
                self.kept[node] = self.of.build.call(_aten.clone.default, (last,), {}, node)
        return joined

    def _argument(self, node: fx.Node, dimension: int, begin: int, end: int) -> fx.Node:
        if node in self.made and not self.of.alone:
            op = self.of.stretch.ops[self.of.place_of[node]]
            first, last = op.parts[self.number]
            value, begin, end, size = self.made[node], begin - first, end - first, last - first
        else:
            value, size = self.of.older[node], self.of.probe.looks[node].shape[dimension]
        if (begin, end) == (0, size):
            return value
        return self._rows(value, node, dimension, begin, end)

    def _placed(
        self, used: fx.Node, part: fx.Node, of: fx.Node, dimension: int, begin: int, end: int
    ) -> fx.Node:
        """Zeros like the whole of a value, with the part in its place."""
        look = self.of.probe.looks[used]
        options = {"dtype": look.dtype, "device": torch.device("cpu")}
        zeros = self.of.build.call(_aten.zeros.default, ([*look.shape],), options, of)
        rows = self._rows(zeros, of, dimension, begin, end)
        self.of.build.call(_aten.copy_.default, (rows, part), {}, of)
        return zeros

    def _rows(self, value: fx.Node, of: fx.Node, dimension: int, begin: int, end: int) -> fx.Node:
        key = value, dimension, begin, end
        if key not in self.views:
            view = self.of.build.call(_aten.slice.Tensor, key, {}, of)
            self.views[key] = view
        return self.views[key]


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
