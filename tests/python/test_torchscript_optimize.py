"""torch_ext.optimize and torch_ext.analyze on modules of all kinds."""

import contextlib
import copy
import ctypes
import dataclasses
import gc
import itertools
import json
import os
import pathlib

import pytest
import torch
from kinds import DTYPES, named, sent_through
from models import Scripted, Wide, traced_wide, wide_input
from torch import nn
from torch.jit._recursive import wrap_cpp_module

import torch_ext
from torch_ext._native import _jit
from torch_ext.torchscript.optimize import compare

TOLERANCE = 64 * 1024


def measured_peak(module, *inputs):
    for _ in range(2):
        module(*inputs)
    with torch_ext.measure_peak() as memory:
        module(*inputs)
    return memory.peak_bytes


def check(module, inputs, *, gains=True, **options):
    """Optimise; whatever comes out must be the same function and must not need more memory."""
    optimized, report = torch_ext.optimize(module, inputs, **options)
    assert report.identical, report.reason
    assert report.measured_peak_bytes <= report.measured_original_peak_bytes
    assert report.lower_bound_bytes <= report.peak_bytes <= report.original_peak_bytes
    assert (report.status == "optimal") == (report.lower_bound_bytes == report.peak_bytes)
    for planned, measured in (
        (report.original_peak_bytes, report.measured_original_peak_bytes),
        (report.peak_bytes, report.measured_peak_bytes),
    ):
        assert abs(planned - measured) <= max(0.01 * measured, TOLERANCE)
    assert gains == (report.measured_peak_bytes < report.measured_original_peak_bytes)
    assert gains == (report.reason == "")
    return optimized, report


def test_a_traced_module_gets_a_lower_measured_peak():
    module, x = traced_wide(), wide_input()
    optimized, report = check(module, (x,))
    assert report.peak_bytes <= report.original_peak_bytes / 2
    assert torch.equal(module(x), optimized(x))
    assert measured_peak(optimized, x) == report.measured_peak_bytes
    assert measured_peak(module, x) == report.measured_original_peak_bytes


def test_an_nn_module_is_traced_first():
    torch.manual_seed(0)
    module, x = Wide().eval(), wide_input()
    optimized, _ = check(module, (x,))
    assert isinstance(optimized, torch.jit.ScriptModule)
    assert torch.equal(module(x), optimized(x))


def test_a_single_tensor_is_one_argument():
    _, report = torch_ext.optimize(traced_wide(), wide_input())
    assert report.identical


def test_parameters_are_shared_with_the_original():
    module, x = traced_wide(), wide_input()
    optimized, _ = check(module, (x,))
    ours, theirs = dict(optimized.named_parameters()), dict(module.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours)


def test_the_given_module_and_the_random_state_are_not_changed():
    module, x = traced_wide(), wide_input()
    before = str(module.graph), torch.get_rng_state(), x.clone()
    check(module, (x,))
    assert str(module.graph) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.equal(x, before[2])


def test_a_frozen_module():
    check(torch.jit.freeze(traced_wide()), (wide_input(),))


def test_a_scripted_module_with_several_methods():
    torch.manual_seed(0)
    module = torch.jit.script(Scripted().eval())
    optimized, _ = check(module, (wide_input(),))
    a, b = optimized.stretch(wide_input())
    assert a.shape == b.shape == (256, 512)


def test_a_scripted_sibling_that_shares_the_graph_is_not_changed():
    first = torch.jit.script(Scripted().eval())
    second = torch.jit.script(Scripted().eval())
    assert first.forward.graph is not None
    before = str(second.inlined_graph)
    check(first, (wide_input(),))
    assert str(second.inlined_graph) == before


def test_a_module_that_has_already_run():
    module, x = traced_wide(), wide_input()
    for _ in range(3):
        module(x)
    optimized, report = check(module, (x,))
    assert measured_peak(optimized, x) == report.measured_peak_bytes


def test_a_loaded_module(tmp_path):
    torch.jit.save(traced_wide(), tmp_path / "model.pt")
    check(torch.jit.load(tmp_path / "model.pt"), (wide_input(),))


def test_the_order_survives_save_load_and_freeze(tmp_path):
    x = wide_input()
    optimized, report = check(traced_wide(), (x,))
    torch.jit.save(optimized, tmp_path / "optimized.pt")
    loaded = torch.jit.load(tmp_path / "optimized.pt")
    assert measured_peak(loaded, x) == report.measured_peak_bytes
    assert torch.equal(loaded(x), optimized(x))
    frozen = torch.jit.freeze(loaded.eval())
    assert abs(measured_peak(frozen, x) - report.measured_peak_bytes) <= TOLERANCE


def test_optimising_twice_changes_nothing_the_second_time():
    optimized, first = check(traced_wide(), (wide_input(),))
    again, second = check(optimized, (wide_input(),), gains=False)
    assert again is optimized
    assert second.moved_ops == 0
    assert second.peak_bytes == first.peak_bytes


