"""Orders of other schedulers, for the planner benchmark.

Each takes a program and returns its op names in the scheduler's order, or None if it gave up.
Workspace is unknown to all of them but SERENITY, whose model of memory is the judge's.
"""

from __future__ import annotations

import collections
import heapq
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from program import Program, peak_bytes
from torch._inductor import memory as inductor
from torch.utils._ordered_set import OrderedSet

# SERENITY gives up a budget after so many steps from state to state, a program after so many steps
# in all; the clock is for emergencies, so that the outcome does not depend on the machine.
SERENITY_STEPS_PER_BUDGET = 400_000
SERENITY_STEPS = 2_000_000
SERENITY_SECONDS = 60.0


def original(program: Program) -> list[str]:
    """The order in which the program was written."""
    return program.names(range(len(program.ops)))


# --- PyTorch Inductor ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Dependency:
    """What an Inductor node waits for, by the name of a buffer."""

    name: str


@dataclass(eq=False)
class _Buffer:
    """What the sorts read of a SchedulerBuffer."""

    name: str
    mpi_buffer: inductor.MemoryPlanningInfoForBuffer

    def get_name(self) -> str:
        return self.name


@dataclass(eq=False)
class _Node:
    """What the sorts read of a BaseSchedulerNode."""

    number: int
    outputs: list[_Buffer]
    unmet_dependencies: list[_Dependency]
    mpi_node: inductor.MemoryPlanningInfoForNode

    def get_outputs(self) -> list[_Buffer]:
        return self.outputs

    def get_buffer_names(self) -> list[str]:
        # An op without outputs still has a name to wait for, as in Inductor, where it has an empty
        # buffer. The space keeps it apart from the names of real buffers.
        return [_order_name(self.number), *(buffer.name for buffer in self.outputs)]


def _order_name(op: int) -> str:
    return f"op {op}"


@dataclass(frozen=True)
class _Inductor:
    """A program in Inductor's terms."""

    nodes: list[_Node]
    inputs: dict[str, inductor.FreeableInputBuffer]
    buffers: dict[str, _Buffer]
    outputs: OrderedSet[str]


def _to_inductor(program: Program) -> _Inductor:
    """Stand-ins for the scheduler's nodes that carry the same planning information.

    An edge without a buffer is one of ordering only, like Inductor's fake weak dependencies.
    """
    nodes = [
        _Node(number, [], [], inductor.MemoryPlanningInfoForNode(index=number))
        for number in range(len(program.ops))
    ]
    inputs: dict[str, inductor.FreeableInputBuffer] = {}
    buffers: dict[str, _Buffer] = {}
    for number, buffer in enumerate(program.buffers):
        users: OrderedSet[Any] = OrderedSet(nodes[user] for user in program.users[number])
        info = inductor.MemoryPlanningInfoForBuffer(
            size_alloc=0 if buffer.input else buffer.size_bytes,
            size_free=buffer.size_bytes,
            succ_nodes=users,
            succ_nodes_for_ordering=OrderedSet(users),
        )
        stand_in: Any
        producer = program.producer[number]
        if producer is None:
            if not users and not buffer.kept:
                continue  # Inductor drops what nobody reads
            stand_in = inputs[buffer.name] = inductor.FreeableInputBuffer(buffer.name, info)
        else:
            stand_in = buffers[buffer.name] = _Buffer(buffer.name, info)
            nodes[producer].outputs.append(stand_in)
        for user in users:
            user.mpi_node.pred_buffers.add(stand_in)
    for number, node in enumerate(nodes):
        planning: Any = node.mpi_node
        planning.size = program.output_bytes(number)
        planning.pred_nodes = OrderedSet(nodes[pred] for pred in program.preds[number])
        planning.succ_nodes = OrderedSet(nodes[succ] for succ in program.succs[number])
        node.unmet_dependencies = [_Dependency(_order_name(p)) for p in program.preds[number]]
    outputs = OrderedSet(buffer.name for buffer in program.buffers if buffer.kept)
    return _Inductor(nodes, inputs, buffers, outputs)


