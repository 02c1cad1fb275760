"""What torch itself makes of a model, beside which ours are measured."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from suite import Subject


def _compiled(subject: Subject, *, layouts: bool, freezing: bool) -> Any:
    torch._inductor.config.layout_optimization = layouts
    torch._inductor.config.freezing = freezing
    return torch.compile(subject.network)


def for_inference(subject: Subject) -> Any:
    """By the fusions of TorchScript."""
    return torch.jit.optimize_for_inference(subject.frozen())


COMPILERS: dict[str, Callable[[Subject], Any]] = {
    "compile": functools.partial(_compiled, layouts=True, freezing=False),
    "compile plain": functools.partial(_compiled, layouts=False, freezing=False),
    "compile freezing": functools.partial(_compiled, layouts=True, freezing=True),
}
