"""Runs an FX graph node by node: storages, their bytes, scratch memory."""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from torch_ext.fx.effects import draws_random_numbers, has_side_effect, is_barrier, schema_of
from torch_ext.memory.meter import measure_peak, no_collections
from torch_ext.tensors.parts import parts_of

# In the meta of a node that runs again: the name of the first node, and which run this is.
REPEAT = "torch_ext_repeat"
_WAIT = "_c10d_functional::wait_tensor"


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
    is_hidden: bool = False  # touches memory that cannot be looked into, and so nobody may pass it
    moves: bool = False  # gives a tensor other memory
    nanoseconds: int = 0  # of a run, if it was timed
    is_untimed: bool = False  # nobody knows how long a run takes

    @property
    def name(self) -> str:
        """Of the op in programs: the second run of NAME is NAME/2."""
        first, run = self.node.meta.get(REPEAT, (self.node.name, 1))
        return first if run == 1 else f"{first}/{run}"

    @property
    def nodes(self) -> list[fx.Node]:
        """In the order in which they run."""
        return [self.node, *self.behind]


@dataclasses.dataclass(frozen=True)
class Look:
    """One tensor of a value, in memory of its own kind."""

    storage: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    fills_it: bool  # all of its storage, without gaps
    is_alone: bool = dataclasses.field(default=True, compare=False)  # the value is this tensor

    @property
    def has_new_strides(self) -> bool:
        """Those of a new tensor of that size? Contiguous ones may differ where a size is 1."""
        steps = itertools.accumulate((max(size, 1) for size in self.shape[:0:-1]), operator.mul)
        return self.stride == tuple([1, *steps][: len(self.shape)][::-1])


@dataclasses.dataclass
class Probe:
    """What a run showed."""

    first: list[fx.Node]  # inputs, attributes, and views of them: they come before all ops
    ops: list[Op]
    outside: frozenset[int]  # storages of the inputs and attributes
    results: frozenset[int]  # storages that outlive the run
    values: dict[fx.Node, tuple[int, ...]]  # storages of each node's value
    looks: dict[fx.Node, Look] = dataclasses.field(default_factory=dict)  # of its first tensor

    def on(self, nodes: dict[str, fx.Node]) -> "Probe":
        """The same for a copy of the graph, whose nodes are given by name; to order it."""
        ops = [
            dataclasses.replace(
                op, node=nodes[op.node.name], behind=[nodes[node.name] for node in op.behind]
            )
            for op in self.ops
        ]
        return dataclasses.replace(
            self,
            first=[nodes[node.name] for node in self.first],
            ops=ops,
            looks={nodes[node.name]: look for node, look in self.looks.items()},
        )


def run_probe(module: fx.GraphModule, inputs: Sequence[Any], *, apart: bool = False) -> Probe:
    """Run the graph once on `inputs`, with all its effects. Raises what the graph raises.

    Whoever calls it decides on gradients: kernels may ask whether they are on. `apart`: nothing
    comes right behind an op, so each node that is no input or attribute is an op.
    """
    with no_collections():
        return Runner(module, inputs, apart=apart).run()


def buffer_name(storage: int) -> str:
    """What a program calls a storage."""
    return f"s{storage}"


@dataclasses.dataclass(frozen=True)
class Executed:
    """What a node did."""

    value: Any
    peak_bytes: int  # that it took, result and scratch
    drew: bool  # random numbers


