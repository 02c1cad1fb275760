"""Plans: an order with its peak, its bound and where both come from. No torch needed."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from torch_ext import _sched
from torch_ext.amounts import amount
from torch_ext.arguments import Planning
from torch_ext.columns import Rows, two_columns
from torch_ext.program.graph import Graph
from torch_ext.program.program import Hoist, Overwrite, Program, Repeat, Slice

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Bottleneck:
    """The op that sets the limit: no order can run it with less than `bytes` in use."""

    op: str
    source: str  # "file:line" of the user's program, empty for a bare graph
    bytes: int
    buffers: tuple[str, ...]  # what must be alive together while it runs


@dataclasses.dataclass(frozen=True)
class Region:
    """A part of the graph that was scheduled on its own."""

    kind: str  # series, parallel or prime
    ops: int
    method: str
    proof: str
    peak_bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """An order with its peak, its bound and where both come from. Sizes are bytes."""

    ops: int
    buffers: int
    original_peak_bytes: int
    peak_bytes: int
    lower_bound_bytes: int
    status: str  # "optimal" exactly when peak_bytes == lower_bound_bytes, else "feasible"
    proof: str  # what proves it: "closure" (one op's need), "search" (exhausted), or empty
    method: str  # the part of the engine that found the order, "original" if nothing moved
    bottleneck: Bottleneck | None
    moved_ops: int  # ops less the longest common subsequence with the original order
    seconds: float  # spent planning
    clock_stopped: bool  # the clock, not the counted work, ended the search
    budget_met: bool | None  # with a memory budget: is the peak within it?
    order: tuple[str, ...] = dataclasses.field(repr=False)
    regions: tuple[Region, ...] = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return two_columns(self.rows())

    @property
    def saved_bytes(self) -> int:
        """How much lower the peak is than in the original order."""
        return self.original_peak_bytes - self.peak_bytes

    def rows(self) -> Rows:
        """What was found, how good it is, what sets the limit: for people, the gain first."""
        rows = [
            ("peak memory", self._gain()),
            ("status", self._status() + (", stopped by the clock" if self.clock_stopped else "")),
            ("moved ops", f"{self.moved_ops} of {self.ops} ({self.method})"),
        ]
        if self.bottleneck:
            where = f" at {self.bottleneck.source}" if self.bottleneck.source else ""
            rows.append(("bottleneck", f"{self.bottleneck.op}{where}"))
            rows.append(("  needs together", self._needed(self.bottleneck.buffers) or "nothing"))
        if self.budget_met is not None:
            rows.append(("memory budget", "met" if self.budget_met else "not met"))
        rows.append(("planned in", f"{self.seconds:.3f} s"))
        return rows

    def _gain(self) -> str:
        if not self.saved_bytes:
            return f"{amount(self.peak_bytes)}, as before"
        less = f"{100 * self.saved_bytes / self.original_peak_bytes:.1f} % less"
        return f"{less}: {amount(self.original_peak_bytes)} -> {amount(self.peak_bytes)}"

    def _status(self) -> str:
        if self.status == "optimal":
            by = f" (proven by {self.proof})" if self.proof else ""
            return f"optimal: {self._ways()} needs less{by}"
        gap = amount(self.peak_bytes - self.lower_bound_bytes)
        bound = amount(self.lower_bound_bytes)
        return f"feasible: {self._ways()} needs less than {bound}, the other {gap} are open"

    def _ways(self) -> str:
        """What the bound is over: for people."""
        return "no order"

    def _needed(self, buffers: Sequence[str]) -> str:
        """Some buffers: for people."""
        return listed(buffers)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, `"format": 1` included."""
        return {"format": FORMAT, **dataclasses.asdict(self)}


