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
import json
import warnings
from typing import Any

import torch
import zoo
from children import add_one, row_of
from measuring import mib, settled_peak
from results import (
    Growing,
    Table,
    add_output,
    add_resume,
    circumstances,
    is_predicted,
    parse_options,
)

from torch_ext import Report, enabled, optimize

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
    from torchvision import models

    return [
        *models.list_models(module=models),
        *models.list_models(module=models.segmentation),
    ]


# --- one network, in a process of its own --------------------------------------------------------


def _network(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    network = zoo.torchvision_network(name)
    network.eval()
    for side in SIDES:
        image = torch.randn(1, 3, side, side)
        with torch.no_grad(), contextlib.suppress(RuntimeError, AssertionError, ValueError):
            network(image)
            return network, image
    raise RuntimeError(f"does not run on images of {SIDES} pixels")


def _form(network: torch.nn.Module, image: torch.Tensor, form: str) -> torch.jit.ScriptModule:
    script: torch.jit.ScriptModule
    if form == "scripted":
        script = torch.jit.script(network)
        return script
    with torch.no_grad():
        if isinstance(network(image), dict):
            network = zoo.SegmentationLogits(network).eval()
        script = torch.jit.trace(network, image, check_trace=False)  # type: ignore[no-untyped-call]
    return torch.jit.freeze(script) if form == "frozen" else script


def _with_pass(script: torch.jit.ScriptModule, image: torch.Tensor) -> int:
    with torch.no_grad(), enabled():
        return settled_peak(lambda: script(image))


def _failures(report: Report) -> list[str]:
    problems = []
    before, after = report.measured_original_peak_bytes, report.measured_peak_bytes
    if report.identical is False:
        problems.append(report.reason)
    if before is not None and after is not None:
        if after > before:
            problems.append("peak rose")
        if not is_predicted(report.peak_bytes, after):
            problems.append(f"predicted {mib(report.peak_bytes)}")
    return problems


def measure(name: str, form: str) -> dict[str, Any]:
    """One row as a dictionary of texts; `failures` are the promises broken."""
    network, image = _network(name)
    row: dict[str, Any] = {"side": str(image.shape[-1]), "failures": []}
    try:
        script = _form(network, image, form)
    except Exception as error:  # whatever torch cannot trace or script
        told = str(error).strip().splitlines() or [type(error).__name__]
        return {**row, "remark": f"cannot be {form}: {told[0][:80]}"}
    _, report = optimize(script, (image,))

    fresh = _form(network, image, form)
    failures = _failures(report)
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
        "remark": "; ".join(failures) or (report.reason if report.identical is None else ""),
        "failures": failures,
    }


# --- all of them --------------------------------------------------------------------------------


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="A,B,C")
    parser.add_argument("--forms", type=lambda text: text.split(","), default=list(FORMS))
    parser.add_argument("--seconds", type=float, default=300, help="per network and form")
    parser.add_argument("--jobs", type=int, default=2, help="networks at once; default: 2")
    add_resume(parser)
    add_one(parser, "MODEL", "FORM")
    add_output(parser, "torchvision")
    return parse_options(parser)


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    if options.one:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        print(json.dumps(measure(*options.one)))
        return
    names = options.models or all_names()
    comments = [*circumstances(), "threads: 1"]
    growing = Growing(Table(HEADER, [], WORDS), options.output, comments, options.resume)
    growing.measure(
        "networks",
        [(name, form) for name in names for form in options.forms],
        lambda task: row_of(__file__, task, seconds=options.seconds),
        options.jobs,
    )
    growing.table.show(options.markdown)
    growing.end()


if __name__ == "__main__":
    main()