class Runner:
    """Runs the nodes one by one; `execute` says how."""

    def __init__(
        self, module: fx.GraphModule, inputs: Sequence[Any], *, apart: bool = False
    ) -> None:
        self.module = module
        self.apart = apart
        self.inputs = iter(inputs)
        self.environment: dict[fx.Node, Any] = {}
        self.alive: dict[int, int] = {}  # address of a storage that is alive -> its number
        self.holders: dict[int, int] = {}  # number of a storage -> values that hold it
        self.address: dict[int, int] = {}
        self.next_storage = 0
        self.probe = Probe([], [], frozenset(), frozenset(), {})
        self.home: dict[fx.Node, Op | None] = {}  # the op a node belongs to; None: before all ops
        self.era = 0  # grows with every op that views must not pass: they might be other views
        self.era_of: dict[fx.Node, int] = {}  # that an op began

    def execute(self, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Executed:
        """Run one node and measure it."""
        function = self.function_of(node, args)
        random_state = torch.get_rng_state()
        with measure_peak() as memory:
            value = function(*args, **kwargs)
        drew = not torch.equal(random_state, torch.get_rng_state())
        return Executed(value, memory.peak_bytes, drew)

    def function_of(self, node: fx.Node, args: Sequence[Any]) -> Callable[..., Any]:
        """What the node calls with `args`."""
        if node.op == "call_module":
            return self.module.get_submodule(str(node.target))
        if node.op == "call_method":
            method: Callable[..., Any] = getattr(type(args[0]), str(node.target))
            return method
        assert callable(node.target), f"{node.format_node()}: not a function"
        return node.target

    def run(self) -> Probe:
        """Run all nodes. Raises what they raise."""
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
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.environment.__getitem__)
        layouts = [(tensor, _layout(tensor)) for tensor in tensors_of((args, kwargs))]
        done = self.execute(node, args, kwargs)
        storages = {used: frozenset(self.probe.values[used]) for used in node.all_input_nodes}
        made = self._keep(node, done.value)
        touched = tensors_of((args, kwargs, done.value))
        is_hidden = any(parts_of(tensor) is None for tensor in touched)
        home = self._home(node, made, done, is_hidden)
        self.home[node] = home
        if home is not None and home.node is not node:
            home.behind.append(node)
        elif home is None:
            self.probe.first.append(node)
        else:
            home.storages, home.made = storages, made
            home.workspace_bytes = max(0, done.peak_bytes - sum(made.values()))
            home.draws = done.drew
            self.probe.ops.append(home)
        changed = {id(tensor) for tensor, layout in layouts if _layout(tensor) != layout}
        if changed:
            self._look_again(changed)
            if home is not None:
                home.moves |= any(_is_elsewhere(tensor, layout) for tensor, layout in layouts)
        if home is not None and home.node is node:
            self.era += bool(changed) or home.is_hidden or is_barrier(node)
            self.era_of[home.node] = self.era

    def _look_again(self, changed: set[int]) -> None:
        """Some tensors got other metadata, perhaps other memory, whatever name they go by."""
        for node, value in self.environment.items():
            if any(id(tensor) in changed for tensor in tensors_of(value)):
                before = self.probe.values[node]
                self._keep(node, value)
                self._release(before)

    def _home(
        self, node: fx.Node, made: dict[int, int], done: Executed, is_hidden: bool
    ) -> Op | None:
        own = Op(node, [], {}, {}, 0, draws=False, is_hidden=is_hidden)
        if self.apart or is_hidden or made or done.peak_bytes or done.drew:
            return own
        if len(node.all_input_nodes) != 1:
            return own
        [of] = node.all_input_nodes
        if node.target is operator.getitem:
            return self.home[of]
        schema = schema_of(node)
        if schema is None or schema.is_mutable or draws_random_numbers(node):
            return own
        # A wait comes right behind what it waits for, although nobody knows what else it does.
        if schema.name != _WAIT and (is_barrier(node) or has_side_effect(node)):
            return own
        shared = set(self.probe.values[node])
        is_view = bool(shared) and shared <= set(self.probe.values[of])
        home = self.home[of]
        era = 0 if home is None else self.era_of[home.node]
        return home if is_view and era == self.era else own

    def _keep(self, node: fx.Node, value: Any) -> dict[int, int]:
        """Remember the value; return the storages that are new with it."""
        made: dict[int, int] = {}
        numbers = []
        for address, size_bytes in storages_of(value).items():
            number = self.alive.get(address)
            if number is None:
                number = self.next_storage
                self.next_storage += 1
                self.alive[address] = number
                self.address[number] = address
                self.holders[number] = 0
                made[number] = size_bytes
            numbers.append(number)
            self.holders[number] += 1
        self.environment[node] = value
        self.probe.values[node] = tuple(numbers)
        if look := self._look(value):
            self.probe.looks[node] = look
        return made

    def _look(self, value: Any) -> Look | None:
        first = value[0] if isinstance(value, tuple) and value else value
        is_plain = type(first) in (torch.Tensor, torch.nn.Parameter, FakeTensor)
        if not is_plain or first.layout is not torch.strided or first.device.type != "cpu":
            return None
        if first.is_nested or first.is_conj() or first.is_neg():
            return None
        memory = first.untyped_storage()
        is_dense = torch.ops.aten.is_non_overlapping_and_dense.default(first)
        fills_it = is_dense and memory.nbytes() == first.nbytes
        look = tuple(first.shape), tuple(first.stride()), first.dtype, fills_it
        return Look(self.alive[memory._cdata], *look, is_alone=first is value)

    def _drop(self, node: fx.Node) -> None:
        del self.environment[node]
        self._release(self.probe.values[node])

    def _release(self, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            self.holders[number] -= 1
            if self.holders[number] == 0:
                del self.alive[self.address.pop(number)]


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in a value, however nested."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf


def storages_of(value: Any) -> dict[int, int]:
    """The storages of all tensors in a value: an address each, and bytes of the CPU's memory."""
    storages = {}
    for tensor in tensors_of(value):
        parts = parts_of(tensor)
        if parts is None:  # of its own, as far as can be told
            storages[id(tensor)] = tensor.numel() * tensor.element_size()
        for part in parts or ():
            is_cpu = part.device.type == "cpu"
            storage = part.untyped_storage()
            storages[storage._cdata] = storage.nbytes() if is_cpu else 0
    return storages


def _layout(tensor: torch.Tensor) -> list[tuple[Any, ...]]:
    return [
        (part.untyped_storage()._cdata, part.storage_offset(), part.shape, part.stride())
        for part in parts_of(tensor) or ()
    ]


def _is_elsewhere(tensor: torch.Tensor, layout: list[tuple[Any, ...]]) -> bool:
    """Has the tensor other memory than when its layout was that?"""
    return [part[0] for part in _layout(tensor)] != [part[0] for part in layout]


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
