"""Example inputs from the command line."""

import pytest
import torch

from torch_ext.input_spec import leads, make_inputs, parse_input_spec


def test_shapes_and_types():
    assert parse_input_spec("1x3x224x224:f32") == ((1, 3, 224, 224), "f32")
    assert parse_input_spec("7") == ((7,), "f32")
    assert parse_input_spec("scalar:i64") == ((), "i64")


HUGE = "9" * 20


@pytest.mark.parametrize(
    "spec",
    [
        *("", "x", "1x", "-1", "1x3:", "1,3:f32", "1x3:f33", "1 x 3"),
        *(HUGE, f"1x{HUGE}", f"0x{HUGE}:i64", "4294967296x4294967296", "9" * 400),
    ],
)
def test_mistakes_are_value_errors(spec):
    with pytest.raises(ValueError, match="input '"):
        parse_input_spec(spec)


def test_a_batch_comes_first():
    assert leads("N", ["Nx3:f32", "4x4", "N:i64"])
    for spec in ("1xN", "NxN:f32", "3xNx4"):
        assert not leads("N", ["Nx3", spec])


def test_tensors_are_always_the_same():
    specs = ["2x3:f16", "4:i64", "2:bool", "2:c64", "scalar:bf16"]
    first, second = make_inputs(specs), make_inputs(specs)
    assert [t.dtype for t in first] == [
        torch.float16,
        torch.int64,
        torch.bool,
        torch.complex64,
        torch.bfloat16,
    ]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[1].max() <= 1
