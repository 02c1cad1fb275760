"""What nodes of torch.fx may write over, by the table of operators, and how they do it.

A graph is captured for given shapes, so storages and looks are those of the probe; whoever calls
it makes sure of strides and dtypes, as torch.compile does, or lets the graph ask (require_looks).
Where sizes are symbolic, only what holds for all of them counts, and ops that copy in one run and
return their input in another are left alone.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true, sym_eq

from torch_ext import _sched
from torch_ext.fx.effects import (
    arguments_of,
    hides_aliases,
    is_barrier,
    is_collective,
    schema_of,
)
from torch_ext.fx.probe import Look, Op, Probe

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclasses.dataclass(frozen=True)
class Overwritable:
    """One use of a form. Storages by their numbers."""

    op: int  # place in probe.ops
    form: _sched.OverwritingForm
    result: int
    argument: int


def find_overwritable(probe: Probe) -> list[Overwritable]:
    """All uses that the operators allow, so far as it concerns one op alone."""
    touching: dict[int, list[Op]] = {}
    for op in probe.ops:
        for storage in {s for held in op.storages.values() for s in held} | op.made.keys():
            touching.setdefault(storage, []).append(op)
    with_symbols = has_symbols(probe)
    bases: set[fx.Node] = set()  # tensors that are no views, whatever is overwritten
    found = []
    for index, op in enumerate(probe.ops):
        look = probe.looks.get(op.node)
        is_base = look is not None and look.storage in op.made
        for form, result, argument in _uses(probe, op):
            others = touching[argument.storage]
            if any(op.node in other.node.all_input_nodes for other in others if other is not op):
                continue  # it has to run before and after this one
            if any(map(_keeps_unseen, others)):
                continue
            if with_symbols and any(map(_may_alias_elsewhere, others)):
                continue
            is_over_base = arguments_of(op.node)[form.argument] in bases
            if result.storage in probe.results and not is_over_base:
                continue  # a result that leaves would be a view
            is_base &= is_over_base
            found.append(Overwritable(index, form, result.storage, argument.storage))
        if is_base:
            bases.add(op.node)
    return found


FormsOfArguments = Mapping[tuple[int, str], _sched.OverwritingForm]


def forms_by_argument(probe: Probe, uses: Iterable[Overwritable]) -> FormsOfArguments:
    """The form by which an op writes over an argument, by the op and the argument's name."""
    forms: dict[tuple[int, str], _sched.OverwritingForm] = {}
    for use in uses:
        argument = arguments_of(probe.ops[use.op].node)[use.form.argument]
        forms.setdefault((use.op, argument.name), use.form)
    return forms


def can_be_required(probe: Probe, use: Overwritable) -> bool:
    """Can the graph ask whether what the node is given looks as it has to (require_looks)?

    Strides are asked for as numbers. Without, only what takes any strides is safe.
    """
    tensors = shaped_arguments(probe.ops[use.op].node, use.form)
    return all(map(_has_numeric_strides, tensors)) or (use.form.keeps_layout and len(tensors) == 1)


def shaped_arguments(node: fx.Node, form: _sched.OverwritingForm) -> list[fx.Node]:
    """The argument that the form overwrites, and those that decide with it what the result is."""
    given = arguments_of(node)
    return [given[name] for name in (form.argument, *form.shaped)]


def require_looks(node: fx.Node, tensors: Iterable[fx.Node], probe: Probe) -> None:
    """Let the graph raise before the node if tensors look unlike they did in the probe."""
    for tensor in dict.fromkeys(tensors):
        look = probe.looks[tensor]
        strides = list(look.stride) if _has_numeric_strides(tensor) else None
        with node.graph.inserting_before(node):
            check = node.graph.call_function(
                torch.ops.aten._assert_tensor_metadata.default, (tensor, None, strides, look.dtype)
            )
        check.meta = {**node.meta, "val": None}


def _keeps_unseen(op: Op) -> bool:
    """May it hold what it was given for longer than it runs? A collective does until its wait."""
    node = op.node
    return op.is_hidden or is_barrier(node) or is_collective(node)


def overwrite(node: fx.Node, form: _sched.OverwritingForm) -> fx.Node:
    """Let the node call the form instead. Returns the node that is the result then."""
    given = arguments_of(node)
    argument = given[form.argument]
    target = getattr(torch.ops.aten, form.form.removeprefix("aten::"))
    target = getattr(target, form.form_overload or "default")
    args, kwargs = [], {}
    for place in target._schema.arguments:
        is_written = place.alias_info is not None and place.alias_info.is_write
        if place.name == form.target:
            value = argument
        elif is_written:
            value = _empty_like(node, given[form.rest_like])
        else:
            value = False if place.name == form.adds_no else given[place.name]
        if place.kwarg_only:
            kwargs[place.name] = value
        else:
            args.append(value)
    has_one_result = len(node.target._schema.returns) == 1  # type: ignore[union-attr]
    node.target, node.args, node.kwargs = target, tuple(args), kwargs
    if has_one_result and len(target._schema.returns) > 1:
        return _take_first(node)
    return node


