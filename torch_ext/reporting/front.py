"""Fronts: how little memory a program needs for how much time. Needs no torch."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch_ext.amounts import MIB, amount
from torch_ext.arguments import FilePath
from torch_ext.files import write_text
from torch_ext.program.plan import FORMAT, RepeatPlan, SliceTrial
from torch_ext.reporting.front_page import Drawing, Place, front_in_notebook, page_of_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CSV = (
    "way",
    "peak_bytes",
    "measured_peak_bytes",
    "extra_seconds",
    "extra_seconds_bound",
    "time_ratio",
    "edits",
    "difference",
)
COLUMNS = ("way", "peak", "measured", "extra time", "at least", "measured time", "edits")


@dataclasses.dataclass(frozen=True)
class FrontPoint:
    """An edited program that no other one of the front beats in both, memory and time."""

    peak_bytes: int  # of activations, as planned
    measured_peak_bytes: int | None  # by the allocator; None: not run
    extra_seconds: float  # for each call: repeats as ops were timed, slices as measured in turns
    # Proven for all programs with the levers asked for whose peak is no higher; None: unproven.
    extra_seconds_bound: float | None
    time_ratio: float | None  # of a call to one of the first point, measured in turns
    levers: tuple[str, ...]  # that made it
    edits: int  # of the last of these

    @property
    def way(self) -> str:
        """How it came about: for people."""
        return ", ".join(self.levers)


@dataclasses.dataclass(frozen=True)
class OtherWay:
    """What people do without torch_ext, measured beside it."""

    way: str
    measured_peak_bytes: int
    time_ratio: float  # of a call to one of the front's first point, measured in turns
    difference: str  # the first from the program as it is written; empty: none, to the bit


@dataclasses.dataclass(frozen=True)
class Front:
    """Peak memory against time: what was found, what is proven, what others do.

    All programs of the front have the bits of the original; those with a `measured_peak_bytes` were
    run beside it.
    """

    points: tuple[FrontPoint, ...]  # from the highest peak to the lowest, from fast to slow
    others: tuple[OtherWay, ...]
    call_seconds: float  # what per cents are of: the ops of a call, or a call as measured
    floor_bytes: int | None  # proven: no use of the levers asked for gets below
    reason: str  # why the front ends where it does
    threads: int
    seconds: float  # that it took to make the front
    # A run of each op, if repeats were planned by them.
    op_seconds: Mapping[str, float] | None = dataclasses.field(default=None, repr=False)

    def __str__(self) -> str:
        rows = [COLUMNS, *self.cells()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for way, *figures in rows:
            cells = [text.rjust(width) for text, width in zip(figures, widths[1:], strict=True)]
            lines.append("  ".join([way.ljust(widths[0]), *cells]).rstrip())
        return "\n".join([*lines, *self.notes()])

    def cells(self) -> list[tuple[str, ...]]:
        """A row for each point and each other way, as COLUMNS: for people."""
        rows: list[tuple[str, ...]] = [
            (
                point.way,
                amount(point.peak_bytes),
                _measured(point.measured_peak_bytes),
                _percent(self.share(point.extra_seconds)),
                _percent(self.share(point.extra_seconds_bound)),
                _percent(_more(point.time_ratio)),
                str(point.edits),
            )
            for point in self.points
        ]
        rows += [
            (
                other.way,
                "",
                _measured(other.measured_peak_bytes),
                "",
                "",
                _percent(_more(other.time_ratio)),
                "",
            )
            for other in self.others
        ]
        return rows

    def notes(self) -> list[str]:
        """What the table does not say: for people."""
        notes = [
            f"{other.way}: not the same results; {other.difference} differs"
            for other in self.others
            if other.difference
        ]
        return [*notes, *([self.reason] if self.reason else [])]

    def share(self, seconds: float | None) -> float | None:
        """Of a call without extra time."""
        if seconds is None:
            return None
        return seconds / self.call_seconds if self.call_seconds else 0.0

    def _drawing(self) -> Drawing:
        def places(shares: Iterable[float | None]) -> list[Place]:
            return [
                (point.peak_bytes / MIB, 100 * share)
                for point, share in zip(self.points, shares, strict=True)
                if share is not None
            ]

        return Drawing(
            columns=COLUMNS,
            rows=self.cells(),
            found=places(self.share(point.extra_seconds) for point in self.points),
            proven=places(self.share(point.extra_seconds_bound) for point in self.points),
            others=[
                (other.way, (other.measured_peak_bytes / MIB, 100 * (other.time_ratio - 1)))
                for other in self.others
            ],
            floor_mib=None if self.floor_bytes is None else self.floor_bytes / MIB,
            notes=self.notes(),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, `"format": 1` included."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def to_csv(self) -> str:
        """A table with a row for each point and for each other way."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_CSV)
        rows: Sequence[FrontPoint | OtherWay] = (*self.points, *self.others)
        for row in rows:
            writer.writerow([getattr(row, name, None) for name in _CSV])
        return text.getvalue()

    def save_csv(self, path: FilePath) -> None:
        """Write the table, whole or not at all, as files.writing does."""
        write_text(path, self.to_csv())

    def save_html(self, path: FilePath, title: str = "") -> None:
        """Write one page with curve and table, whole or not at all, as files.writing does."""
        write_text(path, page_of_front(self._drawing(), title))

    def _repr_html_(self) -> str:
        return front_in_notebook(self._drawing())

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw it with matplotlib, on `axes` if given: MiB against per cent of extra time.

        Raises ImportError if there is no matplotlib.
        """
        if axes is None:
            from matplotlib import pyplot

            axes = pyplot.subplots()[1]
        drawing = self._drawing()
        axes.plot(*zip(*drawing.found, strict=True), marker="o", label="found")
        if drawing.proven:
            axes.plot(*zip(*drawing.proven, strict=True), linestyle="--", label="proven least")
        for way, place in drawing.others:
            axes.plot(*place, marker="x", linestyle="none", label=way)
        axes.set_xlabel("peak memory, MiB")
        axes.set_ylabel("extra time, %")
        axes.legend()
        return axes


def _measured(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else amount(size_bytes)


def _more(ratio: float | None) -> float | None:
    return None if ratio is None else ratio - 1


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f} %"


def points_of_trials(trials: Iterable[SliceTrial], levers: tuple[str, ...]) -> Iterator[FrontPoint]:
    """Return a point for each program with slices that was tried; `levers`: the others."""
    for trial in trials:
        yield FrontPoint(
            peak_bytes=trial.peak_bytes,
            measured_peak_bytes=trial.measured_peak_bytes,
            extra_seconds=trial.seconds - trial.seconds_without,
            extra_seconds_bound=None,
            time_ratio=trial.time_ratio,
            levers=(*levers, "slice"),
            edits=trial.slices,
        )


def point_of_repeats(
    plan: RepeatPlan, levers: tuple[str, ...], edits: int, *, is_proven: bool = True
) -> FrontPoint:
    """Return a point that was planned and not run; `is_proven`: are its repeats all that counts?"""
    return FrontPoint(
        peak_bytes=plan.peak_bytes,
        measured_peak_bytes=None,
        extra_seconds=plan.times.extra_seconds,
        extra_seconds_bound=plan.times.extra_seconds_bound if is_proven else None,
        time_ratio=None,
        levers=levers,
        edits=edits,
    )


def unbeaten(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    """Those that no other one beats in both, from the highest peak to the lowest."""
    front: list[FrontPoint] = []
    for point in sorted(points, key=lambda one: (one.peak_bytes, one.extra_seconds)):
        if not front or point.extra_seconds < front[-1].extra_seconds:
            front.append(point)
    return tuple(reversed(front))
