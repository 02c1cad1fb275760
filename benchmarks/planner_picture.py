"""Draws what planner.py found: time against ops, and peak against the best peer."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

OPTIMAL, FEASIBLE = "#0072B2", "#D55E00"  # Okabe and Ito's palette


def _scatter(
    axes: Axes, rows: Sequence[dict[str, str]], x: Sequence[float], y: Sequence[float]
) -> None:
    for status, color in (("optimal", OPTIMAL), ("feasible", FEASIBLE)):
        chosen = [i for i, row in enumerate(rows) if row["status"] == status]
        axes.scatter(
            [x[i] for i in chosen],
            [y[i] for i in chosen],
            s=18,
            color=color,
            alpha=0.7,
            label="proven optimal" if status == "optimal" else "not proven",
        )
    axes.spines[["top", "right"]].set_visible(False)


def draw(rows: Sequence[dict[str, str]]) -> Figure:
    """Two panels over the same instances."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    ops = [float(row["ops"]) for row in rows]
    _scatter(left, rows, ops, [float(row["ms"]) for row in rows])
    left.set(xscale="log", yscale="log", xlabel="ops", ylabel="planning, ms")
    left.legend(frameon=False)
    ratios = [float(row["ours"]) / float(row["best peer"]) for row in rows]
    ranked = sorted(range(len(rows)), key=ratios.__getitem__)
    _scatter(right, [rows[i] for i in ranked], [*range(len(rows))], [ratios[i] for i in ranked])
    right.axhline(1, color="#333333", linestyle="--", linewidth=1)
    right.set(xlabel="instances, sorted", ylabel="our peak / best of nine peers", ylim=(0, 1.1))
    return figure
