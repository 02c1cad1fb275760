"""training_step(addresses=True): the loop's bits, from an arena."""

import copy

import pytest
import torch
from torch import nn

import torch_ext


def task(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(8 * 64, 10),
    )
    batch = (torch.randn(4, 3, 8, 8), torch.randint(0, 10, (4,)))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01), batch


def loop(model, optimizer, batch):
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


@pytest.mark.parametrize("runtime", ["fx", "torchscript"])
@pytest.mark.parametrize("options", [{}, {"memory_budget": "30KiB"}])
def test_steps_are_served_and_have_the_loops_bits(runtime, options):
    with torch.enable_grad():
        expected, optimizer, batch = task()
        model = copy.deepcopy(expected)
        step = torch_ext.training_step(
            model,
            nn.functional.cross_entropy,
            torch.optim.AdamW(model.parameters(), lr=0.01),
            batch,
            runtime=runtime,
            addresses=True,
            **options,
        )
        losses = []
        for run in (lambda: loop(expected, optimizer, batch), lambda: step(*batch)):
            torch.manual_seed(1)
            losses.append([run().item() for _ in range(5)])
    assert losses[0] == losses[1]
    for (name, a), b in zip(
        expected.state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert step.arena_statistics.served >= 4  # the first makes the optimizer's state
    assert not step.arena_statistics.deviated
    report = step.report
    assert report.arena_bytes >= report.arena_bound_bytes > 0


def test_without_there_is_no_arena():
    with torch.enable_grad():
        model, optimizer, batch = task()
        step = torch_ext.training_step(model, nn.functional.cross_entropy, optimizer, batch)
        step(*batch)
    assert step.arena_statistics is None
    assert step.report.arena_bytes is None
