"""What slices gain on standard models, and what they cost: see docs/slices.md, suite.py.

One row per model and batch size, in a process of its own: traced and frozen, exported, or a whole
training step (--form), of which "before" is the eager loop.
Peaks are MiB, the allocator's; times are ratios of calls in turns, with slices to without (order
and overwriting):

  order, edits      without slices
  sliced, time      what optimize takes without a budget: the fastest of those tried, if it is not
                    slower (by more than 2 %)
  to 1.02, time     the lowest peak of those tried that take at most 1.02 of the time
  to 1.15, time     the same of 1.15
  least, time       the lowest peak of all that were tried
  whole time        of what optimize takes, beside the module as it was
  hand, hand time, hand bits
                    what people do: the whole model on one sample after the other, and a cat; the
                    time beside the module as it was
  inference, compile, freezing, their times
                    what others offer (--peers): optimize_for_inference, torch.compile without
                    layout optimisation, and with freezing; the time beside what optimize takes
  seconds           of optimize, with all trials

Exits with 1 if a module is not identical, uses more memory than before or was predicted wrongly.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from children import add_one, row_of
from compilers import COMPILERS, for_inference
from mallocs import GLIBC, add_malloc, check_preloaded, environment
from measuring import Run, mib, settled_peak, time_ratios
from results import (
    Row,
    Table,
    add_output,
    add_resume,
    circumstances,
    grow_table,
    is_predicted,
    parse_options,
)
from suite import CASES, QUICK, Subject
from training import Gpt, Task

from torch_ext import fx, optimize, training_step
from torch_ext.program.plan import SliceTrial
from torch_ext.reporting.report import ProgramReport
from torch_ext.training import TrainingReport

HEADER = (
    "model",
    "batch",
    "before MiB",
    "order MiB",
    "edits MiB",
    "sliced MiB",
    "slices",
    "time",
    "to 1.02 MiB",
    "to 1.02 time",
    "to 1.15 MiB",
    "to 1.15 time",
    "least MiB",
    "least time",
    "whole time",
    "floor MiB",
    "hand MiB",
    "hand time",
    "hand bits",
    "inference MiB",
    "inference time",
    "compile MiB",
    "compile time",
    "freezing MiB",
    "freezing time",
    "identical",
    "seconds",
    "remark",
)
WORDS = ("model", "hand bits", "identical", "remark")
LEVERS = ("order", "overwrite", "slice")
NO_SLOWER, MOST_RATIO = 1.02, 1.15
LATENCY_SECONDS = 10.0  # at most


def _lowest(trials: tuple[SliceTrial, ...], most_ratio: float) -> tuple[str, str]:
    within = [trial for trial in trials if trial.time_ratio <= most_ratio]
    if not within:
        return "", ""
    best = min(within, key=lambda trial: trial.peak_bytes)
    return mib(best.peak_bytes), f"{best.time_ratio:.3f}"


def _by_hand(subject: Subject, pairs: int) -> dict[str, str]:
    """The whole model on one sample after the other."""
    if subject.inputs[0].shape[0] < 2:
        return {}
    module: Any = subject.network if subject.form == "exported" else subject.script

    def whole() -> Any:
        return module(*subject.inputs)

    def one_by_one() -> Any:
        samples = [torch.split(x, 1) for x in subject.inputs]
        parts = [module(*one) for one in zip(*samples, strict=True)]
        return torch.cat([part[0] if isinstance(part, tuple) else part for part in parts])

    expected = whole()
    expected = expected[0] if isinstance(expected, tuple) else expected
    peak_bytes = settled_peak(one_by_one)
    ratios = time_ratios(whole, one_by_one, pairs, LATENCY_SECONDS)
    return {
        "hand MiB": mib(peak_bytes),
        "hand time": f"{statistics.median(ratios):.3f}",
        "hand bits": "same" if torch.equal(expected, one_by_one()) else "others",
    }


PEERS: dict[str, Callable[[Subject], Any]] = {
    "inference": for_inference,
    "compile": COMPILERS["compile plain"],
    "freezing": COMPILERS["compile freezing"],
}


def _of_peers(subject: Subject, ours: Run, pairs: int) -> dict[str, str]:
    """What they need, and their time beside ours; what a peer cannot do is a remark."""
    found: dict[str, str] = {}
    remarks = []
    for name, make in PEERS.items():
        try:
            theirs = functools.partial(make(subject), *subject.inputs)
            found[f"{name} MiB"] = mib(settled_peak(theirs))
        except Exception as error:  # of another's code
            remarks.append(f"{name}: {type(error).__name__}")
            continue
        ratios = time_ratios(ours, theirs, pairs, LATENCY_SECONDS)
        found[f"{name} time"] = f"{statistics.median(ratios):.3f}"
    return {**found, "remark": "; ".join(remarks)}


def _failures(report: ProgramReport) -> list[str]:
    failures = [] if report.identical else [f"not identical: {report.reason}"]
    if not is_predicted(report.peak_bytes, report.measured_peak_bytes or 0):
        failures.append(f"predicted {report.peak_bytes}, measured {report.measured_peak_bytes}")
    if report.peak_bytes > report.original_peak_bytes:
        failures.append("peak rose")
    return failures


def _gpt(batch: int) -> Task:
    """A small GPT with many words: most of its memory are logits."""
    torch.manual_seed(0)
    network = Gpt(layers=4, width=128, tokens=128, words=8000)

    def loss_fn(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())

    words = torch.randint(0, 8000, (batch, 128))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    return Task(network, loss_fn, optimizer, (words, words.roll(-1, 1)))


STEPS = {"gpt 4x128 of 8000 words": _gpt}


def _step(name: str, batch: int) -> tuple[TrainingReport, float]:
    task = STEPS[name](batch)
    start = time.perf_counter()
    with torch.enable_grad():
        step = training_step(task.model, task.loss_fn, task.optimizer, task.batch, levers=LEVERS)
    return step.report, time.perf_counter() - start


def _sliced(subject: Subject) -> tuple[Run, ProgramReport, float]:
    """A call of the program, its report, and the seconds that it took."""
    run: Any
    report: ProgramReport
    if subject.form == "exported":
        program = torch.export.export(subject.network.requires_grad_(False), subject.inputs)
        start = time.perf_counter()
        exported, report = fx.reorder(program, subject.inputs, levers=LEVERS)
        run = exported.module()
    else:
        script = subject.script
        start = time.perf_counter()
        run, report = optimize(script, subject.inputs, levers=LEVERS)
    seconds = time.perf_counter() - start
    return functools.partial(run, *subject.inputs), report, seconds


def _beside(subject: Subject, ours: Run, options: argparse.Namespace) -> dict[str, str]:
    """The module as it was, sliced by hand, and as others make it."""
    module: Any = subject.network if subject.form == "exported" else subject.script
    before = functools.partial(module, *subject.inputs)
    settled_peak(before)
    settled_peak(ours)
    ratios = time_ratios(before, ours, options.pairs, LATENCY_SECONDS)
    return {
        "whole time": f"{statistics.median(ratios):.3f}",
        **_by_hand(subject, options.pairs),
        **(_of_peers(subject, ours, options.pairs) if options.peers else {}),
    }


def measure(name: str, batch: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row as a dictionary of texts; `failures` are the promises broken."""
    others: dict[str, str] = {}
    report: ProgramReport
    if options.form == "training":
        step_report, seconds = _step(name, int(batch))
        report, before_bytes = step_report, step_report.measured_original_peak_bytes
    else:
        subject = Subject(CASES[name], int(batch), options.form)
        ours, report, seconds = _sliced(subject)
        before_bytes = report.original_peak_bytes
        others = _beside(subject, ours, options)
    order, edits, slices = report.levers
    used = [trial for trial in report.slice_trials if trial.peak_bytes == report.peak_bytes]
    no_slower, at_no_slower = _lowest(report.slice_trials, NO_SLOWER)
    to_ratio, at_ratio = _lowest(report.slice_trials, MOST_RATIO)
    least, at_least = _lowest(report.slice_trials, float("inf"))
    return {
        "before MiB": mib(before_bytes),
        "order MiB": mib(order.peak_bytes_after),
        "edits MiB": mib(edits.peak_bytes_after),
        "sliced MiB": mib(report.peak_bytes),
        "slices": str(slices.edits),
        "time": f"{used[0].time_ratio:.3f}" if report.slices else "",
        "to 1.02 MiB": no_slower,
        "to 1.02 time": at_no_slower,
        "to 1.15 MiB": to_ratio,
        "to 1.15 time": at_ratio,
        "least MiB": least,
        "least time": at_least,
        "floor MiB": mib(report.floor_bytes),
        **others,
        "identical": "yes" if report.identical else "NO",
        "seconds": f"{seconds:.1f}",
        "remark": "; ".join(filter(None, (slices.reason, others.get("remark")))),
        "failures": _failures(report),
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), default=QUICK)
    parser.add_argument("--batches", type=lambda text: text.split(","), default=["1", "8"])
    parser.add_argument("--form", choices=("frozen", "exported", "training"), default="frozen")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5, help="of calls; default: 5")
    parser.add_argument("--peers", action="store_true", help="measure what others offer, too")
    add_malloc(parser, GLIBC)
    parser.add_argument("--seconds", type=float, default=900, help="per row, at most")
    add_resume(parser)
    add_one(parser, "MODEL", "BATCH")
    add_output(parser, "slices")
    options = parse_options(parser)
    if options.one:
        warnings.simplefilter("ignore")
        torch.set_num_threads(options.threads)
        with torch.no_grad():
            name, batch = options.one
            check_preloaded()
            print(json.dumps(measure(name, batch, options)))
        return
    comments = [
        *circumstances(),
        f"threads: {options.threads}",
        f"form: {options.form}",
        f"malloc: {options.malloc}",
    ]
    models = list(STEPS) if options.form == "training" else options.models
    tasks: list[Row] = [(name, batch) for name in models for batch in options.batches]
    settings = (
        *("--threads", str(options.threads)),
        *("--pairs", str(options.pairs)),
        *("--form", options.form),
        *(["--peers"] if options.peers else ()),
    )
    malloc = environment(options.malloc)
    grow_table(
        Table(HEADER, [], WORDS),
        options,
        comments,
        "models",
        tasks,
        lambda task: row_of(__file__, task, *settings, seconds=options.seconds, environment=malloc),
    )


if __name__ == "__main__":
    main()
