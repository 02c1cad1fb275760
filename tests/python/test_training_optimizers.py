"""Optimizers of which only their own code knows what they do: one node per parameter runs it."""

import copy
import re

import pytest
import torch
from torch import nn
from training_loops import (
    CLASSES,
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
from torch_ext.fx.probe import run_probe
from torch_ext.fx.program import order_edges
from torch_ext.fx.writing import Writing
from torch_ext.training import UnsupportedError
from torch_ext.training.modes import of_a_graph
from torch_ext.training.planned_graph import copied

pytestmark = pytest.mark.usefixtures("with_gradients")

STEPS, DEPTH, SIDE = 12, 8, 128  # more than RAdam needs for its other branch


class Plain(torch.optim.Optimizer):
    """What a user writes: state per parameter, options in groups, all else in `change`."""

    def __init__(self, parameters, lr=1e-2, **options):
        super().__init__(parameters, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.change(parameter, self.state[parameter], group)

    def change(self, parameter, state, group):
        raise NotImplementedError


class Lion(Plain):
    """Source: Chen et al., Symbolic Discovery of Optimization Algorithms, 2023."""

    def change(self, parameter, state, group):
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        parameter.mul_(1 - group["lr"] * 0.1)
        parameter.add_(mean.lerp(parameter.grad, 0.1).sign_(), alpha=-group["lr"])
        mean.lerp_(parameter.grad, 0.01)


class Branching(Plain):
    """Asks its state for a number and leads another way at every third step."""

    def change(self, parameter, state, group):
        count = state.setdefault("count", torch.zeros((), dtype=torch.int64))
        state["seen"] = state.get("seen", 0.0) + float(parameter.grad.abs().max())
        count += 1
        if count.item() % 3 == 0:
            slow = state.setdefault("slow", parameter.clone())
            slow.lerp_(parameter, 0.5)
            parameter.copy_(slow)
        elif state["seen"] > 0:
            parameter.sub_(parameter.grad, alpha=group["lr"])


class WritingToGradients(Plain):
    """Decays and normalises the gradient where it is."""

    def change(self, parameter, state, group):
        parameter.grad.add_(parameter, alpha=1e-2)
        parameter.grad.div_(parameter.grad.norm() + 1e-6)
        parameter.sub_(parameter.grad, alpha=group["lr"])


class Noisy(Plain):
    """At every fourth step it draws for each parameter, in the order of the groups."""

    def change(self, parameter, state, group):
        parameter.sub_(parameter.grad, alpha=group["lr"])
        state["count"] = state.get("count", 0) + 1
        if state["count"] % 4 == 0:
            parameter.add_(parameter.grad.normal_(), alpha=1e-3)


class Growing(Plain):
    """Its state grows for ever."""

    def change(self, parameter, state, group):
        state.setdefault("norms", []).append(float(parameter.grad.norm()))
        parameter.sub_(parameter.grad, alpha=group["lr"])


class Counting(Plain):
    """Counts its steps on itself and in its groups, and goes on by the counts."""

    def __init__(self, parameters, lr=1e-2):
        super().__init__(parameters, lr, count=0, weights=0.0)
        self.count = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            group["count"] += 1
            group["weights"] += group["lr"] ** 2
            for parameter in group["params"]:
                if parameter.grad is not None:
                    rate = group["lr"] / (self.count + group["count"] + group["weights"])
                    parameter.sub_(parameter.grad, alpha=rate)


class Assigning(Plain):
    """Gives the parameter other memory."""

    @torch.enable_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data = parameter.data - group["lr"] * parameter.grad


class Lookahead(torch.optim.Optimizer):
    """Source: Zhang et al., Lookahead Optimizer: k steps forward, 1 step back, 2019."""

    def __init__(self, base):
        self.base = base
        super().__init__(base.param_groups, {})
        self.param_groups = base.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        self.base.step()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state.setdefault("slow", parameter.clone())
                    state["count"] = state.get("count", 0) + 1
                    if state["count"] % 5 == 0:
                        parameter.copy_(state["slow"].lerp_(parameter, 0.5))


def groups(model):
    """Not in the order of the model."""
    parameters = [one for one in reversed(list(model.parameters())) if one.requires_grad]
    return [{"params": parameters[::2]}, {"params": parameters[1::2], "lr": 0.02}]


OPTIMIZERS = {
    "adafactor": lambda m: torch.optim.Adafactor(m.parameters(), weight_decay=0.1),
    "adafactor, groups": lambda m: torch.optim.Adafactor(groups(m), eps=(1e-6, 1e-3)),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters()),
    "rmsprop, all options": lambda m: torch.optim.RMSprop(
        groups(m), momentum=0.9, centered=True, weight_decay=1e-3, maximize=True
    ),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr_decay=0.1, weight_decay=1e-3),
    "nadam": lambda m: torch.optim.NAdam(groups(m), weight_decay=1e-2),
    "radam": lambda m: torch.optim.RAdam(groups(m), decoupled_weight_decay=True, weight_decay=0.1),
    "adadelta": lambda m: torch.optim.Adadelta(m.parameters(), weight_decay=1e-3),
    "adamax": lambda m: torch.optim.Adamax(groups(m), weight_decay=1e-3),
    "asgd": lambda m: torch.optim.ASGD(m.parameters(), t0=3),
    "rprop": lambda m: torch.optim.Rprop(m.parameters()),
    "lion": lambda m: Lion(groups(m)),
    "branching": lambda m: Branching(m.parameters()),
    "writing to gradients": lambda m: WritingToGradients(groups(m)),
    "noisy": lambda m: Noisy(groups(m)),
    "growing": lambda m: Growing(groups(m)),
    "counting": lambda m: Counting(groups(m)),
    "assigning": lambda m: Assigning(m.parameters()),
    "lookahead": lambda m: Lookahead(torch.optim.AdamW(groups(m))),
}
OF_TORCH = [name for name in OPTIMIZERS if name.partition(",")[0] in torch.optim.__dict__]


