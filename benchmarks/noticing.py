"""What it costs a training step to notice that model, optimizer or modes are not what they were.

All that is done before a graph runs: looking at modules, attributes, parameters, groups and modes,
and finding the graph; for the networks of training.py, each in a settled step, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import training
from results import Row, Table, add_output, check_output, circumstances, write_csv

from torch_ext import training_step

HEADER = ("model", "modules", "parameters", "step ms", "noticing ms", "of the step %")
WORDS = ("model",)
STEPS, LOOKS = 9, 200
MOST_PERCENT = 1.0


def _milliseconds(run: Callable[[], object], times: int) -> float:
    """The median."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found)


def _row(name: str) -> Row:
    task = training.make_task(name)
    step = training_step(task.model, task.loss_fn, task.optimizer, task.batch)
    for _ in range(2):
        step(*task.batch)
    step_ms = _milliseconds(lambda: step(*task.batch), STEPS)
    world = step._world
    noticing_ms = _milliseconds(lambda: step._graph_for(world.look(tuple(task.batch))), LOOKS)
    return (
        name,
        str(sum(1 for _ in task.model.modules())),
        str(sum(1 for _ in task.model.parameters())),
        f"{step_ms:.1f}",
        f"{noticing_ms:.3f}",
        f"{100 * noticing_ms / step_ms:.2f}",
    )


def main() -> None:
    """Write the CSV; exit with 1 if noticing takes more than a hundredth of a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_output(parser, "noticing")
    options = parser.parse_args()
    check_output(parser, options.output)
    torch.set_num_threads(1)
    table = Table(HEADER, [_row(name) for name in training.TASKS], WORDS)
    table.show(options.markdown)
    write_csv(options.output, circumstances(), table)
    sys.exit(any(float(row[-1]) > MOST_PERCENT for row in table.rows))


if __name__ == "__main__":
    main()
