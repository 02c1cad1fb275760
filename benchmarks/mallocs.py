"""The mallocs under which processes are measured."""

from __future__ import annotations

import argparse
import ctypes.util
import os
import pathlib

GLIBC = "glibc"
MALLOCS: dict[str, dict[str, str]] = {  # the environment; LD_PRELOAD without the library's path
    GLIBC: {},
    "glibc, mmap": {"MALLOC_MMAP_THRESHOLD_": str(2**20)},
    "jemalloc": {"LD_PRELOAD": "jemalloc"},
    "mimalloc": {"LD_PRELOAD": "mimalloc"},
    "tcmalloc": {"LD_PRELOAD": "tcmalloc_minimal"},
}


def environment(malloc: str) -> dict[str, str]:
    """What a process with this malloc is started with. Raises LookupError if it is not here."""
    variables = dict(MALLOCS[malloc])
    if library := variables.get("LD_PRELOAD"):
        found = ctypes.util.find_library(library)
        if found is None:
            raise LookupError(f"{malloc} is not installed")
        variables["LD_PRELOAD"] = found
    return variables


def check_preloaded() -> None:
    """Raises RuntimeError if this process runs without the malloc it was started with."""
    preload = os.environ.get("LD_PRELOAD", "")
    if preload not in pathlib.Path("/proc/self/maps").read_text():
        raise RuntimeError(f"{preload} was not preloaded")


def best_for_resident() -> str:
    """Under glibc's own, the resident memory of equal processes differs by more than most gains."""
    return "jemalloc" if ctypes.util.find_library("jemalloc") else GLIBC


def add_malloc(parser: argparse.ArgumentParser, default: str) -> None:
    """Argument --malloc, of the processes that are measured."""

    def installed(malloc: str) -> str:
        if malloc not in MALLOCS:
            raise argparse.ArgumentTypeError(f"no {malloc!r}; there are: {', '.join(MALLOCS)}")
        try:
            environment(malloc)
        except LookupError as error:
            raise argparse.ArgumentTypeError(
                f"{error}; install it, or measure under --malloc {GLIBC}"
            ) from None
        return malloc

    parser.add_argument(
        "--malloc",
        type=installed,
        default=default,
        help=f"of the processes that are measured; default: {default}",
    )
