"""Training steps under falling memory budgets: memory against time, and what is proven of both.

One row per network and budget, in a process of its own. The budget is a part of the peak of the
best order. Peaks are MiB, the allocator's, of a settled step above its start.

  extra, bound      what the repeats take, and what any order and any repeats take at least, in % of
                    the sum of the times of all ops; the bound is of the same run's times
  time, spread      of a step beside one without repeats, in turns: the median, and the quartiles'
                    distance
  seconds           of training_step, all included; "without": with order and overwriting alone

Exits with 1 if a step's bits are not the loop's, if a measured peak is not the planned one, or if
it is below the floor.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import training
import transformer_models
from children import add_one, row_of
from measuring import mib, settled_peak, steady, time_ratios
from results import Row, Table, add_output, add_resume, circumstances, grow_table, parse_options
from torch import Tensor, nn
from training import Task, is_as_the_loop, make_task

from torch_ext import training_step
from torch_ext.training import TrainingStep

HEADER = (
    "model",
    "budget %",
    "eager MiB",
    "order MiB",
    "budget MiB",
    "measured MiB",
    "floor MiB",
    "met",
    "repeats",
    "extra %",
    "bound %",
    "time",
    "spread",
    "identical",
    "seconds",
    "without",
    "remark",
)
WORDS = ("model", "met", "identical", "remark")
LEVERS = ("order", "overwrite", "repeat")
STEPS = 3


class UNet(nn.Module):
    """Four halvings, and skip connections that live across all of them.

    Source: Ronneberger et al., U-Net, 2015, with padding and batch norm.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        inputs = [3, *widths[:-1]]
        pairs = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
        self.down = nn.ModuleList(self._block(i, o) for i, o in zip(inputs, widths, strict=True))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in pairs)
        self.up = nn.ModuleList(self._block(i, o) for i, o in pairs)
        self.last = nn.Conv2d(width, 2, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Module:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
            layers += [nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Two classes for each place of images."""
        skips: list[Tensor] = []
        for block in self.down:
            x = block(nn.functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat([grow(x), skips.pop()], 1))
        result: Tensor = self.last(x)
        return result


def _unet() -> Task:
    network = UNet()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    batch = torch.randn(2, 3, 128, 128), torch.randint(0, 2, (2, 128, 128))
    return Task(network, nn.functional.cross_entropy, optimizer, batch)


def _language_model(model: str, batch: int, tokens: int, **sizes: int) -> Task:
    """A model of transformers, of base size where `sizes` say nothing else, trained by AdamW."""
    kind = getattr(transformer_models.library(), model)
    network = kind(kind.config_class(attn_implementation="eager", **sizes))
    words = torch.randint(0, network.config.vocab_size, (batch, tokens))

    def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())

    return Task(
        transformer_models.FirstResult(network, ["input_ids"]),
        loss_fn,
        torch.optim.AdamW(network.parameters(), lr=1e-4),
        (words, words.roll(-1, 1)),
    )


_LLAMA = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
TASKS: dict[str, Callable[[], Task]] = {
    "resnet50 8x128": lambda: training.classifier("resnet50", 8, 128),
    "mobilenet_v3_large 4x128": lambda: training.classifier("mobilenet_v3_large", 4, 128),
    "gpt 6x384 4x256": training.gpt,
    "swin_t 2x224": lambda: training.classifier("swin_t", 2, 224),
    "densenet121 2x128": lambda: training.classifier("densenet121", 2, 128),
    "unet 2x128": _unet,
    "resnet18 16x64": lambda: training.classifier("resnet18", 16, 64),
    "vit_b_32 1x224": lambda: training.classifier("vit_b_32", 1, 224),
    "vit_b_16 8x224": lambda: training.classifier("vit_b_16", 8, 224),
    "bert 4x256": lambda: _language_model("BertForMaskedLM", 4, 256),
    "llama 12x768 4x256": lambda: _language_model("LlamaForCausalLM", 4, 256, **_LLAMA),
}


def _step(task: Task, budget_bytes: int | None) -> tuple[TrainingStep, float]:
    start = time.perf_counter()
    levers = LEVERS if budget_bytes is not None else LEVERS[:2]
    step = training_step(
        task.model,
        task.loss_fn,
        task.optimizer,
        task.batch,
        levers=levers,
        memory_budget=budget_bytes,
    )
    return step, time.perf_counter() - start


def measure(name: str, percent: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row as a dictionary of texts; `failures` are the promises broken."""
    plain_task, task, loop = (make_task(name, TASKS) for _ in range(3))
    plain, without = _step(plain_task, None)
    order_bytes = plain.report.levers[0].peak_bytes_after
    budget_bytes = order_bytes * int(percent) // 100
    step, seconds = _step(task, budget_bytes)
    report = step.report
    same = is_as_the_loop(loop, task, step, STEPS)
    measured_bytes = settled_peak(lambda: step(*task.batch))
    ratios = time_ratios(
        lambda: plain(*plain_task.batch), lambda: step(*task.batch), options.pairs, math.inf
    )
    quarters = statistics.quantiles(ratios, n=4)

    def share(part: float | None) -> str:
        if part is None or not report.call_seconds:
            return ""
        return f"{100 * part / report.call_seconds:.2f}"

    failures = [] if same else ["not identical"]
    if measured_bytes != report.peak_bytes:
        failures.append(f"planned {report.peak_bytes}, measured {measured_bytes}")
    if report.floor_bytes is not None and measured_bytes < report.floor_bytes:
        failures.append("measured below the floor")
    return {
        "eager MiB": mib(report.measured_original_peak_bytes),
        "order MiB": mib(order_bytes),
        "budget MiB": mib(budget_bytes),
        "measured MiB": mib(measured_bytes),
        "floor MiB": mib(report.floor_bytes),
        "met": "yes" if report.budget_met else "no",
        "repeats": str(len(report.repeats)),
        "extra %": share(report.extra_seconds),
        "bound %": share(report.extra_seconds_bound),
        "time": f"{quarters[1]:.3f}",
        "spread": f"{quarters[2] - quarters[0]:.3f}",
        "identical": "yes" if same else "NO",
        "seconds": f"{seconds:.1f}",
        "without": f"{without:.1f}",
        "remark": report.levers[-1].reason,
        "failures": failures,
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="A,B,C")
    parser.add_argument(
        "--budgets", type=lambda text: text.split(","), default=["70", "50", "40"], metavar="A,B"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: 1")
    parser.add_argument("--pairs", type=int, default=7, help="of timed steps; default: 7")
    parser.add_argument("--seconds", type=float, default=900, help="per row, at most")
    add_resume(parser)
    add_one(parser, "MODEL", "BUDGET")
    add_output(parser, "front")
    options = parse_options(parser)
    if options.one:
        warnings.simplefilter("ignore")
        steady(options.threads)
        name, percent = options.one
        print(json.dumps(measure(name, percent, options)))
        return
    comments = [*circumstances(), f"threads: {options.threads}", f"pairs: {options.pairs}"]
    tasks: list[Row] = [
        (name, percent) for name in options.models or TASKS for percent in options.budgets
    ]
    settings = ("--threads", str(options.threads), "--pairs", str(options.pairs))
    grow_table(
        Table(HEADER, [], WORDS),
        options,
        comments,
        "steps",
        tasks,
        lambda task: row_of(__file__, task, *settings, seconds=options.seconds),
    )


if __name__ == "__main__":
    main()
