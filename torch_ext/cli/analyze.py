"""The command `analyze`: what could be gained."""

import argparse

from torch_ext.cli.options import (
    Commands,
    add_command,
    with_budget,
    with_force,
    with_inputs,
    with_levers,
    with_model,
    with_scope,
)
from torch_ext.cli.output import DONE, print_result
from torch_ext.cli.report_files import report_files, with_report_files, write_report_files
from torch_ext.files import check_outputs, load_model, write_text
from torch_ext.input_spec import make_inputs, parse_input_spec
from torch_ext.progress import progress


def add(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    sub = add_command(commands, "analyze", run, "report what could be gained; changes nothing")
    with_model(sub)
    with_inputs(sub)
    with_budget(sub)
    with_scope(sub)
    with_levers(sub)
    with_report_files(sub)
    sub.add_argument("--graph", metavar="FILE", help="write the whole graph as text")
    sub.add_argument(
        "--extract",
        metavar="FILE",
        help="write the region around the original order's peak as a graph in the text format",
    )
    with_force(sub)


def run(options: argparse.Namespace) -> int:
    """Run it; return the exit code."""
    for spec in options.input:
        parse_input_spec(spec)
    outputs = {**report_files(options), "--graph": options.graph, "--extract": options.extract}
    check_outputs(outputs, options.model, options.force)
    from torch_ext.memory.process import resident_bytes
    from torch_ext.torchscript.optimize import analyze_in_full

    process_bytes = resident_bytes()
    module, _ = load_model(options.model)
    with progress("probing and planning"):
        analysis = analyze_in_full(
            module,
            make_inputs(options.input),
            scope=options.scope,
            time_budget=options.time_budget,
            levers=options.levers,
        )
    if options.graph is not None:
        write_text(options.graph, analysis.report.graph.to_graph().to_text())
    if options.extract is not None:
        write_text(options.extract, analysis.bottleneck_region)
    write_report_files(options, analysis.report, module, process_bytes)
    print_result(analysis.report, options.json)
    return DONE
