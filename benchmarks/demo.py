"""What `make demo` runs: lowers the peak memory of two networks, saves them, says what was gained.

The optimised networks are written to the folder demo_out and can be loaded with torch.jit.load.
"""

from __future__ import annotations

import os
import pathlib
import sys

import torch
import zoo

from torch_ext import Report, optimize

MIB = 2**20
ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "demo_out"
MODELS = {
    "randwire_seed1": "RandWire, a randomly wired network of 32 nodes",
    "resnet50": "ResNet-50 of torchvision, frozen",
}


def _print_report(report: Report, saved: pathlib.Path) -> None:
    status = report.status + (f", proven by {report.proof}" if report.proof else "")
    rows = [
        ("original peak", _mib(report.original_peak_bytes)),
        ("planned peak", _mib(report.peak_bytes) + _change(report)),
        ("lower bound", _mib(report.lower_bound_bytes)),
        ("status", status),
    ]
    if report.bottleneck:
        source = _shortened(report.bottleneck.source)
        rows.append(("bottleneck", f"{report.bottleneck.op} at {source}"))
    rows += [
        ("measured before", _mib(report.measured_original_peak_bytes)),
        ("measured after", _mib(report.measured_peak_bytes)),
        ("outputs", "identical" if report.identical else "different"),
        ("planned in", f"{report.seconds:.3f} s"),
        ("saved as", str(saved.relative_to(ROOT))),
    ]
    for name, value in rows:
        print(f"  {name:<17}{value}")
    print(flush=True)


def _mib(size_bytes: int | None) -> str:
    return "not measured" if size_bytes is None else f"{size_bytes / MIB:6.2f} MiB"


def _change(report: Report) -> str:
    return f"  ({100 * (report.peak_bytes / report.original_peak_bytes - 1):+.1f} %)"


def _shortened(source: str) -> str:
    """The place in the project or in the installed package, without the folders before it."""
    return source.rpartition("/site-packages/")[2].removeprefix(f"{ROOT}/")


def _save(module: torch.jit.ScriptModule, path: pathlib.Path) -> None:
    """All or nothing: an interrupted demo leaves no half of a file under that name."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        torch.jit.save(module, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _problem(report: Report) -> str:
    """One sentence for what went wrong, empty if nothing did."""
    before, after = report.measured_original_peak_bytes, report.measured_peak_bytes
    if report.identical is not True:
        return f"the optimised network does not give identical outputs: {report.reason}"
    if before is None or after is None or after >= before:
        return f"the measured peak did not fall: {report.reason}"
    return ""


def main() -> None:
    """Exits with 1 and one sentence if a network is not identical or its peak did not fall."""
    FOLDER.mkdir(exist_ok=True)
    print(f"Peaks are of activations, without parameters. Threads: {torch.get_num_threads()}.\n")
    for name, title in MODELS.items():
        print(title, flush=True)
        script, inputs = zoo.traced(zoo.model(name))
        optimized, report = optimize(script, inputs)
        if problem := _problem(report):
            sys.exit(f"demo: {name}: {problem}")
        saved = FOLDER / f"{name}.pt"
        _save(optimized, saved)
        _print_report(report, saved)


if __name__ == "__main__":
    main()