def plan_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of Plan from the dict that the extension modules return."""
    bottleneck = fields["bottleneck"]
    if bottleneck is not None:
        bottleneck = Bottleneck(**{**bottleneck, "buffers": tuple(bottleneck["buffers"])})
    return {
        **fields,
        "bottleneck": bottleneck,
        "order": tuple(fields["order"]),
        "regions": tuple(Region(**region) for region in fields["regions"]),
    }


@dataclasses.dataclass(frozen=True)
class LeverUse:
    """What a lever did, after those before it."""

    name: str
    peak_bytes_before: int
    peak_bytes_after: int
    edits: int  # moved ops; overwrites and hoists; slices; repeats
    extra_seconds: float  # for each call
    reason: str  # why it was given up; empty if it was not

    @classmethod
    def left_out(cls, name: str, peak_bytes: int, reason: str) -> Self:
        """Of a lever that did nothing to a program with that peak."""
        return cls(name, peak_bytes, peak_bytes, 0, 0.0, reason)


def why_given_up(levers: Iterable[LeverUse]) -> Rows:
    """Why levers did nothing, or nothing more: for people."""
    return [
        (f"no {'more ' if use.edits else ''}{use.name}", use.reason) for use in levers if use.reason
    ]


@dataclasses.dataclass(frozen=True)
class SliceTrial:
    """A program with slices that was tried, and gave the same bits."""

    peak_bytes: int
    measured_peak_bytes: int  # by the allocator
    slices: int
    seconds: float  # of a call, measured in turns with the program without slices
    seconds_without: float

    @property
    def time_ratio(self) -> float:
        """Of a call with slices to one without."""
        return self.seconds / self.seconds_without


@dataclasses.dataclass(frozen=True)
class Times:
    """What ops take, as measured one by one and rounded; known where repeats were asked for."""

    call_seconds: float  # all ops, each run once
    extra_seconds: float  # the repeats
    # Of every order and every use of repeats that fits the memory budget; None where repeats do
    # not meet it. It says nothing of slices.
    extra_seconds_bound: float | None
    op_seconds: Mapping[str, float]  # a run of each op


@dataclasses.dataclass(frozen=True)
class LeverPlan:
    """A program with what the levers made of it. Equal to the original where they made nothing."""

    graph: Program
    edited: Program
    overwrites: tuple[Overwrite, ...]
    hoists: tuple[Hoist, ...]
    slices: tuple[Slice, ...]
    slice_trials: tuple[SliceTrial, ...]
    floor_bytes: int | None  # proven under any use of the levers asked for
    plan: Plan  # of `edited`
    levers: tuple[LeverUse, ...]
    repeats: tuple[Repeat, ...] = ()
    times: Times | None = None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Build it from the dict that the extension modules return."""
        return cls(
            graph=Program.from_fields(fields["graph"]),
            edited=Program.from_fields(fields["edited"]),
            overwrites=tuple(Overwrite(**overwrite) for overwrite in fields["overwrites"]),
            hoists=tuple(Hoist(**hoist) for hoist in fields["hoists"]),
            slices=tuple(
                Slice(**{**use, "ops": tuple(use["ops"]), "shape": tuple(use["shape"])})
                for use in fields["slices"]
            ),
            slice_trials=tuple(SliceTrial(**trial) for trial in fields["slice_trials"]),
            repeats=tuple(Repeat(**use) for use in fields["repeats"]),
            times=None if fields["times"] is None else Times(**fields["times"]),
            floor_bytes=fields["floor_bytes"],
            plan=Plan(**plan_fields(fields["plan"])),
            levers=tuple(LeverUse(**use) for use in fields["levers"]),
        )

    @property
    def held_floor_bytes(self) -> int | None:
        """The floor, which the bound is below where fewer levers are used than were asked for."""
        floor_bytes = self.floor_bytes
        return None if floor_bytes is None else min(floor_bytes, self.plan.lower_bound_bytes)

    def named(self, names: Mapping[str, str]) -> Self:
        """Return the same with other names of the buffers of the edited program."""

        def of(buffers: Iterable[str]) -> tuple[str, ...]:
            return tuple(names[buffer] for buffer in buffers)

        bottleneck = self.plan.bottleneck
        if bottleneck is not None:
            bottleneck = dataclasses.replace(bottleneck, buffers=of(bottleneck.buffers))
        return dataclasses.replace(
            self,
            edited=Program(
                tuple(
                    dataclasses.replace(op, reads=of(op.reads), writes=of(op.writes))
                    for op in self.edited.ops
                ),
                tuple(dataclasses.replace(b, name=names[b.name]) for b in self.edited.buffers),
            ),
            overwrites=tuple(
                dataclasses.replace(use, result=names[use.result], argument=names[use.argument])
                for use in self.overwrites
            ),
            plan=dataclasses.replace(self.plan, bottleneck=bottleneck),
        )

    @classmethod
    def of_original(cls, graph: Program, plan: Plan) -> Self:
        """Take a plan of a program that nobody edited."""
        return cls(graph, graph, (), (), (), (), plan.lower_bound_bytes, plan, ())


