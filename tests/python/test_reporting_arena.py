"""What reports say of arenas."""

import dataclasses

import torch
from models import traced_wide, wide_input

import torch_ext
from torch_ext.program.program import Buffer, Op, Program
from torch_ext.reporting.arena import arena_bound_bytes, with_arena


def chain(*sizes, workspace_bytes=0, kept=()):
    buffers = [Buffer("x", 1000, is_input=True)]
    ops = []
    for i, size in enumerate(sizes):
        buffers.append(Buffer(f"b{i}", size, kept=i in kept))
        before = buffers[i].name
        scratch = {"workspace_bytes": workspace_bytes}
        ops.append(Op(f"op{i}", reads=(before,), writes=(f"b{i}",), **scratch))
    return Program(tuple(ops), tuple(buffers))


def test_inputs_and_results_weigh_nothing_and_sizes_are_whole_multiples():
    assert arena_bound_bytes(chain(100)) == 128
    assert arena_bound_bytes(chain(100, 64)) == 192
    assert arena_bound_bytes(chain(100, 64, 10**6, kept={2})) == 192


def test_scratch_memory_may_be_gone_when_results_are_made():
    assert arena_bound_bytes(chain(32, workspace_bytes=64)) == 128  # 96, and whole multiples
    assert arena_bound_bytes(chain(1, workspace_bytes=63)) == 64


def test_a_bound_above_what_was_reached_is_no_bound():
    report = torch_ext.analyze(traced_wide(), (wide_input(),))
    known = with_arena(report, [report.lower_bound_bytes * 2, 5])
    assert known.arena_bytes == report.lower_bound_bytes * 2
    assert 0 < known.arena_bound_bytes < known.arena_bytes
    assert known.arena_status == "feasible"
    wrong = with_arena(report, [64])
    assert (wrong.arena_bound_bytes, wrong.arena_status) == (None, "feasible")
    assert with_arena(report, []) is report
    unproven = dataclasses.replace(report, lower_bound_bytes=0)
    assert with_arena(unproven, [2**30]).arena_bound_bytes is None
    assert report.arena_status is None


def test_the_terminal_tells_the_arena():
    with torch.no_grad():
        _, report = torch_ext.optimize(traced_wide(), (wide_input(),), addresses=True)
    assert "arena               0.52 MiB, at least 0.52 MiB (optimal)" in str(report)
