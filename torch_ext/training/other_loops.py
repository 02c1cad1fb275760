"""Loops that people write to save memory, as they run on a copy of a world."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from torch_ext.memory.meter import measure_peak
from torch_ext.training.modes import apart
from torch_ext.training.world import Now, World

_MOST_STEPS = 10  # until the state of an optimizer is there; that of some grows for ever


@dataclasses.dataclass(frozen=True)
class HooksLoop:
    """The loop whose optimizer runs in backward hooks, one parameter as soon as it has a gradient.

    Hooks and parameters hold each other, unseen by the collector: `remove` ends that.
    """

    run: Callable[[], None]
    optimizer: torch.optim.Optimizer
    remove: Callable[[], None]

    def settled_peak(self) -> int:
        """The peak in bytes of a step that makes no state of the optimizer any more."""

        def state_count() -> int:
            return len(pytree.tree_leaves(list(self.optimizer.state.values())))

        for _ in range(_MOST_STEPS):
            before = state_count()
            with measure_peak() as memory:
                self.run()
            if state_count() == before:
                break
        return memory.peak_bytes


def loop_with_hooks(scratch: World, looked: Now) -> HooksLoop | None:
    """Put the optimizer of a copy into hooks.

    None where that loop does something else: clipping by norm needs all gradients, and other
    processes need the gradient before the update.
    """
    clipping = scratch.clipping
    if clipping.norm is not None or scratch.replicas is not None:
        return None
    step = scratch.step_alone(looked, looked.group_of)

    def update(parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if clipping.value is not None:
            nn.utils.clip_grad_value_([parameter], clipping.value)
        step.update(parameter, gradient)
        parameter.grad = None

    hooks = [
        looked.trained[name].register_post_accumulate_grad_hook(update)  # type: ignore[no-untyped-call]
        for name in looked.group_of
    ]

    def run() -> None:
        nonlocal step
        step = scratch.step_alone(looked, looked.group_of)
        with apart():
            scratch.backward(looked)
        step.finish()

    def remove() -> None:
        for hook in hooks:
            hook.remove()

    return HooksLoop(run, scratch.optimizer, remove)


def checkpoint_blocks(model: nn.Module) -> int:
    """Let each block of a model run again in the backward pass, and return how many there are.

    Blocks are what torch's users checkpoint: the elements of Sequential and ModuleList that have
    modules of their own, the outermost ones that are no such list themselves.
    """
    count = 0
    for block in _blocks(model):
        forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        block.forward = forward
        count += 1
    return count


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    is_list = type(module) in (nn.Sequential, nn.ModuleList)
    for child in module.children():
        has_parts = any(True for _ in child.children())
        if is_list and has_parts and not _is_list_of_blocks(child):
            yield child
        else:
            yield from _blocks(child)


def _is_list_of_blocks(module: nn.Module) -> bool:
    return type(module) in (nn.Sequential, nn.ModuleList) and any(
        any(True for _ in child.children()) for child in module.children()
    )
