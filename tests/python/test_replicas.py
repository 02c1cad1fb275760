"""DistributedDataParallel: two processes on one machine, captured step against eager loop."""

import copy
import gc

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import torch_ext
from torch_ext.training import UnsupportedError

STEPS = 5
WIDTH = 64


class Net(nn.Module):
    """Batch norm, whose statistics are those of the first process, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.2)),
            *(layer for _ in range(8) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())),
            nn.Linear(WIDTH, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def batch(seed: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, WIDTH, generator=generator)
    return x, torch.randint(0, 10, (size,), generator=generator)


def in_group(rank: int, folder: str, work, *args) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    work(rank, *args)
    # A group that goes before what uses it takes a process in four down at its exit ("terminate
    # called without an active exception"), with nothing but DistributedDataParallel too.
    gc.collect()
    distributed.destroy_process_group()


def train(rank: int, make_optimizer, share: float) -> None:
    torch.manual_seed(0)
    network = Net()
    loop_model = DistributedDataParallel(copy.deepcopy(network))
    model = DistributedDataParallel(network)
    loop_optimizer, optimizer = make_optimizer(loop_model), make_optimizer(model)
    loss_fn = nn.functional.cross_entropy
    step = torch_ext.training_step(model, loss_fn, optimizer, batch(rank))
    report = step.report
    if share < 1:  # the processes measure other times, and agree on one plan
        budget = int(share * report.peak_bytes)
        step = torch_ext.training_step(model, loss_fn, optimizer, batch(rank), memory_budget=budget)
        assert step.report.repeats, step.report.levers
        assert step.report.budget_met
    assert report.measured_hooks_peak_bytes is None
    # The thread of gloo lets go of a gradient a little late, so not exactly as planned.
    assert report.measured_peak_bytes < report.measured_original_peak_bytes
    for number in range(STEPS):
        # The last batches are of other sizes, in one process only: it runs the plain loop.
        size = 32 if number < STEPS - 2 or rank == 0 else 16
        values = batch(10 * number + rank, size)
        torch.manual_seed(number)
        loss = loss_fn(loop_model(values[0]), values[1])
        loss.backward()
        loop_optimizer.step()
        loop_optimizer.zero_grad()
        torch.manual_seed(number)
        assert torch.equal(loss, step(*values))
        for name, value in loop_model.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), (number, name)
    orders = [None, None]
    graph = step._settled.captured.module.graph
    distributed.all_gather_object(orders, [node.name for node in graph.nodes])
    assert orders[0] == orders[1]
    names = orders[0]
    updates = ("add_", "rmsprop_step")
    first_update = next(i for i, name in enumerate(names) if name.startswith(updates))
    last_collective = max(i for i, name in enumerate(names) if name.startswith("all_reduce"))
    assert first_update < last_collective  # gradients do not wait for all others


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def plain_sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def rmsprop(model):
    """One of those whose own code makes the updates."""
    return torch.optim.RMSprop(model.parameters(), momentum=0.9)


@pytest.mark.parametrize(
    ("make_optimizer", "share"),
    [(sgd, 1), (plain_sgd, 1), (sgd, 0.9), (rmsprop, 1), (rmsprop, 0.9)],
)
def test_two_processes_train_as_in_the_eager_loop(make_optimizer, share, tmp_path):
    torch.multiprocessing.spawn(in_group, (str(tmp_path), train, make_optimizer, share), nprocs=2)


def refuse(rank: int) -> None:
    model = DistributedDataParallel(Net())
    optimizer = sgd(model)
    loss_fn = nn.functional.cross_entropy
    with pytest.raises(UnsupportedError, match="different graphs"):
        torch_ext.training_step(model, loss_fn, optimizer, batch(0, 32 if rank == 0 else 16))
    with pytest.raises(UnsupportedError, match="accumulate=1"):
        torch_ext.training_step(model, loss_fn, optimizer, batch(0), accumulate=2)
    model.module.unused = nn.Parameter(torch.zeros(3))
    optimizer = sgd(model)
    with pytest.raises(UnsupportedError, match="unused gets no gradient"):
        torch_ext.training_step(model, loss_fn, optimizer, batch(0))


def test_what_processes_cannot_do_together_is_refused_in_all(tmp_path):
    torch.multiprocessing.spawn(in_group, (str(tmp_path), refuse), nprocs=2)
