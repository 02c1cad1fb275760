"""Equality bit for bit."""

from typing import Any

import torch
from torch.utils import _pytree as pytree


def first_difference(expected: dict[str, Any], actual: dict[str, Any]) -> str:
    """The first name whose values differ in a bit, or empty. Values may be nested.

    Raises ValueError for an empty name, which would say that nothing differs.
    """
    if "" in expected or "" in actual:
        raise ValueError("values that are compared need a name")
    if expected.keys() != actual.keys():
        return f"{sorted(expected.keys() ^ actual.keys())[0]} (only one has it)"
    for name, value in expected.items():
        leaves, other = pytree.tree_leaves(value), pytree.tree_leaves(actual[name])
        if len(leaves) != len(other) or not all(map(same_bits, leaves, other)):
            return name
    return ""


def same_bits(a: Any, b: Any) -> bool:
    """Whether two values are equal; tensors of the same dtype and shape, bit for bit."""
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    if not isinstance(b, torch.Tensor) or (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    a, b = a.detach().contiguous(), b.detach().contiguous()
    return torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))
