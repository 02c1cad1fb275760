"""What Inductor writes about its graphs, read without torch, in Python and by the command line."""

import json
import subprocess
import sys

import pytest
from test_cli import complains, run

import torch_ext
from torch_ext.inductor.dump import Buffer, Node, to_graph
from torch_ext.planning import read_graph

MIB = 2**20


def buffer(name, size, deps=(), freed=None, is_input=False, is_output=False):
    return {
        "name": name,
        "size_alloc": size,
        "size_free": size if freed is None else freed,
        "size": size,
        "is_input": is_input,
        "is_output": is_output,
        "deps": list(deps),
        "unmet_deps": list(deps),
    }


def dump() -> dict:
    """Two branches that begin with a large buffer each; one of them ends in two results."""
    return {
        "nodes": [
            {"name": "op0", "buffer_names": ["buf0"]},
            {"name": "op1", "buffer_names": ["buf1"]},
            {"name": "op2", "buffer_names": ["buf2"]},
            {"name": "op3", "buffer_names": ["buf3"]},
            {"name": "op4_op5", "buffer_names": ["buf4", "none"]},
            {"name": "op6", "buffer_names": ["buf6"]},
        ],
        "buffers": [
            buffer("relu", 2 * MIB, is_input=True),
            buffer("buf0", 10 * MIB, ["relu"]),
            buffer("buf1", 10 * MIB, ["relu"]),
            buffer("buf2", 3 * MIB, ["buf0"], freed=0),
            buffer("buf3", 0, ["buf2"], freed=1 * MIB, is_output=True),
            buffer("buf4", 0, ["buf2"], freed=2 * MIB),
            buffer("buf6", 1 * MIB, ["buf1", "buf4"], is_output=True),
        ],
    }


RECORD = "V1126 11:59:43.882000 8903 torch/_inductor/memory.py:1186] "


def record(name: str, payload: str) -> str:
    fields = {"artifact": {"name": name, "encoding": "string"}, "frame_id": 0}
    lines = "".join(f"\n\t{line}" for line in payload.split("\n"))
    return f"{RECORD}{json.dumps(fields)}{lines}\n"


def log(*names: str) -> str:
    """As TORCH_TRACE writes it: other records around, some with text that looks like ours."""
    begin = f'{RECORD}{{"dynamo_start": {{}}, "frame_id": 0}}\n' + record("fx_graph", "{}")
    ours = "".join(record(name, json.dumps(dump(), indent=2)) for name in names)
    return begin + ours + record("before_post_grad", "def f(): pass") + f'{RECORD}{{"artifact": {{'


@pytest.fixture
def write(tmp_path):
    def to_file(content, name="dump.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
        return path

    return to_file


def test_several_results_are_allocated_together_and_freed_one_by_one(write):
    text = read_graph(write(dump())).to_text()
    assert f"buffer buf3 {MIB} kept" in text
    assert "op op2 reads buf0 writes buf2 buf3 buf4" in text
    assert "op op3 reads buf2 buf3" in text
    assert "op op4_op5 reads buf2 buf4 writes none" in text
    assert "op op6 reads buf1 buf4 writes buf6 after op4_op5" in text


def test_the_command_line_plans_a_dump(write, tmp_path):
    result = run("plan", write(dump(), "any.name"), "--json", "-o", tmp_path / "order")
    assert (result.returncode, result.stderr) == (0, "")
    fields = json.loads(result.stdout)
    assert fields["original_peak_bytes"] == 23 * MIB  # buf0, buf1, and the results of op2
    assert fields["peak_bytes"] == fields["lower_bound_bytes"] == 15 * MIB
    assert fields["status"] == "optimal"
    assert (tmp_path / "order").read_text().split() == fields["order"]
    assert torch_ext.plan(tmp_path / "any.name").order == tuple(fields["order"])
    assert "no order needs less" in run("plan", write(dump())).stdout


def test_a_log_with_one_graph_is_planned(write):
    fields = json.loads(run("plan", write(log("model__0_inference_0_fused")), "--json").stdout)
    assert fields["peak_bytes"] == 15 * MIB


def test_a_log_with_several_graphs_names_the_choices(write):
    path = write(log("a_fused", "b_fused", "a_fused"))
    complains(
        run("plan", path), 2, "dump.json: holds 3 graphs", "--name: a_fused, b_fused, a_fused.2"
    )
    complains(run("plan", path, "--name", "c"), 2, "holds no graph 'c'", "a_fused, b_fused")
    assert run("plan", path, "--name", "a_fused.2").returncode == 0


def test_planning_a_dump_imports_no_torch(write):
    program = (
        f"import sys, torch_ext; torch_ext.plan({str(write(dump()))!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def changed(*keys, value=None):
    """The dump with one entry changed, or missing."""
    fields = inner = dump()
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return fields


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{\n  nodes\n", ["line 2", "property name"]),
        ("{}", ["'buffers' is not a list"]),
        (changed("nodes", value={}), ["'nodes' is not a list"]),
        (changed("nodes", 1, value="op1"), ["nodes[1]: not an object"]),
        (changed("nodes", 1, "name"), ["nodes[1]: 'name' is not a text"]),
        (changed("nodes", 1, "buffer_names", value=[1]), ["nodes[1]", "list of names"]),
        (changed("buffers", 3, "size_free"), ["buffers[3] 'buf2'", "not a whole number"]),
        (changed("buffers", 3, "size_free", value=True), ["buffers[3] 'buf2'", "size_free"]),
        (changed("buffers", 3, "size_alloc", value=-1), ["buf"]),
        (changed("buffers", 3, "is_output", value=1), ["buffers[3] 'buf2'", "true or false"]),
        (changed("buffers", 3, "deps", value=["buf9"]), ["buf9"]),
        (changed("buffers", 1, "deps", value=["buf6"]), ["op0", "buf6"]),
        (changed("buffers", 1, "name", value="buf1"), ["'buf1'"]),
        (changed("buffers", 4, "deps", value=[]), ["'buf3'", "frees 1048576 bytes"]),
        (changed("nodes", 0), ["'buf0' is written by no node"]),
        (log(), ["holds no graph", "reorder_for_peak_memory_debug = True"]),
        (log("a_fused").replace('\t  "nodes": [', "\t  nodes"), ["line 6", "property name"]),
    ],
)
def test_bad_files_are_one_sentence_that_names_the_place(content, words, write):
    complains(run("plan", write(content)), 2, "dump.json: ", *words)


def test_a_name_where_there_is_one_graph(write):
    for content in (dump(), "graph 1\nbuffer a 1 input\n"):
        complains(run("plan", write(content), "--name", "a"), 2, "holds one graph, without a name")


def test_what_nobody_frees_stays():
    graph = to_graph(
        [Buffer("all", 5, 0), Buffer("part", 0, 3)],
        [Node("a", ("all",), ()), Node("b", ("part",), ("all",))],
    )
    assert "buffer all.rest 2 kept" in graph.to_text()
