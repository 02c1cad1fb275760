"""Reports without a browser: simulation, life spans, the two orders, trace, table."""

import csv
import io
import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import Scripted, attention, traced_wide, wide_input
from reports import HOSTILE, findings, random_graph, wide

import torch_ext
from torch_ext.program.graph import region_tree, simulate
from torch_ext.program.program import Buffer, Op, Program
from torch_ext.reporting import Findings, to_csv, to_html, to_trace
from torch_ext.reporting.diff import diff


@pytest.fixture(scope="module")
def report():
    return torch_ext.analyze(traced_wide(), (wide_input(),))


# --- from the extension --------------------------------------------------------------------------


def test_the_judge_is_the_one_of_the_planner(report):
    original = [op.name for op in report.graph.ops]
    assert simulate(report.graph.to_graph(), original) == report.timeline_before
    assert simulate(report.edited.to_graph(), report.order) == report.timeline_after


def test_an_order_that_is_none_is_refused():
    graph = wide().to_graph()
    order = torch_ext.plan(graph).order
    with pytest.raises(ValueError, match="runs before"):
        simulate(graph, order[::-1])
    with pytest.raises(ValueError, match="nobody"):
        simulate(graph, [*order[1:], "nobody"])
    with pytest.raises(ValueError, match="8 ops"):
        simulate(graph, order[1:])


def test_labels_say_where_an_op_comes_from(report):
    grow = next(op for op in report.graph.ops if op.module_path == "grow.0" and op.writes)
    assert grow.kind == "aten::linear"
    assert "models.py:" in grow.source
    (buffer,) = (b for b in report.graph.buffers if b.name in grow.writes)
    assert (buffer.shape, buffer.dtype, buffer.bytes) == ((256, 512), "float32", 256 * 512 * 4)
    stack = next(op for op in report.graph.ops if op.kind == "aten::stack")
    assert stack.constants == {"dim": 0}


def test_a_loaded_module_keeps_the_whole_module_path(tmp_path):
    torch.jit.save(traced_wide(), tmp_path / "model.pt")
    graph = torch_ext.analyze(torch.jit.load(tmp_path / "model.pt"), (wide_input(),)).graph
    paths = {op.module_path for op in graph.ops if op.kind == "aten::linear"}
    assert paths == {f"{name}.{i}" for name in ("grow", "shrink") for i in range(4)}


def test_modules_that_share_a_type_are_called_as_the_program_calls_them():
    graph = torch_ext.analyze(torch.jit.script(Scripted()), (wide_input(),)).graph
    paths = {op.module_path for op in graph.ops if op.kind == "aten::linear"}
    assert paths == {"a", "b", "c", "d"}


def test_the_graph_of_the_labels_is_the_graph_that_was_planned(report):
    again = torch_ext.plan(report.edited.to_graph())
    assert again.peak_bytes == report.peak_bytes


def test_every_op_is_in_one_leaf_of_the_region_tree():
    graph = random_graph(3, 200, branches=3)
    tree = region_tree(graph.to_graph())
    assert sorted(tree.ops) == sorted(op.name for op in graph.ops)
    parents = {node.parent for node in tree.nodes}
    leaves = [node for i, node in enumerate(tree.nodes) if i not in parents]
    assert sorted(i for leaf in leaves for i in range(leaf.begin, leaf.end)) == list(range(200))
    for node in tree.nodes[1:]:
        parent = tree.nodes[node.parent]
        assert parent.begin <= node.begin < node.end <= parent.end


# --- life spans ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_what_is_alive_and_scratch_are_the_hill(seed):
    found = findings(random_graph(seed, 120, branches=1 + seed % 3))
    for run in (found.before, found.after):
        for step, entry in enumerate(run.timeline):
            alive = found.alive(run, step)
            assert alive == sorted(alive, key=lambda buffer: -buffer.bytes)
            scratch = found.ops[entry.op].workspace_bytes
            assert sum(buffer.bytes for buffer in alive) + scratch == entry.hill_bytes
    assert (
        found.before.timeline[found.before.peak_step].hill_bytes == found.plan.original_peak_bytes
    )
    assert found.after.timeline[found.after.peak_step].hill_bytes == found.plan.peak_bytes


