"""Slices of graphs of torch.fx and of exported programs: bit for bit, in plain ATen ops.

Which parts keep their bits is up to the kernels of the machine, so no test asks for one plan.
"""

import copy
import io
import itertools

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
    check_changes,
    image,
)
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import torch_ext
from torch_ext.fx import slices
from torch_ext.fx.graphs import state_of
from torch_ext.fx.same_threads import require_threads
from torch_ext.fx.slices import Slicer
from torch_ext.fx.stretch import inline_parts
from torch_ext.program.plan import LeverUse

ALL = ("order", "overwrite", "slice")


def quiet(network: nn.Module) -> nn.Module:
    """As people serve it."""
    return network.eval().requires_grad_(False)


def exported(network: nn.Module, *inputs: Tensor) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(quiet(network), inputs)


def captured(network: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    torch.manual_seed(0)
    return make_fx(quiet(network))(*inputs)


DOORS = {"exported": exported, "captured": captured}


def run(program, *inputs):
    module = program if isinstance(program, fx.GraphModule) else program.module()
    return module(*inputs)


def sliced_at_random(
    module: fx.GraphModule, inputs: tuple[Tensor, ...], seed: int
) -> fx.GraphModule:
    slicer = Slicer(module, lambda: list(inputs))
    sliced = slicer.sliced(slicer.random(seed))
    inline_parts(sliced, asks=False)
    return sliced


def slicing(report: torch_ext.fx.GraphReport) -> LeverUse:
    """What the report says of the lever "slice"."""
    (use,) = (use for use in report.levers if use.name == "slice")
    return use


@pytest.fixture(scope="module")
def sliced_program():
    program = exported(Convolutions(), image())
    return program, *torch_ext.fx.reorder(program, (image(),), memory_budget=1)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("network", "inputs"), SLICEABLE.values(), ids=SLICEABLE)
def test_a_budget_that_order_does_not_meet_is_met_by_slices(door, network, inputs):
    program = DOORS[door](network, *inputs)
    result, report = torch_ext.fx.reorder(program, inputs, memory_budget=1)
    assert report.slices
    assert report.identical
    assert torch.equal(run(program, *inputs), run(result, *inputs))
    assert report.measured_peak_bytes == report.peak_bytes < report.original_peak_bytes
    assert report.floor_bytes <= report.lower_bound_bytes <= report.peak_bytes
    assert not report.budget_met  # of one byte
    use = slicing(report)
    assert (use.edits, use.peak_bytes_after) == (len(report.slices), report.peak_bytes)
    budget = (report.peak_bytes + report.original_peak_bytes) // 2
    again = torch_ext.fx.reorder(program, inputs, memory_budget=budget)[1]
    assert again.budget_met
    assert again.measured_peak_bytes <= budget


def test_the_few_numbers_of_a_sample_keep_no_images_together():
    """They end within a run of a kernel, so they run placed."""
    program = exported(Excitation(), x := torch.randn(8, 6, 32, 32))
    result, report = torch_ext.fx.reorder(program, (x,), memory_budget=1)
    assert report.peak_bytes < x.nbytes / 4
    assert torch.equal(run(program, x), run(result, x))


def test_what_is_changed_placed_is_not_what_it_is_changed_by():
    x, network = torch.randn(8, 6, 32, 32), ChangedExcitation()
    program = exported(network, x)
    bias, expected = network.bias.detach().clone(), run(program, x)
    result, report = torch_ext.fx.reorder(program, (x,), memory_budget=1)
    assert torch.equal(network.bias, bias)
    assert torch.equal(run(result, x), expected)
    assert report.peak_bytes < x.nbytes / 4


def test_changes_write_to_nothing_else():
    inputs = torch.randn(6, 37), torch.randn(6, 37)
    module = captured(ChangedByOthers(), *inputs)
    check_changes(module, inputs, lambda seed: sliced_at_random(module, inputs, seed))


def test_rows_of_the_part_before_are_kept():
    x = torch.randn(1, 1, 32, 16)
    module = exported(Maxima(), x).graph_module
    keeping = 0
    for seed in range(12):
        sliced = sliced_at_random(module, (x,), seed)
        assert torch.equal(sliced(x)[0], module(x)[0]), seed
        keeping += any(n.target is torch.ops.aten.cat.default for n in sliced.graph.nodes)
    assert keeping > 2


def test_an_op_is_not_blamed_for_rows_that_were_kept(monkeypatch):
    """The first part of another op has other bits; rows of it are in the next part, too."""
    exps = itertools.count()

    def call(self: slices._PartRun, target: object, args: object, kwargs: object) -> object:
        value = fx.Interpreter.call_function(self, target, args, kwargs)
        is_first = target is torch.ops.aten.exp.default and next(exps) == 0
        return value * (1 + 1e-6) if is_first else value

    pools: list[tuple[bool, bool]] = []

    def tell(self: slices._Watch, facts: object) -> None:
        exp, *others = zip(self.stretch.ops, self.seen, self.nodes, strict=True)
        if exp[2].target is torch.ops.aten.exp.default:
            pools.extend((exp[0].keeps_rows, seen.keeps_bits) for _, seen, _ in others)

    monkeypatch.setattr(slices._PartRun, "call_function", call)
    monkeypatch.setattr(slices._Watch, "tell_to", tell)
    monkeypatch.setattr(slices._Watch, "run_alone", lambda self: None)

    def network(x: Tensor) -> Tensor:
        return torch.nn.functional.max_pool2d(torch.exp(x), (3, 1), 1, (1, 0)).amax(3)

    module = make_fx(network)(x := torch.randn(1, 1, 32, 16))
    for seed in range(25):
        exps = itertools.count()
        sliced_at_random(module, (x,), seed)
    assert any(keeps_rows for keeps_rows, _ in pools)
    assert all(keeps_bits for _, keeps_bits in pools)


