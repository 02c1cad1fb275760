"""Bare graphs: torch_ext.Graph and torch_ext.plan."""

import json
import random

import pytest

import torch_ext

FORK = """graph 1
buffer a 10
buffer b 10
buffer x 1
buffer y 1 kept
op make_a writes a
op make_b writes b
op use_a reads a writes x
op use_b reads b x writes y
"""


def test_the_smallest_graph_with_a_gain():
    plan = torch_ext.plan(torch_ext.Graph.from_text(FORK))
    assert (plan.original_peak_bytes, plan.peak_bytes, plan.lower_bound_bytes) == (21, 12, 12)
    assert plan.status == "optimal"
    assert plan.order == ("make_a", "use_a", "make_b", "use_b")
    assert plan.moved_ops == 1


def test_text_and_methods_build_the_same_graph():
    graph = torch_ext.Graph()
    for name, size in (("a", 10), ("b", 10), ("x", 1)):
        graph.add_buffer(name, size)
    graph.add_buffer("y", 1, kept=True)
    graph.add_op("make_a", writes=["a"])
    graph.add_op("make_b", writes=["b"])
    graph.add_op("use_a", reads=["a"], writes=["x"])
    graph.add_op("use_b", reads=["b", "x"], writes=["y"])
    assert graph.to_text() == FORK
    assert torch_ext.Graph.from_text(FORK).to_text() == FORK


def test_a_file_is_planned(tmp_path):
    path = tmp_path / "fork.txt"
    path.write_text(FORK)
    assert torch_ext.plan(path).order == torch_ext.plan(str(path)).order


def test_an_empty_graph_has_the_peak_of_its_kept_inputs():
    plan = torch_ext.plan(torch_ext.Graph.from_text("graph 1\nbuffer x 7 input kept\n"))
    assert (plan.peak_bytes, plan.status, plan.bottleneck) == (7, "optimal", None)


def test_the_plan_is_json():
    fields = json.loads(json.dumps(torch_ext.plan(torch_ext.Graph.from_text(FORK)).to_dict()))
    assert fields["format"] == 1
    assert fields["buffers"] == 4
    assert fields["bottleneck"]["op"] in fields["order"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 0: the header"),
        ("graph 3\n", "line 1: .*versions 1 and 2"),
        ("graph 2\nop a nanoseconds x\n", "line 2: 'x' is not a time in nanoseconds"),
        ("graph 2\nbuffer a 1 input\nop o mutates a\n", "line 3: op 'o' mutates 'a', which it"),
        ("graph 1\nbuffer a ten\n", "line 2: 'ten' is not a size"),
        ("graph 1\nbuffer a 1\n", "line 2: .*no producer"),
    ],
)
def test_mistakes_name_the_line(text, message, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"bad.txt: {message}"):
        torch_ext.plan(path)


def test_mistakes_of_methods_name_the_offender():
    graph = torch_ext.Graph()
    graph.add_buffer("a", 1)
    with pytest.raises(ValueError, match="'a' is declared twice"):
        graph.add_buffer("a", 1)
    with pytest.raises(ValueError, match="unknown buffer 'b'"):
        graph.add_op("op", reads=["b"])
    with pytest.raises(ValueError, match="negative"):
        graph.add_buffer("c", -1)
    with pytest.raises(ValueError, match="'a' has no producer"):
        torch_ext.plan(graph)


# --- ops that run again ---------------------------------------------------------------------------


def forward_and_backward(length: int = 16, nanoseconds: int = 100) -> torch_ext.Graph:
    """A chain, and one back that reads each result of it: as training has."""
    graph = torch_ext.Graph()
    graph.add_buffer("x", 10, input=True)
    last = "x"
    for i in range(length):
        graph.add_buffer(f"a{i}", 10)
        graph.add_op(f"f{i}", reads=[last], writes=[f"a{i}"], nanoseconds=nanoseconds)
        last = f"a{i}"
    for i in reversed(range(length)):
        graph.add_buffer(f"g{i}", 10, kept=i == 0)
        reads = [f"a{i}", last]
        graph.add_op(f"b{i}", reads=reads, writes=[f"g{i}"], nanoseconds=2 * nanoseconds)
        last = f"g{i}"
    return graph


def test_ops_run_again_where_a_memory_budget_asks_for_it():
    graph = forward_and_backward()
    assert torch_ext.plan(graph).peak_bytes == 170
    plan = torch_ext.plan(graph, memory_budget=80)
    assert plan.budget_met
    assert plan.original_peak_bytes == 170
    assert plan.floor_bytes <= plan.peak_bytes <= 80
    assert len(plan.order) == plan.ops == 32 + len(plan.repeats)
    assert {repeat.name for repeat in plan.repeats} == {op for op in plan.order if "/" in op}
    assert plan.call_seconds == pytest.approx(16 * 300e-9)
    assert plan.extra_seconds == pytest.approx(sum(one.seconds for one in plan.repeats))
    assert 0 < plan.extra_seconds_bound <= plan.extra_seconds
    assert [use.name for use in plan.levers] == ["order", "repeat"]
    assert plan.levers[-1].edits == len(plan.repeats)
    assert (plan.reason, plan.lower_bound_bytes <= plan.peak_bytes) == ("", True)
    fields = json.loads(json.dumps(plan.to_dict()))
    assert fields["repeats"][0]["op"] in plan.order
    assert "ops that run again" in str(plan)


