"""The captured step against the eager loop: everything bit for bit, and less memory."""

import copy
import ctypes.util
import gc
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from training_loops import (
    BATCH,
    CLASSES,
    OPTIMIZERS,
    WIDTH,
    Loop,
    Net,
    assert_equal,
    batch,
    compare,
    everything,
    graphs_of,
    refusal,
)

import torch_ext
from torch_ext.training import UnsupportedError, planned_graph

MIB = 2**20


pytestmark = pytest.mark.usefixtures("with_gradients")


@pytest.mark.parametrize("runtime", ["fx", "torchscript"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_are_those_of_the_eager_loop(name, runtime):
    batches = [batch(seed=number) for number in range(10)]
    report = compare(Net(), OPTIMIZERS[name], batches, runtime=runtime).report
    assert report.identical
    assert report.measured_peak_bytes <= report.measured_original_peak_bytes


def test_a_scheduler_changes_the_rate_without_a_new_graph():
    model = Net()
    loop = Loop(model, OPTIMIZERS["adamw"])
    optimizer = OPTIMIZERS["adamw"](model)
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=20)
        for o in (loop.optimizer, optimizer)
    ]
    step = torch_ext.training_step(model, loop.loss_fn, optimizer, batch())
    graphs = len(step._graphs)
    for number in range(8):
        torch.manual_seed(number)
        loop(*batch())
        torch.manual_seed(number)
        step(*batch())
        for scheduler in schedulers:
            scheduler.step()
    assert_equal(everything(loop.model, loop.optimizer), everything(model, optimizer))
    assert len(step._graphs) == graphs


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_file_goes_on_training(name, steps_before, tmp_path):
    model = Net()
    loop = Loop(model, OPTIMIZERS[name])
    step = torch_ext.training_step(
        model, loop.loss_fn, OPTIMIZERS[name](model), batch(), runtime="torchscript"
    )
    for number in range(steps_before):
        torch.manual_seed(number)
        loop(*batch(seed=number))
        torch.manual_seed(number)
        step(*batch(seed=number))
    step.save(tmp_path / "step.pt")
    file = torch.jit.load(tmp_path / "step.pt")
    for number in range(4):
        if number == 2:  # as a scheduler would
            loop.optimizer.param_groups[0]["lr"] = 0.02
            file.set_lr(0.02, 0)
        torch.manual_seed(number)
        expected = loop(*batch(seed=number))
        torch.manual_seed(number)
        with torch.jit.optimized_execution(False):
            assert torch.equal(expected.detach(), file(*batch(seed=number)))
    trained = dict(file.model.state_dict())
    assert_equal(dict(loop.model.state_dict()), trained)
    model.load_state_dict(trained)


def test_a_file_refuses_other_shapes(tmp_path):
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model)
    loss_fn = nn.functional.cross_entropy
    step = torch_ext.training_step(model, loss_fn, optimizer, batch(), runtime="torchscript")
    step.save(tmp_path / "step.pt")
    with pytest.raises(torch.jit.Error, match=r"batch_0 must be torch.float32 of sizes \[32, 64\]"):
        torch.jit.load(tmp_path / "step.pt")(*batch(size=BATCH + 1))


def test_a_step_is_saved_again_as_training_goes_on(tmp_path):
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model)
    loss_fn = nn.functional.cross_entropy
    step = torch_ext.training_step(model, loss_fn, optimizer, batch(), runtime="torchscript")
    for _ in range(3):
        step(*batch())
        step.save(tmp_path / "step.pt")
        assert_equal(
            dict(model.state_dict()), torch.jit.load(tmp_path / "step.pt").model.state_dict()
        )


