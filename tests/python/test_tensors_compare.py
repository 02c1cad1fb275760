"""Equality bit for bit."""

import pytest
import torch
from kinds import kinds, numbers

from torch_ext.tensors.compare import first_difference, same_numbers

NAN, OTHER_NAN = (
    torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC00001)
)


NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def quantized(scale: float, zero_point: int) -> torch.Tensor:
    return torch.quantize_per_tensor(torch.zeros(2, 2), scale, zero_point, torch.quint8)


def by_rows(scales: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros(2, dtype=torch.long)
    return torch.quantize_per_channel(torch.zeros(2, 2), scales, zeros, 0, torch.quint8)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (NAN, OTHER_NAN),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.ones(2), torch.ones(1, 2)),
        ([torch.ones(2)], [torch.ones(2), torch.ones(2)]),
        ({"deep": (1, torch.ones(2))}, {"deep": (1, torch.zeros(2))}),
        (torch.ones(2), 1.0),
        (quantized(0.1, 1), quantized(0.2, 1)),
        (quantized(0.1, 1), quantized(0.1, 2)),
        (by_rows(torch.ones(2)), by_rows(torch.tensor([1.0, 2.0]))),
        (by_rows(torch.ones(2)), quantized(1, 0)),
        (torch.eye(2).to_sparse(), torch.eye(2)),
        (torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse()),
        (torch.eye(2).to_sparse_csr(), torch.eye(2).flip(0).to_sparse_csr()),
        (torch.eye(2).to_mkldnn(), (2 * torch.eye(2)).to_mkldnn()),
        (NESTED, NESTED * 2),
        (torch._efficientzerotensor(2), torch.zeros(2)),
        (torch.ones(2, dtype=torch.cfloat), torch.ones(2, dtype=torch.cfloat).conj()),
        (torch.empty(0, dtype=torch.quint8), torch.empty(0, dtype=torch.quint8)),
    ],
)
def test_a_difference_is_named(a, b):
    same = torch.arange(3)
    assert first_difference({"x": same, "y": a}, {"x": same.clone(), "y": b}) == "y"


def test_equal_bits_are_no_difference():
    x = torch.tensor([NAN.item(), 1.0, -0.0])
    assert first_difference({"x": [x, 3]}, {"x": [x.clone(), 3]}) == ""
    strided = torch.arange(6.0).reshape(2, 3).t()
    assert first_difference({"x": strided}, {"x": strided.contiguous()}) == ""


def test_tensors_of_every_kind_equal_themselves():
    for name, make in kinds():
        assert first_difference({name: make(numbers())}, {name: make(numbers())}) == ""


def test_names_that_only_one_side_has_are_told():
    assert first_difference({"x": 1}, {"x": 1, "y": 2}) == "y (only one has it)"


def test_an_empty_name_would_hide_a_difference():
    with pytest.raises(ValueError, match="need a name"):
        first_difference({"": 1}, {"": 2})


def test_one_that_is_no_number_is_as_good_as_another():
    assert same_numbers(NAN, OTHER_NAN)
    assert not same_numbers(NAN, torch.zeros(1))
    assert not same_numbers(torch.cat([NAN, torch.ones(1)]), torch.cat([OTHER_NAN, -torch.ones(1)]))
    assert not same_numbers(NAN, NAN.double())
    assert not same_numbers(torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert not same_numbers(NESTED, torch.ones(2))
    assert same_numbers(3, 3)
    assert not same_numbers(3, 4)
    assert not first_difference({"a": NAN}, {"a": OTHER_NAN}, same=same_numbers)
