"""The command `doctor`: is the installation in order?"""

import argparse
import sys
from typing import Any

from torch_ext._version import __version__
from torch_ext.amounts import MIB
from torch_ext.cli.options import Commands, add_command
from torch_ext.cli.output import DONE, FAILED, print_json
from torch_ext.columns import two_columns
from torch_ext.files import first_line
from torch_ext.program.plan import FORMAT


def add(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    add_command(commands, "doctor", run, "check the installation")


def _served(torch: Any) -> bool:
    """Can a call have planned addresses here?"""
    from torch_ext.memory.arena import pin_addresses

    pinned = pin_addresses(lambda: (torch.ones(1000) * 2).sum(), ())
    pinned()
    return pinned.statistics.served == 1


def run(options: argparse.Namespace) -> int:
    """Run it; return the exit code."""
    from torch_ext import _sched

    facts: dict[str, Any] = {
        "format": FORMAT,
        "torch_ext": __version__,
        "python": sys.version.split()[0],
        "built_for_torch": _sched.built_for_torch,
    }
    problem = ""
    try:
        import torch

        facts["torch"] = torch.__version__
        facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        facts["threads"] = torch.get_num_threads()
        from torch_ext.memory.meter import measure_peak
        from torch_ext.memory.process import malloc_name

        with measure_peak() as memory:
            tensor = torch.empty(MIB, dtype=torch.uint8)
        facts["measured_bytes_of_1_mib"] = memory.peak_bytes
        facts["malloc"] = malloc_name()
        del tensor
        facts["arenas"] = _served(torch)
        if memory.peak_bytes != MIB:
            problem = "the allocator's reports do not reach torch_ext"
    except ImportError as error:
        problem = first_line(error)
    facts["problem"] = problem
    if options.json:
        print_json(facts)
    else:
        rows = [(key, str(value)) for key, value in facts.items() if key != "format"]
        print(two_columns(rows))
        if facts.get("malloc") == "glibc":
            print("\nglibc's malloc keeps what was freed: the memory of the process may not show a")
            print("gain. Plan addresses, or preload jemalloc, mimalloc or tcmalloc; see")
            print("docs/resident.md.")
    return FAILED if problem else DONE
