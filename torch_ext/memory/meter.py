"""Measuring memory as the allocator sees it."""

import contextlib
import gc
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
    if not gc.isenabled():  # within such a block
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
