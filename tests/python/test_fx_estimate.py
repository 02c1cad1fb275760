"""What a graph is estimated to need, against a run of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds import DTYPES, named, sent_through
from torch import Tensor, fx
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.fx.experimental.proxy_tensor import make_fx

from torch_ext.fx.estimate import UnknownSizeError, estimate_probe
from torch_ext.fx.probe import Op, Probe, run_probe

X = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)


def captured(function: Callable[[Tensor], Any]) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake")(X)


def higher_order_op(probe: Probe) -> Op:
    [op] = [o for o in probe.ops if isinstance(o.node.target, torch._ops.HigherOrderOperator)]
    return op


def bytes_of(probe: Probe) -> dict[str, tuple[int, int]]:
    return {op.node.name: (sum(op.made.values()), op.workspace_bytes) for op in probe.ops}


def need(op: Op) -> int:
    return sum(op.made.values()) + op.workspace_bytes


def narrow(x: Tensor) -> Tensor:
    """Needs twice its input inside, and gives a row."""
    return (x @ x).sin().sum(0)


def test_a_program_takes_what_it_takes_when_it_runs():
    module = captured(lambda x: torch.softmax((x @ x).view(128, 32), 1).topk(3)[0].sum())
    assert bytes_of(estimate_probe(module)) == bytes_of(run_probe(module, [X]))


@pytest.mark.parametrize("sign", [1, -1])
def test_cond_needs_what_its_larger_branch_needs(sign):
    module = captured(lambda x: torch.cond(x[0, 0] > 0, narrow, lambda x: x.sum(0), (x,)))
    estimated = higher_order_op(estimate_probe(module))
    run = higher_order_op(run_probe(module, [sign * X.abs()]))
    assert need(estimated) == 2 * X.nbytes
    assert need(run) == (2 * X.nbytes if sign == 1 else X[0].nbytes)
    assert estimated.made == run.made


def test_cond_in_cond():
    def inner(x: Tensor) -> Tensor:
        return torch.cond(x[0, 1] > 0, narrow, lambda x: x.sum(0), (x,))

    module = captured(lambda x: torch.cond(x[0, 0] > 0, inner, lambda x: x.sum(0), (x,)))
    choice = torch.empty((), dtype=torch.bool)
    assert need(higher_order_op(estimate_probe(module))) == 2 * X.nbytes + choice.nbytes


LOOPS = {
    "while_loop": lambda x: while_loop(
        lambda i, y: i < 3, lambda i, y: (i + 1, (y @ y).sin()), (torch.tensor(0), x)
    )[1],
    "scan": lambda x: scan(lambda c, row: (c + row, torch.outer(c, row).sin().sum(0)), x[0], x)[1],
    "map": lambda x: map_rows(lambda row: torch.outer(row, row).sin().sum(0), x),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_needs_about_what_is_estimated(loop):
    module = captured(LOOPS[loop])
    estimated = higher_order_op(estimate_probe(module))
    run = higher_order_op(run_probe(module, [X]))
    assert sum(estimated.made.values()) >= sum(run.made.values()) > 0
    assert 0.97 * need(run) <= need(estimated) <= 1.5 * need(run)


def test_a_higher_order_op_that_says_nothing_about_its_result():
    module = captured(lambda x: torch.cond(x[0, 0] > 0, narrow, lambda x: x.sum(0), (x,)))
    for node in module.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            del node.meta["val"]
    with pytest.raises(UnknownSizeError, match="does not say what it gives"):
        estimate_probe(module)


def test_conjugates_are_stood_in_for_by_conjugates():
    def program(x: Tensor) -> Tensor:
        y = torch.complex(x, x).conj()
        return (y @ y).resolve_conj().imag * y.imag

    module = captured(program)
    assert bytes_of(estimate_probe(module)) == bytes_of(run_probe(module, [X]))


def test_tensors_of_every_kind_keep_their_bits():
    """And none of them makes the graph that they are all in keep its order."""
    known_to_fakes = [dtype for dtype in DTYPES if not str(dtype).startswith("torch.q")]
    assert named(known_to_fakes, sent_through("backend"))


def test_what_is_known_of_an_op_is_known_for_the_settings_it_ran_with():
    """Without oneDNN a convolution takes memory for its columns."""
    image, kernel = torch.ones(2, 8, 32, 32), torch.ones(8, 8, 3, 3)
    module = make_fx(lambda x, w: torch.conv2d(x, w), tracing_mode="fake")(image, kernel)
    needs = []
    for enabled in (True, False, True):
        with torch.backends.mkldnn.flags(enabled=enabled):
            assert bytes_of(estimate_probe(module)) == bytes_of(run_probe(module, [image, kernel]))
            needs.append(bytes_of(estimate_probe(module)))
    assert needs[0] == needs[2] != needs[1]
