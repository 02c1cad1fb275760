"""Which stretches of a graph of torch.fx run in parts, found by trying.

The choice is that of csrc/program/levers/slice_search.h. Here ops run whole and in parts, and every
part of every value is compared bit for bit: as they follow from each other in the example, and each
op alone on random numbers, state among them. For of zeros, which masks and new weights make, parts
are the same by any order of sums.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from torch_ext import _sched
from torch_ext.fx.apply import copied
from torch_ext.fx.effects import schema_of
from torch_ext.fx.graphs import with_own_state
from torch_ext.fx.loosen import ORIGIN, loosen
from torch_ext.fx.overwritable import find_overwritable, forms_by_argument
from torch_ext.fx.probe import Probe, run_probe, storages_of
from torch_ext.fx.sliceable import sliceable_program, why_not_sliced
from torch_ext.fx.stretch import Unrolled, call_parts, unroll
from torch_ext.memory.meter import measure_peak, no_collections
from torch_ext.program.plan import Reason
from torch_ext.program.program import Slice
from torch_ext.tensors.compare import same_numbers

Inputs = Callable[[], Sequence[Any]]
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Slicer:
    """Tries slices of a graph in the order it has."""

    def __init__(self, module: fx.GraphModule, inputs: Inputs) -> None:
        """`inputs`: makes those of a run of the example; a run may write to them."""
        self.module = module  # whose state no run may change
        own = with_own_state(module)
        own = fx.GraphModule(own, copied(own.graph))
        self.graph = own.graph
        self.inputs = inputs
        self._look_at(own)
        # What no slices, order, overwrite or hoist go below, with the graph loosened or as it was.
        self.floor_bytes = _sched.floor_bytes(self.program)
        if not why_not_sliced(self.probe) and loosen(self.graph, self.probe):
            own.recompile()
            self._look_at(own)
            self.floor_bytes = min(self.floor_bytes, _sched.floor_bytes(self.program))
        self.facts = _sched.SliceFacts(self.program)
        self.order = list(range(len(self.probe.ops)))
        self.choices: list[_sched.Choice] = []

    def _look_at(self, module: fx.GraphModule) -> None:
        with torch.random.fork_rng(devices=[]):
            self.probe = run_probe(module, self.inputs(), apart=True)
        overwritable = find_overwritable(self.probe)
        self.forms = forms_by_argument(self.probe, overwritable)
        self.program = sliceable_program(self.graph, self.probe, overwritable)

    def choose(self, peak_bytes: int, budget_bytes: int | None) -> list[_sched.Choice]:
        """Stretches for each target below the peak that the program has without slices."""
        targets = _sched.slice_targets(peak_bytes, budget_bytes)
        self.choices = _sched.choose_stretches(
            self.program, self.order, self.facts, targets, self._learn
        )
        return self.choices

    def random(self, seed: int) -> list[_sched.Stretch]:
        """Return stretches at random, for tests: of those that keep their bits here."""
        return _sched.random_stretches(self.program, self.order, self.facts, seed, self._learn)

    def sliced(self, stretches: Sequence[_sched.Stretch]) -> fx.GraphModule:
        """Return the module with a node for each stretch (stretch.inline_parts)."""
        result = fx.GraphModule(self.module, copied(self.graph))
        nodes = {node.name: node for node in result.graph.nodes}
        probe = self.probe.on(nodes)
        for number, stretch in enumerate(stretches):
            sliced = self._sliced(stretch)
            parts = unroll(_name(number), self.program, sliced, self.probe, self.forms)
            older = tuple(nodes[node.name] for node in parts.older)
            called = dataclasses.replace(parts, older=older)
            nodes |= call_parts(result, probe, sliced, called)
        result.graph.lint()
        result.recompile()
        return result

    def slices(self, stretches: Sequence[_sched.Stretch]) -> tuple[Slice, ...]:
        """Return what a report says of them."""
        told = []
        for number, stretch in enumerate(stretches):
            result = self.probe.ops[stretch.ops[-1]].node
            shape = self.probe.looks[result].shape
            ops = (self.probe.ops[op.op].node for op in self._sliced(stretch).ops)
            told.append(
                Slice(
                    name=_name(number),
                    ops=tuple(dict.fromkeys(map(_name_in_program, ops))),
                    result=_name_in_program(result),
                    shape=shape,
                    dimension=stretch.dimension,
                    parts=-(-shape[stretch.dimension] // stretch.part_size),
                )
            )
        return tuple(told)

    def results(self, stretches: Sequence[_sched.Stretch]) -> dict[str, list[str]]:
        """Return the values that each makes, in the sequence of its buffers."""
        named = {}
        for number, stretch in enumerate(stretches):
            sliced = self._sliced(stretch)
            nodes = [self.probe.ops[op.op].node.name for op in sliced.ops]
            named[_name(number)] = [name for name in nodes if name in sliced.results]
        return named

    def why_none(self, trials: Sequence[_sched.SliceTrial], has_budget: bool) -> Reason:
        """Return why no slices are used, or no more of them."""
        obstacles = why_not_sliced(self.probe) or _sched.slice_obstacles(
            self.program, self.facts, self.choices
        )
        return Reason(**_sched.why_no_slices(trials, has_budget, obstacles))

    def _sliced(self, stretch: _sched.Stretch) -> _sched.SlicedStretch:
        sliced = _sched.sliced(self.program, stretch, self.facts)
        assert sliced is not None, "a stretch that was chosen is none"
        return sliced

    def _learn(self, stretches: list[_sched.Stretch]) -> None:
        watches = [
            _Watch(
                self.probe,
                sliced := self._sliced(stretch),
                unroll(_name(number), self.program, sliced, self.probe, self.forms),
                unroll(_name(number), self.program, sliced, self.probe, self.forms, alone=True),
            )
            for number, stretch in enumerate(stretches)
        ]
        with no_collections():
            try:
                with torch.random.fork_rng(devices=[]), contextlib.suppress(_AllIsSeenError):
                    trial = _Trial(with_own_state(self.module), self.graph, watches)
                    trial.run(*self.inputs(), enable_io_processing=False)
            except Exception:
                # An op that raises in parts, or makes what is no part, is not run in parts again.
                if not any(watch.has_found for watch in watches):
                    raise
            for watch in watches:
                watch.run_alone()
                watch.tell_to(self.facts)


def at_random(values: Any) -> Any:
    """The same with random numbers in the tensors of floats, of a stream of their own."""
    generator = torch.Generator().manual_seed(0)

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype not in _FLOATS or not _is_plain(tensor):
            return tensor
        return tensor.detach().clone().normal_(0, 1, generator=generator)

    return pytree.tree_map_only(torch.Tensor, filled, values)


def _at_random(value: Any) -> Any:
    """A value that looks like it, of random numbers if it has numbers of floats."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype not in _FLOATS or not _is_plain(value):
        return value.clone()
    if torch._debug_has_internal_overlap(value):
        value = value.contiguous()
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).normal_(
        generator=torch.Generator().manual_seed(value.numel())
    )


