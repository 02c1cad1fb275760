"""State that modules keep in plain attributes: all that is neither a parameter nor a buffer.

A number, a flag, a tensor, a list or dict of them, a configuration object, a hook: forward may read
each and may change some. A graph has what it was captured with, so whoever uses it must notice.

What is inside is looked at through lists, dicts, sets, tuples, bound methods, partial functions,
objects of the user's classes and torch's distributions; of functions the closure, and those
variables of their module that they name, if these are numbers, texts, tensors or containers. What
a function calls is not looked into. Of containers with more than 10,000 items only the length is
looked at, and of arrays of NumPy only the first MiB; objects of other libraries are told apart by
identity alone.
"""

import collections
import contextlib
import copy
import dataclasses
import enum
import functools
import itertools
import operator
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from torch_ext.tensors.compare import same_bits

_MOST_ITEMS = 10_000
_MOST_ARRAY_BYTES = 2**20
# Libraries that are not looked into, and what of them is all the same.
_OPAQUE = {"torch", "numpy", *sys.stdlib_module_names} - {"argparse", "collections", "types"}
_LOOKED_INTO = "torch.distributions"
_SHARED = {"torch", "torchvision", "transformers"}  # whose functions nobody rewrites
# Of a module: the mode, and what forward does not read.
_LEFT_OUT = {
    "training",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
}
_TABLES = ("_parameters", "_buffers", "_modules")  # what they hold is an attribute of the module
_SEQUENCES = (list, tuple, set, frozenset, collections.deque)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Something that is not looked into, or that holds nothing."""

    path: str
    value: Any


class Watch:
    """All attributes of a module and of those in it, as they are now."""

    def __init__(self, root: nn.Module) -> None:
        leaves, containers = _walk(root)
        filled = [one for one in containers if len(one)]
        self._empty = [one for one in containers if not len(one)]
        self._values = _Row(map(_values, filled))
        # A key that comes in later is the last.
        self._dicts = [one for one in filled if isinstance(one, dict)]
        self._last_keys = list(map(next, map(reversed, self._dicts)))
        self._modules = [leaf.value for leaf in leaves if isinstance(leaf.value, nn.Module)]
        self._kinds: list[Any] = list(map(type, self._modules))
        kinds = dict.fromkeys(self._kinds)
        self._forwards = [(kind, kind.forward) for kind in kinds if not _is_scripted(kind)]
        names, computed = _registered(root), _computed(root)
        leaves = [leaf for leaf in leaves if leaf.path not in computed]
        tensors = (leaf.value for leaf in leaves if isinstance(leaf.value, torch.Tensor))
        changing = [tensor for tensor in tensors if id(tensor) not in names]
        self._tensors = [(tensor, _version(tensor)) for tensor in changing]
        self._arrays = [leaf.value for leaf in leaves if _is_array(leaf.value)]
        self._bytes = list(map(_array_bytes, self._arrays))
        # Equal for equal attributes: hashable, and keeps no module and no tensor alive. A parameter
        # or buffer counts by its name, so that it tells which are tied.
        self.signature = tuple((leaf.path, _token(leaf.value, names)) for leaf in leaves)

    def is_unchanged(self) -> bool:
        """Has nothing been assigned or written to since, parameters and buffers included?

        For every step, so it compares identities; what is equal may still be another object.
        """
        return (
            self._values.is_unchanged()
            and not any(self._empty)
            and list(map(next, map(reversed, self._dicts))) == self._last_keys
            and list(map(type, self._modules)) == self._kinds
            and all(kind.forward is forward for kind, forward in self._forwards)
            and all(_version(tensor) == version for tensor, version in self._tensors)
            and list(map(_array_bytes, self._arrays)) == self._bytes
        )


class _Row:
    """What several containers hold, in a row, so that comparing them is one loop in C."""

    def __init__(self, containers: Iterable[Any]) -> None:
        self._containers = list(containers)
        self._lengths = list(map(len, self._containers))
        self._items = tuple(itertools.chain.from_iterable(self._containers))

    def is_unchanged(self) -> bool:
        """Do they hold the same objects, in the same places?"""
        return list(map(len, self._containers)) == self._lengths and all(
            map(operator.is_, itertools.chain.from_iterable(self._containers), self._items)
        )


def may_return(signature: tuple[Any, ...]) -> bool:
    """Can attributes be equal to these again? Not after a module or tensor among them has gone."""
    leaves = pytree.tree_leaves(signature)
    return all(leaf.get() is not None for leaf in leaves if isinstance(leaf, _Identity))


class Saved:
    """Attributes and buffers of a module and of those in it, to be put back later."""

    def __init__(self, root: nn.Module) -> None:
        leaves, containers = _walk(root)
        parameters = set(map(id, root.parameters()))
        self._containers = [
            (one, tuple(one) if isinstance(one, _Slots | _Variables) else copy.copy(one))
            for one in containers
            if not isinstance(one, tuple | frozenset)
        ]
        self._tensors = [
            (leaf.value, leaf.value.detach().clone())
            for leaf in leaves
            if isinstance(leaf.value, torch.Tensor) and id(leaf.value) not in parameters
        ]
        arrays = (leaf.value for leaf in leaves if _is_array(leaf.value))
        self._arrays = [(array, array.copy()) for array in arrays if array.ndim]
        values = (leaf.value for leaf in leaves)
        generators = (value for value in values if isinstance(value, torch.Generator))
        self._generators = [(generator, generator.get_state()) for generator in generators]

    def put_back(self) -> None:
        """Make everything what it was, down to the identity of objects."""
        for container, before in self._containers:
            if _are_these(_values(container), _values(before)):
                continue
            if isinstance(container, _Slots | _Variables):
                container.put_back(before)
                continue
            container.clear()
            if isinstance(container, dict | set):
                container.update(before)
            else:
                container.extend(before)
        with torch.no_grad():
            for tensor, value in self._tensors:
                if not same_bits(tensor, value):
                    tensor.copy_(value)
        for array, value in self._arrays:
            array[...] = value
        for generator, state in self._generators:
            generator.set_state(state)


def contents(root: nn.Module) -> dict[str, Any]:
    """Copies of all values by their paths, to compare with later ones (see changes)."""
    names, computed = _registered(root), _computed(root)
    return {
        leaf.path: _copy(leaf.value)
        for leaf in _walk(root)[0]
        if id(leaf.value) not in names and leaf.path not in computed
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The paths of attributes that were added, removed, or have another value."""
    paths = [*before, *(path for path in after if path not in before)]
    return [
        path
        for path in paths
        if path not in before or path not in after or not _same(before[path], after[path])
    ]


