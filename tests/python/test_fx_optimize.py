"""Graph modules and exported programs in a new order: the same bits, the allocator's peak lower."""

import contextlib
import copy
import io

import pytest
import torch
from effects import said, say
from kinds import DTYPES, LAYOUTS, named, sent_through
from torch import Tensor, fx, nn
from torch._higher_order_ops.scan import scan
from torch.fx.experimental.proxy_tensor import make_fx

import torch_ext.fx
from torch_ext import measure_peak


class Branches(nn.Module):
    """Wide branches, all made before the first is reduced; a buffer counts the calls."""

    def __init__(self, count: int = 6, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, 8 * width) for _ in range(count))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.add_(1)
        wide = [torch.relu(layer(x)) for layer in self.layers]
        return torch.stack([w.sum(1) for w in wide]).sum(0), self.calls * 2


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def inputs() -> tuple[Tensor]:
    return (torch.randn(256, 64),)


def exported() -> torch.export.ExportedProgram:
    return torch.export.export(Branches(), inputs())


def traced() -> fx.GraphModule:
    model = Branches()
    return make_fx(model)(*inputs())


def run(module, given):
    with measure_peak() as memory:
        results = module(*given)
    return results, memory.peak_bytes


def test_an_exported_program_runs_in_its_new_order_also_after_saving():
    program, given = exported(), inputs()
    reordered, report = torch_ext.fx.reorder(program, given)
    assert report.identical
    assert report.reason == ""
    assert report.measured_peak_bytes < 0.5 * report.measured_original_peak_bytes
    file = io.BytesIO()
    torch.export.save(reordered, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for candidate in (reordered, loaded):
        module, original = candidate.module(), program.module()
        original.calls.zero_()
        expected, before_bytes = run(original, given)
        module.calls.zero_()  # `reordered` and the original share their buffers
        actual, after_bytes = run(module, given)
        assert all(map(torch.equal, expected, actual))
        assert after_bytes < 0.5 * before_bytes
        assert module(*given)[1] == 4  # the buffer goes on counting
    assert [n.name for n in loaded.graph.nodes] == [n.name for n in reordered.graph.nodes]


def test_a_graph_module_runs_in_its_new_order():
    module, given = traced(), inputs()
    before = copy.deepcopy(module.state_dict())
    code = module.code
    reordered, report = torch_ext.fx.reorder(module, given)
    assert report.identical
    assert module.code == code
    assert reordered.code != code
    expected, before_bytes = run(copy.deepcopy(module), given)
    actual, after_bytes = run(copy.deepcopy(reordered), given)
    assert all(map(torch.equal, expected, actual))
    assert after_bytes < before_bytes
    assert (before_bytes, after_bytes) == (
        report.measured_original_peak_bytes,
        report.measured_peak_bytes,
    )
    assert all(map(torch.equal, before.values(), module.state_dict().values()))


def test_the_predicted_peak_is_the_allocators():
    report = torch_ext.fx.reorder(exported(), inputs())[1]
    assert report.peak_bytes == pytest.approx(report.measured_peak_bytes, rel=0.01)
    assert report.original_peak_bytes == pytest.approx(
        report.measured_original_peak_bytes, rel=0.01
    )


def test_nothing_of_the_callers_is_changed():
    program, given = exported(), inputs()
    random_state = torch.get_rng_state()
    copies = copy.deepcopy((given, dict(program.state_dict)))
    torch_ext.fx.analyze(program, given)
    torch_ext.fx.reorder(program, given)
    assert torch.equal(given[0], copies[0][0])
    assert all(torch.equal(value, copies[1][name]) for name, value in program.state_dict.items())
    assert torch.equal(random_state, torch.get_rng_state())


def test_the_report_tells_the_users_program():
    program = exported()
    _, report = torch_ext.fx.reorder(program, inputs())
    for timeline, peak_bytes in (
        (report.timeline_before, report.original_peak_bytes),
        (report.timeline_after, report.peak_bytes),
    ):
        assert max(entry.hill_bytes for entry in timeline) == peak_bytes
        assert len(timeline) == report.ops
    assert [entry.op for entry in report.timeline_after] == list(report.order)
    largest = report.at_peak[0]
    assert largest.shape == (256, 8 * 64)
    assert (largest.bytes, largest.dtype) == (256 * 8 * 64 * 4, "float32")
    assert largest.source.startswith(f"{__file__}:")
    assert report.bottleneck.source.startswith(f"{__file__}:")
    paths = {buffer.module_path for buffer in report.at_peak}
    assert any(path.startswith("layers.") for path in paths)


def test_a_chain_keeps_its_order_and_says_why():
    program = torch.export.export(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), inputs())
    same, report = torch_ext.fx.reorder(program, inputs())
    assert same is program
    assert report.reasons[0].kind == "optimal"
    assert report.status == "optimal"


