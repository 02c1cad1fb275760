"""What nodes of torch.fx do beyond their data flow: what csrc/program/hazards.h orders.

What an operator does is looked up in the table that TorchScript uses too, operator_effects.h. Here
is what only FX has: functions of Python, and higher-order ops, which run graphs they are given.

Which memory an op touches is taken from a run (probe.py), not from alias analysis: an FX graph is
captured for given shapes and strides, so the same storages are shared in every run.
"""

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.sym_node import METHOD_TO_OPERATOR
from torch.utils import _pytree as pytree

from torch_ext._native import _jit
from torch_ext.fx.arrival import Arrival
from torch_ext.fx.parts import Parts
from torch_ext.fx.writing import Writing

# What computes with symbolic sizes, and does the same for tensors.
PURE_FUNCTIONS = {
    *METHOD_TO_OPERATOR.values(),
    *(torch.sym_int, torch.sym_sum),
    *(getattr(math, name) for name in dir(math) if not name.startswith("_")),
    *(
        getattr(operator, name)
        for name in "abs add and_ concat contains countOf eq floordiv ge getitem gt index indexOf "
        "inv invert is_ is_not le lshift lt matmul mod mul ne neg not_ or_ pos pow rshift sub "
        "truediv truth xor".split()
    ),
}
# They write to their first argument.
_IN_PLACE_FUNCTIONS = {
    getattr(operator, name)
    for name in "iadd iand ifloordiv ilshift imatmul imod imul ior ipow irshift isub itruediv ixor "
    "setitem".split()
}
# Higher-order ops that run the graphs among their arguments on the others, and do nothing else.
_RUNNERS = {
    "associative_scan",
    "cond",
    "flex_attention",
    "flex_attention_backward",
    "hints_wrapper",
    "invoke_subgraph",
    "map_impl",
    "out_dtype",
    "scan",
    "strict_mode",
    "tag_activation_checkpoint",
    "while_loop",
    "while_loop_stack_output",
    "wrap",
    "wrap_activation_checkpoint",
    "wrap_with_autocast",
    "wrap_with_set_grad_enabled",
}
# Norms that compute the same without the running statistics that they update, if all that they are
# given is of one dtype: that of the statistics chooses the kernel, too. And how they are called so.
_APART: dict[Any, torch._ops.OpOverload] = {
    torch.ops.aten.native_batch_norm.default: torch.ops.aten.native_batch_norm.default,
    torch.ops.aten._native_batch_norm_legit_functional.default: (
        torch.ops.aten._native_batch_norm_legit.no_stats
    ),
}
_STATISTICS = "running_mean", "running_var"


def schema_of(node: fx.Node) -> torch.FunctionSchema | None:
    """The schema of the ATen overload that a node calls; None for anything else."""
    target = node.target
    return target._schema if isinstance(target, torch._ops.OpOverload) else None


def written_arguments(node: fx.Node) -> Iterator[tuple[Any, bool]]:
    """Arguments whose memory the node writes to, and whether they are running statistics.

    Of these no schema tells.
    """
    if node.target in _IN_PLACE_FUNCTIONS:
        yield node.args[0], False
    if isinstance(node.target, Writing):
        yield from ((argument, False) for argument in node.args[: node.target.written])
    if effects := _effects(node):
        values = list(arguments_of(node).values())
        yield from ((values[position], False) for position in effects["writes"])
        yield from ((values[position], True) for position in effects["statistics"])


def statistics_of(node: fx.Node) -> list[fx.Node]:
    """The running statistics that the node could do without, and compute the same."""
    if node.target not in _APART or arguments_of(node)["training"] is not True:
        return []
    statistics = [arguments_of(node)[name] for name in _STATISTICS]
    return [argument for argument in statistics if argument is not None]


def without_statistics(node: fx.Node) -> tuple[torch._ops.OpOverload, dict[str, Any]]:
    """Return what to call without them, and with what; it may have fewer results."""
    given = {**arguments_of(node), **dict.fromkeys(_STATISTICS)}
    target = _APART[node.target]
    return target, {place.name: given[place.name] for place in target._schema.arguments}


def undeclared(node: fx.Node) -> str:
    """Why nobody knows what the node writes to; empty if that is known."""
    if effects := _effects(node):
        return str(effects["undeclared"])
    # Parts: new memory from what it reads, and nothing else.
    if isinstance(node.target, Arrival | Parts | Writing):
        return ""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return "" if _runs_pure_graphs(node) else "a higher-order op of unknown effects"
    is_known = node.target in PURE_FUNCTIONS or node.target in _IN_PLACE_FUNCTIONS
    return "" if is_known else "not an operator"