def plain_values(root: Any) -> dict[str, Any]:
    """What two equal objects have in common: numbers, texts and tensors by path, and kinds."""
    return {leaf.path: _plain(leaf.value) for leaf in _walk(root)[0]}


def tensors_in_a_graph(root: nn.Module) -> list[torch.Tensor]:
    """Tensors in attributes that autograd computed, which copy.deepcopy refuses."""
    values = (leaf.value for leaf in _walk(root)[0])
    return [one for one in values if isinstance(one, torch.Tensor) and not one.is_leaf]


def path_of(root: nn.Module, tensor: torch.Tensor) -> str:
    """The attribute that holds a tensor, or one that shares its memory; empty if none does."""
    storage = tensor.untyped_storage()._cdata
    for leaf in _walk(root)[0]:
        value = leaf.value
        is_strided = isinstance(value, torch.Tensor) and value.layout is torch.strided
        if is_strided and value.untyped_storage()._cdata == storage:
            return leaf.path
    return ""


# --- walking --------------------------------------------------------------------------------------


def _walk(root: nn.Module) -> tuple[list[Leaf], list[Any]]:
    """Everything that is not looked into, and all containers, each once.

    Modules and functions are both, for it matters which ones they are.
    """
    leaves: list[Leaf] = []
    containers: list[Any] = []
    left: list[tuple[str, Any]] = [("", root)]
    seen: set[int] = set()
    while left:
        path, value = left.pop()
        held = _held(value)
        if held is None or isinstance(value, nn.Module | types.FunctionType):
            leaves.append(Leaf(path, value))
        if held is None or id(value) in seen:
            continue
        seen.add(id(value))
        if sum(map(len, held)) > _MOST_ITEMS:
            leaves.append(Leaf(path, sum(map(len, held))))
            continue
        containers += held
        left += reversed(list(_items(path, value, held)))
    return leaves, containers


