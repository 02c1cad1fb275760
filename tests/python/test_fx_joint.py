"""Backward passes that run ops of the forward pass again: bits of aot_eager, within the budget."""

import copy
import gc
import logging
import os
import random
import weakref

import compiled_training
import pytest
import torch
from compiled_training import require_same
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_ext.fx import compile_backend

SCALE = float(os.environ.get("TORCH_EXT_TEST_SCALE", "1"))
LEAST = {"memory_budget": 1}  # as little as can be


@pytest.fixture(autouse=True)
def _gradients():
    torch._dynamo.reset()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch._dynamo.reset()


def compiled(network, backend="torch_ext", **options):
    torch._dynamo.reset()
    return torch.compile(network, backend=backend, options=options or None)


class Deep(nn.Module):
    """Blocks whose results are cheap to make again."""

    def __init__(self, blocks: int = 5, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(dropout))
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x.mean((2, 3))


def trained(network, x, backend="torch_ext", **options):
    """Compiled anew: every set of options is another backend."""
    torch._dynamo.reset()
    return compiled_training.trained(network, x, backend, **options)


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "torch_ext"]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_budget_is_met_by_running_again(dropout, caplog):
    """Statistics of norms count once, dropout draws once."""
    network, x = Deep(dropout=dropout), torch.randn(4, 4, 64, 64)
    expected, ordered = trained(network, x, "aot_eager"), trained(network, x)
    budget = int(0.7 * ordered[3])
    with caplog.at_level(logging.INFO, logger="torch_ext"):
        actual = trained(network, x, memory_budget=budget)
    require_same(expected, actual)
    assert actual[3] <= budget
    (record,) = (record for record in caplog.records if hasattr(record, "peaks"))
    assert "run again, for " in record.getMessage()
    assert record.peaks.peak_bytes == pytest.approx(actual[3], rel=0.01)


def test_a_budget_that_is_too_small_says_so_and_gets_the_least(caplog):
    network, x = Deep(), torch.randn(4, 4, 64, 64)
    ordered = trained(network, x)
    with caplog.at_level(logging.INFO, logger="torch_ext"):
        actual = trained(network, x, **LEAST)
    require_same(ordered, actual)
    assert actual[3] < 0.6 * ordered[3]
    assert any("no order and no repeats get below" in message for message in messages(caplog))


def test_a_budget_that_order_meets_repeats_nothing(caplog):
    network, x = Deep(), torch.randn(4, 4, 64, 64)
    with caplog.at_level(logging.INFO, logger="torch_ext"):
        trained(network, x, memory_budget=2**30)
    assert not any("run again" in message for message in messages(caplog))


def test_levers_without_a_budget_repeat_nothing():
    network, x = Deep(), torch.randn(4, 4, 64, 64)
    require_same(trained(network, x), trained(network, x, levers=["order", "repeat"]))


def test_repeats_that_fail_leave_the_order(monkeypatch, caplog):
    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("on purpose")

    network, x = Deep(), torch.randn(4, 4, 64, 64)
    ordered = trained(network, x)
    monkeypatch.setattr(compile_backend, "with_repeats", fail)
    with caplog.at_level(logging.INFO, logger="torch_ext"):
        actual = trained(network, x, **LEAST)
    require_same(ordered, actual)
    assert actual[3] == ordered[3]
    assert any("trying repeats failed: RuntimeError" in message for message in messages(caplog))


def test_a_graph_that_cannot_be_split_as_edited_is_split_as_it_was(monkeypatch, caplog):
    def spoil(module, *_marked: object) -> None:
        output = module.graph.output_node()
        inputs = module.graph.find_nodes(op="placeholder")
        results = list(output.args[0])
        made = next(place for place, one in enumerate(results) if one not in inputs)
        results[made] = next(node for node in inputs if "tangents" in node.name)
        output.args = (tuple(results),)
        spoilt.append(module)

    spoilt: list[object] = []
    network, x = Deep(), torch.randn(4, 4, 64, 64)
    expected = trained(network, x, "aot_eager")
    monkeypatch.setattr(compile_backend, "make_alike", spoil)
    with caplog.at_level(logging.WARNING, logger="torch_ext"):
        require_same(expected, trained(network, x, **LEAST))
    assert spoilt
    assert any("keeps its order" in message for message in messages(caplog))


