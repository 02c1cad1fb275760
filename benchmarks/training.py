"""What a training step needs: the eager loop, optimizers in backward hooks, ours, and Inductor's.

One process per network. Memory is the allocator's, above the start of a settled step, gradients in.
Ours is compared with the eager loop bit for bit over ten steps, and in time, in pairs. Resident
memory is the highest of a settled step in a fresh process under --malloc; resident.py compares
them. `file's loss` is the largest relative difference in ten steps of a saved file that
TorchScript's executor may optimise. Exits with 1 if a step differs.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import pathlib
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from children import ChildError, add_one, run_one
from mallocs import add_malloc, best_for_resident, check_preloaded, environment
from measuring import highest_resident, mib, resident_peak, settled_peak, steady, time_ratios
from results import Row, Table, add_output, add_resume, circumstances, grow_table, parse_options
from torch import Tensor, fx, nn

from torch_ext import training_step
from torch_ext.training import TrainingStep
from torch_ext.training.capture import Clipping, Objective
from torch_ext.training.world import World

STEPS = 10
TRAINING = "training "  # begins the name of a step among other programs
HEADER = (
    "model",
    "eager MiB",
    "hooks MiB",
    "ours MiB",
    "torchscript MiB",
    "bound MiB",
    "status",
    "compile MiB",
    "without layout MiB",
    "whole step without layout MiB",
    "identical",
    "time / eager",
    "spread",
    "capture s",
    "torchscript identical",
    "file's loss",
    "eager resident MiB",
    "ours resident MiB",
    "capture resident MiB",
)
WORDS = ("model", "status", "identical", "torchscript identical")

NONE = "-"  # of what there is not, or was not measured
MUST_BE_IDENTICAL = {"ours": "identical", "torchscript": "torchscript identical"}  # to eager

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass
class Task:
    """A network, its loss, its optimizer and one batch."""

    model: nn.Module
    loss_fn: Loss
    optimizer: torch.optim.Optimizer
    batch: tuple[Tensor, Tensor]

    def eager_step(self) -> Tensor:
        """The loop that everybody writes."""
        loss = self.loss_fn(self.model(self.batch[0]), self.batch[1])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


# --- networks -------------------------------------------------------------------------------------


def classifier(name: str, batch: int, side: int, **options: object) -> Task:
    """A network of torchvision with its default initialisation, trained by SGD."""
    from torchvision import models

    network: nn.Module = models.get_model(name, weights=None, **options)
    return Task(
        network,
        nn.functional.cross_entropy,
        torch.optim.SGD(network.parameters(), lr=0.01),
        (torch.randn(batch, 3, side, side), torch.randint(0, 1000, (batch,))),
    )


def mlp(depth: int = 12, width: int = 2048, batch: int = 64) -> Task:
    """Linear layers with ReLU between them, trained by SGD."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    network = nn.Sequential(*layers[:-1])
    return Task(
        network,
        nn.functional.cross_entropy,
        torch.optim.SGD(network.parameters(), lr=0.01),
        (torch.randn(batch, width), torch.randint(0, width, (batch,))),
    )


class Gpt(nn.Module):
    """A decoder of the GPT-2 kind: pre-norm blocks, learned positions, tied head.

    Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
    """

    def __init__(
        self, layers: int = 6, width: int = 384, tokens: int = 256, words: int = 8192
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.positions = nn.Embedding(tokens, width)
        block = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(tokens))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next word at every position."""
        x = self.words(tokens) + self.positions.weight[: tokens.shape[1]]
        x = self.blocks(x, mask=self.mask, is_causal=True)
        return nn.functional.linear(x, self.words.weight)


def gpt(batch: int = 4, tokens: int = 256) -> Task:
    """A GPT of six layers and 8,192 words, trained by AdamW."""
    network = Gpt(tokens=tokens)

    def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())

    words = torch.randint(0, 8192, (batch, tokens))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    return Task(network, loss_fn, optimizer, (words, words.roll(-1, 1)))


TASKS: dict[str, Callable[[], Task]] = {
    "resnet18 2x64": lambda: classifier("resnet18", 2, 64),
    "resnet18 16x64": lambda: classifier("resnet18", 16, 64),
    "mobilenet_v3_large 4x128": lambda: classifier("mobilenet_v3_large", 4, 128),
    "swin_t 2x224": lambda: classifier("swin_t", 2, 224),
    "googlenet 4x128": lambda: classifier(
        "googlenet", 4, 128, aux_logits=False, init_weights=False
    ),
    "densenet121 4x128": lambda: classifier("densenet121", 4, 128),
    "convnext_tiny 2x128": lambda: classifier("convnext_tiny", 2, 128),
    "vit_b_32 1x224": lambda: classifier("vit_b_32", 1, 224),
    "mlp 12x2048": mlp,
    "gpt 6x384": gpt,
}


def make_task(name: str, tasks: Mapping[str, Callable[[], Task]] = TASKS) -> Task:
    """The task of that name, equal on every call. Seeds torch's generator with 0."""
    torch.manual_seed(0)
    return tasks[name]()


