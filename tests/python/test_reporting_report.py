"""Reports of all doors: what they share."""

import dataclasses
import json

import pytest
import torch
from models import Wide, wide_input
from reports import wide
from torch import nn

import torch_ext
from torch_ext.reporting.report import held_to, in_original_order

DOORS = {
    "torchscript": lambda model, x: torch_ext.optimize(model, (x,))[1],
    "analysis": lambda model, x: torch_ext.analyze(model, (x,)),
    "export": lambda model, x: torch_ext.fx.reorder(torch.export.export(model, (x,)), (x,))[1],
    "training": lambda model, x: _training_report(model, x),
}


def _training_report(model, x):
    def loss_fn(y, target):
        return (y * target).sum()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.enable_grad():
        target = torch.ones_like(model(x))
        return torch_ext.training_step(model, loss_fn, optimizer, (x, target)).report


@pytest.fixture(params=DOORS)
def report(request):
    return DOORS[request.param](Wide(), wide_input())


def test_every_door_tells_what_is_alive_at_the_peak_and_where_it_comes_from(report):
    hills = [entry.hill_bytes for entry in report.timeline_after]
    assert max(hills) == report.peak_bytes < report.original_peak_bytes
    assert max(entry.hill_bytes for entry in report.timeline_before) == report.original_peak_bytes
    at_peak = report.timeline_after[hills.index(max(hills))].op
    scratch_bytes = next(op.workspace_bytes for op in report.graph.ops if op.name == at_peak)
    assert sum(b.bytes for b in report.at_peak) == report.peak_bytes - scratch_bytes
    (source,) = {op.source for op in report.graph.ops if op.module_path == "grow.0" and op.source}
    assert "models.py:" in source
    assert {f"grow.{i}" for i in range(4)} <= {op.module_path for op in report.graph.ops}
    assert torch_ext.plan(report.edited.to_graph()).peak_bytes == report.peak_bytes


def test_every_door_writes_its_page_and_json_without_the_graph(report, tmp_path):
    path = tmp_path / "report.html"
    report.save_html(str(path), title="<wide>")
    text = path.read_text()
    assert "&lt;wide&gt;" in text
    assert "grow.0" in text
    fields = json.loads(json.dumps(report.to_dict()))
    assert fields["format"] == 1
    assert fields["at_peak"][0]["bytes"] == report.at_peak[0].bytes
    assert not {"graph", "edited"} & fields.keys()


def test_it_prints_short(report):
    assert len(str(report)) < 1500
    assert len(repr(report)) < 1500
    assert "Timeline" not in repr(report)
    assert "Program" not in repr(report)


def test_it_prints_as_two_columns():
    report = torch_ext.analyze(Wide(), (wide_input(),))
    lines = str(report).splitlines()
    less = f"{100 * report.saved_bytes / report.original_peak_bytes:.1f}"
    assert lines[0].split()[:5] == ["peak", "memory", less, "%", "less:"]
    needed = next(line for line in lines if line.split()[:2] == ["needs", "together"])
    assert "float32 [256," in needed
    assert any(line.split()[:2] == ["measured", "after"] for line in lines)
    plan = torch_ext.plan(report.graph.to_graph())
    assert str(plan).splitlines()[0].split()[:2] == ["peak", "memory"]
    assert "measured" not in str(plan)


def test_status_is_explained():
    optimal = torch_ext.analyze(Wide(), (wide_input(),), levers=["order"])
    assert "optimal: no order needs less (proven by" in str(optimal)
    both = torch_ext.analyze(Wide(), (wide_input(),))
    assert "no order and no overwriting" in str(both)
    bound = optimal.peak_bytes // 2
    open_gap = dataclasses.replace(optimal, status="feasible", lower_bound_bytes=bound)
    assert "feasible: no order needs less than" in str(open_gap)
    as_before = dataclasses.replace(optimal, peak_bytes=optimal.original_peak_bytes)
    assert str(as_before).splitlines()[0].endswith("as before")