def test_what_cannot_be_saved(tmp_path):
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model)
    step = torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, batch())
    with pytest.raises(ValueError, match="torchscript"):
        step.save(tmp_path / "step.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("option", ["clip_grad_norm", "clip_grad_value"])
def test_clipping(option, accumulate):
    limit = 0.01
    clip = {
        "clip_grad_norm": lambda p: nn.utils.clip_grad_norm_(p, limit),
        "clip_grad_value": lambda p: nn.utils.clip_grad_value_(p, limit),
    }[option]
    model = Net()
    loop = Loop(model, OPTIMIZERS["adam"])
    optimizer = OPTIMIZERS["adam"](model)
    options = {option: limit, "accumulate": accumulate}
    step = torch_ext.training_step(model, loop.loss_fn, optimizer, batch(), **options)
    for number in range(4):
        torch.manual_seed(number)
        loop(*batch(seed=number), update=(number + 1) % accumulate == 0, clip=clip)
        torch.manual_seed(number)
        step(*batch(seed=number))
        assert_equal(everything(loop.model, loop.optimizer), everything(model, optimizer))


@pytest.mark.parametrize("name", ["sgd, all options", "adamw"])
def test_gradients_of_several_batches_are_accumulated(name):
    model = Net()
    loop = Loop(model, OPTIMIZERS[name])
    optimizer = OPTIMIZERS[name](model)
    step = torch_ext.training_step(model, loop.loss_fn, optimizer, batch(), accumulate=3)
    for number in range(9):
        torch.manual_seed(number)
        loop(*batch(seed=number), update=number % 3 == 2)
        torch.manual_seed(number)
        step(*batch(seed=number))
        ours, theirs = everything(model, optimizer), everything(loop.model, loop.optimizer)
        assert_equal(theirs, ours)


def test_several_inputs_and_a_loss_with_extra_results():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(WIDTH, CLASSES)

        def forward(self, x, scale, names):
            return self.a(x * scale[names[0]])

    def loss_fn(logits, target):
        loss = nn.functional.cross_entropy(logits, target)
        return loss, (logits.argmax(1) == target).float().mean(), logits

    x, y = batch()
    batches = [(x * number, {"a": torch.tensor(2.0)}, ["a"], y) for number in range(4)]
    compare(Two(), OPTIMIZERS["sgd"], batches, loss_fn=loss_fn)


def test_a_loss_with_parameters_of_its_own():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, logits, target):
            return self.scale * nn.functional.cross_entropy(logits, target)

    model, loss_fn = Net(), Scaled()
    optimizer = torch.optim.SGD([*model.parameters(), *loss_fn.parameters()], lr=0.1)
    other_model, other_loss, other = copy.deepcopy((model, loss_fn, optimizer))
    step = torch_ext.training_step(model, loss_fn, optimizer, batch())
    for number in range(3):
        torch.manual_seed(number)
        other_loss(other_model(batch()[0]), batch()[1]).backward()
        other.step()
        other.zero_grad()
        torch.manual_seed(number)
        step(*batch())
    assert torch.equal(loss_fn.scale, other_loss.scale)
    assert_equal(everything(other_model, other), everything(model, optimizer))


def test_capturing_changes_nothing():
    model = Net()
    optimizer = OPTIMIZERS["sgd, all options"](model)
    model.first.weight.grad = torch.ones(WIDTH, WIDTH)
    before = copy.deepcopy(everything(model, optimizer))
    values = batch()
    values_before = copy.deepcopy(values)
    state = torch.get_rng_state()
    torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, values)
    assert torch.equal(state, torch.get_rng_state())
    assert_equal(before, everything(model, optimizer))
    assert all(map(torch.equal, values, values_before))


def test_no_copy_of_the_model_stays():
    def large() -> int:
        gc.collect()
        tensors = (o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter))
        return sum(tensor.numel() == WIDTH * WIDTH for tensor in tensors)

    model = Net()
    optimizer = OPTIMIZERS["sgd"](model)
    before = large()
    step = torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, batch())
    assert step.report.measured_hooks_peak_bytes is not None
    assert large() == before


def test_a_checkpoint_in_the_middle(tmp_path):
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model)
    step = torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, batch())
    for number in range(2):
        step(*batch(seed=number))
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "checkpoint.pt")

    def go_on(step):
        torch.manual_seed(0)
        return [step(*batch(seed=number)) for number in range(3)]

    first = go_on(step)
    final = copy.deepcopy(everything(model, optimizer))
    for number in range(2):  # into another state
        step(*batch(seed=number))
    saved_model, saved_optimizer = torch.load(tmp_path / "checkpoint.pt")
    model.load_state_dict(saved_model)
    optimizer.load_state_dict(saved_optimizer)
    assert all(map(torch.equal, first, go_on(step)))
    assert_equal(final, everything(model, optimizer))


def test_modes_shapes_and_frozen_parameters_get_their_own_graphs():
    model = Net()
    loop = Loop(model, OPTIMIZERS["sgd"])
    optimizer = OPTIMIZERS["sgd"](model)
    step = torch_ext.training_step(model, loop.loss_fn, optimizer, batch())
    for change in (
        lambda m: m.eval(),
        lambda m: m.train(),
        lambda m: m.second.requires_grad_(False),
        lambda m: m.double(),
    ):
        for m in (model, loop.model):
            change(m)
        for size in (BATCH, 7):
            x, y = batch(size)
            x = x.to(model.first.weight.dtype)
            torch.manual_seed(0)
            expected = loop(x, y)
            torch.manual_seed(0)
            assert torch.equal(expected, step(x, y))
            assert_equal(everything(loop.model, loop.optimizer), everything(model, optimizer))


