"""One line in a training script: the whole step as one graph, in an order of low peak memory."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from torch_ext import arguments
from torch_ext.training.capture import Clipping, LossFunction
from torch_ext.training.front import training_front
from torch_ext.training.planned_graph import Runtime, TrainingReport
from torch_ext.training.step import StepOptions, TrainingStep
from torch_ext.training.updates import UnsupportedError

__all__ = ["TrainingReport", "TrainingStep", "UnsupportedError", "training_front", "training_step"]


def training_step(
    model: nn.Module,
    loss_fn: LossFunction | None,
    optimizer: torch.optim.Optimizer,
    example_batch: Sequence[Any] | Mapping[str, Any],
    *,
    clip_grad_norm: float | None = None,
    clip_grad_value: float | None = None,
    accumulate: int = 1,
    on_new_shape: Literal["capture", "eager"] = "capture",
    max_graphs: int = 8,
    runtime: Runtime = "fx",
    time_budget: float = 5.0,
    memory_budget: arguments.MemoryAmount | None = None,
    levers: Iterable[str] | None = None,
    op_seconds: Mapping[str, float] | None = None,
    addresses: bool = False,
) -> TrainingStep:
    """Return `step`; `loss = step(*batch)` replaces forward, backward, update and zero_grad.

    A batch is `(*inputs, target)`; the loss is `loss_fn(model(*inputs), target)`, or the first
    element if that is a tuple. Or a batch is a dict: `loss = step(**batch)` calls `model(**batch)`,
    and the loss is `loss_fn(result)`, `loss_fn(result, batch)`, or without a loss_fn (None) the
    result's attribute `loss`. Losses, parameters, buffers, optimizer state and random numbers are
    those of the eager loop, bit for bit: each graph is checked against it on copies before its
    first use. Model and optimizer stay the owners of everything; capturing changes neither them nor
    the random state. Any optimizer that updates each parameter as if there were no others, in
    torch's default for-loop form, on the CPU.

    `clip_grad_norm`, `clip_grad_value`: as torch.nn.utils.clip_grad_norm_ and clip_grad_value_; the
    norm needs all gradients before the first update, which costs their memory. `accumulate`: update
    after every so many batches. Another shape, dtype or mode gets a graph of its own, up to
    `max_graphs`; beyond that, or with on_new_shape="eager", it runs as the eager loop.
    `runtime`: what runs a graph, the Python code of "fx" or TorchScript's interpreter, which makes
    `step.save(path)` possible: a file that trains in C++. `time_budget`: seconds to plan a graph.
    `levers`, `memory_budget`: as of torch_ext.optimize; the budget is for what a step needs above
    its start, gradients included. With a budget that is not met otherwise some ops run again (the
    lever "repeat": bits stay, dropout and statistics too), as few as meet it, at the least time
    that is found. With such a budget, or with the lever "slice", logits, loss and their gradient
    are made by blocks of rows, and other stretches in parts. `op_seconds`: how long each op takes,
    as `report.op_seconds` of an equal step has them, so that the same ops run again everywhere;
    default: they are measured. With `addresses` steps take their memory from an arena
    (docs/resident.md); processes that train together do not.

    Raises UnsupportedError (a ValueError) that says what cannot be captured, with the source line
    if it is in the model, ValueError for other arguments, and whatever the model raises.
    """
    arguments.choice(on_new_shape, "on_new_shape", ("capture", "eager"))
    arguments.choice(runtime, "runtime", ("fx", "torchscript"))
    clipping = Clipping(
        arguments.limit(clip_grad_norm, "clip_grad_norm"),
        arguments.limit(clip_grad_value, "clip_grad_value"),
    )
    options = StepOptions(
        clipping=clipping,
        accumulate=arguments.count(accumulate, "accumulate"),
        on_new_shape=on_new_shape,
        max_graphs=arguments.count(max_graphs, "max_graphs"),
        runtime=runtime,
        planning=arguments.planning(
            *("all", time_budget, memory_budget, levers),
            offered=arguments.GRAPH_LEVERS,
            op_seconds=op_seconds,
            addresses=addresses,
        ),
    )
    return TrainingStep(model, loss_fn, optimizer, example_batch, options)
