"""How little memory a training step needs for how much time, beside what people do about it."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torch_ext import arguments
from torch_ext.amounts import amount
from torch_ext.arguments import Planning, without
from torch_ext.files import first_line
from torch_ext.fx.turns import seconds_in_turns
from torch_ext.memory.meter import measure_peak
from torch_ext.program import repeats
from torch_ext.program.plan import RepeatPlan, plan_repeat_front
from torch_ext.progress import progress
from torch_ext.reporting.front import (
    Front,
    FrontPoint,
    OtherWay,
    point_of_repeats,
    points_of_trials,
    unbeaten,
)
from torch_ext.tensors.compare import first_difference
from torch_ext.training.capture import Batch, Clipping, LossFunction, Objective
from torch_ext.training.modes import of_a_graph
from torch_ext.training.other_loops import checkpoint_blocks, loop_with_hooks
from torch_ext.training.planned_graph import Edited, Maker, copied, on_copies
from torch_ext.training.replicas import unwrapped
from torch_ext.training.step import as_batch
from torch_ext.training.updates import UnsupportedError
from torch_ext.training.world import Now, World

# No bound is known of slices, so they are drawn on request alone.
_LEVERS = ("order", "overwrite", "repeat")
_WAYS = {  # of people: with the optimizer in hooks, with blocks checkpointed
    "the loop": (False, False),
    "optimizer in hooks": (True, False),
    "checkpointing of blocks": (False, True),
    "checkpointing and hooks": (True, True),
}


def training_front(
    model: nn.Module,
    loss_fn: LossFunction | None,
    optimizer: torch.optim.Optimizer,
    example_batch: Sequence[Any] | Mapping[str, Any],
    *,
    points: int = 10,
    clip_grad_norm: float | None = None,
    clip_grad_value: float | None = None,
    time_budget: float = 20.0,
    levers: Iterable[str] | None = None,
    op_seconds: Mapping[str, float] | None = None,
    measure: bool = True,
) -> Front:
    """Return the front of a training step: its peak memory against its time.

    The first point has the ops in their best order; each further one needs less memory, down to
    what is proven to be the floor, and runs some ops again (the lever "repeat"). All were run
    beside the eager loop and have its bits. `extra_seconds_bound` is proven: no order and no
    repeats that need as little memory take less. `others` are the loop as it is written, with the
    optimizer in backward hooks, and with the blocks of the model checkpointed by torch, in the same
    meter. Peaks are bytes above the start of a step that has its optimizer's state, gradients
    included; times are for a step.

    `points`: how many budgets are planned for, 1 to 100. `time_budget`: seconds to plan them all.
    `levers`: with "slice" stretches run in parts, too; then no extra time is proven. `op_seconds`:
    as of torch_ext.training_step; `.op_seconds` has those that were used. Other
    arguments as of torch_ext.training_step: give that one the `peak_bytes` of a point as
    `memory_budget` to train so. Model and optimizer stay as they are. Running and timing all takes
    some twenty steps for each point; with measure=False only the first one is run, and the others
    are what was planned.

    Raises as torch_ext.training_step, and UnsupportedError for a model that several processes
    train.
    """
    points = arguments.count(points, "points", most=100)
    clipping = Clipping(
        arguments.limit(clip_grad_norm, "clip_grad_norm"),
        arguments.limit(clip_grad_value, "clip_grad_value"),
    )
    measure = arguments.flag(measure, "measure")
    chosen = _LEVERS if levers is None else levers
    wanted = arguments.planning(
        *("all", time_budget, None, chosen),
        offered=arguments.GRAPH_LEVERS,
        op_seconds=op_seconds,
    )
    if not measure and "slice" in wanted.levers:
        raise ValueError("slices are chosen by measuring; leave them out, or give measure=True")
    batch = as_batch(example_batch, loss_fn)
    module, replicas = unwrapped(model)
    if replicas is not None:
        raise UnsupportedError("a front is of one process; give the module that is wrapped")
    world = World(Objective(module, loss_fn), optimizer, clipping)
    now = world.look(batch)
    if now.why_no_graph:
        raise UnsupportedError(f"{now.why_no_graph}, which a captured step cannot")
    with progress("drawing the front of a training step"):
        settled = on_copies(world, now, True, lambda: _after_a_step(world, batch))
        now = settled.look(batch)
        return on_copies(settled, now, True, lambda: _drawn(settled, now, wanted, points, measure))


def _after_a_step(world: World, batch: Batch) -> World:
    """A copy whose optimizer has all its state: the first update may make it."""
    with torch.random.fork_rng(devices=[]):
        later = world.copy()
        later.run_eagerly(later.look(copied(batch)), updates=True)
    return later


def _drawn(world: World, now: Now, wanted: Planning, count: int, measure: bool) -> Front:
    start = time.perf_counter()
    maker = Maker.of(world, now, True, "fx")
    plain, wanted = maker.plain(wanted)
    free = without(wanted, "slice", "repeat").levers
    peaks = plain.found.plan.peak_bytes, plain.verified.peak_bytes
    edits = plain.found.levers[-1].edits if plain.found.levers else 0
    points = [FrontPoint(*peaks, 0.0, None, 1.0, free, edits)]
    call_seconds: float | None = None
    op_seconds: Mapping[str, float] | None = None
    floor_bytes: int | None = plain.found.plan.lower_bound_bytes
    reasons: list[str] = []
    if "repeat" in wanted.levers:
        program, order = maker.timed(wanted, plain)
        first, *plans = plan_repeat_front(program, order, wanted, count)
        floor_bytes = first.floor_bytes
        call_seconds, op_seconds = first.times.call_seconds, first.times.op_seconds
        for plan in plans:
            edits = len(plan.runs) - len(first.runs)
            used = without(wanted, "slice").levers
            point = point_of_repeats(plan, used, edits, is_proven="slice" not in wanted.levers)
            point, why = _measured(point, maker, plain, plan, wanted) if measure else (point, "")
            if why:
                reasons.append(f"a point of {amount(plan.peak_bytes)} is left out: {why}")
            else:
                points.append(point)
        reasons.append(repeats.why_no_lower(first))
    if "slice" in wanted.levers:
        trials, _ = maker.try_slices(without(wanted, "repeat"), plain)
        points += points_of_trials(trials.verified, free)
        floor_bytes = None if "repeat" in wanted.levers else trials.floor_bytes
    elif "repeat" in wanted.levers:
        points[0] = dataclasses.replace(points[0], extra_seconds_bound=0.0)
    others = tuple(_others(maker, plain)) if measure else ()
    if call_seconds is None:
        _, call_seconds = _seconds_beside(maker, plain, _step_of(maker, plain))
    return Front(
        points=unbeaten(points),
        others=others,
        call_seconds=call_seconds,
        floor_bytes=floor_bytes,
        reason="; ".join(reasons),
        threads=torch.get_num_threads(),
        seconds=time.perf_counter() - start,
        op_seconds=op_seconds,
    )


def _measured(
    point: FrontPoint, maker: Maker, plain: Edited, plan: RepeatPlan, wanted: Planning
) -> tuple[FrontPoint, str]:
    """Make the program of a point and run it; say why it is not to be used, else empty."""
    try:
        edited, why = maker.run_again(plan, wanted, plain)
        before, after = _seconds_beside(maker, plain, _step_of(maker, edited))
    except Exception as error:
        return point, f"{type(error).__name__}: {first_line(error)}"
    point = dataclasses.replace(
        point,
        peak_bytes=edited.found.plan.peak_bytes,
        measured_peak_bytes=edited.verified.peak_bytes,
        time_ratio=after / before,
    )
    return point, why


def _others(maker: Maker, plain: Edited) -> Iterator[OtherWay]:
    world, now = maker.world, maker.now
    for way, (in_hooks, checkpoints) in _WAYS.items():
        with torch.random.fork_rng(devices=[]):
            scratch = world.copy()
            looked = scratch.look(copied(now.batch))
            if checkpoints and not checkpoint_blocks(scratch.objective):
                continue
            hooks = loop_with_hooks(scratch, looked) if in_hooks else None
            if in_hooks and hooks is None:
                continue
            run = hooks.run if hooks else functools.partial(scratch.run_eagerly, looked, True)
            try:
                difference = _difference_from_loop(world, now, scratch, run)
                with measure_peak() as memory:
                    run()
                of_graph, of_loop = _seconds_beside(maker, plain, run)
            finally:
                if hooks:
                    hooks.remove()
        yield OtherWay(way, memory.peak_bytes, of_loop / of_graph, difference)


def _difference_from_loop(world: World, now: Now, scratch: World, run: Callable[[], object]) -> str:
    """Make a step of the loop and one on a copy of the same state; return what differs first."""
    random_state = torch.get_rng_state()
    loop = world.copy()
    loop.run_eagerly(loop.look(copied(now.batch)), updates=True)
    left = {"the random state": torch.get_rng_state(), **loop.contents()}
    torch.set_rng_state(random_state)
    run()
    found = {"the random state": torch.get_rng_state(), **scratch.contents()}
    return first_difference(left, found).removeprefix("model.")


def _step_of(maker: Maker, edited: Edited) -> Callable[[], object]:
    inputs = maker.inputs()  # which steps change as they do in training

    def step() -> object:
        with of_a_graph():
            return edited.captured.run(*inputs)

    return step


def _seconds_beside(maker: Maker, plain: Edited, step: Callable[[], object]) -> tuple[float, float]:
    """The seconds of a step without repeats and of another, measured in turns."""
    with torch.random.fork_rng(devices=[]):
        return seconds_in_turns((_step_of(maker, plain), step), tuple)
