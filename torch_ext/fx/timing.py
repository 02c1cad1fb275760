"""How long each op of a graph takes."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from torch_ext.fx.probe import Probe
from torch_ext.memory.meter import no_collections

_UNSETTLED, _COUNTED = 1, 3
_DIGITS = 2  # that a time has: more are noise


class UnknownOpError(ValueError):
    """The times that were given have none of an op."""


class _Timed(fx.Interpreter):
    """Runs a graph and keeps what each call took."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.nanoseconds: dict[fx.Node, int] = {}
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(super().call_function, target, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(super().call_method, target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(super().call_module, target, args, kwargs)

    def _timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        assert self.node is not None
        start = time.perf_counter_ns()
        value = call(*arguments)
        self.nanoseconds[self.node] = time.perf_counter_ns() - start
        return value


def add_times(
    probe: Probe,
    module: fx.GraphModule,
    make_inputs: Callable[[], Sequence[Any]],
    op_seconds: Mapping[str, float] | None,
) -> None:
    """Set the nanoseconds of each op of the probe, which is of the module.

    Without `op_seconds`, which has them by the names of ops, it runs the graph a few times on the
    same inputs, which its effects change. Of each op it takes the median, rounded to two digits.

    Raises UnknownOpError for an op that `op_seconds` does not name.
    """
    if op_seconds is not None:
        _set_times(probe, op_seconds)
        return
    inputs = make_inputs()
    times: dict[fx.Node, list[int]] = defaultdict(list)
    for turn in range(_UNSETTLED + _COUNTED):
        timed = _Timed(module)
        with no_collections():
            timed.run(*inputs, enable_io_processing=False)
        if turn >= _UNSETTLED:
            for node, nanoseconds in timed.nanoseconds.items():
                times[node].append(nanoseconds)
    for op in probe.ops:
        op.nanoseconds = _rounded(sum(statistics.median(times[node]) for node in op.nodes))


def _set_times(probe: Probe, op_seconds: Mapping[str, float]) -> None:
    for op in probe.ops:
        if op.name not in op_seconds:
            raise UnknownOpError(
                f"op_seconds has no op '{op.name}': take them from a report of the same program"
            )
        op.nanoseconds = round(op_seconds[op.name] * 1e9)


def nanoseconds_of(run: Callable[[], object]) -> int:
    """Return what a run takes: the median of a few, after others that do not count."""
    times = []
    for turn in range(_UNSETTLED + _COUNTED):
        start = time.perf_counter_ns()
        run()
        if turn >= _UNSETTLED:
            times.append(time.perf_counter_ns() - start)
    return _rounded(statistics.median(times))


def _rounded(nanoseconds: float) -> int:
    """Return it without digits that are noise."""
    return int(float(f"{nanoseconds:.{_DIGITS - 1}e}"))