def test_a_budget_that_order_meets_has_no_slices():
    program = exported(Convolutions(), image())
    _, report = torch_ext.fx.reorder(program, (image(),), memory_budget="1GiB")
    assert not report.slices
    assert report.budget_met


def test_no_slices_unless_they_are_asked_for():
    program = exported(Convolutions(), image())
    for levers in (None, ("order", "overwrite")):
        assert not torch_ext.fx.reorder(program, (image(),), levers=levers)[1].slices
    _, report = torch_ext.fx.reorder(program, (image(),), memory_budget=1, levers=["order"])
    assert not report.slices


def test_an_analysis_says_that_it_tries_none():
    program = exported(Convolutions(), image())
    use = torch_ext.fx.analyze(program, (image(),), levers=ALL).levers[-1]
    assert (use.name, use.edits) == ("slice", 0)
    assert "fx.reorder" in use.reason


def test_without_a_budget_no_peak_is_higher():
    program = exported(Elementwise(), x := torch.randn(64, 256))
    plain = torch_ext.fx.reorder(program, (x,))[1]
    _, report = torch_ext.fx.reorder(program, (x,), levers=ALL)
    assert report.peak_bytes <= plain.peak_bytes
    assert report.slice_trials
    assert all(trial.seconds > 0 for trial in report.slice_trials)


def test_the_file_is_an_ordinary_one(sliced_program):
    program, result, report = sliced_program
    assert report.slices
    file = io.BytesIO()
    torch.export.save(result, file)
    file.seek(0)
    loaded = torch.export.load(file)
    targets = {node.target for node in loaded.graph.nodes if node.op == "call_function"}
    assert all(isinstance(target, torch._ops.OpOverload) for target in targets)
    module, x = loaded.module(), image()
    module(x)
    with torch_ext.measure_peak() as memory:
        actual = module(x)
    assert torch.equal(actual, run(program, image()))
    assert memory.peak_bytes == report.measured_peak_bytes


def test_a_loaded_program_can_be_verified(sliced_program):
    program, result, report = sliced_program
    found = torch_ext.fx.verify(result, program, (image(),))
    assert found.identical
    assert found.measured_peak_bytes == report.measured_peak_bytes
    assert found.measured_original_peak_bytes == report.measured_original_peak_bytes
    with pytest.raises(ValueError, match="example_inputs"):
        torch_ext.fx.verify(result, program, (image(), image()))
    assert not torch_ext.fx.verify(exported(Pointwise(), image()), program, (image(),)).identical


def test_the_report_shows_stretches(sliced_program):
    program, _, report = sliced_program
    names = {node.name for node in program.graph.nodes}
    edited = {op.name for op in report.edited.ops}
    for use in report.slices:
        assert {*use.ops, use.result} <= names
        assert use.name in edited
        assert not edited & set(use.ops)
        assert 1 < use.parts <= use.shape[use.dimension]
    assert f"{report.slices[0].parts} parts" in str(report)


def test_names_and_types_of_the_program_stay(sliced_program):
    program, result, _ = sliced_program
    assert result.graph_signature == program.graph_signature
    assert all("val" in node.meta for node in result.graph.nodes if node.op != "output")


def test_the_program_can_be_decomposed_and_reordered_again(sliced_program):
    program, result, _ = sliced_program
    expected = run(program, image())
    assert torch.equal(run(torch_ext.fx.reorder(result, (image(),))[0], image()), expected)


def test_neither_the_program_nor_inputs_are_changed():
    network, x = Convolutions(), image()
    program, before = exported(network, x), x.clone()
    text = str(program.graph)
    torch_ext.fx.reorder(program, (x,), memory_budget=1)
    assert str(program.graph) == text
    assert torch.equal(x, before)


