"""How long each op of a graph takes."""

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import fx

from torch_ext.fx.probe import Executed, Probe, Runner
from torch_ext.memory.meter import no_collections

_UNSETTLED, _COUNTED = 1, 3
_DIGITS = 2  # that a time has: more are noise


class _Timed(Runner):
    """Runs a graph and keeps the time of each node."""

    nanoseconds: dict[str, int]

    def execute(self, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Executed:
        function = self.function_of(node, args)
        start = time.perf_counter_ns()
        value = function(*args, **kwargs)
        self.nanoseconds[node.name] = time.perf_counter_ns() - start
        return Executed(value, 0, False)


def add_times(probe: Probe, module: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Set the nanoseconds of each op of the probe, which is of the module.

    Runs the graph a few times on the same inputs, which its effects change. Of each op it takes the
    median, rounded to two digits.
    """
    times: dict[str, list[int]] = defaultdict(list)
    for turn in range(_UNSETTLED + _COUNTED):
        runner = _Timed(module, inputs)
        runner.nanoseconds = {}
        with no_collections():
            runner.run()
        if turn >= _UNSETTLED:
            for name, nanoseconds in runner.nanoseconds.items():
                times[name].append(nanoseconds)
    for op in probe.ops:
        measured = sum(statistics.median(times[node.name]) for node in op.nodes)
        op.nanoseconds = int(float(f"{measured:.{_DIGITS - 1}e}"))
