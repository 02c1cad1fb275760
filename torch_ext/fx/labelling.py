"""What the ops and storages of an FX graph are called in the user's program, from node.meta."""

import dataclasses
import itertools
import os
import re

import torch
from torch import fx

import torch_ext
from torch_ext.fx.ordering import described
from torch_ext.fx.probing import Op, Probe, tensors_of
from torch_ext.labels import LabelledGraph

TORCH_FOLDER, OUR_FOLDER = (
    os.path.join(os.path.dirname(file), "") for file in (torch.__file__, torch_ext.__file__)
)
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def labelled(probe: Probe) -> LabelledGraph:
    """Return the graph of to_graph with the names of the user's program."""
    graph = described(probe)
    looks = itertools.chain.from_iterable(_looks(probe, op) for op in probe.ops)
    ops = [
        dataclasses.replace(
            labelled_op,
            kind=_kind(op.node),
            source=_source(op.node),
            module_path=_module_path(op.node),
            inputs=tuple(used.name for used in op.node.all_input_nodes),
            outputs=tuple(node.name for node in op.nodes),
        )
        for labelled_op, op in zip(graph.ops, probe.ops, strict=True)
    ]
    buffers = [
        dataclasses.replace(buffer, shape=shape, dtype=dtype)
        for buffer, (shape, dtype) in zip(graph.buffers, looks, strict=True)
    ]
    return LabelledGraph(tuple(ops), tuple(buffers))


def _kind(node: fx.Node) -> str:
    """The operator without its overload, "aten::relu", or what else the node calls."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _source(node: fx.Node) -> str:
    """The line of the user's program that the node comes from, "file:line"; empty if unknown.

    That is the innermost one which is neither in torch nor here.
    """
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not frame[0].startswith((OUR_FOLDER, TORCH_FOLDER))]
    return ":".join(own[-1]) if own else ""


def _module_path(node: fx.Node) -> str:
    """The path of the innermost module that the node comes from, "layer1.0"; empty if unknown."""
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(modules[-1][0]) if modules else ""
    # Dynamo writes paths as Python would: L['self'].layer1[0].
    return re.sub(r"^L\['\w+'\]\.?", "", path).removeprefix("_modules.")


def _looks(probe: Probe, op: Op) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of each storage that the op makes; empty where the graph does not tell."""
    looks: dict[int, tuple[tuple[int, ...], str]] = {}
    for node in op.nodes:
        typed = tensors_of(node.meta.get("val"))
        for storage, tensor in zip(probe.values[node], typed, strict=False):
            if all(isinstance(size, int) for size in tensor.shape):
                dtype = str(tensor.dtype).removeprefix("torch.")
                looks.setdefault(storage, (tuple(tensor.shape), dtype))
    return [looks.get(storage, ((), "")) for storage in op.made]