def test_the_same_call_gives_the_same_order():
    reports = [torch_ext.optimize(traced_wide(), (wide_input(),))[1] for _ in range(2)]
    assert reports[0].order == reports[1].order


def test_scope_bottleneck_moves_no_more_than_scope_all():
    x = wide_input()
    _, narrow = check(traced_wide(), (x,), scope="bottleneck")
    _, wide = check(traced_wide(), (x,), scope="all")
    assert wide.peak_bytes <= narrow.peak_bytes
    assert narrow.moved_ops > 0


def test_a_memory_budget_stops_as_soon_as_it_is_met():
    x = wide_input()
    _, best = check(traced_wide(), (x,))
    loose = (best.peak_bytes + 2 * best.original_peak_bytes) // 3
    _, report = torch_ext.optimize(traced_wide(), (x,), memory_budget=loose)
    assert report.budget_met
    assert report.measured_peak_bytes <= loose
    levers, half = ("order", "overwrite"), best.peak_bytes // 2
    _, report = torch_ext.optimize(traced_wide(), (x,), memory_budget=half, levers=levers)
    assert report.budget_met is False


def test_without_verification_nothing_is_measured():
    optimized, report = torch_ext.optimize(traced_wide(), (wide_input(),), verify=False)
    assert report.identical is None
    assert report.measured_peak_bytes is None
    assert report.moved_ops > 0
    assert torch.equal(optimized(wide_input()), traced_wide()(wide_input()))


def test_several_shapes_get_one_order():
    examples = [(wide_input(64),), (wide_input(512),)]
    _, report = check(traced_wide(), examples)
    assert len(report.examples) == 2
    for example in report.examples:
        assert example.peak_bytes < example.original_peak_bytes
        assert example.measured_peak_bytes < example.measured_original_peak_bytes
    assert report.original_peak_bytes == report.examples[1].original_peak_bytes


def test_tuple_list_and_dict_inputs_and_outputs():
    class Containers(nn.Module):
        def forward(
            self,
            pair: tuple[torch.Tensor, torch.Tensor],
            parts: list[torch.Tensor],
            named: dict[str, torch.Tensor],
        ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
            a = torch.exp(pair[0].repeat(1, 64))
            b = torch.exp(pair[1].repeat(1, 64))
            return [a.sum(1), b.sum(1)], {"x": parts[0] * named["scale"]}

    x = wide_input()
    module = torch.jit.script(Containers())
    inputs = ((x, x + 1), [x, x], {"scale": torch.tensor(2.0)})
    optimized, _ = check(module, inputs)
    parts, named = optimized(*inputs)
    assert torch.equal(parts[1], module(*inputs)[0][1])
    assert torch.equal(named["x"], x * 2)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.complex64]
)
def test_other_dtypes(dtype):
    class Repeat(nn.Module):
        def forward(self, x):
            a, b = x.repeat(1, 64), x.repeat(1, 128)
            return a[:, 0].clone(), b[:, 1].clone()

    x = (torch.arange(256 * 16) % 3).reshape(256, 16).to(dtype)
    check(Repeat(), (x,))


def test_nan_equals_nan():
    class Nan(nn.Module):
        def forward(self, x):
            a, b = torch.log(x.repeat(1, 64)), torch.log(x.repeat(1, 64) - 1)
            return a.sum(1), b.sum(1)

    check(Nan(), (wide_input(),))


def test_train_mode_keeps_running_statistics_and_dropout():
    class Training(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = Wide()
            self.norm = nn.BatchNorm1d(4)
            self.dropout = nn.Dropout(0.5)

        def forward(self, x):
            return self.dropout(self.norm(self.wide(x)))

    torch.manual_seed(0)
    module, x = Training().train(), wide_input()
    state = copy.deepcopy(module.state_dict())
    random = torch.get_rng_state()
    optimized, report = torch_ext.optimize(module, (x,))
    assert report.identical
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name]), name
    torch.manual_seed(7)
    ours = optimized(x)
    statistics = module.norm.running_mean.clone()
    module.load_state_dict(state)
    torch.manual_seed(7)
    assert torch.equal(ours, module(x))
    assert torch.equal(statistics, module.norm.running_mean)
    assert not torch.equal(statistics, state["norm.running_mean"])


def test_inputs_that_are_written_to_are_left_alone():
    class Writes(nn.Module):
        def forward(self, x):
            a, b = torch.exp(x.repeat(1, 64)), torch.exp(x.repeat(1, 65))
            out = a.sum(1), b.sum(1)
            x.add_(1)
            return out

    x = wide_input()
    module = torch.jit.trace(Writes(), (x.clone(),), check_trace=False)
    optimized, _ = check(module, (x,))
    assert torch.equal(x, wide_input())
    ours, theirs = wide_input(), wide_input()
    optimized(ours)
    module(theirs)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, x)


