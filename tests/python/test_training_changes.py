"""What becomes of a captured step when model or optimizer are no longer what they were."""

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from training_loops import OPTIMIZERS, batch, compare, everything, graphs_of, refusal

import torch_ext
from torch_ext.training import UnsupportedError

pytestmark = pytest.mark.usefixtures("with_gradients")

WIDTH = 16
SECOND = 2  # the step before which things change


def batches(count=5):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, WIDTH, generator=generator), torch.randn(8, WIDTH, generator=generator))
        for _ in range(count)
    ]


def mlp():
    layers = [nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))


def tied():
    model = mlp()
    model[5].weight = model[4].weight
    return model


def frozen():
    model = mlp()
    model[4].requires_grad_(False)
    return model


def copies_of(model, factor=1.0):
    return {name: value.clone() * factor for name, value in model.state_dict().items()}


def add_new_head(model, optimizer):
    model[5] = nn.Linear(WIDTH, WIDTH)
    optimizer.add_param_group({"params": model[5].parameters(), "lr": 0.03})


def move_to_another_group(model, optimizer):
    moved = optimizer.param_groups[0]["params"].pop()
    optimizer.add_param_group({"params": [moved], "lr": 0.5, "weight_decay": 0.0})


def keep_a_gradient(model, optimizer):
    """The optimizer uses it, although the parameter gets no other any more."""
    model[0].weight.grad = torch.ones(WIDTH, WIDTH)
    model[0].requires_grad_(False)


