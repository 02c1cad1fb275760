"""What the ops and storages of an FX graph are called in the user's program, from node.meta."""

import os
import re
from collections.abc import Iterator

import torch
from torch import fx

from torch_ext.fx.probing import Op, Probe, tensors_of

_TORCH = os.path.join(os.path.dirname(torch.__file__), "")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def buffer_name(storage: int) -> str:
    """Of a storage, which the probe knows by a number."""
    return f"s{storage}"


def kind_of(node: fx.Node) -> str:
    """The operator without its overload, "aten::relu", or what else the node calls."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def source_of(node: fx.Node) -> str:
    """The line of the user's program that the node comes from, "file:line"; empty if unknown.

    That is the innermost one which is not in torch itself.
    """
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not frame[0].startswith(_TORCH)]
    return ":".join((own or frames)[-1]) if frames else ""


def module_path_of(node: fx.Node) -> str:
    """The path of the innermost module that the node comes from, "layer1.0"; empty if unknown."""
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(modules[-1][0]) if modules else ""
    # Dynamo writes paths as Python would: L['self'].layer1[0].
    return re.sub(r"^L\['\w+'\]\.?", "", path).removeprefix("_modules.")


def looks_of(probe: Probe, op: Op) -> dict[int, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each storage that the op makes, if the graph tells them."""
    looks: dict[int, tuple[tuple[int, ...], str]] = {}
    for node in op.nodes:
        for storage, tensor in zip(probe.values[node], _typed(node), strict=False):
            if storage in op.made and all(isinstance(size, int) for size in tensor.shape):
                dtype = str(tensor.dtype).removeprefix("torch.")
                looks.setdefault(storage, (tuple(tensor.shape), dtype))
    return looks


def _typed(node: fx.Node) -> Iterator[torch.Tensor]:
    return tensors_of(node.meta.get("val"))
