"""Models, loops and comparisons for the tests of training steps."""

import contextlib
import copy

import pytest
import torch
from torch import nn

import torch_ext
from torch_ext.training import UnsupportedError

BATCH, WIDTH, CLASSES = 32, 64, 10


class Net(nn.Module):
    """Batch norm, dropout, a shared weight, a frozen one, one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.drop = nn.Dropout(0.2)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.again = nn.Linear(WIDTH, WIDTH, bias=False)
        self.again.weight = self.second.weight
        self.frozen = nn.Linear(WIDTH, WIDTH)
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = self.drop(self.again(torch.relu(self.second(x))))
        return self.last(self.frozen(x) + x)


def batch(size: int = BATCH, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, WIDTH, generator=generator)
    return x, torch.randint(0, CLASSES, (size,), generator=generator)


def everything(model, optimizer):
    """What a step may change, by name."""
    tensors = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        tensors[f"{name}.grad"] = parameter.grad
        for item, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name} {item}"] = value
    return tensors


def assert_equal(expected, actual):
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        other = actual[name]
        are_tensors = isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor)
        assert torch.equal(value, other) if are_tensors else value is other or value == other, name


class Loop:
    """The eager loop, on copies of a model and its optimizer."""

    def __init__(
        self, model, make_optimizer, loss_fn=nn.functional.cross_entropy, around=None, twin=None
    ) -> None:
        """`around`: a context for forward pass and loss. `twin`: an equal model, if not a copy."""
        torch.manual_seed(1)
        self.model = copy.deepcopy(model) if twin is None else twin
        self.loss_fn = loss_fn
        self.optimizer = make_optimizer(self.model)
        self.around = around or contextlib.nullcontext

    def __call__(self, *values, update=True, clip=lambda parameters: None, **named):
        with self.around():
            if named:
                result = self.model(**named)
                result = result.loss if self.loss_fn is None else self.loss_fn(result)
            else:
                result = self.loss_fn(self.model(*values[:-1]), values[-1])
        (result[0] if isinstance(result, tuple) else result).backward()
        if update:
            clip(list(self.model.parameters()))
            self.optimizer.step()
            self.optimizer.zero_grad()
        return result


def compare(
    model,
    make_optimizer,
    batches,
    *,
    loss_fn=nn.functional.cross_entropy,
    around=None,
    twin=None,
    change=lambda number, model, optimizer: None,
    **options,
):
    """Run both over the batches and compare after every step; return the step.

    `around`: a context, of the loop's forward pass and of calls of the step. `change`: called with
    the number of a step, model and optimizer before it.
    """
    loop = Loop(model, make_optimizer, loss_fn, around, twin)
    optimizer = make_optimizer(model)
    step = torch_ext.training_step(model, loss_fn, optimizer, batches[0], **options)
    for number, values in enumerate(batches):
        for one in ((loop.model, loop.optimizer), (model, optimizer)):
            torch.manual_seed(number)
            change(number, *one)
        arguments, named = ((), values) if isinstance(values, dict) else (values, {})
        torch.manual_seed(number)
        expected, expected_random = loop(*arguments, **named), torch.get_rng_state()
        torch.manual_seed(number)
        with loop.around():
            actual, actual_random = step(*arguments, **named), torch.get_rng_state()
        assert torch.equal(expected_random, actual_random)
        if not isinstance(expected, tuple):
            expected, actual = (expected,), (actual,)
        for a, b in zip(expected, actual, strict=True):
            assert torch.equal(a.detach(), b)
            assert not b.requires_grad
        assert_equal(everything(loop.model, loop.optimizer), everything(model, optimizer))
    return step


def graphs_of(step):
    """The planned graphs that it has captured."""
    return [graph for graphs in step._graphs.values() for graph in graphs]


def groups_of(model):
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": weights, "lr": 0.05}, {"params": others, "weight_decay": 0.0}]


OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "sgd, all options": lambda m: torch.optim.SGD(
        m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True
    ),
    "sgd, dampened, maximized": lambda m: torch.optim.SGD(
        m.parameters(), lr=1e-3, momentum=0.9, dampening=0.3, maximize=True
    ),
    "sgd, groups": lambda m: torch.optim.SGD(groups_of(m), lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2),
    "adam, all options": lambda m: torch.optim.Adam(
        m.parameters(), lr=1e-2, weight_decay=1e-2, amsgrad=True, betas=(0.8, 0.99)
    ),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2),
    "adamw, groups, maximized": lambda m: torch.optim.AdamW(
        groups_of(m), lr=1e-3, maximize=True, amsgrad=True
    ),
}


def refusal(model, optimizer, values=None, loss_fn=nn.functional.cross_entropy, **options):
    before = copy.deepcopy(everything(model, optimizer))
    state = torch.get_rng_state()
    with pytest.raises(UnsupportedError) as caught:
        torch_ext.training_step(model, loss_fn, optimizer, values or batch(), **options)
    assert_equal(before, everything(model, optimizer))
    assert torch.equal(state, torch.get_rng_state())
    return str(caught.value)
