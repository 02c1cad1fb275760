"""Advice is given where the graph shows it, and what it promises is what the change brings."""

import random

import pytest
import torch
from reports import findings, wide
from torch import nn
from torch.nn import functional

import torch_ext
from torch_ext.program.program import Buffer, Op, Program
from torch_ext.reporting import Findings, to_html
from torch_ext.reporting.advice import RULES, find_advice
from torch_ext.torchscript.optimize import peak_with_gradients

FREEZE = "Freeze the model"
REDUCE = "Reduce the parts, then join them"
TRAINING = "Switch to inference and freeze"
STEPS = "Run all layers for one step before the next step"
IN_PLACE = "Write in place"
UPDATE = "Update in the same step"
NO_GRAD = "Call it under torch.no_grad()"


def traced(module: nn.Module, *inputs: torch.Tensor) -> torch.jit.ScriptModule:
    return torch.jit.trace(module, inputs, check_trace=False)


def found(module: torch.jit.ScriptModule, *inputs: torch.Tensor) -> Findings:
    report = torch_ext.analyze(module, inputs, levers=["order"])
    return Findings(report.graph, report, "model.pt")


def advice_of(module: torch.jit.ScriptModule, *inputs: torch.Tensor):
    return {advice.title: advice for advice in find_advice(found(module, *inputs))}


def check(before: nn.Module, after: nn.Module, title: str, *inputs: torch.Tensor, slack=0.0):
    """`after` is `before` as advised; the estimate is what that brings, or less by some slack."""
    module = traced(before, *inputs)
    advice = advice_of(module, *inputs)
    assert set(advice) == {title}
    changed = after if isinstance(after, torch.jit.ScriptModule) else traced(after, *inputs)
    torch.testing.assert_close(module(*inputs), changed(*inputs), rtol=1e-4, atol=1e-4)

    def planned_bytes(script: torch.jit.ScriptModule) -> int:
        return torch_ext.analyze(script, inputs, levers=["order"]).peak_bytes

    saved_bytes = planned_bytes(module) - planned_bytes(changed)
    assert 0 < advice[title].saves_bytes <= saved_bytes + 2048  # folding adds a tiny constant
    assert advice[title].saves_bytes >= (1 - slack) * saved_bytes - 2048
    return advice[title]


# --- norms ---------------------------------------------------------------------------------------


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 1, dtype=torch.float64)  # a kernel without scratch memory
        self.norm = nn.BatchNorm2d(32, dtype=torch.float64)

    def forward(self, x):
        return self.norm(self.conv(x)).amax((2, 3))


IMAGE = torch.randn(4, 1, 64, 64, dtype=torch.float64)


def test_a_norm_that_freezing_would_fold():
    module = Norm().eval()
    frozen = torch.jit.freeze(traced(module, IMAGE))
    advice = check(module, frozen, FREEZE, IMAGE)
    assert len(advice.where) == 1
    assert not advice_of(frozen, IMAGE)


def test_a_norm_in_training_cannot_be_folded_but_need_not_train():
    module = traced(Norm().train(), IMAGE)
    advice = advice_of(module, IMAGE)
    assert set(advice) == {TRAINING}
    frozen = torch.jit.freeze(traced(Norm().eval(), IMAGE))
    saved_bytes = (
        torch_ext.analyze(module, (IMAGE,)).peak_bytes
        - torch_ext.analyze(frozen, (IMAGE,)).peak_bytes
    )
    assert advice[TRAINING].saves_bytes == pytest.approx(saved_bytes, abs=4096)


def test_a_norm_whose_argument_is_read_by_others_is_not_folded():
    class Both(Norm):
        def forward(self, x):
            y = self.conv(x)
            return self.norm(y).amax((2, 3)), y.amin((2, 3))

    assert FREEZE not in advice_of(traced(Both().eval(), IMAGE), IMAGE)


# --- joins ---------------------------------------------------------------------------------------


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleList(nn.Linear(16, 1024) for _ in range(6))

    def forward(self, x):
        return torch.stack([head(x) for head in self.heads]).sum(0)


