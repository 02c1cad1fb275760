"""The command `optimize`: the model in an order of lower peak memory."""

import argparse

from torch_ext.arguments import GRAPH_LEVERS
from torch_ext.cli.options import (
    Commands,
    add_command,
    with_budget,
    with_force,
    with_inputs,
    with_levers,
    with_model,
    with_scope,
    with_target,
)
from torch_ext.cli.output import UNVERIFIED, budget_code, complain, print_result
from torch_ext.cli.report_files import report_files, with_report_files, write_report_files
from torch_ext.files import check_outputs, load_model
from torch_ext.input_spec import make_inputs, parse_input_spec
from torch_ext.progress import progress


def add(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    sub = add_command(commands, "optimize", run, "write the model in an order of lower peak memory")
    with_model(sub)
    sub.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="the TorchScript file to write"
    )
    with_inputs(sub)
    with_budget(sub)
    with_scope(sub)
    default = "order,overwrite; with a memory budget, all"
    with_levers(sub, default, offered=GRAPH_LEVERS)
    sub.add_argument(
        "--addresses",
        action="store_true",
        help="plan the addresses of its memory, too; the file keeps the plan for torch_ext.load",
    )
    with_report_files(sub)
    with_target(sub)
    with_force(sub)


def run(options: argparse.Namespace) -> int:
    """Run it; return the exit code."""
    for spec in options.input:
        parse_input_spec(spec)
    outputs = {"-o": options.output, **report_files(options)}
    check_outputs(outputs, options.model, options.force)
    from torch_ext.memory.process import resident_bytes
    from torch_ext.torchscript.optimize import optimize_verified
    from torch_ext.torchscript.pinned import save

    process_bytes = resident_bytes()
    module, extra_files = load_model(options.model)
    with progress("probing, planning and verifying"):
        optimized = optimize_verified(
            module,
            make_inputs(options.input),
            scope=options.scope,
            time_budget=options.time_budget,
            memory_budget=options.memory_budget,
            levers=options.levers,
            addresses=options.addresses,
        )
    report = optimized.report
    if optimized.failed:
        print_result(report, options.json)
        return complain(f"{report.reason}; nothing was written", UNVERIFIED)
    save(optimized.pinned or optimized.module, options.output, extra_files)
    write_report_files(options, report, module, process_bytes)
    print_result(report, options.json)
    return budget_code(report)
