"""Plans bare graphs of many families and prints one table: our peak against the best of all peers.

Every run writes its tables as CSV, with the machine and the versions in its first lines, and exits
with 1 if a plan has a higher peak than a peer's order or is not what it says.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import families
import peers
from program import Program, peak_bytes
from results import FOLDER, Row, Table, check_output, circumstances, write_csv
from rich.console import Console
from rich.progress import track

import torch_ext

KIB, MIB = 2**10, 2**20
ANYTIME_BUDGETS = (0.1, 2.0, 60.0)
SPEED_SIZES = (1_000, 10_000, 100_000)
SPEED_DEGREE = 3
SPEED_RUNS = 3  # the fastest counts

HEADER = (
    "instance",
    "ops",
    "unit",
    "original",
    "best peer",
    "peer",
    "ours",
    "bound",
    "gap %",
    "status",
    "ms",
)
SUMMARY_HEADER = (
    "family",
    "instances",
    "ours / best peer",
    "above best peer",
    "optimal %",
    "mean gap of rest %",
    "ms",
)
ANYTIME_HEADER = ("instance", "ops", *(f"{budget:g} s" for budget in ANYTIME_BUDGETS), "bound")
SPEED_HEADER = ("ops", "ms", "status", "exponent")
WORDS = ("instance", "unit", "peer", "status", "family")
# The file has bytes, and the peak of every peer, the original order among them.
CSV_HEADER = (
    "family",
    "instance",
    "ops",
    "best peer",
    "peer",
    "ours",
    "bound",
    "status",
    "method",
    "proof",
    "ms",
    *peers.PEERS,
)
EXTRACTED = "extracted"


@dataclass(frozen=True)
class Result:
    """One instance: the plan, how long it took, and the judged peaks of all orders."""

    program: Program
    plan: torch_ext.Plan
    seconds: float
    judged_bytes: int
    peers: dict[str, int]

    @property
    def original_bytes(self) -> int:
        """The judged peak of the original order."""
        return self.peers[peers.original.__name__]

    @property
    def best_peer(self) -> str:
        """The peer with the lowest peak, the first of equals."""
        return min(self.peers, key=self.peers.__getitem__)

    @property
    def best_bytes(self) -> int:
        """The lowest peak of a peer."""
        return self.peers[self.best_peer]

    @property
    def gap(self) -> float:
        """How far the peak is above the bound, as a part of the bound."""
        bound = self.plan.lower_bound_bytes
        return self.judged_bytes / bound - 1 if bound else 0.0

    @property
    def above(self) -> bool:
        """Is a peer better?"""
        return self.judged_bytes > self.best_bytes

    def failures(self) -> list[str]:
        """What is wrong with the result; nothing if all is well."""
        plan, bound = self.plan, self.plan.lower_bound_bytes
        found = []
        if self.above:
            found.append(f"{self.judged_bytes} bytes, {self.best_peer} has {self.best_bytes}")
        for said, judged in (
            (plan.peak_bytes, self.judged_bytes),
            (plan.original_peak_bytes, self.original_bytes),
        ):
            if said != judged:
                found.append(f"the plan says {said} bytes, the judge {judged}")
        if bound > min(self.judged_bytes, self.best_bytes):
            found.append(f"an order needs less than the bound of {bound} bytes")
        if (plan.status == "optimal") != (plan.peak_bytes == bound):
            found.append(f"{plan.status}, with a bound of {bound} bytes")
        return found

    def cells(self) -> Row:
        """The row of the printed table."""
        unit, divisor = _unit(self.original_bytes)
        original, best, ours, bound = (
            f"{size / divisor:.2f}"
            for size in (
                self.original_bytes,
                self.best_bytes,
                self.judged_bytes,
                self.plan.lower_bound_bytes,
            )
        )
        return (
            self.program.name,
            str(self.plan.ops),
            unit,
            original,
            best,
            self.best_peer,
            ours,
            bound,
            f"{100 * self.gap:.2f}",
            self.plan.status,
            f"{1000 * self.seconds:.1f}",
        )

    def csv_cells(self) -> Row:
        """The row of the file."""
        plan = self.plan
        return (
            self.program.family,
            self.program.name,
            str(plan.ops),
            str(self.best_bytes),
            self.best_peer,
            str(self.judged_bytes),
            str(plan.lower_bound_bytes),
            plan.status,
            plan.method,
            plan.proof,
            f"{1000 * self.seconds:.1f}",
            *(str(self.peers.get(name, "")) for name in peers.PEERS),
        )


def _unit(size_bytes: int) -> tuple[str, int]:
    """The unit in which a size is easy to read, and its bytes."""
    if size_bytes >= MIB:
        return "MiB", MIB
    return ("KiB", KIB) if size_bytes >= KIB else ("B", 1)


# --- measure ------------------------------------------------------------------------------------


def _timed_plan(graph: torch_ext.Graph, time_budget: float) -> tuple[torch_ext.Plan, float]:
    """A plan and the seconds it took."""
    start = time.perf_counter()
    plan = torch_ext.plan(graph, time_budget=time_budget)
    return plan, time.perf_counter() - start


def _measure(program: Program, time_budget: float) -> Result:
    plan, seconds = _timed_plan(program.to_graph(), time_budget)
    return Result(program, plan, seconds, peak_bytes(program, plan.order), peers.peaks(program))


@dataclass(frozen=True)
class Outcome:
    """What a run prints, what it writes, with which notes, and what went wrong."""

    printed: list[Table]
    written: Table
    notes: list[str]
    failures: list[str]


def _compare(programs: Iterable[Program], time_budget: float) -> Outcome:
    """Our plans against the peers' orders."""
    results, failures = [], []
    for program in programs:
        results.append(_measure(program, time_budget))
        failures += [f"{program.name}: {failure}" for failure in results[-1].failures()]
    written = Table(CSV_HEADER, [result.csv_cells() for result in results])
    summary = summary_of(written)
    return Outcome(
        [Table(HEADER, [result.cells() for result in results], WORDS), summary],
        written,
        [
            f"time budget: {time_budget:g} s",
            *(", ".join(row) for row in (summary.header, *summary.rows)),
        ],
        failures,
    )