def _is_plain(tensor: torch.Tensor) -> bool:
    is_own_kind = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return is_own_kind and tensor.layout is torch.strided and tensor.is_cpu


def _name_in_program(node: fx.Node) -> str:
    return str(node.meta.get(ORIGIN, node.name))


def _name(number: int) -> str:
    return f"stretch_{number}"


@dataclasses.dataclass
class _Seen:
    """What an op did in parts."""

    runs: int = 0
    keeps_bits: bool = True
    workspace_bytes: int = 0
    differs: set[int] = dataclasses.field(default_factory=set)  # parts


class _Watch:
    """One stretch while it runs whole and then in parts."""

    def __init__(
        self,
        probe: Probe,
        stretch: _sched.SlicedStretch,
        unrolled: Unrolled,
        alone: Unrolled,
    ) -> None:
        self.stretch = stretch
        self.unrolled = unrolled
        self.alone = alone
        self.operands: dict[fx.Node, Any] = dict.fromkeys(alone.older)  # of ops alone
        self.nodes = [probe.ops[op.op].node for op in stretch.ops]
        self.place_of = {node: place for place, node in enumerate(self.nodes)}
        self.before = [
            [self.place_of[used] for used in node.all_input_nodes if used in self.place_of]
            for node in self.nodes
        ]
        self.reads = frozenset(unrolled.older)
        self.seen = [_Seen() for _ in self.nodes]
        self.running: int | None = None
        self.older: dict[fx.Node, Any] = {}
        self.whole: dict[fx.Node, torch.Tensor] = {}

    @property
    def has_found(self) -> bool:
        """Is there an op that does not run in these parts?"""
        return self.running is not None or not all(seen.keeps_bits for seen in self.seen)

    def see(self, node: fx.Node, value: Any) -> None:
        """A node of the module has run."""
        if node in self.operands:
            self.operands[node] = _at_random(value)
        if node in self.reads:
            self.older[node] = value
        if node in self.place_of:
            self.whole[node] = value.clone()
        if node is self.nodes[-1]:
            older = [self.older[used] for used in self.unrolled.older]
            _PartRun(self, self.unrolled).run(*older, enable_io_processing=False)
            self.older.clear()
            self.whole.clear()

    def run_alone(self) -> None:
        """Each op on random numbers."""
        if self.running is not None or any(value is None for value in self.operands.values()):
            return  # the example has not come so far
        for node in self.nodes:
            own = {used: self.operands[used] for used in node.all_input_nodes}
            if schema_of(node).is_mutable:  # type: ignore[union-attr]
                own = {used: value.clone() for used, value in own.items()}
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), own.__getitem__)
            assert callable(node.target)
            self.whole[node] = node.target(*args, **kwargs)
        for seen in self.seen:
            seen.differs.clear()
        self.before = [[] for _ in self.nodes]
        with contextlib.suppress(Exception):
            _PartRun(self, self.alone).run(*self.operands.values(), enable_io_processing=False)
        self.whole.clear()
        self.operands.clear()

    def look(self, place: int, part: int, rows: torch.Tensor) -> None:
        """A part of the value of an op is there."""
        seen, op = self.seen[place], self.stretch.ops[place]
        has_others = any(self._gives_others(before, part) for before in self.before[place])
        begin, end = op.computed[part]
        expected = self.whole[self.nodes[place]].narrow(op.dimension, begin, end - begin)
        if same_numbers(rows.contiguous(), expected.contiguous()):
            return
        seen.differs.add(part)
        seen.keeps_bits &= has_others

    def _gives_others(self, place: int, part: int) -> bool:
        """Whether what reads the part reads other bits; kept rows may be of any part before."""
        differs = self.seen[place].differs
        keeps_rows = self.stretch.ops[place].keeps_rows
        return any(other <= part for other in differs) if keeps_rows else part in differs

    def tell_to(self, facts: _sched.SliceFacts) -> None:
        """What has been seen; an op that has not run to its end is none to run in parts."""
        for place, (op, seen) in enumerate(zip(self.stretch.ops, self.seen, strict=True)):
            has_failed = self.running == place
            if seen.runs or has_failed:
                facts.learn(
                    op,
                    keeps_bits=seen.keeps_bits and not has_failed,
                    workspace_bytes=seen.workspace_bytes,
                )