def test_the_judge_takes_orders_with_repeats():
    graph = forward_and_backward()
    plan = torch_ext.plan(graph, memory_budget=80)
    timeline = torch_ext.simulate(graph, plan.order)
    assert [entry.op for entry in timeline] == list(plan.order)
    assert max(entry.hill_bytes for entry in timeline) == plan.peak_bytes
    with pytest.raises(ValueError, match="there is no op 'f0/3'"):
        torch_ext.simulate(graph, [*plan.order, "f0/3"])
    originals = [op for op in plan.order if "/" not in op]
    with pytest.raises(ValueError, match="does not do what the program does"):
        torch_ext.simulate(graph, [originals[-1], *originals[:-1], "f0/2"])


def test_a_budget_that_cannot_be_met_is_no_error():
    plan = torch_ext.plan(forward_and_backward(), memory_budget=20)
    assert plan.budget_met is False
    assert plan.extra_seconds_bound is None
    assert plan.floor_bytes == 40
    assert "no order and no repeats get below 40 B: b" in plan.reason
    assert plan.reason in str(plan)


def test_without_a_budget_or_times_nothing_runs_again():
    graph = forward_and_backward()
    plan = torch_ext.plan(graph, levers=["order", "repeat"])
    assert (plan.repeats, plan.call_seconds) == ((), None)
    assert "give a memory budget" in plan.reason
    untimed = torch_ext.plan(forward_and_backward(nanoseconds=0), memory_budget=80)
    assert (untimed.repeats, untimed.budget_met) == ((), False)
    assert "no op may run again" in untimed.reason
    assert untimed.floor_bytes == untimed.lower_bound_bytes
    met = torch_ext.plan(graph, memory_budget=170)
    assert (met.repeats, met.reason, met.budget_met) == ((), "", True)


def test_levers_of_bare_graphs():
    graph = forward_and_backward()
    plan = torch_ext.plan(graph, memory_budget=80, levers=["order"])
    assert (plan.peak_bytes, plan.budget_met) == (170, False)
    assert [use.name for use in plan.levers] == ["order"]
    alone = torch_ext.plan(torch_ext.Graph.from_text(FORK), levers=["repeat"])
    assert (alone.peak_bytes, alone.moved_ops) == (21, 0)
    with pytest.raises(ValueError, match="levers must be of 'order', 'repeat', not 'slice'"):
        torch_ext.plan(graph, levers=["slice"])


def test_ops_that_must_not_run_again_do_not():
    graph = torch_ext.Graph.from_text(
        forward_and_backward().to_text().replace("nanoseconds 100", "nanoseconds 100 once")
    )
    plan = torch_ext.plan(graph, memory_budget=80)
    assert not any(repeat.op.startswith("f") for repeat in plan.repeats)
    assert plan.budget_met is False


def test_what_is_written_in_place_is_written_again():
    graph = torch_ext.Graph()
    for name, size in (("a", 50), ("b", 40), ("c", 60), ("d", 1), ("e", 1)):
        graph.add_buffer(name, size, kept=name == "e")
    graph.add_op("make", writes=["a"], nanoseconds=5)
    graph.add_op("add_", reads=["a"], mutates=["a"], nanoseconds=2)
    graph.add_op("early", reads=["a"], writes=["b"], nanoseconds=1)
    graph.add_op("large", reads=["b"], writes=["c"], nanoseconds=1)
    graph.add_op("small", reads=["c"], writes=["d"], nanoseconds=1)
    graph.add_op("late", reads=["a", "d"], writes=["e"], nanoseconds=1)
    assert torch_ext.plan(graph).peak_bytes == 150
    plan = torch_ext.plan(graph, memory_budget=100)
    assert plan.budget_met
    order = list(plan.order)
    assert order.index("make/2") < order.index("add_/2") < order.index("late")
    assert plan.extra_seconds == pytest.approx(7e-9)
    assert plan.extra_seconds_bound == pytest.approx(7e-9)


