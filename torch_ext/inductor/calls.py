"""What Inductor's C++ backend makes of an order: neighbouring kernels become one call.

Their results are allocated before the call, and what they are the last to read is freed after it;
Inductor's own estimate does not count that. Only a call of another kind (an extern kernel) between
two kernels parts them, so an order of low estimated peak can be made better by moving kernels past
such a call.
"""

import itertools
from collections.abc import Iterator, Sequence

from torch_ext.inductor.dump import Buffer, Node

_CALLS_TO_PASS = 3  # a kernel is moved past at most so many
_VISITS_PER_SECOND = 300_000  # of nodes, on a slow machine


class Calls:
    """One graph, and what its orders need. An order is a sequence of its nodes."""

    def __init__(self, buffers: Sequence[Buffer], nodes: Sequence[Node]) -> None:
        self._buffers = buffers
        self._writers = {name: node.name for node in nodes for name in node.writes}
        self._readers: dict[str, list[str]] = {}
        for node in nodes:
            for name in node.reads:
                self._readers.setdefault(name, []).append(node.name)

    def peak(self, order: Sequence[Node]) -> tuple[int, range]:
        """The peak in bytes, and the places in the order of the call that needs it."""
        calls = list(_calls(order))
        index = {order[place].name: number for number, call in enumerate(calls) for place in call}
        changes = [0] * (len(calls) + 1)
        for buffer in self._buffers:
            made = 0 if buffer.is_input else index[self._writers[buffer.name]]
            changes[made] += buffer.allocated_bytes
            if not buffer.is_output:
                readers = self._readers.get(buffer.name, ())
                changes[max((index[name] for name in readers), default=made) + 1] -= (
                    buffer.freed_bytes
                )
        memory = list(itertools.accumulate(changes[:-1]))
        peak_bytes = max(memory, default=0)
        return peak_bytes, calls[memory.index(peak_bytes)] if calls else range(0)

    def part(self, order: Sequence[Node], time_budget: float) -> list[Node]:
        """Move kernels out of the call that sets the peak, for as long as that lowers it.

        Each step takes the best of all ways to cut that call in two at a neighbouring call. Every
        move keeps what must run first. `time_budget` (seconds) is turned into counted work.
        """
        best = list(order)
        peak_bytes, call = self.peak(best)
        visits = time_budget * _VISITS_PER_SECOND
        while True:
            ways = [(*self.peak(way), way) for way in _cuts(best, call)]
            visits -= len(ways) * len(best)
            lowest = min(ways, key=lambda way: way[0], default=None)
            if lowest is None or lowest[0] >= peak_bytes or visits < 0:
                return best
            peak_bytes, call, best = lowest


def _calls(order: Sequence[Node]) -> Iterator[range]:
    """The places of each call."""
    start = 0
    for place, node in enumerate(order):
        if place + 1 == len(order) or not (node.is_kernel and order[place + 1].is_kernel):
            yield range(start, place + 1)
            start = place + 1


def _cuts(order: list[Node], call: range) -> Iterator[list[Node]]:
    """The orders in which another call, from behind or from before, runs within this one."""
    others = [place for place, node in enumerate(order) if not node.is_kernel]
    later = [place for place in others if place >= call.stop][:_CALLS_TO_PASS]
    earlier = [place for place in others if place < call.start][-_CALLS_TO_PASS:]
    for cut in range(call.start, call.stop + 1):
        for place in later:
            yield _pulled(order, place, cut)
        for place in earlier:
            yield _pushed(order, place, cut)


def _pulled(order: list[Node], place: int, to: int) -> list[Node]:
    """The node at `place` goes before that at `to`, and with it what it needs."""
    needed = {order[place].name}
    moving: list[Node] = []
    staying: list[Node] = []
    for node in reversed(order[to : place + 1]):
        if node.name in needed:
            needed.update(node.after)
            moving.append(node)
        else:
            staying.append(node)
    return order[:to] + moving[::-1] + staying[::-1] + order[place + 1 :]


def _pushed(order: list[Node], place: int, to: int) -> list[Node]:
    """The node at `place` goes behind what is before `to`, and with it what needs it."""
    moving = {order[place].name}
    staying: list[Node] = []
    for node in order[place + 1 : to]:
        if moving.isdisjoint(node.after):
            staying.append(node)
        else:
            moving.add(node.name)
    moved = [node for node in order[place:to] if node.name in moving]
    return order[:place] + staying + moved + order[to:]
