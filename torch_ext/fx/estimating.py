"""Probes an FX graph without its inputs: sizes from types, scratch memory from one run per op.

What a compiler has is a graph and the types of its values. Running it on fake tensors shows which
storages there are; what an op takes beside its result is learned by running it alone, on memory of
our own with the same shapes and strides. Nothing is as large as the program. A higher-order op is
not run at all: the graph says what it gives, and the graphs that it runs are estimated like this.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from torch_ext.fx.ordering import to_graph
from torch_ext.fx.probing import Executed, Probe, Runner, tensors_of
from torch_ext.measuring import measure_peak, no_collections
from torch_ext.planning import plan

# Higher-order ops that run a graph again and again.
_LOOPS = {"associative_scan", "map_impl", "scan", "while_loop", "while_loop_stack_output"}


class UnknownSizeError(Exception):
    """A size that is known only when the program runs."""


def estimate_probe(module: fx.GraphModule) -> Probe:
    """What run_probe would show for inputs as in `meta["val"]` of the placeholders.

    Symbolic sizes count as what they were when the graph was traced. Raises UnknownSizeError, and
    whatever an op raises for fake tensors.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.no_grad())
        stack.enter_context(no_collections())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        return _estimate(module)


class _Estimator(Runner):
    def execute(self, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Executed:
        """Run one node on fakes, and alone on stand-ins if it makes something."""
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._not_executed(node, is_loop=node.target._name in _LOOPS)
        known = {tensor.untyped_storage()._cdata for tensor in tensors_of((args, kwargs))}
        value = self.function_of(node, args)(*args, **kwargs)
        made = {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
            for tensor in tensors_of(value)
            if tensor.untyped_storage()._cdata not in known
        }
        scratch = _scratch_bytes(node.target, args, kwargs) if made else 0
        return Executed(value, sum(made.values()) + scratch, drew=False)

    def _not_executed(self, node: fx.Node, is_loop: bool) -> Executed:
        """What a higher-order op gives is fresh memory; an inner graph's results are part of it.

        A loop holds what it began with, or has gathered, while it runs the inner graph once more.
        """
        if "val" not in node.meta:
            raise UnknownSizeError(f"{node.format_node()}: the graph does not say what it gives")
        value = pytree.tree_map(_concrete, node.meta["val"])
        made_bytes = sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(value))
        called = [self.environment[used] for used in node.all_input_nodes]
        inner_bytes = [_peak_bytes(graph) for graph in called if isinstance(graph, fx.GraphModule)]
        peak_bytes = max(inner_bytes, default=0)
        if is_loop:
            return Executed(value, made_bytes + peak_bytes, drew=False)
        return Executed(value, max(made_bytes, peak_bytes), drew=False)


def _estimate(module: fx.GraphModule) -> Probe:
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    return _Estimator(module, [_concrete(node.meta.get("val")) for node in placeholders]).run()


def _peak_bytes(module: fx.GraphModule) -> int:
    """Of an inner graph, above its inputs."""
    return plan(to_graph(_estimate(module)), time_budget=0).original_peak_bytes


def _concrete(value: Any) -> Any:
    """A fake of the same shape with numbers for sizes."""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(
            _numbers(value.shape), _numbers(value.stride()), dtype=value.dtype, device=value.device
        )
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        [number] = _numbers([value])
        return number
    return value


def _numbers(sizes: Sequence[Any]) -> list[Any]:
    numbers = [size if isinstance(size, int | float) else size.node.hint for size in sizes]
    if not all(isinstance(number, int | float) for number in numbers):
        raise UnknownSizeError("a size is known only when the program runs")
    return numbers


# --- scratch memory -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Layout:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def stand_in(self) -> torch.Tensor:
        # Zeros are indices and sizes that every op accepts, and quick to compute with.
        reach = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        memory = torch.zeros(reach if 0 not in self.shape else 0, dtype=self.dtype)
        return memory.as_strided(self.shape, self.stride)


def _scratch_bytes(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """What the op takes beside its result; 0 where it cannot be learned (no CPU op, no schema)."""
    leaves, spec = pytree.tree_flatten((tuple(args), kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not isinstance(target, torch._ops.OpOverload) or target.namespace not in ("aten", "prims"):
        return 0
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return 0
    described = tuple(
        _Layout(tuple(leaf.shape), leaf.stride(), leaf.dtype)
        if isinstance(leaf, torch.Tensor)
        else leaf
        for leaf in leaves
    )
    return _measured_scratch_bytes(target, described, spec, _settings())


def _settings() -> tuple[Any, ...]:
    """What scratch memory depends on beside arguments."""
    return (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
    )


@functools.lru_cache(maxsize=100_000)
def _measured_scratch_bytes(
    target: torch._ops.OpOverload,
    leaves: tuple[Any, ...],
    spec: pytree.TreeSpec,
    settings: tuple[Any, ...],
) -> int:
    """`settings` belong to the key."""
    with _disable_current_modes(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        given = [leaf.stand_in() if isinstance(leaf, _Layout) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(given, spec)
        known = {tensor.untyped_storage()._cdata for tensor in tensors_of(given)}
        try:
            with measure_peak() as memory:
                value = target(*args, **kwargs)
        except (RuntimeError, IndexError, ValueError):
            return 0  # it does not like zeros
        made = {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
            for tensor in tensors_of(value)
        }
    return max(0, memory.peak_bytes - sum(made[key] for key in made.keys() - known))
