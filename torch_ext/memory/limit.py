"""A limit of memory as an assertion, for tests and for services."""

import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from torch_ext.amounts import amount
from torch_ext.arguments import MemoryAmount, memory_bytes
from torch_ext.memory.meter import PeakMemory, measure_peak

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class assert_peak_below:  # noqa: N801
    """Raise AssertionError if a block, or each call of a function, takes more memory than allowed.

    `with assert_peak_below("512MiB"): model(x)`, or `@assert_peak_below("512MiB")` above a
    function, or, in pytest, `@pytest.mark.peak_below("512MiB")` above a test. An int is bytes.
    Measured as by measure_peak: CPU memory above the start of the block. Whatever the block raises
    itself goes through.
    """

    def __init__(self, allowed: MemoryAmount) -> None:
        self.allowed_bytes = memory_bytes(allowed, "the limit")
        self._open: list[PeakMemory] = []  # the innermost last: one limit may be used in itself

    def __call__(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """Decorate a function."""
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(
                f"{function.__qualname__} does its work after it has returned; "
                "use `with assert_peak_below(...)` inside it"
            )

        @functools.wraps(function)
        def measured(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            with assert_peak_below(self.allowed_bytes):
                return function(*args, **kwargs)

        return measured

    def __enter__(self) -> Self:
        self._open.append(measure_peak().__enter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        memory = self._open.pop()
        memory.__exit__(kind, error, trace)
        if kind is None and memory.peak_bytes > self.allowed_bytes:
            raise AssertionError(
                f"the peak of memory was {_exact(memory.peak_bytes)}, "
                f"allowed are {_exact(self.allowed_bytes)}"
            )


def _exact(size_bytes: int) -> str:
    return f"{size_bytes:,} bytes ({amount(size_bytes)})"
