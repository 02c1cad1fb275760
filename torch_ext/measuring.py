"""Measuring memory as the allocator sees it."""

import contextlib
import gc
import os
import pathlib
import platform
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from torch_ext._native import _jit


class PeakMemory:
    """Memory of the CPU's allocator, in bytes above the start of the block, all threads.

    Readable during the block and after it.
    """

    def __init__(self) -> None:
        self._meter = _jit.MemoryMeter()

    @property
    def peak_bytes(self) -> int:
        """Highest running sum of allocations less releases since entry, at least 0."""
        return self._meter.peak_bytes

    @property
    def end_bytes(self) -> int:
        """That sum at exit: what is still held. Negative if older memory was released."""
        return self._meter.live_bytes

    def __enter__(self) -> Self:
        self._meter = _jit.MemoryMeter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._meter.stop()


def measure_peak() -> PeakMemory:
    """Measure a block: `with torch_ext.measure_peak() as memory: module(x)`.

    Results that the caller still holds count. Memory that was allocated before torch_ext first
    measured anything in this process is not seen when it is released. CPU memory only.
    """
    return PeakMemory()


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Collect garbage before the block and not in it: what it frees would be taken off peaks."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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
