"""Ops of a graph that run again: the edit, and what of it would be wrong."""

import pytest
import torch
from reports import require_no_contradiction
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import torch_ext
from torch_ext.arguments import planning
from torch_ext.fx.apply import apply
from torch_ext.fx.parting import where_above
from torch_ext.fx.probe import run_probe
from torch_ext.fx.program import is_apart_again, program_of
from torch_ext.fx.repeat import with_repeats
from torch_ext.fx.timing import add_times
from torch_ext.memory.meter import measure_peak
from torch_ext.program.plan import plan_program, plan_repeats

SIZE = 64


def traced(function, *inputs: torch.Tensor) -> fx.GraphModule:
    return make_fx(function)(*[x.clone() for x in inputs])


def run_of(module: fx.GraphModule, *inputs: torch.Tensor):
    """What comes out, what the inputs are then, and the peak."""
    given = [x.clone() for x in inputs]
    with measure_peak() as memory:
        result = module(*given)
    return result, given, memory.peak_bytes


def runs_with(probe, *again: str) -> list[str]:
    """All ops, and before the last one some again."""
    names = [op.name for op in probe.ops]
    return [*names[:-1], *again, names[-1]]


def test_a_repeat_is_read_by_what_comes_later():
    def function(x):
        y = torch.exp(x)
        z = torch.sin(y).sum()
        return y * z

    x = torch.randn(SIZE, SIZE)
    module = traced(function, x)
    probe = run_probe(module, [x])
    edited = with_repeats(module, probe, runs_with(probe, "exp"))
    assert torch.equal(edited(x), module(x))
    again = [op.name for op in run_probe(edited, [x]).ops]
    assert again == ["exp", "sin", "sum_1", "exp/2", "mul"]
    assert run_of(edited, x)[2] < run_of(module, x)[2] + SIZE * SIZE * 4
    assert [node.name for node in module.graph.nodes][1] == "exp"  # the original stays


def test_what_writes_in_place_runs_again_with_what_it_writes_to():
    def function(x):
        y = torch.exp(x)
        y.relu_()
        z = torch.sin(y).sum()
        return y * z

    x = torch.randn(SIZE, SIZE)
    module = traced(function, x)
    probe = run_probe(module, [x])
    edited = with_repeats(module, probe, runs_with(probe, "exp", "relu_"))
    assert torch.equal(edited(x), module(x))
    # The program knows: exp makes the buffer, relu_ writes to it, and both views of it are one.
    ops = {op["name"]: op for op in program_of(probe).fields()["ops"]}
    assert ops["relu_"]["reads"] == ops["exp"]["writes"]


def test_a_view_runs_again_with_what_it_views():
    def function(x):
        y = torch.exp(x)
        z = torch.sin(y).sum()
        return y.t().contiguous() * z

    x = torch.randn(SIZE, SIZE)
    module = traced(function, x)
    probe = run_probe(module, [x])
    (home,) = [op for op in probe.ops if op.name == "exp"]
    assert [node.name for node in home.behind] == ["t"]  # it comes with the op
    edited = with_repeats(module, probe, runs_with(probe, "exp", "clone"))
    assert torch.equal(edited(x), module(x))


def test_batch_norm_leaves_its_statistics_alone():
    norm = nn.BatchNorm2d(3)

    def function(x, mean, var):
        y = torch.ops.aten.native_batch_norm(x, None, None, mean, var, True, 0.1, 1e-5)[0]
        z = torch.sin(y).sum()
        return y * z

    inputs = torch.randn(2, 3, 8, 8), norm.running_mean, norm.running_var
    module = traced(function, *inputs)
    probe = run_probe(module, [x.clone() for x in inputs])
    edited = with_repeats(module, probe, runs_with(probe, "native_batch_norm"))
    (expected, state, _), (actual, other, _) = run_of(module, *inputs), run_of(edited, *inputs)
    assert torch.equal(expected, actual)
    assert all(map(torch.equal, state, other))
    assert not torch.equal(state[1], inputs[1])  # once


def chain(length: int):
    """A forward and a backward pass, and an update of what all of it reads."""

    def function(x, weight):
        made = [x]
        for _ in range(length):
            made.append(torch.tanh(made[-1] * weight))
        gradient = torch.ones_like(x)
        for y in reversed(made[1:]):
            gradient = gradient * (1 - y * y) * weight
        weight.add_(gradient, alpha=-0.1)
        return gradient.sum()

    return function