def is_as_the_loop(loop: Task, ours: Task, step: TrainingStep, steps: int) -> bool:
    """Are some steps those of an equal task's eager loop, bit for bit? Both go on from there."""
    identical = True
    for number in range(steps):
        torch.manual_seed(number)
        expected = loop.eager_step()
        torch.manual_seed(number)
        identical &= torch.equal(expected, step(*ours.batch))
        states = zip(
            loop.model.state_dict().values(), ours.model.state_dict().values(), strict=True
        )
        identical &= all(torch.equal(a, b) for a, b in states)
    return identical


# --- one measurement, in a process of its own -----------------------------------------------------


def ours(make: Callable[[], Task], pairs: int) -> dict[str, str]:
    """Peaks and times of the captured step of a task, which `make` makes equal on every call."""
    task, other = make(), make()
    step = training_step(task.model, task.loss_fn, task.optimizer, task.batch)
    report = step.report
    identical = is_as_the_loop(other, task, step, STEPS)
    ratios = time_ratios(other.eager_step, lambda: step(*task.batch), pairs, math.inf)
    quarters = statistics.quantiles(ratios, n=4)
    return {
        "eager MiB": mib(settled_peak(other.eager_step)),
        "hooks MiB": mib(report.measured_hooks_peak_bytes) or NONE,
        "ours MiB": mib(settled_peak(lambda: step(*task.batch))),
        "bound MiB": mib(report.lower_bound_bytes),
        "status": report.status,
        "identical": "yes" if identical else "NO",
        "time / eager": f"{quarters[1]:.3f}",
        "spread": f"{quarters[2] - quarters[0]:.3f}",
        "capture s": f"{report.capture_seconds:.1f}",
    }