def test_what_is_alive_and_scratch_are_the_hill_where_ops_are_edited():
    x = torch.sin(torch.arange(8.0 * 96 * 64)).reshape(8, 96, 64)
    _, report = torch_ext.optimize(torch.jit.trace(attention(), x), (x,))
    assert report.hoists
    assert report.overwrites
    found = Findings(report.graph, report)
    for run, program in ((found.before, report.graph), (found.after, report.edited)):
        scratch = {op.name: op.workspace_bytes for op in program.ops}
        for step, entry in enumerate(run.timeline):
            alive = sum(buffer.bytes for buffer in found.alive(run, step))
            assert alive + scratch[entry.op] == entry.hill_bytes
    copies = {hoist.copy for hoist in report.hoists}
    assert copies & set(report.bottleneck.buffers)
    assert copies <= {row["op"] for row in csv.DictReader(io.StringIO(to_csv(found)))}
    assert all(f'"{copy}"' in to_html(found) for copy in copies)
    assert all(f'"{copy}"' in to_trace(found) for copy in copies)
    assert f"{len(copies)} of their copies made beforehand" in to_html(found)


def test_life_spans_of_inputs_and_results():
    text = "graph 1\nbuffer never 1 input\nbuffer held 1 input kept\nbuffer a 2\nbuffer y 4 kept\n"
    text += "op one writes a\nop two reads a writes y\nop three\n"

    graph = Program(
        (
            Op("one", writes=("a",)),
            Op("two", reads=("a",), writes=("y",)),
            Op("three"),
        ),
        (
            Buffer("never", 1, is_input=True),
            Buffer("held", 1, is_input=True, kept=True),
            Buffer("a", 2),
            Buffer("y", 4, kept=True),
        ),
    )
    assert graph.to_graph().to_text() == text
    run = findings(graph).before
    assert [len(range(span.first, span.last + 1)) for span in run.life_spans] == [0, 3, 2, 2]


# --- ops that touch memory ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_what_must_run_in_an_order_still_has_to_without_the_ops_between(seed):
    rng = random.Random(seed)
    ops = [
        Op(
            str(i),
            writes=(f"b{i}",) if rng.random() < 0.5 else (),
            after=tuple(str(j) for j in rng.sample(range(i), min(i, rng.randrange(3)))),
        )
        for i in range(12)
    ]
    buffers = tuple(Buffer(name, 1) for op in ops for name in op.writes)

    def before(graph):
        earlier = {}
        for op in graph.ops:
            earlier[op.name] = set(op.after).union(*(earlier[name] for name in op.after))
        return earlier

    graph = Program(tuple(ops), buffers)
    left, whole = before(graph.of_memory()), before(graph)
    assert left.keys() >= {op.name for op in ops if op.writes}
    assert left == {name: whole[name] & left.keys() for name in left}
    assert sum(len(op.after) for op in graph.of_memory().ops) <= sum(len(op.after) for op in ops)


def test_attributes_and_lists_do_not_tie_regions_together():
    class Branches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = torch.nn.ModuleList(torch.nn.Linear(8, 512) for _ in range(3))

        def forward(self, x):
            grown = [branch(torch.relu(x)) for branch in self.branches]
            return torch.cat([wide.amax(1) for wide in grown])

    module = torch.jit.trace(Branches(), torch.randn(2, 8))
    report = torch_ext.analyze(module, (torch.randn(2, 8),))
    found = Findings(report.graph, report)
    assert len(found.memory_graph.ops) < len(report.graph.ops)
    assert "prime" in {node.kind for node in region_tree(report.graph.to_graph()).nodes}
    assert "prime" not in {node.kind for node in found.regions.nodes}
    page = to_html(found)
    assert f"Left out: {len(report.graph.ops) - len(found.memory_graph.ops)} operations" in page
    moved = sum(block.ops for block in found.diff if block.kind == "to")
    assert 0 < moved < report.moved_ops
    assert f"{moved} operations moved" in page
    methods = [node["method"] for node in page_regions(page) if node["parent"] == 0]
    assert len(methods) == 3
    assert {*methods} == {region.method for region in report.regions}


def page_regions(page):
    data = page.split('type="application/json" id="report">')[1].split("</script>")[0]
    return json.loads(data)["regions"]["nodes"]


# --- what moved ----------------------------------------------------------------------------------


@given(st.permutations(list("abcdefghij")))
def test_a_diff_leads_from_one_order_to_the_other(new):
    old = "abcdefghij"
    blocks = diff(old, new)
    shown_old = [op for b in blocks if b.kind != "to" for op in old[b.old : b.old + b.ops]]
    shown_new = [op for b in blocks if b.kind != "from" for op in new[b.new : b.new + b.ops]]
    assert shown_old == list(old)
    assert shown_new == list(new)
    for block in blocks:
        assert list(old[block.old : block.old + block.ops]) == new[block.new :][: block.ops]