@pytest.mark.parametrize("options", [{"max_graphs": 1}, {"on_new_shape": "eager"}])
def test_what_gets_no_graph_runs_as_the_loop(options):
    model = Net()
    step = compare(model, OPTIMIZERS["sgd"], [batch(), batch(7), batch()], **options)
    assert len(step._graphs) == 1


def test_a_wide_step_needs_much_less():
    torch.set_num_threads(1)
    model = nn.Sequential(*[nn.Linear(512, 512) for _ in range(8)])
    x = torch.randn(16, 512)
    step = torch_ext.training_step(
        model, nn.functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1), (x, x)
    )
    report = step.report
    assert report.status == "optimal"
    assert report.measured_peak_bytes < 0.4 * report.measured_original_peak_bytes
    step(x, x)
    with torch_ext.measure_peak() as memory:
        step(x, x)
    assert abs(memory.peak_bytes - report.measured_peak_bytes) < 64 * 1024
    assert abs(report.peak_bytes - report.measured_peak_bytes) < 64 * 1024
    assert "backward hooks" in str(report)


def test_a_step_that_needs_more_runs_as_the_loop(monkeypatch):
    monkeypatch.setattr(planned_graph, "_verify", lambda *_: planned_graph.Verified("", 1, 2, 0))
    step = compare(Net(), OPTIMIZERS["sgd"], [batch(), batch()])
    assert "needs more than the eager loop" in step.report.reason
    assert all(graph.captured is None for graph in graphs_of(step))


def test_a_step_that_ran_with_less_than_its_bound_proves_nothing(monkeypatch):
    monkeypatch.setattr(
        planned_graph, "_verify", lambda *_: planned_graph.Verified("", 10**9, 1, 0)
    )
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model)
    step = torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, batch())
    report = step.report
    assert (report.status, report.lower_bound_bytes, report.proof) == ("feasible", 0, "")
    assert "nothing is proven" in report.reason


def test_nothing_to_gain_is_said():
    model = nn.Linear(WIDTH, CLASSES, bias=False)
    step = torch_ext.training_step(
        model, nn.functional.cross_entropy, OPTIMIZERS["sgd"](model), batch()
    )
    assert [reason.kind for reason in step.report.reasons] == ["optimal"]
    assert step.report.status == "optimal"


def test_a_step_that_computes_something_else_is_refused(monkeypatch):
    model = Net()
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: None)  # unlike our update
    assert "does not do what the loop does" in refusal(model, OPTIMIZERS["sgd"](model))


# --- what is refused, and that nothing is changed by it -------------------------------------------


@pytest.mark.parametrize("option", ["foreach", "fused"])
def test_another_form_of_the_optimizer(option):
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), **{option: True})
    assert f"{option}=False" in refusal(model, optimizer)


def test_control_flow_that_depends_on_data_names_the_line():
    class Asking(Net):
        def forward(self, x):
            x = super().forward(x)
            if x.sum() > 0:  # this line
                x = x * 2
            return x

    model = Asking()
    message = refusal(model, OPTIMIZERS["sgd"](model))
    assert "test_training.py" in message
    assert "# this line" in message


def test_a_model_that_raises():
    class Raising(Net):
        def forward(self, x):
            raise ZeroDivisionError("on purpose")

    model = Raising()
    optimizer = OPTIMIZERS["sgd"](model)
    before = copy.deepcopy(everything(model, optimizer))
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, batch())
    assert_equal(before, everything(model, optimizer))


def test_a_tensor_that_is_no_buffer_and_changes():
    class Counts(Net):
        def __init__(self) -> None:
            super().__init__()
            self.calls = torch.zeros(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x) / self.calls

    with pytest.raises(UnsupportedError, match=r"add_.*register it as a buffer"):
        compare(Counts(), OPTIMIZERS["sgd"], [batch()])


def test_too_little_memory_for_capturing_changes_nothing():
    class Huge(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.zeros(1 << 50).sum()

    model = Huge()
    optimizer = OPTIMIZERS["adam"](model)
    before = copy.deepcopy(everything(model, optimizer))
    random_state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="allocate"):
        torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, batch())
    assert_equal(before, everything(model, optimizer))
    assert torch.equal(random_state, torch.get_rng_state())


