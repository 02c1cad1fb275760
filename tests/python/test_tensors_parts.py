"""What tensors of all kinds are made of."""

import torch
from kinds import kinds, numbers

from torch_ext.tensors.parts import parts_of


def test_every_part_is_strided_and_has_a_storage():
    for name, make in kinds():
        tensor = make(numbers())
        parts = parts_of(tensor)
        if tensor.is_mkldnn:
            assert parts is None
            continue
        assert parts, name
        assert all(part.layout is torch.strided for part in parts), name
        assert sum(part.untyped_storage().nbytes() for part in parts) > 0, name


def test_a_strided_tensor_is_its_own_part():
    x = numbers()
    [part] = parts_of(x) or []
    assert part is x


def test_a_tensor_that_a_class_computes_is_not_looked_into():
    class Computed(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
            raise NotImplementedError

    assert parts_of(torch.Tensor._make_wrapper_subclass(Computed, (2,))) is None