@given(st.permutations(list("abcdefghij")), st.sets(st.sampled_from("abcdefghij")))
def test_what_is_left_out_of_a_diff_still_counts_as_a_step(new, left_out):
    old = "abcdefghij"
    for kind, order in (("to", old), ("from", new)):
        shown = []
        for block in diff(old, new, left_out):
            if block.kind != kind:
                at = block.old if order is old else block.new
                shown += order[at : at + block.ops]
        assert shown == [op for op in order if op not in left_out]


@pytest.mark.parametrize("seed", range(5))
def test_a_diff_moves_as_few_ops_as_the_plan_says(seed):
    found = findings(random_graph(seed, 150, branches=3))
    blocks = diff(found.before.order, found.after.order)
    assert found.plan.moved_ops == sum(b.ops for b in blocks if b.kind == "from") > 0
    assert found.plan.moved_ops == sum(b.ops for b in blocks if b.kind == "to")


# --- other tools ---------------------------------------------------------------------------------


def test_the_table_has_both_orders():
    found = findings(wide(module_path='a,"b'))
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert list(rows[0]) == "order step op module_path source valley_bytes hill_bytes".split()
    for name, run in (("before", found.before), ("after", found.after)):
        mine = [row for row in rows if row["order"] == name]
        assert [row["op"] for row in mine] == list(run.order)
        assert [row["step"] for row in mine] == [str(i) for i in range(len(mine))]
        assert [int(row["hill_bytes"]) for row in mine] == [e.hill_bytes for e in run.timeline]
        assert [int(row["valley_bytes"]) for row in mine] == [e.valley_bytes for e in run.timeline]
    assert rows[0]["module_path"] == 'a,"b.0.grow'
    assert rows[0]["source"] == "/home/me/net/model.py:10"


def test_the_trace_has_a_slice_for_each_op_and_two_tracks_of_memory():
    found = findings(wide())
    trace = json.loads(to_trace(found))
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    for process, run in ((1, found.before), (2, found.after)):
        mine = [event for event in events if event["pid"] == process]
        slices = [event for event in mine if event["ph"] == "X"]
        assert [event["name"] for event in slices] == list(run.order)
        assert [(event["ts"], event["dur"]) for event in slices] == [(i, 1) for i in range(9)]
        counters = [event for event in mine if event["ph"] == "C"]
        assert len({event["name"] for event in counters}) == 1
        peak = max(event["args"]["bytes"] for event in counters)
        assert peak == max(entry.hill_bytes for entry in run.timeline)
        assert all(isinstance(event["args"]["name"], str) for event in mine if event["ph"] == "M")
    first = next(event for event in events if event["ph"] == "X")
    assert first["args"] == {
        "kind": "aten::linear",
        "module_path": "heads.0.grow",
        "source": "/home/me/net/model.py:10",
        "hill_bytes": 9 * 2**20 + 2**19,
        "valley_bytes": 9 * 2**20,
        "written_bytes": 8 * 2**20,
        "workspace_bytes": 2**19,
    }


# --- the page as text ----------------------------------------------------------------------------


def test_the_same_findings_give_the_same_bytes():
    for convert in (to_html, to_trace, to_csv):
        assert convert(findings(random_graph(7, 100))) == convert(findings(random_graph(7, 100)))


def test_a_page_of_5000_ops_is_below_2_mb():
    page = to_html(findings(random_graph(1, 5000, branches=4), time_budget=0.5))
    assert len(page.encode()) < 2_000_000


def test_what_the_program_is_called_cannot_become_markup():
    page = to_html(findings(wide(module_path=HOSTILE), title=HOSTILE))
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert "alert(1)><b>" not in page


def test_the_sentences_of_a_report_that_was_measured(report):
    page = to_html(Findings(report.graph, report, "wide.pt"))
    assert "nothing was changed yet" in page
    _, report = torch_ext.optimize(traced_wide(), (wide_input(),))
    page = to_html(Findings(report.graph, report, "wide.pt", process_bytes=300 * 2**20))
    assert "bit for bit" in page
    assert "300.00&nbsp;MiB" in page
    assert "longer than drawn" in page
    assert "proven optimal" in page


def test_every_proof_has_its_sentence():
    import pathlib
    import re

    source = pathlib.Path(torch_ext.__file__).parent.parent / "csrc" / "README.md"
    told = source.read_text().split("`proof` names the argument")[1].split("Bounds are")[0]
    from torch_ext.reporting import wording

    assert set(re.findall(r"`([a-z-]+)`", told)) == set(wording._PROOFS)


def test_a_bound_that_is_not_reached_is_said_to_be_open():
    found = findings(random_graph(1, 400, branches=4), time_budget=0.0)
    assert found.plan.status == "feasible"
    page = to_html(found)
    assert "Not proven." in page
    assert "A larger time budget" in page
