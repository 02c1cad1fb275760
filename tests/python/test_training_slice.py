"""Slices of training steps: logits, loss and their gradient by blocks of rows, bit for bit."""

import copy

import pytest
import torch
from torch import nn

import torch_ext

ALL = ("order", "overwrite", "slice")
pytestmark = pytest.mark.usefixtures("with_gradients")
ROWS, WIDTH, WORDS = 256, 16, 4000


def head(seed: int = 0) -> nn.Module:
    """Its logits are much larger than all else."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WORDS))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, WORDS, (ROWS,), generator=generator)
    target[::7] = 3
    return torch.randn(ROWS, WIDTH, generator=generator), target


def trained(loss_fn, steps: int = 3, **options):
    """The report, and what is there after some steps of the loop and of ours."""
    model, (x, target) = head(), batch()
    other = copy.deepcopy(model)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (model, other)]
    step = torch_ext.training_step(model, loss_fn, optimizers[0], (x, target), **options)
    losses = [], []
    for _ in range(steps):
        losses[0].append(step(x, target))
        loss = loss_fn(other(x), target)
        loss.backward()
        optimizers[1].step()
        optimizers[1].zero_grad()
        losses[1].append(loss.detach())
    return step.report, (*losses[0], *model.parameters()), (*losses[1], *other.parameters())


@pytest.mark.parametrize("runtime", ["fx", "torchscript"])
def test_the_logits_are_never_whole(runtime, tmp_path):
    report, ours, loops = trained(nn.functional.cross_entropy, runtime=runtime, memory_budget=1)
    assert all(map(torch.equal, ours, loops))
    (use,) = [use for use in report.slices if "_log_softmax" in use.ops]
    assert {"_log_softmax", "nll_loss_backward", "_log_softmax_backward_data"} <= set(use.ops)
    assert set(use.ops) <= {node for op in report.graph.ops for node in op.outputs}
    report.save_html(tmp_path / "step.html")
    assert report.budget_met is False
    plain = trained(nn.functional.cross_entropy, steps=0, runtime=runtime)[0]
    assert report.measured_peak_bytes == report.peak_bytes
    assert report.peak_bytes < plain.peak_bytes
    assert report.original_peak_bytes == plain.original_peak_bytes


@pytest.mark.parametrize("options", [{"ignore_index": 3}, {"reduction": "sum"}])
def test_losses_of_all_kinds_keep_their_bits(options):
    def loss_fn(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, target, **options) / 2

    report, ours, loops = trained(loss_fn, memory_budget=1)
    assert any("_log_softmax" in use.ops for use in report.slices)
    assert all(map(torch.equal, ours, loops))


@pytest.mark.parametrize("options", [{"reduction": "none"}, {"label_smoothing": 0.1}])
def test_other_losses_are_what_they_were(options):
    def loss_fn(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, target, **options).mean()

    _, ours, loops = trained(loss_fn, memory_budget=1)
    assert all(map(torch.equal, ours, loops))


def test_weights_of_classes_are_what_they_were():
    weight = torch.linspace(0.5, 2, WORDS)

    def loss_fn(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, target, weight)

    _, ours, loops = trained(loss_fn, memory_budget=1)
    assert all(map(torch.equal, ours, loops))


def test_a_budget_that_is_met_needs_no_slices():
    report, _, _ = trained(nn.functional.cross_entropy, steps=0, memory_budget="1GiB")
    assert report.budget_met
    assert not report.slices


def test_accumulated_gradients_are_those_of_the_loop():
    model, (x, target) = head(), batch()
    other = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other)]
    step = torch_ext.training_step(
        model,
        nn.functional.cross_entropy,
        optimizers[0],
        (x, target),
        accumulate=2,
        levers=ALL,
    )
    for number in range(4):
        ours = step(x, target)
        loss = nn.functional.cross_entropy(other(x), target)
        loss.backward()
        if number % 2:
            optimizers[1].step()
            optimizers[1].zero_grad()
        assert torch.equal(ours, loss.detach())
    assert all(map(torch.equal, model.parameters(), other.parameters()))
