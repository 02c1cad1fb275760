"""The command `front`: how little memory for how much time."""

import argparse

from torch_ext.cli.options import (
    Commands,
    add_command,
    with_budget,
    with_force,
    with_inputs,
    with_levers,
    with_model,
)
from torch_ext.cli.output import DONE, print_json
from torch_ext.files import check_outputs, load_model
from torch_ext.input_spec import make_inputs, parse_input_spec
from torch_ext.progress import progress


def add(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    sub = add_command(
        commands, "front", run, "measure how little memory a model needs for how much time"
    )
    with_model(sub)
    with_inputs(sub)
    with_budget(sub)
    with_levers(sub, default="order,overwrite,slice")
    sub.add_argument("--html", metavar="FILE", help="write a page with the curve and a table")
    sub.add_argument("--csv", metavar="FILE", help="write the points as a table")
    with_force(sub)


def run(options: argparse.Namespace) -> int:
    """Run it; return the exit code."""
    for spec in options.input:
        parse_input_spec(spec)
    outputs = {"--html": options.html, "--csv": options.csv}
    check_outputs(outputs, options.model, options.force)
    from torch_ext.fronts import front

    module, _ = load_model(options.model)
    with progress("running programs of less memory"):
        found = front(
            module,
            make_inputs(options.input),
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
