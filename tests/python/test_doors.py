"""The same program through different doors: one report, but for the names of ops and buffers."""

import pytest
import torch
from torch import nn

import torch_ext
from torch_ext.reporting.report import ProgramReport


class Branches(nn.Module):
    """Two branches, begun one after the other: order lowers the peak."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.repeat(8, 1).exp(), x.repeat(6, 1).sin()
        return a.sum(0) + b.sum(0)


class Chain(nn.Module):
    """Nothing to order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat(8, 1).exp().sin().sum(0)


class Held(nn.Module):
    """Random numbers keep the branches in their sequence."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.rand(8, 4096)
        b = torch.rand(8, 4096)
        c = torch.rand(4096) + a.sum(0)
        return b.sum(0) + c + x[0]


def facts(report: ProgramReport) -> dict[str, object]:
    return {
        "peaks": (report.original_peak_bytes, report.peak_bytes, report.lower_bound_bytes),
        "measured": (report.measured_original_peak_bytes, report.measured_peak_bytes),
        "found": (report.status, report.proof, report.identical, report.budget_met),
        "sizes": (report.input_bytes, report.parameter_bytes),
        "reasons": [reason.kind for reason in report.reasons],
        "at peak": sorted((b.bytes, b.shape, b.dtype) for b in report.at_peak),
        "limit": report.bottleneck and report.bottleneck.bytes,
        "hills": max(entry.hill_bytes for entry in report.timeline_before),
    }


@pytest.mark.parametrize("program", [Branches(), Chain(), Held()], ids=lambda p: type(p).__name__)
def test_two_doors_say_the_same(program):
    x = (torch.ones(1, 4096),)
    script = torch.jit.trace(program, x, check_trace=False)
    _, of_torchscript = torch_ext.optimize(script, x)
    _, of_fx = torch_ext.fx.reorder(torch.export.export(program, x), x)
    assert facts(of_torchscript) == facts(of_fx)
    assert of_torchscript.reasons or of_torchscript.peak_bytes < of_torchscript.original_peak_bytes


def test_reasons_are_told_in_the_same_words():
    x = (torch.ones(1, 4096),)
    script = torch.jit.trace(Chain(), x)
    _, of_torchscript = torch_ext.optimize(script, x, levers=["order"])
    _, of_fx = torch_ext.fx.reorder(torch.export.export(Chain(), x), x, levers=["order"])
    for report in (of_torchscript, of_fx):
        assert report.reason == "; ".join(reason.text for reason in report.reasons)
        assert report.bottleneck.op in report.reason
    start = "the original order is optimal: no order runs "
    assert of_torchscript.reason.startswith(start)
    assert of_fx.reason.startswith(start)
