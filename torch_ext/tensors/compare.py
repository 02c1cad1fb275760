"""Equality bit for bit."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torch_ext.tensors.parts import parts_of


def first_difference(
    expected: dict[str, Any],
    actual: dict[str, Any],
    *,
    same: Callable[[Any, Any], bool] | None = None,
) -> str:
    """The first name whose values differ in a bit, or empty. Values may be nested.

    `same`: else, of two values that are not nested: are they the same?

    Raises ValueError for an empty name, which would say that nothing differs.
    """
    if "" in expected or "" in actual:
        raise ValueError("values that are compared need a name")
    if expected.keys() != actual.keys():
        return f"{sorted(expected.keys() ^ actual.keys())[0]} (only one has it)"
    for name, value in expected.items():
        leaves, other = pytree.tree_leaves(value), pytree.tree_leaves(actual[name])
        if len(leaves) != len(other) or not all(map(same or same_bits, leaves, other)):
            return name
    return ""


def same_bits(a: Any, b: Any) -> bool:
    """Whether two values are equal; tensors of the same kind and shape, bit for bit.

    Tensors that cannot be looked into are not equal to any.
    """
    if isinstance(a, torch.Tensor) != isinstance(b, torch.Tensor):
        return False
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    try:
        return _same_tensors(a, b)
    except RuntimeError:  # of a kind that lacks what others have
        return False


def same_numbers(a: Any, b: Any) -> bool:
    """Bit for bit; but of floats, one that is no number is as good as another."""
    if same_bits(a, b):
        return True
    for value in (a, b):
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.is_nested:
            return False
        if value.layout is not torch.strided or not value.is_floating_point():
            return False
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    are_none = a.isnan() & b.isnan()
    return same_bits(a.masked_fill(are_none, 0), b.masked_fill(are_none, 0))


def _same_tensors(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.layout, a.device) != (b.dtype, b.layout, b.device):
        return False
    if a.is_mkldnn:
        a, b = a.to_dense(), b.to_dense()
    parts, others = parts_of(a), parts_of(b)
    if parts is None or others is None or len(parts) != len(others):
        return False
    if len(parts) == 1 and parts[0] is a:
        return _same_strided(a, b)
    return _frame(a) == _frame(b) and all(map(_same_tensors, parts, others))


def _frame(tensor: torch.Tensor) -> Any:
    """What a tensor is beside its parts."""
    if is_traceable_wrapper_subclass(tensor):
        return type(tensor), tensor.__tensor_flatten__()
    if tensor.is_nested:
        return None
    return tensor.shape, tensor.layout is torch.sparse_coo and tensor.is_coalesced()


def _same_strided(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.shape, a.is_conj(), a.is_neg()) != (b.shape, b.is_conj(), b.is_neg()):
        return False
    if a.is_quantized and not all(map(same_bits, _quantizer(a), _quantizer(b))):
        return False
    if torch._is_zerotensor(a) or torch._is_zerotensor(b):  # zeros without memory
        return torch._is_zerotensor(a) and torch._is_zerotensor(b)
    return a.is_meta or torch.equal(_bytes(a), _bytes(b))


def _quantizer(tensor: torch.Tensor) -> tuple[Any, ...]:
    scheme = tensor.qscheme()
    if scheme in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return scheme, tensor.q_scale(), tensor.q_zero_point()
    scales, zero_points = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return scheme, tensor.q_per_channel_axis(), scales, zero_points


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a strided tensor; few kernels are there for the rarer types."""
    storage, size = tensor.untyped_storage(), tensor.element_size()
    memory = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    if tensor.is_quantized and tensor.nbytes > storage.nbytes():  # several elements share a byte
        return memory.set_(storage)
    strides = [stride * size for stride in tensor.stride()]
    return memory.set_(
        storage, tensor.storage_offset() * size, (*tensor.shape, size), (*strides, 1)
    )
