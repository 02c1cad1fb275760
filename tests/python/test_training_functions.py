"""Losses and hooks that are functions, and what they reach; batches of all layouts."""

import copy
import functools

import pytest
import torch
from torch import nn
from training_loops import OPTIMIZERS, Loop, assert_equal, compare, everything, refusal

import torch_ext

pytestmark = pytest.mark.usefixtures("with_gradients")

WIDTH, CLASSES = 8, 5
weight = 1.0  # of a loss, as in a notebook


def batches(count=3):
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(4, WIDTH, generator=generator),
            torch.randint(0, CLASSES, (4,), generator=generator),
        )
        for _ in range(count)
    ]


def classifier():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))


class Trainer:
    """Holds what its loss depends on."""

    beta = 0.5

    def loss(self, result, target):
        return nn.functional.cross_entropy(result, target) * self.beta


def with_variable(change):
    """A loss that reads a variable of its closure, and what changes it."""
    beta = 0.5

    def loss(result, target):
        return nn.functional.cross_entropy(result, target) * beta

    def set_beta():
        nonlocal beta
        beta = 0.1

    return loss, set_beta


def of_a_closure():
    return with_variable(None)


def of_a_method():
    trainer = Trainer()
    return trainer.loss, lambda: setattr(trainer, "beta", 0.1)


def of_a_partial():
    weights = torch.ones(CLASSES)
    loss = functools.partial(nn.functional.cross_entropy, weight=weights)
    return loss, lambda: weights[0].fill_(3)


def of_the_module():
    def loss(result, target):
        return nn.functional.cross_entropy(result, target) * weight

    return loss, lambda: globals().update(weight=0.1)


@pytest.mark.parametrize("make", [of_a_closure, of_a_method, of_a_partial, of_the_module])
def test_what_a_loss_reads_is_watched(make, monkeypatch):
    monkeypatch.setitem(globals(), "weight", 1.0)
    loss_fn, change = make()
    model = classifier()
    loop = Loop(model, OPTIMIZERS["adamw"], loss_fn)
    optimizer = OPTIMIZERS["adamw"](model)
    step = torch_ext.training_step(model, loss_fn, optimizer, batches()[0])
    for number, values in enumerate(batches()):
        if number == 1:
            change()
        assert torch.equal(loop(*values).detach(), step(*values))
        assert_equal(everything(loop.model, loop.optimizer), everything(model, optimizer))


def test_a_teacher_in_a_closure():
    """It may be replaced, parameter by parameter."""
    model = classifier()
    teacher = copy.deepcopy(model)
    x = batches()[0][0]

    def loss_fn(result, target):
        with torch.no_grad():
            wanted = teacher(x)
        return nn.functional.mse_loss(result, wanted)

    def change(number, model, optimizer):
        values = {name: value * 1.5 for name, value in teacher.state_dict().items()}
        teacher.load_state_dict(values, assign=number > 1)

    step = torch_ext.training_step(model, loss_fn, OPTIMIZERS["sgd"](model), batches()[0])
    for number in range(4):
        change(number, None, None)
        expected = loss_fn(model(x), None).item()
        assert step(x, batches()[0][1]).item() == expected


def penalty(model):
    return lambda result, target: sum(p.abs().sum() for p in model.parameters()) + result.sum()


def norm(model):
    return lambda result, target: result.sum() * model[0].weight.detach().norm()


