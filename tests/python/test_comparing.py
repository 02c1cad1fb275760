"""Equality bit for bit."""

import pytest
import torch

from torch_ext.comparing import first_difference

NAN, OTHER_NAN = (
    torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC00001)
)


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


def test_names_that_only_one_side_has_are_told():
    assert first_difference({"x": 1}, {"x": 1, "y": 2}) == "y (only one has it)"


def test_an_empty_name_would_hide_a_difference():
    with pytest.raises(ValueError, match="need a name"):
        first_difference({"": 1}, {"": 2})
