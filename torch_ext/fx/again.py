"""Ops of the forward pass that run again in the backward pass: under the modes that they ran under.

A backward pass may be called under other modes than its forward pass: within torch.autocast, with
another precision of matrix products. Its own ops are the user's to choose modes for; those that run
again are not.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

_Modes = tuple[Any, ...]
_seen: list[_Modes] = []  # all modes of forward passes in this process: few


def _now() -> _Modes:
    cpu = torch.backends.mkldnn
    return (
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_float32_matmul_precision(),
        *(cpu.enabled, cpu.deterministic, cpu.allow_tf32),
    )


def _set(modes: _Modes) -> None:
    threads, deterministic, warns, precision = modes[2:6]
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=warns)
    torch.set_float32_matmul_precision(precision)


@contextlib.contextmanager
def _under(modes: _Modes) -> Iterator[None]:
    before = _now()
    enabled, dtype = modes[:2]
    kernels = modes[6:]
    with (
        torch.autocast("cpu", dtype=dtype, enabled=enabled),
        torch.backends.mkldnn.flags(*kernels),
    ):
        _set(modes)
        try:
            yield
        finally:
            _set(before)


class Snapshot:
    """Remembers the modes of a forward pass; gives a number for them, which is saved."""

    __name__ = "snapshot"

    def __call__(self) -> torch.Tensor:
        """Return the place of the modes among those that were seen."""
        modes = _now()
        if modes not in _seen:
            _seen.append(modes)
        return torch.tensor(_seen.index(modes))


@dataclasses.dataclass(frozen=True)
class Again:
    """Calls the operator under the modes of a snapshot, its first argument."""

    target: torch._ops.OpOverload

    @property
    def __name__(self) -> str:
        return "again"

    def __call__(self, snapshot: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the operator gives."""
        modes = _seen[int(snapshot)]
        if modes == _now():
            return self.target(*args, **kwargs)
        with _under(modes):
            return self.target(*args, **kwargs)