def discriminator(model):
    judge = nn.Sequential(nn.Linear(CLASSES, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    judge_before = copy.deepcopy(judge.state_dict())

    def loss(result, target):
        return judge(result).sum()

    loss.untouched = lambda: (
        all(torch.equal(judge_before[name], value) for name, value in judge.state_dict().items())
        and all(parameter.grad is None for parameter in judge.parameters())
    )
    return loss


def generator(model):
    own = torch.Generator().manual_seed(0)
    before = own.get_state()

    def loss(result, target):
        return (result * torch.rand(result.shape, generator=own)).sum()

    loss.untouched = lambda: torch.equal(own.get_state(), before)
    return loss


REFUSED = {
    "a penalty on the model": (penalty, "nn.Module that holds"),
    "a norm of the model": (norm, "uses 0.weight"),
    "a discriminator": (discriminator, "loss_fn.judge"),
    "a generator": (generator, "generator of its own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_functions_share_with_all_copies(name):
    make, cause = REFUSED[name]
    model = classifier()
    loss_fn = make(model)
    message = refusal(model, OPTIMIZERS["sgd"](model), batches()[0], loss_fn)
    assert cause in message
    assert getattr(loss_fn, "untouched", lambda: True)()


def test_a_loss_that_holds_a_discriminator():
    class Judged(nn.Module):
        def __init__(self):
            super().__init__()
            self.judge = nn.Sequential(nn.Linear(CLASSES, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

        def forward(self, result, target):
            return self.judge(result).sum()

    model, loss_fn = classifier(), Judged()
    twin, twin_loss = copy.deepcopy((model, loss_fn))
    optimizer, twin_optimizer = OPTIMIZERS["sgd"](model), OPTIMIZERS["sgd"](twin)
    step = torch_ext.training_step(model, loss_fn, optimizer, batches()[0])
    for x, y in batches():
        twin_loss(twin(x), y).backward()
        twin_optimizer.step()
        twin_optimizer.zero_grad()
        step(x, y)
        assert_equal(everything(twin, twin_optimizer), everything(model, optimizer))
        assert_equal(everything(twin_loss, twin_optimizer), everything(loss_fn, optimizer))


# --- batches --------------------------------------------------------------------------------------


class Layouts(nn.Module):
    """Views and an `if` that depend on the layout."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.layer(x if x.is_contiguous() else x * 2)


SLICES = {
    "columns": lambda x: torch.cat([x, x], 1)[:, :WIDTH],
    "rows": lambda x: torch.cat([x, x])[::2],
    "transposed": lambda x: x.t().contiguous().t(),
    "expanded": lambda x: x[:1].expand(4, WIDTH),
    "negative": lambda x: torch._neg_view(x),
    "part of a larger one": lambda x: torch.cat([x, x])[2:6],
}


@pytest.mark.parametrize("name", SLICES)
def test_layouts_of_a_batch(name):
    given = [(SLICES[name](x), y) for x, y in batches()]
    step = compare(Layouts(), OPTIMIZERS["sgd"], given)
    assert len(step._graphs) == 1


def test_words_and_the_next_words():
    def loss_fn(logits, words):
        return nn.functional.cross_entropy(logits.flatten(0, 1), words.reshape(-1))

    model = nn.Sequential(nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 11))
    words = [torch.randint(0, 11, (3, 9)) for _ in range(3)]
    compare(model, OPTIMIZERS["adamw"], [(w[:, :-1], w[:, 1:]) for w in words], loss_fn=loss_fn)


def test_batches_that_require_a_gradient():
    model = classifier()
    x, y = batches()[0]
    message = refusal(model, OPTIMIZERS["sgd"](model), (x.clone().requires_grad_(), y))
    assert "detach" in message
    step = torch_ext.training_step(
        model, nn.functional.cross_entropy, OPTIMIZERS["sgd"](model), (x, y)
    )
    given = x.clone().requires_grad_()
    step(given, y)
    assert given.grad is not None  # by the loop


def test_gradients_of_several_dtypes_are_not_clipped_by_norm():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(WIDTH, WIDTH).bfloat16()
            self.last = nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            return self.last(self.first(x.bfloat16()).float())

    model = Mixed()
    message = refusal(model, OPTIMIZERS["sgd"](model), batches()[0], clip_grad_norm=0.1)
    assert "several dtypes" in message


def test_a_lazy_module_has_a_remedy():
    model = nn.Sequential(nn.LazyLinear(CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(torch_ext.training.UnsupportedError, match="call the model once"):
        torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, batches()[0])


def test_a_distribution_that_checks_its_values_has_a_remedy(monkeypatch):
    class Sampling(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            return torch.distributions.Normal(self.layer(x), 1.0).rsample()

    # torch.compile has switched the checks off for the whole process, if a test used it before.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    model = Sampling()
    assert "validate_args=False" in refusal(model, OPTIMIZERS["sgd"](model), batches()[0])
    torch.distributions.Distribution.set_default_validate_args(False)
    step = compare(model, OPTIMIZERS["sgd"], batches())
    torch.distributions.Distribution.set_default_validate_args(True)
    with pytest.raises(torch_ext.training.UnsupportedError, match="validate_args=False"):
        step(*batches()[0])


def test_a_batch_of_another_structure_fails_as_the_loop_does():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = (torch.ones(2, 4), torch.ones(2, 4))
    step = torch_ext.training_step(model, nn.functional.mse_loss, optimizer, given)
    step(*given)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        step(given)


def test_a_number_of_the_batch_is_named(caplog):
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, CLASSES)

        def forward(self, x, factor):
            return self.layer(x) * factor

    given = [(x, 0.5 + number, y) for number, (x, y) in enumerate(batches(2))]
    compare(Weighted(), OPTIMIZERS["sgd"], given)
    assert "give it as a tensor" in caplog.text
