"""torch.compile with slices: cut in the first call, bit for bit, and never where it would raise."""

import logging

import pytest
import torch
from models import Convolutions, Elementwise, image
from torch import Tensor, nn

from torch_ext import measure_peak

LEAST = {"memory_budget": 1}  # as little as can be


@pytest.fixture(autouse=True)
def _no_graphs():
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def compiled(network: nn.Module, options: dict[str, object], **arguments: object):
    return torch.compile(network.eval(), backend="torch_ext", options=options, **arguments)


def peak_of(run, x: Tensor) -> int:
    with measure_peak() as memory:
        run(x)
    return memory.peak_bytes


def test_a_budget_that_order_does_not_meet_is_met_by_slices(caplog):
    network, x = Elementwise(), torch.randn(64, 256)
    expected = network(x)
    plain, sliced = compiled(network, {}), compiled(network, LEAST)
    with caplog.at_level(logging.INFO, logger="torch_ext"):
        assert torch.equal(sliced(x), expected)
    [record] = [r for r in caplog.records if hasattr(r, "peaks")]
    assert "slices" in record.getMessage()
    assert torch.equal(plain(x), expected)
    peak_bytes = peak_of(sliced, x)
    assert peak_bytes < peak_of(plain, x)
    assert abs(peak_bytes - record.peaks.peak_bytes) <= 2**13  # the question about threads


def test_parameters_and_convolutions():
    network, x = Convolutions(), image()
    sliced = compiled(network, LEAST)
    for _ in range(2):
        assert torch.equal(sliced(x), network(x))


def test_norms_and_pools_make_no_statistics():
    """A compiler's graph has them with several results, of which one is read."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.max_pool2d(self.norm(torch.exp(x)), 8)

    network, x = Pooled(), torch.randn(8, 4, 64, 64)
    sliced = compiled(network, LEAST)
    assert torch.equal(sliced(x), network(x))
    assert peak_of(sliced, x) < x.nbytes / 2


def test_other_numbers_of_threads_run_the_graph_without_slices():
    network, x = Elementwise(), torch.randn(16, 64)
    threads = torch.get_num_threads()
    sliced = compiled(network, LEAST)
    sliced(x)
    try:
        torch.set_num_threads(threads + 1)
        assert torch.equal(sliced(x), network(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(sliced(x), network(x))


def test_other_sizes_strides_and_dtypes_are_compiled_again():
    network = Elementwise()
    sliced = compiled(network, LEAST)
    for x in (
        torch.randn(16, 64),
        torch.randn(7, 64),
        torch.randn(64, 16).t(),
        torch.randn(16, 64).double(),
    ):
        for _ in range(2):
            assert torch.equal(sliced(x), network(x))


def test_symbolic_sizes_are_not_cut():
    network = Elementwise()
    sliced = compiled(network, LEAST, dynamic=True)
    for rows in (64, 31, 5):
        x = torch.randn(rows, 256)
        assert torch.equal(sliced(x), network(x))


def test_graphs_with_gradients_are_not_cut():
    network = Convolutions()
    with torch.enable_grad():
        found = compiled(network, LEAST)(image()).sum()
        expected = network(image()).sum()
        parameters = list(network.parameters())
        assert torch.equal(found, expected)
        for ours, theirs in zip(
            torch.autograd.grad(found, parameters),
            torch.autograd.grad(expected, parameters),
            strict=True,
        ):
            assert torch.equal(ours, theirs)


def test_inputs_that_change_are_changed_once():
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.body = Elementwise()

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return self.body(x) + self.calls

    ours, theirs = Counted(), Counted()
    sliced, x = compiled(ours, LEAST), torch.randn(16, 64)
    for calls in range(1, 4):
        assert torch.equal(sliced(x), theirs(x))
        assert ours.calls.item() == calls


def test_where_nothing_can_be_cut_a_reason_is_logged(caplog):
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(0).values.cumsum(0)

    x = torch.randn(64, 64)
    with caplog.at_level(logging.INFO, logger="torch_ext"):
        assert torch.equal(compiled(Sorted(), LEAST)(x), Sorted()(x))
    assert any("stays as it is: " in record.getMessage() for record in caplog.records)
