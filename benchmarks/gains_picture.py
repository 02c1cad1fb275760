"""Draws what standard models need before and after, for people who decide."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

BEFORE, AFTER = "#0072B2", "#D55E00"  # Okabe and Ito's palette


def draw(records: Sequence[dict[str, str]]) -> Figure:
    """A bar per model: what is left of its peak, in per cent of before; those that gain first."""
    left = {
        record["model"]: 100
        * float(record["measured after MiB"])
        / float(record["measured before MiB"])
        for record in records
    }
    proven = {record["model"]: record["status"] == "optimal" for record in records}
    names = sorted(left, key=lambda name: (-left[name], name))
    figure = Figure(figsize=(9, 0.24 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [100.0] * len(names), color=BEFORE, alpha=0.25, height=0.7, label="before")
    axes.barh(names, [left[name] for name in names], color=AFTER, height=0.7, label="after")
    for row, name in enumerate(names):
        gain = 100 - left[name]
        nothing = "proven: no gain possible" if proven[name] else "no gain found"
        told = f"-{gain:.1f} %" if gain else nothing
        axes.annotate(
            told, (left[name], row), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_xlim(0, 124)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("peak memory of activations, % of before")
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", ncols=2, bbox_to_anchor=(1, 1), borderaxespad=0)
    return figure
