"""Fronts of training steps: every point is run, and proven to be near the least."""

import copy
import functools

import pytest
import torch
from test_training_repeat import CASES, ConvNet, images, made, sgd
from torch import nn
from training_loops import everything

import torch_ext
from torch_ext.training.other_loops import checkpoint_blocks
from torch_ext.training.updates import UnsupportedError

pytestmark = pytest.mark.usefixtures("with_gradients")
LOSS = nn.functional.cross_entropy


@pytest.mark.parametrize("name", CASES)
def test_every_point_is_as_planned_and_unbeaten(name):
    model, batches, make_optimizer = made(name)
    optimizer = make_optimizer(model)
    before = copy.deepcopy(everything(model, optimizer))
    state = torch.get_rng_state()
    front = torch_ext.training_front(model, LOSS, optimizer, batches[0], points=4)
    assert torch.equal(state, torch.get_rng_state())
    assert {n: str(v) for n, v in before.items()} == {
        n: str(v) for n, v in everything(model, optimizer).items()
    }
    first, *rest = front.points
    assert (first.extra_seconds, first.extra_seconds_bound) == (0.0, 0.0)
    assert first.levers == ("order", "overwrite")
    assert rest
    for point, above in zip(rest, front.points, strict=False):
        assert point.measured_peak_bytes == point.peak_bytes < above.peak_bytes
        assert point.extra_seconds > above.extra_seconds
        assert above.extra_seconds_bound <= point.extra_seconds_bound <= point.extra_seconds
        assert point.levers == ("order", "overwrite", "repeat")
        assert point.edits > 0
        assert point.time_ratio > 0
    assert front.floor_bytes <= rest[-1].peak_bytes
    assert "no program with these levers gets below" in front.reason
    assert front.call_seconds > 0


def test_others_are_in_the_same_meter():
    model, batches, make_optimizer = made("convolutions")
    optimizer = make_optimizer(model)
    front = torch_ext.training_front(model, LOSS, optimizer, batches[0], points=1)
    ways = {other.way: other for other in front.others}
    assert list(ways) == [
        "the loop",
        "optimizer in hooks",
        "checkpointing of blocks",
        "checkpointing and hooks",
    ]
    assert ways["the loop"].difference == ways["optimizer in hooks"].difference == ""
    # Its batch norms see each batch twice.
    assert "running_mean" in ways["checkpointing of blocks"].difference
    loop, hooks, blocks, both = (other.measured_peak_bytes for other in front.others)
    assert hooks < loop
    assert both <= blocks < loop
    # What a step itself reports of the first two.
    report = torch_ext.training_step(model, LOSS, optimizer, batches[0]).report
    assert loop == report.measured_original_peak_bytes
    assert hooks == report.measured_hooks_peak_bytes


def test_a_point_is_had_by_its_peak_as_budget():
    model, batches, make_optimizer = made("convolutions")
    optimizer = make_optimizer(model)
    front = torch_ext.training_front(model, LOSS, optimizer, batches[0], points=3)
    budget = front.points[-1].peak_bytes
    levers = ("order", "overwrite", "repeat")
    step = torch_ext.training_step(
        model, LOSS, optimizer, batches[0], memory_budget=budget, levers=levers
    )
    assert step.report.budget_met
    assert step.report.measured_peak_bytes <= budget


def test_norms_need_all_gradients_so_no_hooks_can_do_it():
    model, batches, make_optimizer = made("convolutions")
    front = torch_ext.training_front(
        model, LOSS, make_optimizer(model), batches[0], points=1, clip_grad_norm=0.1
    )
    assert [other.way for other in front.others] == ["the loop", "checkpointing of blocks"]


def test_slices_have_no_proven_time():
    model, batches, make_optimizer = made("transformer")
    levers = ("order", "overwrite", "slice", "repeat")
    front = torch_ext.training_front(
        model, LOSS, make_optimizer(model), batches[0], points=2, levers=levers
    )
    assert front.floor_bytes is None
    assert {point.extra_seconds_bound for point in front.points} == {None}


def test_an_order_alone_has_one_point():
    model, batches, make_optimizer = made("convolutions")
    optimizer = make_optimizer(model)
    front = torch_ext.training_front(model, LOSS, optimizer, batches[0], levers=["order"])
    (point,) = front.points
    assert point.levers == ("order",)
    assert front.floor_bytes <= point.peak_bytes
    assert front.call_seconds > 0


def test_plans_alone_take_no_steps():
    model, batches, make_optimizer = made("convolutions")
    optimizer = make_optimizer(model)
    front = torch_ext.training_front(model, LOSS, optimizer, batches[0], measure=False)
    assert front.others == ()
    assert len(front.points) > 2
    assert {point.measured_peak_bytes for point in front.points[1:]} == {None}
    assert all(p.extra_seconds_bound <= p.extra_seconds for p in front.points)


def test_repeats_alone_have_a_front():
    model, batches, make_optimizer = made("convolutions")
    optimizer = make_optimizer(model)
    front = torch_ext.training_front(
        model, LOSS, optimizer, batches[0], levers=["repeat"], points=3, measure=False
    )
    assert len(front.points) > 1
    times = dict.fromkeys(front.op_seconds, 0.0)
    free = torch_ext.training_front(
        model, LOSS, optimizer, batches[0], op_seconds=times, points=3, measure=False
    )
    assert "0.0" in str(free)
    del times[next(iter(times))]
    with pytest.raises(ValueError, match="op_seconds has no op"):
        torch_ext.training_front(model, LOSS, optimizer, batches[0], op_seconds=times)


def test_more_points_do_not_end_higher():
    model, batches, make_optimizer = made("transformer")
    optimizer = make_optimizer(model)
    ask = functools.partial(
        torch_ext.training_front, model, LOSS, optimizer, batches[0], measure=False
    )
    one = ask(points=1)
    ends = [ask(points=n, op_seconds=one.op_seconds).points[-1].peak_bytes for n in (3, 6)]
    assert max(ends) <= one.points[-1].peak_bytes


def test_bad_arguments_say_so():
    model = ConvNet()
    optimizer = sgd(model)
    with pytest.raises(ValueError, match="slices are chosen by measuring"):
        torch_ext.training_front(model, LOSS, optimizer, images(0), levers=["slice"], measure=False)
    with pytest.raises(ValueError, match="points must be a whole number between 1 and 100"):
        torch_ext.training_front(model, LOSS, optimizer, images(0), points=0)
    with pytest.raises(ValueError, match="levers must be of"):
        torch_ext.training_front(model, LOSS, optimizer, images(0), levers=["magic"])
    with pytest.raises(ValueError, match="example_batch must be a tuple"):
        torch_ext.training_front(model, LOSS, optimizer, "no batch")
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(UnsupportedError, match="LBFGS"):
        torch_ext.training_front(model, LOSS, lbfgs, images(0))


def test_blocks_are_what_people_checkpoint():
    leaf = nn.ReLU
    block = nn.Sequential(nn.Linear(4, 4), leaf())
    stages = nn.Sequential(
        nn.Sequential(copy.deepcopy(block), copy.deepcopy(block)), nn.ModuleList([block]), leaf()
    )
    assert checkpoint_blocks(stages) == 3
    assert checkpoint_blocks(nn.Sequential(nn.Linear(4, 4), leaf())) == 0
    assert checkpoint_blocks(ConvNet()) == 4