class Scaled(nn.Module):
    """What it computes depends on shape and dtype of a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        return self.layer(x) * len(self.scale) * (2 if self.scale.dtype == torch.float64 else 1)


def scaled():
    return Scaled()


def transpose_in_memory(model, optimizer):
    model[4].weight.data = model[4].weight.data.t().contiguous().t()


def drop_statistics(model, optimizer):
    model[1].track_running_stats = False
    model[1].running_mean = model[1].running_var = None


def double(module, given, result):
    return result * 2


CHANGES = {
    "a module is replaced": (mlp, lambda m, o: m.__setitem__(5, nn.Linear(WIDTH, WIDTH))),
    "a module is replaced and trained": (mlp, add_new_head),
    "a module is inserted": (mlp, lambda m, o: m.insert(1, nn.Tanh())),
    "a module is removed": (mlp, lambda m, o: m.__delitem__(3)),
    "another activation": (mlp, lambda m, o: m.__setitem__(3, nn.GELU())),
    "all are assigned": (mlp, lambda m, o: m.load_state_dict(copies_of(m, 1.1), assign=True)),
    "weights are tied": (mlp, lambda m, o: setattr(m[5], "weight", m[4].weight)),
    "weights are tied by memory": (
        mlp,
        lambda m, o: setattr(m[5].weight, "data", m[4].weight.data),
    ),
    "weights are untied": (
        tied,
        lambda m, o: setattr(m[5], "weight", nn.Parameter(m[5].weight.detach().clone())),
    ),
    "a parameter goes": (mlp, lambda m, o: setattr(m[5], "bias", None)),
    "a module is frozen": (mlp, lambda m, o: m[4].requires_grad_(False)),
    "a module is unfrozen": (frozen, lambda m, o: m[4].requires_grad_(True)),
    "a buffer is assigned": (mlp, lambda m, o: setattr(m[1], "running_mean", torch.ones(WIDTH))),
    "a buffer is added": (mlp, lambda m, o: m[0].register_buffer("extra", torch.ones(3))),
    "buffers go": (mlp, drop_statistics),
    "a buffer of another shape": (scaled, lambda m, o: setattr(m, "scale", torch.ones(3))),
    "a buffer of another dtype": (scaled, lambda m, o: setattr(m, "scale", torch.ones(1).double())),
    "another layout": (mlp, transpose_in_memory),
    "another class": (mlp, lambda m, o: setattr(m[3], "__class__", nn.Tanh)),
    "dropout.p": (mlp, lambda m, o: setattr(m[2], "p", 0.7)),
    "momentum": (mlp, lambda m, o: setattr(m[1], "momentum", 0.5)),
    "eps": (mlp, lambda m, o: setattr(m[1], "eps", 0.5)),
    "forward of an object": (mlp, lambda m, o: setattr(m[3], "forward", lambda x: x * 3)),
    "a forward hook": (mlp, lambda m, o: m[0].register_forward_hook(double)),
    "a mode of one module": (mlp, lambda m, o: m[1].eval()),
    "a group is added": (mlp, move_to_another_group),
    "a parameter leaves the optimizer": (mlp, lambda m, o: o.param_groups[0]["params"].pop()),
    "weight decay": (mlp, lambda m, o: o.param_groups[0].update(weight_decay=0.1)),
    "a gradient stays": (mlp, keep_a_gradient),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_step_goes_on_as_the_loop(name):
    make, change = CHANGES[name]

    def at_second(number, *of):
        if number == SECOND:
            change(*of)

    compare(
        make(), OPTIMIZERS["adamw"], batches(4), loss_fn=nn.functional.mse_loss, change=at_second
    )


def test_attributes_that_return_have_their_graphs_still():
    def toggle(number, model, optimizer):
        model[2].p = 0.5 if number % 2 else 0.2

    step = compare(
        mlp(), OPTIMIZERS["sgd"], batches(6), loss_fn=nn.functional.mse_loss, change=toggle
    )
    assert len(graphs_of(step)) == 2


def test_graphs_of_modules_that_are_gone_make_room():
    def replace(number, model, optimizer):
        model[3] = nn.Tanh() if number % 2 else nn.GELU()

    step = compare(
        mlp(),
        OPTIMIZERS["sgd"],
        batches(6),
        loss_fn=nn.functional.mse_loss,
        change=replace,
        max_graphs=2,
    )
    assert all(graph.captured is not None for graph in graphs_of(step))


@pytest.mark.parametrize(
    "add_hook",
    [
        lambda m, o: m[0].weight.register_hook(lambda gradient: gradient * 2),
        lambda m, o: m[0].weight.register_post_accumulate_grad_hook(lambda parameter: None),
        lambda m, o: o.register_step_post_hook(lambda *_: None),
        lambda m, o: m[0].compile(),
        lambda m, o: setattr(o, "step", lambda: None),
        lambda m, o: setattr(o, "zero_grad", lambda: None),
    ],
)
def test_what_no_step_can_call_is_refused_before_anything_is_written(add_hook):
    model = mlp()
    optimizer = OPTIMIZERS["adamw"](model)
    step = torch_ext.training_step(model, nn.functional.mse_loss, optimizer, batches()[0])
    step(*batches()[0])
    add_hook(model, optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UnsupportedError, match=r"hooks|compile|replaced"):
        step(*batches()[1])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_hooks_of_all_modules():
    def at_second(number, model, optimizer):
        if number == SECOND and not handles:
            handles.append(register_module_forward_hook(_twice_if_linear))

    handles = []
    try:
        compare(
            mlp(), OPTIMIZERS["sgd"], batches(), loss_fn=nn.functional.mse_loss, change=at_second
        )
    finally:
        handles[0].remove()


def _twice_if_linear(module, given, result):
    return result * 2 if isinstance(module, nn.Linear) else None


def test_another_graph_in_the_middle_is_told(caplog):
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model)
    step = torch_ext.training_step(model, nn.functional.mse_loss, optimizer, batches()[0])
    x, y = batches()[1]
    with caplog.at_level(logging.WARNING, "torch_ext"):
        step(x, y)
        assert not caplog.records
        step(x[:5], y[:5])
    assert "another shape" in caplog.text
    assert "drop_last" in caplog.text


def test_steps_that_the_loop_makes_are_told_once(caplog):
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model)
    step = torch_ext.training_step(
        model, nn.functional.mse_loss, optimizer, batches()[0], on_new_shape="eager"
    )
    x, y = batches()[1]
    with caplog.at_level(logging.WARNING, "torch_ext"):
        for _ in range(3):
            step(x[:5], y[:5])
    assert len(caplog.records) == 1
    assert "the plain loop" in caplog.text


def test_a_step_that_is_no_longer_the_models_is_not_saved(tmp_path):
    model = mlp()
    optimizer = OPTIMIZERS["adamw"](model)
    step = torch_ext.training_step(
        model, nn.functional.mse_loss, optimizer, batches()[0], runtime="torchscript"
    )
    step(*batches()[0])
    step.save(tmp_path / "step.pt")
    model[5] = nn.Linear(WIDTH, WIDTH)
    with pytest.raises(ValueError, match="construct the step anew"):
        step.save(tmp_path / "other.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["step.pt"]


# --- parameters and the optimizer -----------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["fx", "torchscript"])
@pytest.mark.parametrize("options", [{}, {"clip_grad_value": 1e9}])
def test_parameters_outside_of_the_optimizer_accumulate_gradients(runtime, options):
    compare(
        mlp(),
        lambda m: torch.optim.AdamW(m[5].parameters(), lr=0.01),
        batches(),
        loss_fn=nn.functional.mse_loss,
        runtime=runtime,
        **options,
    )


def test_an_optimizer_of_more_than_the_model():
    other = nn.Linear(3, 3)
    compare(
        mlp(),
        lambda m: torch.optim.SGD([*m.parameters(), *other.parameters()], lr=0.1),
        batches(),
        loss_fn=nn.functional.mse_loss,
    )


@pytest.mark.parametrize("is_trained", [False, True])
def test_modules_that_are_not_registered(is_trained):
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(WIDTH, WIDTH)
            self.rest = [nn.Linear(WIDTH, WIDTH)]

        def forward(self, x):
            return self.rest[0](self.first(x))

    model = Hidden()
    hidden = model.rest[0].parameters() if is_trained else ()
    optimizer = torch.optim.SGD([*model.parameters(), *hidden], lr=0.1)
    message = refusal(model, optimizer, batches()[0], nn.functional.mse_loss)
    assert "rest[0].weight" in message
    assert "nn.ModuleList" in message


# --- state in attributes --------------------------------------------------------------------------


class Stateful(nn.Module):
    """`update` writes to an attribute in every forward pass."""

    def __init__(self, update):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.h = torch.zeros(8, WIDTH)
        self.held = {"a": [torch.zeros(8, WIDTH)]}
        self.count = 0
        self.note = type("Note", (), {})()
        self.note.h = torch.zeros(8, WIDTH)
        self.array = np.zeros(3)
        self.update = update

    def forward(self, x):
        y = self.layer(x) + self.h + self.held["a"][0] + self.note.h + self.count + self.array[0]
        self.update(self, y.detach())
        return y


def assign(module, y):
    module.h = y


def count_up(module, y):
    module.count += 1


STATES = {
    "h": assign,
    "h (in place)": lambda module, y: module.h.add_(y),
    "held['a'][0]": lambda module, y: module.held["a"].__setitem__(0, y),
    "count": count_up,
    "note.h": lambda module, y: setattr(module.note, "h", y),
    "array": lambda module, y: module.array.__iadd__(1),
}


@pytest.mark.parametrize("name", STATES)
def test_state_in_an_attribute_is_refused_by_name(name):
    model = Stateful(STATES[name])
    message = refusal(model, OPTIMIZERS["sgd"](model), batches()[0], nn.functional.mse_loss)
    assert f" {name.partition(' ')[0]}" in message
    assert "register" in message


class Outside(nn.Module):
    """Adds what the last call has given."""

    def __init__(self, last, remember):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.last, self.remember = last, remember

    def forward(self, x):
        y = self.layer(x) + self.last()
        self.remember(y.detach())
        return y


def test_state_in_a_closure_is_named():
    state = {"h": torch.zeros(8, WIDTH)}
    model = Outside(lambda: state["h"], lambda y: state.update(h=y))
    refused = refusal(model, OPTIMIZERS["sgd"](model), batches()[0], nn.functional.mse_loss)
    assert "last.state['h']" in refused


_outside = [torch.zeros(8, WIDTH)]


def recall():
    return _outside[-1]


def test_state_that_nobody_looks_into_shows_in_the_second_step():
    model = Outside(lambda: recall(), _outside.append)
    del _outside[1:]
    refused = refusal(model, OPTIMIZERS["sgd"](model), batches()[0], nn.functional.mse_loss)
    assert "differs" in refused


def test_a_cache_that_is_filled_once_is_no_state():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)
            self.positions = None

        def forward(self, x):
            if self.positions is None:
                self.positions = torch.arange(float(WIDTH))
            return self.layer(x) + self.positions

    step = compare(Caching(), OPTIMIZERS["adamw"], batches(), loss_fn=nn.functional.mse_loss)
    assert len(graphs_of(step)) == 1


def test_what_only_the_first_step_does_is_refused():
    class Starting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)
            self.has_started = False

        def forward(self, x):
            if not self.has_started:
                with torch.no_grad():
                    self.layer.weight.mul_(0.5)
                self.has_started = True
            return self.layer(x)

    model = Starting()
    message = refusal(model, OPTIMIZERS["sgd"](model), batches()[0], nn.functional.mse_loss)
    assert "has_started" in message


def test_a_buffer_that_the_first_step_makes_is_refused():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)
            self.register_buffer("cache", None)

        def forward(self, x):
            if self.cache is None:
                self.cache = torch.ones(WIDTH)
            return self.layer(x) + self.cache

    model = Caching()
    message = refusal(model, OPTIMIZERS["sgd"](model), batches()[0], nn.functional.mse_loss)
    assert "buffer cache" in message
    assert model.cache is None


@pytest.mark.parametrize("runtime", ["fx", "torchscript"])
def test_a_buffer_that_forward_assigns_is_carried(runtime, tmp_path):
    class Averaging(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)
            self.register_buffer("mean", torch.zeros(WIDTH))

        def forward(self, x):
            y = self.layer(x)
            self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
            return y - self.mean

    model = Averaging()
    step = compare(
        model, OPTIMIZERS["sgd"], batches(), loss_fn=nn.functional.mse_loss, runtime=runtime
    )
    if runtime == "torchscript":
        step.save(tmp_path / "step.pt")
        file = torch.jit.load(tmp_path / "step.pt")
        with torch.jit.optimized_execution(False):
            file(*batches()[0])
        step(*batches()[0])
        assert torch.equal(model.mean, file.model.mean)


def test_an_attribute_that_is_written_between_steps():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)
            self.scale = torch.ones(WIDTH)
            self.sizes = {"a": [1.0, 2.0]}

        def forward(self, x):
            return self.layer(x) * self.scale * self.sizes["a"][1]

    def change(number, model, optimizer):
        if number == SECOND:
            model.scale.mul_(2)
        if number == SECOND + 1:
            model.sizes["a"][1] = 3.0

    compare(Sized(), OPTIMIZERS["sgd"], batches(), loss_fn=nn.functional.mse_loss, change=change)


def test_everything_is_named_in_the_comparison():
    """So that the tests above compare what they say."""
    model = mlp()
    optimizer = OPTIMIZERS["adamw"](model)
    model(batch()[0][:, :WIDTH]).sum().backward()
    optimizer.step()
    names = everything(model, optimizer)
    assert {"1.running_mean", "0.weight", "0.weight.grad", "0.weight exp_avg"} <= names.keys()
