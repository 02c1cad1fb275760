"""Slices of TorchScript modules: bit for bit, in every call, below the budget.

Which parts keep their bits is up to the kernels of the machine, so no test asks for one plan.
"""

import subprocess
import sys

import pytest
import torch
from models import (
    SLICEABLE,
    Changed,
    ChangedByOthers,
    ChangedExcitation,
    Convolutions,
    Elementwise,
    Excitation,
    Layer,
    Lists,
    Masked,
    Maxima,
    Residual,
    WindowAttention,
    check_changes,
    image,
)
from torch import Tensor, nn
from torch.jit._recursive import wrap_cpp_module

import torch_ext
from torch_ext import _jit

ALL = ("order", "overwrite", "slice")
A_FEW_BYTES = 64  # of scalars


def frozen(network: nn.Module, *inputs: Tensor) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    return torch.jit.freeze(torch.jit.trace(network.eval(), inputs, check_trace=False))


def sliced(network: nn.Module, *inputs: Tensor, memory_budget: int | str = 1):
    script = frozen(network, *inputs)
    module, report = torch_ext.optimize(script, inputs, memory_budget=memory_budget, levers=ALL)
    return script, module, report


def sliced_at_random(script: torch.jit.ScriptModule, inputs: tuple[Tensor, ...], seed: int):
    return wrap_cpp_module(_jit.shuffle_slicing(script._c, inputs, seed))


def same(a: object, b: object) -> bool:
    return torch.equal(a, b) and a.stride() == b.stride() and a.dtype == b.dtype


@pytest.mark.parametrize(("network", "inputs"), SLICEABLE.values(), ids=SLICEABLE)
def test_a_budget_that_order_does_not_meet_is_met_by_slices(network, inputs):
    _script, _module, report = sliced(network, *inputs)
    assert report.slices
    assert report.identical
    assert report.peak_bytes < report.original_peak_bytes
    assert abs(report.measured_peak_bytes - report.peak_bytes) <= A_FEW_BYTES
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


def test_what_is_read_again_by_the_next_op_is_freed():
    x = torch.randn(64, 256)
    script = frozen(Residual(), x)
    levers = ("order", "slice")
    _module, report = torch_ext.optimize(script, (x,), memory_budget=1, levers=levers)
    assert len(report.slices) > 1
    assert abs(report.measured_peak_bytes - report.peak_bytes) <= A_FEW_BYTES


def test_what_runs_whole_beside_slices_overwrites():
    x = torch.randn(64, 256)
    script = frozen(Residual(), x)
    report = torch_ext.optimize(script, (x,), memory_budget=1, levers=ALL)[1]
    without = torch_ext.optimize(script, (x,), memory_budget=1, levers=("order", "slice"))[1]
    assert report.slices
    assert report.overwrites
    assert report.peak_bytes < without.peak_bytes


def test_what_runs_ahead_of_one_stretch_is_tried_in_parts_of_another():
    network, x = WindowAttention(windows=4, side=7, width=16), torch.randn(28, 28, 16)
    module, report = torch_ext.optimize(frozen(network, x), (x,), levers=ALL)
    assert report.identical
    assert same(module(x), frozen(network, x)(x))


def test_attention_runs_one_sample_after_the_other():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0].amax((1, 2))

    x = torch.randn(6, 16, 32)
    script, module, report = sliced(Attention(), x)
    op = next(op for op in report.graph.ops if "multi_head" in op.kind)
    assert len(op.outputs) == 2  # of which the weights are nothing
    assert report.floor_bytes < x.nbytes  # the op may be cut, whether or not its bits stay here
    assert same(module(x), script(x))


def test_the_few_numbers_of_a_sample_keep_no_images_together():
    """They end within a run of a kernel, so they run placed."""
    x = torch.randn(8, 6, 32, 32)
    script, module, report = sliced(Excitation(), x)
    assert report.peak_bytes < x.nbytes / 4
    assert same(module(x), script(x))


@pytest.mark.parametrize("is_frozen", [True, False])
def test_what_is_changed_placed_is_not_what_it_is_changed_by(is_frozen):
    x, network = torch.randn(8, 6, 32, 32), ChangedExcitation().eval()
    bias, expected = network.bias.detach().clone(), network(x)
    script = torch.jit.trace(network, x)
    script = torch.jit.freeze(script) if is_frozen else script
    module, report = torch_ext.optimize(script, (x,), memory_budget=1, levers=ALL)
    assert torch.equal(network.bias, bias)
    assert same(module(x), expected)
    assert report.peak_bytes < x.nbytes / 4


def test_changes_write_to_nothing_else():
    inputs = torch.randn(6, 37), torch.randn(6, 37)
    script = frozen(ChangedByOthers(), *inputs)
    check_changes(script, inputs, lambda seed: sliced_at_random(script, inputs, seed))