def is_stateful(node: fx.Node) -> bool:
    """Does it change the state that other ops run in?"""
    return bool(_effects(node).get("is_stateful"))


def changes_metadata(node: fx.Node) -> bool:
    """Does it give a tensor other sizes, strides or memory, so that later views are others?"""
    return bool(_effects(node).get("changes_metadata"))


def is_barrier(node: fx.Node) -> bool:
    """Is it unknown what the node does, or is it more than an order of reads and writes can tell?

    Nothing may pass it then.
    """
    is_known = not undeclared(node) and not isinstance(node.target, Arrival)
    return not is_known or is_stateful(node) or changes_metadata(node)


def draws_random_numbers(node: fx.Node) -> bool:
    """Does the op say so? A probe may see more."""
    if isinstance(node.target, Writing):
        return node.target.draws_random_numbers
    return bool(_effects(node).get("draws_random_numbers"))


def has_side_effect(node: fx.Node) -> bool:
    """Must what the node shows, a failed assertion or a print, keep its place among the others'?"""
    if isinstance(node.target, Arrival):
        return True
    effects = _effects(node)
    is_registered = bool(effects) and node.target in fx.node._side_effectful_functions
    return is_registered or bool(effects.get("has_side_effect"))


def is_collective(node: fx.Node) -> bool:
    """Must it meet the same op of other processes, so that collectives keep their order?"""
    return bool(_effects(node).get("is_collective"))


def hides_aliases(node: fx.Node) -> bool:
    """May it return what it was given, although its schema does not say so?"""
    return bool(_effects(node).get("hides_aliases"))


# --- the table ------------------------------------------------------------------------------------


def _effects(node: fx.Node) -> dict[str, Any]:
    """What the table says; empty for what is no operator."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    arguments = arguments_of(node).items()
    constants = [(name, value) for name, value in arguments if isinstance(value, bool | float)]
    return _looked_up(node.target, tuple(constants))


@functools.lru_cache(maxsize=10_000)
def _looked_up(
    target: torch._ops.OpOverload, constants: tuple[tuple[str, bool | float], ...]
) -> dict[str, Any]:
    schema = target._schema
    effects = _jit.operator_effects(schema.name, schema.overload_name, dict(constants))
    if target.namespace != "aten":  # tags that were given in Python may be known there alone
        effects["draws_random_numbers"] |= torch.Tag.nondeterministic_seeded in target.tags
    return effects


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """All arguments in the order of the schema; the default of those that are not given."""
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments = {**_defaults(node.target), **node.kwargs}
    return {**arguments, **dict(zip(arguments, node.args, strict=False))}


@functools.cache
def _defaults(target: torch._ops.OpOverload) -> dict[str, Any]:
    return {argument.name: argument.default_value for argument in target._schema.arguments}


# --- higher-order ops -----------------------------------------------------------------------------


def _runs_pure_graphs(node: fx.Node) -> bool:
    assert isinstance(node.target, torch._ops.HigherOrderOperator)
    leaves = [_held(leaf) for leaf in pytree.tree_leaves((node.args, node.kwargs))]
    called = [leaf for leaf in leaves if callable(leaf) and not isinstance(leaf, fx.Node)]
    return node.target._name in _RUNNERS and bool(called) and all(map(_is_pure, called))


def _held(value: Any) -> Any:
    """What a node takes from its module; any other value as it is."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return value
    return operator.attrgetter(str(value.target))(value.graph.owning_module)


def _is_pure(called: Any) -> bool:
    if isinstance(called, torch._ops.OpOverload):
        return _is_without_effects(_looked_up(called, ()))
    return isinstance(called, fx.GraphModule) and all(map(_is_pure_node, called.graph.nodes))


def _is_without_effects(effects: dict[str, Any]) -> bool:
    return not any(effect for name, effect in effects.items() if name != "hides_aliases")


def _is_pure_node(node: fx.Node) -> bool:
    if node.op == "get_attr":  # a tensor held inside would be memory that the probe does not see
        return isinstance(_held(node), fx.GraphModule)
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    is_pure = not is_barrier(node) and _is_without_effects(_effects(node))
    return is_pure and not has_side_effect(node) and node.target not in _IN_PLACE_FUNCTIONS
