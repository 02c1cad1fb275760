"""The command `verify`: two models compared bit for bit, or a model and the original inside it."""

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
        commands,
        "verify",
        run,
        "run two models and compare what they do, bit for bit; or one that optimize has edited, "
        "and the original that it holds",
    )
    with_model(sub, "a")
    sub.add_argument("b", nargs="?", help="another TorchScript file")
    with_inputs(sub)


def run(options: argparse.Namespace) -> int:
    """Run it; return the exit code."""
    for spec in options.input:
        parse_input_spec(spec)
    from torch_ext.torchscript.optimize import compare, verify

    a = load_model(options.a)[0]
    inputs = make_inputs(options.input)
    with progress("running both"):
        if options.b is None:
            found = verify(a, inputs)
            difference = found.difference
            peaks = found.measured_original_peak_bytes, found.measured_peak_bytes
            names = f"the original in {options.a}", options.a
        else:
            b = load_model(options.b)[0]
            difference, peaks_a, peaks_b = compare(a, b, inputs)
            peaks = peaks_a[0], peaks_b[0]
            names = options.a, options.b
    result = {
        "format": FORMAT,
        "identical": not difference,
        "difference": difference,
        "measured_peak_bytes_a": peaks[0],
        "measured_peak_bytes_b": peaks[1],
    }
    if options.json:
        print_json(result)
    else:
        rows = [
            ("outputs", difference or "identical"),
            (f"measured peak of {names[0]}", amount(peaks[0])),
            (f"measured peak of {names[1]}", amount(peaks[1])),
        ]
        print(two_columns(rows))
    return UNVERIFIED if difference else DONE