def summary_of(written: Table) -> Table:
    """A row per family, and one for all, from the table that is written."""
    by_family: dict[str, list[dict[str, str]]] = {}
    records = written.records()
    for record in records:
        by_family.setdefault(record["family"], []).append(record)
    if records:
        by_family["all"] = records
    rows = [_summary_row(family, members) for family, members in by_family.items()]
    return Table(SUMMARY_HEADER, rows, WORDS)


def mean_ratio(records: Sequence[Mapping[str, str]], peer: str) -> float:
    """The geometric mean of our peaks over those of a peer."""
    peaks = [(int(record["ours"]), int(record[peer])) for record in records if record[peer]]
    return statistics.geometric_mean(ours / theirs if theirs else 1 for ours, theirs in peaks)


def _summary_row(family: str, records: Sequence[Mapping[str, str]]) -> Row:
    rest = [
        int(record["ours"]) / int(record["bound"]) - 1
        for record in records
        if record["status"] != "optimal"
    ]
    above = sum(int(record["ours"]) > int(record["best peer"]) for record in records)
    return (
        family,
        str(len(records)),
        f"{mean_ratio(records, 'best peer'):.3f}",
        str(above),
        f"{100 * (1 - len(rest) / len(records)):.1f}",
        f"{100 * statistics.mean(rest):.2f}" if rest else "",
        f"{sum(float(record['ms']) for record in records):.0f}",
    )


def _anytime(programs: Iterable[Program]) -> Outcome:
    """The peaks of growing budgets in bytes, and where one rises."""
    rows: list[Row] = []
    failures = []
    for program in programs:
        graph = program.to_graph()
        plans = [torch_ext.plan(graph, time_budget=budget) for budget in ANYTIME_BUDGETS]
        peaks = [peak_bytes(program, plan.order) for plan in plans]
        if peaks != sorted(peaks, reverse=True):
            failures.append(f"{program.name}: the peak rises with the budget: {peaks}")
        bound = max(plan.lower_bound_bytes for plan in plans)
        rows.append((program.name, str(len(program.ops)), *map(str, (*peaks, bound))))
    table = Table(ANYTIME_HEADER, rows, WORDS)
    return Outcome([table], table, [], failures)


