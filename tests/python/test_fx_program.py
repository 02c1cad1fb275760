"""One trap, one test: graphs whose result depends on an order that the data flow does not tell.

Each graph is reordered at random, as in tests/cpp/jit/interference_test.cpp. These are graphs that
no program of tests/fuzz gives when it is captured: tensors are used under an old name after a
change.
"""

import gc
import operator
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from tests.fuzz.checking import RULES
from tests.fuzz.comparing import Comparer
from tests.fuzz.graphs import random_order
from torch_ext.fx.apply import apply_order
from torch_ext.fx.probe import run_probe
from torch_ext.fx.program import order_edges

aten = torch.ops.aten
ORDERS = 40
Call = Callable[..., fx.Node]


def numbers() -> torch.Tensor:
    return torch.arange(12.0).reshape(3, 4).requires_grad_()


def graph_of(write: Callable[[Call, fx.Node], Any]) -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return graph.call_function(target, args, kwargs)

    graph.output(write(call, x))
    return fx.GraphModule(torch.nn.Module(), graph)


def outcome(module: fx.GraphModule) -> Any:
    x = numbers()
    try:
        with torch.no_grad():  # ends what the graph does to it
            return module(x), x
    except Exception as error:
        return str(error)


def expect_held(write: Callable[[Call, fx.Node], Any]) -> None:
    module = graph_of(write)
    expected = outcome(module)
    probe = run_probe(module, [numbers()])

    def difference(seed: int, without: tuple[str, ...]) -> str:
        apply_order(module, probe, random_order(order_edges(probe, without), seed))
        return Comparer().compare(expected, outcome(module), "result")

    assert [difference(seed, ()) for seed in range(ORDERS)] == [""] * ORDERS
    assert any(difference(seed, RULES) for seed in range(ORDERS)), "this graph tests nothing"


def test_a_view_of_what_was_transposed_in_place():
    def write(call, x):
        y = call(aten.mul.Tensor, x, 2)
        sums = call(aten.sum.dim_IntList, y, [1])
        call(aten.t_.default, y)
        view = call(aten.select.int, y, 0, 0)
        return call(aten.mul.Tensor, view, 3), sums, y

    expect_held(write)


def test_a_view_of_an_input_that_was_transposed_in_place():
    def write(call, x):
        total = call(aten.sum.dim_IntList, x, [1])
        call(aten.t_.default, x)
        view = call(aten.select.int, x, 0, 0)
        return call(aten.mul.Tensor, view, 3), total

    expect_held(write)


def test_a_view_of_what_an_op_resized_for_its_result():
    def write(call, x):
        y = call(aten.empty.memory_format, [0])
        empty = call(aten.sum.default, y)
        call(aten.sin.out, x, out=y)
        view = call(aten.select.int, y, 0, 0)
        return call(aten.mul.Tensor, view, 3), empty, y

    expect_held(write)


def test_a_tensor_that_was_given_the_memory_of_another():
    def write(call, x):
        y = call(aten.mul.Tensor, x, 2)
        z = call(aten.mul.Tensor, x, 3)
        call(aten.set_.source_Tensor, y, z)
        before = call(aten.sum.default, y)
        call(aten.add_.Tensor, z, 1)
        return before, call(aten.mean.default, y), y

    expect_held(write)


def test_an_operator_of_python_that_writes():
    def write(call, x):
        y = call(aten.mul.Tensor, x, 2)
        before = call(aten.sum.default, y)
        call(operator.iadd, y, 1)
        return before, y

    expect_held(write)


@pytest.mark.parametrize(
    "switch", [torch.ops.aten.set_grad_enabled.default, torch._C._set_grad_enabled], ids=str
)
def test_a_switch_of_gradients(switch):
    def write(call, x):
        without = call(aten.mul.Tensor, x, 2)
        call(switch, True)
        with_gradient = call(aten.mul.Tensor, x, 3)
        call(switch, False)
        return without, with_gradient, call(aten.mul.Tensor, x, 4)

    expect_held(write)


@pytest.mark.parametrize("of_input", [True, False])
def test_a_view_made_while_gradients_are_on(of_input):
    def write(call, x):
        y = x if of_input else call(aten.mul.Tensor, x, 2)
        call(torch._C._set_grad_enabled, True)
        view = call(aten.select.int, y, 0, 0)
        call(torch._C._set_grad_enabled, False)
        return view, call(aten.mul.Tensor, x, 4)

    expect_held(write)


@fx.wrap
def leaves_garbage(x):
    cycle = [torch.empty(2**20)]
    cycle.append(cycle)
    return x + 1


@fx.wrap
def collects_garbage(x):
    gc.set_threshold(1)
    objects = [[[]] for _ in range(1000)]
    scratch = torch.empty(2**18)
    return x + len(objects) + scratch.dim()


def test_garbage_that_could_be_collected_while_an_op_runs_is_not_taken_off():
    module = fx.symbolic_trace(lambda x: collects_garbage(leaves_garbage(x)))
    thresholds = gc.get_threshold()
    gc.set_threshold(10**6)
    try:
        probe = run_probe(module, [torch.zeros(4)])
    finally:
        gc.set_threshold(*thresholds)
    assert gc.isenabled()
    assert probe.ops[-1].workspace_bytes >= 2**20


def test_a_write_to_memory_that_cannot_be_looked_into():
    """The tensors of MKL-DNN have no storage, so nobody sees that two of them share memory."""

    def write(call, x):
        y = call(aten.to_mkldnn.default, x)
        before = call(aten.to_dense.default, y)
        call(aten.mul_.Tensor, y, 2)
        return before, call(aten.to_dense.default, y), call(aten.mul.Tensor, x, 3)

    expect_held(write)
