"""TorchScript modules with planned addresses, and files that keep the plan."""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from torch_ext._native import _jit
from torch_ext.arguments import FilePath
from torch_ext.files import UnreadableInputError, load_model, save_model
from torch_ext.memory.arena import PinnedFunction
from torch_ext.memory.process import return_free_memory

PLAN = "torch_ext.arena"  # the extra file of a TorchScript file; csrc/memory/arena.cpp has its text


class PinnedModule(PinnedFunction[..., Any]):
    """A ScriptModule whose calls take their memory from an arena; see pin_addresses.

    Attributes are the module's, which is `module`.
    """

    def __init__(self, module: torch.jit.ScriptModule, pool: "_jit.ArenaPool | None" = None):
        super().__init__(module, pool=pool)
        self.module = module

    def __getattr__(self, name: str) -> Any:
        if name == "module":  # before there is one
            raise AttributeError(name)
        return getattr(self.module, name)

    def save(self, path: FilePath) -> None:
        """Write the module with its plan; as torch_ext.save."""
        save(self, path)


def pin_module(
    module: torch.jit.ScriptModule, examples: Sequence[tuple[Any, ...]]
) -> tuple[PinnedModule, list[int]]:
    """Plan the addresses of calls with these arguments; also the heights of their arenas in bytes.

    What is recorded are calls of a copy without gradients, with copies of the arguments: nothing of
    the module, the arguments or the random state changes. An example of which no two calls allocate
    alike has none.
    """
    pinned = PinnedModule(copy.deepcopy(module))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        reports = [pinned.learn(*copy.deepcopy(example)) for example in examples]
    return_free_memory()
    heights = [report.arena_bytes for report in reports if report is not None]
    pinned.module = pinned._function = module
    return pinned, heights


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
    # torch's compiler keeps a copy of the source for each variable of an `if` until it is done, and
    # an edited file has its original in one: a hundred times the source, and more.
    return_free_memory()
    if PLAN not in extra:
        return module
    try:
        pool = _jit.ArenaPool.from_text(_text(extra[PLAN]))
    except ValueError as error:
        raise UnreadableInputError(f"{path}: its extra file {PLAN}: {error}") from None
    return PinnedModule(module, pool)


def _text(content: bytes | str) -> str:
    return content if isinstance(content, str) else content.decode(errors="replace")
