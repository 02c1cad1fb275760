"""What the table of operators that run in parts says of a graph of torch.fx."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from torch_ext import _sched
from torch_ext.fx.copyable import find_copyable
from torch_ext.fx.effects import arguments_of, is_barrier, schema_of
from torch_ext.fx.overwritable import Overwritable, has_symbols
from torch_ext.fx.probe import Look, Op, Probe
from torch_ext.fx.program import buffers_of, program_of

Constant = bool | int | float | list[int]


def sliceable_program(
    graph: fx.Graph, probe: Probe, overwritable: Sequence[Overwritable]
) -> _sched.Program:
    """Return the program with what slices have to know. `probe`: of the graph, nodes apart.

    Overwrites and copies are in it too, for its floor is over all levers.
    """
    program = program_of(probe, overwritable, find_copyable(probe))
    buffers = buffers_of(probe)
    for node, look in probe.looks.items():
        if look.is_alone and not look.dtype.is_complex:
            program.add_tensor(
                node.name,
                shape=look.shape,
                strides=() if look.has_new_strides else look.stride,
                dtype=str(look.dtype).removeprefix("torch."),
                buffer=buffers.get(look.storage, -1),
                fills_buffer=look.fills_it,
            )
    if not why_not_sliced(probe):
        for index, op in enumerate(probe.ops):
            called = _call(probe, op)
            if called is not None:
                program.add_slicings(index, *called)
    program.set_threads(torch.get_num_threads())
    program.set_results([node.name for node in graph.output_node().all_input_nodes])
    return program


def why_not_sliced(probe: Probe) -> str:
    """Say why no op of the graph may run in parts; empty if some may."""
    if has_symbols(probe):
        return "sizes are symbols: a stretch is cut at numbers"
    for op in probe.ops:
        if op.is_hidden or is_barrier(op.node):
            return f"nobody knows what {op.node.name} does to the memory of others"
    return ""


def _call(
    probe: Probe, op: Op
) -> tuple[list[tuple[str, list[str]]], Mapping[str, Constant]] | None:
    """The tensors and constants that the op is called with; None if there is more."""
    schema, look = schema_of(op.node), probe.looks.get(op.node)
    if schema is None or look is None or not look.is_alone:
        return None
    if schema.is_mutable and not schema.name.endswith("_"):  # writes to another argument
        return None
    tensors: list[tuple[str, list[str]]] = []
    constants: dict[str, Constant] = {}
    for name, value in arguments_of(op.node).items():
        used: list[fx.Node] = []
        fx.node.map_arg(value, used.append)
        if used and not all(_is_tensor(probe.looks.get(node)) for node in used):
            return None
        if used:
            if isinstance(value, list | tuple) and len(value) != len(used):
                return None
            tensors.append((name, [node.name for node in used]))
        elif _is_constant(value):
            constants[name] = list(value) if isinstance(value, list | tuple) else value
    return tensors, constants


def _is_tensor(look: Look | None) -> bool:
    return look is not None and look.is_alone


def _is_constant(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(type(number) is int for number in value)
    return isinstance(value, bool | int | float)
