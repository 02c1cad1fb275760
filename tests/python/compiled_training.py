"""What torch.compile makes of a model in training, to compare backends by."""

import copy

import torch
from torch import Tensor, nn

from torch_ext import measure_peak


def trained(model: nn.Module, x: Tensor, backend: object, steps: int = 3, **options: object):
    """Losses, parameters and buffers, the random state, and the peak of the last step."""
    model = copy.deepcopy(model)
    torch.manual_seed(1)
    compiled = torch.compile(model, backend=backend, options=options or None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        with measure_peak() as memory:
            loss = compiled(x).tanh().mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses, model.state_dict(), torch.get_rng_state(), memory.peak_bytes


def require_same(expected, actual) -> None:
    """Of what `trained` returns, all but the peaks."""
    assert all(map(torch.equal, expected[0], actual[0]))
    assert all(torch.equal(value, actual[1][name]) for name, value in expected[1].items())
    assert torch.equal(expected[2], actual[2])