def stack():
    torch.manual_seed(0)
    layers = (layer for _ in range(DEPTH) for layer in (nn.Linear(SIDE, SIDE), nn.ReLU()))
    return nn.Sequential(*layers)


def wide_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, SIDE, generator=generator)
    return x, torch.randint(0, SIDE, (4,), generator=generator)


def batches(count=STEPS):
    return [batch(seed=number) for number in range(count)]


def options_of(optimizer):
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_the_loop(name):
    kept = []

    def make(model):
        kept.append(OPTIMIZERS[name](model))
        return kept[-1]

    step = compare(Net(), make, batches())
    assert step.report.identical
    assert len(graphs_of(step)) == 1
    loop, ours = kept
    assert options_of(loop) == options_of(ours)
    assert getattr(loop, "count", None) == getattr(ours, "count", None)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_needs_what_was_planned_and_less_than_the_loop(name):
    model = stack()
    optimizer = OPTIMIZERS[name](model)
    step = torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, wide_batch())
    report = step.report
    for number in range(STEPS):
        values = wide_batch(number)
        with torch_ext.measure_peak() as memory:
            step(*values)
    assert memory.peak_bytes == report.measured_peak_bytes == report.peak_bytes
    assert report.peak_bytes < report.measured_original_peak_bytes - (DEPTH - 2) * SIDE * SIDE * 4
    assert report.measured_hooks_peak_bytes is not None
    assert report.state_bytes == sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


@pytest.mark.parametrize("name", ["adafactor, groups", "radam", "lion", "counting", "noisy"])
@pytest.mark.parametrize("option", ["clip_grad_norm", "clip_grad_value", "accumulate"])
def test_clipping_and_accumulation(name, option):
    value = {"clip_grad_norm": 0.1, "clip_grad_value": 1e-3, "accumulate": 2}[option]
    model = Net()
    loop = Loop(model, OPTIMIZERS[name])
    optimizer = OPTIMIZERS[name](model)
    step = torch_ext.training_step(model, loop.loss_fn, optimizer, batch(), **{option: value})
    clip = getattr(nn.utils, f"{option}_", lambda parameters, _: None)
    for number, values in enumerate(batches()):
        torch.manual_seed(number)
        update = option != "accumulate" or number % 2 == 1
        expected = loop(*values, update=update, clip=lambda p: clip(p, value))
        torch.manual_seed(number)
        assert torch.equal(expected.detach(), step(*values))
        assert_equal(everything(loop.model, loop.optimizer), everything(model, optimizer))
    assert len(graphs_of(step)) == (2 if option == "accumulate" else 1)


