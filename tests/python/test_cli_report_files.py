"""--html, --trace and --csv of the commands."""

import csv
import json

import pytest
import torch
from models import traced_wide, wide_input
from test_cli import SPEC, complains, run
from torch import nn


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.save(traced_wide(), path)
    return path


def test_optimize_writes_all_reports(model, tmp_path):
    html, trace, table = (tmp_path / name for name in ("r.html", "r.json", "r.csv"))
    outputs = ("--html", html, "--trace", trace, "--csv", table)
    command = ("optimize", model, "-o", tmp_path / "out.pt", "--input", SPEC, "--json")
    result = run(*command, *outputs)
    assert (result.returncode, result.stderr) == (0, "")
    fields = json.loads(result.stdout)
    page = html.read_text(encoding="utf-8")
    assert "<title>model.pt: peak memory</title>" in page
    assert f"input {SPEC}" in page
    assert "not measured" not in page
    rows = list(csv.DictReader(table.open()))
    for name, key in (("before", "original_peak_bytes"), ("after", "peak_bytes")):
        hills = [int(row["hill_bytes"]) for row in rows if row["order"] == name]
        assert max(hills) == fields[key]
    assert json.loads(trace.read_text())["otherData"]["peak_bytes"] == fields["peak_bytes"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model.pt", "out.pt", "r.html", "r.json", "r.csv"}


def test_analyze_writes_a_page(tmp_path):
    layers = [nn.Linear(16, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 1)]
    module = torch.jit.trace(nn.Sequential(*layers), wide_input(), check_trace=False)
    torch.jit.save(module, tmp_path / "model.pt")
    command = ("analyze", tmp_path / "model.pt", "--input", SPEC)
    result = run(*command, "--html", tmp_path / "r.html")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "nothing was changed yet" in page
    assert "Call it under torch.no_grad()" in page  # the parameters require gradients


@pytest.mark.parametrize("option", ["--html", "--trace", "--csv"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(option, tmp_path):
    no_model = tmp_path / "none.pt"  # which would be told next
    output = tmp_path / "no" / "file"
    for command in (("analyze", no_model), ("optimize", no_model, "-o", tmp_path / "out.pt")):
        complains(run(*command, "--input", SPEC, option, output), 1, output, "no folder")
        complains(run(*command, "--input", SPEC, option, tmp_path), 2, "it is a folder")
        complains(run(*command, "--input", SPEC, option, ""), 2, f"{option} is empty")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_nothing_is_planned_for(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXT_DISABLE", "1")
    outputs = ("--html", tmp_path / "r.html", "--trace", tmp_path / "t", "--csv", tmp_path / "c")
    result = run("analyze", model, "--input", SPEC, *outputs)
    assert result.returncode == 0, result.stderr
    assert "TORCH_EXT_DISABLE is set" in (tmp_path / "r.html").read_text(encoding="utf-8")
