"""Plans and reports for people: names and values in two columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch_ext.amounts import amount

if TYPE_CHECKING:
    from torch_ext.planning import Plan
    from torch_ext.reports import ProgramReport

Rows = list[tuple[str, str]]


def two_columns(rows: Rows) -> str:
    """The values below each other; a line per row."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def plan_rows(plan: Plan) -> Rows:
    """What was found, how good it is, what sets the limit."""
    status = plan.status + (f", proven by {plan.proof}" if plan.proof else "")
    rows = [
        ("ops", str(plan.ops)),
        ("original peak", amount(plan.original_peak_bytes)),
        ("planned peak", f"{amount(plan.peak_bytes)} ({plan.method})"),
        ("lower bound", amount(plan.lower_bound_bytes)),
        ("status", status + (", stopped by the clock" if plan.clock_stopped else "")),
        ("moved ops", str(plan.moved_ops)),
    ]
    if plan.bottleneck:
        where = f" at {plan.bottleneck.source}" if plan.bottleneck.source else ""
        rows.append(("bottleneck", f"{plan.bottleneck.op}{where}"))
        rows.append(("  needs together", _listed(plan.bottleneck.buffers) or "nothing"))
    if plan.budget_met is not None:
        rows.append(("memory budget", "met" if plan.budget_met else "not met"))
    rows.append(("planned in", f"{plan.seconds:.3f} s"))
    return rows


def report_rows(report: ProgramReport) -> Rows:
    """The plan and what was measured."""
    identical = {None: "not compared", True: "identical", False: "different"}[report.identical]
    rows = [
        *plan_rows(report),
        ("measured before", amount(report.measured_original_peak_bytes)),
        ("measured after", amount(report.measured_peak_bytes)),
        ("outputs", identical),
        ("threads", str(report.threads)),
        ("parameters, inputs", f"{amount(report.parameter_bytes)}, {amount(report.input_bytes)}"),
    ]
    if report.reason:
        rows.append(("no gain because", report.reason))
    return rows


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
