"""What order gains on standard models, beside what torch itself offers; see suite.py.

One row per model, batch size and form (traced; traced and frozen), each in processes of its own.
What is measured (--measure A,B; by default all):

  ours              of order alone: peaks before and after, planned, proven and by the allocator in
                    the settled executor; identical outputs; time after / before (median and spread,
                    the interquartile range, of pairs); joules per call where the machine tells
  overwrite         the same with overwriting, too: peak, bound over all orders and edits, how many
                    ops overwrite, how many copies are hoisted, time
  orders            the peaks of Inductor's three memory orders on our graph
  eager             the nn.Module
  for inference     torch.jit.freeze and optimize_for_inference
  compile           torch.compile with Inductor
  compile plain     the same without Inductor's layout optimisation
  compile freezing  the same with Inductor's freezing
  resident          the highest memory of a fresh process that loads the saved module, under
                    --malloc

All peaks are the allocator's, of the third call and above its start. Exits with 1 if a module is
not identical, uses more memory than before or was predicted wrongly (by more than 1 %).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import pathlib
import statistics
import tempfile
import warnings
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import version
from typing import Any

import torch
from children import add_one, row_of, run_one
from compilers import COMPILERS, for_inference
from mallocs import add_malloc, best_for_resident, check_preloaded, environment
from measuring import joules, mib, resident_peak, settled_peak, time_ratios
from results import (
    Growing,
    Row,
    Table,
    add_output,
    add_resume,
    change,
    circumstances,
    is_predicted,
    parse_options,
)
from suite import CASES, QUICK, Subject

from torch_ext import Report, analyze, measure_peak, optimize

FORMS = ("traced", "frozen")
LATENCY_SECONDS = 20.0  # at most
RESIDENT = "resident"
FILE = "file"  # what a process of `resident` is told to measure
GAINS = {"none": (-100, 0), "to 5 %": (0, 5), "to 20 %": (5, 20), "more": (20, 100)}
HEADER = (
    "model",
    "batch",
    "form",
    "group",
    "ops",
    "original MiB",
    "planned MiB",
    "bound MiB",
    "gap %",
    "status",
    "measured before MiB",
    "measured after MiB",
    "error %",
    "identical",
    "time",
    "spread",
    "planning s",
    "lpmf MiB",
    "bfs MiB",
    "dfs MiB",
    "eager MiB",
    "for inference MiB",
    "compile MiB",
    "compile plain MiB",
    "compile freezing MiB",
    "resident before MiB",
    "resident after MiB",
    "joules before",
    "joules after",
    "overwrite MiB",
    "overwrite bound MiB",
    "overwrites",
    "hoists",
    "overwrite time",
    "remark",
)
WORDS = ("model", "form", "group", "status", "identical", "joules before", "joules after", "remark")

Values = dict[str, Any]

# --- one measurement, in a process of its own -----------------------------------------------------


@functools.cache
def _optimized(subject: Subject) -> tuple[torch.jit.ScriptModule, Report]:
    return optimize(subject.script, subject.inputs, levers=["order"])


def _ours(subject: Subject, options: argparse.Namespace) -> Values:
    optimized, report = _optimized(subject)
    before = functools.partial(subject.script, *subject.inputs)
    after = functools.partial(optimized, *subject.inputs)
    quarters = statistics.quantiles(_settled_ratios(before, after, options), n=4)
    return {
        **_told(report),
        "time": f"{quarters[1]:.3f}",
        "spread": f"{quarters[2] - quarters[0]:.3f}",
        "joules before": _joules(before),
        "joules after": _joules(after),
    }


def _settled_ratios(
    before: Callable[[], object], after: Callable[[], object], options: argparse.Namespace
) -> list[float]:
    settled_peak(before)
    settled_peak(after)
    return time_ratios(before, after, options.pairs, LATENCY_SECONDS)


def _told(report: Report) -> Values:
    predictions = [
        (report.original_peak_bytes, report.measured_original_peak_bytes),
        (report.peak_bytes, report.measured_peak_bytes),
    ]
    measured = [(predicted, found) for predicted, found in predictions if found is not None]
    failures = [
        f"predicted {predicted} bytes, measured {found}"
        for predicted, found in measured
        if not is_predicted(predicted, found)
    ]
    before, after = report.measured_original_peak_bytes, report.measured_peak_bytes
    if before is None or after is None:
        failures.append(f"its memory was not measured: {report.reason}")
    elif after > before:
        failures.append(f"the measured peak rose from {before} to {after} bytes")
    if report.identical is not True:
        failures.append(f"not identical: {report.reason}")
    errors = [abs(p - found) / found if found else float(p != found) for p, found in measured]
    bound = report.lower_bound_bytes
    return {
        "ops": str(report.ops),
        "original MiB": mib(report.original_peak_bytes),
        "planned MiB": mib(report.peak_bytes),
        "bound MiB": mib(bound),
        "gap %": f"{100 * (report.peak_bytes - bound) / bound if bound else 0:.2f}",
        "status": report.status,
        "measured before MiB": mib(before),
        "measured after MiB": mib(after),
        "error %": f"{100 * max(errors, default=math.nan):.2f}",
        "identical": {True: "yes", False: "NO", None: "not compared"}[report.identical],
        "planning s": f"{report.seconds:.3f}",
        "failures": failures,
    }


def _joules(run: Callable[[], object]) -> str:
    spent = joules(run)
    return "not measurable here" if spent is None else f"{spent:.3g}"


def _overwriting(subject: Subject, options: argparse.Namespace) -> Values:
    optimized, report = optimize(subject.script, subject.inputs)
    before = functools.partial(subject.script, *subject.inputs)
    after = functools.partial(optimized, *subject.inputs)
    ratios = _settled_ratios(before, after, options)
    return {
        "overwrite MiB": mib(report.measured_peak_bytes),
        "overwrite bound MiB": mib(report.lower_bound_bytes),
        "overwrites": str(len(report.overwrites)),
        "hoists": str(len(report.hoists)),
        "overwrite time": f"{statistics.median(ratios):.3f}",
        "failures": [f"overwriting: {told}" for told in _told(report)["failures"]],
    }


def _orders(subject: Subject, options: argparse.Namespace) -> Values:
    import peers  # with Inductor, which takes seconds
    import program

    graph = analyze(subject.script, subject.inputs).graph.to_graph()
    ours = program.Program.from_text(subject.case.name, "models", graph.to_text())
    found = {
        "lpmf MiB": peers.inductor_lpmf,
        "bfs MiB": peers.inductor_bfs,
        "dfs MiB": peers.inductor_dfs,
    }
    return {column: mib(program.peak_bytes(ours, peer(ours))) for column, peer in found.items()}


def _eager(subject: Subject, options: argparse.Namespace) -> Values:
    network, inputs = subject.network, subject.inputs
    return {"eager MiB": mib(settled_peak(lambda: network(*inputs)))}


def _for_inference(subject: Subject, options: argparse.Namespace) -> Values:
    fast = for_inference(subject)
    return {"for inference MiB": mib(settled_peak(lambda: fast(*subject.inputs)))}


def _compiled(compiler: str, subject: Subject, options: argparse.Namespace) -> Values:
    program = COMPILERS[compiler](subject)
    return {f"{compiler} MiB": mib(settled_peak(lambda: program(*subject.inputs)))}


def _resident(subject: Subject, options: argparse.Namespace) -> Values:
    script, inputs = subject.script, subject.inputs
    optimized, _ = _optimized(subject)
    malloc = environment(options.malloc)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(inputs, pathlib.Path(folder, "inputs"))
        found: Values = {}
        for column, module in {"before": script, "after": optimized}.items():
            module.save(pathlib.Path(folder, column))
            at = (folder, "1", column, FILE)
            threads = ("--threads", str(options.threads))
            found |= run_one(__file__, at, *threads, environment=malloc)
    return found


def _resident_file(folder: str, column: str) -> Values:
    check_preloaded()
    module: Any = torch.jit.load(pathlib.Path(folder, column))  # type: ignore[no-untyped-call]
    inputs = torch.load(pathlib.Path(folder, "inputs"))
    return {f"resident {column} MiB": mib(resident_peak(lambda: module(*inputs)))}


MEASUREMENTS: dict[str, Callable[[Subject, argparse.Namespace], Values]] = {
    "ours": _ours,
    "overwrite": _overwriting,
    "orders": _orders,
    "eager": _eager,
    "for inference": _for_inference,
    **{compiler: functools.partial(_compiled, compiler) for compiler in COMPILERS},
    RESIDENT: _resident,
}
IN_QUICK = ("ours", "overwrite", "orders", "eager", "for inference")
TOGETHER = (*IN_QUICK, RESIDENT)  # in one process: none disturbs another
EVERY_FORM = "-"  # of what does not depend on the form


def measure(subject: Subject, measurements: Sequence[str], options: argparse.Namespace) -> Values:
    """Columns of a row as texts, what went wrong with others as `remark`; `failures`: of ours."""
    row: Values = {"failures": []}
    remarks = []
    with measure_peak():  # from here on the allocator's memory is known
        pass
    if subject.form != EVERY_FORM and (told := _cannot_be_scripted(subject)):
        measurements = [known for known in measurements if known == "eager"]
        remarks.append(told)
    for measurement in measurements:
        try:
            found = MEASUREMENTS[measurement](subject, options)
            row |= {**found, "failures": [*row["failures"], *found.get("failures", ())]}
        except Exception as error:  # of another's code: an empty cell, not a failure of the run
            if measurement in ("ours", "overwrite"):
                raise
            remarks.append(f"{measurement}: {_line(error)}")
    return {**row, "remark": "; ".join(remarks)}


def _cannot_be_scripted(subject: Subject) -> str:
    try:
        subject.script  # noqa: B018
    except Exception as error:  # whatever torch cannot trace
        return f"cannot be {subject.form}: {_line(error)}"
    return ""


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:80]


# --- all of them ----------------------------------------------------------------------------------


class _Measurer:
    """Starts the processes of a row."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._seconds: float = options.seconds
        self._options = (
            *("--threads", str(options.threads)),
            *("--pairs", str(options.pairs)),
            *("--malloc", options.malloc),
        )
        self._measure: list[str] = options.measure
        self._of_every_form: dict[Row, Values] = {}

    def row(self, task: Row) -> Values:
        name, batch, form = task
        row: Values = {"group": CASES[name].group, "failures": []}
        remarks = []
        together = ",".join(known for known in self._measure if known in TOGETHER)
        alone = [known for known in self._measure if known not in TOGETHER]
        for measurements in (together, *alone) if together else alone:
            found = self._child(name, batch, form, measurements)
            if told := found.get("remark"):
                remarks.append(told if measurements == together else f"{measurements}: {told}")
            if measurements == together:
                row["failures"] = found["failures"]
            row |= {column: text for column, text in found.items() if column != "failures"}
        return {**row, "remark": "; ".join(remarks)}

    def _child(self, name: str, batch: str, form: str, measurements: str) -> Values:
        if measurements not in COMPILERS:
            one = (name, batch, form, measurements)
            return row_of(__file__, one, *self._options, seconds=self._seconds)
        one = (name, batch, EVERY_FORM, measurements)
        if one not in self._of_every_form:
            found = row_of(__file__, one, *self._options, seconds=self._seconds)
            self._of_every_form[one] = found
        return self._of_every_form[one]


