"""The backend "torch_ext" of torch.compile: the bits of aot_eager, and never more memory."""

import copy
import logging

import pytest
import torch
from compiled_training import require_same, trained
from effects import said, say
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.utils.checkpoint import checkpoint

from torch_ext import measure_peak
from torch_ext.fx import compile_backend


@pytest.fixture(autouse=True)
def _gradients():
    torch._dynamo.reset()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch._dynamo.reset()


class Branches(nn.Module):
    """Wide branches, all made before the first is reduced."""

    def __init__(self, count: int = 6, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, 8 * width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        wide = [torch.relu(layer(x)) for layer in self.layers]
        return torch.stack([w.sum(1) for w in wide]).sum(0)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(16, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 1000),
    )


def test_training_has_the_bits_of_aot_eager_and_a_lower_peak():
    model, x = convolutions(), torch.randn(4, 3, 32, 32)
    expected = trained(model, x, "aot_eager")
    actual = trained(model, x, "torch_ext")
    require_same(expected, actual)
    assert actual[3] < expected[3]


def test_where_order_gains_nothing_the_peak_is_no_higher():
    model, x = Branches(), torch.randn(256, 64)
    expected = trained(model, x, "aot_eager")
    actual = trained(model, x, "torch_ext")
    require_same(expected, actual)
    assert actual[3] <= expected[3]


def test_inference_runs_in_an_order_of_lower_peak():
    model, x = Branches(), torch.randn(256, 64)
    with torch.no_grad():
        expected = model(x)
        peaks = {}
        for backend in ("aot_eager", "torch_ext"):
            compiled = torch.compile(model, backend=backend)
            compiled(x)
            with measure_peak() as memory:
                assert torch.equal(compiled(x), expected)
            peaks[backend] = memory.peak_bytes
    assert peaks["torch_ext"] < 0.5 * peaks["aot_eager"]


def test_what_forward_saves_may_die_in_backward(caplog):
    """The predicted peak of both passes together is the allocator's."""
    x = torch.randn(256, 64)
    with caplog.at_level(logging.INFO, logger="torch_ext"):
        *_, peak_bytes = trained(Branches(), x, "torch_ext", steps=2)
    [message] = [r.getMessage() for r in caplog.records if r.name == "torch_ext"]
    predicted = float(message.split(": ")[1].split(" MiB")[0])
    assert predicted == pytest.approx(peak_bytes / 2**20, rel=0.01)


def test_dynamic_shapes_are_ordered_by_the_first_shape():
    model = Branches()
    compiled = torch.compile(model, backend="torch_ext", dynamic=True)
    for rows in (256, 64, 31):
        x = torch.randn(rows, 64)
        expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
        actual = torch.autograd.grad(compiled(x).sum(), list(model.parameters()))
        assert all(map(torch.equal, expected, actual))


def test_a_graph_break_gives_two_graphs():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), Branches()

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            torch._dynamo.graph_break()
            return self.second(y)

    model, x = Broken(), torch.randn(256, 64)
    require_same(trained(model, x, "aot_eager"), trained(model, x, "torch_ext"))


def test_an_input_that_is_changed_in_place_is_changed():
    def scaled(x: Tensor, total: Tensor) -> Tensor:
        y = x.sin()
        total.add_(y.sum(0))
        return (y * total).cos()

    compiled = torch.compile(scaled, backend="torch_ext")
    with torch.no_grad():
        x, expected_total, total = torch.randn(64, 8), torch.ones(8), torch.ones(8)
        assert torch.equal(compiled(x, total), scaled(x, expected_total))
        assert torch.equal(total, expected_total)


def test_a_result_that_shares_memory_with_an_input_shares_it():
    compiled = torch.compile(lambda x: (x.t(), x.sin()), backend="torch_ext")
    x = torch.randn(8, 4)
    view, _ = compiled(x)
    assert view.untyped_storage()._cdata == x.untyped_storage()._cdata


def test_sizes_that_depend_on_values():
    def chosen(x: Tensor) -> Tensor:
        return x[x > 0].sin().sum() + x.cos().sum()

    x = torch.randn(64)
    with torch.no_grad(), torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(chosen, backend="torch_ext", fullgraph=True)
        assert torch.equal(compiled(x), chosen(x))


class Recomputing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(64, 256), nn.Dropout(0.3), nn.Linear(256, 64))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


class Choosing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return torch.cond(y.sum() > 0, lambda t: t.sin() * 2, lambda t: t.cos(), (y,))


class Scanning(nn.Module):
    """Wide branches around a loop that has a backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = Branches()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.branches(x), self.branches(-x)], 1)
        carry, rows = scan(lambda c, row: (c * 0.5 + row, (c + row).tanh()), y[0], y)
        return carry.sum() + rows.sum(1)


class Averaging(nn.Module):
    """A buffer is updated in place and read, in lower precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.layer(x)
        self.mean.mul_(0.9).add_(y.detach().mean(0))
        return y * self.mean


@pytest.mark.parametrize("model", [Recomputing(), Choosing(), Scanning(), Averaging()])
def test_what_the_graph_does_besides_computing_stays(model):
    x = torch.randn(32, 64)
    require_same(trained(model, x, "aot_eager"), trained(model, x, "torch_ext"))


