"""Slices of TorchScript modules: bit for bit, in every call, below the budget.

Which parts keep their bits is up to the kernels of the machine, so no test asks for one plan.
"""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import torch_ext

ALL = ("order", "overwrite", "slice")


class Convolutions(nn.Module):
    """Rows with halos, padding, strides, changes in place and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu_(self.first(x))
        y = torch.relu_(self.second(y).add_(y))
        return self.third(y)


class Layer(nn.Module):
    """Rows of products: parts of rows may have other bits, parts of columns have not."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 512)
        self.down = nn.Linear(512, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


class Elementwise(nn.Module):
    """Same bits in whatever parts: no machine forbids them."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.repeat(1, 4) + 1
        y = torch.relu(y * 2) + torch.neg(y)
        return (y * y).sum(1)


def image(batch: int = 1) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 8, 48, 48)


def frozen(network: nn.Module, *inputs: Tensor) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    return torch.jit.freeze(torch.jit.trace(network.eval(), inputs, check_trace=False))


def sliced(network: nn.Module, *inputs: Tensor, memory_budget: int | str = 1):
    script = frozen(network, *inputs)
    module, report = torch_ext.optimize(script, inputs, memory_budget=memory_budget)
    return script, module, report


def same(a: object, b: object) -> bool:
    return torch.equal(a, b) and a.stride() == b.stride() and a.dtype == b.dtype


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (Convolutions(), (image(),)),
        (Convolutions(), (image(3),)),
        (Elementwise(), (torch.randn(64, 256),)),
    ],
    ids=["rows", "batch", "elements"],
)
def test_a_budget_that_order_does_not_meet_is_met_by_slices(network, inputs):
    script, module, report = sliced(network, *inputs)
    assert report.slices
    assert report.identical
    assert report.peak_bytes < report.original_peak_bytes
    assert report.measured_peak_bytes == report.peak_bytes
    assert report.floor_bytes <= report.peak_bytes
    assert not report.budget_met  # of one byte
    use = report.levers[-1]
    assert (use.name, use.edits, use.peak_bytes_after) == (
        "slice",
        len(report.slices),
        report.peak_bytes,
    )
    budget = (report.peak_bytes + report.original_peak_bytes) // 2
    again = sliced(network, *inputs, memory_budget=budget)[2]
    assert again.budget_met
    assert again.measured_peak_bytes <= budget


def test_a_budget_that_order_meets_has_no_slices():
    _, _, report = sliced(Convolutions(), image(), memory_budget="1GiB")
    assert not report.slices
    assert report.budget_met


def test_no_slices_unless_they_are_asked_for():
    script = frozen(Convolutions(), image())
    for levers in (None, ("order", "overwrite")):
        _, report = torch_ext.optimize(script, (image(),), levers=levers)
        assert not report.slices
    budget = torch_ext.optimize(script, (image(),), memory_budget=1, levers=("order",))[1]
    assert not budget.slices
    assert not budget.budget_met


def test_without_a_budget_no_peak_is_higher():
    script = frozen(Convolutions(), image())
    plain = torch_ext.optimize(script, (image(),))[1]
    module, report = torch_ext.optimize(script, (image(),), levers=ALL)
    assert report.peak_bytes <= plain.peak_bytes
    use = report.levers[-1]
    assert use.name == "slice"
    assert report.slices or use.reason
    assert same(module(image()), script(image()))


def test_products_keep_their_bits():
    x = torch.randn(1, 96, 64)
    script, module, report = sliced(Layer(), x)
    assert report.identical
    assert same(module(x), script(x))
    assert report.slices or "bits" in report.levers[-1].reason


@pytest.fixture(scope="module")
def convolutions():
    return sliced(Convolutions(), image())


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("side", [48, 47, 20])
def test_other_sizes_are_the_original(convolutions, batch, side):
    script, module, _ = convolutions
    x = torch.randn(batch, 8, side, side)
    for _ in range(3):
        assert same(module(x), script(x))


def test_other_strides_and_dtypes_are_the_original(convolutions):
    script, module, _ = convolutions
    for x in (
        image().to(memory_format=torch.channels_last),
        image().transpose(2, 3),
        torch.randn(1, 8, 48, 96)[..., ::2],
    ):
        for _ in range(2):
            assert same(module(x), script(x))
    with pytest.raises(RuntimeError):
        module(image().double())
    elements, elementwise, _ = sliced(Elementwise(), torch.randn(64, 256))
    for x in (torch.randn(64, 256).double(), torch.randn(256, 64).t()):
        assert same(elementwise(x), elements(x))


def test_gradients_and_autocast_are_the_originals(convolutions, with_gradients):
    script, module, _ = convolutions
    gradients = []
    for one in (script, module):
        x = image().requires_grad_()
        y = one(x)
        y.square().sum().backward()
        gradients.append((y.detach(), x.grad))
    assert same(gradients[0][0], gradients[1][0])
    assert same(gradients[0][1], gradients[1][1])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert same(module(image()), script(image()))


def test_inputs_are_not_changed(convolutions):
    _, module, _ = convolutions
    x = image()
    module(x)
    assert same(x, image())


def test_the_file_is_an_ordinary_one(convolutions, tmp_path):
    script, module, _ = convolutions
    path = tmp_path / "sliced.pt"
    module.save(path)
    torch.save((image(), script(image())), tmp_path / "pair.pt")
    program = (
        "import sys, torch\n"
        "x, y = torch.load(sys.argv[2])\n"
        "module = torch.jit.load(sys.argv[1])\n"
        "assert all(torch.equal(module(x), y) for _ in range(3))\n"
        "assert 'torch_ext' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, path, tmp_path / "pair.pt"], check=True, cwd=tmp_path
    )


def test_a_loaded_file_can_be_verified(convolutions, tmp_path):
    script, module, report = convolutions
    path = tmp_path / "sliced.pt"
    module.save(path)
    found = torch_ext.verify(torch.jit.load(path), (image(),))
    assert found.identical
    assert found.measured_peak_bytes == report.measured_peak_bytes
    assert found.measured_original_peak_bytes == report.measured_original_peak_bytes
    with pytest.raises(ValueError, match="does not hold the original"):
        torch_ext.verify(script, (image(),))
    with pytest.raises(ValueError, match="ScriptModule"):
        torch_ext.verify(Convolutions(), (image(),))


def test_verifying_notices_other_bits():
    """As on a machine with other kernels: parts are not as the whole."""
    _, module, _ = sliced(Convolutions(), image())
    graph = module.graph
    choice = [node for node in graph.nodes() if node.kind() == "prim::If"][-1]
    edited = list(choice.blocks())[1]
    loops = [loop for node in edited.nodes() for loop in node.findAllNodes("prim::Loop")]
    copies = [copy for loop in loops for copy in loop.findAllNodes("aten::copy_")]
    source = copies[0].inputsAt(1)
    with graph.insert_point_guard(copies[0]):
        changed = graph.create("aten::neg", [source])
        graph.insertNode(changed)
    copies[0].replaceInput(1, changed.output())
    found = torch_ext.verify(module, (image(),))
    assert "values differ" in found.difference


def test_optimizing_again_starts_from_what_is_sliced(convolutions):
    script, module, report = convolutions
    again, _ = torch_ext.optimize(module, (image(),))
    assert same(again(image()), script(image()))
    assert torch_ext.verify(again, (image(),)).identical


def test_the_report_shows_stretches(convolutions, tmp_path):
    _, _, report = convolutions
    use = report.slices[0]
    assert use.parts > 1
    assert 0 <= use.dimension < len(use.shape)
    names = {op.name for op in report.graph.ops}
    assert set(use.ops) <= names
    assert use.name in {op.name for op in report.edited.ops} - names
    text = str(report)
    assert f"{use.parts} parts" in text
    assert use.ops[0] in text
    assert report.to_dict()["slices"][0]["parts"] == use.parts
    report.save_html(tmp_path / "report.html")
    assert use.name in (tmp_path / "report.html").read_text()


def test_several_examples_have_one_program():
    script = frozen(Convolutions(), image())
    examples = [(image(2),), (image(),)]
    module, report = torch_ext.optimize(script, examples, memory_budget=1)
    assert report.identical
    assert report.slices
    for (x,) in examples:
        assert same(module(x), script(x))
    assert all(
        one.measured_peak_bytes <= one.measured_original_peak_bytes for one in report.examples
    )


class Lists(nn.Module):
    """A cat in parts needs its list in parts."""

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(x.repeat(1, 1, 8))
        b = torch.tanh(a)
        return torch.cat([a, b, a + b], 2).sum(2)


class Changed(nn.Module):
    """What is changed in place is read again later, under its old name."""

    def forward(self, x: Tensor) -> Tensor:
        a = x.repeat(1, 8) * 2
        b = torch.neg(a)
        a.add_(1)
        c = torch.relu(b) * a
        return c.sum(1)


@pytest.mark.parametrize("network", [Lists(), Changed()])
def test_lists_and_changes_keep_their_bits(network):
    x = torch.randn(*((32, 16, 8) if isinstance(network, Lists) else (64, 128)))
    script, module, report = sliced(network, x)
    assert report.identical
    for _ in range(3):
        assert same(module(x), script(x))


def test_what_has_no_rule_runs_whole():
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sort(x, 1)[0].flip(0)

    script, module, report = sliced(Sorted(), torch.randn(64, 64))
    assert not report.slices
    assert "can run in parts" in report.levers[-1].reason
    assert module is not None


def test_random_numbers_are_not_drawn_in_parts():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(x.repeat(1, 8)) * 2
            return (y + torch.rand_like(y)).sum(1)

    x = torch.randn(64, 128)
    script, module, report = sliced(Noisy(), x)
    assert report.identical
    outputs = []
    for one in (script, module):
        torch.manual_seed(3)
        outputs.append(one(x))
    assert same(*outputs)
    drawn = {op.name for op in report.graph.ops if "rand" in op.kind}
    assert not any(drawn & set(use.ops) for use in report.slices)


def test_other_doors_do_not_take_slices():
    x = torch.randn(2, 8)
    program = torch.export.export(nn.Linear(8, 8), (x,))
    with pytest.raises(ValueError, match="levers"):
        torch_ext.fx.reorder(program, (x,), levers=["slice"])
