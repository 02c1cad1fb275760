"""Tensors of every kind that the installed torch has, sent through the doors of torch_ext.

That is done in a process of its own, for what goes wrong with such tensors may end it.
"""

import contextlib
import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor

import torch_ext
from torch_ext.arguments import planning
from torch_ext.tensors.compare import first_difference

aten = torch.ops.aten

DTYPES = sorted({v for v in vars(torch).values() if isinstance(v, torch.dtype)}, key=str)
LAYOUTS = sorted({v for v in vars(torch).values() if isinstance(v, torch.layout)}, key=str)

Make = Callable[[Tensor], Tensor]
Use = Callable[[Tensor], Any]


def numbers() -> Tensor:
    return torch.linspace(-3, 3, 32).reshape(4, 8)


def large() -> Tensor:
    return torch.arange(4096.0).reshape(64, 64)


# --- kinds ----------------------------------------------------------------------------------------


def kinds() -> Iterator[tuple[str, Make]]:
    """How to make one of each kind from `numbers()`, of all that torch can make."""
    for dtype in DTYPES:
        for name, make in _of_dtype(dtype):
            if _made(make) is not None:
                yield f"{dtype} {name}", make
    for layout in LAYOUTS:
        for name, make in _of_layout(layout):
            made = _made(make)
            if made is not None and made.layout == layout:
                yield f"{layout} {name}", make
    yield "of a class of Python", lambda x: TwoTensor(x, x + 1)


def named(values: list[Any], names: list[str]) -> bool:
    """Is there a name of a kind for each of these types or layouts?"""
    return {str(value) for value in values} <= {name.split()[0] for name in names}


def _made(make: Make) -> Tensor | None:
    with contextlib.suppress(Exception):
        return make(numbers())
    return None


def _of_dtype(dtype: torch.dtype) -> Iterator[tuple[str, Make]]:
    scales, zeros = torch.linspace(0.1, 0.4, 4), torch.arange(4)
    memory = torch.arange(32 * dtype.itemsize, dtype=torch.uint8).fmod(64)

    def converted(x: Tensor) -> Tensor:
        return x.to(dtype)

    def viewed(x: Tensor) -> Tensor:
        return aten.view.default(aten.view.dtype(memory, dtype), [4, 8])

    plain = viewed if _made(converted) is None else converted
    yield "of the CPU", plain
    yield "of the meta device", lambda x: converted(x.to("meta"))
    if dtype.is_complex:
        yield "conjugate", lambda x: aten._conj.default(plain(x))
    if dtype.is_floating_point or dtype.is_complex:
        yield "negative", lambda x: aten._neg_view.default(plain(x))
    yield "quantized", lambda x: aten.quantize_per_tensor.default(x, 0.1, 1, dtype)
    yield (
        "quantized by rows",
        lambda x: aten.quantize_per_channel.default(x, scales.double(), zeros, 0, dtype),
    )
    if dtype.itemsize == 1:  # with others torch ends the process
        yield (
            "quantized by rows with floats",
            lambda x: aten.quantize_per_channel.default(x, scales, zeros.float(), 0, dtype),
        )


def _of_layout(layout: torch.layout) -> Iterator[tuple[str, Make]]:
    yield "sparse", lambda x: x.relu().to_sparse(layout=layout)
    yield "sparse blocks", lambda x: x.relu().to_sparse(layout=layout, blocksize=(2, 2))
    places = torch.zeros(2, 8, dtype=torch.long)
    yield "with places twice", lambda x: torch.sparse_coo_tensor(places, x[0], (4, 8))
    yield "opaque", lambda x: x.to_mkldnn()
    yield "nested", lambda x: torch.nested.nested_tensor([x, x[:2]], layout=layout)


USES: list[Use] = [
    lambda x: x,
    aten.clone.default,
    lambda x: aten.view.default(x, [-1]),
    lambda x: aten.clone.default(aten.t.default(x)),
    lambda x: aten.select.int(aten.select.int(x, 0, 0), 0, 0),
    lambda x: aten.slice.Tensor(x, 0, 0, 0),
    lambda x: aten.cat.default([x, x]),
    aten.relu.default,
    lambda x: aten.add.Tensor(x, x),
    lambda x: aten.mul.Tensor(x, 2),
    lambda x: aten.mul_.Tensor(aten.clone.default(x), 2),
    lambda x: aten.eq.Tensor(x, x),
    aten.sum.default,
    aten.zeros_like.default,
    lambda x: aten._to_copy.default(x, dtype=torch.float32),
    aten.int_repr.default,
    lambda x: aten.mul.Tensor(aten.dequantize.self(x), 2),
    aten.to_dense.default,
    aten.values.default,
    lambda x: aten.mul.Tensor(aten._conj.default(x), 2),
    lambda x: aten.clone.default(aten.resolve_neg.default(aten.resolve_conj.default(x))),
    aten.view_as_real.default,
    aten.to_sparse.default,
    lambda x: aten.to_dense.default(aten.to_mkldnn.default(x)),
]


