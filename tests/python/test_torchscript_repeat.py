"""Ops of TorchScript modules that run again: bit for bit, within the budget, in plain torch too."""

import io
import subprocess
import sys

import pytest
import torch
from reports import require_no_contradiction
from torch import Tensor, nn

import torch_ext

REPEAT = ("order", "overwrite", "repeat")
ALL = ("order", "overwrite", "slice", "repeat")
A_FEW_BYTES = 64  # of scalars


class Held(nn.Module):
    """A cheap result is read at both ends of a program, and others have their hill between."""

    def cheap(self, x: Tensor) -> Tensor:
        return torch.tanh(x).repeat(1, 4)

    def read(self, cheap: Tensor) -> Tensor:
        return cheap.cumsum(0).amax(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        cheap = self.cheap(x)
        low = self.read(cheap)
        high = torch.cos(x.repeat(1, 6) + low).cumsum(0).amax(1, keepdim=True)
        return high + self.read(cheap * high)


class InPlace(Held):
    """What is made is written to, and a view of it is read."""

    def cheap(self, x: Tensor) -> Tensor:
        made = x.repeat(1, 4)
        made.tanh_()
        return made.t().sigmoid_().t()


class Joined(Held):
    """What is made is joined of a list, whose items stay."""

    def cheap(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.flip(1), x, x.flip(0)], 1)


class Parted(Held):
    """What is made is read through a list of views."""

    def read(self, cheap: Tensor) -> Tensor:
        first, second = cheap.split(2 * 64, 1)
        return first.cumsum(0).amax(1, keepdim=True) - second.amin(1, keepdim=True)


class Thrice(Held):
    """What is made is read at three places, with a hill between each two."""

    def forward(self, x: Tensor) -> Tensor:
        cheap = self.cheap(x)
        low = self.read(cheap)
        for factor in (6, 6):
            high = torch.cos(x.repeat(1, factor) + low).cumsum(0).amax(1, keepdim=True)
            low = high + self.read(cheap * high)
        return low


class Chosen(Held):
    """What stands between is a choice with blocks of its own."""

    def forward(self, x: Tensor) -> Tensor:
        cheap = self.cheap(x)
        low = self.read(cheap)
        high = torch.cos(x.repeat(1, 6) + low)
        if bool(high.sum() > 1e9):
            high += 1
            high = high.cumsum(0)
        else:
            high = high.cumsum(0)
        high = high.amax(1, keepdim=True)
        return high + self.read(cheap * high)


HELD = {kind.__name__: kind for kind in (Held, InPlace, Joined, Parted, Thrice)}


def held_input() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(512, 64)


def script_of(network: nn.Module, is_scripted: bool = False) -> torch.jit.ScriptModule:
    network.eval()
    if is_scripted:
        return torch.jit.script(network)
    return torch.jit.trace(network, (held_input(),), check_trace=False)


def repeated(script: torch.jit.ScriptModule, x: Tensor, levers=REPEAT):
    """With a budget one byte below the best order's peak."""
    best = torch_ext.optimize(script, (x,))[1].peak_bytes
    return torch_ext.optimize(script, (x,), memory_budget=best - 1, levers=levers)


def peak_of(module: torch.jit.ScriptModule, x: Tensor) -> int:
    """In the settled executor."""
    for _ in range(2):
        module(x)
    with torch_ext.measure_peak() as memory:
        module(x)
    return memory.peak_bytes


def use_of(report: torch_ext.Report):
    (use,) = (use for use in report.levers if use.name == "repeat")
    return use


