"""Draws what planner.py found, for the README: time against ops, and peak against the best peer.

Usage: python benchmarks/planner_picture.py benchmarks/results/planner-DATE.csv docs/planner.png
"""

from __future__ import annotations

import argparse
import csv
import pathlib

from matplotlib.axes import Axes
from matplotlib.figure import Figure

OPTIMAL, FEASIBLE = "#0072B2", "#D55E00"  # Okabe and Ito's palette


def _read(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def _scatter(axes: Axes, rows: list[dict[str, str]], x: list[float], y: list[float]) -> None:
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


def draw(rows: list[dict[str, str]]) -> Figure:
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


def main() -> None:
    """Write the picture to the path on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path, metavar="PNG")
    options = parser.parse_args()
    draw(_read(options.csv)).savefig(
        options.output, format="png", dpi=150, metadata={"Software": None}
    )


if __name__ == "__main__":
    main()
