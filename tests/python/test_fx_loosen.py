"""Edits that let more ops run in parts: they keep all bits."""

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from torch_ext.fx.loosen import loosen
from torch_ext.fx.probe import run_probe

aten = torch.ops.aten
pytestmark = pytest.mark.usefixtures("with_gradients")


def loosened(function, *inputs: Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The graph as it was, and edited."""
    original, edited = make_fx(function)(*inputs), make_fx(function)(*inputs)
    probe = run_probe(edited, [value.clone() for value in inputs], apart=True)
    loosen(edited.graph, probe)
    edited.recompile()
    return original, edited


def targets(module: fx.GraphModule) -> list[object]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


def gradient(reduction: str, ignore_index: int):
    def function(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits.detach().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(
            logits, target, ignore_index=ignore_index, reduction=reduction
        )
        (of_logits,) = torch.autograd.grad(loss, logits)
        return loss.detach(), of_logits

    return function


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignored", [-100, 0, 4])
@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_loss_of_picked_numbers_has_the_same_bits(reduction, ignored, rows, dtype):
    generator = torch.Generator().manual_seed(rows)
    logits = 9 * torch.randn(rows, 33, generator=generator).to(dtype)
    target = torch.randint(0, 33, (rows,), generator=generator)
    target[:: max(1, rows // 5)] = ignored
    original, edited = loosened(gradient(reduction, ignored), logits, target)
    assert aten.gather.default in targets(edited)
    for ours, theirs in zip(edited(logits, target), original(logits, target), strict=True):
        assert torch.equal(ours, theirs) or (ours.isnan().all() and theirs.isnan().all())


def test_a_loss_without_rows_that_count_is_no_number():
    logits, target = torch.randn(4, 5), torch.full((4,), -100)
    original, edited = loosened(gradient("mean", -100), logits, target)
    for ours, theirs in zip(edited(logits, target), original(logits, target), strict=True):
        assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


def test_a_class_that_there_is_not_raises_as_before():
    logits, target = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    original, edited = loosened(gradient("mean", -100), logits, target)
    target[1] = 5
    for module in (original, edited):
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            module(logits, target)


def test_gradients_begin_with_ones_of_their_own():
    def function(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss = torch.nn.functional.cross_entropy(logits, target)
        return loss, torch.ones_like(loss), torch.ones_like(loss).add_(1)

    inputs = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    _, edited = loosened(function, *inputs)
    assert aten.gather.default in targets(edited)
    loss, ones, twos = edited(*inputs)
    assert (ones.item(), twos.item()) == (1, 2)
    assert torch.equal(loss, function(*inputs)[0])


def test_targets_of_bytes_are_left_alone():
    logits, target = torch.randn(4, 5), torch.tensor([0, 1, 2, 3], dtype=torch.uint8)
    original, edited = loosened(gradient("mean", -100), logits, target)
    assert targets(edited).count(aten.gather.default) == targets(original).count(
        aten.gather.default
    )


def test_a_shape_and_back_is_skipped():
    def function(x: Tensor) -> Tensor:
        y = torch.relu(x)
        return y.view(2, 8).detach().view(16) + 1

    original, edited = loosened(function, torch.randn(16))
    assert aten.view.default in targets(original)
    assert targets(edited) == [aten.relu.default, aten.add.Tensor]


def test_what_is_changed_in_between_is_read_changed():
    def function(x: Tensor) -> Tensor:
        y = torch.relu(x)
        z = y.view(2, 8).view(16)
        y.add_(1)
        return z * 2 + y.view(4, 4).view(16)

    x = torch.randn(16)
    original, edited = loosened(function, x)
    assert torch.equal(edited(x), original(x))


def test_views_that_are_results_stay():
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(x)
        return y, y.view(2, 8).view(16)

    original, edited = loosened(function, torch.randn(16))
    assert len(targets(edited)) == len(targets(original))


def _normalized(x: Tensor) -> Tensor:
    numbers = torch.arange(1.0, x.shape[1] + 1)
    of_batch = torch.nn.functional.batch_norm(x, numbers, numbers, numbers, numbers)
    of_layer = torch.nn.functional.layer_norm(of_batch, x.shape[2:])
    return torch.nn.functional.group_norm(of_layer, 2, numbers, numbers)


def test_results_that_nobody_reads_are_not_made():
    def function(x: Tensor) -> Tensor:
        return torch.nn.functional.max_pool2d(_normalized(x), 3, stride=2, padding=1)

    with torch.no_grad():
        original, edited = loosened(function, x := torch.randn(2, 4, 9, 9))
        expected = (aten.batch_norm, aten.layer_norm, aten.group_norm, aten.max_pool2d)
        assert {packet.default for packet in expected} <= set(targets(edited))
        assert aten.max_pool2d_with_indices.default in targets(original)
        assert torch.equal(edited(x), original(x))


def test_groups_of_other_samples_stay():
    """The sizes of native_group_norm need not be those of its tensor; of the other they are."""

    def function(x: Tensor) -> Tensor:
        return torch.native_group_norm(x, None, None, 1, 8, 9, 8, 1e-5)[0]

    original, edited = loosened(function, x := torch.randn(2, 4, 3, 3))
    assert targets(edited) == targets(original)
    assert torch.equal(edited(x), original(x))


def test_indices_that_are_read_stay():
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.nn.functional.max_pool2d(x, 2, return_indices=True)

    _, edited = loosened(function, torch.randn(1, 1, 4, 4))
    assert aten.max_pool2d_with_indices.default in targets(edited)
