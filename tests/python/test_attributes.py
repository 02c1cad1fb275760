"""What a module's plain attributes hold, and whether a change of them is noticed."""

import argparse
import copy
import functools
import gc
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from torch_ext.attributes import (
    Watch,
    changes,
    contents,
    may_return,
    path_of,
    plain_values,
    tensors_in_a_graph,
)
from torch_ext.tensors.compare import first_difference


class Note:
    def __init__(self, value):
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self):
        self.value = 1


class Named(dict):
    """A dict with attributes."""


factor = 1.0


def scaled(x, by=[1.0]):  # noqa: B006
    return x * factor * by[0]


def counted():
    count = 0

    def count_up(x):
        nonlocal count
        count += 1
        return x * count

    return count_up


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.hidden = [nn.Linear(2, 2)]
        self.number = 1000
        self.fraction = 0.5
        self.nothing = None
        self.text = "a"
        self.names = {"a": [1, (2, {"b": 3})]}
        self.empty = []
        self.numbers = {1, 2}
        self.note = Note([1])
        self.tensor = torch.zeros(2)
        self.array = np.zeros(2)
        self.note.owner = [self]  # a ring
        self.slotted = Slotted()
        self.space = types.SimpleNamespace(a=1)
        self.options = argparse.Namespace(a=1)
        self.named = Named(a=1)
        self.named.extra = 1
        self.normal = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
        self.partial = functools.partial(scaled, by=[2.0])
        self.bound = Note([1]).__init__
        self.scaled = scaled
        self.counted = counted()


def double(value):
    return value * 2


CHANGES = {
    "number": lambda m: setattr(m, "number", 1001),
    "number ": lambda m: setattr(m, "number", 1000.0),
    "fraction": lambda m: setattr(m, "fraction", -0.0),
    "nothing": lambda m: setattr(m, "nothing", 0),
    "text": lambda m: setattr(m, "text", "b"),
    "names['a'][1][1]['b']": lambda m: m.names["a"][1][1].update(b=4),
    "names['c']": lambda m: m.names.update(c=1),
    "empty[0]": lambda m: m.empty.append(1),
    "numbers[2]": lambda m: m.numbers.add(3),
    "note.value[0]": lambda m: m.note.value.__setitem__(0, 2),
    "note.other": lambda m: setattr(m.note, "other", 2),
    "tensor": lambda m: m.tensor.add_(1),
    "tensor ": lambda m: setattr(m, "tensor", torch.ones(2)),
    "array": lambda m: m.array.__iadd__(1),
    "slotted.value": lambda m: setattr(m.slotted, "value", 2),
    "space.a": lambda m: setattr(m.space, "a", 2),
    "options.a": lambda m: setattr(m.options, "a", 2),
    "named.extra": lambda m: setattr(m.named, "extra", 2),
    "named['b']": lambda m: m.named.update(b=m.named.pop("a")),
    "normal.loc": lambda m: m.normal.loc.add_(1),
    "partial[2]['by'][0]": lambda m: m.partial.keywords["by"].__setitem__(0, 3.0),
    "bound[0].value": lambda m: setattr(m.bound.__self__, "value", [2]),
    "(a variable)": lambda m: globals().update(factor=2.0),
    "(defaults)": lambda m: setattr(scaled, "__defaults__", ([3.0],)),
    "scaled": lambda m: setattr(m, "scaled", double),
    "counted.count": lambda m: m.counted(1),
    "(the class)": lambda m: setattr(m.layer, "__class__", nn.Identity),
    "(its forward)": lambda m: setattr(Module, "forward", double),
    "new": lambda m: setattr(m, "new", 1),
    "layer": lambda m: setattr(m, "layer", nn.Linear(2, 2)),
    "layer.forward": lambda m: setattr(m.layer, "forward", double),
    "norm.momentum": lambda m: setattr(m.norm, "momentum", 0.5),
    "hidden[0]": lambda m: m.hidden.__setitem__(0, nn.Linear(2, 2)),
    "hidden[0].weight": lambda m: m.hidden[0].weight.data.add_(1),
    "layer._forward_hooks": lambda m: m.layer.register_forward_hook(lambda *_: None),
}


