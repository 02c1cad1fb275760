"""The extension module that needs torch, checked against the torch that is installed."""

import functools
from types import ModuleType
from typing import TYPE_CHECKING

from torch_ext import _sched

if TYPE_CHECKING:
    from torch_ext import _jit


def check_version(built_for: str, installed: str) -> None:
    """One binary serves one minor version of torch. Raises ImportError that says what to run."""
    if _minor(built_for) != _minor(installed):
        raise ImportError(
            f"torch_ext was built for torch {built_for}, but torch {installed} is installed; "
            "rebuild it: pip install --no-build-isolation --force-reinstall --no-deps . "
            "in torch_ext's folder"
        )


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


@functools.cache
def _load() -> ModuleType:
    import torch

    check_version(_sched.built_for_torch, torch.__version__)
    from torch_ext import _jit

    return _jit


def jit() -> "type[_jit]":
    """The module torch_ext._jit, loaded on first use."""
    return _load()  # type: ignore[return-value]
