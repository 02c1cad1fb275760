"""The command `capacity`: what fits into a memory budget."""

import argparse

from torch_ext.cli.options import (
    Commands,
    add_command,
    positive,
    price,
    with_budget,
    with_inputs,
    with_model,
    with_target,
)
from torch_ext.cli.output import DONE, FAILED, OVER_BUDGET, complain, print_json
from torch_ext.columns import two_columns
from torch_ext.files import load_model
from torch_ext.input_spec import letter_of
from torch_ext.progress import progress


def add(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    sub = add_command(
        commands, "capacity", run, "find what fits into a memory budget, before and after"
    )
    with_model(sub)
    with_inputs(sub, "one letter may stand for a size: Nx3x224x224:f32")
    with_budget(sub)
    with_target(sub, "for parameters, inputs and activations together, e.g. 512MiB")
    sub.add_argument(
        "--step", type=positive, default=1, metavar="K", help="try only multiples of K; default: 1"
    )
    sub.add_argument(
        "--price-per-gib-hour",
        type=price,
        metavar="PRICE",
        help="tell what the saved memory costs in a year, in any currency",
    )
    sub.add_argument("--replicas", type=positive, default=1, help="that run all year; default: 1")
    sub.add_argument("--lang", choices=("en", "ja"), default="en", help="of the last sentence")


def run(options: argparse.Namespace) -> int:
    """Run it; return the exit code."""
    letter_of(options.input)  # complain before torch is imported
    from torch_ext.capacities import search, text

    cost = None
    if options.price_per_gib_hour is not None:
        cost = text.Price(options.price_per_gib_hour, options.replicas)
    module, _ = load_model(options.model)
    try:
        with progress("looking for the largest size"):
            found = search.capacity(
                module,
                options.input,
                options.memory_budget,
                step=options.step,
                time_budget=options.time_budget,
            )
    except search.CapacityError as error:
        return complain(str(error), FAILED)
    if options.json:
        saving = None if cost is None else cost.yearly(found.saved_bytes)
        print_json({**found.to_dict(), "saved_per_year": saving})
    else:
        print(two_columns(text.rows(found, cost)))
        print(f"\n{text.sentence(found, options.lang, cost)}")
    if found.fits:
        return DONE
    return complain("it does not fit into the memory budget", OVER_BUDGET)