def totals(table: Table) -> Table:
    """How many rows gained how much of their measured peak, are proven, were predicted."""
    rows = table.records()
    groups = [*dict.fromkeys(row["group"] for row in rows), "all"]
    header = ("group", "rows", "measured", *GAINS, "largest %", "optimal", "within 1 %")
    lines = []
    for group in groups:
        of_group = [row for row in rows if group in (row["group"], "all")]
        measured = [row for row in of_group if row["measured after MiB"]]
        peaks = [
            (float(row["measured before MiB"]), float(row["measured after MiB"]))
            for row in measured
        ]
        gains = [100 * (before - after) / before if before else 0.0 for before, after in peaks]
        lines.append(
            (
                group,
                str(len(of_group)),
                str(len(measured)),
                *(str(sum(low < gain <= high for gain in gains)) for low, high in GAINS.values()),
                f"{max(gains, default=0):.1f}",
                str(sum(row["status"] == "optimal" for row in measured)),
                str(sum(float(row["error %"]) <= 1 for row in measured)),
            )
        )
    return Table(header, lines, ("group",))


def by_model(table: Table) -> Table:
    """A row per model and batch: peaks before and after by form; the rest is of the frozen one."""

    def cells_of(row: dict[str, str]) -> dict[str, str]:
        why_not, _, _ = row["remark"].partition(":")
        peaks = change(row["measured before MiB"], row["measured after MiB"])
        cells = {row["form"]: peaks or why_not, "eager": row["eager MiB"]}
        if row["form"] != "frozen":
            return cells
        orders = [row[f"{order} MiB"] for order in ("lpmf", "bfs", "dfs")]
        return cells | {
            "bound": row["bound MiB"],
            "Inductor's orders": min(filter(None, orders), key=float, default=""),
            "`optimize_for_inference`": row["for inference MiB"],
            **{f"`{compiler}`": row[f"{compiler} MiB"] for compiler in COMPILERS},
            "resident": change(row["resident before MiB"], row["resident after MiB"]),
            "time": row["time"],
            "± spread": row["spread"],
        }

    columns = (
        *("traced", "frozen", "bound", "eager", "Inductor's orders", "`optimize_for_inference`"),
        *(f"`{compiler}`" for compiler in COMPILERS),
        *("resident", "time", "± spread"),
    )
    return table.gather(["model", "batch"], columns, cells_of)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=_known(CASES), default=list(CASES), metavar="A,B,C")
    parser.add_argument("--forms", type=_known(FORMS), default=list(FORMS), metavar="A,B")
    parser.add_argument(
        "--measure", type=_known(MEASUREMENTS), default=list(MEASUREMENTS), metavar="A,B"
    )
    parser.add_argument("--batches", type=lambda text: text.split(","), default=["1", "8"])
    parser.add_argument(
        "--quick", action="store_true", help="ten minutes: fewer models, frozen, no compilers"
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch; default: 2")
    parser.add_argument("--pairs", type=_pairs, default=20, help="of timed calls; default: 20")
    parser.add_argument("--seconds", type=float, default=900, help="per process; default: 900")
    add_malloc(parser, best_for_resident())
    add_one(parser, "MODEL", "BATCH", "FORM", "WHAT")
    add_resume(parser)
    add_output(parser, "models")
    quick, _ = parser.parse_known_args()
    if quick.quick:
        output: pathlib.Path = parser.get_default("output")
        parser.set_defaults(
            models=QUICK,
            forms=["frozen"],
            batches=["1"],
            measure=list(IN_QUICK),
            pairs=8,
            output=output.with_name(output.name.replace("models", "models-quick")),
        )
    return parse_options(parser)


def _pairs(text: str) -> int:
    if int(text) < 2:
        raise argparse.ArgumentTypeError("at least 2 pairs, or their times have no spread")
    return int(text)


def _known(names: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        for name in text.split(","):
            if name not in names:
                known = ", ".join(names)
                raise argparse.ArgumentTypeError(f"no {name!r} here; there are: {known}")
        return text.split(",")

    return parse


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.one:
        warnings.simplefilter("ignore")
        name, batch, form, measurements = options.one
        with torch.no_grad():
            if measurements == FILE:
                print(json.dumps(_resident_file(name, form)))
            else:
                subject = Subject(CASES[name], int(batch), form)
                found = measure(subject, measurements.split(","), options)
                print(json.dumps(found))
        return
    comments = [
        *circumstances(),
        *(f"{package}: {version(package)}" for package in ("torchvision", "transformers")),
        f"threads: {options.threads}, pairs: {options.pairs}",
        f"measured: {', '.join(options.measure)}",
        *([f"resident memory under {options.malloc}"] if RESIDENT in options.measure else []),
    ]
    growing = Growing(Table(HEADER, [], WORDS), options.output, comments, options.resume)
    tasks = [
        (name, batch, form)
        for batch in options.batches  # outermost: an interrupted run has every model
        for name in options.models
        if int(batch) in CASES[name].batches
        for form in options.forms
    ]
    growing.measure("models", tasks, _Measurer(options).row)
    told = totals(growing.table)
    growing.write(
        *(
            f"{', '.join(f'{c}: {v}' for c, v in zip(told.header, row, strict=True))}"
            for row in told.rows
        )
    )
    for table in (growing.table.without_empty_columns(), told):
        table.show(options.markdown)
    growing.end()


if __name__ == "__main__":
    main()