def branches_and_loop(x: Tensor) -> Tensor:
    def body(i: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return i + 1, (y @ y).tanh()

    square = while_loop(lambda i, y: i < 3, body, (torch.tensor(0), x))[1]
    wide = [torch.sin(square.repeat(1, 8) * i) for i in range(4)]
    return torch.stack([w.sum(1) for w in wide]).sum(0)


def test_a_loop_is_one_op(caplog):
    """The branches behind it are ordered; it needs what it needs inside."""
    caplog.set_level(logging.INFO, "torch_ext")
    x = torch.randn(64, 64)
    with torch.no_grad():
        peaks, results = [], []
        for backend in ("aot_eager", "torch_ext"):
            compiled = torch.compile(branches_and_loop, backend=backend, fullgraph=True)
            compiled(x)
            with measure_peak() as memory:
                results.append(compiled(x))
            peaks.append(memory.peak_bytes)
    assert torch.equal(*results)
    assert peaks[1] < 0.7 * peaks[0]
    [record] = caplog.records
    assert record.peaks.peak_bytes == pytest.approx(peaks[1], rel=0.01)


def test_effects_keep_their_order(caplog):
    """A token goes from each to the next."""
    caplog.set_level(logging.INFO, "torch_ext")

    def function(x: Tensor) -> Tensor:
        wide = [torch.sin(x.repeat(1, 8) * i) for i in range(6)]
        first = torch.stack([w.sum(1) for w in wide]).sum()
        return first + sum(say(x * i, f"{i}") for i in range(3))

    x = torch.randn(64, 64)
    said.clear()
    with torch.no_grad():
        expected = torch.compile(function, backend="aot_eager", fullgraph=True)(x)
        assert said == ["0", "1", "2"]
        actual = torch.compile(function, backend="torch_ext", fullgraph=True)(x)
    assert said == ["0", "1", "2"] * 2
    assert torch.equal(expected, actual)
    [record] = caplog.records
    assert record.peaks.peak_bytes < record.peaks.original_peak_bytes


def test_two_models_at_once():
    first, second = Branches(), convolutions()
    x, image = torch.randn(256, 64), torch.randn(4, 3, 32, 32)
    expected = trained(first, x, "aot_eager"), trained(second, image, "aot_eager")
    actual = trained(first, x, "torch_ext"), trained(second, image, "torch_ext")
    for a, b in zip(expected, actual, strict=True):
        require_same(a, b)


def test_a_failure_of_the_planner_leaves_the_graph_as_it_was(monkeypatch, caplog):
    def fail(_: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(compile_backend, "estimate_probe", fail)
    model, x = Branches(), torch.randn(256, 64)
    with caplog.at_level(logging.WARNING, logger="torch_ext"):
        require_same(trained(model, x, "aot_eager"), trained(model, x, "torch_ext"))
    assert "a graph keeps its order: RuntimeError: no luck" in caplog.text


def test_the_environment_turns_it_off(monkeypatch, caplog):
    monkeypatch.setenv("TORCH_EXT_DISABLE", "1")
    model, x = convolutions(), torch.randn(4, 3, 32, 32)
    with caplog.at_level(logging.INFO, logger="torch_ext"):
        actual = trained(model, x, "torch_ext")
    require_same(trained(model, x, "aot_eager"), actual)
    assert not [record for record in caplog.records if record.name == "torch_ext"]


def test_options():
    model, x = Branches(), torch.randn(256, 64)
    with torch.no_grad():
        expected = model(x)
        found = torch.compile(model, backend="torch_ext", options={"time_budget": 0.1})(x)
        assert torch.equal(found, expected)
        wrong = torch.compile(model, backend="torch_ext", options={"speed": 1})
        torch._dynamo.reset()
        with pytest.raises(Exception, match="no option 'speed'"):
            wrong(x)


def test_a_graph_with_nested_tensors_is_ordered(caplog):
    def program(x: Tensor, nested: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c = x * 2, x * 3, x * 4
        return a.sum() + b.sum() + c.sum(), (nested * 2).sin().values()

    x = torch.randn(64, 64)
    nested = torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged)
    with torch.no_grad(), caplog.at_level(logging.INFO, logger="torch_ext"):
        ours = torch.compile(program, backend="torch_ext")(x, nested)
        torch._dynamo.reset()
        theirs = torch.compile(program, backend="aot_eager")(x, nested)
    assert all(map(torch.equal, ours, theirs))
    [peaks] = [record.peaks for record in caplog.records if hasattr(record, "peaks")]
    assert peaks.peak_bytes < peaks.original_peak_bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inside_autocast_it_has_the_bits_of_aot_eager(dtype):
    """What is compiled inside runs outside as well, compiled again, and the other way round."""
    model, x = Branches(), torch.randn(256, 64)

    def results(backend):
        torch._dynamo.reset()
        compiled = torch.compile(copy.deepcopy(model), backend=backend)
        found = []
        for inside in (False, True, False):
            with torch.autocast("cpu", dtype=dtype, enabled=inside), torch.no_grad():
                compiled(x)
                with measure_peak() as memory:
                    y = compiled(x)
            found.append((y, memory.peak_bytes))
        return found

    for expected, actual in zip(results("aot_eager"), results("torch_ext"), strict=True):
        assert expected[0].dtype == actual[0].dtype
        assert torch.equal(expected[0], actual[0])
        assert actual[1] < expected[1]
