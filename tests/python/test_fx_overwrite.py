"""The lever overwrite in torch.fx: exported programs, the compile backend, training steps."""

import io

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import torch_ext
from torch_ext.tensors.compare import first_difference

aten = torch.ops.aten
BOTH = ["order", "overwrite"]


def rows(batch: int = 8, width: int = 64) -> Tensor:
    return torch.linspace(-3, 3, batch * width).reshape(batch, width)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 512), nn.Linear(512, 64)
        self.norm = nn.BatchNorm1d(512)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.softmax(nn.functional.gelu(self.norm(self.first(x))), 1)
        return x + torch.tanh(self.second(wide))


def layers(trained: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Layers().train(trained).requires_grad_(trained)


def peak(run, *inputs: Tensor) -> int:
    run(*inputs)
    with torch_ext.measure_peak() as memory:
        run(*inputs)
    return memory.peak_bytes


def test_an_exported_program_overwrites_and_keeps_it_in_its_file():
    module, x = layers(), rows()
    program = torch.export.export(module, (x,))
    result, report = torch_ext.fx.reorder(program, (x,))
    assert report.identical
    assert report.overwrites
    assert report.measured_peak_bytes == report.peak_bytes < report.original_peak_bytes
    file = io.BytesIO()
    torch.export.save(result, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert torch.equal(loaded(x), module(x))
    assert peak(loaded, x) == report.peak_bytes


class Softened(nn.Module):
    """Softmax gives new strides, whatever it is given; in place it cannot."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.softmax(torch.relu(x * 2) + y, 1)


@pytest.mark.parametrize("is_program", [True, False])
def test_other_strides_and_dtypes_than_it_was_captured_for_raise(is_program):
    x, y = rows(), rows().cos()
    program = torch.export.export(Softened(), (x, y))
    if not is_program:
        program = make_fx(Softened())(x, y)
    result, report = torch_ext.fx.reorder(program, (x, y))
    assert {"relu", "softmax"} & {use.op.strip("_") for use in report.overwrites}
    original, edited = (p.module() if is_program else p for p in (program, result))
    with torch.no_grad():
        assert torch.equal(original(x, y), edited(x, y))
        for other in (rows(64, 8).t(), rows().double(), rows().bfloat16()):
            original(other, y)
            with pytest.raises(RuntimeError, match="mismatch"):
                edited(other, y)


class LeavesAsAView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.exp((x * 2).view(-1)))


def test_a_result_that_leaves_is_no_view():
    result, _ = torch_ext.fx.reorder(make_fx(LeavesAsAView())(rows()), (rows(),))
    compiled = torch.compile(LeavesAsAView(), backend="torch_ext")
    with torch.no_grad():
        for run in (result, compiled):
            assert not run(rows())._is_view()


class Scores(nn.Module):
    """Heads of attention, which matmul copies where there is more than one batch."""

    def forward(self, x: Tensor) -> Tensor:
        heads = (x * 2.0).unflatten(2, [4, -1])
        return torch.matmul(heads.transpose(1, 2), heads.permute(0, 2, 3, 1))


@pytest.mark.parametrize(("batch", "symbolic"), [(8, False), (1, False), (8, True)])
def test_copies_of_an_exported_program_are_hoisted(batch, symbolic):
    x = rows(batch * 16).reshape(batch, 16, 64)
    sizes = {0: torch.export.Dim("batch", min=2)} if symbolic else None
    program = torch.export.export(Scores(), (x,), dynamic_shapes=(sizes,))
    result, report = torch_ext.fx.reorder(program, (x,))
    assert report.identical
    assert len(report.hoists) == (2 if batch > 1 and not symbolic else 0)
    file = io.BytesIO()
    torch.export.save(result, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert torch.equal(loaded(x), Scores()(x))
    assert peak(loaded, x) == report.peak_bytes == report.measured_peak_bytes
    assert (report.peak_bytes < report.original_peak_bytes) == bool(report.hoists)


def test_a_program_that_was_decomposed_overwrites_as_a_module():
    module, x = layers(), rows()
    program = torch.export.export(module, (x,)).run_decompositions()
    _, refused = torch_ext.fx.reorder(program, (x,), levers=BOTH)
    assert not refused.overwrites
    assert "decomposed" in refused.levers[1].reason
    result, report = torch_ext.fx.reorder(program.module(), (x,))
    assert "_native_batch_norm_legit_no_training" in str(report.overwrites)
    assert torch.equal(result(x), module(x))


def test_where_parameters_require_gradients_it_has_to_be_asked_for():
    module, x = layers().requires_grad_(), rows()
    program = torch.export.export(module, (x,))
    same, report = torch_ext.fx.reorder(program, (x,))
    assert same is program
    assert [use.name for use in report.levers] == BOTH
    assert "require gradients" in report.levers[1].reason
    assert "require gradients" in str(report)
    _, asked = torch_ext.fx.reorder(program, (x,), levers=BOTH)
    assert asked.peak_bytes < report.peak_bytes
    assert torch_ext.fx.analyze(program, (x,), levers=BOTH).peak_bytes == asked.peak_bytes
    assert torch_ext.fx.analyze(program, (x,)).peak_bytes == report.peak_bytes


def test_symbolic_sizes_have_to_be_equal_by_proof():
    module, x = layers(), rows()
    sizes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(module, (x,), dynamic_shapes=sizes)
    result, report = torch_ext.fx.reorder(program, (x,))
    assert report.overwrites
    for batch in (2, 3, 64):
        assert torch.equal(result.module()(rows(batch)), module(rows(batch)))

    class Broadcast(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (torch.exp(x.repeat(1, 8)) + torch.exp(y.repeat(1, 8))).sum(1)

    both = (
        {0: torch.export.Dim("one", min=2), 1: None},
        {0: torch.export.Dim("one", min=2), 1: None},
    )
    program = torch.export.export(Broadcast(), (x, x + 1), dynamic_shapes=both)
    result, report = torch_ext.fx.reorder(program, (x, x + 1))
    assert report.identical
    y = rows(5)
    assert torch.equal(result.module()(y, y + 1), Broadcast()(y, y + 1))


def held_by_the_caller(x: Tensor) -> Tensor:
    return aten.sum.dim_IntList(aten.relu.default(x), [1])


def returned(x: Tensor) -> tuple[Tensor, Tensor]:
    y = aten.repeat.default(x, [1, 4])
    return aten.slice.Tensor(y, 1, 0, 3), aten.sum.dim_IntList(aten.relu.default(y), [1])


def read_through_a_view(x: Tensor) -> Tensor:
    y = aten.repeat.default(x, [1, 4])
    corner = aten.slice.Tensor(y, 1, 0, 2)
    z = aten.relu.default(y)
    return aten.sum.default(z) + aten.sum.default(corner)


def part_of_the_memory(x: Tensor) -> Tensor:
    y = aten.repeat.default(x, [1, 4])
    a, b = aten.split.Tensor(y, 128, 1)
    return aten.sum.default(aten.relu.default(a)) + aten.sum.default(b) + aten.sum.default(y)


def mirrored(x: Tensor) -> Tensor:
    y = aten.repeat.default(aten.slice.Tensor(x, 1, 0, 8), [1, 1])
    return aten.sum.dim_IntList(aten.add.Tensor(y, aten.t.default(y)), [1])


def written_to(x: Tensor) -> Tensor:
    y = aten.repeat.default(x, [1, 4])
    z = aten.relu.default(y)
    aten.add_.Tensor(y, 1)
    return aten.sum.default(z) + aten.sum.default(y)


TRAPS = (
    *(held_by_the_caller, returned, read_through_a_view, part_of_the_memory, mirrored),
    written_to,
)


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_what_others_hold_is_not_overwritten(trap):
    module = make_fx(trap)(rows())
    result, _ = torch_ext.fx.reorder(module, (rows(),), verify=False)
    ours, theirs = rows(), rows()
    expected, actual = module(ours), result(theirs)
    difference = first_difference(
        {"result": expected, "input": ours}, {"result": actual, "input": theirs}
    )
    assert not difference


@torch.library.custom_op("torch_ext_test::stash", mutates_args=())
def stash(x: Tensor) -> Tensor:
    """Keeps what it is given."""
    STASHED.append(x)
    return x.sum()


@stash.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(())


STASHED: list[Tensor] = []


def test_what_an_unknown_op_was_given_is_not_overwritten():
    def program(x: Tensor) -> Tensor:
        y = aten.repeat.default(x, [1, 4])
        total = torch.ops.torch_ext_test.stash.default(y)
        return aten.sum.default(aten.relu.default(y)) + total

    module = make_fx(program)(rows())
    result, report = torch_ext.fx.reorder(module, (rows(),), verify=False)
    assert not report.overwrites
    STASHED.clear()
    result(rows())
    assert torch.equal(STASHED[0], rows().repeat(1, 4))
    STASHED.clear()


# --- the compile backend -------------------------------------------------------------------------


@pytest.fixture
def _gradients():
    torch._dynamo.reset()
    with torch.enable_grad():
        yield
    torch._dynamo.reset()


def test_the_backend_overwrites_in_inference():
    torch._dynamo.reset()
    module, x = layers(), rows()
    compiled = torch.compile(module, backend="torch_ext")
    ordered = torch.compile(module, backend="torch_ext", options={"levers": ["order"]})
    assert torch.equal(compiled(x), module(x))
    assert peak(compiled, x) < peak(ordered, x)
    with pytest.raises(Exception, match="levers"):
        torch.compile(module, backend="torch_ext", options={"levers": ["none"]})(x)
    torch._dynamo.reset()


class Activated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sigmoid(torch.relu(layer(x))) * 2 + torch.tanh(x)
        return x


@pytest.mark.usefixtures("_gradients")
def test_a_backward_pass_may_run_twice_and_writes_to_no_gradient_of_the_callers():
    torch.manual_seed(0)
    module = Activated()
    compiled = torch.compile(module, backend="torch_ext")

    def gradients(run) -> list[Tensor]:
        module.zero_grad()
        x = rows(8).requires_grad_()
        seed = rows(8) + 1
        result = run(x)
        result.backward(seed, retain_graph=True)
        assert torch.equal(seed, rows(8) + 1)
        result.backward(seed)
        return [result.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]

    for _ in range(2):
        for ours, theirs in zip(gradients(module), gradients(compiled), strict=True):
            assert torch.equal(ours, theirs)


# --- training steps ------------------------------------------------------------------------------


@pytest.mark.usefixtures("_gradients")
@pytest.mark.parametrize("runtime", ["fx", "torchscript"])
def test_a_training_step_overwrites(runtime):
    def step(levers):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 2048), nn.Tanh())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loss_fn(result: Tensor, target: Tensor) -> Tensor:
            return nn.functional.cross_entropy(result, target)

        batch = rows(256), torch.arange(256) % 7
        made = torch_ext.training_step(
            model, loss_fn, optimizer, batch, runtime=runtime, levers=levers
        )
        losses = [made(*batch) for _ in range(3)]
        return made.report, losses, list(model.parameters())

    both, order = step(None), step(["order"])
    assert both[0].overwrites
    assert both[0].measured_peak_bytes < order[0].measured_peak_bytes
    assert both[0].lower_bound_bytes <= both[0].measured_peak_bytes
    for ours, theirs in zip(both[1] + both[2], order[1] + order[2], strict=True):
        assert torch.equal(ours, theirs)
