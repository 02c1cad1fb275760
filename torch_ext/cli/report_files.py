"""Files that show what was found: a page, a trace, a table."""

import argparse
import os
from typing import TYPE_CHECKING

from torch_ext.files import write_text
from torch_ext.input_spec import make_inputs
from torch_ext.progress import progress
from torch_ext.reporting import Findings, to_csv, to_html, to_trace

if TYPE_CHECKING:
    import torch

    from torch_ext.torchscript.optimize import Report

MOST_KEPT_BYTES = 2**30


def with_report_files(sub: argparse.ArgumentParser) -> None:
    """Take where to write them."""
    for option, text in (
        ("--html", "write a page that shows what was found; opens in any browser"),
        ("--trace", "write memory over the ops for Perfetto or chrome://tracing"),
        ("--csv", "write memory over the ops as a table"),
    ):
        sub.add_argument(option, metavar="FILE", help=text)


def report_files(options: argparse.Namespace) -> dict[str, str | None]:
    """Return the files asked for, by their options."""
    return {"--html": options.html, "--trace": options.trace, "--csv": options.csv}


def write_report_files(
    options: argparse.Namespace,
    report: "Report",
    module: "torch.jit.ScriptModule",
    process_bytes: int | None,
) -> None:
    """Write what was asked for. `process_bytes`: resident before the model was loaded."""
    if not any(report_files(options).values()):
        return
    from torch_ext.torchscript.optimize import peak_with_gradients

    with progress("writing the report"):
        gradient_peak_bytes = None
        # A call with gradients keeps about all buffers, which may be more than there is.
        if options.html and sum(buffer.bytes for buffer in report.graph.buffers) <= MOST_KEPT_BYTES:
            gradient_peak_bytes = peak_with_gradients(module, make_inputs(options.input))
        inputs = tuple(options.input)
        findings = Findings(
            report.graph,
            report,
            os.path.basename(options.model),
            inputs,
            process_bytes,
            gradient_peak_bytes,
        )
        for path, convert in (
            (options.html, to_html),
            (options.trace, to_trace),
            (options.csv, to_csv),
        ):
            if path:
                write_text(path, convert(findings))
