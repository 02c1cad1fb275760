"""The memory of the process, the machine and its malloc."""

import ctypes
import gc
import os
import pathlib
import platform
from typing import Any

_RELEASE: dict[str, tuple[Any, ...]] = {  # how mallocs are told to give free memory back
    "malloc_trim": (ctypes.c_size_t(0),),  # glibc
    "MallocExtension_ReleaseFreeMemory": (),  # tcmalloc
    "mi_collect": (ctypes.c_bool(True),),  # mimalloc, of the calling thread and of those that ended
    # jemalloc, of all arenas: MALLCTL_ARENAS_ALL
    "mallctl": (b"arena.4096.purge", None, None, None, ctypes.c_size_t(0)),
}


def resident_bytes() -> int | None:
    """Return the memory of the whole process, code included; None where the system tells none."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int | None:
    """Return what this process can still have: of the machine, and of its container (cgroup v2)."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        return None
    contained = _container_bytes(pathlib.Path("/sys/fs/cgroup"))
    return available * 2**10 if contained is None else min(available * 2**10, contained)


def _container_bytes(cgroup: pathlib.Path) -> int | None:
    """What is left of a container's limit; None without one. Cached files can be given up."""
    try:
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat["inactive_file"]))
    except (OSError, ValueError, KeyError):
        return None


def malloc_name() -> str | None:
    """Return whose malloc this process uses, of those that Linux programs have; else None."""
    try:
        mapped = pathlib.Path("/proc/self/maps").read_text()
    except OSError:
        return None
    files = {pathlib.PurePath(line.split()[-1]).name for line in mapped.splitlines()}
    for name in ("jemalloc", "mimalloc", "tcmalloc"):
        if any(file.startswith(f"lib{name}") for file in files):
            return name
    return platform.libc_ver()[0] or None


def return_free_memory() -> None:
    """Give the system back what the copies took: what malloc keeps would hide the gain."""
    gc.collect()
    process = ctypes.CDLL(None)
    for name, arguments in _RELEASE.items():
        release = getattr(process, name, None)
        if release is not None:
            release(*arguments)