def _speed(time_budget: float) -> Outcome:
    """Wall time of planning series-parallel graphs, and how it grows from one size to the next."""
    rows: list[Row] = []
    before: tuple[int, float] | None = None
    for ops in SPEED_SIZES:
        graph = families.series_parallel(ops, SPEED_DEGREE, seed=0).to_graph()
        plans = [_timed_plan(graph, time_budget) for _ in range(SPEED_RUNS)]
        seconds = min(seconds for _, seconds in plans)
        exponent = ""
        if before:
            exponent = f"{math.log(seconds / before[1]) / math.log(ops / before[0]):.2f}"
        rows.append((str(ops), f"{1000 * seconds:.1f}", plans[0][0].status, exponent))
        before = ops, seconds
    table = Table(SPEED_HEADER, rows, WORDS)
    return Outcome([table], table, [f"time budget: {time_budget:g} s"], [])


# --- instances ----------------------------------------------------------------------------------


def extracted_graphs(folder: pathlib.Path) -> list[Program]:
    """The graphs in the text format in a folder, such as `analyze --extract` writes them.

    Raises ValueError naming the file if the planner would not accept one.
    """
    found = []
    for path in sorted(folder.glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        try:
            torch_ext.Graph.from_text(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        found.append(Program.from_text(path.stem, EXTRACTED, text))
    return found


def _programs(options: argparse.Namespace) -> Iterable[Program]:
    """The chosen programs, built one after the other; shows how far it is on a terminal only."""
    chosen = [
        instance
        for instance in families.instances()
        if options.family in (None, instance.family) and (instance.quick or not options.quick)
    ]
    with_extracted = options.graphs and options.family in (None, EXTRACTED)
    extracted = extracted_graphs(options.graphs) if with_extracted else []
    terminal = Console(stderr=True)
    return track(
        itertools.chain((instance.build() for instance in chosen), extracted),
        "instances",
        total=len(chosen) + len(extracted),
        console=terminal,
        disable=not terminal.is_terminal,
    )


def _dump(programs: Iterable[Program], folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for program in programs:
        text = program.to_graph().to_text()
        (folder / f"{program.name}.txt").write_text(text, encoding="utf-8")


# --- arguments ----------------------------------------------------------------------------------


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _options() -> argparse.Namespace:
    known = [*dict.fromkeys(instance.family for instance in families.instances()), EXTRACTED]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=known, help="only this one")
    parser.add_argument("--quick", action="store_true", help="one instance of each family")
    parser.add_argument(
        "--graphs", type=pathlib.Path, metavar="DIR", help="with the graphs in these text files"
    )
    parser.add_argument(
        "--time-budget", type=_positive, default=2.0, metavar="SECONDS", help="default: 2"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--anytime", action="store_true", help="compare budgets, without peers")
    mode.add_argument("--speed", action="store_true", help="time against ops, without peers")
    mode.add_argument(
        "--dump", type=pathlib.Path, metavar="DIR", help="write the graphs as text files, no more"
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        metavar="CSV",
        help="default: benchmarks/results/planner-DATE.csv, with the mode in its name",
    )
    parser.add_argument("--markdown", action="store_true", help="print tables for the README")
    options = parser.parse_args()
    if options.graphs and not options.graphs.is_dir():
        parser.error(f"{options.graphs} is not a folder")
    mode_name = "-anytime" if options.anytime else "-speed" if options.speed else ""
    file = f"planner{mode_name}-{datetime.date.today()}.csv"
    options.output = options.output or FOLDER / "results" / file
    check_output(parser, options.output)
    return options


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    try:
        programs = _programs(options)
    except (OSError, ValueError) as error:
        sys.exit(f"planner.py: {error}")
    if options.dump:
        _dump(programs, options.dump)
        return
    if options.speed:
        outcome = _speed(options.time_budget)
    elif options.anytime:
        outcome = _anytime(programs)
    else:
        outcome = _compare(programs, options.time_budget)
    for table in outcome.printed:
        table.show(options.markdown)
    failures = [f"failed: {failure}" for failure in outcome.failures]
    comments = [*circumstances(), *outcome.notes, *failures]
    write_csv(options.output, comments, outcome.written)
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