def test_outputs_that_alias_inputs():
    class Aliases(nn.Module):
        def forward(self, x):
            a, b = torch.exp(x.repeat(1, 64)), torch.exp(x.repeat(1, 65))
            return x.view(-1), a.sum(1), b.sum(1), x

    optimized, _ = check(Aliases(), (wide_input(),))
    x = wide_input()
    view, *_, same = optimized(x)
    assert view.data_ptr() == same.data_ptr() == x.data_ptr()


def test_control_flow_counts_as_one_op_with_its_inner_peak():
    class Loops(nn.Module):
        def forward(self, x: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
            a = x.repeat(1, 32)
            b = x.repeat(1, 64)
            for _ in range(n):
                a = torch.exp(a) - 1
            if bool(x.sum() > -1e9):
                b = torch.exp(b.repeat(1, 2))
            return a.sum(1), b.sum(1)

    check(torch.jit.script(Loops()), (wide_input(), 3))


def test_prints_are_not_shown_while_verifying(capfd):
    class Prints(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            a, b = torch.exp(x.repeat(1, 64)), torch.exp(x.repeat(1, 65))
            print("hello")
            return a.sum(1), b.sum(1)

    optimized, _ = check(torch.jit.script(Prints()), (wide_input(),))
    assert capfd.readouterr().out == ""
    optimized(wide_input())
    assert "hello" in capfd.readouterr().out


@torch.jit.ignore
def shrink(x: torch.Tensor) -> torch.Tensor:
    """Python that TorchScript knows nothing of, and that writes to what it is given."""
    x.mul_(0.75)
    return x + 1


def test_calls_of_python_are_passed_by_nothing():
    class CallsPython(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("state", torch.ones(16))

        def forward(self, x: torch.Tensor):
            a = x * 2
            s = a.sum()
            b = shrink(a)
            shrink(self.state)
            return s, b

    module = torch.jit.script(CallsPython())
    x = torch.arange(1.0, 17.0)
    expected = copy.deepcopy(module)(x)
    for seed in range(20):
        shuffled = wrap_cpp_module(_jit.shuffle(copy.deepcopy(module)._c, seed, []))
        assert all(map(torch.equal, shuffled(x), expected))
    torch_ext.optimize(module, (x,))
    assert torch.equal(module.state, torch.ones(16))


def test_a_norm_that_torch_would_drop_is_left_alone():
    # Its output is read by what nobody reads: the executor keeps it, cleaning up before does not.
    class OnlyItsStatistics(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("var", torch.ones(4))
            self.register_buffer("noise", torch.ones(4, 4))

        def forward(self, x: torch.Tensor):
            held = {"a": self.noise}
            y = torch.ones([4, 4])
            held["a"].uniform_()
            norm = torch.instance_norm(
                y.unsqueeze(0), None, None, self.mean, self.var, True, 0.1, 1e-5, False
            )[0].t()
            norm.t_()
            unread = {"a": norm}  # noqa: F841
            return x.sum(), y

    _, report = torch_ext.optimize(torch.jit.script(OnlyItsStatistics()), (torch.ones(16),))
    assert report.reason == (
        "the graph cannot be prepared: torch's own passes drop a norm that updates running "
        "statistics"
    )


def test_equal_results_stay_two_tensors():
    # The executor folds all three; torch's own passes merge them where that is yet to come.
    class Constants(torch.nn.Module):
        def forward(self, x: torch.Tensor):
            read = torch.tensor([1.0, 2.0, 3.0])
            first = torch.tensor([1.0, 2.0, 3.0])
            second = torch.tensor([1.0, 2.0, 3.0])
            a = torch.sin(x.repeat(1, 8))
            b = torch.sin(x.repeat(1, 9))
            return first, second, read.sum(), a.sum(1), b.sum(1)

    _, report = torch_ext.optimize(torch.jit.script(Constants()), (torch.ones(16, 16),))
    assert report.reason == (
        "the graph cannot be prepared: torch's own passes merge two results that have equal values"
    )


def test_prints_after_a_wait_are_not_shown_either(capfd):
    # The program goes on in another thread.
    class Waits(torch.nn.Module):
        def forward(self, x: torch.Tensor):
            a = torch.sin(x.repeat(1, 8))
            b = torch.sin(x.repeat(1, 9))
            w = torch.jit.wait(torch.jit.fork(torch.sin, x))
            print("here")
            return a.sum(1), b.sum(1), w

    for _ in range(5):
        _, report = torch_ext.optimize(torch.jit.script(Waits()), (torch.randn(16, 16),))
        assert "printed" not in report.reason
    assert "here" not in capfd.readouterr().out


def test_an_optimal_order_says_which_op_and_which_buffers():
    module = nn.Sequential(nn.Linear(16, 512), nn.ReLU(), nn.Linear(512, 4)).eval()
    _, report = check(module, (wide_input(),), gains=False, levers=["order"])
    assert report.status == "optimal"
    assert "the original order is optimal" in report.reason
    assert report.bottleneck.op in report.reason
    assert report.at_peak[0].shape == (256, 512)
    assert report.at_peak[0].dtype == "float32"


def test_ops_held_in_place_are_the_reason():
    class Chained(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            a = torch.dropout(x.repeat(1, 64), 0.5, True)
            b = torch.dropout(x.repeat(1, 64), 0.5, True)
            c = torch.dropout(a[:, :1], 0.5, True)
            return c, b.sum(1)

    _, report = check(torch.jit.script(Chained()), (wide_input(),), gains=False)
    assert "in place" in report.reason


def test_no_tensors_at_all():
    class Numbers(nn.Module):
        def forward(self, n: int) -> int:
            return n + 1

    module = torch.jit.script(Numbers())
    optimized, report = torch_ext.optimize(module, (3,))
    assert optimized is module
    assert report.peak_bytes == 0
    assert "no op takes memory" in report.reason


def test_an_empty_graph():
    class Empty(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    optimized, report = torch_ext.optimize(torch.jit.script(Empty()), (wide_input(),))
    assert report.ops == 0
    assert report.reason
    assert torch.equal(optimized(wide_input()), wide_input())


def test_a_constant_of_the_graph_that_is_written_to_is_refused():
    class WritesConstant(nn.Module):
        def forward(self, x):
            return CONSTANT.add_(1) + x

    CONSTANT = torch.zeros(16)  # noqa: N806
    module = torch.jit.trace(WritesConstant(), (wide_input(),), check_trace=False)
    value = CONSTANT.clone()
    optimized, report = torch_ext.optimize(module, (wide_input(),))
    assert optimized is module
    assert "constant" in report.reason
    assert torch.equal(CONSTANT, value)


def test_analyze_changes_nothing_and_tells_the_same():
    module, x = traced_wide(), wide_input()
    before = str(module.graph)
    report = torch_ext.analyze(module, (x,))
    _, optimized = check(module, (x,))
    assert str(module.graph) == before
    assert report.peak_bytes == optimized.peak_bytes
    assert report.order == optimized.order
    assert report.measured_original_peak_bytes == optimized.measured_original_peak_bytes
    assert report.measured_peak_bytes is None


def test_the_report_is_json_with_the_stable_keys():
    _, report = check(traced_wide(), (wide_input(),))
    fields = json.loads(json.dumps(report.to_dict()))
    assert fields["format"] == 1
    stable = """ops original_peak_bytes peak_bytes lower_bound_bytes status proof method bottleneck
        seconds clock_stopped order moved_ops regions measured_original_peak_bytes
        measured_peak_bytes identical threads parameter_bytes input_bytes budget_met reason
        timeline_before timeline_after at_peak"""
    assert set(stable.split()) <= fields.keys()
    assert fields["bottleneck"].keys() == {"op", "source", "bytes", "buffers"}
    assert fields["timeline_before"][0].keys() == {"op", "valley_bytes", "hill_bytes"}
    assert max(t["hill_bytes"] for t in fields["timeline_after"]) == fields["peak_bytes"]
    assert sorted(fields["order"]) == sorted(t["op"] for t in fields["timeline_before"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.peak_bytes = 0


def test_the_source_line_is_the_users():
    _, report = check(traced_wide(), (wide_input(),), levers=["order"])
    assert "models.py:" in report.bottleneck.source
    assert any("models.py:" in buffer.source for buffer in report.at_peak)
    assert any(buffer.module_path.startswith("grow.") for buffer in report.at_peak)


def test_parameters_and_inputs_are_reported_beside_the_peak():
    module, x = traced_wide(), wide_input()
    _, report = check(module, (x,))
    assert report.parameter_bytes == sum(p.nbytes for p in module.parameters())
    assert report.input_bytes == x.nbytes
    assert report.threads == 2


@pytest.mark.parametrize(
    "example",
    [
        *((), (wide_input(),) * 2, (1.0, 2.0), ({"x": wide_input()},), ([wide_input()],)),
        *(("text",), (object(),), (2**80,), (wide_input().numpy(),)),
    ],
    ids=lambda example: str([type(value).__name__ for value in example]),
)
@pytest.mark.parametrize("function", [torch_ext.optimize, torch_ext.analyze])
def test_examples_that_do_not_fit_are_a_value_error(example, function):
    good = (wide_input(),)
    for examples, place in ((example, 0), ([example, good], 0), ([good, example], 1)):
        expected = rf"^example {place} does not fit forward, which takes \(Tensor x\): "
        with pytest.raises(ValueError, match=expected) as caught:
            function(traced_wide(), examples)
        assert len(str(caught.value).splitlines()) == 1


def test_an_example_that_does_not_fit_is_told_what_forward_takes():
    class Takes(nn.Module):
        def forward(self, x: torch.Tensor, n: int, more: list[torch.Tensor], scale: float = 2.0):
            return x * n * scale + more[0]

    module, x = torch.jit.script(Takes()), wide_input()
    takes = r"which takes \(Tensor x, int n, Tensor\[\] more, float scale=2.\): "
    for example, words in (
        ((x,), "missing value for argument 'n'"),
        ((x, 3), "missing value for argument 'more'"),
        ((x, 3, [x], 1.0, 5), "there are 5 arguments"),
        ((x, 1.5, [x]), "'int' for argument 'n' but instead found type 'float'"),
        ((x, 3, [x, "a"]), "for argument 'more'"),
    ):
        with pytest.raises(ValueError, match=f"example 0 does not fit forward, {takes}.*{words}"):
            torch_ext.analyze(module, example)
    assert torch_ext.analyze(module, (x, 3, [x])).ops > 0


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ((), r"does not fit forward, which takes \(x: torch.Tensor\) .* argument: 'x'"),
        ((wide_input(),) * 2, r"does not fit forward, which takes \(x: .*: too many"),
        (("text",), "has a value of type str, and only tensors"),
        ((2**80,), "has a value of type int, and only tensors"),
        ((None,), "has a value of type NoneType, and only tensors"),
        ((wide_input().numpy(),), "has a value of type ndarray, and only tensors"),
        (([wide_input(), 3],), "has a value of type int, and only tensors"),
        (([],), "cannot be traced: List trace inputs must have elements"),
    ],
)
def test_examples_with_which_a_module_cannot_be_traced(example, words):
    with pytest.raises(ValueError, match=f"^example 0 {words}") as caught:
        torch_ext.optimize(Wide(), example)
    assert len(str(caught.value).splitlines()) == 1


def test_what_the_module_itself_says_to_an_example_that_fits_is_told():
    with pytest.raises(TypeError, match="must be Tensor, not dict"):
        torch_ext.optimize(Wide(), ({"x": wide_input()},))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch_ext.optimize(Wide(), (torch.ones(3, 3),))


def test_a_hook_that_changes_the_arguments_is_no_misfit():
    module = Wide().eval()
    module.register_forward_pre_hook(lambda _, given: (given[0] + given[1],))
    _, report = torch_ext.optimize(module, (wide_input(), wide_input()))
    assert report.ops > 0


@pytest.mark.parametrize("inputs", [[], 3, None, [torch.zeros(1)], {"x": torch.zeros(1)}])
def test_examples_of_the_wrong_form_are_a_value_error(inputs):
    with pytest.raises(ValueError, match="must be a tuple of arguments"):
        torch_ext.optimize(traced_wide(), inputs)


def test_not_a_module_is_a_value_error():
    with pytest.raises(ValueError, match="expected a torch"):
        torch_ext.optimize(lambda x: x, (wide_input(),))


def test_a_model_that_raises_raises_the_same():
    class Raises(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.size(0) > 2:
                raise RuntimeError("too many rows")
            return x * 2

    with pytest.raises(torch.jit.Error, match="too many rows"):
        torch_ext.optimize(torch.jit.script(Raises()), (wide_input(),))


def test_a_module_with_forward_hooks_is_left_alone():
    class Hooked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat(1, 64).sum(1) + x.repeat(1, 65).sum(1)

    def add_one(self, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0] + 1,)

    module = Hooked()
    module.register_forward_pre_hook(add_one)
    script = torch.jit.script(module)
    optimized, report = torch_ext.optimize(script, (wide_input(),))
    assert "hooks" in report.reason
    assert torch.equal(optimized(wide_input()), script(wide_input()))


def test_optimise_and_drop_leaves_no_more_than_torch_keeps_of_a_module():
    """Torch never forgets types and graphs: of this result 125 KiB, of each copy's types 21 KiB.

    Executor plans, inputs or parameters that stayed would be several times as much.
    """
    libc = ctypes.CDLL("libc.so.6")
    page_kib = os.sysconf("SC_PAGE_SIZE") // 1024

    def resident_kib() -> int:
        gc.collect()
        libc.malloc_trim(0)
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * page_kib

    module = traced_wide()
    cycles = 100

    def optimise_and_drop(times):
        for _ in range(times):
            optimized, _ = torch_ext.optimize(
                module, wide_input(), time_budget=0.05, levers=["order"]
            )
            assert optimized is not module

    optimise_and_drop(20)
    before = resident_kib()
    optimise_and_drop(cycles)
    assert (resident_kib() - before) / cycles < 300


def test_tensors_of_every_kind_keep_their_bits():
    assert named(DTYPES, sent_through("optimize"))


# --- what is planned is what runs, or nothing is proven -------------------------------------------


def check_left_alone(module, inputs, why):
    """Nothing is planned; what the report says was measured."""
    same, report = torch_ext.optimize(module, inputs)
    assert same is module
    assert why in report.reason
    measured = measured_peak(module, *inputs)
    assert measured > 0
    assert (report.lower_bound_bytes, report.status, report.proof) == (0, "feasible", "")
    assert report.measured_original_peak_bytes == report.measured_peak_bytes == measured
    assert report.original_peak_bytes == report.peak_bytes == measured
    assert report.input_bytes == sum(x.nbytes for x in inputs)
    assert report.parameter_bytes > 0
    analyzed = torch_ext.analyze(module, inputs)
    assert (analyzed.reason, analyzed.peak_bytes) == (report.reason, measured)
    assert analyzed.lower_bound_bytes == 0


class Rounding(nn.Module):
    """Two wide branches in a region of autocast, one around it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 512)
        self.b = nn.Linear(16, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = torch.relu(self.a(x)), torch.relu(self.b(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            c, d = torch.relu(self.a(x)), torch.relu(self.b(x))
            rounded = c.amax(1) + d.amax(1)
        return a.amax(1) + b.amax(1) + rounded


class NotRounding(Rounding):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            a, b = torch.relu(self.a(x)), torch.relu(self.b(x))
        return a.amax(1) + b.amax(1)


class RoundingInside(Rounding):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        if bool(x.sum() > -1e9):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
                    a = a + torch.relu(self.a(x))
                a = a + torch.relu(self.b(x))
        return a.amax(1)


AUTOCAST = {
    "outside": contextlib.nullcontext,
    "inside": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inside, not cached": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    "without optimiser": lambda: torch.jit.optimized_execution(False),
}


def three_runs(module, inputs, context):
    with context():
        return [module(*inputs) for _ in range(3)]


def same_bits(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *itertools.product(
            [Rounding, NotRounding, RoundingInside], ["scripted", "loaded", "of another"]
        ),
        (Rounding, "frozen"),
    ],
)
def test_regions_of_autocast_are_left_alone(kind, form, tmp_path):
    """What they compute depends on switches at the time of the call."""
    module = torch.jit.script(nn.Sequential(kind()) if form == "of another" else kind()).eval()
    if form == "frozen":
        module = torch.jit.freeze(module)
    elif form == "loaded":
        torch.jit.save(module, tmp_path / "model.pt")
        module = torch.jit.load(tmp_path / "model.pt")
    check_left_alone(module, (wide_input(),), "it enters torch.autocast")


def test_the_pass_orders_regions_of_autocast_as_they_are_compiled():
    torch.manual_seed(0)
    module, x = torch.jit.script(Rounding()).eval(), wide_input()
    expected, before = three_runs(module, (x,), AUTOCAST["outside"]), measured_peak(module, x)
    ordered = copy.deepcopy(module)
    with torch_ext.enabled():
        other = torch.jit.script(Rounding()).eval()  # a type of its own: not compiled yet
        other.load_state_dict(ordered.state_dict())
        actual = three_runs(other, (x,), AUTOCAST["outside"])
    assert same_bits(expected, actual)
    assert measured_peak(other, x) <= before


class Halves(nn.Module):
    """Branches of a dtype that autocast would widen where it does not know it."""

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.ModuleList(nn.Linear(16, 512) for _ in range(4))

    def forward(self, x):
        grown = [torch.relu(layer(x)) for layer in self.grow]
        return torch.stack([(g + g).amax(1) for g in grown])


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(16, 32)

    def forward(self, x, state):
        gate, value = self.gates(x).chunk(2, 1)
        new = torch.sigmoid(gate) * state[0] + torch.tanh(value)
        return torch.tanh(new), (new, state[1] * gate)


class Recurrent(nn.Module):
    """Tuples between modules: traces forget the dtypes of what is in them."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()
        self.wide = Halves()

    def forward(self, x):
        state = (x * 0.5, x * 2)
        for _ in range(3):
            x, state = self.cell(x, state)
        return x + state[0] * state[1], self.wide(x)


def traced_for_autocast(model, how):
    torch.manual_seed(0)
    module, x = model().eval(), wide_input()
    if how == "bfloat16":
        module, x = module.bfloat16(), x.bfloat16()
    with AUTOCAST["inside, not cached" if how == "under autocast" else "outside"]():
        return torch.jit.trace(module, (x,), check_trace=False), x


@pytest.mark.parametrize("how", ["float32", "bfloat16", "under autocast"])
@pytest.mark.parametrize("model", [Halves, Recurrent])
def test_what_is_optimised_outside_of_autocast_has_the_same_bits_inside(model, how):
    script, x = traced_for_autocast(model, how)
    optimized, report = torch_ext.optimize(script, (x,))
    assert optimized is not script, report.reason
    for context in AUTOCAST.values():
        fresh, _ = traced_for_autocast(model, how)
        expected = three_runs(fresh, (x,), context)
        actual = three_runs(torch_ext.optimize(fresh, (x,))[0], (x,), context)
        if model is Recurrent:
            expected, actual = itertools.chain(*expected), itertools.chain(*actual)
        assert same_bits(expected, actual)


def test_nothing_is_planned_inside_autocast():
    module, x = traced_wide(), wide_input()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_left_alone(module, (x,), "leave torch.autocast")
        assert compare(module, module, (x,))[0] == ""
    optimized, _ = check(module, (x,))
    assert torch.equal(optimized(x), module(x))


@contextlib.contextmanager
def fusing_on_the_cpu():
    could = torch._C._jit_can_fuse_on_cpu()
    needed = torch._C._jit_get_te_must_use_llvm_cpu()
    fused = torch._C._jit_texpr_fuser_enabled()
    torch._C._jit_override_can_fuse_on_cpu(True)
    torch._C._jit_set_te_must_use_llvm_cpu(False)
    torch._C._jit_set_texpr_fuser_enabled(True)
    try:
        yield
    finally:
        torch._C._jit_override_can_fuse_on_cpu(could)
        torch._C._jit_set_te_must_use_llvm_cpu(needed)
        torch._C._jit_set_texpr_fuser_enabled(fused)


class Pointwise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.sigmoid(x * 2.0)
        b = torch.tanh(a + 1.0)
        c = torch.relu(b * a)
        return (c * 3.0 - a).sum()


def test_a_run_with_less_than_the_bound_proves_nothing():
    module, x = torch.jit.script(Pointwise()), wide_input(4096)
    _, proven = check(module, (x,), gains=False, levers=["order"])
    assert proven.status == "optimal"
    module = torch.jit.script(Pointwise())
    with fusing_on_the_cpu():  # ops that are fused have no results between them
        same, report = torch_ext.optimize(module, (x,), levers=["order"])
        analyzed = torch_ext.analyze(module, (x,), levers=["order"])
    assert same is module
    assert report.measured_peak_bytes < proven.lower_bound_bytes
    assert report.measured_peak_bytes == report.measured_original_peak_bytes
    for each in (report, analyzed):
        assert (each.lower_bound_bytes, each.status, each.proof) == (0, "feasible", "")
        assert each.bottleneck is None
        assert each.original_peak_bytes == each.peak_bytes == proven.peak_bytes
        assert not any(region.proof for region in each.regions)
        assert each.reason == (
            f"the program ran with less ({report.measured_peak_bytes} bytes) than the bound of the "
            f"captured graph ({proven.lower_bound_bytes} bytes): it ran other sizes than were "
            "planned, so nothing is proven"
        )


class WithConstants(nn.Module):
    """The executor computes `zeros` and `ones` once, if it optimises at all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zeros, ones = torch.zeros([256, 1024]), torch.ones([256, 512])
        a, b = torch.exp(x.repeat(1, 64)), torch.exp(x.repeat(1, 128))
        return a.sum(1) + b.sum(1) + zeros.sum(1) + ones.sum(1)


@contextlib.contextmanager
def switched(switch, value, back):
    switch(value)
    try:
        yield
    finally:
        switch(back)


SWITCHES = {
    "as it comes": contextlib.nullcontext,
    "no optimiser": lambda: torch.jit.optimized_execution(False),
    "no profiling": lambda: switched(torch._C._jit_set_profiling_mode, False, True),
    "old executor": lambda: switched(torch._C._jit_set_profiling_executor, False, True),
    "no autocast": lambda: switched(torch._C._jit_set_autocast_mode, False, True),
    "inference mode": torch.inference_mode,
    "float64": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_what_is_planned_is_what_runs_whatever_is_switched_on(switch):
    with SWITCHES[switch]():
        x = wide_input()
        for module in (
            torch.jit.script(WithConstants()),
            torch.jit.trace(WithConstants(), (x.clone(),), check_trace=False),
            traced_wide(),
            torch.jit.freeze(traced_wide()),
        ):
            report = check(module, (x,))[1]
            assert report.status == "optimal"
            assert report.original_peak_bytes == report.measured_original_peak_bytes
            assert report.peak_bytes == report.measured_peak_bytes == report.lower_bound_bytes


class Replaces(nn.Module):
    """Releases memory that is older than the call."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.ones(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = torch.exp(self.last)
        return torch.exp(x.repeat(1, 8)).sum(1)


class ReplacesInADict(nn.Module):
    def forward(self, x: torch.Tensor, held: dict[str, torch.Tensor]) -> torch.Tensor:
        held["a"] = x.sum(1)
        return torch.exp(x.repeat(1, 8)).sum(1)


class ReplacesInABranch(Replaces):
    """Releases in the middle of a branch what the call itself made."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = torch.exp(self.last)
        if bool(x.sum() > -1e9):
            self.last = x[0, :4] * 2
            y = torch.exp(x.repeat(1, 16)).sum(1)
        else:
            y = x[:, 0]
        return y + 1


class Unrolled(nn.Module):
    """Once unrolled, what the loop begins with is freed by its first turn."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.repeat(1, 8)
        for _ in range(3):
            y = torch.exp(y[:, ::2])
        return y


class DropsFromAList(nn.Module):
    """The executor sees that only one element is used."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        kept.append(x.repeat(1, 4))
        kept.append(x.repeat(1, 8))
        return torch.exp(kept[0])


class DropsFromALoop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = [t * 0.5 for t in [x, x.repeat(1, 8)]]
        return kept[0]


class FoldsWhatAListHides(nn.Module):
    """Both products are one constant, once the list is seen through."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        ones = [torch.ones([16, 8]), torch.ones([16, 8])]
        ones.append(x)
        first, second = ones[0] * 1.5, ones[0] * 1.5
        return [ones[0], first.sum(), second.sum()]


class FoldsWhatIsCut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.norm(x)
        whole = torch.ones([64, 64])
        first, _ = torch.chunk(torch.ones([64, 64]), 2, 0)
        return [whole, first.to(torch.float32).sum()]


class NotCleanedUp(nn.Module):
    """Beside a call of Python nothing is cleaned up ahead of time; the executor does it later."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = [shrink(x * 1.0), torch.exp(x.repeat(1, 8))]
        return both[0]


class Tasks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        future = torch.jit.fork(torch.exp, x.repeat(1, 4))
        y = torch.exp(x.repeat(1, 8)).sum(1)
        return torch.jit.wait(future).sum(1) + y


@pytest.mark.parametrize(
    "kind",
    [
        Replaces,
        ReplacesInADict,
        ReplacesInABranch,
        Unrolled,
        DropsFromAList,
        DropsFromALoop,
        FoldsWhatAListHides,
        FoldsWhatIsCut,
        NotCleanedUp,
        Tasks,
    ],
)
def test_the_bound_counts_on_nothing_that_the_executor_may_do_without(kind):
    inputs = (wide_input(),)
    if kind is ReplacesInADict:
        inputs += ({"a": torch.ones(256, 256)},)
    _, report = torch_ext.optimize(torch.jit.script(kind()), inputs)
    assert report.identical
    assert report.lower_bound_bytes <= report.measured_peak_bytes
    assert not report.reason.endswith("nothing is proven")  # the door need not find it out


def test_branches_are_as_certain_as_ops():
    class Chooses(nn.Module):
        def forward(self, x: torch.Tensor, wide: bool) -> torch.Tensor:
            return torch.exp(x.repeat(1, 64)).sum(1) if wide else x.sum(1)

    _, report = check(torch.jit.script(Chooses()), (wide_input(), True), gains=False)
    assert report.status == "optimal"


def test_disabled_by_the_environment(monkeypatch):
    monkeypatch.setenv("TORCH_EXT_DISABLE", "1")
    check_left_alone(traced_wide(), (wide_input(),), "TORCH_EXT_DISABLE")


def test_modules_that_are_left_alone_may_write_to_what_they_like(monkeypatch):
    class WritesEverywhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(16))

        def forward(self, x):
            self.calls.add_(1)
            return CONSTANT.add_(1) + x.mul_(2) + self.calls

    CONSTANT = torch.zeros(16)  # noqa: N806
    module = torch.jit.trace(WritesEverywhere(), (wide_input(),), check_trace=False)
    x, calls, constant = wide_input(), module.calls.clone(), CONSTANT.clone()
    monkeypatch.setenv("TORCH_EXT_DISABLE", "1")
    _, report = torch_ext.optimize(module, (x,))
    assert report.measured_peak_bytes > 0
    assert torch.equal(x, wide_input())
    assert torch.equal(module.calls, calls)
    assert torch.equal(CONSTANT, constant)


def test_the_line_that_traces_is_no_source():
    def sources(module):
        _, report = torch_ext.optimize(module, (wide_input(),))
        assert report.bottleneck is not None
        return {report.bottleneck.source, *(op.source for op in report.graph.ops)}

    torch.manual_seed(0)
    of_torch = nn.Sequential(nn.Linear(16, 512), nn.ReLU(), nn.Linear(512, 4)).eval()
    assert sources(of_torch) == {""}
    assert sources(torch.jit.trace(of_torch, wide_input())) == {""}
    assert sources(torch.jit.script(of_torch)) == {""}
    lines = sources(Wide().eval())
    assert all("models.py:" in line for line in lines if line)
    assert any(lines)
