"""Optimises every classification and segmentation network of torchvision, one process per network.

Each is built without weights, fed the smallest image it accepts, and taken in three forms: traced,
traced and frozen, and scripted where scripting works. One row per network and form: are the outputs
identical, is the predicted peak within 1 % of the measured one, is the peak never higher. Exits
with 1 if not. What is too large or too slow for the machine is listed as skipped; no network ends
the run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing.pool
import subprocess
import sys
import warnings
from typing import Any

import torch
import zoo
from children import ChildError, add_one, run_one
from results import (
    Row,
    Table,
    add_output,
    check_output,
    circumstances,
    is_predicted,
    read_csv,
    write_csv,
)
from rich.console import Console
from rich.progress import track

from torch_ext import Report, enabled, measure_peak, optimize

MIB = 2**20
SIDES = (32, 64, 96, 128, 224, 256, 299)  # the smallest that runs is taken
FORMS = ("traced", "frozen", "scripted")
HEADER = (
    "model",
    "form",
    "side",
    "ops",
    "original MiB",
    "planned MiB",
    "bound MiB",
    "status",
    "measured before MiB",
    "measured after MiB",
    "with the pass MiB",
    "identical",
    "remark",
)
WORDS = ("model", "form", "status", "identical", "remark")


def all_names() -> list[str]:
    """All classification and segmentation networks, in torchvision's own order."""
    models = zoo.import_torchvision().models
    return [
        *models.list_models(module=models),
        *models.list_models(module=models.segmentation),
    ]


# --- one network, in a process of its own --------------------------------------------------------


def _network(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    models = zoo.import_torchvision().models
    torch.manual_seed(0)
    kind = {"weights": None}
    if name in models.list_models(module=models.segmentation):
        network: torch.nn.Module = models.get_model(name, weights_backbone=None, **kind)
    elif name in ("googlenet", "inception_v3"):
        network = models.get_model(name, init_weights=True, **kind)
    else:
        network = models.get_model(name, **kind)
    network.eval()
    for side in SIDES:
        image = torch.randn(1, 3, side, side)
        with torch.no_grad(), contextlib.suppress(RuntimeError, AssertionError, ValueError):
            network(image)
            return network, image
    raise RuntimeError(f"does not run on images of {SIDES} pixels")


class _FirstOfDict(torch.nn.Module):
    """The segmentation networks return a dictionary, which cannot be traced."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The logits."""
        logits: torch.Tensor = self.network(image)["out"]
        return logits


def _form(network: torch.nn.Module, image: torch.Tensor, form: str) -> torch.jit.ScriptModule:
    script: torch.jit.ScriptModule
    if form == "scripted":
        script = torch.jit.script(network)
        return script
    with torch.no_grad():
        if isinstance(network(image), dict):
            network = _FirstOfDict(network).eval()
        script = torch.jit.trace(network, image, check_trace=False)  # type: ignore[no-untyped-call]
    return torch.jit.freeze(script) if form == "frozen" else script


def _with_pass(script: torch.jit.ScriptModule, image: torch.Tensor) -> int:
    with torch.no_grad(), enabled():
        script(image)
        script(image)
        with measure_peak() as memory:
            script(image)
    return memory.peak_bytes


def _remark(report: Report) -> str:
    problems = []
    before, after = report.measured_original_peak_bytes, report.measured_peak_bytes
    if report.identical is False:
        problems.append(report.reason)
    if before is not None and after is not None:
        if after > before:
            problems.append("peak rose")
        if not is_predicted(report.peak_bytes, after):
            problems.append(f"predicted {report.peak_bytes / MIB:.2f}")
    return "; ".join(problems)


def measure(name: str, form: str) -> dict[str, Any]:
    """One row as a dictionary of texts; `failed` is true if a promise is broken."""
    network, image = _network(name)
    row: dict[str, Any] = {"model": name, "form": form, "side": str(image.shape[-1])}
    try:
        script = _form(network, image, form)
    except Exception as error:  # whatever torch cannot trace or script
        told = str(error).strip().splitlines() or [type(error).__name__]
        return {**row, "remark": f"cannot be {form}: {told[0][:80]}", "failed": False}
    _, report = optimize(script, (image,))

    def mib(size_bytes: int | None) -> str:
        return "" if size_bytes is None else f"{size_bytes / MIB:.2f}"

    fresh = _form(network, image, form)
    remark = _remark(report)
    return {
        **row,
        "ops": str(report.ops),
        "original MiB": mib(report.original_peak_bytes),
        "planned MiB": mib(report.peak_bytes),
        "bound MiB": mib(report.lower_bound_bytes),
        "status": report.status,
        "measured before MiB": mib(report.measured_original_peak_bytes),
        "measured after MiB": mib(report.measured_peak_bytes),
        "with the pass MiB": mib(_with_pass(fresh, image)),
        "identical": {True: "yes", False: "NO", None: "not run"}[report.identical],
        "remark": remark or (report.reason if report.identical is None else ""),
        "failed": bool(remark),
    }


# --- all of them --------------------------------------------------------------------------------


def _in_a_process(task: tuple[str, str], seconds: float) -> dict[str, Any]:
    name, form = task
    row = {"model": name, "form": form, "failed": False}
    try:
        return run_one(__file__, task, seconds=seconds)
    except subprocess.TimeoutExpired:
        return {**row, "remark": f"skipped: more than {seconds:.0f} s"}
    except ChildError as error:
        if error.exit_code == -9:
            return {**row, "remark": "skipped: more memory than there is"}
        return {**row, "remark": f"FAILED: {str(error)[:120]}", "failed": True}


def _cells(result: dict[str, Any]) -> Row:
    return tuple(result.get(column, "") for column in HEADER)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="A,B,C")
    parser.add_argument("--forms", type=lambda text: text.split(","), default=list(FORMS))
    parser.add_argument("--seconds", type=float, default=300, help="per network and form")
    parser.add_argument("--jobs", type=int, default=2, help="networks at once; default: 2")
    parser.add_argument("--resume", action="store_true", help="keep the rows that OUTPUT has")
    add_one(parser, "MODEL", "FORM")
    add_output(parser, "torchvision")
    options = parser.parse_args()
    if not options.one:
        check_output(parser, options.output)
    return options


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    if options.one:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        print(json.dumps(measure(*options.one)))
        return
    terminal = Console(stderr=True)
    table = Table(HEADER, [], WORDS)
    if options.resume:
        table.rows.extend(_cells(row) for row in read_csv(options.output, HEADER))
    kept = {row[:2] for row in table.rows}
    names = options.models or all_names()
    tasks = [(name, form) for name in names for form in options.forms]
    tasks = [task for task in tasks if task not in kept]
    comments = [*circumstances(), "threads: 1"]
    failed = []
    with multiprocessing.pool.ThreadPool(options.jobs) as pool:
        results = pool.imap(functools.partial(_in_a_process, seconds=options.seconds), tasks)
        for result in track(
            results, "networks", len(tasks), console=terminal, disable=not terminal.is_terminal
        ):
            if result["failed"]:
                failed.append(f"{result['model']} {result['form']}: {result['remark']}")
                comments.append(f"failed: {failed[-1]}")
            table.rows.append(_cells(result))
            write_csv(options.output, comments, table)
    (table.print_markdown if options.markdown else table.print)()
    for told in failed:
        print(f"failed: {told}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