ROWS = torch.randn(128, 16)


def test_a_reduction_of_what_was_stacked():
    class Early(Heads):
        def forward(self, x):
            total = self.heads[0](x)
            for head in self.heads[1:]:
                total.add_(head(x))
            return total

    check(Heads(), Early(), REDUCE, ROWS, slack=0.2)


def test_a_reduction_of_each_part():
    class Late(Heads):
        def forward(self, x):
            return torch.cat([head(x) for head in self.heads]).amax(1)

    class Early(Heads):
        def forward(self, x):
            return torch.cat([head(x).amax(1) for head in self.heads])

    check(Late(), Early(), REDUCE, ROWS, slack=0.2)


def test_a_reduction_of_parts_that_were_reshaped_to_be_joined():
    class Late(Heads):
        def forward(self, x):
            return torch.cat([head(x).unsqueeze(0) for head in self.heads]).amax(0)

    class Early(Heads):
        def forward(self, x):
            highest = self.heads[0](x)
            for head in self.heads[1:]:
                torch.maximum(highest, head(x), out=highest)
            return highest

    check(Late(), Early(), REDUCE, ROWS, slack=0.2)


def branches_of_channels(dim):
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(
                nn.Conv2d(1, 16, 1, dtype=torch.float64) for _ in range(4)
            )

        def forward(self, x):
            joined = torch.cat([branch(x) for branch in self.branches], dim)
            return functional.adaptive_avg_pool2d(joined, 1)

    class Early(Late):
        def forward(self, x):
            means = [functional.adaptive_avg_pool2d(branch(x), 1) for branch in self.branches]
            return torch.cat(means, dim)

    torch.manual_seed(0)
    late, early = Late(), Early()
    early.load_state_dict(late.state_dict())
    return late, early


def test_a_pool_of_channels_that_were_joined():
    check(*branches_of_channels(1), REDUCE, IMAGE, slack=0.2)
    assert REDUCE not in advice_of(traced(branches_of_channels(2)[0], IMAGE), IMAGE)
    one = IMAGE[0]  # without a batch the first dimension are the channels
    assert REDUCE not in advice_of(traced(branches_of_channels(1)[0], one), one)


def test_a_reduction_across_parts_needs_them_together():
    class Across(Heads):
        def forward(self, x):
            joined = torch.cat([head(x) for head in self.heads], 1)
            return joined.view(len(x), 3, -1).amax(2)

    assert REDUCE not in advice_of(traced(Across(), ROWS), ROWS)


def test_a_reduction_of_one_part_is_none_of_all():
    class Last(Heads):
        def forward(self, x):
            return torch.stack([head(x) for head in self.heads])[-1].sum(0)

    assert REDUCE not in advice_of(traced(Last(), ROWS), ROWS)


def test_a_join_that_is_a_result_or_read_twice_is_needed():
    class Result(Heads):
        def forward(self, x):
            joined = torch.stack([head(x) for head in self.heads])
            return joined, joined.sum(0)

    class Twice(Heads):
        def forward(self, x):
            joined = torch.stack([head(x) for head in self.heads])
            return joined.sum(0), joined.sigmoid().amax((1, 2))

    for module in (Result(), Twice()):
        assert REDUCE not in advice_of(traced(module, ROWS), ROWS)