@pytest.mark.parametrize("share", [0.4, 0.3])
def test_the_plan_of_a_chain_keeps_all_bits(share):
    inputs = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    module = traced(chain(12), *inputs)
    given = [x.clone() for x in inputs]
    probe = run_probe(module, given)
    add_times(probe, module, lambda: given, None)
    assert all(op.nanoseconds > 0 for op in probe.ops)
    program = program_of(probe)
    order = [op.name for op in probe.ops]
    whole_bytes = run_of(module, *inputs)[2]
    wanted = planning("all", 1.0, int(share * whole_bytes), ("order",))
    chosen = plan_repeats(program, order, wanted)
    assert chosen.fits
    edited = with_repeats(module, probe, chosen.runs)
    expected, weights, _ = run_of(module, *inputs)
    actual, others, peak_bytes = run_of(edited, *inputs)
    assert torch.equal(expected, actual)
    assert all(map(torch.equal, weights, others))
    assert peak_bytes == chosen.peak_bytes <= share * whole_bytes
    assert chosen.extra_nanoseconds >= chosen.extra_bound_nanoseconds > 0
    assert chosen.runs.count("add_") == 1


def test_no_plan_repeats_what_draws_or_writes_outside():
    def function(x):
        y = torch.rand_like(x)
        z = torch.sin(y).sum()
        x.mul_(2)
        return y * z + torch.exp(x)

    x = torch.randn(SIZE, SIZE)
    module = traced(function, x)
    probe = run_probe(module, [x])
    add_times(probe, module, lambda: [x], None)
    order = [op.name for op in probe.ops]
    chosen = plan_repeats(program_of(probe), order, planning("all", 1.0, 1, ("order",)))
    assert not chosen.fits
    assert chosen.runs.count("rand_like") == chosen.runs.count("mul_") == 1
    assert chosen.extra_bound_nanoseconds is None
    assert "needs at once" in chosen.floor_detail


def batch_norm(x, weight, mean, var):
    return torch.ops.aten.native_batch_norm(x, weight, None, mean, var, True, 0.1, 1e-5)[0]


def norms_of(function, *inputs):
    """Each batch norm of a function, and whether a second run leaves its statistics alone."""
    module = traced(function, *inputs)
    probe = run_probe(module, [x.clone() for x in inputs])
    norms = [op for op in probe.ops if op.name.startswith("native_batch_norm")]
    return [is_apart_again(probe, op) for op in norms]


def test_statistics_choose_the_kernel_where_dtypes_differ():
    x, statistics = torch.randn(2, 3, 8, 8), (torch.zeros(3), torch.ones(3))
    assert norms_of(lambda x, m, v: batch_norm(x, None, m, v), x, *statistics) == [True]
    assert norms_of(lambda x, m, v: batch_norm(x, None, m, v), x.bfloat16(), *statistics) == [False]


def test_statistics_that_the_program_makes_are_its_own():
    x, statistics = torch.randn(2, 3, 8, 8), (torch.zeros(3), torch.ones(3))

    def function(x, m, v):
        m, v = m * 1.0, v * 1.0
        return batch_norm(x, None, m, v).sum() + m.sum()

    assert norms_of(function, x, *statistics) == [False]


def test_a_norm_that_reads_the_statistics_of_another_runs_before_that():
    x, ones = torch.randn(2, 3, 8, 8), torch.ones(3)

    def function(x, m, v, other_m, other_v):
        y = batch_norm(x, other_v, m, v)
        return y, batch_norm(x, None, other_m, other_v)

    inputs = x, ones * 0, ones, ones * 0, ones
    module = traced(function, *inputs)
    probe = run_probe(module, [given.clone() for given in inputs])
    add_times(probe, module, lambda: [given.clone() for given in inputs], None)
    order = [op.name for op in probe.ops]
    wanted = planning("all", 1.0, 1, ("order",))
    chosen = plan_repeats(program_of(probe), order, wanted)
    first, second = (name for name in order if name.startswith("native_batch_norm"))
    last = len(chosen.runs) - 1 - list(chosen.runs[::-1]).index(first)
    assert last < chosen.runs.index(second)


def test_an_order_that_is_none_is_refused():
    x = torch.randn(SIZE, SIZE)
    module = traced(lambda x: torch.sin(torch.exp(x)), x)
    program = program_of(run_probe(module, [x]))
    for order in (["sin", "exp"], ["exp", "exp"], ["exp"]):
        with pytest.raises(ValueError, match="an order of all ops"):
            plan_repeats(program, order, planning("all", 1.0, 1, ("order",)))


