"""What a tensor is made of."""

import itertools

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# What holds the memory of tensors that are not strided.
_ROWS = ("crow_indices", "col_indices", "values")
_COLUMNS = ("ccol_indices", "row_indices", "values")
_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: _ROWS,
    torch.sparse_bsr: _ROWS,
    torch.sparse_csc: _COLUMNS,
    torch.sparse_bsc: _COLUMNS,
}
_NESTED = (
    "values",
    "_nested_tensor_size",
    "_nested_tensor_strides",
    "_nested_tensor_storage_offsets",
)
_DISPATCHERS = (Tensor.__torch_dispatch__, FakeTensor.__torch_dispatch__)


def parts_of(tensor: Tensor) -> list[Tensor] | None:
    """The strided tensors in whose memory a tensor is; itself, if it is one.

    None if that cannot be told, as of an opaque tensor, or of one that a class of Python computes.
    """
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        parts = [parts_of(getattr(tensor, name)) for name in names]
        known = [part for part in parts if part is not None]
        return list(itertools.chain(*known)) if len(known) == len(parts) else None
    if type(tensor).__torch_dispatch__ not in _DISPATCHERS:
        return None
    if tensor.is_nested:
        return [getattr(tensor, name)() for name in _NESTED]
    if tensor.layout in _PARTS:
        return [getattr(tensor, name)() for name in _PARTS[tensor.layout]]
    return [tensor] if tensor.layout is torch.strided else None