class Program(nn.Module):
    """Uses tensors of a kind among what could be in a better order: given, held, and made by it."""

    def __init__(self, make: Make, uses: list[Use], origins: tuple[str, ...]) -> None:
        super().__init__()
        self.make, self.uses, self.origins = make, uses, origins
        self.held = nn.Buffer(make(numbers()))

    def forward(self, p: Tensor, given: Tensor, x: Tensor) -> Any:
        a, b, c = aten.mul.Tensor(p, 2), aten.mul.Tensor(p, 3), aten.mul.Tensor(p, 4)
        made = self.make(x) if "made" in self.origins else None
        all_used = {"given": given, "held": self.held, "made": made}
        results = [use(all_used[origin]) for origin in self.origins for use in self.uses]
        total = aten.add.Tensor(aten.sum.default(a), aten.sum.default(b))
        return aten.add.Tensor(total, aten.sum.default(c)), results


def inputs(make: Make) -> tuple[Tensor, ...]:
    return large(), make(numbers()), numbers()


# --- doors ----------------------------------------------------------------------------------------

Capture = Callable[[nn.Module, Make], Callable[..., Any]]


ORIGINS = ("given", "held", "made")


def capturable(capture: Capture) -> Iterator[tuple[str, Make, Program, Any]]:
    """Programs that torch can capture, and what they give: the same each time."""

    def captured(make: Make, uses: list[Use], *origins: str) -> tuple[Program, Any] | None:
        with contextlib.suppress(Exception):
            program = Program(make, uses, origins)
            return program, settled(capture(program, make), make)
        return None

    for name, make in kinds():
        uses = uses_of(make)
        if all_at_once := captured(make, uses, *ORIGINS):
            yield name, make, *all_at_once
            continue
        for origin in ORIGINS:
            if found := captured(make, uses, origin):
                yield f"{name}, {origin}", make, *found


def uses_of(make: Make) -> list[Use]:
    """Those that torch has for a kind."""
    return [use for use in USES if _made(lambda x: use(make(x))) is not None]  # noqa: B023


def settled(program: Callable[..., Any], make: Make) -> Any:
    """What it gives when torch has optimised it, again and again."""
    with torch.no_grad():
        _, expected, result = (program(*inputs(make)) for _ in range(3))
    check(expected, result)
    return result


def check(expected: Any, actual: Any) -> None:
    assert not first_difference({"it": expected}, {"it": actual})


def traced(program: nn.Module, make: Make) -> Any:
    return torch.jit.trace(program, inputs(make), check_trace=False, strict=False)


def frozen(program: nn.Module, make: Make) -> Any:
    """With constants instead of attributes, if torch knows constants of the kind."""
    script = traced(program.eval(), make)
    try:
        return torch.jit.freeze(script)
    except RuntimeError:
        return script


def symbolic(program: nn.Module, make: Make) -> fx.GraphModule:
    return fx.symbolic_trace(program)


def through_pass(capture: Capture, program: Program, make: Make) -> Any:
    with torch_ext.enabled():
        return settled(capture(program, make), make)


def through_optimize(capture: Capture, program: Program, make: Make) -> Any:
    module, _ = torch_ext.optimize(capture(program, make), inputs(make))
    return settled(module, make)


def through_reorder(capture: Capture, program: Program, make: Make) -> Any:
    module, _ = torch_ext.fx.reorder(capture(program, make), inputs(make))
    return settled(module, make)


DOORS = {
    "pass": (frozen, through_pass),
    "optimize": (traced, through_optimize),
    "reorder": (symbolic, through_reorder),
}


def through_backend() -> None:
    """All kinds in one program, which keeps its order if one of them stops the estimate."""
    from torch_ext.fx import compile_backend  # takes seconds

    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    makes, uses = [], []
    for name, make in kinds():
        given, real = make(numbers()), uses_of(make)
        with contextlib.suppress(Exception), fakes:
            fake = fakes.from_tensor(given)
            usable = [use for use in real if _made(lambda _: use(fake)) is not None]  # noqa: B023
            if type(fake) is FakeTensor and fake.layout == torch.strided and usable:
                print(name, flush=True)
                makes.append(make)
                uses.append(usable)

    def program(p: Tensor, *given: Tensor) -> Any:
        a, b, c = aten.mul.Tensor(p, 2), aten.mul.Tensor(p, 3), aten.mul.Tensor(p, 4)
        results = [[use(x) for use in usable] for x, usable in zip(given, uses, strict=True)]
        return a.sum() + b.sum() + c.sum(), results

    inputs = large(), *(make(numbers()) for make in makes)
    module = make_fx(program, tracing_mode="fake")(*inputs)
    expected = module(*inputs)
    before = [node.name for node in module.graph.nodes]
    compile_backend._edit(module, planning("all", 2.0))
    assert before != [node.name for node in module.graph.nodes]
    check(expected, module(*inputs))


# --- a process of its own -------------------------------------------------------------------------


def sent_through(door: str) -> list[str]:
    """The kinds that kept their bits. Raises AssertionError with the name of one that did not."""
    done = subprocess.run(
        [sys.executable, __file__, door],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    names = done.stdout.splitlines()
    assert done.returncode == 0, f"{done.returncode} at {names[-1:]}: {done.stderr[-2000:]}"
    return names


def main(door: str) -> None:
    """Name each kind, and send it through."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if door == "backend":
        through_backend()
    else:
        capture, through = DOORS[door]
        for name, make, program, expected in capturable(capture):
            print(name, flush=True)
            gc.freeze()  # or else each probe looks for garbage in all that torch has
            check(expected, through(capture, program, make))


if __name__ == "__main__":
    main(sys.argv[1])