def _torchscript(name: str) -> dict[str, str]:
    """The step in TorchScript's interpreter, and its file under the default executor, as in C++."""
    task, other = make_task(name), make_task(name)
    step = training_step(
        task.model, task.loss_fn, task.optimizer, task.batch, runtime="torchscript"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "step.pt"
        step.save(path)
        file = torch.jit.load(path)  # type: ignore[no-untyped-call]
    identical, difference = True, 0.0
    for number in range(STEPS):
        torch.manual_seed(number)
        expected = other.eager_step()
        torch.manual_seed(number)
        identical &= torch.equal(expected, step(*task.batch))
        torch.manual_seed(number)
        difference = max(difference, abs(file(*task.batch).item() / expected.item() - 1))
    return {
        "torchscript MiB": mib(settled_peak(lambda: step(*task.batch))),
        "file's loss": f"{difference:.0e}" if difference else "equal",
        "torchscript identical": "yes" if identical else "NO",
    }


def _compiled(name: str, layout: bool) -> dict[str, str]:
    task = make_task(name)
    torch._inductor.config.layout_optimization = layout
    task.model = torch.compile(task.model)  # type: ignore[assignment]
    column = "compile MiB" if layout else "without layout MiB"
    return {column: mib(settled_peak(task.eager_step))}


def whole_step(task: Task) -> tuple[fx.GraphModule, list[Any]]:
    """The graph that we order, and what goes in; a run of it changes the task's parameters."""
    world = World(Objective(task.model, task.loss_fn), task.optimizer, Clipping())
    now = world.look(task.batch)
    captured = world.copy().capture(now, updates=True)
    return captured.module, world.bind(captured, now)


def compile_whole_step(module: fx.GraphModule, inputs: list[Any]) -> Any:
    """By Inductor, which may fuse and reuse.

    Inductor (torch 2.13, 2.14) makes `addmm` of the sum of a tensor and a matrix product and drops
    the sum's alpha, here the learning rate; so the product is multiplied by it beforehand. Its
    decompositions return other strides than eager's kernels, so what was a view may need a copy.
    """
    aten = torch.ops.aten
    module = copy.deepcopy(module)
    for node in module.graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default
    for node in module.graph.nodes:
        if node.target in (aten.add.Tensor, aten.add_.Tensor) and "alpha" in node.kwargs:
            augend, addend = node.args
            with module.graph.inserting_before(node):
                scaled = module.graph.call_function(aten.mul.Tensor, (addend, node.kwargs["alpha"]))
            node.args, node.kwargs = (augend, scaled), {}
    module.recompile()
    with torch.no_grad():
        return torch._inductor.compile(module, inputs)


def _whole_step(name: str) -> dict[str, str]:
    torch._inductor.config.layout_optimization = False  # it needs more in all networks here
    module, inputs = whole_step(make_task(name))
    compiled = compile_whole_step(module, inputs)
    with torch.no_grad():
        return {"whole step without layout MiB": mib(settled_peak(lambda: compiled(*inputs)))}


def _eager_resident(name: str) -> dict[str, str]:
    check_preloaded()
    return {"eager resident MiB": mib(resident_peak(make_task(name).eager_step))}


def _our_resident(name: str) -> dict[str, str]:
    check_preloaded()
    task = make_task(name)
    step = training_step(task.model, task.loss_fn, task.optimizer, task.batch)
    capture = highest_resident()
    return {
        "capture resident MiB": mib(capture),
        "ours resident MiB": mib(resident_peak(lambda: step(*task.batch))),
    }


MEASUREMENTS: dict[str, Callable[[str, int], dict[str, str]]] = {
    "ours": lambda name, pairs: ours(lambda: make_task(name), pairs),
    "torchscript": lambda name, _: _torchscript(name),
    "compile": lambda name, _: _compiled(name, True),
    "compile without layout": lambda name, _: _compiled(name, False),
    "whole step without layout": lambda name, _: _whole_step(name),
    "eager resident": lambda name, _: _eager_resident(name),
    "ours resident": lambda name, _: _our_resident(name),
}


# --- all of them ----------------------------------------------------------------------------------


def _in_a_process(name: str, measurement: str, options: argparse.Namespace) -> dict[str, str]:
    counts = ("--threads", str(options.threads), "--pairs", str(options.pairs))
    malloc = environment(options.malloc) if measurement.endswith("resident") else {}
    try:
        return run_one(__file__, (name, measurement), *counts, environment=malloc)
    except ChildError as error:
        print(f"{name}, {measurement}: {str(error)[:200]}", file=sys.stderr)
        return {MUST_BE_IDENTICAL[measurement]: "NO"} if measurement in MUST_BE_IDENTICAL else {}


def _row(task: Row, options: argparse.Namespace) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(HEADER, NONE)
    for measurement in options.measure:
        row |= _in_a_process(task[0], measurement, options)
    failures = [f"not {column}" for column in MUST_BE_IDENTICAL.values() if row[column] == "NO"]
    return {**row, "failures": failures}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="A,B,C")
    parser.add_argument(
        "--measure", type=lambda text: text.split(","), default=list(MEASUREMENTS), metavar="A,B"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: 1")
    parser.add_argument("--pairs", type=int, default=20, help="of timed steps; default: 20")
    add_malloc(parser, best_for_resident())
    add_resume(parser)
    add_one(parser, "MODEL", "WHAT")
    add_output(parser, "training")
    return parse_options(parser)


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    steady(options.threads)
    if options.one:
        warnings.simplefilter("ignore")
        name, measurement = options.one
        print(json.dumps(MEASUREMENTS[measurement](name, options.pairs)))
        return
    comments = [
        *circumstances(),
        f"threads: {options.threads}, pairs: {options.pairs}",
        f"resident memory under {options.malloc}",
    ]
    tasks = [(name,) for name in options.models or TASKS]
    grow_table(
        Table(HEADER, [], WORDS),
        options,
        comments,
        "networks",
        tasks,
        lambda task: _row(task, options),
    )


if __name__ == "__main__":
    main()