def left_out(plain: LeverPlan, lever: str, why: str) -> LeverPlan:
    """Return the plan without a lever that was asked for, whose floor nobody knows."""
    use = LeverUse.left_out(lever, plain.plan.peak_bytes, why)
    return dataclasses.replace(plain, levers=(*plain.levers, use), floor_bytes=None)


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why nothing, or nothing more, was gained."""

    kind: str  # a name of csrc/program/reason.h
    text: str  # in English, without capital letter and full stop

    @classmethod
    def of(cls, kind: str, *, detail: str = "", size_bytes: int = 0, other_bytes: int = 0) -> Self:
        """Make one from what it is about."""
        fields = _sched.reason(kind, detail=detail, size_bytes=size_bytes, other_bytes=other_bytes)
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class RepeatPlan:
    """Which ops run when, some more than once, so that a memory budget is met."""

    runs: tuple[str, ...]
    peak_bytes: int
    nanoseconds: int  # of all ops, each run once
    extra_nanoseconds: int
    fits: bool
    floor_bytes: int  # no order and no use of repeats gets below
    floor_detail: str  # which op needs it, and with what: for people
    extra_bound_nanoseconds: int | None
    clock_stopped: bool
    op_nanoseconds: Mapping[str, int]

    @property
    def times(self) -> Times:
        """The same in seconds."""
        bound = self.extra_bound_nanoseconds
        return Times(
            self.nanoseconds / 1e9,
            self.extra_nanoseconds / 1e9,
            None if bound is None else bound / 1e9,
            {op: nanoseconds / 1e9 for op, nanoseconds in self.op_nanoseconds.items()},
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], op_nanoseconds: Mapping[str, int]) -> Self:
        """Build it from the dict that the extension module returns."""
        return cls(**{**fields, "runs": tuple(fields["runs"])}, op_nanoseconds=op_nanoseconds)


def plan_repeats(program: _sched.Program, order: Sequence[str], wanted: Planning) -> RepeatPlan:
    """Plan which ops of a program run again, from an order of its ops on.

    Its ops have to be timed, and `wanted` has a memory budget.
    """
    assert wanted.memory_budget is not None
    return RepeatPlan.from_fields(
        program.plan_repeats(
            order,
            memory_budget=wanted.memory_budget,
            time_budget=wanted.time_budget,
            overwrite="overwrite" in wanted.levers,
        ),
        program.op_nanoseconds(),
    )


def plan_repeat_front(
    program: _sched.Program, order: Sequence[str], wanted: Planning, count: int
) -> list[RepeatPlan]:
    """Plan the same for `count` budgets between the peak of the order and the floor, at most.

    From the highest peak to the lowest; none is better in both, memory and time, than another. The
    budgets share the time budget.
    """
    plans = program.plan_repeat_front(
        order,
        count=count,
        time_budget=wanted.time_budget,
        overwrite="overwrite" in wanted.levers,
    )
    op_nanoseconds = program.op_nanoseconds()
    return [RepeatPlan.from_fields(fields, op_nanoseconds) for fields in plans]


def plan_graph(graph: Graph, wanted: Planning, without: Sequence[str] = ()) -> Plan:
    """Plan a bare graph, without the rules named (csrc/sched/rules.h)."""
    return plan_and_levers(graph, wanted, without)[0]


def plan_and_levers(
    graph: Graph, wanted: Planning, without: Sequence[str] = ()
) -> tuple[Plan, tuple[LeverUse, ...]]:
    """The same, with what each lever did: of those that take no time."""
    options = wanted.time_budget, wanted.memory_budget, wanted.scope, wanted.levers
    fields = _sched.plan(graph.builder, *options, without)
    return Plan(**plan_fields(fields["plan"])), tuple(LeverUse(**use) for use in fields["levers"])


def plan_program(program: _sched.Program, wanted: Planning) -> LeverPlan:
    """Plan what an adaptor knows of a program."""
    return _planned(program, wanted, explain=False)[0]


def plan_and_explain(
    program: _sched.Program, wanted: Planning
) -> tuple[LeverPlan, tuple[Reason, ...]]:
    """The same, with why nothing was gained, if so: that may take planning it once more."""
    return _planned(program, wanted, explain=True)


def _planned(
    program: _sched.Program, wanted: Planning, explain: bool
) -> tuple[LeverPlan, tuple[Reason, ...]]:
    options = wanted.time_budget, wanted.memory_budget, wanted.scope, wanted.levers
    fields, reasons = program.plan(*options, explain=explain)
    return LeverPlan.from_fields(fields), reasons_of(reasons)


def reasons_of(fields: Sequence[Mapping[str, str]]) -> tuple[Reason, ...]:
    """Build them from what the extension modules return."""
    return tuple(Reason(**reason) for reason in fields)


def joined(reasons: Iterable[Reason]) -> str:
    """Several reasons as one text."""
    return "; ".join(reason.text for reason in reasons)


def listed(names: Sequence[str], described: Callable[[str], str] = str, most: int = 12) -> str:
    """Return the first names, described, and how many more there are: for people."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(described, names[:most])) + more