class LayerMajor(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cells = nn.ModuleList(nn.RNNCell(128, 128) for _ in range(2))

    def forward(self, x):
        for cell in self.cells:
            hidden = x.new_zeros(x.shape[0], 128)
            steps = []
            for t in range(x.shape[1]):
                hidden = cell(x[:, t], hidden)
                steps.append(hidden)
            x = torch.stack(steps, 1)
        return x[:, -1].sum(1)


SEQUENCE = torch.randn(64, 8, 128)


class TimeMajor(LayerMajor):
    def forward(self, x):
        hidden = [x.new_zeros(x.shape[0], 128) for _ in self.cells]
        for t in range(x.shape[1]):
            below = x[:, t]
            for i, cell in enumerate(self.cells):
                below = hidden[i] = cell(below, hidden[i])
        return below.sum(1)


class Unbound(LayerMajor):
    def forward(self, x):
        for cell in self.cells:
            hidden = x.new_zeros(x.shape[0], 128)
            steps = []
            for step in x.unbind(1):
                hidden = cell(step, hidden)
                steps.append(hidden)
            x = torch.stack(steps, 1)
        return x.select(1, -1).sum(1)


@pytest.mark.parametrize("layer_major", [LayerMajor, Unbound])
def test_layers_that_wait_for_whole_sequences(layer_major):
    advice = check(layer_major(), TimeMajor(), STEPS, SEQUENCE)
    assert len(advice.where) == 2


def test_a_stack_that_is_taken_apart_the_other_way_is_needed():
    class Transposed(LayerMajor):
        def forward(self, x):
            steps = [torch.tanh(x[:, t]) for t in range(x.shape[1])]
            stacked = torch.stack(steps, 1)
            return torch.stack([stacked[i].sum() for i in range(stacked.shape[0])])

    assert STEPS not in advice_of(traced(Transposed(), SEQUENCE), SEQUENCE)


# --- in place ------------------------------------------------------------------------------------


class Chain(nn.Module):
    def __init__(self, inplace: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 2048)
        self.inplace = inplace

    def forward(self, x):
        y = functional.silu(functional.relu(self.linear(x), self.inplace), self.inplace)
        return y.sum(1)


def test_a_result_that_could_take_the_place_of_its_argument():
    advice = check(Chain(), Chain(inplace=True), IN_PLACE, ROWS)
    assert len(advice.where) == 2


def test_an_argument_that_is_read_again_or_kept_is_not_overwritten():
    class Again(Chain):
        def forward(self, x):
            y = self.linear(x)
            return functional.relu(y).sum(1) + y.sum(1)

    class Kept(Chain):
        def forward(self, x):
            y = self.linear(x)
            return functional.relu(y).sum(1), y

    for module in (Again(), Kept()):
        assert IN_PLACE not in advice_of(traced(module, ROWS), ROWS)


# --- training ------------------------------------------------------------------------------------


def training_graph(kept: bool) -> Program:
    """Forward and backward of four layers; gradients are results, or used up by an update."""
    ops, buffers = [], []
    for i in range(4):
        buffers.append(Buffer(f"y{i}", 100))
        reads, after = ((f"y{i - 1}",), (f"layer.{i - 1}",)) if i else ((), ())
        ops.append(Op(f"layer.{i}", "aten::mm", reads=reads, writes=(f"y{i}",), after=after))
    for i in reversed(range(4)):
        buffers.append(Buffer(f"grad{i}", 1000, kept=kept))
        before = f"back.{i + 1}" if i < 3 else "layer.3"
        op = Op(
            f"back.{i}",
            "aten::threshold_backward",
            reads=(f"y{i}",),
            writes=(f"grad{i}",),
            after=(before,),
        )
        ops.append(op)
    return Program(tuple(ops), tuple(buffers))


def test_gradients_that_wait_for_the_last():
    (advice,) = find_advice(findings(training_graph(kept=True)))
    assert advice.title == UPDATE
    before, after = (torch_ext.plan(training_graph(kept=kept).to_graph()) for kept in (True, False))
    assert advice.saves_bytes == before.peak_bytes - after.peak_bytes > 2000
    assert not find_advice(findings(training_graph(kept=False)))


def test_gradients_of_a_plain_call_are_measured():
    layers = [nn.Linear(16, 512), *(nn.Sequential(nn.Linear(512, 512), nn.Tanh()) for _ in "123")]
    module = traced(nn.Sequential(*layers, nn.Linear(512, 1)), ROWS)
    with torch.enable_grad():
        for _ in range(2):
            module(ROWS)
        with torch_ext.measure_peak() as memory:
            result = module(ROWS)
        del result
    peak_bytes = peak_with_gradients(module, (ROWS,))
    assert abs(peak_bytes - memory.peak_bytes) < 0.01 * memory.peak_bytes
    report = torch_ext.analyze(module, (ROWS,))
    with_gradients = Findings(report.graph, report, "model.pt", gradient_peak_bytes=peak_bytes)
    advice = {each.title: each for each in find_advice(with_gradients)}
    assert advice[NO_GRAD].is_measured
    assert advice[NO_GRAD].saves_bytes == peak_bytes - report.measured_original_peak_bytes > 2**19
    assert "less, measured" in to_html(with_gradients)


def test_without_parameters_that_need_gradients_nothing_is_measured():
    module = Chain().requires_grad_(False)
    assert peak_with_gradients(traced(module, ROWS), (ROWS,)) is None


KINDS = """
    prim::ListConstruct prim::ListUnpack aten::stack aten::cat aten::sum aten::amax aten::select
    aten::unbind aten::slice aten::view aten::relu aten::add aten::size aten::_convolution
    aten::batch_norm aten::threshold_backward
""".split()
VIEWS = {f"prim::{kind}" for kind in ("ListConstruct", "ListUnpack")} | {
    f"aten::{kind}" for kind in ("select", "unbind", "slice", "view", "size")
}


# What is likely to come next, so that patterns come up, whole and broken.
NEXT = {
    "prim::ListConstruct": ["aten::stack", "aten::stack", "aten::cat"],
    "aten::stack": ["aten::select", "aten::select", "aten::unbind", "aten::sum", "aten::slice"],
    "aten::cat": ["aten::sum", "aten::amax", "aten::view"],
    "aten::unbind": ["prim::ListUnpack"],
    "aten::_convolution": ["aten::batch_norm"],
}


def odd_graph(rng: random.Random) -> Program:
    ops, buffers = [], []
    held, maker = {}, {}  # by value: its buffers, its op
    last = Op("none")
    for i in range(rng.randrange(4, 40)):
        kind = rng.choice(KINDS)
        count = rng.choice((1, 1, 2)) if kind != "prim::ListConstruct" else rng.choice((2, 3))
        inputs = tuple(rng.sample(sorted(held), min(len(held), count)))
        if last.kind in NEXT and rng.random() < 0.8:
            kind, inputs = rng.choice(NEXT[last.kind]), last.outputs
        made = rng.choice((2, 3)) if kind == "prim::ListUnpack" else 1
        outputs = tuple(f"v{i}.{k}" for k in range(made))
        reads = tuple(dict.fromkeys(b for value in inputs for b in held[value]))
        writes = ()
        if kind not in VIEWS or not reads:
            writes = (f"b{i}",)
            size = rng.choice((8, 8, 64, 1000))
            buffers.append(Buffer(f"b{i}", size, (size,), "uint8", kept=rng.random() < 0.1))
        held |= dict.fromkeys(outputs, writes or reads)
        after = tuple(dict.fromkeys(maker[value] for value in inputs))
        maker |= dict.fromkeys(outputs, f"op{i}")
        constants = {"dim": rng.choice((0, 0, 1)), "index": rng.randrange(-2, 2)}
        constants["training"] = rng.random() < 0.5
        last = Op(f"op{i}", kind, "", "", 0, reads, writes, after, inputs, outputs, constants)
        ops.append(last)
    return Program(tuple(ops), tuple(buffers))


def test_no_graph_is_too_odd_for_advice():
    """Whatever the rules make of a graph can be planned, and has no op or buffer that is new."""
    found = dict.fromkeys((rule for rule, _, _ in RULES), 0)
    for seed in range(2000):
        graph = odd_graph(random.Random(seed))
        for rule in found:
            change = rule(graph)
            if change is None:
                continue
            found[rule] += 1
            torch_ext.plan(change.graph.to_graph(), time_budget=0.01)
            assert change.where, seed
            assert {b.name for b in change.graph.buffers} <= {b.name for b in graph.buffers}, seed
            assert {op.name.split("/")[0] for op in change.graph.ops} <= {
                op.name for op in graph.ops
            }, seed
    assert min(found.values()) > 20, found


def test_a_graph_without_any_pattern_gets_no_advice():
    assert find_advice(findings(wide())) == ()
    assert "Nothing was found" in to_html(findings(wide()))
