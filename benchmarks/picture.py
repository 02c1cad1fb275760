"""Draws memory over the steps of a RandWire network, before and after, for the README.

Usage: python benchmarks/picture.py docs/memory.png
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import zoo
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torch_ext import Report, optimize
from torch_ext.planning import TimelineEntry

MIB = 2**20
MODEL = "randwire_seed1"
# Okabe and Ito's palette, which the colour-blind can tell apart.
BEFORE, AFTER, BOUND = "#0072B2", "#D55E00", "#333333"


def _draw_timeline(axes: Axes, timeline: Sequence[TimelineEntry], color: str, label: str) -> None:
    """A step curve: while an op runs (hill), then after it (valley). The peak gets the label."""
    hills = [entry.hill_bytes / MIB for entry in timeline]
    levels = [level for e in timeline for level in (e.hill_bytes / MIB, e.valley_bytes / MIB)]
    edges = [step / 2 for step in range(len(levels) + 1)]
    axes.stairs(levels, edges, color=color, alpha=0.25, fill=True)
    axes.stairs(levels, edges, color=color, linewidth=0.9)
    peak = max(hills)
    at = hills.index(peak) + 0.25  # the middle of the hill
    axes.plot(at, peak, "o", color=color, markersize=6)
    axes.annotate(
        f"{label}: {peak:.1f} MiB",
        (at, peak),
        (0, 8),
        textcoords="offset points",
        ha="center",
        color=color,
        fontsize=12,
        weight="bold",
    )


def draw(report: Report) -> Figure:
    """One panel for the order before, one for the order after, to the same scale."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, sharey=True)
    _draw_timeline(above, report.timeline_before, BEFORE, "peak before")
    _draw_timeline(below, report.timeline_after, AFTER, "peak after")
    bound = report.lower_bound_bytes / MIB
    for axes in (above, below):
        axes.axhline(bound, color=BOUND, linestyle="--", linewidth=1.2)
        axes.annotate(
            f"lower bound {bound:.1f} MiB",
            (report.ops, bound),
            (-2, 4),
            textcoords="offset points",
            ha="right",
            color=BOUND,
        )
        axes.spines[["top", "right"]].set_visible(False)
    below.set_xlim(0, report.ops)
    below.set_ylim(0, 1.25 * report.original_peak_bytes / MIB)
    below.set_yticks(range(0, int(1.25 * report.original_peak_bytes / MIB), 20))
    below.set_xlabel("ops executed")
    figure.supylabel("memory of activations, MiB", y=0.54, fontsize="medium")
    return figure


def main() -> None:
    """Write the picture to the path on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=pathlib.Path, metavar="PNG")
    output = parser.parse_args().output
    script, inputs = zoo.traced(zoo.model(MODEL))
    _, report = optimize(script, inputs)
    output.parent.mkdir(parents=True, exist_ok=True)
    # No version of matplotlib in the file: the same picture has the same bytes.
    draw(report).savefig(output, format="png", dpi=200, metadata={"Software": None})


if __name__ == "__main__":
    main()