@pytest.fixture
def restored(monkeypatch):
    """What changes beside the module."""
    monkeypatch.setitem(globals(), "factor", 1.0)
    monkeypatch.setattr(scaled, "__defaults__", ([1.0],))
    monkeypatch.setattr(Module, "forward", scaled, raising=False)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_noticed_and_named(name):
    module = Module()
    watch, before = Watch(module), contents(module)
    assert watch.is_unchanged()
    assert not changes(before, contents(module))
    CHANGES[name](module)
    changed = changes(before, contents(module))
    assert changed
    if not name.startswith("("):
        assert any(path.startswith(name.strip()) for path in changed)
    if name != "hidden[0].weight":  # torch counts no version of what is written through .data
        assert not watch.is_unchanged()
        assert Watch(module).signature != watch.signature


def test_what_is_set_to_itself_is_another_object_and_equal():
    module = Module()
    watch = Watch(module)
    module.number = int("1000")
    module.names = copy.deepcopy(module.names)
    module.norm.running_mean = module.norm.running_mean.clone()
    module.eval()
    assert not watch.is_unchanged()
    assert Watch(module).signature == watch.signature
    assert hash(Watch(module).signature) == hash(watch.signature)


def test_parameters_and_buffers_are_no_attributes():
    module = Module()
    watch, before = Watch(module), contents(module)
    with torch.no_grad():
        module.layer.weight.add_(1)
        module.norm.running_mean.add_(1)
    assert watch.is_unchanged()
    assert not changes(before, contents(module))


def test_ties_are_told_apart():
    apart, tied = Module(), Module()
    tied.hidden, tied.note = apart.hidden, apart.note
    watch = Watch(tied)
    tied.layer.bias = tied.norm.bias
    assert Watch(tied).signature != watch.signature


def test_a_gradient_of_what_is_not_registered():
    module = Module()
    before = contents(module)
    with torch.enable_grad():
        module.hidden[0](torch.ones(1, 2)).sum().backward()
    assert changes(before, contents(module))[0] == "hidden[0].weight"


def test_signatures_keep_nothing_alive():
    module = Module()
    signature = Watch(module).signature
    assert may_return(signature)
    module.layer = nn.Linear(2, 2)
    gc.collect()
    assert not may_return(signature)


def test_long_containers_count_by_their_length():
    module = Module()
    module.words = {str(number): number for number in range(20_000)}
    watch = Watch(module)
    module.words["0"] = 1
    assert Watch(module).signature == watch.signature
    module.words["new"] = 1
    assert Watch(module).signature != watch.signature


def test_what_hooks_of_torch_compute_is_left_out():
    with torch.enable_grad():
        module = nn.Sequential(nn.Linear(2, 2))
        prune.l1_unstructured(module[0], "weight", amount=0.5)
        signature, before = Watch(module).signature, contents(module)
        assert [id(tensor) for tensor in tensors_in_a_graph(module)] == [id(module[0].weight)]
        module[0].weight_orig.data.add_(1)
        module(torch.ones(1, 2))
    assert Watch(module).signature == signature
    assert not changes(before, contents(module))


def test_paths_of_tensors():
    module = Module()
    assert path_of(module, module.tensor[1:]) == "tensor"
    assert path_of(module, module.layer.weight) == "layer.weight"
    assert path_of(module, torch.zeros(2)) == ""


def test_code_that_belongs_to_no_module():
    """As in a program that was given to exec with a dict of its own."""
    given = {}
    exec("scale = 2.0\ndef forward(x): return scale * x", given)
    module = nn.Linear(2, 2)
    module.forward = given["forward"]
    watch = Watch(module)
    assert watch.is_unchanged()
    given["scale"] = 3.0
    assert not watch.is_unchanged()


def test_equal_objects_have_equal_plain_values():
    class Held:
        def __init__(self):
            self.count, self.ratio, self.nothing = 1, float("nan"), None
            self.rows = [torch.ones(2), {"deep": (1, "two")}]
            self.function, self.module = print, nn.Linear(2, 2)

    first, second = Held(), Held()
    second.module.load_state_dict(first.module.state_dict())
    assert not first_difference(plain_values(vars(first)), plain_values(vars(second)))
    for change in (
        lambda held: setattr(held, "count", 2),
        lambda held: held.rows[0].add_(1),
        lambda held: held.rows[1].update(deep=(1, "three")),
        lambda held: held.rows.append(1),
        lambda held: setattr(held, "function", 1),
    ):
        second = copy.deepcopy(first)
        change(second)
        assert first_difference(plain_values(vars(first)), plain_values(vars(second)))