def _empty_like(node: fx.Node, like: fx.Node) -> fx.Node:
    with node.graph.inserting_before(node):
        empty = node.graph.call_function(torch.ops.aten.new_empty.default, (like, [0]))
    if "val" in like.meta:
        empty.meta["val"] = like.meta["val"].new_empty([0])
    return empty


def _take_first(node: fx.Node) -> fx.Node:
    """Let those who read the node read the first of its results, which is returned."""
    with node.graph.inserting_after(node):
        first = node.graph.call_function(operator.getitem, (node, 0))
    first.meta = dict(node.meta)
    node.replace_all_uses_with(first, delete_user_cb=lambda user: user is not first)
    written = [value for value in node.kwargs.values() if isinstance(value, fx.Node)]
    if "val" in node.meta:
        node.meta["val"] = tuple(value.meta["val"] for value in written)
    return first


def _uses(probe: Probe, op: Op) -> Iterator[tuple[_sched.OverwritingForm, Look, Look]]:
    schema, result = schema_of(op.node), probe.looks.get(op.node)
    if schema is None or result is None or len(op.made) != _results_with_memory(probe, op):
        return
    for form in _forms().get((schema.name, schema.overload_name), ()):
        given = arguments_of(op.node)
        argument = probe.looks.get(given[form.argument])
        if argument is not None and _is_allowed(probe, op, form, result, argument):
            yield form, result, argument


def _results_with_memory(probe: Probe, op: Op) -> int:
    """One, and those of no bytes beside it."""
    return 1 + sum(size == 0 for size in op.made.values())


@functools.cache
def _forms() -> dict[tuple[str, str], list[_sched.OverwritingForm]]:
    forms: dict[tuple[str, str], list[_sched.OverwritingForm]] = {}
    for form in _sched.overwriting_forms():
        forms.setdefault((form.oper, form.overload), []).append(form)
    return forms


def _is_allowed(
    probe: Probe, op: Op, form: _sched.OverwritingForm, result: Look, argument: Look
) -> bool:
    given = arguments_of(op.node)
    if form.no and given[form.no] is not False:
        return False
    if any(isinstance(value, complex) for value in given.values()):
        return False
    if argument.storage in probe.outside or result.storage not in op.made:
        return False
    are_alike = dataclasses.replace(result, storage=argument.storage) == argument
    if not are_alike or not result.fills_it or result.dtype not in _FLOATING:
        return False
    twins = [given[name] for name in form.shaped]
    others = [node for node in op.node.all_input_nodes if node is not given[form.argument]]
    if any(argument.storage in probe.values[node] for node in others):
        return False
    if len([v for v in given.values() if v is given[form.argument]]) > 1 + sum(
        twin is given[form.argument] for twin in twins
    ):
        return False
    looks = [probe.looks.get(twin) if isinstance(twin, fx.Node) else None for twin in twins]
    if any(look is None for look in looks):
        return False
    if not form.broadcasts and any(look.shape != argument.shape for look in looks if look):
        return False
    has_new_strides = all(look.has_new_strides for look in (argument, *looks) if look)
    if not has_new_strides and not form.keeps_layout:
        return False
    same_sizes = [] if form.broadcasts else twins
    return all(_are_alike_always(given[form.argument], node) for node in (op.node, *same_sizes))


# --- symbolic sizes -------------------------------------------------------------------------------


def _first_tensor(node: fx.Node) -> torch.Tensor | None:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, tuple | list) and value else value
    return first if isinstance(first, torch.Tensor) else None


def _numbers(node: fx.Node) -> list[Any]:
    tensor = _first_tensor(node)
    return [] if tensor is None else [*tensor.shape, *tensor.stride()]


def has_symbols(probe: Probe) -> bool:
    """Are sizes or strides of some value symbols?"""
    return any(map(is_symbolic, probe.values))


def is_symbolic(node: fx.Node) -> bool:
    """Are sizes or strides of its tensor symbols?"""
    return any(isinstance(number, torch.SymInt) for number in _numbers(node))


def _has_numeric_strides(node: fx.Node) -> bool:
    tensor = _first_tensor(node)
    return tensor is None or not any(isinstance(n, torch.SymInt) for n in tensor.stride())


def _are_alike_always(a: fx.Node, b: fx.Node) -> bool:
    """Have they the same shape and strides, whatever the symbols stand for?"""
    if not is_symbolic(a) and not is_symbolic(b):
        return True
    ours, theirs = _numbers(a), _numbers(b)
    return len(ours) == len(theirs) and all(
        statically_known_true(sym_eq(x, y)) for x, y in zip(ours, theirs, strict=True)
    )


def _may_alias_elsewhere(op: Op) -> bool:
    """Did it make something here which may be a view of its input for other sizes?"""
    schema = schema_of(op.node)
    if schema is None:
        return True
    may_be_view = any(
        result.alias_info is not None and not result.alias_info.is_write
        for result in schema.returns
    )
    return bool(op.made) and (may_be_view or hides_aliases(op.node))