class Pointwise(nn.Module):
    """It takes whatever looks like an image."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x + 1)
        return (y * 2 + torch.neg(y)).amax(1)


@pytest.mark.parametrize(
    "other",
    [
        image(2),
        image()[:, :, 8:],
        image().double(),
        image().contiguous(memory_format=torch.channels_last),
    ],
    ids=["batch", "rows", "dtype", "strides"],
)
def test_tensors_that_look_otherwise_are_refused(other):
    program = captured(Pointwise(), image())
    result, report = torch_ext.fx.reorder(program, (image(),), memory_budget=1)
    assert report.slices
    with pytest.raises(RuntimeError, match=r"sizes|strides|dtype"):
        result(other)


def test_other_numbers_of_threads_are_refused(sliced_program):
    _, result, _ = sliced_program
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.raises(RuntimeError, match=rf"set_num_threads\({threads}\)"):
            run(result, image())
    finally:
        torch.set_num_threads(threads)


def test_a_sum_tells_numbers_of_threads_apart():
    threads = torch.get_num_threads()
    few, many = (1, 2, 3, 6, 16), (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 24, 32, 64, 127, 128)
    try:
        for asked in few:
            torch.set_num_threads(asked)
            graph = fx.Graph()
            require_threads(graph, None)
            graph.output(())
            module = fx.GraphModule(nn.Module(), graph)
            for there in many:
                torch.set_num_threads(there)
                try:
                    module()
                    same = True
                except RuntimeError:
                    same = False
                assert same == (there == asked), (asked, there)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("network", [Lists(), Changed()], ids=["lists", "changed"])
def test_lists_and_changes_keep_their_bits(door, network):
    x = torch.randn(*((32, 16, 8) if isinstance(network, Lists) else (64, 128)))
    program = DOORS[door](network, x)
    result, report = torch_ext.fx.reorder(program, (x,), memory_budget=1)
    assert report.slices
    assert report.identical
    assert torch.equal(run(result, x), run(program, x))


class Counted(nn.Module):
    """Its state changes: what reads it is sliced, what changes it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        y = torch.relu(x.repeat(1, 8) * self.calls)
        return (y + torch.neg(y)).sum(1) + (y * y).sum(1)


@pytest.mark.parametrize("door", DOORS)
def test_state_changes_as_before(door):
    x = torch.randn(64, 128)
    program = DOORS[door](Counted(), x)
    before = copy.deepcopy(state_of(program))
    result, report = torch_ext.fx.reorder(program, (x,), memory_budget=1)
    assert report.slices
    assert all(torch.equal(value, before[name]) for name, value in state_of(program).items())
    original, edited = copy.deepcopy(program), copy.deepcopy(result)
    for _ in range(2):
        assert torch.equal(run(original, x), run(edited, x))


class Dropped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.dropout(x.repeat(1, 8), 0.5, True)
        return torch.relu(y + 1).sum(1)


def test_random_numbers_are_not_drawn_in_parts():
    program = captured(Dropped(), x := torch.randn(64, 128))
    result, report = torch_ext.fx.reorder(program, (x,), memory_budget=1)
    drawing = ("rand", "dropout", "bernoulli")
    assert not any(word in op for use in report.slices for op in use.ops for word in drawing)
    torch.manual_seed(3)
    expected = program(x)
    torch.manual_seed(3)
    assert torch.equal(result(x), expected)


def test_symbolic_sizes_are_not_cut():
    x = torch.randn(64, 256)
    batch = torch.export.Dim("batch", min=2, max=128)
    program = torch.export.export(quiet(Elementwise()), (x,), dynamic_shapes={"x": {0: batch}})
    result, report = torch_ext.fx.reorder(program, (x,), memory_budget=1)
    assert not report.slices
    assert "symbols" in slicing(report).reason
    assert torch.equal(run(result, x[:7]), run(program, x[:7]))


def test_what_requires_gradients_is_sliced_if_asked():
    x = torch.randn(96, 64)
    program = torch.export.export(Layer().eval(), (x,))
    _, report = torch_ext.fx.reorder(program, (x,), memory_budget=1)
    assert not report.slices
    assert {use.name for use in report.levers if "gradients" in use.reason} == {
        "overwrite",
        "slice",
    }
    _, report = torch_ext.fx.reorder(program, (x,), memory_budget=1, levers=ALL)
    assert report.identical


@pytest.mark.parametrize("door", DOORS)
def test_masks_of_zeros_tell_nothing(door):
    x, none = torch.randn(37, 64), torch.zeros(37, 1, dtype=torch.long)
    program = DOORS[door](Masked(), x, none)
    result, _ = torch_ext.fx.reorder(program, (x, none), memory_budget=1)
    assert torch.equal(run(result, x, none + 1), run(program, x, none + 1))


def test_new_weights_tell_nothing():
    network, x, mask = quiet(Masked()), torch.randn(37, 64), torch.ones(37, 1)
    for parameter in network.parameters():
        parameter.zero_()
    program = torch.export.export(network, (x, mask))
    result, _ = torch_ext.fx.reorder(program, (x, mask), memory_budget=1)
    for parameter in network.parameters():  # which both programs share
        parameter.normal_()
    assert torch.equal(run(result, x, mask), run(program, x, mask))


def test_slices_that_cannot_be_tried_cost_nothing(monkeypatch):
    def fail(*_args: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("torch_ext.fx.slices.Slicer.choose", fail)
    program = exported(Elementwise(), x := torch.randn(64, 256))
    result, report = torch_ext.fx.reorder(program, (x,), memory_budget=1)
    assert not report.slices
    assert slicing(report).reason == "trying slices failed: RuntimeError: on purpose"
    assert torch.equal(run(result, x), run(program, x))
