"""Probes an FX graph without its inputs: sizes from types, scratch memory from one run per op.

What a compiler has is a graph and the types of its values. Running it on fake tensors shows which
storages there are; what an op takes beside its result, and how long it runs, is learned by running
it alone, on memory of our own with the same shapes and strides. Nothing is as large as the program.
A higher-order op is not run at all: the graph says what it gives, and the graphs that it runs are
estimated like this.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from torch_ext._native import _jit
from torch_ext.arguments import planning
from torch_ext.fx.effects import PURE_FUNCTIONS
from torch_ext.fx.probe import Executed, Probe, Runner, storages_of
from torch_ext.fx.program import program_of
from torch_ext.fx.timing import nanoseconds_of
from torch_ext.memory.meter import measure_peak, no_collections
from torch_ext.program.plan import plan_program

# Higher-order ops that run a graph again and again.
_LOOPS = {"associative_scan", "map_impl", "scan", "while_loop", "while_loop_stack_output"}


class UnknownSizeError(Exception):
    """A size that is known only when the program runs."""


def estimate_probe(module: fx.GraphModule, *, timed: bool = False) -> Probe:
    """What run_probe would show for inputs as in `meta["val"]` of the placeholders.

    `timed`: with the nanoseconds of ops, as run alone on memory of our own; of a higher-order op,
    or one that does not run on that, nobody knows them.

    Symbolic sizes count as what they were when the graph was traced. Raises UnknownSizeError, and
    whatever an op raises for fake tensors.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.no_grad())
        stack.enter_context(no_collections())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        return _estimate(module, timed)


class _Estimator(Runner):
    def __init__(self, module: fx.GraphModule, inputs: Sequence[Any], timed: bool) -> None:
        super().__init__(module, inputs)
        self.nanoseconds: dict[fx.Node, int | None] | None = {} if timed else None

    def execute(self, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Executed:
        """Run one node on fakes, and alone on stand-ins if it makes something."""
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._not_executed(node, is_loop=node.target._name in _LOOPS)
        if self.nanoseconds is not None:
            self.nanoseconds[node] = _nanoseconds(node.target, args, kwargs)
        known = storages_of((args, kwargs))
        value = self.function_of(node, args)(*args, **kwargs)
        made = storages_of(value)
        made_bytes = sum(made[key] for key in made.keys() - known)
        scratch = _scratch_bytes(node.target, args, kwargs) if made.keys() - known else 0
        return Executed(value, made_bytes + scratch, drew=False)

    def _not_executed(self, node: fx.Node, is_loop: bool) -> Executed:
        """What a higher-order op gives is fresh memory; an inner graph's results are part of it.

        A loop holds what it began with, or has gathered, while it runs the inner graph once more.
        """
        if "val" not in node.meta:
            raise UnknownSizeError(f"{node.format_node()}: the graph does not say what it gives")
        value = pytree.tree_map(_concrete, node.meta["val"])
        made_bytes = sum(storages_of(value).values())
        called = [self.environment[used] for used in node.all_input_nodes]
        inner_bytes = [_peak_bytes(graph) for graph in called if isinstance(graph, fx.GraphModule)]
        peak_bytes = max(inner_bytes, default=0)
        if is_loop:
            return Executed(value, made_bytes + peak_bytes, drew=False)
        return Executed(value, max(made_bytes, peak_bytes), drew=False)


def _estimate(module: fx.GraphModule, timed: bool = False) -> Probe:
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    inputs = [_concrete(node.meta.get("val")) for node in placeholders]
    estimator = _Estimator(module, inputs, timed)
    probe = estimator.run()
    if estimator.nanoseconds is not None:
        for op in probe.ops:
            known = [estimator.nanoseconds.get(node) for node in op.nodes]
            op.is_untimed = None in known
            op.nanoseconds = sum(one or 0 for one in known)
    return probe


def _peak_bytes(module: fx.GraphModule) -> int:
    """Of an inner graph, above its inputs."""
    found = plan_program(program_of(_estimate(module)), planning("all", 0.0))
    return found.plan.original_peak_bytes


def _concrete(value: Any) -> Any:
    """A fake of the same shape with numbers for sizes."""
    if isinstance(value, torch.Tensor):
        if not _is_strided(value):
            kind = f"{type(value).__name__} of layout {value.layout}"
            raise UnknownSizeError(f"an input is a {kind}, of which not all sizes are known")
        sizes, strides = _numbers(value.shape), _numbers(value.stride())
        memory = torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)
        return _read_as(memory, value.is_conj(), value.is_neg())
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return _hint(value)
    return value


