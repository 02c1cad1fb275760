"""What a call of a program did, and the first difference between two."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class Call:
    """One call and everything it left behind."""

    inputs: tuple[Any, ...]
    state: tuple[Any, ...]
    output: Any
    error: str
    random_state: torch.Tensor
    printed: str


def difference(expected: Sequence[Call], actual: Sequence[Call]) -> str:
    """The first difference between two runs, its kind behind the last colon; empty if none."""
    for number, (a, b) in enumerate(zip(expected, actual, strict=True), start=1):
        if found := Comparer().compare_calls(a, b):
            return f"call {number}: {found}"
    return ""


class Comparer:
    """Compares values, and which of them share memory."""

    def __init__(self) -> None:
        self.storages_a: dict[int, int] = {}
        self.storages_b: dict[int, int] = {}

    def compare_calls(self, a: Call, b: Call) -> str:
        if a.error != b.error:
            return f"{a.error!r} became {b.error!r}: exception"
        if a.printed != b.printed:
            return f"{a.printed!r} became {b.printed!r}: print-out"
        if not torch.equal(a.random_state, b.random_state):
            return "random state"
        return (
            self.compare(a.inputs, b.inputs, "inputs")
            or self.compare(a.state, b.state, "state")
            or self.compare(a.output, b.output, "output")
        )

    def compare(self, a: Any, b: Any, where: str) -> str:
        if type(a) is not type(b):
            return f"{where}: type"
        if isinstance(a, torch.Tensor):
            return self.compare_tensors(a, b, where)
        if isinstance(a, dict):
            if list(a) != list(b):
                return f"{where}: keys"
            pairs = [(key, a[key], b[key]) for key in a]
        elif isinstance(a, list | tuple):
            if len(a) != len(b):
                return f"{where}: length"
            pairs = [(i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
        else:
            return "" if a == b else f"{where}: number"
        for key, x, y in pairs:
            if found := self.compare(x, y, f"{where}[{key!r}]"):
                return found
        return ""

    def compare_tensors(self, a: torch.Tensor, b: torch.Tensor, where: str) -> str:
        for name in ("dtype", "shape", "requires_grad"):
            if getattr(a, name) != getattr(b, name):
                return f"{where}: {name}"
        if (a.stride(), a.storage_offset()) != (b.stride(), b.storage_offset()):
            return f"{where}: strides"
        # The n-th storage met on one side must be the n-th met on the other.
        label = len(self.storages_a)
        seen_a = self.storages_a.setdefault(a.untyped_storage()._cdata, label)
        seen_b = self.storages_b.setdefault(b.untyped_storage()._cdata, label)
        if seen_a != seen_b:
            return f"{where}: aliasing"
        return "" if _same_bits(a, b) else f"{where}: values"


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.detach(), b.detach()
    if not a.is_floating_point():
        return torch.equal(a, b)
    if torch.equal(_bits(a), _bits(b)):
        return True
    nan = a.isnan()  # NaN equals NaN
    a, b = a.masked_fill(nan, 0), b.masked_fill(b.isnan(), 0)
    return torch.equal(nan, b.isnan() | nan) and torch.equal(_bits(a), _bits(b))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.flatten()).view(torch.uint8)
