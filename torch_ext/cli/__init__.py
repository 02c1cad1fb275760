"""The command line: files in, files out. See `python -m torch_ext --help`.

Exit codes: 0 done; 1 failed (running the model, writing the output); 2 usage, bad input spec,
unreadable input, or outputs that should not be asked for (a folder, two in one file, the input
without --force); 3 memory budget not met; 4 verification failed; 130 interrupted.
"""

import argparse
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from torch_ext._version import __version__
from torch_ext.cli import analyze, capacity, doctor, front, optimize, plan, verify
from torch_ext.cli.output import BAD_INPUT, FAILED, INTERRUPTED, complain
from torch_ext.files import (
    UnreadableInputError,
    UnwritableOutputError,
    discard_unfinished,
    first_line,
    innermost_error,
)

COMMANDS = (plan, analyze, optimize, front, verify, capacity, doctor)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    options = _parser().parse_args(arguments)
    try:
        code = _interruptible(lambda: options.run(options))
    except UnreadableInputError as error:
        code = complain(str(error), BAD_INPUT)
    except ValueError as error:
        code = complain(first_line(error), BAD_INPUT)
    except UnwritableOutputError as error:
        code = complain(str(error), FAILED)
    except (RuntimeError, MemoryError) as error:
        code = complain(_model_error(error), FAILED)
    except ImportError as error:
        code = complain(first_line(error), FAILED)
    except KeyboardInterrupt:
        discard_unfinished()
        complain("interrupted, nothing was written", INTERRUPTED)
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # a worker may still run inside torch
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except Exception as error:
        if type(error).__module__ != "torch.jit":  # there: a raise in the model
            raise
        code = complain(_model_error(error), FAILED)
    sys.exit(code)


def _model_error(error: BaseException) -> str:
    return f"the model cannot be run: {innermost_error(error)}"


def _interruptible(work: Callable[[], int]) -> int:
    """Run `work` in a thread of its own, so that Ctrl-C gets through while torch computes."""
    outcome: list[int | BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torch_ext",
        description="Lowers the peak memory of a TorchScript model by reordering its operations.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 memory budget not met, "
        "4 verification failed, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"torch_ext {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