class Telling(nn.Module):
    """Gives what it computes with, for the caller to write to."""

    def forward(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        shown = torch.sin(x.detach())
        hidden = torch.exp(shown.detach()) + shown.cos()
        return shown, (hidden * w).sin().sum()


def test_what_the_caller_holds_is_not_read_again():
    """It writes to inputs and results between the passes."""
    network = Telling()
    gradients = []
    for backend, options in (("aot_eager", {}), ("torch_ext", LEAST)):
        run = compiled(network, backend, **options)
        x, w = torch.linspace(-1, 1, 4096), torch.linspace(0, 1, 4096).requires_grad_()
        shown, loss = run(x, w)
        with torch.no_grad():
            shown.fill_(7)
            x.fill_(9)
        loss.backward()
        gradients.append(w.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("held", ["input", "result"])
def test_nothing_of_the_caller_lives_longer(held):
    def dies(backend, **options):
        run = compiled(Telling(), backend, **options)
        w = torch.linspace(0, 1, 4096).requires_grad_()
        x = torch.linspace(-1, 1, 4096)
        shown, loss = run(x, w)
        watched = weakref.ref((x if held == "input" else shown).untyped_storage())
        del x, shown
        gc.collect()
        alive = watched() is not None
        loss.backward()
        return not alive

    assert dies("aot_eager") == dies("torch_ext", **LEAST)


class Doubling(torch.autograd.Function):
    """Its backward pass has no tags of torch's partitioner."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        a = gradient * x
        return ((a.sin() * x).cos() * gradient).exp() * x


@pytest.mark.parametrize("options", [{}, LEAST])
def test_a_backward_pass_of_the_user_is_split_as_torch_would(options, caplog):
    x = torch.randn(64, 32, requires_grad=True)
    gradients = []
    for backend, given in (("aot_eager", {}), ("torch_ext", options)):
        run = compiled(lambda x: Doubling.apply(Doubling.apply(x.sin())).sum(), backend, **given)
        gradients += torch.autograd.grad(run(x), x)
    assert torch.equal(*gradients)
    assert not any("keeps its order" in message for message in messages(caplog))


class Sigmoids(nn.Module):
    """Cheap to make again; `shift` is read by the forward pass alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.register_buffer("shift", torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sigmoid(layer(x) + self.shift).exp().sin()
        return x


MODES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "kernels": lambda: torch.backends.mkldnn.flags(enabled=False),
}


@pytest.mark.parametrize("modes", MODES.values(), ids=MODES)
def test_ops_run_again_under_the_modes_of_the_forward_pass(modes):
    network, x = Sigmoids(), torch.randn(512, 64)
    gradients = []
    for backend, options in (("aot_eager", {}), ("torch_ext", LEAST)):
        run = compiled(network, backend, **options)
        result = run(x)
        with modes():
            loss = result.pow(2).mean()
            gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    assert all(map(torch.equal, *gradients))


def test_the_precision_of_the_forward_pass_holds_for_what_runs_again():
    network, x = Sigmoids(), torch.randn(512, 64)
    before = torch.get_float32_matmul_precision()
    gradients = []
    try:
        for backend, options in (("aot_eager", {}), ("torch_ext", LEAST)):
            run = compiled(network, backend, **options)
            torch.set_float32_matmul_precision("medium")
            result = run(x)
            torch.set_float32_matmul_precision("highest")
            gradients.append(torch.autograd.grad(result.sum(), list(network.parameters())))
            assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(map(torch.equal, *gradients))


def test_buffers_may_change_between_the_passes():
    gradients = []
    torch.manual_seed(0)
    network, x = Sigmoids(), torch.randn(512, 64)
    for backend, options in (("aot_eager", {}), ("torch_ext", LEAST)):
        own = copy.deepcopy(network)
        result = compiled(own, backend, **options)(x)
        own.shift.mul_(0.9)
        gradients.append(torch.autograd.grad(result.sum(), list(own.parameters())))
    assert all(map(torch.equal, *gradients))


def test_two_forward_passes_before_the_backward_passes():
    network, x = Deep(3), torch.randn(4, 4, 16, 16)
    grown = []
    for backend, options in (("aot_eager", {}), ("torch_ext", LEAST)):
        own = copy.deepcopy(network)
        run = compiled(own, backend, **options)
        first, second = run(x).sin().sum(), run(2 * x).sin().sum()
        first.backward()
        second.backward()
        grown.append([parameter.grad for parameter in own.parameters()])
    assert all(map(torch.equal, *grown))


def test_a_graph_that_is_retained_runs_backward_twice():
    network, x = Deep(3), torch.randn(4, 4, 16, 16)
    grown = []
    for backend, options in (("aot_eager", {}), ("torch_ext", LEAST)):
        own = copy.deepcopy(network)
        loss = compiled(own, backend, **options)(x).sin().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        grown.append([parameter.grad for parameter in own.parameters()])
    assert all(map(torch.equal, *grown))


class Writing(nn.Module):
    """Parameters and buffers change in the forward pass, behind ops that read them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)
        self.register_buffer("mean", torch.zeros(32))
        self.register_buffer("scale", torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.layer(x) + self.scale + self.mean)
        self.mean.mul_(0.9).add_(y.detach().mean(0))
        self.scale.mul_(1.1)
        with torch.no_grad():
            self.layer.bias.mul_(0.5)
        return (y * self.mean).exp()


class Recomputing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.3), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x.sin(), use_reentrant=False).cos()


class Twice(nn.Module):
    """A norm counts twice in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(x).sin()).exp().tanh()


class Choosing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).sigmoid()
        return torch.cond(y.sum() > 0, lambda t: t.sin() * 2, lambda t: t.cos(), (y,)).exp()


