"""Labelled graphs for the tests of reports, and what holds for every report."""

import dataclasses
import random

from torch_ext import plan
from torch_ext.program.graph_plan import GraphPlan
from torch_ext.program.program import Buffer, Op, Program
from torch_ext.reporting import Findings
from torch_ext.reporting.report import ProgramReport

HOSTILE = "</script><img src=x onerror=alert(1)><b>&amp;'\"`"


def wide(branches: int = 4, module_path: str = "heads") -> Program:
    """Branches that grow, one after the other, and then shrink: order can save all but one."""
    size = 2**20
    ops, buffers = [], [Buffer("x", size, (256, 1024), "float32", is_input=True)]
    for i in range(branches):
        buffers.append(Buffer(f"big{i}", (8 + i) * size, (8 + i, 512, 512), "float32"))
        ops.append(
            Op(
                f"grow.{i}",
                "aten::linear",
                f"/home/me/net/model.py:{10 + i}",
                f"{module_path}.{i}.grow",
                workspace_bytes=size // 2,
                reads=("x",),
                writes=(f"big{i}",),
                inputs=("x",),
                outputs=(f"big{i}",),
            )
        )
    for i in range(branches):
        buffers.append(Buffer(f"small{i}", size // 4, (256, 256), "float32"))
        ops.append(
            Op(
                f"shrink.{i}",
                "aten::linear",
                f"/home/me/net/model.py:{20 + i}",
                f"{module_path}.{i}.shrink",
                reads=(f"big{i}",),
                writes=(f"small{i}",),
                after=(f"grow.{i}",),
                inputs=(f"big{i}",),
                outputs=(f"small{i}",),
            )
        )
    small = tuple(f"small{i}" for i in range(branches))
    buffers.append(Buffer("out", size, (256, 1024), "float32", kept=True))
    shrinks = tuple(f"shrink.{i}" for i in range(branches))
    source = "/opt/venv/lib/python3.11/site-packages/lib/join.py:7"
    ops.append(
        Op("cat.0", "aten::cat", source, "", 0, small, ("out",), shrinks, small, ("out",), {})
    )
    return Program(tuple(ops), tuple(buffers))


def random_graph(seed: int, ops: int, *, reach: int = 12, branches: int = 1) -> Program:
    """Ops that read what one of a few branches made lately; names as long as real ones."""
    rng = random.Random(seed)
    made: list[Op] = []
    buffers = []
    for i in range(ops):
        recent = [
            op for op in made[-reach * branches :] if int(op.name[3:]) % branches == i % branches
        ]
        before = rng.sample(recent, min(len(recent), rng.choice((1, 1, 2))))
        kept = i >= ops - 2
        size = 0 if rng.random() < 0.2 else rng.randrange(1, 2**22)
        buffers.append(Buffer(f"input.{i}", size, (1, 64, i % 224, 224), "float32", kept=kept))
        made.append(
            Op(
                f"op.{i}",
                f"aten::kind{i % 17}",
                f"/home/me/project/network/part{i % 9}.py:{i % 800}",
                f"encoder.layers.{i // 20}.block.{i % 20}.attention",
                workspace_bytes=rng.choice((0, 0, 0, 100_000)),
                reads=tuple(f"input.{op.name[3:]}" for op in before),
                writes=(f"input.{i}",),
                after=tuple(op.name for op in before),
                inputs=tuple(f"input.{op.name[3:]}" for op in before),
                outputs=(f"input.{i}",),
            )
        )
    return Program(tuple(made), tuple(buffers))


def findings(graph: Program, title: str = "model.pt", **options: float) -> Findings:
    return Findings(graph, plan(graph.to_graph(), **options), title, ("1x3x224x224:f32",))


@dataclasses.dataclass(frozen=True)
class PlacedPlan(GraphPlan):
    """A plan whose addresses were planned, too."""

    arena_bytes: int | None = None


def placed(found: Findings) -> Findings:
    fields = {f.name: getattr(found.plan, f.name) for f in dataclasses.fields(GraphPlan)}
    plan = PlacedPlan(**fields, arena_bytes=found.plan.peak_bytes)
    return dataclasses.replace(found, plan=plan)


def require_no_contradiction(report: ProgramReport, memory_budget: int) -> None:
    """What a report says of the budget, of what is proven, and of what was found, fits together."""
    assert report.budget_met == (report.peak_bytes <= memory_budget)
    assert report.floor_bytes is None or report.floor_bytes <= report.peak_bytes
    if report.extra_seconds_bound is not None:
        assert report.budget_met
        assert report.extra_seconds_bound <= report.extra_seconds