def test_rates_and_options_are_read_at_every_step():
    def change(number, model, optimizer):
        for place, group in enumerate(optimizer.param_groups):
            group["lr"] = 1e-3 * (number + place + 1)
            group["weight_decay"] = 0.0 if number % 2 else 1e-2

    step = compare(Net(), OPTIMIZERS["rmsprop, all options"], batches(), change=change)
    assert len(graphs_of(step)) == 1


def test_schedulers_need_no_new_graph():
    model = Net()
    loop = Loop(model, OPTIMIZERS["nadam"])
    optimizer = OPTIMIZERS["nadam"](model)
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(one, max_lr=0.1, total_steps=20)
        for one in (loop.optimizer, optimizer)
    ]
    step = torch_ext.training_step(model, loop.loss_fn, optimizer, batch())
    for number, values in enumerate(batches()):
        for run in (loop, step):
            torch.manual_seed(number)
            run(*values)
        for scheduler in schedulers:
            scheduler.step()
        assert_equal(everything(loop.model, loop.optimizer), everything(model, optimizer))
        assert options_of(loop.optimizer) == options_of(optimizer)
    assert len(graphs_of(step)) == 1


@pytest.mark.parametrize("name", ["adafactor", "radam", "branching", "lookahead"])
def test_state_may_be_replaced_and_parameters_frozen(name):
    kept = {}

    def change(number, model, optimizer):
        if number == 2:
            kept[id(optimizer)] = copy.deepcopy(optimizer.state_dict())
        elif number == 5:
            optimizer.load_state_dict(kept[id(optimizer)])
        elif number == 7:
            optimizer.state.clear()
        elif number in (9, 10):
            model.second.requires_grad_(number == 10)

    step = compare(Net(), OPTIMIZERS[name], batches(), change=change)
    assert len(graphs_of(step)) == 2


def test_another_algorithm_is_looked_at_anew():
    """An option that is no number may switch to what looks at other parameters."""

    class Switching(Plain):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                updated = [one for one in group["params"] if one.grad is not None]
                norm = sum(float(one.grad.norm()) for one in updated)
                for one in updated:
                    one.sub_(one.grad, alpha=group["lr"] / (norm if group["normed"] else 1.0))

    model = Net()
    optimizer = Switching(model.parameters(), normed=False)
    step = torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, batch())
    step(*batch())
    before = copy.deepcopy(everything(model, optimizer))
    optimizer.param_groups[0]["normed"] = True
    with pytest.raises(UnsupportedError, match="Switching does not update each parameter"):
        step(*batch())
    assert_equal(before, everything(model, optimizer))


def test_capturing_leaves_the_optimizer_alone():
    model = Net()
    optimizer = OPTIMIZERS["counting"](model)
    parameters = [group["params"] for group in optimizer.param_groups]
    torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, batch())
    assert optimizer.count == 0
    assert not optimizer.state
    assert [group["count"] for group in optimizer.param_groups] == [0, 0]
    assert all(g["params"] is p for g, p in zip(optimizer.param_groups, parameters, strict=True))


def updates_of(step):
    [graph] = graphs_of(step)
    nodes = graph.captured.module.graph.nodes
    return [node for node in nodes if isinstance(node.target, Writing)]


def test_updates_come_after_what_reads_the_parameter_and_before_other_gradients():
    step = compare(stack(), OPTIMIZERS["rmsprop"], [wide_batch()])
    updates = updates_of(step)
    assert len(updates) == 2 * DEPTH
    for node in updates:
        parameter, gradient, _ = node.args
        assert all(reader < node for reader in parameter.users if reader is not node)
        assert gradient < node
    assert any(updates[0] < node.args[1] for node in updates)


def test_a_gradient_that_others_read_is_written_after_them():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(SIDE, SIDE) for _ in range(4))
            self.shifts = nn.ParameterList(torch.zeros(64, SIDE) for _ in range(4))

        def forward(self, x):
            for layer, shift in zip(self.layers, self.shifts, strict=True):
                x = layer(x).tanh() + shift  # whose gradient goes on to the layer
            return x

    torch.manual_seed(0)
    values = torch.randn(64, SIDE), torch.randint(0, SIDE, (64,))
    step = compare(Shifted(), OPTIMIZERS["writing to gradients"], [values] * 4)
    [graph] = graphs_of(step)
    world = step._world.copy()
    inputs = world.bind(graph.captured, world.look(copied(values)))
    with of_a_graph():
        probe = run_probe(graph.captured.module, inputs)
    edges = order_edges(probe)
    shared = [node for node in updates_of(step) if len(node.args[1].users) > 1]
    assert len(shared) == 4
    for node in shared:
        readers = {reader.name for reader in node.args[1].users if reader is not node}
        assert readers & edges.keys()
        assert readers & edges.keys() <= set(edges[node.name])


