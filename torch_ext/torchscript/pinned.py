"""TorchScript modules with planned addresses, and files that keep the plan."""

import contextlib
import copy
import functools
import inspect
import io
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torch_ext._native import _jit
from torch_ext.arguments import FilePath
from torch_ext.files import UnreadableInputError, first_line, load_model, save_model
from torch_ext.memory.arena import ArenaReport, PinnedFunction
from torch_ext.memory.process import return_free_memory

_log = logging.getLogger("torch_ext")
PLAN = "torch_ext.arena"  # the extra file of a TorchScript file; csrc/memory/arena.cpp has its text


class PinnedModule(PinnedFunction[..., Any]):
    """A ScriptModule whose calls take their memory from an arena; see pin_addresses.

    `module` is the ScriptModule. Other attributes are the module's; what returns the module, as
    eval() does, returns this.
    """

    def __init__(self, module: torch.jit.ScriptModule, pool: "_jit.ArenaPool | None" = None):
        super().__init__(module, pool=pool)
        self.module = module

    def __getattr__(self, name: str) -> Any:
        if name == "module" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        found = getattr(self.module, name)
        return self._returning_self(found) if inspect.ismethod(found) else found

    def __setattr__(self, name: str, value: Any) -> None:
        module = self.__dict__.get("module")
        if name not in self.__dict__ and module is not None and hasattr(module, name):
            setattr(module, name, value)
        else:
            super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PinnedModule":
        pool = _jit.ArenaPool.from_text(self.to_text())
        return PinnedModule(copy.deepcopy(self.module, memo), pool)

    def save(self, path: FilePath, _extra_files: dict[str, bytes] | None = None) -> None:
        """Write the module with its plan; as torch_ext.save."""
        save(self, path, _extra_files)

    def _returning_self(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            return self if result is self.module else result

        return call


def pin_module(
    module: torch.jit.ScriptModule, examples: Sequence[tuple[Any, ...]]
) -> tuple[PinnedModule, list[int]]:
    """Plan the addresses of calls with these arguments; also the heights of their arenas in bytes.

    What is recorded are calls of a copy without gradients, with copies of the arguments: nothing of
    the module, the arguments or the random state changes, and nothing is printed. An example of
    which no two calls allocate alike, or that raises when it is called again, has none.
    """
    pool = _jit.ArenaPool()
    reports = _recorded(copy.deepcopy(module), pool, examples)
    return_free_memory()  # the copy is gone
    pinned = PinnedModule(module, pool)
    pinned.reports.update(reports)
    return pinned, [report.arena_bytes for report in reports.values()]


def _recorded(
    module: torch.jit.ScriptModule, pool: "_jit.ArenaPool", examples: Sequence[tuple[Any, ...]]
) -> dict[str, ArenaReport]:
    pinned = PinnedModule(module, pool)
    unseen = contextlib.redirect_stdout(io.StringIO())  # a module may print
    with torch.random.fork_rng(devices=[]), torch.no_grad(), unseen:
        for example in examples:
            try:
                pinned.learn(*_copied(example))
            except Exception as error:  # a module may raise when it is called once more
                _log.warning("no addresses are planned for an example: %s", first_line(error))
    return pinned.reports


def _copied(example: tuple[Any, ...]) -> tuple[Any, ...]:
    """Tensors of its own; what shared memory shares it, as where optimize runs a module."""
    leaves, spec = pytree.tree_flatten(example)
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    for i, tensor in zip(tensors, _jit.copied([leaves[i] for i in tensors]), strict=True):
        leaves[i] = tensor
    copied: tuple[Any, ...] = pytree.tree_unflatten(leaves, spec)
    return copied


def save(
    module: torch.jit.ScriptModule | PinnedModule,
    path: FilePath,
    extra_files: dict[str, bytes] | None = None,
) -> None:
    """Write a TorchScript file, whole or not at all, with the plan of its arena if it has one.

    It runs without torch_ext as any other, then without an arena. Raises ValueError for what can be
    no path, and files.UnwritableOutputError.
    """
    extra = dict(extra_files or {})
    extra.pop(PLAN, None)  # of the module that a caller read
    if isinstance(module, PinnedModule):
        extra[PLAN] = module.to_text().encode()
        module = module.module
    save_model(module, path, extra)


def load(path: FilePath) -> torch.jit.ScriptModule | PinnedModule:
    """Load a TorchScript file: with planned addresses if it has a plan, from the first call on.

    A TorchScript file is a program: load only files whose source you trust. Raises ValueError, or
    files.UnreadableInputError.
    """
    module, extra = load_model(path)
    if PLAN not in extra:
        return module
    try:
        pool = _jit.ArenaPool.from_text(extra[PLAN].decode(errors="replace"))
    except ValueError as error:
        raise UnreadableInputError(f"{path}: its extra file {PLAN}: {error}") from None
    return PinnedModule(module, pool)
