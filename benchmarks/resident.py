"""Does the process show the gain? Resident memory, before and after, by malloc.

A frozen module of suite.py before and after `optimize`, saved and loaded; a training step of
training.py as eager loop and as `training_step`, `in` a memory budget where one is named, which
repeats meet. Each runs in fresh processes, with

  glibc        the system's malloc as it is
  glibc, mmap  MALLOC_MMAP_THRESHOLD_=1048576: what is freed goes back to the system at once
  jemalloc, mimalloc, tcmalloc  preloaded; Debian's libjemalloc2, libmimalloc2.0 and
               libtcmalloc-minimal4
  ..., arena   planned addresses, before and after: the plan is in the file of a module; a step
               plans when it is captured, and the eager loop in its first calls

`allocated` is the peak that torch's allocator sees above the start of a settled call, `resident`
the highest memory of the whole process in one, `times` a call against that of `before` under glibc,
run next to it. Medians over processes; `spread` is the largest less the smallest resident memory of
equal processes. Exits with 1 if the allocated peak rises.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from children import ChildError, add_one, run_one
from mallocs import GLIBC, MALLOCS, check_preloaded, environment
from measuring import mib, resident_peak, settled_peak
from results import Growing, Row, Table, add_output, add_resume, circumstances, parse_options
from suite import CASES, Subject
from training import TRAINING, make_task

import torch_ext
from torch_ext import optimize, training_step
from torch_ext.torchscript.pinned import pin_module

PROGRAMS = (
    *("resnet50", "swin_t", "randwire_seed0", "nasnet_a", "unetpp", "ensemble"),
    *(f"{TRAINING}{name}" for name in ("resnet18 2x64", "mobilenet_v3_large 4x128")),
    *(f"{TRAINING}{name}" for name in ("swin_t 2x224", "vit_b_32 1x224", "mlp 12x2048")),
)
HEADER = (
    "program",
    "malloc",
    "allocated before MiB",
    "allocated after MiB",
    "resident before MiB",
    "resident after MiB",
    "spread MiB",
    "times before",
    "times after",
    "remark",
)
WORDS = ("program", "malloc", "remark")
SAVE = "save"
IN_BUDGET = " in "
ARENA = ", arena"
WAYS = (*MALLOCS, f"{GLIBC}{ARENA}", f"jemalloc{ARENA}")
TIMED_CALLS = 10

Run = Callable[[], object]
Values = dict[str, Any]

# --- in a process of its own ----------------------------------------------------------------------


def _save(program: str, folder: pathlib.Path) -> Values:
    subject = Subject(CASES[program], 1, "frozen")
    subject.script.save(str(folder / "before"))
    pinned, _ = pin_module(subject.script, [subject.inputs])
    pinned.save(folder / f"before{ARENA}")
    optimized, _ = optimize(subject.script, subject.inputs)
    optimized.save(str(folder / "after"))
    pinned, _ = optimize(subject.script, subject.inputs, addresses=True)
    pinned.save(folder / f"after{ARENA}")
    torch.save(subject.inputs, folder / "inputs")
    return {}


def _loaded(folder: pathlib.Path, when: str) -> Run:
    module = torch_ext.load(folder / when)
    inputs = torch.load(folder / "inputs")
    return lambda: module(*inputs)


def _training(name: str, when: str) -> Run:
    name, _, budget = name.partition(IN_BUDGET)
    task = make_task(name)
    addresses = when.endswith(ARENA)
    if when.startswith("before"):
        return torch_ext.pin_addresses(task.eager_step, ()) if addresses else task.eager_step
    step = training_step(
        *(task.model, task.loss_fn, task.optimizer, task.batch),
        memory_budget=budget or None,
        addresses=addresses,
    )
    if step.report.budget_met is False:
        raise RuntimeError(f"the budget is not met: {step.report.reason}")
    return lambda: step(*task.batch)


def _measured(run: Run) -> Values:
    check_preloaded()
    resident = resident_peak(run)
    seconds = []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    deviated = torch_ext.arena_statistics().deviated
    if deviated:
        raise RuntimeError(f"calls that were not as planned: {deviated}")
    return {
        "resident": resident,
        "seconds": statistics.median(seconds),
        "allocated": settled_peak(run),  # last: its bookkeeping takes memory
    }


def _one(program: str, when: str, folder: pathlib.Path) -> Values:
    if program.startswith(TRAINING):
        return _measured(_training(program.removeprefix(TRAINING), when))
    with torch.no_grad():
        return _save(program, folder) if when == SAVE else _measured(_loaded(folder, when))


# --- all of them ----------------------------------------------------------------------------------


def _row(task: Row, options: argparse.Namespace, folder: pathlib.Path) -> Values:
    program, way = task
    malloc = way.removesuffix(ARENA)
    arena = ARENA if way.endswith(ARENA) else ""
    try:
        of_malloc = environment(malloc)
    except LookupError as error:
        return {"remark": str(error), "failures": []}
    saved = folder / program.replace(" ", "_")

    def child(when: str, variables: dict[str, str]) -> Values:
        one, threads = (program, when, str(saved)), ("--threads", str(options.threads))
        return run_one(__file__, one, *threads, environment=variables)

    rounds = []
    try:
        if not program.startswith(TRAINING) and not saved.exists():
            saved.mkdir()
            child(SAVE, {})
        for _ in range(options.repeats):
            before, after = (child(f"{when}{arena}", of_malloc) for when in ("before", "after"))
            reference = before if way == GLIBC else child("before", environment(GLIBC))
            rounds.append((reference, before, after))
    except ChildError as error:
        return error.row()
    return _columns(rounds)


def _columns(rounds: list[tuple[Values, Values, Values]]) -> Values:
    row: Values = {"failures": []}
    spreads = []
    for at, when in ((1, "before"), (2, "after")):
        resident = [each[at]["resident"] for each in rounds]
        spreads.append(max(resident) - min(resident))
        row[f"resident {when} MiB"] = mib(statistics.median_low(resident))
        allocated = statistics.median_low(each[at]["allocated"] for each in rounds)
        row[f"allocated {when} MiB"] = mib(allocated)
        times = [each[at]["seconds"] / each[0]["seconds"] for each in rounds]
        row[f"times {when}"] = f"{statistics.median(times):.2f}"
    row["spread MiB"] = mib(max(spreads)) if len(rounds) > 1 else ""  # of one nobody knows it
    if float(row["allocated after MiB"]) > float(row["allocated before MiB"]):
        row["failures"].append("the allocated peak rose")
    return row


def by_malloc(table: Table) -> Table:
    """A row per program, a column per malloc: resident memory before and after, in MiB."""

    def cells_of(row: dict[str, str]) -> dict[str, str]:
        if row["remark"]:
            return {row["malloc"]: row["remark"]}
        return {"allocated": _change(row, "allocated"), row["malloc"]: _change(row, "resident")}

    return table.gather(["program"], ["allocated", *WAYS], cells_of)


def _change(row: dict[str, str], what: str) -> str:
    return " → ".join(f"{float(row[f'{what} {when} MiB']):.0f}" for when in ("before", "after"))


def shown(table: Table) -> Table:
    """Of each malloc: how much of the gain in inference processes show, and at what price.

    Over the programs that every malloc ran.
    """
    measured = {
        (row["program"], row["malloc"]): row
        for row in table.records()
        if not row["remark"] and not row["program"].startswith(TRAINING)
    }
    programs, mallocs = (dict.fromkeys(key[at] for key in measured) for at in (0, 1))
    common = [p for p in programs if all((p, malloc) in measured for malloc in mallocs)]
    lines = []
    for malloc in WAYS:
        rows = [measured[program, malloc] for program in common if malloc in mallocs]
        if not rows:
            continue
        gains = {
            what: sum(
                float(row[f"{what} before MiB"]) - float(row[f"{what} after MiB"]) for row in rows
            )
            for what in ("allocated", "resident")
        }
        times = {
            when: statistics.geometric_mean(float(row[f"times {when}"]) for row in rows)
            for when in ("before", "after")
        }
        spreads = [float(row["spread MiB"]) for row in rows if row["spread MiB"]]
        lines.append(
            (
                malloc,
                f"{100 * gains['resident'] / gains['allocated']:.0f} %",
                f"{max(spreads):.1f}" if spreads else "",
                *(f"{sum(float(row[f'resident {w} MiB']) for row in rows):,.0f}" for w in times),
                *(f"{times[when]:.2f}" for when in times),
            )
        )
    header = (
        *("malloc", "of the gain, shown", "largest spread MiB"),
        *("resident before, sum MiB", "after", "time before / glibc's", "after / glibc's before"),
    )
    return Table(header, lines, ("malloc",))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--programs", type=lambda text: text.split(","), default=PROGRAMS, metavar="A,B,C"
    )
    parser.add_argument(
        "--mallocs", type=lambda text: text.split("+"), default=list(WAYS), metavar="A+B"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: 1")
    parser.add_argument("--repeats", type=int, default=3, help="processes of a kind; default: 3")
    add_one(parser, "PROGRAM", "WHEN", "FOLDER")
    add_resume(parser)
    add_output(parser, "resident")
    return parse_options(parser)


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.one:
        warnings.simplefilter("ignore")
        program, when, folder = options.one
        print(json.dumps(_one(program, when, pathlib.Path(folder))))
        return
    comments = [*circumstances(), f"threads: {options.threads}, repeats: {options.repeats}"]
    growing = Growing(Table(HEADER, [], WORDS), options.output, comments, options.resume)
    tasks = [(program, malloc) for program in options.programs for malloc in options.mallocs]
    with tempfile.TemporaryDirectory() as folder:
        growing.measure("rows", tasks, lambda task: _row(task, options, pathlib.Path(folder)))
    for table in (growing.table.without_empty_columns(), shown(growing.table)):
        table.show(options.markdown)
    growing.end()


if __name__ == "__main__":
    main()
