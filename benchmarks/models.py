"""Optimises the networks of the zoo and prints one table: memory, correctness, latency.

Every run writes its table as CSV, with the machine and the versions in its first lines, and exits
with 1 if a network is not identical, uses more memory than before or was predicted wrongly.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import zoo
from results import Table, add_output, check_output, circumstances, is_predicted, write_csv
from rich.console import Console
from rich.progress import track

from torch_ext import Report, optimize

MIB = 2**20
# The profiling executor profiles in the first call and compiles in the second.
WARM_UP_CALLS = 3

HEADER = (
    "model",
    "ops",
    "original MiB",
    "planned MiB",
    "bound MiB",
    "status",
    "measured before MiB",
    "measured after MiB",
    "error %",
    "identical",
    "latency ratio",
    "planning s",
)
TEXT_COLUMNS = ("model", "status", "identical")


@dataclass(frozen=True)
class Result:
    """What was found out about one network."""

    model: str
    report: Report
    latency_ratio: float  # time of the optimised module / time of the original

    def predictions(self) -> Iterator[tuple[int, int]]:
        """The predicted and the measured peak, before and after. ValueError if unmeasured."""
        report = self.report
        for predicted, measured in (
            (report.original_peak_bytes, report.measured_original_peak_bytes),
            (report.peak_bytes, report.measured_peak_bytes),
        ):
            if measured is None:
                raise ValueError(f"its memory was not measured: {report.reason}")
            yield predicted, measured

    def failures(self) -> list[str]:
        """What is wrong with the result; nothing if all is well."""
        predictions = list(self.predictions())
        (_, before), (_, after) = predictions
        found = []
        if self.report.identical is not True:
            found.append(f"the optimised network is not identical: {self.report.reason}")
        if after > before:
            found.append(f"the measured peak rose from {before} to {after} bytes")
        found += [
            f"predicted {predicted} bytes, measured {measured}"
            for predicted, measured in predictions
            if not is_predicted(predicted, measured)
        ]
        return found

    def cells(self) -> tuple[str, ...]:
        """The row of the table, the same text wherever it is printed."""
        predictions = list(self.predictions())
        (_, before), (_, after) = predictions
        error = max(abs(p - m) / m if m else float(p != m) for p, m in predictions)
        report = self.report
        return (
            self.model,
            str(report.ops),
            _mib(report.original_peak_bytes),
            _mib(report.peak_bytes),
            _mib(report.lower_bound_bytes),
            report.status,
            _mib(before),
            _mib(after),
            f"{100 * error:.2f}",
            "yes" if report.identical else "no",
            f"{self.latency_ratio:.3f}",
            f"{report.seconds:.3f}",
        )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.2f}"


# --- measure ------------------------------------------------------------------------------------


def _measure(model: zoo.Model, scope: str, pairs: int) -> Result:
    script, inputs = zoo.traced(model)
    optimized, report = optimize(script, inputs, scope=scope)
    result = Result(model.name, report, _latency_ratio(script, optimized, inputs, pairs))
    result.cells()  # complain here, where the model is known
    return result


def _latency_ratio(
    original: torch.jit.ScriptModule,
    optimized: torch.jit.ScriptModule,
    inputs: tuple[torch.Tensor, ...],
    pairs: int,
) -> float:
    """The median over pairs of runs; every other pair runs the optimised module first."""

    def seconds(module: torch.jit.ScriptModule) -> float:
        start = time.perf_counter()
        module(*inputs)
        return time.perf_counter() - start

    ratios = []
    with torch.no_grad():
        for _ in range(WARM_UP_CALLS):
            seconds(original)
            seconds(optimized)
        for pair in range(pairs):
            if pair % 2:
                after, before = seconds(optimized), seconds(original)
            else:
                before, after = seconds(original), seconds(optimized)
            ratios.append(after / before)
    return statistics.median(ratios)


# --- output -------------------------------------------------------------------------------------


def _circumstances(options: argparse.Namespace) -> list[str]:
    return [
        *circumstances(),
        f"threads: {torch.get_num_threads()}",
        f"scope: {options.scope}, pairs: {options.pairs}",
    ]


# --- arguments ----------------------------------------------------------------------------------


def _models(text: str) -> list[zoo.Model]:
    try:
        return [zoo.model(name) for name in text.split(",")]
    except KeyError as error:
        raise argparse.ArgumentTypeError(error.args[0]) from None


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=_models, default=list(zoo.MODELS), metavar="A,B,C")
    parser.add_argument("--threads", type=_positive, default=2, help="of torch; default: 2")
    parser.add_argument(
        "--pairs", type=_positive, default=30, help="of runs for the latency; default: 30"
    )
    parser.add_argument("--scope", choices=("all", "bottleneck"), default="all")
    add_output(parser, "models")
    options = parser.parse_args()
    check_output(parser, options.output)
    return options


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    torch.set_num_threads(options.threads)
    rows: list[tuple[str, ...]] = []
    failures: list[str] = []
    terminal = Console(stderr=True)
    for model in track(
        options.models, "models", console=terminal, disable=not terminal.is_terminal
    ):
        try:
            result = _measure(model, options.scope, options.pairs)
        except (RuntimeError, ValueError) as error:
            told = str(error).strip() or type(error).__name__
            failures.append(f"{model.name}: {told.splitlines()[-1]}")
            continue
        rows.append(result.cells())
        failures += [f"{model.name}: {failure}" for failure in result.failures()]
    table = Table(HEADER, rows, TEXT_COLUMNS)
    (table.print_markdown if options.markdown else table.print)()
    comments = [*_circumstances(options), *(f"failed: {failure}" for failure in failures)]
    write_csv(options.output, comments, table)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