def test_cond_is_one_op_and_keeps_its_place():
    class Choosing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wide = [torch.sin(x.repeat(1, 8) * i) for i in range(4)]
            total = torch.stack([w.sum(1) for w in wide]).sum(0)
            return torch.cond(x.sum() > 0, lambda t: t.cos(), lambda t: t.sin(), (total,))

    program = torch.export.export(Choosing(), inputs())
    reordered, report = torch_ext.fx.reorder(program, inputs())
    assert report.identical
    for given in (inputs(), (-torch.ones(256, 64),), (torch.ones(256, 64),)):
        assert torch.equal(program.module()(*given), reordered.module()(*given))


def test_a_loop_is_one_op_and_keeps_its_place():
    class Looping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = scan(lambda c, row: (c + row, (c * row).cos()), x[0], x)[1]
            wide = [torch.sin(rows.repeat(1, 8) * i) for i in range(4)]
            return torch.stack([w.sum(1) for w in wide]).sum(0)

    given = inputs()
    program = torch.export.export(Looping(), given)
    reordered, report = torch_ext.fx.reorder(program, given)
    assert report.identical
    assert report.measured_peak_bytes == pytest.approx(report.peak_bytes, rel=0.01)
    assert torch.equal(program.module()(*given), reordered.module()(*given))


