"""What is known of a program after a door has looked at it. Needs no torch."""

import dataclasses
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch_ext.amounts import MIB, amount
from torch_ext.arguments import FilePath
from torch_ext.columns import Rows, two_columns
from torch_ext.files import write_text, writing
from torch_ext.program.graph import TimelineEntry
from torch_ext.program.plan import (
    LeverPlan,
    LeverUse,
    Plan,
    Reason,
    SliceTrial,
    joined,
    listed,
    why_given_up,
)
from torch_ext.program.program import Buffer, Hoist, Overwrite, Program, Repeat, Slice
from torch_ext.program.repeats import extra_time, rows_of
from torch_ext.reporting.findings import Findings
from torch_ext.reporting.page import to_html
from torch_ext.reporting.timeline import to_csv, to_snapshot, to_trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SLICES = 12  # that are shown to people
MOST_SHOWN_OPS = 3000  # in a notebook
_FRAME = "width: 100%; height: 40em; border: 1px solid gray"


@dataclasses.dataclass(frozen=True)
class PeakBuffer:
    """A buffer that is alive when the peak is reached."""

    name: str
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    op: str
    module_path: str
    source: str


@dataclasses.dataclass(frozen=True)
class ProgramReport(Plan):
    """A plan, what it is a plan of, and what was measured. Peaks are bytes of activations.

    Parameters and the caller's inputs are reported beside the peaks, not in them.
    """

    measured_original_peak_bytes: int | None  # by the allocator
    measured_peak_bytes: int | None
    identical: bool | None  # all that a run leaves behind; None: not compared
    threads: int
    parameter_bytes: int
    input_bytes: int
    reasons: tuple[Reason, ...] = dataclasses.field(repr=False)  # why nothing was gained
    reason: str  # the same as text; empty if something was gained
    timeline_before: tuple[TimelineEntry, ...] = dataclasses.field(repr=False)
    timeline_after: tuple[TimelineEntry, ...] = dataclasses.field(repr=False)
    at_peak: tuple[PeakBuffer, ...] = dataclasses.field(repr=False)  # of the planned order
    levers: tuple[LeverUse, ...] = dataclasses.field(repr=False)  # those asked for
    overwrites: tuple[Overwrite, ...] = dataclasses.field(repr=False)
    hoists: tuple[Hoist, ...] = dataclasses.field(repr=False)
    slices: tuple[Slice, ...] = dataclasses.field(repr=False)
    slice_trials: tuple[SliceTrial, ...] = dataclasses.field(repr=False)
    repeats: tuple[Repeat, ...] = dataclasses.field(repr=False)
    floor_bytes: int | None  # proven under any use of the levers asked for
    # Sums of what ops take, measured one by one and rounded; None where repeats were not planned.
    call_seconds: float | None  # all ops, each run once
    extra_seconds: float | None  # the repeats
    extra_seconds_bound: float | None  # of all orders and repeats that meet the budget
    # A run of each op, as a plan may be given them.
    op_seconds: Mapping[str, float] | None = dataclasses.field(repr=False)
    # Of planned addresses; None without. The bound holds for all orders and placements.
    arena_bytes: int | None = dataclasses.field(default=None, kw_only=True)
    arena_bound_bytes: int | None = dataclasses.field(default=None, kw_only=True)
    graph: Program = dataclasses.field(repr=False, compare=False)  # before any edit
    edited: Program = dataclasses.field(repr=False, compare=False)  # what the plan is of

    def __str__(self) -> str:
        return two_columns(self.rows())

    def rows(self) -> Rows:
        """The plan and what was measured: for people."""
        identical = {None: "not compared", True: "identical", False: "different"}[self.identical]
        sizes = f"{amount(self.parameter_bytes)}, {amount(self.input_bytes)}"
        rows = [
            *super().rows(),
            *self._edits(),
            ("measured before", amount(self.measured_original_peak_bytes)),
            ("measured after", amount(self.measured_peak_bytes)),
            ("outputs", identical),
            *self._arena(),
            ("threads", str(self.threads)),
            ("parameters, inputs", sizes),
        ]
        if self.reason:
            rows.append(("no gain because", self.reason))
        return rows

    def _arena(self) -> Rows:
        if self.arena_bytes is None:
            return []
        text = amount(self.arena_bytes)
        if self.arena_bound_bytes is not None:
            text += f", at least {amount(self.arena_bound_bytes)}"
        return [("arena", f"{text} ({self.arena_status})")]

    def _edits(self) -> Rows:
        """What was done beside the order, and what was given up."""
        edits = ("overwrites", self.overwrites), ("copies hoisted", self.hoists)
        rows = [(name, str(len(done))) for name, done in edits if done]
        if self.slices:
            rows.append(("slices", str(len(self.slices))))
            rows += [(f"  {use.parts} parts", str(use)) for use in self.slices[:MOST_SLICES]]
            if len(self.slices) > MOST_SLICES:
                rows.append(("", f"and {len(self.slices) - MOST_SLICES} more"))
            (used,) = (use.extra_seconds for use in self.levers if use.name == "slice")
            rows.append(("  time of a call", f"{used * 1000:+.1f} ms, as measured in turns"))
        return [*rows, *rows_of(self.repeats, self.extra_time()), *why_given_up(self.levers)]

    def _ways(self) -> str:
        is_asked = any(use.name == "overwrite" for use in self.levers)
        return "no order and no overwriting" if is_asked else super()._ways()

    def _needed(self, buffers: Sequence[str]) -> str:
        findings = self._findings()

        def described(name: str) -> str:
            buffer, maker = findings.buffers.get(name), findings.maker.get(name)
            if buffer is None or not buffer.dtype:
                return name
            origin = f"of {maker.name}" if maker else f"({name})"
            return f"{amount(buffer.bytes)} {buffer.dtype} {list(buffer.shape)} {origin}"

        return listed(buffers, described)

    @property
    def arena_status(self) -> str | None:
        """'optimal' if no order and no placement needs a lower arena, else 'feasible'."""
        if self.arena_bytes is None:
            return None
        return "optimal" if self.arena_bytes == self.arena_bound_bytes else "feasible"

    def extra_time(self) -> str:
        """What the repeats take, and what is proven of that: for people."""
        return extra_time(self.extra_seconds, self.extra_seconds_bound, self.call_seconds)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, `"format": 1` included; without the graphs."""
        nothing = Program((), ())
        fields = Plan.to_dict(dataclasses.replace(self, graph=nothing, edited=nothing))
        del fields["graph"], fields["edited"]
        return fields

    def save_html(self, path: FilePath, title: str = "") -> None:
        """Write the page that shows it, whole or not at all, as files.writing does."""
        write_text(path, to_html(self._findings(title)))

    def save_csv(self, path: FilePath) -> None:
        """Write memory over the ops as a table, whole or not at all, as files.writing does."""
        write_text(path, to_csv(self._findings()))

    def save_trace(self, path: FilePath, title: str = "") -> None:
        """Write memory over the ops for Perfetto or chrome://tracing; as save_csv."""
        write_text(path, to_trace(self._findings(title)))

    def save_snapshot(self, path: FilePath) -> None:
        """Write the planned order as a snapshot for torch's memory_viz; as save_csv."""
        with writing(path) as file:
            file.write(to_snapshot(self._findings()))

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw memory over the ops with matplotlib, before and after, on `axes` if given.

        Raises ImportError if there is no matplotlib.
        """
        if axes is None:
            from matplotlib import pyplot

            axes = pyplot.subplots()[1]
        for name, timeline in (("before", self.timeline_before), ("after", self.timeline_after)):
            axes.plot([entry.hill_bytes / MIB for entry in timeline], label=name)
        axes.axhline(self.lower_bound_bytes / MIB, linestyle="--", label="lower bound")
        axes.set_xlabel("ops that have run")
        axes.set_ylabel("memory, MiB")
        axes.legend()
        return axes

    def _repr_html_(self) -> str:
        """What notebooks show: the rows, and behind a click the page."""
        cells = "".join(
            f'<tr><th scope="row" style="text-align: left">{html.escape(name)}</th>'
            f'<td style="text-align: left">{html.escape(value)}</td></tr>'
            for name, value in self.rows()
        )
        table = f"<table>{cells}</table>"
        if self.ops > MOST_SHOWN_OPS:
            return f"{table}<p>The page of so many ops is large: save_html writes it.</p>"
        page = html.escape(to_html(self._findings()), quote=True)
        frame = f'<iframe srcdoc="{page}" loading="lazy" style="{_FRAME}"></iframe>'
        return f"{table}<details><summary>memory over the ops</summary>{frame}</details>"

    def _findings(self, title: str = "") -> Findings:
        return Findings(self.graph, self, title)


@dataclasses.dataclass(frozen=True)
class Verification:
    """What verify found. Peaks are the highest of all examples, in bytes of activations."""

    difference: str  # the first; empty if there is none
    measured_original_peak_bytes: int
    measured_peak_bytes: int

    @property
    def identical(self) -> bool:
        """Whether all that a run leaves behind is the same, bit for bit."""
        return not self.difference


def held_to(plan: Plan, measured: Iterable[int | None]) -> tuple[Plan, tuple[Reason, ...]]:
    """Return the plan, or without its bound and why: the rule for every door that measures.

    `measured`: peaks in bytes of runs of the planned graph, whatever their order; None was not
    measured. Every order needs the bound at least, so a run that needs less, by a byte, was of
    other sizes than were planned, and nothing is proven. There is no tolerance: what the probe sees
    and what runs is the same to the byte (of all runs in tests/fuzz and of all models measured,
    none was below its bound). The caller keeps the original program, for this reason.
    """
    known = [peak_bytes for peak_bytes in measured if peak_bytes is not None]
    if not known or min(known) >= plan.lower_bound_bytes:
        return plan, ()
    unproven = dataclasses.replace(
        plan,
        lower_bound_bytes=0,
        status="feasible",
        proof="",
        bottleneck=None,
        regions=tuple(dataclasses.replace(region, proof="") for region in plan.regions),
    )
    why = Reason.of("below_bound", size_bytes=min(known), other_bytes=plan.lower_bound_bytes)
    return unproven, (why,)


def in_original_order(plan: Plan, graph: Program, memory_budget: int | None) -> Plan:
    """Return what the plan says of the original order of its graph, which is kept."""
    peak_bytes = plan.original_peak_bytes
    is_optimal = peak_bytes == plan.lower_bound_bytes
    return dataclasses.replace(
        plan,
        peak_bytes=peak_bytes,
        status="optimal" if is_optimal else "feasible",
        proof=plan.proof if is_optimal else "",
        method="original",
        moved_ops=0,
        budget_met=None if memory_budget is None else peak_bytes <= memory_budget,
        order=tuple(op.name for op in graph.ops),
        regions=tuple(dataclasses.replace(region, method="original") for region in plan.regions),
    )


def kept_original(found: LeverPlan, memory_budget: int | None) -> LeverPlan:
    """Return what the plan says of the original program, which is kept."""
    plan = in_original_order(found.plan, found.graph, memory_budget)
    if found.overwrites or found.hoists or found.slices:
        # It may be of an op or a buffer that the original does not have.
        plan = dataclasses.replace(plan, bottleneck=None)
    return dataclasses.replace(
        found, edited=found.graph, overwrites=(), hoists=(), slices=(), repeats=(), plan=plan
    )


def described(found: LeverPlan, reasons: Sequence[Reason]) -> dict[str, Any]:
    """Those fields of a ProgramReport that follow from a program, its plan, and why it is so."""
    findings = Findings(found.graph, found.plan, edits=found)
    fields = {field.name: getattr(found.plan, field.name) for field in dataclasses.fields(Plan)}
    bottleneck = found.plan.bottleneck
    if bottleneck is not None:
        source = findings.ops[bottleneck.op].source
        fields["bottleneck"] = dataclasses.replace(bottleneck, source=source)

    def at_peak(buffer: Buffer) -> PeakBuffer:
        op = findings.maker[buffer.name]
        look = buffer.shape, buffer.dtype
        return PeakBuffer(buffer.name, buffer.bytes, *look, op.name, op.module_path, op.source)

    after = findings.after
    return {
        **fields,
        "timeline_before": findings.before.timeline,
        "timeline_after": after.timeline,
        "at_peak": tuple(map(at_peak, findings.alive(after, after.peak_step))),
        "reasons": tuple(reasons),
        "reason": joined(reasons),
        "levers": found.levers,
        "overwrites": found.overwrites,
        "hoists": found.hoists,
        "slices": found.slices,
        "slice_trials": found.slice_trials,
        "repeats": found.repeats,
        "call_seconds": found.times and found.times.call_seconds,
        "extra_seconds": found.times and found.times.extra_seconds,
        "extra_seconds_bound": found.times and found.times.extra_seconds_bound,
        "op_seconds": found.times and found.times.op_seconds,
        "floor_bytes": found.held_floor_bytes,
        "graph": found.graph,
        "edited": found.edited,
    }
