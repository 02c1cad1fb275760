"""Modules that are traced: what the trace loses is told, and the module is as it was."""

import collections
import copy
import warnings

import numpy as np
import pytest
import torch
from models import Wide, wide_input
from torch import nn

import torch_ext
from torch_ext import attributes


class Stateful(nn.Module):
    """`update` writes to an attribute in every forward pass; the result depends on all of them."""

    def __init__(self, update):
        super().__init__()
        self.wide = Wide()
        self.y = torch.zeros(4)
        self.held = {"a": [torch.zeros(4)]}
        self.count = 0
        self.queue = collections.deque(maxlen=2)
        self.array = np.zeros(1)
        self.register_buffer("buffer", torch.zeros(4))
        self.update = update

    def forward(self, x):
        result = self.wide(x) + self.y + self.held["a"][0] + self.count + len(self.queue)
        result = result + self.buffer + float(self.array[0])
        self.update(self, result.mean(0))
        return result


def assign_buffer(module, value):
    module.buffer = value


def write_buffer(module, value):
    module.buffer.add_(value)


UPDATES = {
    "y": lambda module, value: setattr(module, "y", value),
    "held['a'][0]": lambda module, value: module.held["a"].__setitem__(0, value),
    "count": lambda module, value: setattr(module, "count", module.count + 1),
    "queue[0]": lambda module, value: module.queue.append(value),
    "array": lambda module, value: module.array.__iadd__(1),
    "new": lambda module, value: setattr(module, "new", value),
}


@pytest.mark.parametrize("name", UPDATES)
def test_state_that_a_trace_drops_is_told(name):
    module = Stateful(UPDATES[name])
    before = attributes.contents(module)
    with pytest.warns(UserWarning, match="the trace drops what forward writes") as caught:
        _, report = torch_ext.optimize(module, (wide_input(),))
    assert name.removesuffix("[0]") in str(caught[0].message)
    assert caught[0].filename == __file__
    assert not report.identical
    assert "the trace drops" in report.reason
    assert not attributes.changes(before, attributes.contents(module))


def test_state_in_place_of_a_tensor_is_put_back():
    module = Stateful(lambda module, value: module.y.add_(value))
    y = module.y
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_ext.optimize(module, (wide_input(),))
        torch_ext.analyze(module, (wide_input(),))
    assert module.y is y
    assert torch.equal(y, torch.zeros(4))


@pytest.mark.parametrize("update", [assign_buffer, write_buffer])
def test_buffers_are_put_back(update):
    module = Stateful(update)
    buffer = module.buffer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, report = torch_ext.optimize(module, (wide_input(),))
    assert module.buffer is buffer
    assert torch.equal(buffer, torch.zeros(4))
    assert report.identical == (update is write_buffer)


def test_an_if_on_values_that_a_trace_has_fixed():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = Wide()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return self.wide(x) * 2 if self.calls < 2 else self.wide(x)

    with pytest.warns(UserWarning, match="the result of the second call differs"):
        _, report = torch_ext.optimize(Asking(), (wide_input(),))
    assert not report.identical


def test_a_cache_that_is_filled_once_is_no_state():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = Wide()
            self.cache = None

        def forward(self, x):
            if self.cache is None:
                self.cache = torch.ones(4)
            return self.wide(x) + self.cache

    module = Caching()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, report = torch_ext.optimize(module, (wide_input(),))
    assert report.identical
    assert module.cache is None


def test_modules_in_training_mode_lose_nothing(capsys):
    class Talking(nn.Sequential):
        def forward(self, x):
            print("called")
            return super().forward(x)

    module = Talking(Wide(), nn.BatchNorm1d(4), nn.Dropout(0.5))
    before = copy.deepcopy(dict(module.state_dict()))
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, report = torch_ext.optimize(module, (wide_input(),))
    assert report.identical
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not capsys.readouterr().out