def test_rows_of_the_part_before_are_kept():
    x = torch.randn(1, 1, 32, 16)
    script = frozen(Maxima(), x)
    keeping = 0
    for seed in range(12):
        module = sliced_at_random(script, (x,), seed)
        assert same(module(x), script(x)), seed
        keeping += "aten::cat(" in str(module.inlined_graph)
    assert keeping > 2


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


def test_an_analysis_says_that_it_tries_none(convolutions):
    report = torch_ext.analyze(convolutions[0], (image(),), levers=ALL)
    use = report.levers[-1]
    assert (use.name, use.edits) == ("slice", 0)
    assert "optimize" in use.reason
    assert torch_ext.analyze(convolutions[0], (image(),)).levers[-1].name != "slice"


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
    peaks = found.measured_peak_bytes, found.measured_original_peak_bytes
    known = report.measured_peak_bytes, report.measured_original_peak_bytes
    assert all(abs(a - b) <= A_FEW_BYTES for a, b in zip(peaks, known, strict=True))
    with pytest.raises(ValueError, match="does not hold the original"):
        torch_ext.verify(script, (image(),))
    with pytest.raises(ValueError, match="ScriptModule"):
        torch_ext.verify(Convolutions(), (image(),))


def test_verifying_notices_other_bits():
    """As on a machine with other kernels: parts are not as the whole."""
    _, module, _ = sliced(Convolutions(), image())
    graph = module.torch_ext_edited.graph
    loops = graph.findAllNodes("prim::Loop")
    copies = [copy for loop in loops for copy in loop.findAllNodes("aten::copy_")]
    source = copies[0].inputsAt(1)
    with graph.insert_point_guard(copies[0]):
        changed = graph.create("aten::neg", [source])
        graph.insertNode(changed)
    copies[0].replaceInput(1, changed.output())
    found = torch_ext.verify(module, (image(),))
    assert "values differ" in found.difference


def test_optimizing_again_starts_from_what_is_sliced(convolutions):
    script, module, _report = convolutions
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
    script = frozen(Elementwise(), torch.randn(64, 256))
    examples = [(torch.randn(64, 256),), (torch.randn(16, 32),)]
    module, report = torch_ext.optimize(script, examples, memory_budget=1, levers=ALL)
    assert report.identical
    for (x,) in examples:
        assert same(module(x), script(x))
    assert all(
        one.measured_peak_bytes <= one.measured_original_peak_bytes for one in report.examples
    )


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

    _script, module, report = sliced(Sorted(), torch.randn(64, 64))
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


def test_other_numbers_of_threads_run_the_original():
    """Kernels that split work sum in another order with another number of threads."""
    torch.set_num_threads(1)
    script, module, report = sliced(Convolutions(), image())
    taken = {}
    for threads in (2, 1, 3, 4, 1):
        torch.set_num_threads(threads)
        x = image()
        assert same(module(x), script(x))
        with torch_ext.measure_peak() as memory:
            module(x)
        taken[threads] = memory.peak_bytes
    assert abs(taken[1] - report.peak_bytes) <= A_FEW_BYTES
    assert min(taken[2], taken[3], taken[4]) > report.peak_bytes + A_FEW_BYTES


