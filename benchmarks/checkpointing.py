"""Training steps beside what else saves their memory: our time at the same peak.

One row per network and way, in a process of its own. Peaks are MiB, the allocator's, of a settled
step above its start. Our step gets the peak of the other way as its memory budget.

  theirs, their time   of the loop in that way; the time beside the loop as it is written, in turns
  their state          whether losses, parameters and buffers are the loop's after three steps
  ours                 of our step under that budget, and whether it meets it
  extra, bound         what our repeats take, and what any order and any repeats take at least, in %
                       of the sum of the times of all ops
  our time             beside the other way, in turns: below 1 we are faster

Ways: the loop, its optimizer in backward hooks, the blocks of the model checkpointed by torch, both
of these, torch.compile with activation_memory_budget (`aot_eager 0.5`, `inductor 0.5`), and
torch.compile with our backend and a share of the peak of its step as memory budget (`torch_ext
0.5`). Exits with 1 if our bits are not the loop's.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import math
import statistics
import warnings
from typing import Any

import torch
from children import add_one, row_of
from front import STEPS, TASKS
from mallocs import GLIBC, add_malloc, check_preloaded, environment
from measuring import Run, mib, settled_peak, steady, time_ratios
from results import Row, Table, add_output, add_resume, circumstances, grow_table, parse_options
from training import Task, is_as_the_loop, make_task

from torch_ext import training_step
from torch_ext.training.capture import Clipping, Objective
from torch_ext.training.other_loops import checkpoint_blocks, loop_with_hooks
from torch_ext.training.world import World

HEADER = (
    "model",
    "way",
    "theirs MiB",
    "their time",
    "their state",
    "ours MiB",
    "met",
    "extra %",
    "bound %",
    "our time",
    "identical",
    "remark",
)
WORDS = ("model", "way", "their state", "met", "identical", "remark")
WAYS = (
    "loop",
    "hooks",
    "checkpoint",
    "checkpoint and hooks",
    *(
        f"{backend} {share}"
        for backend in ("torch_ext", "aot_eager", "inductor")
        for share in (0.75, 0.5, 0.25)
    ),
)


def run_of(task: Task, way: str) -> Run | None:
    """A step in that way; None if the model has no blocks."""
    if "checkpoint" in way and not checkpoint_blocks(task.model):
        return None
    if "hooks" in way:
        world = World(Objective(task.model, task.loss_fn), task.optimizer, Clipping())
        loop = loop_with_hooks(world, world.look(task.batch))
        assert loop is not None
        return loop.run
    backend, _, share = way.partition(" ")
    if backend == "torch_ext":
        plain = copy.deepcopy(task)
        compiled: Any = torch.compile(plain.model, backend=backend)
        peak_bytes = settled_peak(dataclasses.replace(plain, model=compiled).eager_step)
        torch._dynamo.reset()
        budget = int(float(share) * peak_bytes)
        compiled = torch.compile(task.model, backend=backend, options={"memory_budget": budget})
        return dataclasses.replace(task, model=compiled).eager_step
    if backend in ("aot_eager", "inductor"):
        torch._functorch.config.activation_memory_budget = float(share)
        compiled = torch.compile(task.model, backend=backend)
        return dataclasses.replace(task, model=compiled).eager_step
    return task.eager_step


def _is_as_written(name: str, way: str) -> bool:
    """Are parameters and buffers the loop's after some steps?"""
    task, loop = make_task(name, TASKS), make_task(name, TASKS)
    run = run_of(task, way)
    assert run is not None
    for number in range(STEPS):
        for step in (loop.eager_step, run):
            torch.manual_seed(number)
            step()
    states = zip(loop.model.state_dict().values(), task.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in states)


def measure(name: str, way: str, pairs: int) -> dict[str, Any]:
    """One row as a dictionary of texts; `failures` are the promises broken."""
    theirs = run_of(make_task(name, TASKS), way)
    if theirs is None:
        return {"remark": "no blocks to checkpoint", "failures": []}
    peak_bytes = settled_peak(theirs)
    loop, ours, other = (make_task(name, TASKS) for _ in range(3))
    cost = statistics.median(time_ratios(loop.eager_step, theirs, pairs, math.inf))
    found = {
        "theirs MiB": mib(peak_bytes),
        "their time": f"{cost:.3f}",
        "their state": "the loop's" if _is_as_written(name, way) else "another",
    }
    step = training_step(
        ours.model,
        ours.loss_fn,
        ours.optimizer,
        ours.batch,
        memory_budget=peak_bytes,
        levers=("order", "overwrite", "repeat"),
    )
    report = step.report
    same = is_as_the_loop(other, ours, step, STEPS)
    run = functools.partial(step, *ours.batch)
    ratio = statistics.median(time_ratios(theirs, run, pairs, math.inf))

    def share(part: float | None) -> str:
        if part is None or not report.call_seconds:
            return ""
        return f"{100 * part / report.call_seconds:.2f}"

    return {
        **found,
        "ours MiB": mib(settled_peak(run)),
        "met": "yes" if report.budget_met else "no",
        "extra %": share(report.extra_seconds),
        "bound %": share(report.extra_seconds_bound),
        "our time": f"{ratio:.3f}",
        "identical": "yes" if same else "NO",
        "remark": report.levers[-1].reason,
        "failures": [] if same else ["not identical"],
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="A,B,C")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=WAYS, metavar="A,B")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: 1")
    parser.add_argument("--pairs", type=int, default=5, help="of timed steps; default: 5")
    parser.add_argument("--seconds", type=float, default=900, help="per row, at most")
    add_malloc(parser, GLIBC)
    add_resume(parser)
    add_one(parser, "MODEL", "WAY")
    add_output(parser, "checkpointing")
    options = parse_options(parser)
    if options.one:
        warnings.simplefilter("ignore")
        steady(options.threads)
        check_preloaded()
        name, way = options.one
        print(json.dumps(measure(name, way, options.pairs)))
        return
    comments = [
        *circumstances(),
        f"malloc: {options.malloc}",
        f"threads: {options.threads}",
        f"pairs: {options.pairs}",
    ]
    malloc = environment(options.malloc)
    tasks: list[Row] = [(name, way) for name in options.models or TASKS for way in options.ways]
    settings = ("--threads", str(options.threads), "--pairs", str(options.pairs))
    grow_table(
        Table(HEADER, [], WORDS),
        options,
        comments,
        "steps",
        tasks,
        lambda task: row_of(__file__, task, *settings, seconds=options.seconds, environment=malloc),
    )


if __name__ == "__main__":
    main()
