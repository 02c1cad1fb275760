"""Fronts of programs: those with slices that were tried, all of them run."""

import csv
import json

import pytest
import torch
from models import Convolutions, image
from test_cli import complains, run
from test_fx_repeat import Held
from torch import nn

import torch_ext


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Convolutions().eval().requires_grad_(False)


def scripted(network: nn.Module, x: torch.Tensor) -> torch.jit.ScriptModule:
    return torch.jit.freeze(torch.jit.trace(network, x, check_trace=False))


DOORS = {
    "TorchScript": scripted,
    "exported": lambda network, x: torch.export.export(network, (x,)),
    "module": lambda network, x: network,
}


@pytest.mark.parametrize("door", DOORS)
def test_less_memory_with_every_point(network, door):
    x = image()
    program = DOORS[door](network, x)
    front = torch_ext.front(program, (x,))
    assert len(front.points) > 0
    for point, above in zip(front.points[1:], front.points, strict=False):
        assert point.peak_bytes < above.peak_bytes
        assert point.extra_seconds > above.extra_seconds
    lowest = front.points[-1]
    assert lowest.levers == ("order", "overwrite", "slice")
    assert lowest.edits > 0
    (other,) = front.others
    assert lowest.measured_peak_bytes < other.measured_peak_bytes
    assert other.way == "as written"
    assert front.floor_bytes <= lowest.peak_bytes


@pytest.mark.parametrize("door", DOORS)
def test_points_with_repeats_are_proven_without_slices(door):
    torch.manual_seed(0)
    x = torch.randn(512, 64)
    program = DOORS[door](Held().eval(), x)
    front = torch_ext.front(program, (x,), levers=["order", "overwrite", "repeat"])
    first, *rest = front.points
    assert rest
    for point in rest:
        assert point.levers == ("order", "overwrite", "repeat")
        assert point.measured_peak_bytes == point.peak_bytes < first.peak_bytes
        assert point.edits > 0
        assert point.time_ratio > 0
        bound = point.extra_seconds_bound
        assert bound is None or bound <= point.extra_seconds
    assert front.floor_bytes <= rest[-1].peak_bytes
    both = torch_ext.front(program, (x,))
    assert both.points[-1].peak_bytes <= rest[-1].peak_bytes
    assert both.floor_bytes <= both.points[-1].peak_bytes


def test_a_point_is_had_by_its_peak_as_budget(network):
    x = image()
    script = scripted(network, x)
    lowest = torch_ext.front(script, x).points[-1]
    _, report = torch_ext.optimize(script, (x,), memory_budget=lowest.peak_bytes)
    assert report.peak_bytes <= lowest.peak_bytes
    assert report.budget_met


def test_nothing_is_changed(network):
    x = image()
    norm = nn.BatchNorm2d(8)
    script = torch.jit.trace(nn.Sequential(norm, network, nn.Dropout()), x, check_trace=False)
    given, mean, state = x.clone(), norm.running_mean.clone(), torch.get_rng_state()
    torch_ext.front(script, (x,), levers=["order", "overwrite"])
    assert torch.equal(given, x)
    assert torch.equal(mean, script.get_buffer("0.running_mean"))
    assert torch.equal(state, torch.get_rng_state())


def test_an_order_alone_has_one_point(network):
    x = image()
    front = torch_ext.front(scripted(network, x), (x,), levers=["order"])
    (point,) = front.points
    assert point.levers == ("order",)
    assert front.call_seconds > 0


def test_bad_arguments_say_so(network):
    with pytest.raises(ValueError, match="must be a tuple of arguments, not list"):
        torch_ext.front(network, [image()])
    with pytest.raises(ValueError, match="levers must be of"):
        torch_ext.front(network, image(), levers=["magic"])


def test_the_command_writes_what_it_prints(network, tmp_path):
    x = image()
    torch.jit.save(scripted(network, x), tmp_path / "model.pt")
    spec = "x".join(map(str, x.shape))
    files = "--html", tmp_path / "front.html", "--csv", tmp_path / "front.csv"
    result = run("front", tmp_path / "model.pt", "--input", spec, "--json", *files)
    assert (result.returncode, result.stderr) == (0, "")
    fields = json.loads(result.stdout)
    rows = list(csv.DictReader((tmp_path / "front.csv").open()))
    assert len(rows) == len(fields["points"]) + len(fields["others"])
    assert int(rows[0]["peak_bytes"]) == fields["points"][0]["peak_bytes"]
    assert "<svg" in (tmp_path / "front.html").read_text(encoding="utf-8")
    told = run("front", tmp_path / "model.pt", "--input", spec, "--levers", "order")
    assert told.stdout.startswith("way ")
    complains(
        run("front", tmp_path / "none.pt", "--input", spec, "--html", tmp_path), 2, "it is a folder"
    )
