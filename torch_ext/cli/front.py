"""The command `front`: how little memory for how much time. Of a graph it imports no torch."""

import argparse
import os
import zipfile
from typing import Any

from torch_ext.arguments import GRAPH_LEVERS
from torch_ext.cli.options import (
    Commands,
    add_command,
    graph_at,
    positive,
    with_budget,
    with_force,
    with_inputs,
    with_levers,
)
from torch_ext.cli.output import DONE, print_json
from torch_ext.files import check_outputs, load_model
from torch_ext.fronts import front
from torch_ext.input_spec import make_inputs, parse_input_spec
from torch_ext.progress import progress


def add(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    sub = add_command(
        commands, "front", run, "measure how little memory a model needs for how much time"
    )
    sub.add_argument("model", help="a TorchScript file, or a graph in the text format")
    with_inputs(sub)
    with_budget(sub)
    default = "all; of a graph order,repeat"
    with_levers(sub, default=default, offered=GRAPH_LEVERS)
    sub.add_argument(
        "--points", type=positive, metavar="N", help="of a graph: budgets to plan for; default: 10"
    )
    sub.add_argument("--html", metavar="FILE", help="write a page with the curve and a table")
    sub.add_argument("--csv", metavar="FILE", help="write the points as a table")
    with_force(sub)


def run(options: argparse.Namespace) -> int:
    """Run it; return the exit code."""
    for spec in options.input:
        parse_input_spec(spec)
    outputs = {"--html": options.html, "--csv": options.csv}
    check_outputs(outputs, options.model, options.force)
    program, inputs, doing = _graph(options) if _is_graph(options) else _model(options)
    with progress(doing):
        found = front(
            program,
            inputs,
            points=options.points,
            time_budget=options.time_budget,
            levers=options.levers,
        )
    if options.html is not None:
        found.save_html(options.html, options.model)
    if options.csv is not None:
        found.save_csv(options.csv)
    if options.json:
        print_json(found.to_dict())
    else:
        print(found)
    return DONE


def _is_graph(options: argparse.Namespace) -> bool:
    """Models are archives, and most take arguments."""
    is_file = os.path.isfile(options.model)
    return is_file and not options.input and not zipfile.is_zipfile(options.model)


def _graph(options: argparse.Namespace) -> tuple[Any, Any, str]:
    return graph_at(options.model), None, "planning"


def _model(options: argparse.Namespace) -> tuple[Any, Any, str]:
    module, _ = load_model(options.model)
    return module, make_inputs(options.input), "running programs of less memory"