class Function(nn.Module):
    """Of elements, between two that cost memory."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return (self.function(x * 2) + x).amax(0)


MINDING_RUNS = {
    "sigmoid": torch.sigmoid,
    "silu": nn.functional.silu,
    "elu": nn.functional.elu,
    "softplus": nn.functional.softplus,
    "gelu": nn.functional.gelu,
    "maximum": lambda x: torch.maximum(x, -x),
    "pow": lambda x: torch.pow(x.abs(), 1.7),
    "log_softmax": lambda x: torch.log_softmax(x, 1),
}


@pytest.mark.parametrize("shape", [(2, 3, 50, 51), (3, 5000), (8, 103), (16, 77), (4, 64, 64)])
@pytest.mark.parametrize("name", MINDING_RUNS)
def test_no_bits_are_the_same_by_luck(name, shape):
    """Ends of runs are rounded otherwise, seldom: an example may not show it."""
    torch.set_num_threads(1)
    script, module, _ = sliced(Function(MINDING_RUNS[name]), torch.randn(*shape))
    for _ in range(20):
        x = torch.randn(*shape)
        assert same(module(x), script(x))


def test_examples_of_zeros_tell_nothing():
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(64, 512, bias=False)
            self.down = nn.Linear(512, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.relu(self.up(x)))

    script, module, _ = sliced(Wide(), torch.zeros(96, 64))
    for _ in range(5):
        x = torch.randn(96, 64)
        assert same(module(x), script(x))


def test_a_value_may_be_several_arguments():
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            return nn.functional.scaled_dot_product_attention(y, y, y)

    script, module, _ = sliced(Attention(), torch.ones(4, 256, 16))
    x = torch.randn(4, 256, 16)
    assert same(module(x), script(x))


def test_a_list_sees_what_is_changed_in_place_later():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(32, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            a = x.repeat(1, 4, 1, 1) * 2
            a = a + a
            b = a * 3
            both = [a, b]
            r = a.relu_()
            joined = torch.cat(both, 1)
            return (self.convolution(joined) + torch.neg(r).sum(1, True)).sum(1)

    script = torch.jit.freeze(torch.jit.script(Listed().eval()))
    module, _ = torch_ext.optimize(script, (torch.rand(1, 4, 64, 64),), memory_budget=1, levers=ALL)
    x = torch.randn(1, 4, 64, 64)
    assert same(module(x), script(x))


class SumAs(nn.Module):
    def forward(self, x: Tensor, d: int) -> Tensor:
        y = torch.relu(x) * 2
        return torch.sum(y.neg() + y, 1, dtype=d)


class PoolTo(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = torch.relu(x * 2)
        return nn.functional.adaptive_avg_pool2d(z.neg() + z, y.size()[2:]).amax(1)


class TimesItem(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a = x * y.item()
        return (a.abs() + a).amax(1)


@pytest.mark.parametrize(
    ("network", "given", "other"),
    [
        (SumAs(), (torch.randn(64, 256), torch.float32), (torch.randn(64, 256), torch.float64)),
        (
            PoolTo(),
            (torch.randn(2, 64, 16, 16), torch.randn(1, 1, 8, 8)),
            (torch.randn(2, 64, 16, 16), torch.randn(1, 1, 5, 5)),
        ),
        (
            TimesItem(),
            (torch.randint(-9, 9, (64, 256)), torch.tensor(3)),
            (torch.randint(-9, 9, (64, 256)), torch.tensor(3.5)),
        ),
    ],
)
def test_numbers_of_a_call_decide_on_results(network, given, other):
    script = torch.jit.script(network.eval())
    module, _ = torch_ext.optimize(script, given, memory_budget=1, levers=ALL)
    for inputs in (given, other):
        assert same(module(*inputs), script(*inputs))


def test_the_default_dtype_decides_on_results():
    class Sines(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.sin(x * 2)
            return (y.abs() + y).amax(1)

    x = torch.randint(-9, 9, (64, 256))
    script, module, _ = sliced(Sines(), x)
    torch.set_default_dtype(torch.float64)
    try:
        assert same(module(x), script(x))
    finally:
        torch.set_default_dtype(torch.float32)


def test_operands_may_be_broadcast():
    class Clamped(nn.Module):
        def forward(self, x: Tensor, low: Tensor) -> Tensor:
            return torch.clamp(x * 2, min=low).abs()

    inputs = (torch.randn(64, 256), torch.randn(64, 256))
    script, module, report = sliced(Clamped(), *inputs)
    assert report.identical
    assert same(module(*inputs), script(*inputs))


def test_a_sliced_module_that_raises_is_not_lost():
    class Unfrozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(8, 16, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.convolution(x).unsqueeze(1) * x[:, :1].unsqueeze(1).expand(-1, 8, -1, -1, -1)
            return (torch.relu(y) + y).sum(1)

    x = torch.randn(2, 8, 32, 32)
    script = torch.jit.trace(Unfrozen().eval().requires_grad_(False), x)
    module, report = torch_ext.optimize(script, (x,), memory_budget=1, levers=ALL)
    assert report.slices
    for _ in range(2):
        with pytest.raises(RuntimeError):
            module(x.double())
        assert same(module(x), script(x))


def test_arguments_that_may_be_none_run_whole():
    network = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3))
    x = torch.randn(2, 8, 32, 32)
    module, report = torch_ext.optimize(
        torch.jit.script(network.eval()), (x,), memory_budget=1, levers=ALL
    )
    assert report.identical
    assert same(module(x), network(x))


def test_names_of_stretches_are_not_those_of_ops():
    class Sliced(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x[:, :200]
            z = torch.relu(y.unsqueeze(1) * y[:, :1].unsqueeze(1).expand(-1, 8, -1))
            return (z + z.neg()).sum(1)

    _, _, report = sliced(Sliced(), torch.randn(64, 256))
    assert report.slices
    assert report.identical


def test_tensors_in_lists_are_left_alone():
    class Listed(nn.Module):
        def forward(self, xs: list[Tensor]) -> Tensor:
            a = torch.neg(torch.relu(xs[0]))
            return torch.abs(a) + a

    script = torch.jit.script(Listed().eval())
    _, report = torch_ext.optimize(script, ([torch.randn(64, 256)],), memory_budget=1, levers=ALL)
    assert not report.slices


def peak_of(run, *inputs: Tensor) -> int:
    with torch_ext.measure_peak() as memory:
        run(*inputs)
    return memory.peak_bytes


class Windows(nn.Module):
    """Sizes are computed from sizes, as traces do it."""

    def forward(self, x: Tensor) -> Tensor:
        batch, rows, columns = x.shape
        y = torch.relu(x.repeat(1, 1, 4)).view(batch * rows // 2, 2, columns * 4)
        y = torch.neg(y) * 2 + y
        return y.reshape(batch, rows, columns * 4).amax(2)


@pytest.fixture(scope="module")
def windows():
    x = torch.randn(4, 32, 64)
    script = torch.jit.trace(Windows(), (x,))
    return (script, x, *torch_ext.optimize(script, (x,), memory_budget=1, levers=ALL))


def test_sizes_that_follow_from_sizes_can_be_cut(windows, tmp_path):
    script, x, module, report = windows
    assert report.slices
    assert report.identical
    assert "bits" not in report.levers[-1].reason  # element by element no machine has others
    assert {op for use in report.slices for op in use.ops} <= {op.name for op in report.graph.ops}
    report.save_html(tmp_path / "windows.html")
    for _ in range(3):
        assert same(module(x), script(x))


@pytest.mark.parametrize("shape", [(2, 32, 64), (4, 16, 64), (4, 32, 8)])
def test_where_sizes_are_fixed_other_inputs_run_the_original(windows, shape):
    script, _, module, _ = windows
    x = torch.randn(*shape)
    for _ in range(3):
        assert same(module(x), script(x))


def test_fixed_sizes_are_kept_in_the_file(windows, tmp_path):
    script, x, module, report = windows
    module.save(tmp_path / "windows.pt")
    loaded = torch.jit.load(tmp_path / "windows.pt")
    for shape in (x.shape, (6, 32, 64)):
        other = torch.randn(*shape)
        for _ in range(3):
            assert same(loaded(other), script(other))
    assert torch_ext.verify(loaded, (x,)).identical
    assert peak_of(loaded, x) <= report.measured_peak_bytes + A_FEW_BYTES


def test_a_module_for_other_sizes_is_optimized_from_the_original(windows):
    script, x, module, report = windows
    other = torch.randn(8, 32, 64)
    again, of_other = torch_ext.optimize(module, (other,), memory_budget=1, levers=ALL)
    assert of_other.slices
    assert of_other.identical
    fresh = torch_ext.optimize(script, (other,), memory_budget=1, levers=ALL)[1]
    assert of_other.peak_bytes == fresh.peak_bytes
    for _ in range(3):
        assert same(again(other), script(other))
        assert same(again(x), script(x))
    same_again, report_again = torch_ext.optimize(module, (x,), memory_budget=1, levers=ALL)
    assert report_again.peak_bytes <= report.peak_bytes
    assert same(same_again(other), script(other))


@pytest.mark.parametrize("is_frozen", [True, False])
def test_masks_of_zeros_tell_nothing(is_frozen):
    x, none = torch.randn(37, 64), torch.zeros(37, 1, dtype=torch.long)
    network = Masked().eval()
    script = torch.jit.trace(network, (x, none))
    script = torch.jit.freeze(script) if is_frozen else script
    module, _ = torch_ext.optimize(script, (x, none), memory_budget=1, levers=ALL)
    for _ in range(3):
        assert same(module(x, none + 1), script(x, none + 1))


def test_new_weights_tell_nothing():
    network, x = Masked().eval(), torch.randn(37, 64)
    mask = torch.ones(37, 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    script = torch.jit.trace(network, (x, mask))
    module, _ = torch_ext.optimize(script, (x, mask), memory_budget=1, levers=ALL)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
        for _ in range(3):
            assert same(module(x, mask), script(x, mask))


def test_planning_keeps_no_values_of_the_whole():
    """Values of stretches that are tried were kept until all parts had run, once for each trial."""
    layers = (layer for _ in range(12) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()))
    network = nn.Sequential(*layers).eval()
    x = torch.randn(4, 8, 48, 48)
    script = frozen(network, x)
    with torch.no_grad(), torch_ext.measure_peak() as memory:
        _, report = torch_ext.optimize(script, (x,), levers=["order", "overwrite", "slice"])
    assert report.slice_trials
    kept_bytes = sum(buffer.bytes for buffer in report.graph.buffers)
    assert memory.peak_bytes < 1.5 * kept_bytes