class Held(nn.Module):
    """A cheap result is read at both ends of a program, and others have their hill between."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cheap = torch.tanh(x).repeat(1, 4)
        low = cheap.cumsum(0).amax(1, keepdim=True)
        high = torch.cos(x.repeat(1, 6) + low).cumsum(0).amax(1, keepdim=True)
        return high + (cheap * high).cumsum(0).amax(1, keepdim=True)


REPEAT = ("order", "overwrite", "repeat")


@pytest.mark.parametrize("kind", ["exported", "captured"])
def test_a_program_meets_a_budget_by_repeats(kind, tmp_path):
    torch.manual_seed(0)
    x = (torch.randn(512, 64),)
    program = torch.export.export(Held(), x) if kind == "exported" else make_fx(Held())(*x)
    best = torch_ext.fx.reorder(program, x)[1].peak_bytes
    result, report = torch_ext.fx.reorder(program, x, memory_budget=best - 1, levers=REPEAT)
    assert report.repeats
    assert report.budget_met
    assert report.identical
    assert report.measured_peak_bytes == report.peak_bytes < best
    assert 0 <= report.extra_seconds_bound <= report.extra_seconds < report.call_seconds
    assert report.floor_bytes <= report.peak_bytes
    if kind == "exported":  # the other knows no lines
        assert all("test_fx_repeat.py" in again.source for again in report.repeats)
    (use,) = (use for use in report.levers if use.name == "repeat")
    assert use.edits == len(report.repeats)
    runnable = result
    if kind == "exported":
        torch.export.save(result, tmp_path / "program.pt2")
        runnable = torch.export.load(tmp_path / "program.pt2").module()
    expected = Held()(*x)
    with torch_ext.measure_peak() as memory:
        actual = runnable(*x)
    assert torch.equal(actual, expected)
    assert memory.peak_bytes == report.measured_peak_bytes


@pytest.mark.parametrize("levers", [None, REPEAT])
@pytest.mark.parametrize("share", [0.95, 0.8, 0.5, 0.01])
def test_reports_do_not_contradict_themselves(levers, share):
    torch.manual_seed(0)
    x = (torch.randn(512, 64),)
    program = torch.export.export(Held(), x)
    budget = int(share * torch_ext.fx.reorder(program, x)[1].peak_bytes)
    report = torch_ext.fx.reorder(program, x, memory_budget=budget, levers=levers)[1]
    require_no_contradiction(report, budget)


def test_what_writes_nothing_in_place_may_be_decomposed():
    torch.manual_seed(0)
    x = (torch.randn(512, 64),)
    program = torch.export.export(Held(), x).run_decompositions()
    best = torch_ext.fx.reorder(program, x)[1].peak_bytes
    result, report = torch_ext.fx.reorder(program, x, memory_budget=best - 1)
    assert report.repeats
    assert report.budget_met
    assert torch.equal(result.module()(*x), Held()(*x))


def test_given_times_give_the_same_plan():
    torch.manual_seed(0)
    x = (torch.randn(512, 64),)
    program = torch.export.export(Held(), x)
    best = torch_ext.fx.reorder(program, x)[1].peak_bytes
    asked = {"memory_budget": best - 1, "levers": REPEAT}
    first = torch_ext.fx.reorder(program, x, **asked)[1]
    seconds = dict.fromkeys(first.op_seconds, 1e-06)
    reports = [torch_ext.fx.reorder(program, x, op_seconds=seconds, **asked)[1] for _ in range(2)]
    assert reports[0].repeats == reports[1].repeats
    assert reports[0].op_seconds == seconds
    assert reports[0].call_seconds == pytest.approx(1e-6 * len(seconds))
    assert reports[0].extra_seconds == pytest.approx(1e-6 * len(reports[0].repeats))
    del seconds["tanh"]
    with pytest.raises(ValueError, match="op_seconds has no op 'tanh'"):
        torch_ext.fx.reorder(program, x, op_seconds=seconds, **asked)
    with pytest.raises(ValueError, match="op_seconds of 'tanh' must be a number of seconds"):
        torch_ext.fx.reorder(program, x, op_seconds={"tanh": -1})
    with pytest.raises(ValueError, match="op_seconds must be a dict"):
        torch_ext.fx.reorder(program, x, op_seconds=[1])


def test_where_a_run_takes_more_than_planned_is_told():
    x, more = torch.randn(512, 64), torch.randn(1024, 64)
    module = make_fx(Held(), tracing_mode="symbolic")(x)
    probe = run_probe(module, [x])
    found = plan_program(program_of(probe), planning("all", 1.0))
    apply(module, probe, (), found, asks=False)
    assert not where_above(module, [x], found)
    assert where_above(module, [more], found) == (
        "tanh is the first op to take more, 0.25 MiB for 0.12 MiB"
    )


def test_repeats_that_do_not_help_leave_the_program_and_say_why():
    x = (torch.randn(64, 8),)
    program = torch.export.export(nn.Sequential(nn.ReLU(), nn.Sigmoid()), x)
    result, report = torch_ext.fx.reorder(program, x, memory_budget=1, levers=REPEAT)
    assert not report.repeats
    assert "no order and no repeats get below" in report.levers[-1].reason
    assert result is program or report.overwrites
    plain = torch_ext.fx.reorder(program, x, levers=REPEAT)[1]
    assert "give a memory budget" in plain.levers[-1].reason


def test_repeats_and_slices_together_have_the_floor_of_slices():
    torch.manual_seed(0)
    x = (torch.randn(512, 64),)
    program = torch.export.export(Held(), x)
    both = ("order", "overwrite", "slice", "repeat")
    report = torch_ext.fx.reorder(program, x, memory_budget=1, levers=both)[1]
    sliced = torch_ext.fx.reorder(program, x, memory_budget=1, levers=both[:3])[1]
    assert {use.name for use in report.levers} == set(both)
    assert report.floor_bytes == sliced.floor_bytes <= report.peak_bytes