def test_a_front_can_be_drawn():
    model = stack()
    values = wide_batch()
    loss_fn, optimizer = nn.functional.cross_entropy, OPTIMIZERS["radam"](model)
    before = copy.deepcopy(everything(model, optimizer))
    front = torch_ext.training_front(model, loss_fn, optimizer, values, points=2)
    assert_equal(before, everything(model, optimizer))
    first = front.points[0]
    assert first.measured_peak_bytes == first.peak_bytes
    assert not any(other.difference for other in front.others)
    peaks = {other.way: other.measured_peak_bytes for other in front.others}
    assert peaks["optimizer in hooks"] < peaks["the loop"]


def test_repeats_leave_updates_alone():
    torch.manual_seed(0)
    layers = (part for _ in range(6) for part in (nn.Linear(SIDE, SIDE), nn.Tanh(), nn.GELU()))
    model = nn.Sequential(*layers)
    values = torch.randn(512, SIDE), torch.randint(0, SIDE, (512,))
    loss_fn, optimizer = nn.functional.cross_entropy, OPTIMIZERS["lion"](model)
    peak_bytes = torch_ext.training_step(model, loss_fn, optimizer, values).report.peak_bytes
    budget = int(0.8 * peak_bytes)
    step = compare(model, OPTIMIZERS["lion"], [values] * 4, memory_budget=budget)
    assert step.report.repeats, step.report.levers
    assert step.report.budget_met
    assert step.report.measured_peak_bytes == step.report.peak_bytes
    assert len(updates_of(step)) == 12


class Failing(Plain):
    """Fails at some parameter, in the middle of its step."""

    fails_at = None

    def change(self, parameter, state, group):
        group["seen"] = True
        self.last = parameter.shape
        if parameter is type(self).fails_at:
            raise RuntimeError("no more")
        parameter.sub_(parameter.grad, alpha=group["lr"])