def random_graph(seed: int) -> tuple[torch_ext.Graph, dict[str, dict[str, list[str]]]]:
    """Return a graph with writes in place, and what each op touches."""
    draw = random.Random(seed)
    graph, touches, known = torch_ext.Graph(), {}, ["x"]
    graph.add_buffer("x", 4, input=True)
    for i in range(draw.randint(4, 14)):
        reads = sorted({draw.choice(known) for _ in range(draw.randint(0, 3))})
        mutates = [b for b in reads if draw.random() < 0.2]
        graph.add_buffer(f"b{i}", draw.randint(1, 9), kept=draw.random() < 0.1)
        parts = {"reads": reads, "writes": [f"b{i}"], "mutates": mutates}
        graph.add_op(f"op{i}", nanoseconds=draw.randint(1, 9), once=draw.random() < 0.1, **parts)
        touches[f"op{i}"] = parts
        known.append(f"b{i}")
    return graph, touches


def executed(order, touches) -> tuple[dict[str, int], dict[str, int]]:
    """Run it with one storage for each buffer; return what each op saw, and what is left."""
    storage, seen = {"x": 1}, {}
    for run in order:
        op = run.partition("/")[0]
        value = hash((op, *(storage[b] for b in touches[op]["reads"])))
        assert seen.setdefault(op, value) == value
        for b in (*touches[op]["writes"], *touches[op]["mutates"]):
            storage[b] = hash((value, b))
    return seen, storage


def test_an_executor_with_one_storage_for_each_buffer_does_the_same():
    repeats = 0
    for seed in range(150):
        graph, touches = random_graph(seed)
        front = torch_ext.front(graph, points=3, time_budget=0.1)
        for point in front.points:
            plan = torch_ext.plan(graph, memory_budget=point.peak_bytes)
            repeats += len(plan.repeats)
            timeline = torch_ext.simulate(graph, plan.order)
            assert max(entry.hill_bytes for entry in timeline) == plan.peak_bytes
            seen, left = executed(plan.order, touches)
            expected, results = executed(touches, touches)
            kept = [line.split()[1] for line in graph.to_text().splitlines() if " kept" in line]
            assert seen == expected
            assert [left[b] for b in kept] == [results[b] for b in kept]
    assert repeats > 50


def test_the_text_is_of_the_lowest_version_that_says_all():
    graph = forward_and_backward(length=1)
    assert graph.to_text() == (
        "graph 2\nbuffer x 10 input\nbuffer a0 10\nbuffer g0 10 kept\n"
        "op f0 reads x writes a0 nanoseconds 100\nop b0 reads a0 writes g0 nanoseconds 200\n"
    )
    assert torch_ext.Graph.from_text(graph.to_text()).to_text() == graph.to_text()
    graph.add_op("once", once=True)
    with pytest.raises(ValueError, match="'once' is a word of 'graph 2'"):
        graph.to_text()


def test_names_that_a_repeat_would_have_are_told():
    graph = forward_and_backward()
    for i in range(16):
        graph.add_op(f"f{i}/2")
    with pytest.raises(ValueError, match=r"'f\d+/2' is what a further run is called"):
        torch_ext.plan(graph, memory_budget=80)


def test_a_front_of_a_graph():
    graph = forward_and_backward()
    front = torch_ext.front(graph, points=4)
    first, *rest = front.points
    assert (first.peak_bytes, first.extra_seconds, first.levers) == (170, 0.0, ("order",))
    assert 1 <= len(rest) <= 4
    for point, above in zip(rest, front.points, strict=False):
        assert point.peak_bytes < above.peak_bytes
        assert point.extra_seconds > above.extra_seconds
        assert above.extra_seconds_bound <= point.extra_seconds_bound <= point.extra_seconds
        assert (point.measured_peak_bytes, point.levers) == (None, ("order", "repeat"))
        plan = torch_ext.plan(graph, memory_budget=point.peak_bytes)
        assert plan.budget_met
    assert front.floor_bytes == 40
    assert "no program with these levers gets below 40 B" in front.reason
    assert "order, repeat" in str(front)
    assert "<svg" in front._repr_html_()


def test_a_front_without_times_has_one_point():
    front = torch_ext.front(torch_ext.Graph.from_text(FORK))
    (point,) = front.points
    assert (point.peak_bytes, front.floor_bytes, front.call_seconds) == (12, 12, 0.0)
    assert "no op may run again" in str(front)
    assert len(torch_ext.front(forward_and_backward(), levers=["order"]).points) == 1


def test_bad_arguments_of_a_front_of_a_graph(tmp_path):
    graph = forward_and_backward()
    with pytest.raises(ValueError, match="leave example_inputs out"):
        torch_ext.front(graph, ())
    with pytest.raises(ValueError, match="points must be a whole number between 1 and 100"):
        torch_ext.front(graph, points=0)
    with pytest.raises(ValueError, match="levers must be of 'order', 'repeat'"):
        torch_ext.front(graph, levers=["slice"])
    (tmp_path / "graph.txt").write_text(graph.to_text())
    front = torch_ext.front(tmp_path / "graph.txt", points=1)
    assert front.points[0].peak_bytes == 170


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        torch_ext.plan(tmp_path / "nothing.txt")