def test_effects_keep_their_order():
    """Also where a token goes from each to the next, which is then an input of the program."""

    class Saying(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wide = [torch.sin(x.repeat(1, 8) * i) for i in range(4)]
            first = torch.stack([w.sum(1) for w in wide]).sum()
            return first + sum(say(x * i, f"{i}") for i in range(3))

    program = torch.export.export(Saying(), inputs())
    for each in (program, program.run_decompositions()):
        reordered, report = torch_ext.fx.reorder(each, inputs())
        assert report.identical
        assert report.measured_peak_bytes < report.measured_original_peak_bytes
        said.clear()
        reordered.module()(*inputs())
        assert said == ["0", "1", "2"]


def test_calls_of_modules_keep_their_order():
    module = fx.symbolic_trace(nn.Sequential(nn.Linear(64, 64), nn.ReLU(inplace=True)))
    same, report = torch_ext.fx.reorder(module, inputs())
    assert same is module
    assert report.moved_ops == 0
    assert report.reason


def test_methods_of_tensors_keep_their_order():
    class Methods(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul(2).add_(1).sum(1)

    same, report = torch_ext.fx.reorder(module := fx.symbolic_trace(Methods()), inputs())
    assert same is module
    assert report.reason


def test_a_failed_verification_returns_the_original(monkeypatch):
    monkeypatch.setattr("torch_ext.fx.graphs.first_difference", lambda a, b: "a result")
    program = exported()
    same, report = torch_ext.fx.reorder(program, inputs())
    assert same is program
    assert report.identical is False
    assert report.reason == "verification failed: a result differs"


@pytest.mark.parametrize("make", [exported, traced], ids=["exported", "traced"])
@pytest.mark.parametrize(
    "given",
    [
        *((), (torch.ones(256, 64),) * 2, [(torch.ones(256, 64),)], ({"x": torch.ones(256, 64)},)),
        *(("text",), (None,), (3,), (torch.ones(256, 64).numpy(),)),
    ],
    ids=lambda given: str([type(value).__name__ for value in given]),
)
@pytest.mark.parametrize("function", [torch_ext.fx.reorder, torch_ext.fx.analyze])
def test_inputs_that_do_not_fit_are_a_value_error(make, given, function):
    with pytest.raises(ValueError, match="do not fit the program, which takes ") as caught:
        function(make(), given)
    assert len(str(caught.value).splitlines()) == 1


def test_inputs_that_are_nested_otherwise():
    class Nested(nn.Module):
        def forward(self, pair: dict[str, Tensor], more: list[Tensor]) -> Tensor:
            return pair["a"].sum() + pair["b"].sum() + more[0].sum()

    a, b, c = (torch.randn(8, 8) for _ in range(3))
    program = torch.export.export(Nested(), ({"a": a, "b": b}, [c]))
    for made in (program, program.module()):
        assert torch_ext.fx.reorder(made, ({"a": a, "b": b}, [c]))[1].ops > 0
        for given in ((a, b, c), ({"a": a}, [c]), ({"a": a, "b": b},)):
            with pytest.raises(ValueError, match="do not fit the program"):
                torch_ext.fx.reorder(made, given)


def test_arguments_by_name_are_refused():
    class Named(nn.Module):
        def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
            return x * scale

    x = torch.randn(8, 8)
    program = torch.export.export(Named(), (x,), {"scale": x})
    for given in ((x,), (x, x)):
        with pytest.raises(ValueError, match="'scale': scale} by name"):
            torch_ext.fx.reorder(program, given)


@pytest.mark.parametrize("program", [Branches(), torch.relu, 3, None])
def test_what_is_no_program_is_a_value_error(program):
    with pytest.raises(ValueError, match=r"must be an fx.GraphModule or an ExportedProgram"):
        torch_ext.fx.reorder(program, inputs())


def test_inputs_that_are_no_arguments():
    with pytest.raises(ValueError, match="must be a tuple of arguments, not dict"):
        torch_ext.fx.reorder(traced(), {"x": 1})


def test_tensors_of_every_kind_keep_their_bits():
    assert named(DTYPES + LAYOUTS, sent_through("reorder"))


# --- what is planned is what runs, or nothing is proven -------------------------------------------

LIBRARY = torch.library.Library("torch_ext_moody", "DEF")
LIBRARY.define("moody(Tensor(a) x) -> Tensor(a)")
calls_with_scratch = 0


def _moody(x: Tensor) -> Tensor:
    global calls_with_scratch
    calls_with_scratch -= 1
    if calls_with_scratch >= 0:
        torch.ones(2**20)
    return x.view_as(x)


LIBRARY.impl("moody", _moody, "CPU")
LIBRARY.impl("moody", lambda x: x.view_as(x), "Meta")


def moody_program() -> torch.export.ExportedProgram:
    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wide = [torch.sin(x.repeat(1, 8) * i) for i in range(4)]
            total = torch.stack([w.sum(1) for w in wide]).sum(0)
            return total + torch.ops.torch_ext_moody.moody(x).sum(1)

    return torch.export.export(Moody(), inputs())


def test_a_run_of_the_bound_or_more_is_no_fault():
    global calls_with_scratch
    calls_with_scratch = 1000
    program = moody_program()
    reordered, report = torch_ext.fx.reorder(program, inputs())
    assert reordered is not program
    assert report.status == "optimal"
    assert report.measured_peak_bytes == report.lower_bound_bytes


@pytest.mark.parametrize("door", [torch_ext.fx.analyze, torch_ext.fx.reorder])
def test_a_run_with_less_than_the_bound_proves_nothing(door):
    global calls_with_scratch
    program = moody_program()
    calls_with_scratch = 1  # in the probe
    found = door(program, inputs())
    report = found[1] if isinstance(found, tuple) else found
    if isinstance(found, tuple):
        assert found[0] is program
        assert report.measured_peak_bytes == report.measured_original_peak_bytes
    assert report.reason.startswith("the program ran with less (")
    assert report.reason.endswith("nothing is proven")
    assert (report.lower_bound_bytes, report.status, report.proof) == (0, "feasible", "")
    assert report.bottleneck is None
    assert report.order == tuple(op.name for op in report.graph.ops)
    assert report.peak_bytes == report.original_peak_bytes
    assert report.timeline_after == report.timeline_before


def test_what_gains_nothing_is_measured_too():
    global calls_with_scratch

    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.torch_ext_moody.moody(x.sin()).cos()

    program = torch.export.export(Chain(), inputs())
    for scratch, status in ((1000, "optimal"), (1, "feasible")):
        calls_with_scratch = scratch
        same, report = torch_ext.fx.reorder(program, inputs(), memory_budget=2**30)
        assert same is program
        assert report.status == status
        assert report.measured_peak_bytes == report.measured_original_peak_bytes > 0
        assert report.budget_met
    unmeasured = torch_ext.fx.reorder(program, inputs(), verify=False)[1]
    assert unmeasured.measured_peak_bytes is None


def test_a_failed_verification_tells_of_the_original_order(monkeypatch):
    monkeypatch.setattr("torch_ext.fx.graphs.first_difference", lambda a, b: "a result")
    _, report = torch_ext.fx.reorder(exported(), inputs(), memory_budget=1)
    assert report.peak_bytes == report.original_peak_bytes
    assert report.order == tuple(op.name for op in report.graph.ops)
    assert report.moved_ops == 0
    assert report.budget_met is False


def check_left_alone(program, why):
    same, report = torch_ext.fx.reorder(program, inputs(), memory_budget=2**30)
    assert same is program
    assert why in report.reason
    assert report.peak_bytes == report.original_peak_bytes == report.measured_peak_bytes > 0
    assert (report.lower_bound_bytes, report.status, report.order) == (0, "feasible", ())
    assert report.budget_met
    assert torch_ext.fx.analyze(program, inputs()).reason == report.reason


def test_nothing_is_planned_inside_autocast():
    program = exported()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_left_alone(program, "leave torch.autocast")
    assert torch_ext.fx.reorder(program, inputs())[0] is not program


def test_disabled_by_the_environment(monkeypatch):
    monkeypatch.setenv("TORCH_EXT_DISABLE", "1")
    check_left_alone(exported(), "TORCH_EXT_DISABLE")


class Rounding(Branches):
    """A region of autocast, which capturing writes into the graph."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


def captured(model: nn.Module, given: tuple[Tensor]) -> fx.GraphModule:
    return make_fx(model)(*given)


@pytest.mark.parametrize(
    ("model", "capture"),
    [(Branches, torch.export.export), (Branches, captured), (Rounding, captured)],
)
def test_what_is_reordered_outside_of_autocast_has_the_same_bits_inside(model, capture):
    given = inputs()
    program = capture(model(), given)
    reordered, report = torch_ext.fx.reorder(program, given)
    assert reordered is not program, report.reason
    assert report.measured_peak_bytes == report.lower_bound_bytes
    for context in (
        contextlib.nullcontext(),
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autocast("cpu", dtype=torch.float16, cache_enabled=False),
    ):
        results = []
        for each in (copy.deepcopy(program), copy.deepcopy(reordered)):
            run = each if isinstance(each, fx.GraphModule) else each.module()
            with context:
                results += [run(*given), run(*given)]
        for expected, actual in zip(results[:2], results[2:], strict=True):
            assert all(map(torch.equal, expected, actual))
            assert [t.dtype for t in expected] == [t.dtype for t in actual]


def test_lines_of_torch_are_no_sources():
    program = torch.export.export(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), inputs())
    report = torch_ext.fx.analyze(program, inputs())
    assert {op.source for op in report.graph.ops} == {""}
    assert report.bottleneck.source == ""