def test_sparse_gradients():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(100, CLASSES, sparse=True)

        def forward(self, x):
            return self.table(x)

    model = Sparse()
    index = torch.arange(BATCH)
    message = refusal(model, OPTIMIZERS["sgd"](model), (index, batch()[1]))
    assert "sparse" in message


def test_complex_parameters():
    model = nn.Linear(WIDTH, CLASSES, dtype=torch.complex64)
    assert "complex" in refusal(model, OPTIMIZERS["sgd"](model))


def test_no_parameters():
    model = nn.ReLU()
    unrelated = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    assert "no parameters" in refusal(model, unrelated)


def test_hooks():
    model = Net()
    model.last.weight.register_hook(lambda gradient: gradient * 2)
    assert "last.weight" in refusal(model, OPTIMIZERS["sgd"](model))


def test_a_loss_that_is_no_number():
    model = Net()
    message = refusal(model, OPTIMIZERS["sgd"](model), loss_fn=lambda logits, target: logits)
    assert "one element" in message


def test_an_interrupt_says_what_it_leaves_behind():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model)
    step = torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, batch())

    class Interrupting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.native_batch_norm_backward.default:
                raise KeyboardInterrupt
            return func(*args, **(kwargs or {}))

    with pytest.raises(KeyboardInterrupt) as caught, Interrupting():
        step(*batch())
    assert "checkpoint" in caught.value.__notes__[0]
    assert step(*batch()).isfinite()


@pytest.mark.parametrize(
    "options",
    [
        *({"accumulate": value} for value in (0, "2", True, 1.5, None)),
        *({"max_graphs": value} for value in (0, "2", 2.0)),
        *({"on_new_shape": value} for value in ("guess", None, torch.ones(2))),
        *({"runtime": value} for value in ("jit", None)),
        *({"clip_grad_norm": value} for value in ("1", -1, float("nan"), True, torch.tensor(1.0))),
        *({"clip_grad_value": value} for value in ("1", -1, float("nan"), [1.0])),
        *({"time_budget": value} for value in ("2", -1, float("nan"), None)),
        *({"example_batch": value} for value in (torch.ones(2, 2), 3, None, "batch")),
    ],
    ids=str,
)
def test_bad_options(options):
    model = Net()
    given = {"example_batch": batch(), **options}
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be .*, not ") as caught:
        torch_ext.training_step(
            model, nn.functional.cross_entropy, OPTIMIZERS["sgd"](model), **given
        )
    assert len(str(caught.value).splitlines()) == 1


FREES_MUCH = """
import pathlib, sys, torch
from torch_ext.memory.process import return_free_memory

def resident():
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))

start = resident()
blocks = [torch.ones(2**16) for _ in range(800)]
grown = resident() - start
kept = blocks[:: int(sys.argv[1])]
del blocks
return_free_memory()
print((resident() - start) / grown)
"""


@pytest.mark.parametrize(
    ("malloc", "kept_of"),
    [("", 100), ("jemalloc", 100), ("tcmalloc_minimal", 100), ("mimalloc", 400)],
)
def test_malloc_gives_back_what_was_freed(malloc, kept_of):
    """mimalloc gives back segments, of 64 MiB, in which nothing is kept."""
    library = ctypes.util.find_library(malloc) if malloc else ""
    if library is None:
        pytest.skip(f"{malloc} is not installed")
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "LD_PRELOAD": library, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", FREES_MUCH, str(kept_of)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5


def test_capturing_leaves_no_example_values_behind(monkeypatch):
    """Each has a stack of Python's, if make_fx makes them: 20 MiB for 1,668 ops."""

    def alive():
        gc.collect()
        return sum(issubclass(type(known), FakeTensor) for known in gc.get_objects())

    modes = []
    enter = FakeTensorMode.__init__

    def counted(mode, *args, **kwargs):
        modes.append(mode)
        enter(mode, *args, **kwargs)

    monkeypatch.setattr(FakeTensorMode, "__init__", counted)
    before = alive()
    model = Net()
    adam = OPTIMIZERS["adam"](model)
    step = torch_ext.training_step(model, nn.functional.cross_entropy, adam, batch())
    graphs = [one.captured.module.graph for one in graphs_of(step)]
    inputs = [node for graph in graphs for node in graph.nodes if "val" in node.meta]
    assert all(node.op == "placeholder" for node in inputs)
    assert alive() - before == len(inputs)
    assert len(modes) == len(graphs) == 2
