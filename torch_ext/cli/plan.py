"""The command `plan`: a bare graph, or one from Inductor. Imports no torch."""

import argparse

from torch_ext.cli.options import Commands, add_command, with_budget, with_force, with_target
from torch_ext.cli.output import budget_code, print_result
from torch_ext.files import UnreadableInputError, check_outputs, write_text
from torch_ext.planning import plan, read_graph
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
    with_target(sub)
    with_force(sub)


def run(options: argparse.Namespace) -> int:
    """Run it; return the exit code."""
    check_outputs({"-o": options.output}, options.graph, options.force)
    try:
        with progress("planning"):
            result = plan(
                read_graph(options.graph, options.name),
                time_budget=options.time_budget,
                memory_budget=options.memory_budget,
            )
    except OSError as error:
        raise UnreadableInputError(f"{options.graph}: {error.strerror}") from None
    if options.output is not None:
        write_text(options.output, "".join(f"{op}\n" for op in result.order))
    print_result(result, options.json)
    return budget_code(result)
