"""How high are planned arenas, beside what every arena needs, and are calls served from them?

One row per program: a frozen module of suite.py, optimised with its addresses, saved and loaded; or
a training step of training.py. Amounts are MiB.

  peak            of the program, results included; the bound of all orders is the report's
  arena, bound    height, and what no order and no placement gets below; `above` in %
  outliving       what outlives a call, and is left to malloc
  first           how the first call after loading went; `deviated`: of CALLS calls after it
  identical       whether all of them had the bits of the program without an arena

`--minimalloc FOLDER` plans the instances there (CSV files of github.com/google/minimalloc,
benchmarks/challenging) instead: each within the capacity in its name. Exits with 1 if a bit
differs, if an arena is more than 5 % above its bound, or if an instance is above its capacity.
"""

from __future__ import annotations

import argparse
import csv
import json
import pathlib
import tempfile
import time
import warnings
from typing import Any

import torch
from children import add_one, row_of
from measuring import mib
from results import Row, Table, add_output, add_resume, circumstances, grow_table, parse_options
from suite import CASES, QUICK, Subject
from torch.utils import _pytree as pytree
from training import TASKS, TRAINING, is_as_the_loop, make_task

import torch_ext
from torch_ext import _sched
from torch_ext.reporting.report import ProgramReport
from torch_ext.tensors.compare import same_bits
from torch_ext.torchscript.pinned import PinnedModule

HEADER = (
    "program",
    "peak MiB",
    "arena MiB",
    "bound MiB",
    "above %",
    "status",
    "outliving MiB",
    "blocks",
    "first",
    "deviated",
    "identical",
    "seconds",
    "remark",
)
WORDS = ("program", "status", "first", "identical", "remark")
CALLS = 3
MOST_ABOVE = 0.05


def _module(name: str) -> dict[str, Any]:
    subject = Subject(CASES[name], 1, "frozen")
    start = time.perf_counter()
    module, report = torch_ext.optimize(subject.script, subject.inputs, addresses=True)
    seconds = time.perf_counter() - start
    assert isinstance(module, PinnedModule)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.pt"
        module.save(path)
        loaded = torch_ext.load(path)
    assert isinstance(loaded, PinnedModule)
    expected = pytree.tree_leaves(subject.script(*subject.inputs))

    def is_same() -> bool:
        return all(map(same_bits, pytree.tree_leaves(loaded(*subject.inputs)), expected))

    same = is_same()
    first = next(iter(loaded.statistics.deviated), "served")
    same &= all(is_same() for _ in range(CALLS))
    deviated = sum(loaded.statistics.deviated.values()) - (first != "served")
    (arena,) = module.reports.values()
    return {
        **_row(report, same, seconds),
        "outliving MiB": mib(arena.outliving_bytes),
        "blocks": str(arena.num_blocks),
        "first": first,
        "deviated": str(deviated),
    }


def _training(name: str) -> dict[str, Any]:
    loop, task = make_task(name), make_task(name)
    start = time.perf_counter()
    step = torch_ext.training_step(
        task.model, task.loss_fn, task.optimizer, task.batch, addresses=True
    )
    seconds = time.perf_counter() - start
    same = is_as_the_loop(loop, task, step, CALLS)
    statistics = step.arena_statistics
    assert statistics is not None
    return {
        **_row(step.report, same, seconds),
        "blocks": str(statistics.served_blocks // max(1, statistics.served)),
        "deviated": str(sum(statistics.deviated.values())),
    }


def _row(report: ProgramReport, same: bool, seconds: float) -> dict[str, Any]:
    arena, bound = report.arena_bytes, report.arena_bound_bytes
    assert arena is not None
    above = None if bound is None else arena / bound - 1
    failures = [] if same else ["not identical"]
    if above is not None and above > MOST_ABOVE:
        failures.append(f"{100 * above:.1f} % above the bound")
    return {
        "peak MiB": mib(report.peak_bytes),
        "arena MiB": mib(arena),
        "bound MiB": mib(bound),
        "above %": "" if above is None else f"{100 * above:.2f}",
        "status": report.arena_status,
        "identical": "yes" if same else "NO",
        "seconds": f"{seconds:.1f}",
        "failures": failures,
    }


def _instance(path: pathlib.Path, time_budget: float) -> None:
    with path.open(encoding="utf-8") as file:
        lifetimes = [
            (int(line["size"]), int(line["lower"]), int(line["upper"]))
            for line in csv.DictReader(file)
        ]
    capacity = int(path.stem.rpartition(".")[2])
    start = time.perf_counter()
    height, bound = _sched.plan_addresses(lifetimes, time_budget, capacity)
    seconds = time.perf_counter() - start
    print(
        f"{path.stem}: {len(lifetimes)} buffers, at least {bound}, capacity {capacity}, "
        f"height {height}, {seconds:.2f} s"
    )
    if height > capacity:
        raise SystemExit(1)


def measure(name: str) -> dict[str, Any]:
    """One row as a dictionary of texts; `failures` are the promises broken."""
    if name.startswith(TRAINING):
        return _training(name.removeprefix(TRAINING))
    with torch.no_grad():
        return _module(name)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=lambda text: text.split(","), metavar="A,B,C")
    parser.add_argument("--all", action="store_true", help="of the suite, not the quick ones alone")
    parser.add_argument("--minimalloc", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--time-budget", type=float, default=30, help="of an instance; default: 30")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: 1")
    parser.add_argument("--seconds", type=float, default=600, help="per row, at most")
    add_resume(parser)
    add_one(parser, "PROGRAM")
    add_output(parser, "addresses")
    options = parse_options(parser)
    if options.one:
        warnings.simplefilter("ignore")
        torch.set_num_threads(options.threads)
        (name,) = options.one
        print(json.dumps(measure(name)))
        return
    if options.minimalloc:
        for path in sorted(options.minimalloc.glob("*.csv")):
            _instance(path, options.time_budget)
        return
    known = (*(CASES if options.all else QUICK), *(f"{TRAINING}{name}" for name in TASKS))
    tasks: list[Row] = [(name,) for name in options.programs or known]
    grow_table(
        Table(HEADER, [], WORDS),
        options,
        [*circumstances(), f"threads: {options.threads}"],
        "programs",
        tasks,
        lambda task: row_of(
            __file__, task, "--threads", str(options.threads), seconds=options.seconds
        ),
    )


if __name__ == "__main__":
    main()
