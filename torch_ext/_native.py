"""The extension module that needs torch, behind a check that it fits the torch that is installed.

Import `_jit` from here, never directly: a binary that was built for another torch may crash.
"""

import torch

from torch_ext import _sched


def check_version(built_for: str, installed: str) -> None:
    """One binary serves one minor version of torch. Raises ImportError that says what to run."""
    if _minor(built_for) != _minor(installed):
        raise ImportError(
            f"torch_ext was built for torch {built_for}, but torch {installed} is installed; "
            "rebuild it in torch_ext's folder: "
            "pip install --no-build-isolation --force-reinstall --no-deps ."
        )


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


check_version(_sched.built_for_torch, torch.__version__)

from torch_ext import _jit  # noqa: E402

__all__ = ["_jit", "check_version"]
