"""Plans without one rule of the engine at a time: what does each bring?

Each rule only speeds up the search or proves more, so no combination may change a proven optimum:
the run fails if one does. The comparison is at a small budget, where rules matter most.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Mapping

import families
from results import FOLDER, Row, Table, circumstances, write_csv
from rich.console import Console
from rich.progress import track

import torch_ext

RULES = (
    "series_cuts",
    "regions",
    "symmetry",
    "safe_steps",
    "safe_runs",
    "closure_bound",
    "neighbour_bound",
    "precedences",
    "improvement",
)
HEADER = (
    "without",
    "peak / all rules",
    "proven optimal %",
    "seconds for all",
    "worst instance",
    "its ratio",
)
WORDS = ("without", "worst instance")


def _plan_all(
    graphs: dict[str, torch_ext.Graph], without: tuple[str, ...], budget: float
) -> tuple[Mapping[str, torch_ext.Plan], float]:
    terminal = Console(stderr=True)
    started = time.perf_counter()
    plans = {
        name: torch_ext.plan(graph, time_budget=budget, without=without)
        for name, graph in track(
            graphs.items(),
            f"without {', '.join(without) or 'nothing'}",
            console=terminal,
            disable=not terminal.is_terminal,
        )
    }
    return plans, time.perf_counter() - started


def main() -> None:
    """Print the table and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time-budget", type=float, default=0.2, metavar="SECONDS")
    parser.add_argument("--most-ops", type=int, default=1_000, metavar="N")
    options = parser.parse_args()
    graphs = {}
    for instance in families.instances():
        program = instance.build()
        if len(program.ops) <= options.most_ops:
            graphs[program.name] = program.to_graph()

    rows: list[Row] = []
    failures = []
    everything, _ = _plan_all(graphs, (), options.time_budget)
    for without in ((), *((rule,) for rule in RULES)):
        plans, seconds = _plan_all(graphs, without, options.time_budget)
        ratios = {
            name: plan.peak_bytes / everything[name].peak_bytes for name, plan in plans.items()
        }
        worst = max(ratios, key=ratios.__getitem__)
        is_worse = ratios[worst] > 1.0005
        proven = sum(plan.status == "optimal" for plan in plans.values())
        rows.append(
            (
                ", ".join(without) or "nothing",
                f"{statistics.geometric_mean(ratios.values()):.3f}",
                f"{100 * proven / len(plans):.1f}",
                f"{seconds:.1f}",
                worst if is_worse else "",
                f"{ratios[worst]:.3f}" if is_worse else "",
            )
        )
        failures += [
            f"{name}: two proven optima, without {without}"
            for name, plan in plans.items()
            if plan.status == everything[name].status == "optimal" and ratios[name] != 1
        ]
    table = Table(HEADER, rows, WORDS)
    table.show(as_markdown=True)
    path = FOLDER / "results" / f"ablation-{datetime.date.today()}.csv"
    comments = [
        *circumstances(),
        f"time budget: {options.time_budget} s, {len(graphs)} graphs of at most "
        f"{options.most_ops} ops",
    ]
    write_csv(path, comments, table)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