def saved_and_loaded(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("is_scripted", [False, True])
@pytest.mark.parametrize("kind", HELD)
def test_a_budget_that_order_does_not_meet_is_met_by_repeats(kind, is_scripted):
    x = held_input()
    script = script_of(HELD[kind](), is_scripted)
    module, report = repeated(script, x)
    assert report.repeats, use_of(report).reason
    assert report.budget_met
    assert report.identical
    assert abs(report.measured_peak_bytes - report.peak_bytes) <= A_FEW_BYTES
    assert 0 <= report.extra_seconds_bound <= report.extra_seconds < report.call_seconds
    assert report.floor_bytes <= report.peak_bytes
    assert all("test_torchscript_repeat.py" in again.source for again in report.repeats)
    assert use_of(report).edits == len(report.repeats)
    assert use_of(report).extra_seconds == report.extra_seconds
    names = [op.name for op in report.edited.ops]
    assert {again.name for again in report.repeats} <= set(names)
    for run in (module, saved_and_loaded(module)):
        assert torch.equal(run(x), script(x))
        assert peak_of(run, x) <= report.peak_bytes + A_FEW_BYTES


def test_the_file_keeps_its_peak_in_plain_torch(tmp_path):
    x = held_input()
    script = script_of(Held())
    module, report = repeated(script, x)
    assert report.repeats
    module.save(tmp_path / "again.pt")
    torch.save((x, script(x)), tmp_path / "values.pt")
    code = """
import sys, torch
module = torch.jit.load(sys.argv[1])
x, expected = torch.load(sys.argv[2])
with torch.no_grad():
    for _ in range(3):
        assert torch.equal(module(x), expected)
graph = torch.jit.last_executed_optimized_graph()
print(str(graph).count(f"{sys.argv[3]}("))
"""
    kind = next(op.kind for op in report.graph.ops if op.name == report.repeats[0].op)
    given = str(tmp_path / "again.pt"), str(tmp_path / "values.pt"), kind
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    once = sum(op.kind == kind for op in report.graph.ops)
    again = sum(use.op.split(".")[0] == kind.split("::")[1] for use in report.repeats)
    assert int(done.stdout) == 2 * once + again  # the original is there, too, for gradients


def test_with_gradients_the_original_runs(with_gradients):
    x = held_input()
    script = script_of(Held())
    with torch.no_grad():
        module, report = repeated(script, x)
    assert report.repeats
    gradients = []
    for run in (script, module):
        given = x.clone().requires_grad_()
        run(given).sum().backward()
        gradients.append(given.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("rows", [1, 100, 700])
def test_other_sizes_have_the_same_bits(rows):
    module, report = repeated(script_of(Held()), held_input())
    assert report.repeats
    x = torch.randn(rows, 64)
    assert torch.equal(module(x), script_of(Held())(x))


@pytest.mark.parametrize("prepare", [torch.jit.freeze, torch.jit.optimize_for_inference])
@pytest.mark.parametrize("kind", HELD)
def test_what_torch_makes_of_it_has_the_same_bits(kind, prepare):
    x = held_input()
    script = script_of(HELD[kind]())
    module, report = repeated(script, x)
    assert report.repeats
    prepared = prepare(module.eval())
    for _ in range(3):
        assert torch.equal(prepared(x), script(x))


def test_a_choice_with_blocks_runs_once():
    x = held_input()
    script = script_of(Chosen(), is_scripted=True)
    module, report = repeated(script, x)
    assert report.repeats, use_of(report).reason
    assert not any(again.op.startswith("If") for again in report.repeats)
    assert torch.equal(module(x), script(x))


class Dropped(Held):
    """What is made is drawn at random."""

    def cheap(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x.repeat(1, 4), 0.5, True)


class Counted(Held):
    """What is made updates running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4 * 64)

    def cheap(self, x: Tensor) -> Tensor:
        return self.norm(x.repeat(1, 4))


class Kept(Held):
    """What is made is kept by the caller, who gave it."""

    def cheap(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return x.repeat(1, 4)


class Asked(Held):
    """What is written to may be a view or a copy."""

    def cheap(self, x: Tensor) -> Tensor:
        made = torch.tanh(x).repeat(1, 4)
        made.reshape(-1).add_(1)
        return made


@pytest.mark.parametrize(
    ("network", "once"),
    [
        (Dropped(), "dropout"),
        (Counted().train(), "batch_norm"),
        (Kept(), "mul_"),
        (Asked(), "add_"),
    ],
    ids=["random", "statistics", "outside", "perhaps a view"],
)
def test_what_may_not_run_again_runs_once(network, once):
    x = held_input()
    script = torch.jit.trace(network, (x.clone(),), check_trace=False)
    best = torch_ext.optimize(script, (x,))[1].peak_bytes
    for budget in (1, best - 1):
        module, report = torch_ext.optimize(script, (x,), memory_budget=budget, levers=REPEAT)
        assert not any(again.op.startswith(once) for again in report.repeats)
        assert report.identical
        assert module is not None


def test_several_examples_have_one_module():
    examples = [(torch.randn(rows, 64),) for rows in (128, 512)]
    script = script_of(Held())
    best = torch_ext.optimize(script, examples)[1].peak_bytes
    module, report = torch_ext.optimize(script, examples, memory_budget=best - 1, levers=REPEAT)
    assert report.repeats
    assert report.budget_met
    assert all(one.measured_peak_bytes <= best - 1 for one in report.examples)
    assert all(torch.equal(module(*given), script(*given)) for given in examples)


def test_a_budget_below_the_floor_says_which_op_needs_what():
    x = held_input()
    script = script_of(Held())
    _, report = torch_ext.optimize(script, (x,), memory_budget=1, levers=REPEAT)
    assert not report.budget_met
    assert report.identical
    assert "no order and no repeats get below" in use_of(report).reason
    assert "needs at once" in use_of(report).reason
    assert report.extra_seconds_bound is None
    assert 1 < report.floor_bytes <= report.peak_bytes


def test_repeats_that_do_not_help_leave_the_module_and_say_why():
    x = torch.randn(64, 8)
    script = torch.jit.trace(nn.Sequential(nn.ReLU(), nn.Sigmoid()), (x,))
    module, report = torch_ext.optimize(script, (x,), memory_budget=1, levers=("order", "repeat"))
    assert not report.repeats
    assert "no order and no repeats get below" in use_of(report).reason
    assert report.extra_seconds == 0.0
    assert module is script
    plain = torch_ext.optimize(script, (x,), levers=REPEAT)[1]
    assert "give a memory budget" in use_of(plain).reason
    assert plain.floor_bytes is None
    met = torch_ext.optimize(script, (x,), memory_budget="1GiB", levers=REPEAT)[1]
    assert met.budget_met
    assert not use_of(met).reason


def test_repeats_and_slices_together_have_the_floor_of_slices():
    x = held_input()
    script = script_of(Held())
    report = torch_ext.optimize(script, (x,), memory_budget=1)[1]
    sliced = torch_ext.optimize(script, (x,), memory_budget=1, levers=ALL[:3])[1]
    assert {use.name for use in report.levers} == set(ALL)
    assert report.floor_bytes == sliced.floor_bytes <= report.peak_bytes
    left_out = [use for use in report.levers if use.name in ALL[2:] and not use.edits]
    assert all(use.reason for use in left_out)


@pytest.mark.parametrize("levers", [None, REPEAT])
@pytest.mark.parametrize("share", [0.95, 0.7, 0.01])
def test_reports_do_not_contradict_themselves(levers, share):
    script, x = script_of(Held()), held_input()
    budget = int(share * torch_ext.optimize(script, (x,))[1].peak_bytes)
    report = torch_ext.optimize(script, (x,), memory_budget=budget, levers=levers)[1]
    require_no_contradiction(report, budget)


def test_given_times_give_the_same_plan():
    script, x = script_of(Held()), held_input()
    first = repeated(script, x)[1]
    seconds = dict.fromkeys(first.op_seconds, 1e-6)
    asked = {"memory_budget": first.peak_bytes, "levers": REPEAT}
    reports = [torch_ext.optimize(script, (x,), op_seconds=seconds, **asked)[1] for _ in range(2)]
    assert reports[0].repeats == reports[1].repeats
    assert reports[0].op_seconds == seconds
    assert sum(again.seconds for again in reports[0].repeats) == pytest.approx(
        1e-6 * len(reports[0].repeats)
    )
    del seconds[next(iter(seconds))]
    report = torch_ext.optimize(script, (x,), op_seconds=seconds, **asked)[1]
    assert "op_seconds has no op" in use_of(report).reason


def test_a_module_that_runs_ops_again_can_be_optimized_again():
    x = held_input()
    script = script_of(Held())
    module, report = repeated(script, x)
    assert report.repeats
    again, report_again = torch_ext.optimize(module, (x,))
    assert report_again.identical
    assert report_again.peak_bytes <= report.peak_bytes
    assert torch.equal(again(x), script(x))
    assert torch_ext.verify(module, (x,)).identical