class _AllIsSeenError(Exception):
    """All stretches have run."""


class _Trial(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, graph: fx.Graph, watches: Sequence[_Watch]) -> None:
        super().__init__(module, graph=graph)
        self.watches = watches
        self.last_nodes = {watch.nodes[-1] for watch in watches}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for watch in self.watches:
            watch.see(n, value)
        self.last_nodes.discard(n)
        if not self.last_nodes:
            raise _AllIsSeenError
        return value


class _PartRun(fx.Interpreter):
    """Measures the ops of the parts, and has what they make compared."""

    def __init__(self, watch: _Watch, unrolled: Unrolled) -> None:
        super().__init__(unrolled.parts.module)
        self.watch = watch
        self.made = unrolled.made

    def run_node(self, n: fx.Node) -> Any:
        made = self.made.get(n)
        if made is None:
            return super().run_node(n)
        seen = self.watch.seen[made.place]
        if made.runs:
            self.watch.running = made.place
            with measure_peak() as memory:
                value = super().run_node(n)
            known = storages_of([self.env[used] for used in n.all_input_nodes])
            made_bytes = sum(size for key, size in storages_of(value).items() if key not in known)
            seen.runs += 1
            seen.workspace_bytes = max(seen.workspace_bytes, memory.peak_bytes - made_bytes)
        else:
            value = super().run_node(n)
        op = self.watch.stretch.ops[made.place]
        begin, end = op.computed[made.part]
        is_part = isinstance(value, torch.Tensor) and value.shape[op.dimension] == end - begin
        if not made.runs or is_part:
            self.watch.look(made.place, made.part, value)
            self.watch.running = None
        return value
