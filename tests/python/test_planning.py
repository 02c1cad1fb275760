"""Bare graphs: torch_ext.Graph and torch_ext.plan."""

import json

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
        ("graph 2\n", "line 1: .*version 1"),
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


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        torch_ext.plan(tmp_path / "nothing.txt")
