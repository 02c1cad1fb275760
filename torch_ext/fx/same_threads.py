"""A question of plain ATen ops: do kernels run with as many threads as now?

Kernels that split their work among threads may sum in another order with another number of them,
and in parts not in the one they would have had in the whole. A graph cannot ask for the number, but
a sum tells (csrc/jit/same_threads.h): of numbers that cancel out it is nothing but what was
rounded, and with other shares for the threads that is something else. Two sums tell all numbers of
threads up to 128 apart (test_fx_slice.py). A question takes some fifty microseconds.
"""

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_ext.fx.builder import Builder

_HALF = 256  # numbers; as many again are their negatives
_ELEMENTS_PER_THREAD = 32768  # at::internal::GRAIN_SIZE
_aten = torch.ops.aten


def require_threads(graph: fx.Graph, fake_mode: FakeTensorMode | None) -> None:
    """Let the graph raise, at the insertion point, when it runs with another number of threads.

    `fake_mode`: in which the nodes are given types, if there is one.
    """
    threads = torch.get_num_threads()
    text = (
        f"this program runs some ops part by part, which was verified with {threads} threads: "
        f"call torch.set_num_threads({threads}), or reorder it with as many as you use"
    )
    build = Builder(graph, fake_mode)
    for seed in (1, 2):
        alone = fx.Graph()
        alone.output((_sum(Builder(alone, None), seed, _rows_for(threads)),))
        (expected,) = fx.Interpreter(fx.GraphModule(torch.nn.Module(), alone)).run()
        sum_ = _sum(build, seed, _rows_for(threads))
        is_same = build.call(_aten.eq.Scalar, (sum_, expected.item()))
        check = graph.call_function(_aten._assert_async.msg, (is_same, text))
        check.meta["val"] = None


def _sum(build: Builder, seed: int, rows: int) -> fx.Node:
    """A sum of numbers that cancel out, each in `rows` rows."""

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return build.call(target, args, kwargs)

    place = call(_aten.arange.default, _HALF)
    factor = call(_aten.add.Scalar, call(_aten.mul.Scalar, place, 2 * seed + 37), 101 * seed + 7919)
    scattered = call(_aten.remainder.Scalar, call(_aten.mul.Tensor, place, factor), 65521)
    number = call(_aten._to_copy.default, scattered, dtype=torch.float32)
    number = call(_aten.mul.Scalar, call(_aten.sub.Scalar, number, 32760.0), 0.7310586)
    power = call(_aten.remainder.Scalar, call(_aten.mul.Scalar, place, 29 + 2 * seed), 11)
    power = call(_aten._to_copy.default, power, dtype=torch.float32)
    number = call(_aten.mul.Tensor, number, call(_aten.exp2.default, power))
    negative = call(_aten.neg.default, call(_aten.roll.default, number, [77], [0]))
    both = call(_aten.reshape.default, call(_aten.stack.default, [number, negative], 1), [-1])
    repeated = call(_aten.expand.default, both, [rows, 2 * _HALF])
    return call(_aten.sum.default, repeated)


def _rows_for(threads: int) -> int:
    """Enough for twice the threads, and one more, to have a share.

    A prime: equal shares of periodic numbers would have equal sums.
    """
    rows = 2 * threads * _ELEMENTS_PER_THREAD // (2 * _HALF) + 1
    while any(rows % divisor == 0 for divisor in range(2, int(rows**0.5) + 1)):
        rows += 1
    return rows
