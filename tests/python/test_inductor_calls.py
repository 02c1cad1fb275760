"""Orders of Inductor's nodes when neighbouring C++ kernels become one call."""

import itertools
import random

import pytest

from torch_ext.inductor.calls import Calls
from torch_ext.inductor.dump import Buffer, Node


def node(name: str, reads: str = "", is_kernel: bool = True) -> Node:
    """Writes the buffer of its own name; names are letters."""
    return Node(name, (name,), tuple(reads), tuple(reads), is_kernel)


def sized(nodes: list[Node], **sizes: int) -> list[Buffer]:
    return [Buffer(n.name, sizes.get(n.name, 1), sizes.get(n.name, 1)) for n in nodes]


def test_kernels_in_a_row_free_nothing_in_between():
    a, b, c, d = nodes = [node("a"), node("b", "a"), node("c", "b"), node("d", "", False)]
    calls = Calls(sized(nodes, a=100, c=100), nodes)
    assert calls.peak([a, b, c, d]) == (201, range(0, 3))
    assert calls.peak([a, b, d, c]) == (101, range(0, 2))


def test_a_call_from_behind_parts_them():
    nodes = [node("a"), node("b", "a"), node("c", "b"), node("d", "c", False), node("e", "", False)]
    calls = Calls(sized(nodes, a=100, b=1, c=100), nodes)
    parted = calls.part(nodes, 1)
    assert "".join(n.name for n in parted) == "abecd"
    assert calls.peak(parted)[0] == 101


def test_a_call_from_before_parts_them_and_takes_along_what_needs_it():
    nodes = [node("e", "", False), node("a"), node("f", "e"), node("b", "a"), node("c", "b")]
    calls = Calls(sized(nodes, a=100, c=100), nodes)
    parted = calls.part(nodes, 1)
    assert calls.peak(parted)[0] == 103
    names = [n.name for n in parted]
    assert names.index("b") < names.index("e") < min(names.index("f"), names.index("c"))


def test_without_time_nothing_moves():
    nodes = [node("a"), node("b", "a"), node("c", "b"), node("d", "", False)]
    assert Calls(sized(nodes, a=100, c=100), nodes).part(nodes, 0) == nodes


def test_no_nodes():
    calls = Calls([], [])
    assert calls.peak([]) == (0, range(0))
    assert calls.part([], 1) == []


def randomly(seed: int) -> tuple[list[Buffer], list[Node]]:
    draw = random.Random(seed)
    names = "abcdefghijkl"
    nodes = [
        node(name, "".join(draw.sample(names[:i], min(i, draw.randrange(3)))), draw.random() < 0.6)
        for i, name in enumerate(names)
    ]
    buffers = sized(nodes, **{name: draw.choice((1, 10, 100)) for name in names})
    return [*buffers, Buffer("x", 50, 50, is_input=True), Buffer("y", 5, 5, True, True)], nodes


def slow_peak(buffers: list[Buffer], order: list[Node]) -> int:
    """Call by call, as the generated code does it."""
    alive = {b.name: b.allocated_bytes for b in buffers if b.is_input}
    sizes = {b.name: b.allocated_bytes for b in buffers}
    kept = {b.name for b in buffers if b.is_output}
    groups: list[list[Node]] = []
    for n in order:
        if groups and n.is_kernel and groups[-1][-1].is_kernel:
            groups[-1].append(n)
        else:
            groups.append([n])
    peak = sum(alive.values())
    for number, group in enumerate(groups):
        alive |= {name: sizes[name] for n in group for name in n.writes}
        peak = max(peak, sum(alive.values()))
        later = {name for g in groups[number + 1 :] for n in g for name in n.reads}
        alive = {name: size for name, size in alive.items() if name in later | kept}
    return peak


@pytest.mark.parametrize("seed", range(200))
def test_random_orders_stay_valid_and_never_need_more(seed):
    buffers, nodes = randomly(seed)
    calls = Calls(buffers, nodes)
    parted = calls.part(nodes, 1)
    assert calls.peak(nodes)[0] == slow_peak(buffers, nodes)
    assert calls.peak(parted)[0] == slow_peak(buffers, parted) <= slow_peak(buffers, nodes)
    assert sorted(n.name for n in parted) == sorted(n.name for n in nodes)
    for n, later in itertools.combinations(parted, 2):
        assert later.name not in n.after