def _is_strided(tensor: torch.Tensor) -> bool:
    """Strided, and of no class that does something else."""
    is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter, FakeTensor)
    return is_plain and tensor.layout is torch.strided and not tensor.is_nested


def _read_as(memory: torch.Tensor, is_conj: bool, is_neg: bool) -> torch.Tensor:
    """The tensor whose elements are the conjugates, or negatives, of what is stored."""
    memory = memory.conj() if is_conj else memory
    return torch._neg_view(memory) if is_neg else memory


def _hint(number: Any) -> Any:
    if number.node.hint is None:
        raise UnknownSizeError("a size is known only when the program runs")
    return number.node.hint


def _numbers(sizes: Sequence[Any]) -> list[Any]:
    numbers = [size if isinstance(size, int | float) else _hint(size) for size in sizes]
    if not all(isinstance(number, int | float) for number in numbers):
        raise UnknownSizeError("a size is known only when the program runs")
    return numbers


# --- ops alone -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Layout:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    is_conj: bool
    is_neg: bool

    def stand_in(self) -> torch.Tensor:
        # Zeros are indices and sizes that every op accepts, and quick to compute with.
        reach = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        memory = torch.zeros(reach if 0 not in self.shape else 0, dtype=self.dtype)
        return _read_as(memory.as_strided(self.shape, self.stride), self.is_conj, self.is_neg)


def _is_ordinary(leaf: Any) -> bool:
    """May an op run on stand-ins if it is given this? As in csrc/jit/op_costs.h."""
    if isinstance(leaf, torch.Tensor):
        on_cpu = leaf.device.type == "cpu"
        return on_cpu and _is_strided(leaf) and bool(_jit.has_stand_in(leaf.dtype))
    if isinstance(leaf, torch.dtype):
        return bool(_jit.has_stand_in(leaf))
    if isinstance(leaf, torch.device):
        return leaf.type == "cpu"
    return not isinstance(leaf, torch.layout) or leaf is torch.strided


@dataclasses.dataclass(frozen=True)
class _Call:
    """An operator and its arguments, the tensors among them described."""

    target: torch._ops.OpOverload
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    settings: tuple[Any, ...]  # what else its memory and its time depend on

    def arguments(self) -> tuple[Any, Any]:
        given = [leaf.stand_in() if isinstance(leaf, _Layout) else leaf for leaf in self.leaves]
        return cast(tuple[Any, Any], pytree.tree_unflatten(given, self.spec))


def _call(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> _Call | None:
    """Return the call for running it alone; None if that cannot be."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace not in ("aten", "prims"):
        return None
    leaves, spec = pytree.tree_flatten((tuple(args), kwargs))
    if not all(map(_is_ordinary, leaves)):
        return None
    described = tuple(
        _Layout(tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.is_conj(), leaf.is_neg())
        if isinstance(leaf, torch.Tensor)
        else leaf
        for leaf in leaves
    )
    return _Call(target, described, spec, _settings())


def _settings() -> tuple[Any, ...]:
    return (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
    )


def _scratch_bytes(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """What the op takes beside its result; 0 where it cannot be learned by running it."""
    call = _call(target, args, kwargs)
    return 0 if call is None else _measured_scratch_bytes(call)


@functools.lru_cache(maxsize=100_000)
def _measured_scratch_bytes(call: _Call) -> int:
    with _disable_current_modes(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            args, kwargs = call.arguments()
            known = storages_of((args, kwargs))
            with measure_peak() as memory:
                value = call.target(*args, **kwargs)
        except Exception:
            return 0  # the op, or its Python code, rejects zero-filled stand-ins
        made = storages_of(value)
    return max(0, memory.peak_bytes - sum(made[key] for key in made.keys() - known))


def _nanoseconds(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
    """How long the op takes; None where it cannot be learned by running it."""
    if target in PURE_FUNCTIONS:  # of numbers, and items of results
        return 0
    call = _call(target, args, kwargs)
    return None if call is None else _measured_nanoseconds(call)


@functools.lru_cache(maxsize=100_000)
def _measured_nanoseconds(call: _Call) -> int | None:
    with _disable_current_modes(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            args, kwargs = call.arguments()
            return nanoseconds_of(lambda: call.target(*args, **kwargs))
        except Exception:
            return None
