"""What must keep its order in an FX graph: the rules of csrc/jit/hazards.h, on ATen overloads.

Which memory an op touches is taken from a run (probing.py), not from alias analysis: an FX graph is
captured for given shapes and strides, so the same storages are shared in every run.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

_BATCH_STATISTICS = ("running_mean", "running_var")


def schema_of(node: fx.Node) -> torch.FunctionSchema | None:
    """The schema of the ATen overload that a node calls; None for anything else."""
    target = node.target
    return target._schema if isinstance(target, torch._ops.OpOverload) else None


def written_arguments(node: fx.Node) -> Iterator[Any]:
    """Arguments whose memory the node writes to; running statistics, of which no schema tells."""
    schema = schema_of(node)
    if schema is None:
        return
    training = _updates_statistics(node, schema)
    for argument, value in _arguments(node, schema):
        is_write = argument.alias_info is not None and argument.alias_info.is_write
        if is_write or (training and argument.name in _BATCH_STATISTICS):
            yield value


def is_barrier(node: fx.Node) -> bool:
    """Is it unknown what the node does, so that nothing may pass it?"""
    schema = schema_of(node)
    if schema is None:
        return True
    assert isinstance(node.target, torch._ops.OpOverload)
    if torch.Tag.inplace_view in node.target.tags:
        return True
    if node.target.namespace in ("aten", "prims"):
        return False
    return all(argument.alias_info is None for argument in schema.arguments)


def draws_random_numbers(node: fx.Node) -> bool:
    """Does the schema say so? A probe may see more."""
    schema = schema_of(node)
    if schema is None or torch.Tag.nondeterministic_seeded not in node.target.tags:  # type: ignore[union-attr]
        return False
    return all(
        value != 0.0 for argument, value in _arguments(node, schema) if argument.name == "dropout_p"
    )


def is_collective(node: fx.Node) -> bool:
    """Must it meet the same op of other processes, so that collectives keep their order?"""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and "c10d" in target.namespace


def _updates_statistics(node: fx.Node, schema: torch.FunctionSchema) -> bool:
    flags = {argument.name: value for argument, value in _arguments(node, schema)}
    return any(flags.get(name, False) for name in ("training", "train", "use_input_stats"))


def _arguments(node: fx.Node, schema: torch.FunctionSchema) -> Iterator[tuple[torch.Argument, Any]]:
    for index, argument in enumerate(schema.arguments):
        if index < len(node.args):
            yield argument, node.args[index]
        elif argument.name in node.kwargs:
            yield argument, node.kwargs[argument.name]
