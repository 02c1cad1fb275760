"""Runs an FX graph node by node: storages, their bytes, scratch memory."""

import dataclasses
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from torch_ext.fx.hazards import schema_of
from torch_ext.measuring import measure_peak


@dataclasses.dataclass
class Op:
    """A node that can be moved, and what always comes right behind it.

    Behind it come items of its result and views of them: they take no memory, and would hold that
    of the result if they came later. Storages are named by numbers.
    """

    node: fx.Node
    behind: list[fx.Node]
    storages: dict[fx.Node, frozenset[int]]  # of each argument that holds tensors
    made: dict[int, int]  # storage -> bytes
    workspace_bytes: int
    draws: bool  # moved the state of the random number generator

    @property
    def nodes(self) -> list[fx.Node]:
        """In the order in which they run."""
        return [self.node, *self.behind]


@dataclasses.dataclass
class Probe:
    """What a run showed."""

    first: list[fx.Node]  # inputs, attributes, and views of them: they come before all ops
    ops: list[Op]
    outside: frozenset[int]  # storages of the inputs and attributes
    results: frozenset[int]  # storages that outlive the run
    values: dict[fx.Node, tuple[int, ...]]  # storages of each node's value


def run_probe(module: fx.GraphModule, inputs: Sequence[Any]) -> Probe:
    """Run the graph once on `inputs`, with all its effects. Raises what the graph raises."""
    with torch.no_grad():
        return _Runner(module, inputs).run()


class _Runner:
    def __init__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        self.module = module
        self.inputs = iter(inputs)
        self.environment: dict[fx.Node, Any] = {}
        self.alive: dict[int, int] = {}  # address of a storage that is alive -> its number
        self.holders: dict[int, int] = {}  # number of a storage -> values that hold it
        self.address: dict[int, int] = {}
        self.next_storage = 0
        self.probe = Probe([], [], frozenset(), frozenset(), {})
        self.home: dict[fx.Node, Op | None] = {}  # the op a node belongs to; None: before all ops

    def run(self) -> Probe:
        outside: set[int] = set()
        last_use = _last_uses(self.module.graph)
        for node in self.module.graph.nodes:
            if node.op == "output":
                held = [self.probe.values[used] for used in node.all_input_nodes]
                self.probe.results = frozenset(number for numbers in held for number in numbers)
            elif node.op in ("placeholder", "get_attr"):
                value = self._given(node)
                outside |= self._keep(node, value).keys()
                self.probe.first.append(node)
                self.home[node] = None
            else:
                self._call(node)
            for used in last_use.get(node, ()):
                self._drop(used)
        self.probe.outside = frozenset(outside)
        return self.probe

    def _given(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return next(self.inputs)
        return operator.attrgetter(str(node.target))(self.module)

    def _call(self, node: fx.Node) -> None:
        assert callable(node.target), f"{node.format_node()}: not a function"
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.environment.__getitem__)
        random_state = torch.get_rng_state()
        with measure_peak() as memory:
            value = node.target(*args, **kwargs)
        storages = {used: frozenset(self.probe.values[used]) for used in node.all_input_nodes}
        made = self._keep(node, value)
        home = self._home(node, made, memory.peak_bytes)
        self.home[node] = home
        if home is not None and home.node is not node:
            home.behind.append(node)
        elif home is None:
            self.probe.first.append(node)
        else:
            home.storages, home.made = storages, made
            home.workspace_bytes = max(0, memory.peak_bytes - sum(made.values()))
            home.draws = not torch.equal(random_state, torch.get_rng_state())
            self.probe.ops.append(home)

    def _home(self, node: fx.Node, made: dict[int, int], peak_bytes: int) -> Op | None:
        own = Op(node, [], {}, {}, 0, draws=False)
        if made or peak_bytes or len(node.all_input_nodes) != 1:
            return own
        if node.target is operator.getitem:
            return self.home[node.all_input_nodes[0]]
        schema = schema_of(node)
        if schema is None or schema.is_mutable:
            return own
        [of] = node.all_input_nodes
        shared = set(self.probe.values[node])
        is_view = bool(shared) and shared <= set(self.probe.values[of])
        return self.home[of] if is_view else own

    def _keep(self, node: fx.Node, value: Any) -> dict[int, int]:
        """Remember the value; return the storages that are new with it."""
        made: dict[int, int] = {}
        numbers = []
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            number = self.alive.get(storage._cdata)
            if number is None:
                number = self.next_storage
                self.next_storage += 1
                self.alive[storage._cdata] = number
                self.address[number] = storage._cdata
                self.holders[number] = 0
                made[number] = storage.nbytes()
            if number not in numbers:
                numbers.append(number)
                self.holders[number] += 1
        self.environment[node] = value
        self.probe.values[node] = tuple(numbers)
        return made

    def _drop(self, node: fx.Node) -> None:
        del self.environment[node]
        for number in self.probe.values[node]:
            self.holders[number] -= 1
            if self.holders[number] == 0:
                del self.alive[self.address.pop(number)]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each node, the values that nobody needs after it: as FX's own code frees them."""
    last: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for used in (*node.all_input_nodes, node):
            if used not in seen:
                seen.add(used)
                if node.op != "output":
                    last.setdefault(node, []).append(used)
    return last
