"""Copies that matmul makes of its arguments, made beforehand: in all calls that may come."""

import io
import random

import pytest
import torch
from models import attention
from torch import Tensor, nn
from torch.jit._recursive import wrap_cpp_module

import torch_ext
from torch_ext._native import _jit
from torch_ext.tensors.compare import first_difference


def values(*shape: int) -> Tensor:
    return torch.sin(torch.arange(float(torch.Size(shape).numel()))).reshape(shape)


class Scores(nn.Module):
    """Of heads of attention: both arguments lie head after head in each row."""

    def forward(self, queries: Tensor, keys: Tensor, heads: int) -> Tensor:
        q, k = queries * 2.0, keys * 3.0
        if queries.dim() == 3:
            q = q.unflatten(2, [heads, -1]).transpose(1, 2)
        if keys.dim() == 3:
            k = k.unflatten(2, [heads, -1]).permute(0, 2, 3, 1)
        return torch.matmul(q, k)


def require_same(script, result, *inputs):
    for _ in range(3):
        assert not first_difference({"result": script(*inputs)}, {"result": result(*inputs)})


def test_copies_are_hoisted_where_the_peak_needs_it():
    x = values(8, 32, 64)
    result, report = torch_ext.optimize(torch.jit.trace(attention(), x), (x,))
    assert report.identical
    assert report.measured_peak_bytes == report.peak_bytes < report.original_peak_bytes
    assert report.status == "optimal"
    assert {hoist.op.split(".")[0] for hoist in report.hoists} == {"matmul"}
    assert {hoist.bytes for hoist in report.hoists} == {x.nbytes}
    assert report.levers[1].edits == len(report.hoists) + len(report.overwrites)
    assert {hoist.copy for hoist in report.hoists} <= set(report.order)
    with torch_ext.measure_peak() as memory:
        result(x)
    assert memory.peak_bytes == report.measured_peak_bytes


def test_a_lone_batch_is_not_copied():
    x = values(1, 32, 64)
    _, report = torch_ext.optimize(torch.jit.trace(attention(), x), (x,))
    assert not report.hoists


@pytest.mark.parametrize("planned", [8, 2])
@pytest.mark.parametrize("gradients", [False, True])
def test_what_is_planned_for_one_size_holds_for_others(planned, gradients):
    script = torch.jit.script(attention())
    with torch.no_grad():
        result, report = torch_ext.optimize(script, (values(planned, 32, 64),))
    assert report.hoists
    with torch.set_grad_enabled(gradients):
        for batch in (8, 1, 2, 3):
            for rows in (32, 1, 5):
                require_same(script, result, values(batch, rows, 64))
    with torch.enable_grad():
        x = values(2, 5, 64).requires_grad_()
        expected, actual = (torch.autograd.grad(m(x).square().sum(), x) for m in (script, result))
    # Not to the bit: torch's own backward pass differs from copy to copy of the same module.
    assert torch.allclose(expected[0], actual[0])


def test_a_saved_file_keeps_the_lower_peak():
    x = values(8, 32, 64)
    result, report = torch_ext.optimize(torch.jit.trace(attention(), x), (x,))
    file = io.BytesIO()
    torch.jit.save(result, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    require_same(result, loaded, x)
    again = torch_ext.analyze(loaded, (x,))
    assert again.original_peak_bytes == again.measured_original_peak_bytes == report.peak_bytes


# --- layouts and ranks ----------------------------------------------------------------------------


class Products(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.matmul(left, right)


def laid_out(tensor: Tensor, chosen: random.Random) -> Tensor:
    """The same tensor, somewhere else in memory: permuted, with gaps, or expanded."""
    places = list(range(tensor.dim()))
    chosen.shuffle(places)
    back = [places.index(place) for place in range(tensor.dim())]
    moved = tensor.permute(places).contiguous().permute(back)
    if chosen.random() < 0.3:
        moved = torch.stack([moved, moved], -1)[..., 0]
    if chosen.random() < 0.3:
        moved = moved[:1].expand(tensor.shape)
    return moved


def operands(chosen: random.Random) -> tuple[Tensor, Tensor]:
    """Whose product matmul takes, broadcasting or not."""
    batch = [chosen.choice((1, 2, 3)) for _ in range(2)]
    rows, inner, columns = (chosen.choice((1, 2, 3, 16, 33)) for _ in range(3))

    def batch_of_one() -> list[int]:
        sizes = [1 if chosen.random() < 0.2 else size for size in batch]
        return sizes if chosen.random() < 0.8 else sizes[chosen.choice((1, 2)) :]

    left = laid_out(values(*batch_of_one(), rows, inner), chosen)
    return left, laid_out(values(*batch_of_one(), inner, columns), chosen)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_any_product_is_the_same(seed):
    """The edit that is planned for heads of attention, called with whatever matmul takes."""
    planned = values(2, 8, 3, 16).transpose(1, 2), values(2, 8, 3, 16).permute(0, 2, 3, 1)
    script = torch.jit.script(Products())
    for edit in range(8):  # either argument, or both
        module = wrap_cpp_module(_jit.shuffle_overwriting(script._c, planned, edit))
        chosen = random.Random(100 * seed + edit)
        for case in range(40):
            left, right = operands(chosen)
            difference = first_difference(
                {"product": script(left, right)}, {"product": module(left, right)}
            )
            assert not difference, (edit, case, left.shape, left.stride(), right.shape)


def keeps(planned: tuple[Tensor, Tensor], given: tuple[Tensor, Tensor], without: list[str]) -> bool:
    script = torch.jit.script(Scores())
    with torch.no_grad():
        for seed in range(4):
            module = wrap_cpp_module(
                _jit.shuffle_overwriting(script._c, (*planned, 2), seed, without)
            )
            if not torch.equal(script(*given, 2), module(*given, 2)):
                return False
    return True


@pytest.mark.parametrize(
    ("rule", "given"),
    [
        ("sizes", (values(2, 2, 6), values(3, 16))),  # of one matrix
        ("strides", (values(1, 1, 66), values(1, 16, 66))),  # of a lone batch
    ],
)
def test_rules_are_needed_for_copies(rule, given):
    planned = values(2, 2, 66), values(2, 16, 66)
    assert keeps(planned, given, [])
    assert not keeps(planned, given, [rule])
