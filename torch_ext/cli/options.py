"""Options that several commands share, and how their values are read."""

import argparse
import functools
from collections.abc import Callable

from torch_ext.amounts import parse_memory
from torch_ext.arguments import ALL_LEVERS, lever_names
from torch_ext.files import UnreadableInputError
from torch_ext.planning import read_graph
from torch_ext.program.graph import Graph

Commands = argparse._SubParsersAction  # of the parser: where a command adds its own


def add_command(
    commands: "Commands[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    """Add a command; all can print JSON."""
    sub = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(run=run)
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    return sub


def with_model(sub: argparse.ArgumentParser, *names: str) -> None:
    """Take one TorchScript file, or those named."""
    for name in names or ("model",):
        sub.add_argument(name, help="a TorchScript file")


def with_inputs(sub: argparse.ArgumentParser, more: str = "") -> None:
    """Take example arguments."""
    sub.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SHAPE[:TYPE]",
        help="an example argument of forward, e.g. 1x3x224x224:f32 or 1x128:i64, filled with "
        "the same random numbers every time (integers: 0 and 1); repeat for more arguments"
        + (f"; {more}" if more else ""),
    )


def with_budget(sub: argparse.ArgumentParser) -> None:
    """Take a time budget."""
    sub.add_argument(
        "--time-budget",
        type=_seconds,
        default=2.0,
        metavar="SECONDS",
        help="for planning, as counted work: slower machines take longer; default: 2",
    )


def with_target(sub: argparse.ArgumentParser, text: str = "stop when met, e.g. 512MiB") -> None:
    """Take a memory budget."""
    sub.add_argument("--memory-budget", type=_memory, metavar="SIZE", help=text)


def with_scope(sub: argparse.ArgumentParser) -> None:
    """Take what may move."""
    sub.add_argument(
        "--scope",
        choices=("all", "bottleneck"),
        default="all",
        help="bottleneck: move ops only around the peak",
    )


def with_levers(
    sub: argparse.ArgumentParser,
    default: str = "order,overwrite",
    offered: tuple[str, ...] = ALL_LEVERS,
) -> None:
    """Take the kinds of edits, of those offered; `default` is what is done without."""
    sub.add_argument(
        "--levers",
        type=functools.partial(_levers, offered=offered),
        metavar="NAMES",
        help=f"kinds of edits, of {','.join(offered)}; default: {default}",
    )


def with_force(sub: argparse.ArgumentParser) -> None:
    """Take leave to replace the input."""
    sub.add_argument(
        "--force", action="store_true", help="let an output take the place of the input"
    )


def graph_at(path: str, name: str = "") -> Graph:
    """Read a graph. Raises UnreadableInputError, or ValueError for what is in the file."""
    try:
        return read_graph(path, name)
    except OSError as error:
        raise UnreadableInputError(f"{path}: {error.strerror}") from None


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError("must be between 0 and 1e6 seconds")
    return value


def positive(text: str) -> int:
    """Read a whole number."""
    value = int(text)
    if not 1 <= value <= 10**9:
        raise argparse.ArgumentTypeError("must be between 1 and 1e9")
    return value


def price(text: str) -> float:
    """Read an amount of money."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number like 0.005") from None
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError("must be between 0 and 1e9")
    return value


def _levers(text: str, offered: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return lever_names(text.split(","), "the levers", offered)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _memory(text: str) -> int:
    try:
        return parse_memory(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
