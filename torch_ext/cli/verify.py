"""The command `verify`: two models compared bit for bit."""

import argparse

from torch_ext.amounts import amount
from torch_ext.cli.options import Commands, add_command, with_inputs, with_model
from torch_ext.cli.output import DONE, UNVERIFIED, print_json
from torch_ext.columns import two_columns
from torch_ext.files import load_model
from torch_ext.input_spec import make_inputs, parse_input_spec
from torch_ext.program.plan import FORMAT
from torch_ext.progress import progress


def add(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    sub = add_command(
        commands, "verify", run, "run two models and compare what they do, bit for bit"
    )
    with_model(sub, "a", "b")
    with_inputs(sub)


def run(options: argparse.Namespace) -> int:
    """Run it; return the exit code."""
    for spec in options.input:
        parse_input_spec(spec)
    from torch_ext.torchscript.optimize import compare

    a, b = load_model(options.a)[0], load_model(options.b)[0]
    with progress("running both"):
        difference, peaks_a, peaks_b = compare(a, b, make_inputs(options.input))
    result = {
        "format": FORMAT,
        "identical": not difference,
        "difference": difference,
        "measured_peak_bytes_a": peaks_a[0],
        "measured_peak_bytes_b": peaks_b[0],
    }
    if options.json:
        print_json(result)
    else:
        rows = [
            ("outputs", difference or "identical"),
            (f"measured peak of {options.a}", amount(peaks_a[0])),
            (f"measured peak of {options.b}", amount(peaks_b[0])),
        ]
        print(two_columns(rows))
    return UNVERIFIED if difference else DONE