def test_an_error_in_the_middle_of_an_update_leaves_groups_and_gradients(monkeypatch):
    model = Net()
    optimizer = Failing(groups(model))
    options, parameters = options_of(optimizer), [one["params"] for one in optimizer.param_groups]
    step = torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, batch())
    attributes = dict(vars(optimizer))
    monkeypatch.setattr(Failing, "fails_at", model.second.bias)
    with pytest.raises(RuntimeError, match="no more") as caught:
        step(*batch())
    assert "the step ended in the middle" in caught.value.__notes__[0]
    assert options_of(optimizer) == options
    assert all(g["params"] is p for g, p in zip(optimizer.param_groups, parameters, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert vars(optimizer) == attributes


# --- refused --------------------------------------------------------------------------------------


class GlobalNorm(Plain):
    """Clips by the norm of all gradients, as LAMB's first lines do."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            updated = [one for one in group["params"] if one.grad is not None]
            norm = torch.stack([one.grad.norm() for one in updated]).norm()
            for one in updated:
                one.sub_(one.grad / norm, alpha=group["lr"])


class Chained(Plain):
    """Each parameter's update goes on from the one before."""

    previous = 0.0

    def change(self, parameter, state, group):
        self.previous = float(parameter.grad.mean()) + 0.5 * self.previous
        parameter.sub_(parameter.grad, alpha=group["lr"] * (1 + self.previous))


class ChainedInMemory(Plain):
    """The same by a tensor that it writes to: right in the loop's order and in no other."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.previous = torch.zeros(())

    def change(self, parameter, state, group):
        self.previous.mul_(0.5).add_(parameter.grad.abs().mean())
        parameter.sub_(parameter.grad, alpha=group["lr"] * (1 + self.previous.item()))


class Listing(Plain):
    """Counts in a list on itself, which grows with every call."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.history = []

    def step(self, closure=None):
        self.history.append(len(self.history))
        super().step()


class CountingInState(Plain):
    """Counts under a key that is no parameter."""

    def step(self, closure=None):
        self.state["all"]["count"] = self.state["all"].get("count", 0) + 1
        super().step()


class KeepingGradients(Plain):
    """Keeps the gradient itself for the next step."""

    def change(self, parameter, state, group):
        parameter.sub_(parameter.grad - state.get("last", 0), alpha=group["lr"])
        state["last"] = parameter.grad


class Following(Plain):
    """Lets a frozen parameter of the model follow another."""

    def __init__(self, model):
        super().__init__(model.parameters())
        self.model = model

    def change(self, parameter, state, group):
        parameter.sub_(parameter.grad, alpha=group["lr"])
        if parameter is self.model.first.weight:
            self.model.frozen.weight.lerp_(parameter, 0.1)


class LateNorm(Plain):
    """Looks at all gradients from the eighth step on."""

    @torch.no_grad()
    def step(self, closure=None):
        [group] = self.param_groups
        updated = [one for one in group["params"] if one.grad is not None]
        group["count"] = group.get("count", 0) + 1
        norm = sum(float(one.grad.norm()) for one in updated)
        for one in updated:
            one.sub_(one.grad, alpha=group["lr"] / (norm if group["count"] >= 8 else 1.0))


class InPairs(Plain):
    """Fails where it does not see all parameters."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["params"][0].sub_(group["params"][0].grad / len(group["params"]))
            group["params"][1].sub_(group["params"][1].grad)


for _kind in (Listing, CountingInState):
    _kind.change = Lion.change

REFUSED = {
    "lbfgs": (lambda m: torch.optim.LBFGS(m.parameters()), "LBFGS needs a closure"),
    "sparse": (lambda m: torch.optim.SparseAdam(m.parameters()), "SparseAdam takes sparse"),
    "foreach": (lambda m: torch.optim.RMSprop(m.parameters(), foreach=True), "foreach=False"),
    "tensor rate": (
        lambda m: torch.optim.NAdam(m.parameters(), lr=torch.tensor(1e-3)),
        "lr is a tensor",
    ),
    "norm of all": (
        lambda m: GlobalNorm(m.parameters()),
        "GlobalNorm does not update each parameter as if there were no others: first.weight "
        "differs after updates one by one",
    ),
    "chain": (lambda m: Chained(groups(m)), "Chained does not update each parameter"),
    "chain in memory": (
        lambda m: ChainedInMemory(m.parameters()),
        "ChainedInMemory does not update each parameter",
    ),
    "list": (lambda m: Listing(m.parameters()), r"the optimizer\['history'\]\[\d+\]"),
    "count in state": (
        lambda m: CountingInState(m.parameters()),
        r"the optimizer's state\['all'\]\['count'\] differs",
    ),
    "kept gradient": (lambda m: KeepingGradients(m.parameters()), "let it keep a clone"),
    "follower": (Following, "Following writes to frozen.weight, which is no parameter that it"),
    "late": (lambda m: LateNorm(m.parameters()), "LateNorm does not update each parameter"),
    "fails alone": (
        lambda m: InPairs([m.first.weight, m.first.bias]),
        "over one parameter alone fails.*: IndexError: list index out of range",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    make, sentence = REFUSED[name]
    model = Net()
    optimizer = make(model)
    options, history = options_of(optimizer), list(getattr(optimizer, "history", []))
    text = refusal(model, optimizer)
    assert re.search(sentence, text), text
    assert options_of(optimizer) == options
    assert getattr(optimizer, "history", []) == history


def test_no_torchscript():
    model = Net()
    text = refusal(model, torch.optim.RMSprop(model.parameters()), runtime="torchscript")
    assert text == (
        "the step of RMSprop is Python code, which TorchScript cannot run; use runtime='fx', or "
        "SGD, Adam or AdamW"
    )


def test_sparse_gradients_are_refused():
    words = nn.Embedding(10, CLASSES, sparse=True)
    values = torch.arange(3), torch.arange(3)
    text = refusal(words, torch.optim.Adagrad(words.parameters()), values)
    assert text == "the gradient of model.weight is sparse, which is unsupported"


def test_step_hooks_are_refused():
    model = Net()
    optimizer = torch.optim.RMSprop(model.parameters())
    optimizer.register_step_pre_hook(lambda *_: None)
    assert "step hooks" in refusal(model, optimizer)