def test_notebooks_show_the_rows_and_the_page(report, monkeypatch):
    shown = report._repr_html_()
    assert "% less" in shown
    assert "<iframe srcdoc=" in shown
    monkeypatch.setattr("torch_ext.reporting.report.MOST_SHOWN_OPS", 1)
    assert "<iframe" not in report._repr_html_()


def test_memory_is_drawn(report):
    pytest.importorskip("matplotlib").use("Agg")
    before, after, bound = report.plot().get_lines()
    assert max(before.get_ydata()) > max(after.get_ydata())
    assert bound.get_ydata()[0] == report.lower_bound_bytes / 2**20


def test_a_page_that_cannot_be_written_loses_nothing(tmp_path):
    report = torch_ext.analyze(Wide(), (wide_input(),))
    with pytest.raises(Exception, match="cannot write"):
        report.save_html(tmp_path / "no folder" / "report.html")
    assert not list(tmp_path.iterdir())


def test_ops_of_the_backward_pass_and_of_updates_are_called_after_the_forward_pass():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = (torch.randn(2, 8), torch.tensor([0, 1]))
    with torch.enable_grad():
        step = torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, batch)
    paths = {op.name: op.module_path for op in step.report.graph.ops}
    assert paths["threshold_backward"] == "1"
    by_kind = {}
    for op in step.report.graph.ops:
        by_kind.setdefault(op.kind, []).append(op.module_path)
    assert by_kind["aten::addmm"] == ["0", "2"]
    assert sorted(by_kind["aten::mm"]) == ["0", "2", "2"]
    assert sorted(by_kind["aten::add_"]) == ["0.bias", "0.weight", "2.bias", "2.weight"]


def test_a_bound_holds_for_runs_that_need_as_much():
    found = torch_ext.plan(wide().to_graph())
    bound = found.lower_bound_bytes
    for measured in ((), (None, None), (bound,), (bound + 1, None), (None, bound, 2 * bound)):
        assert held_to(found, measured) == (found, ())


def test_a_bound_is_refuted_by_a_run_that_needs_a_byte_less():
    found = torch_ext.plan(wide().to_graph())
    bound = found.lower_bound_bytes
    assert (found.status, found.proof) == ("optimal", "closure")
    unproven, (why,) = held_to(found, (2 * bound, None, bound - 1))
    assert why.kind == "below_bound"
    assert f"({bound - 1} bytes)" in why.text
    assert f"({bound} bytes)" in why.text
    assert (unproven.lower_bound_bytes, unproven.status, unproven.proof) == (0, "feasible", "")
    assert unproven.bottleneck is None
    assert not any(region.proof for region in unproven.regions)
    assert (unproven.order, unproven.peak_bytes) == (found.order, found.peak_bytes)


def test_the_plan_of_what_is_kept():
    graph = wide()
    found = torch_ext.plan(graph.to_graph())
    kept = in_original_order(found, graph, memory_budget=found.peak_bytes)
    assert kept.order == tuple(op.name for op in graph.ops) != found.order
    assert kept.peak_bytes == found.original_peak_bytes > found.peak_bytes
    assert (kept.status, kept.proof, kept.method, kept.moved_ops) == ("feasible", "", "original", 0)
    assert kept.lower_bound_bytes == found.lower_bound_bytes
    assert kept.budget_met is False
    assert in_original_order(found, graph, memory_budget=None).budget_met is None
    chain = torch_ext.plan(wide(1).to_graph())
    assert in_original_order(chain, wide(1), memory_budget=2**40) == dataclasses.replace(
        chain, budget_met=True
    )


def test_the_page_of_a_program_that_was_left_alone_claims_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXT_DISABLE", "1")
    model, x = torch.jit.trace(Wide(), wide_input()), wide_input()
    for report in (
        torch_ext.optimize(model, (x,))[1],
        torch_ext.fx.reorder(torch.export.export(Wide(), (x,)), (x,))[1],
    ):
        report.save_html(tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text()
        assert "TORCH_EXT_DISABLE is set in the environment" in page
        assert "Nothing is proven." in page
        assert "optimal" not in page[page.index("<body") : page.index("<script")]
        assert "optimal" not in str(report)
