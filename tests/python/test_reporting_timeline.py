"""Memory over the ops for other tools: a snapshot that torch's memory_viz opens."""

import pickle

import pytest
import torch
from models import traced_wide, wide_input
from torch.cuda import _memory_viz

import torch_ext


@pytest.fixture(scope="module")
def report():
    return torch_ext.optimize(traced_wide(), (wide_input(),))[1]


def most_alive(events) -> int:
    alive = most = 0
    for event in events:
        alive += {"alloc": event["size"], "free_completed": -event["size"]}.get(event["action"], 0)
        most = max(most, alive)
    assert alive == 0
    return most


@torch.no_grad()
def test_a_snapshot_has_the_planned_peak(report, tmp_path):
    report.save_snapshot(tmp_path / "snapshot.pickle")
    snapshot = pickle.loads((tmp_path / "snapshot.pickle").read_bytes())
    (events,) = snapshot["device_traces"]
    assert most_alive(events) == report.peak_bytes
    frames = [frame for event in events for frame in event["frames"]]
    assert any(frame["filename"].endswith("models.py") and frame["line"] for frame in frames)
    assert "TOTAL MEM" in _memory_viz.trace(snapshot)


def test_a_table_and_a_trace_are_written(report, tmp_path):
    report.save_csv(tmp_path / "memory.csv")
    header, *rows = (tmp_path / "memory.csv").read_text().splitlines()
    assert header.startswith("order,step,op")
    assert len(rows) == 2 * report.ops
    report.save_trace(tmp_path / "memory.json")
    assert '"traceEvents"' in (tmp_path / "memory.json").read_text()
