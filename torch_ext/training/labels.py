"""Which module each node of a captured step belongs to, and on which line that is called.

What torch's own tracers write into `node.meta`, for make_fx, which can write whole stacks of the
forward pass, but then the process keeps 10 to 20 MiB. Labels change no graph and no result.
"""

import contextlib
import sys
import types
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.fx import traceback as fx_traceback

from torch_ext.fx.program import OUR_FOLDER, TORCH_FOLDER

_LABELS = ("nn_module_stack", "stack_trace")


@contextlib.contextmanager
def module_paths(model: nn.Module) -> Iterator[None]:
    """Within the block nodes of the forward pass get the path of the module that makes them."""
    running: list[dict[str, object]] = []

    def tell() -> None:
        for label in _LABELS:
            fx_traceback.current_meta.pop(label, None)
        if running:
            fx_traceback.current_meta |= running[-1]

    def enter(path: str) -> None:
        running.append({**_path(path), **_line(sys._getframe(2))})
        tell()

    def leave() -> None:
        running.pop()
        tell()

    hooks = []
    for path, module in model.named_modules():
        hooks += [
            module.register_forward_pre_hook(lambda *_, path=path: enter(path), prepend=True),
            module.register_forward_hook(lambda *_: leave(), always_call=True),
        ]
    try:
        with fx_traceback.preserve_node_meta():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def mark_backward(loss: torch.Tensor) -> list[torch.Tensor]:
    """Nodes of the backward pass will get the sequence number of the op that they derive.

    Returns the tensors that will get a gradient.
    """
    leaves = []
    seen = set()
    left = [loss.grad_fn]
    while left:
        function = left.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if hasattr(function, "variable"):
            leaves.append(function.variable)
        number = function._sequence_nr()
        function.register_prehook(lambda *_, number=number: fx_traceback.set_grad_fn_seq_nr(number))
        function.register_hook(lambda *_: fx_traceback.reset_grad_fn_seq_nr())
        left += [following for following, _ in function.next_functions]
    return leaves


def label_backward(graph: fx.Graph) -> None:
    """Give marked nodes the labels of the node of the forward pass with their number."""
    forward: dict[int, fx.Node] = {}
    for node in graph.nodes:
        number = node.meta.get("seq_nr")
        if any(label in node.meta for label in _LABELS):
            # The first: what follows without a derivative of its own has the number as well.
            forward.setdefault(number, node)
        elif number in forward:
            node.meta |= {k: forward[number].meta[k] for k in _LABELS if k in forward[number].meta}


def label_update(node: fx.Node, parameter: str) -> None:
    """Say which parameter a node updates."""
    node.meta |= _path(parameter)


def _line(frame: types.FrameType | None) -> dict[str, str]:
    """As a stack of one line: the innermost that is not torch's, if it is in the user's program."""
    while frame is not None and frame.f_code.co_filename.startswith(TORCH_FOLDER):
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename.startswith(OUR_FOLDER):
        return {}
    return {"stack_trace": f'File "{frame.f_code.co_filename}", line {frame.f_lineno}'}


def _path(path: str) -> dict[str, dict[str, tuple[str, type]]]:
    """As torch.export writes it: the outer modules first, of which nobody asks here."""
    return {"nn_module_stack": {path: (path, nn.Module)}}
