"""What matmul copies before it multiplies, and how the copy becomes a node of its own.

The rule is that of csrc/jit/copyable.h. A graph is captured for given shapes and strides, so what
the probe saw holds for every call; where sizes are symbolic, nothing is hoisted.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import fx

from torch_ext.fx.overwritable import has_symbols
from torch_ext.fx.probe import Look, Op, Probe
from torch_ext.program.program import Hoist

_DIMENSIONS = 4  # two of the batch, two of the matrices


@dataclasses.dataclass(frozen=True)
class Copyable:
    """An argument that an op copies."""

    op: int  # place in probe.ops
    argument: fx.Node
    size_bytes: int
    dtype: str
    is_read_beside: bool  # does the op read its storage by another argument, too?


def find_copyable(probe: Probe) -> list[Copyable]:
    """All copies that are made before products."""
    if has_symbols(probe):
        return []
    return [copy for index, op in enumerate(probe.ops) for copy in _copies(probe, index, op)]


def hoist(module: fx.GraphModule, hoists: Sequence[Hoist]) -> dict[str, fx.Node]:
    """Let nodes of their own make the copies; return them by the names of the plan."""
    nodes = {node.name: node for node in module.graph.nodes}
    copies = {}
    for done in hoists:
        reader, argument = nodes[done.op], nodes[done.argument]
        with module.graph.inserting_before(reader):
            copy = module.graph.call_function(
                torch.ops.aten.clone.default,
                (argument,),
                {"memory_format": torch.contiguous_format},
            )
        copy.meta = {key: value for key, value in reader.meta.items() if key != "val"}
        if "val" in argument.meta:
            copy.meta["val"] = argument.meta["val"].contiguous()
        reader.replace_input_with(argument, copy)
        copies[done.copy] = copy
    return copies


def _copies(probe: Probe, index: int, op: Op) -> list[Copyable]:
    if op.node.target is not torch.ops.aten.matmul.default or op.node.kwargs:
        return []
    arguments = [node for node in op.node.args if isinstance(node, fx.Node)]
    looks = [probe.looks.get(node) for node in arguments]
    known = [look for look in looks if look is not None and len(look.shape) == _DIMENSIONS]
    if len(known) != 2 or arguments[0] is arguments[1]:
        return []
    copies = []
    for node, look, other in zip(arguments, known, known[::-1], strict=True):
        if not _is_copied(look):
            continue
        size_bytes = math.prod(look.shape) * look.dtype.itemsize
        is_read_beside = not _is_copied(other) and other.storage == look.storage
        dtype = str(look.dtype).removeprefix("torch.")
        copies.append(Copyable(index, node, size_bytes, dtype, is_read_beside))
    copied_bytes = sum(copy.size_bytes for copy in copies)
    return copies if copied_bytes <= op.workspace_bytes else []


def _is_copied(look: Look) -> bool:
    """Are the batches of the argument not at equal distances?"""
    outer, inner, *_ = look.shape
    distance, step, *_ = look.stride
    is_apart = outer != 1 and inner != 1 and distance != inner * step
    return is_apart and math.prod(look.shape) > 0 and 0 not in look.stride