def _held(value: Any) -> list[Any] | None:
    """What holds the parts of a value: dicts, or what has a length and gives the parts.

    None if it is not looked into.
    """
    if isinstance(value, nn.Module):
        tables = (vars(value).get(table) for table in _TABLES)
        return [vars(value), *(table for table in tables if isinstance(table, dict))]
    if isinstance(value, (dict, *_SEQUENCES)):
        own = getattr(value, "__dict__", None)
        return [value, own] if own else [value]
    if isinstance(value, types.FunctionType):
        return [_Variables(value)]
    if isinstance(value, types.MethodType):
        return [(value.__self__, value.__func__)]
    if isinstance(value, functools.partial):
        return [(value.func, value.args, value.keywords)]
    if isinstance(value, torch.Tensor | type | types.ModuleType | enum.Enum):
        return None
    kind = type(value)
    is_opaque = kind.__module__.partition(".")[0] in _OPAQUE
    if is_opaque and not kind.__module__.startswith(_LOOKED_INTO):
        return None
    own = getattr(value, "__dict__", None)
    slots = _Slots(value)
    held = [own] if isinstance(own, dict) else []
    return ([*held, slots] if len(slots) else held) or None


class _Slots:
    """The attributes of an object that has slots for them."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        slots = (vars(kind).get("__slots__", ()) for kind in type(owner).__mro__)
        names = itertools.chain(*((one,) if isinstance(one, str) else one for one in slots))
        self.names = [name for name in names if not name.startswith("__")]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self.owner, name, None) for name in self.names)

    def put_back(self, values: tuple[Any, ...]) -> None:
        for name, value in zip(self.names, values, strict=True):
            setattr(self.owner, name, value)


class _Variables:
    """What a function finds outside of itself: its closure, defaults, and plain variables."""

    def __init__(self, function: types.FunctionType) -> None:
        self.function = function
        self.cells = dict(
            zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        )
        plain = (bool, int, float, complex, str, torch.Tensor, nn.Module, dict, *_SEQUENCES)
        known = function.__globals__
        is_shared = (function.__module__ or "").partition(".")[0] in _SHARED
        self.globals = [
            name
            for name in (() if is_shared else function.__code__.co_names)
            if isinstance(known.get(name), plain) or _is_array(known.get(name))
        ]
        self.names = [*self.cells, *self.globals, "__defaults__", "__kwdefaults__"]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Any]:
        for cell in self.cells.values():
            try:
                yield cell.cell_contents
            except ValueError:  # not assigned yet
                yield None
        yield from map(self.function.__globals__.get, self.globals)
        yield from (self.function.__defaults__, self.function.__kwdefaults__)

    def put_back(self, values: tuple[Any, ...]) -> None:
        for cell, value in zip(self.cells.values(), values, strict=False):
            cell.cell_contents = value
        for name, value in zip(self.globals, values[len(self.cells) :], strict=False):
            self.function.__globals__[name] = value


def _items(path: str, value: Any, held: list[Any]) -> Iterator[tuple[str, Any]]:
    """The parts of a value, by their paths."""
    if isinstance(value, nn.Module):
        yield from _items_of_module(path, value)
        return
    for container in held:
        if isinstance(container, _Slots | _Variables):
            yield from (
                (_joined(path, n), v) for n, v in zip(container.names, container, strict=True)
            )
        elif isinstance(container, dict) and container is not value:
            yield from ((_joined(path, str(name)), part) for name, part in container.items())
        elif isinstance(container, dict):
            yield from ((f"{path}[{key!r}]", part) for key, part in container.items())
        else:
            yield from ((f"{path}[{index}]", part) for index, part in enumerate(container))


def _items_of_module(path: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    if not type(module).__module__.startswith(tuple(f"{name}." for name in _SHARED)):
        yield _joined(path, "forward()"), type(module).forward
    for name, part in vars(module).items():
        if name in _TABLES:
            yield from ((_joined(path, key), one) for key, one in part.items())
        elif name not in _LEFT_OUT and not _is_scripted(type(module)):
            yield _joined(path, name), part


def _is_scripted(kind: type) -> bool:
    """A script's forward and state are out of Python's sight."""
    return issubclass(kind, torch.jit.ScriptModule)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _are_these(values: Any, known: Any) -> bool:
    return len(values) == len(known) and all(map(operator.is_, values, known))


def _values(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


def _computed_by_hooks(module: nn.Module) -> set[str]:
    """Attributes that a hook of torch's computes before each forward pass, from parameters."""
    names = set()
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            names.add(hook.name)
        elif isinstance(hook, BasePruningMethod):
            names.add(str(hook._tensor_name))
    return names


