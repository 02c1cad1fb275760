"""The largest batch of a training step in the memory that the loop needs for a given one.

One row per network, in a process of its own. The budget is all that the loop takes with the batch
in the row: parameters, the optimizer's state, inputs, and the peak of a settled step above them.

  loop, order       the largest batch as the loop, and as our step with order and overwriting
  repeats, extra    the same if ops may run again for a part of the time of all ops at most, and
                    what they take then, in %
  seconds           that all of this took

Every size that is told was run beside the loop, bit for bit.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import training
from children import add_one, row_of
from measuring import mib
from results import Row, Table, add_output, add_resume, circumstances, grow_table, parse_options
from training import Task

from torch_ext import training_capacity, training_step

HEADER = ("model", "budget MiB", "loop", "order", "repeats", "extra", "seconds", "remark")
WORDS = ("model", "remark")
MODELS: dict[str, tuple[int, Callable[[int], Task]]] = {
    "resnet50 8x128": (8, lambda batch: training.classifier("resnet50", batch, 128)),
    "mobilenet_v3_large 4x128": (
        4,
        lambda batch: training.classifier("mobilenet_v3_large", batch, 128),
    ),
    "gpt 6x384 4x256": (4, training.gpt),
    "densenet121 2x128": (2, lambda batch: training.classifier("densenet121", batch, 128)),
}


def _loop_bytes(task: Task) -> int:
    copies = copy.deepcopy((task.model, task.loss_fn, task.optimizer))
    report = training_step(*copies, task.batch, time_budget=0).report
    peak_bytes = report.measured_original_peak_bytes
    assert peak_bytes is not None
    return report.parameter_bytes + report.state_bytes + report.input_bytes + peak_bytes


def measure(name: str, most_extra_time: float) -> dict[str, Any]:
    """One row as a dictionary of texts; `failures` are the promises broken."""
    start = time.perf_counter()
    batch, make = MODELS[name]
    torch.manual_seed(0)
    task = make(batch)
    budget = _loop_bytes(task)
    found = training_capacity(
        *(task.model, task.loss_fn, task.optimizer, lambda size: make(size).batch, budget),
        most_extra_time=most_extra_time,
    )
    assert found.before is not None
    assert found.after is not None
    assert found.with_repeats is not None
    sizes = found.before.size, found.after.size, found.with_repeats.size
    failures = [] if batch <= sizes[0] <= sizes[1] <= sizes[2] else ["a smaller batch"]
    return {
        "budget MiB": mib(budget),
        **dict(zip(HEADER[2:5], map(str, sizes), strict=True)),
        "extra": f"{100 * found.extra_time:.1f}",
        "seconds": f"{time.perf_counter() - start:.0f}",
        "failures": failures,
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="A,B,C")
    parser.add_argument("--most-extra-time", type=float, default=0.2, help="default: 0.2")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: 1")
    parser.add_argument("--seconds", type=float, default=1800, help="per row, at most")
    add_resume(parser)
    add_one(parser, "MODEL")
    add_output(parser, "largest-batch")
    options = parse_options(parser)
    if options.one:
        warnings.simplefilter("ignore")
        torch.set_num_threads(options.threads)
        (name,) = options.one
        print(json.dumps(measure(name, options.most_extra_time)))
        return
    settings = (
        *("--threads", str(options.threads)),
        *("--most-extra-time", str(options.most_extra_time)),
    )
    comments = [
        *circumstances(),
        f"threads: {options.threads}",
        f"most extra time: {options.most_extra_time}",
    ]
    tasks: list[Row] = [(name,) for name in options.models or MODELS]
    grow_table(
        Table(HEADER, [], WORDS),
        options,
        comments,
        "networks",
        tasks,
        lambda task: row_of(__file__, task, *settings, seconds=options.seconds),
    )


if __name__ == "__main__":
    main()
