"""What several benchmarks measure: allocator peaks, resident memory, paired times, energy."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable

import torch

from torch_ext import measure_peak

MIB = 2**20
POWER = pathlib.Path("/sys/class/powercap")

Run = Callable[[], object]


def mib(size_bytes: int | None) -> str:
    """The text of a table's cell; empty if it was not measured."""
    return "" if size_bytes is None else f"{size_bytes / MIB:.2f}"


def settled_peak(run: Run) -> int:
    """The allocator's peak in the third call, in bytes above its start."""
    for _ in range(2):
        run()
    with measure_peak() as memory:
        run()
    return memory.peak_bytes


def resident_peak(run: Run) -> int:
    """The highest resident memory of the whole process in the third call."""
    for _ in range(2):
        run()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    run()
    return highest_resident()


def highest_resident() -> int:
    """The highest resident memory so far, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell the highest resident memory")


def time_ratios(before: Run, after: Run, pairs: int, seconds: float) -> list[float]:
    """Time of `after` / time of `before`; every other pair runs `after` first.

    Ends early after so many seconds, but not before the fourth pair.
    """
    ratios: list[float] = []
    end = time.perf_counter() + seconds
    while len(ratios) < pairs and (len(ratios) < 4 or time.perf_counter() < end):
        times = {}
        for is_after in (False, True) if len(ratios) % 2 else (True, False):
            start = time.perf_counter()
            (after if is_after else before)()
            times[is_after] = time.perf_counter() - start
        ratios.append(times[True] / times[False])
    return ratios


def joules(run: Run, seconds: float = 1.0, power: pathlib.Path = POWER) -> float | None:
    """Of a call, all processors' packages, by RAPL; None where the machine does not tell.

    The packages power the whole machine: it must be idle otherwise.
    """
    meters = sorted(power.glob("intel-rapl:?"))
    try:
        before = [int((meter / "energy_uj").read_text()) for meter in meters]
        ranges = [int((meter / "max_energy_range_uj").read_text()) for meter in meters]
    except OSError:
        return None  # only the administrator may read them
    if not meters:
        return None
    calls = 0
    end = time.perf_counter() + seconds
    while calls < 3 or time.perf_counter() < end:
        run()
        calls += 1
    after = [int((meter / "energy_uj").read_text()) for meter in meters]
    spent = sum((b - a) % full for a, b, full in zip(before, after, ranges, strict=True))
    return spent / 1e6 / calls


def steady(threads: int) -> None:
    """Let times of training steps depend on the step alone: torch has so many threads.

    Denormal numbers come with training, and are slow: two equal loops differed by 0.35 to 1.98.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
