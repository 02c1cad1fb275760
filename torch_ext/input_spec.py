"""Example inputs from the command line: 1x3x224x224:f32."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "bool",
    "c64": "complex64",
    "c128": "complex128",
}
_MOST_VALUES = 2**59  # of 16 bytes at most
_SPEC = re.compile(r"(?P<shape>scalar|\d+(x\d+)*)(:(?P<dtype>\w+))?")
_SMALL_LETTER = re.compile(r"(?:^|(?<=x))[a-wyz](?=x|:|$)")
_LETTER = re.compile(r"(?:^|(?<=x))[A-Z](?=x|:|$)")


def parse_input_spec(spec: str) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of SHAPE[:DTYPE], where SHAPE is like 1x3x224x224 or `scalar`.

    The dtype defaults to f32. Raises ValueError saying what is wrong and what would be right.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ValueError(f"input '{spec}' is not of the form 1x3x224x224:f32")
    dtype = match["dtype"] or "f32"
    if dtype not in _DTYPES:
        raise ValueError(f"input '{spec}': unknown type '{dtype}', known: {', '.join(_DTYPES)}")
    words = [] if match["shape"] == "scalar" else match["shape"].split("x")
    if math.prod(float(word) or 1 for word in words) >= _MOST_VALUES:
        raise ValueError(f"input '{spec}' has more values than there can be")
    return tuple(map(int, words)), dtype


def letter_of(specs: Sequence[str]) -> str:
    """The letter that stands for a size, as N in Nx3x224x224:f32; empty if there is none.

    Raises ValueError if there are several, or if the specs are wrong for other reasons.
    """
    letters = sorted({letter for spec in specs for letter in _LETTER.findall(spec)})
    if len(letters) > 1:
        raise ValueError(f"one letter can be searched for, not {' and '.join(letters)}")
    for spec in with_size(specs, 1):
        if _SMALL_LETTER.search(spec):
            raise ValueError(f"input '{spec}': a letter that stands for a size is a capital")
        parse_input_spec(spec)
    return letters[0] if letters else ""


def leads(letter: str, specs: Sequence[str]) -> bool:
    """Does the letter stand for first dimensions only, as that of a batch does?"""
    return all(_LETTER.search(spec, 1) is None for spec in specs if letter in spec)


def with_size(specs: Sequence[str], size: int) -> list[str]:
    """The specs with a number for the letter."""
    return [_LETTER.sub(str(size), spec) for spec in specs]


def make_inputs(specs: list[str]) -> "tuple[torch.Tensor, ...]":
    """Tensors for the specs, always the same: normal numbers, or 0 and 1 for integers."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tensors = []
    for spec in specs:
        shape, name = parse_input_spec(spec)
        dtype: torch.dtype = getattr(torch, _DTYPES[name])
        if dtype.is_floating_point or dtype.is_complex:
            values = torch.randn(
                shape,
                generator=generator,
                dtype=torch.complex64 if dtype.is_complex else torch.float32,
            )
        else:
            values = torch.randint(0, 2, shape, generator=generator)
        tensors.append(values.to(dtype))
    return tuple(tensors)
