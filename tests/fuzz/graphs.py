"""The door of torch.fx: a captured graph of ATen ops, shuffled and planned.

The graph takes everything the program may write to: parameters, buffers, other tensors of the
module, inputs.
"""

import contextlib
import copy
import functools
import io
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import torch_ext.fx
from tests.fuzz.checking import (
    RANDOM_SEED,
    RULES,
    NotForThisDoorError,
    Original,
    Verdict,
    bound_fault,
    message,
)
from tests.fuzz.comparing import Call, Comparer, difference
from tests.fuzz.source import Program
from torch_ext.arguments import planning
from torch_ext.fx.apply import apply_order, copied
from torch_ext.fx.estimate import estimate_probe
from torch_ext.fx.overwritable import find_overwritable, overwrite
from torch_ext.fx.probe import Probe, run_probe
from torch_ext.fx.program import order_edges, program_of
from torch_ext.fx.slices import Slicer
from torch_ext.fx.stretch import inline_parts
from torch_ext.memory.meter import measure_peak, no_collections
from torch_ext.program.plan import Plan, plan_program

_ATTRIBUTES = ("last", "parts", "named")  # tensors that are neither parameters nor buffers
_SYMBOLIC_SIZES = 8  # one program of so many: they take long to capture

Run = Callable[..., Any]

logging.getLogger("torch._subclasses").setLevel(logging.CRITICAL)  # of what cannot be captured


class Captured(Original):
    """A graph as make_fx makes it."""

    rules = tuple(rule for rule in RULES if rule != "stateful")  # no ATen op changes such state

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        try:
            self.module, self.inputs = _capture(program)
        except Exception as raised:
            raise NotForThisDoorError(message(raised)) from raised
        values = vars(self.module).values()
        generators = [value for value in values if isinstance(value, torch.Generator)]
        self.generators = {generator: generator.get_state() for generator in generators}
        self.original = self._compiled()
        self.calls = [self._call(self.original)]
        self.require_expected(self.calls[0].error)

    def _call(self, run: Run) -> Call:
        """One call with its own copy of the inputs."""
        inputs, output, error = copy.deepcopy(self.inputs), None, ""
        self._start()
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                output = run(*inputs)
            except Exception as raised:
                error = message(raised)
        states = [torch.get_rng_state(), *(g.get_state() for g in self.generators)]
        return Call(inputs, (), output, error, torch.cat(states), printed.getvalue())

    def _start(self) -> None:
        torch.default_generator.manual_seed(RANDOM_SEED)
        for generator, state in self.generators.items():
            generator.set_state(state)

    def difference_to(self, variant: Run) -> str:
        return difference(self.calls, [self._call(variant)])

    def made_again(self) -> Run:
        return self.original

    def _compiled(self) -> Run:
        """The code of the graph: it stays what it is when the graph gets another order."""
        return functools.partial(type(self.module).forward, self.module)

    @functools.cached_property
    def probe(self) -> Probe:
        """Of inputs for which all assertions hold, as example inputs are."""
        inputs = copy.deepcopy(self.inputs)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as stack:
            if self.calls[0].error:
                stack.enter_context(_WithoutAssertions())
            self._start()
            return run_probe(self.module, inputs)

    def ordered(self, order: Sequence[str], probe: Probe) -> Run:
        """Runs the graph in this order."""
        apply_order(self.module, probe, order)
        return self._compiled()

    def shuffled(self, seed: int, without: Sequence[str], verdict: Verdict) -> Run:
        return self.ordered(random_order(order_edges(self.probe, without), seed), self.probe)

    def variants(self, shuffles: int, verdict: Verdict) -> Iterator[tuple[str, Callable[[], str]]]:
        probes = {"": self.probe}
        if self._inputs_are_separate():
            with contextlib.suppress(DynamicOutputShapeException):
                probes["estimated "] = estimate_probe(self.module)
        for kind, probe in probes.items():
            original = [op.node.name for op in probe.ops]
            yield f"{kind}original", self._differs(original, probe)
            for seed in range(shuffles):
                order = random_order(order_edges(probe), seed)
                verdict.moved_by_shuffle |= order != original
                yield f"{kind}shuffle {seed}", self._differs(order, probe)
                yield f"{kind}overwriting {seed}", self._differs_overwriting(seed, probe)
                if kind == "" and seed == 0 and not self.calls[0].error:  # they take long
                    yield f"slicing {seed}", self._differs_slicing(order, seed)
            found = plan_program(program_of(probe), planning("all", 0.05)).plan
            verdict.moved_by_optimize |= found.moved_ops > 0
            yield f"{kind}plan", self._differs(found.order, probe)
            if kind == "" and not self.calls[0].error:
                yield "peak", functools.partial(self._difference_in_memory, found)
        if not self.calls[0].error and not self.generators:
            yield "reorder", functools.partial(self._check_reorder, verdict)

    def _differs(self, order: Sequence[str], probe: Probe) -> Callable[[], str]:
        return functools.partial(self.difference_to, self.ordered(order, probe))

    def _differs_overwriting(self, seed: int, probe: Probe) -> Callable[[], str]:
        """In an order at random, with as many overwrites as can be done together."""
        uses = find_overwritable(probe)
        order, _, overwrites = program_of(probe, uses).shuffled(seed)
        edited = fx.GraphModule(self.module, copied(self.module.graph))
        probe = probe.on({node.name: node for node in edited.graph.nodes})
        apply_order(edited, probe, [probe.ops[index].node.name for index in order])
        for use in (uses[index] for index in overwrites):
            overwrite(probe.ops[use.op].node, use.form)
        edited.recompile()
        return functools.partial(
            self.difference_to, functools.partial(type(edited).forward, edited)
        )

    def _differs_slicing(self, order: Sequence[str], seed: int) -> Callable[[], str]:
        """In an order, with stretches at random that keep their bits one by one."""
        ordered = fx.GraphModule(self.module, copied(self.module.graph))
        probe = self.probe.on({node.name: node for node in ordered.graph.nodes})
        apply_order(ordered, probe, order)
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad(), no_collections():
            self._start()
            slicer = Slicer(ordered, self._slicer_inputs)
            sliced = slicer.sliced(slicer.random(seed))
        inline_parts(sliced, asks=True)
        return functools.partial(
            self.difference_to, functools.partial(type(sliced).forward, sliced)
        )

    def _slicer_inputs(self) -> list[torch.Tensor]:
        return copy.deepcopy(self.inputs)

    def _inputs_are_separate(self) -> bool:
        """As a compiler makes them: what it estimates, it estimates of these."""
        storages = {tensor.untyped_storage()._cdata for tensor in self.inputs}
        return len(storages) == len(self.inputs)

    def _difference_in_memory(self, found: Plan) -> str:
        """The allocator sees what the probe told of the best order, or less, down to the bound."""
        run, inputs = self.ordered(found.order, self.probe), copy.deepcopy(self.inputs)
        self._start()
        with contextlib.redirect_stdout(io.StringIO()), measure_peak() as memory:
            run(*inputs)
        measured = memory.peak_bytes
        if measured < found.lower_bound_bytes:
            return f"{measured} is less than {found.lower_bound_bytes}: bound"
        return "" if measured <= found.peak_bytes else f"{found.peak_bytes} became {measured}: peak"

    def _check_reorder(self, verdict: Verdict) -> str:
        """Also: nothing of the caller's changes, and the peak does not rise."""
        self.ordered([op.node.name for op in self.probe.ops], self.probe)
        inputs, nodes = copy.deepcopy(self.inputs), list(self.module.graph.nodes)
        self._start()
        random_state = torch.get_rng_state()
        with contextlib.redirect_stdout(io.StringIO()):
            result, report = torch_ext.fx.reorder(self.module, inputs, time_budget=0.05)
        if found := Comparer().compare(self.inputs, inputs, "the caller's inputs"):
            return found
        if not torch.equal(random_state, torch.get_rng_state()):
            return "the caller's random state"
        if nodes != list(self.module.graph.nodes):
            return "the caller's graph"
        peak, original_peak = report.measured_peak_bytes, report.measured_original_peak_bytes
        if peak is not None and original_peak is not None and peak > original_peak:
            return f"{original_peak} bytes became {peak}: peak"
        if report.identical is False:
            return f"{report.reason}: verification"
        if found := bound_fault(report):
            return found
        verdict.moved_by_optimize |= result is not self.module
        return self.difference_to(functools.partial(type(result).forward, result))