def _sorted_by_inductor(program: Program, sort: Callable[[_Inductor], Any]) -> list[str]:
    """The order of one of its sorts, which recurse once per op in a chain."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 2 * len(program.ops))
    try:
        return program.names(node.number for node in sort(_to_inductor(program)))
    finally:
        sys.setrecursionlimit(limit)


def inductor_lpmf(program: Program) -> list[str]:
    """torch._inductor.memory.topological_sort_lpmf of the installed torch: least peak first."""

    def sort(graph: _Inductor) -> Any:
        nodes: Any = graph.nodes
        buffers: Any = graph.buffers
        return inductor.topological_sort_lpmf(nodes, graph.inputs, buffers, graph.outputs)

    return _sorted_by_inductor(program, sort)


def inductor_bfs(program: Program) -> list[str]:
    """torch._inductor.memory.topological_sort_bfs of the installed torch: oldest inputs first."""

    def sort(graph: _Inductor) -> Any:
        nodes: Any = graph.nodes
        return inductor.topological_sort_bfs(nodes)

    return _sorted_by_inductor(program, sort)


def inductor_dfs(program: Program) -> list[str]:
    """torch._inductor.memory.topological_sort_dfs of the installed torch: smallest nodes first."""

    def sort(graph: _Inductor) -> Any:
        nodes: Any = graph.nodes
        return inductor.topological_sort_dfs(nodes)

    return _sorted_by_inductor(program, sort)


# --- XLA ----------------------------------------------------------------------------------------
# After their description in xla/hlo/transforms/simplifiers/hlo_memory_scheduler.cc. Common to all:
# parameters are not instructions here, and the ops without users are the operands of the root tuple
# in program order, as results and updated weights are in XLA.


def xla_list(program: Program) -> list[str]:
    """XLA's list scheduler: of the ready instructions the one that frees most bytes, less those it
    defines; then the one with most users; then the one that became ready, or changed, last.

    Simplified: no infeed and outfeed, no rule for scalars (ops have no shape here). In its favour,
    inputs that die count as freed, which they do not in XLA.
    """
    uses_left = [len(u) + b.kept for u, b in zip(program.users, program.buffers, strict=True)]
    waiting = [len(preds) for preds in program.preds]
    current: dict[int, tuple[int, int, int]] = {}  # of ready ops; older entries are stale
    queue: list[tuple[tuple[int, int, int], int]] = []
    clock = 0

    def push(op: int) -> None:
        nonlocal clock
        freed = sum(
            program.buffers[b].size_bytes for b in program.ops[op].reads if uses_left[b] == 1
        )
        priority = (program.output_bytes(op) - freed, -_user_count(program, op))
        if op in current and current[op][:2] == priority:
            return
        clock += 1
        current[op] = (*priority, -clock)
        heapq.heappush(queue, (current[op], op))

    for op, count in enumerate(waiting):
        if not count:
            push(op)
    order = []
    while queue:
        priority, op = heapq.heappop(queue)
        if current.get(op) != priority:
            continue
        del current[op]
        order.append(op)
        dying = []
        for buffer in program.ops[op].reads:
            uses_left[buffer] -= 1
            if uses_left[buffer] == 1:
                dying.append(buffer)
        for succ in program.succs[op]:
            waiting[succ] -= 1
            if not waiting[succ]:
                push(succ)
        for buffer in dying:
            for user in program.users[buffer]:
                if user in current:
                    push(user)
    return program.names(order)


def _user_count(program: Program, op: int) -> int:
    """The ops that read its outputs, and the root if one is a result."""
    writes = program.ops[op].writes
    users = {user for b in writes for user in program.users[b]}
    return len(users) + any(program.buffers[b].kept for b in writes)


def xla_dfs(program: Program) -> list[str]:
    """XLA's depth-first memory scheduler: post-order from the root, of an instruction's operands
    first those with most extra users (users less one, summed over all that leads to them, counted
    once per path), then those with most bytes, summed likewise, then by name.
    """
    extra_users: list[int] = []
    total_sizes: list[int] = []
    cumulative = 0
    for op in range(len(program.ops)):
        size = program.output_bytes(op)
        cumulative += size
        operands = _operands(program, op)
        users = max(_user_count(program, op) - 1, 0)
        users += sum(extra_users[operand] for operand in operands)
        size += sum(total_sizes[operand] for operand in operands)
        extra_users.append(min(users, len(program.ops)))
        total_sizes.append(min(size, cumulative))  # both caps are XLA's, against overflow

    def key(op: int) -> tuple[int, int, str]:
        return -extra_users[op], -total_sizes[op], program.ops[op].name

    preds_sorted = [sorted(preds, key=key) for preds in program.preds]
    return program.names(_post_order(sorted(_sinks(program), key=key), preds_sorted))


def xla_post_order(program: Program) -> list[str]:
    """XLA's post-order scheduler: depth first from the root, control predecessors, then operands
    in the order in which they are read.
    """
    preds = []
    for op in range(len(program.ops)):
        operands = _operands(program, op)
        preds.append([*(p for p in program.preds[op] if p not in operands), *operands])
    return program.names(_post_order(_sinks(program), preds))


def _operands(program: Program, op: int) -> list[int]:
    """The ops whose outputs it reads, in the order of its reads."""
    producers = (program.producer[b] for b in program.ops[op].reads)
    return list(dict.fromkeys(p for p in producers if p is not None))


def _sinks(program: Program) -> list[int]:
    return [op for op, succs in enumerate(program.succs) if not succs]


def _post_order(roots: Sequence[int], edges: Sequence[Sequence[int]]) -> list[int]:
    """Depth first along the edges, first edge first; a node comes after all it leads to."""
    seen = set()
    order = []
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        stack: list[tuple[int, Iterator[int]]] = [(root, iter(edges[root]))]
        while stack:
            node, rest = stack[-1]
            following = next((other for other in rest if other not in seen), None)
            if following is None:
                order.append(node)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(edges[following])))
    return order


# --- literature ---------------------------------------------------------------------------------


def reverse_post_order(program: Program) -> list[str]:
    """Depth first from the sources along the users, read backwards: the textbook topological sort
    (Cormen et al., Introduction to Algorithms, section 20.4).
    """
    sources = [op for op, preds in enumerate(program.preds) if not preds]
    return program.names(reversed(_post_order(sources, program.succs)))


def serenity(program: Program) -> list[str] | None:
    """SERENITY: Ahn et al., Ordering Chaos, MLSys 2020: divide and conquer at single-op cuts
    (section 3.2), dynamic programming over sets of ops that have run (3.1), under a budget found by
    adaptive soft budgeting (algorithm 2).

    Simplified: no rewriting of the graph (section 3.3), as orders of one graph are compared. In its
    favour, buffers may pass over a cut. None if the limits are met: the paper reports hours for
    networks without cuts.
    """
    effort = _Effort(SERENITY_STEPS, time.monotonic() + SERENITY_SECONDS)
    order: list[int] = []
    for segment in _segments(program):
        part = _Segment(program, segment).order(effort)
        if part is None:
            return None
        order += part
    return program.names(order)


def _segments(program: Program) -> Iterator[range]:
    """Runs of ops between cuts. A cut is an op that follows all before it and precedes all after.

    It is the only sink among itself and the ops before it, and the only source among itself and the
    ops after it.
    """
    count = len(program.ops)
    no_sink_before = [True] * count
    first_user = 0
    for op in range(count):
        no_sink_before[op] = first_user <= op
        first_user = max(first_user, min(program.succs[op], default=count))
    cuts = []
    last_source = count - 1
    for op in range(count - 1, -1, -1):
        if no_sink_before[op] and last_source >= op:
            cuts.append(op)
        last_source = min(last_source, max(program.preds[op], default=-1))
    start = 0
    for cut in reversed(cuts):
        yield range(start, cut + 1)
        start = cut + 1
    if start < count:
        yield range(start, count)


@dataclass
class _Effort:
    """What may still be spent on a program."""

    steps: int
    deadline: float

    def spent(self) -> bool:
        return self.steps <= 0 or time.monotonic() > self.deadline


# Of every set of ops: the least peak on the way to it, the memory after it, the op that ran last.
_Layer = dict[int, tuple[int, int, int]]


class _Segment:
    """Finds the best order of a run of ops between cuts. Sets of ops are bits of an integer."""

    def __init__(self, program: Program, ops: range) -> None:
        self._program, self._ops = program, ops
        self._preds = [self._bits(program.preds[op]) for op in ops]
        self._succs = [[s - ops.start for s in program.succs[op] if s in ops] for op in ops]
        self._hills = []  # outputs and workspace
        self._frees: list[list[tuple[int, int]]] = []  # (readers in the segment, bytes)
        for op in ops:
            step = program.ops[op]
            self._hills.append(program.output_bytes(op) + step.workspace_bytes)
            self._frees.append(
                [
                    (self._bits(program.users[b]), program.buffers[b].size_bytes)
                    for b in {*step.reads, *step.writes}
                    if not program.buffers[b].kept and max(program.users[b], default=-1) < ops.stop
                ]
            )

    def _bits(self, ops: Sequence[int]) -> int:
        return sum(1 << (op - self._ops.start) for op in ops if op in self._ops)

    def order(self, effort: _Effort) -> list[int] | None:
        """The best order, or None if no budget leads to one within the limits.

        Memory that lives all through the segment raises every hill alike, so it is left out.
        Budgets that differ by less than the unit of all sizes admit the same orders.
        """
        sizes = (size for freed in self._frees for _, size in freed)
        unit = max(math.gcd(*self._hills, *sizes), 1)
        low, high = 0, self._kahn_peak()
        budget = high
        while not effort.spent():
            found, steps = self._search(budget)
            effort.steps -= steps
            if found is not None:
                return found
            if steps < SERENITY_STEPS_PER_BUDGET:
                low = budget  # no order: loosen
            else:
                high = budget  # too many states: tighten
            if high - low <= unit:
                return None
            budget = (low + high) // 2
        return None

    def _after(self, done: int, op: int, live: int) -> int:
        """Memory after an op, from that before it; `done` has the op."""
        live += self._program.output_bytes(self._ops[op])
        for users, size in self._frees[op]:
            if not users & ~done:
                live -= size
        return live

    def _kahn_peak(self) -> int:
        """The peak of first in, first out, which starts the budget in the paper."""
        waiting = [preds.bit_count() for preds in self._preds]
        queue = collections.deque(op for op, count in enumerate(waiting) if not count)
        done = live = 0
        peak = self._hills[queue[0]]
        while queue:
            op = queue.popleft()
            peak = max(peak, live + self._hills[op])
            done |= 1 << op
            live = self._after(done, op, live)
            for succ in self._succs[op]:
                waiting[succ] -= 1
                if not waiting[succ]:
                    queue.append(succ)
        return peak

    def _search(self, budget: int) -> tuple[list[int] | None, int]:
        """Dynamic programming, one layer per op, over the sets that are reached within the budget.

        Returns the order, if one was found, and the steps taken.
        """
        ready = {0: self._bits([op for op in self._ops if not self._preds[op - self._ops.start]])}
        layer: _Layer = {0: (0, 0, -1)}
        layers = []
        steps = 0
        for _ in self._ops:
            following: _Layer = {}
            following_ready: dict[int, int] = {}
            for done, (peak, live, _last) in layer.items():
                if steps >= SERENITY_STEPS_PER_BUDGET:
                    return None, steps
                choices = ready[done]
                while choices:
                    bit = choices & -choices
                    choices ^= bit
                    op = bit.bit_length() - 1
                    steps += 1
                    hill = max(peak, live + self._hills[op])
                    after = done | bit
                    if hill > budget or (after in following and following[after][0] <= hill):
                        continue
                    following[after] = (hill, self._after(after, op, live), op)
                    if after not in following_ready:
                        opened = [s for s in self._succs[op] if not self._preds[s] & ~after]
                        following_ready[after] = (ready[done] ^ bit) | sum(1 << s for s in opened)
            layers.append(following)
            layer, ready = following, following_ready
        return (self._trace(layers) if layer else None), steps

    def _trace(self, layers: Sequence[_Layer]) -> list[int]:
        done = (1 << len(self._ops)) - 1
        order = []
        for layer in reversed(layers):
            op = layer[done][2]
            order.append(self._ops.start + op)
            done ^= 1 << op
        return order[::-1]


PEERS: dict[str, Callable[[Program], list[str] | None]] = {
    function.__name__: function
    for function in (
        original,
        inductor_lpmf,
        inductor_bfs,
        inductor_dfs,
        xla_list,
        xla_dfs,
        xla_post_order,
        reverse_post_order,
        serenity,
    )
}


def peaks(program: Program) -> dict[str, int]:
    """The judged peak of every peer that has an order of the program."""
    orders = ((name, peer(program)) for name, peer in PEERS.items())
    return {name: peak_bytes(program, order) for name, order in orders if order is not None}