def _computed(root: nn.Module) -> set[str]:
    return {
        _joined(path, name)
        for path, module in root.named_modules()
        for name in _computed_by_hooks(module)
    }


# --- values ---------------------------------------------------------------------------------------


class _Identity:
    """An object that is told apart by being another; kept alive only if it has to be."""

    def __init__(self, value: Any, keep: bool = False) -> None:
        self._key = id(value)
        self.get: Callable[[], Any] = lambda: value  # None when it is gone
        if not keep:
            with contextlib.suppress(TypeError):
                self.get = weakref.ref(value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Identity) or self._key != other._key:
            return False
        value = self.get()
        return value is not None and value is other.get()

    def __hash__(self) -> int:
        return self._key


def _token(value: Any, names: Mapping[int, str]) -> Any:
    """Equal for equal values; hashable."""
    if id(value) in names:
        return "registered", names[id(value)]
    if isinstance(value, torch.Tensor):
        return _Identity(value), _version(value)
    if _is_array(value):
        return _Identity(value), _array_bytes(value)
    if isinstance(value, bool | int | float | complex):
        return type(value), repr(value)  # -0.0 is equal to 0.0, and nan to nothing
    if isinstance(value, str | bytes | torch.dtype | torch.device | torch.layout | None):
        return value
    if isinstance(value, nn.Module):
        kind = type(value)
        forward = None if _is_scripted(kind) else _Identity(kind.forward)
        return _Identity(value), kind, forward
    return _Identity(value)


def _plain(value: Any) -> Any:
    """The value of what has one, the kind of what is told apart by identity alone."""
    if isinstance(value, torch.Tensor):
        return value
    if _is_array(value):
        return value.dtype, value.shape, _array_bytes(value)
    token = _token(value, {})
    is_told_apart = isinstance(token, _Identity) or isinstance(value, nn.Module)
    return type(value) if is_told_apart else token


def _registered(root: nn.Module) -> dict[int, str]:
    named = [*root.named_parameters(), *root.named_buffers()]
    return {id(tensor): name for name, tensor in named}


def _version(tensor: torch.Tensor) -> int:
    """Grows with every write; tensors made in inference mode count none."""
    return -1 if tensor.is_inference() else tensor._version


def _is_array(value: Any) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "tobytes")


def _array_bytes(array: Any) -> bytes:
    content: bytes = array.ravel()[: _MOST_ARRAY_BYTES // max(1, array.itemsize)].tobytes()
    return content


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):  # an equal one that is assigned anew is a change
        gradient = value.grad if value.is_leaf else None
        copies = [None if one is None else one.detach().clone() for one in (value, gradient)]
        return _Identity(value, keep=True), *copies
    if _is_array(value):
        return _plain(value)
    return _token(value, {})


def _same(a: Any, b: Any) -> bool:
    leaves, others = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(leaves) == len(others) and all(map(same_bits, leaves, others))