def _capture(program: Program) -> tuple[fx.GraphModule, list[torch.Tensor]]:
    """The graph of everything that one call reads, to everything that it leaves behind."""
    module, inputs = program.instantiate()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    attributes = {name: getattr(module, name) for name in _ATTRIBUTES if hasattr(module, name)}
    leaves, spec = pytree.tree_flatten((tensors, attributes, inputs))
    tensor_at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def call(*given: torch.Tensor) -> list[torch.Tensor]:
        all_leaves = list(leaves)
        for i, tensor in zip(tensor_at, given, strict=True):
            all_leaves[i] = tensor
        own_tensors, own_attributes, own_inputs = pytree.tree_unflatten(all_leaves, spec)
        for name, value in own_attributes.items():
            setattr(module, name, value)
        output = torch.func.functional_call(module, own_tensors, own_inputs)
        left = [getattr(module, name) for name in own_attributes]
        return [v for v in pytree.tree_leaves((output, left)) if isinstance(v, torch.Tensor)]

    flat = [leaves[i] for i in tensor_at]
    mode = "symbolic" if program.seed % _SYMBOLIC_SIZES == 0 else "fake"
    with contextlib.redirect_stdout(io.StringIO()):
        return make_fx(call, tracing_mode=mode)(*flat), flat


class _WithoutAssertions(TorchDispatchMode):
    supports_higher_order_operators = True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten._assert_async.msg:
            return None
        return func(*args, **(kwargs or {}))


def random_order(before: Mapping[str, Sequence[str]], seed: int) -> list[str]:
    """Any order in which each op comes after those that have to be before it."""
    chosen = random.Random(seed)
    missing = {op: len(earlier) for op, earlier in before.items()}
    later: dict[str, list[str]] = {op: [] for op in before}
    for op, earlier in before.items():
        for other in earlier:
            later[other].append(op)
    ready = [op for op, count in missing.items() if count == 0]
    order = []
    while ready:
        order.append(ready.pop(chosen.randrange(len(ready))))
        for op in later[order[-1]]:
            missing[op] -= 1
            if missing[op] == 0:
                ready.append(op)
    return order