class Mixed(nn.Module):
    """A norm in the precision of its statistics, of what is in another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(32, 32), nn.BatchNorm1d(32)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.norm(self.layer(x)).sigmoid().exp()


NETWORKS = [Writing(), Recomputing(), Twice(), Choosing(), Mixed()]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_what_the_graph_does_besides_computing_stays(network):
    x = torch.randn(64, 32)
    require_same(trained(network, x, "aot_eager"), trained(network, x, **LEAST))


def test_sizes_may_be_symbols():
    network = Deep(3)
    run = torch.compile(network, backend="torch_ext", dynamic=True, options=LEAST)
    for size in (16, 24, 8):
        x = torch.randn(2, 4, size, size)
        expected = torch.autograd.grad(network(x).sin().sum(), list(network.parameters()))
        actual = torch.autograd.grad(run(x).sin().sum(), list(network.parameters()))
        assert all(map(torch.equal, expected, actual))


# --- at random ------------------------------------------------------------------------------------


class Random(nn.Module):
    """Ops drawn by a seed, on values of one shape."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(24) for _ in range(2))
        self.register_buffer("total", torch.zeros(24))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        draw = random.Random(self.seed)
        values = [x]
        for _ in range(draw.randint(6, 18)):
            a, b = draw.choice(values), draw.choice(values[-3:])
            kind = draw.choice("layer norm unary binary view chunk dropout count".split())
            if kind == "layer":
                values.append(draw.choice(self.layers)(b))
            elif kind == "norm":
                values.append(draw.choice(self.norms)(b))
            elif kind == "unary":
                name = draw.choice("sin tanh sigmoid relu exp".split())
                values.append(getattr(torch, name)(b.clamp(-2, 2)))
            elif kind == "binary":
                values.append(draw.choice([torch.add, torch.mul, torch.maximum])(a, b))
            elif kind == "view":
                values.append(b.view(-1, 2, 12).transpose(1, 2).reshape(b.shape))
            elif kind == "chunk":
                values.append(torch.cat(b.chunk(2, 1)[::-1], 1))
            elif kind == "dropout":
                values.append(torch.dropout(b, 0.2, train=True))
            else:
                self.total.mul_(0.5).add_(b.detach().mean(0))
                values.append(b * self.total)
        return values[-1].tanh(), draw.choice(values[1:]).clone()


@pytest.mark.parametrize("seed", range(max(1, int(8 * SCALE))))
def test_random_networks_train_alike(seed):
    network, x = Random(seed), torch.randn(96, 24)

    def train(backend, **options):
        own = copy.deepcopy(network)
        run = compiled(own, backend, **options)
        torch.manual_seed(seed)
        results = []
        for _ in range(2):
            last, other = run(x)
            (last.sum() + other.sum()).backward()
            results += [last.detach(), other.detach()]
        grown = [p.grad for p in own.parameters() if p.grad is not None]
        return results + grown + [*own.buffers(), torch.get_rng_state()]

    expected = train("aot_eager")
    for options in (LEAST, {"memory_budget": 40 * x.nbytes}):
        actual = train("torch_ext", **options)
        assert len(actual) == len(expected)
        assert all(map(torch.equal, expected, actual)), f"seed {seed}, {options}"
