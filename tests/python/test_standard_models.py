"""What the engine finds in networks that everybody knows."""

import importlib.util
import pathlib
import sys
import types

import pytest

import torch_ext

ZOO = pathlib.Path(__file__).parents[2] / "benchmarks" / "zoo.py"


@pytest.fixture(scope="module")
def zoo() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("zoo", ZOO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["zoo"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["resnet50", "ensemble", "six_heads"])
def test_series_parallel_blocks_are_found_and_ordered_by_dominance(zoo, name):
    traced, inputs = zoo.traced(zoo.model(name))
    report = torch_ext.analyze(traced, inputs)
    assert report.status == "optimal"
    dominant = [region for region in report.regions if region.method == "dominant"]
    assert any(region.kind == "parallel" and region.ops > 1 for region in dominant)
    assert report.peak_bytes < report.original_peak_bytes
    assert report.method == "dominant"


@pytest.mark.parametrize("name", ["vgg16", "densenet121"])
def test_chains_are_proven_to_leave_nothing_to_gain(zoo, name):
    traced, inputs = zoo.traced(zoo.model(name))
    report = torch_ext.analyze(traced, inputs)
    assert report.status == "optimal"
    assert report.moved_ops == 0
    assert {region.method for region in report.regions} == {"original"}
