"""The command `plan`: a bare graph, or one from Inductor. Imports no torch."""

import argparse

from torch_ext.arguments import BARE_LEVERS
from torch_ext.cli.options import (
    Commands,
    add_command,
    graph_at,
    with_budget,
    with_force,
    with_levers,
    with_target,
)
from torch_ext.cli.output import budget_code, print_result
from torch_ext.files import check_outputs, write_text
from torch_ext.planning import plan
from torch_ext.progress import progress


def add(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    sub = add_command(
        commands, "plan", run, "plan a bare graph, or one from Inductor (imports no torch)"
    )
    sub.add_argument(
        "graph",
        help="a graph in the text format, as Inductor dumps it, or a log of TORCH_TRACE",
    )
    sub.add_argument("--name", default="", help="which graph, where a log holds several")
    sub.add_argument("-o", "--output", metavar="FILE", help="write the order, an op per line")
    with_budget(sub)
    with_levers(sub, default="order, and repeat for a memory budget", offered=BARE_LEVERS)
    with_target(sub, "what is enough, e.g. 512MiB; ops run again where no order meets it")
    with_force(sub)


def run(options: argparse.Namespace) -> int:
    """Run it; return the exit code."""
    check_outputs({"-o": options.output}, options.graph, options.force)
    with progress("planning"):
        result = plan(
            graph_at(options.graph, options.name),
            time_budget=options.time_budget,
            memory_budget=options.memory_budget,
            levers=options.levers,
        )
    if options.output is not None:
        write_text(options.output, "".join(f"{op}\n" for op in result.order))
    print_result(result, options.json)
    return budget_code(result)
