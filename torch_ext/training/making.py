"""From the state of a world to a graph in its best order, verified: all on copies."""

import ctypes
import dataclasses
import gc
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch_ext.comparing import first_difference
from torch_ext.fx.labelling import labelled
from torch_ext.fx.ordering import apply_order, written_storages
from torch_ext.fx.probing import Probe, run_probe
from torch_ext.measuring import measure_peak
from torch_ext.planning import Plan, plan
from torch_ext.reports import ProgramReport, described
from torch_ext.training.capturing import Captured, loss_of
from torch_ext.training.scripting import as_torchscript
from torch_ext.training.updates import UnsupportedError
from torch_ext.training.world import Now, World

MIB = 2**20
Runtime = Literal["fx", "torchscript"]

_RELEASE: dict[str, tuple[Any, ...]] = {  # how mallocs are told to give free memory back
    "malloc_trim": (ctypes.c_size_t(0),),  # glibc
    "MallocExtension_ReleaseFreeMemory": (),  # tcmalloc
    "mi_collect": (ctypes.c_bool(True),),  # mimalloc, of the calling thread and of those that ended
    # jemalloc, of all arenas: MALLCTL_ARENAS_ALL
    "mallctl": (b"arena.4096.purge", None, None, None, ctypes.c_size_t(0)),
}


@dataclasses.dataclass(frozen=True)
class TrainingReport(ProgramReport):
    """What was found out about a step. Peaks are bytes above the start of the step, gradients in.

    `original_peak_bytes` is that of the captured graph in its own order; `measured_*` are the
    allocator's, of the eager loop, of the same loop with the optimizer in backward hooks (None
    where hooks cannot do it), and of this step.
    """

    measured_hooks_peak_bytes: int | None
    state_bytes: int
    capture_seconds: float

    def __str__(self) -> str:
        def mib(size_bytes: int | None) -> str:
            return "-" if size_bytes is None else f"{size_bytes / MIB:.2f}"

        line = (
            f"eager {mib(self.measured_original_peak_bytes)} MiB, optimizer in backward hooks "
            f"{mib(self.measured_hooks_peak_bytes)}, this step {mib(self.measured_peak_bytes)}, "
            f"bound {mib(self.lower_bound_bytes)}"
        )
        hooks, ours = self.measured_hooks_peak_bytes, self.measured_peak_bytes
        if hooks is not None and ours is not None and hooks <= ours:
            line += " (backward hooks get as low)"
        return f"{line}; {self.reason}" if self.reason else line


@dataclasses.dataclass(frozen=True)
class PlannedGraph:
    """A captured graph in its new order; None if the eager loop needs less."""

    captured: Captured | None
    report: TrainingReport


def make_graph(
    world: World, now: Now, updates: bool, runtime: Runtime, time_budget: float
) -> PlannedGraph:
    """Capture, probe, plan, reorder, verify: all on copies."""
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        scratch = world.copy()
        looked = scratch.look(copied(now.batch))
        captured = scratch.capture(looked, updates)
        if world.replicas is not None:
            world.replicas.require_same(captured.module.graph)
        probe = run_probe(captured.module, scratch.bind(captured, looked))
        del scratch, looked
    _require_constants_kept(probe)
    graph = labelled(probe)
    found = plan(graph.to_graph(), time_budget=time_budget)
    apply_order(captured.module, probe, _common(world, found.order)[0])
    if runtime == "torchscript":
        captured = as_torchscript(captured)
    eager_peak_bytes, difference, peak_bytes, state_bytes = _verify(
        world, captured, now.batch, updates
    )
    difference = next(filter(None, _common(world, difference)), "")
    if difference:
        raise UnsupportedError(
            f"the captured step does not do what the loop does: {difference} differs"
        )
    one_batch = updates and not now.accumulated
    hooks_peak_bytes = _hooks_peak(world, now.batch) if one_batch else None
    report = TrainingReport(
        **described(graph, found),
        measured_original_peak_bytes=eager_peak_bytes,
        measured_hooks_peak_bytes=hooks_peak_bytes,
        measured_peak_bytes=peak_bytes,
        identical=True,
        threads=torch.get_num_threads(),
        parameter_bytes=sum(
            tensor.nbytes
            for tensor in itertools.chain(world.objective.parameters(), world.objective.buffers())
        ),
        input_bytes=sum(leaf.nbytes for leaf in now.leaves if isinstance(leaf, torch.Tensor)),
        state_bytes=state_bytes,
        capture_seconds=time.perf_counter() - start,
        reason=_why_no_gain(found, eager_peak_bytes, peak_bytes),
    )
    for node in captured.module.graph.nodes:
        if node.op != "placeholder":  # a saved step checks its inputs against the example's
            node.meta.clear()  # labels are in the report by now, and values take memory
    is_kept = all(_common(world, peak_bytes <= eager_peak_bytes))
    return PlannedGraph(captured if is_kept else None, report)


def _common(world: World, value: Any) -> list[Any]:
    """The value of every process that trains the model: all do the same with them."""
    return [value] if world.replicas is None else world.replicas.gathered(value)


def _require_constants_kept(probe: Probe) -> None:
    """A constant of the graph was taken from the copy: writes to it would not reach the model."""
    constants = {
        storage for node in probe.first if node.op == "get_attr" for storage in probe.values[node]
    }
    for op in probe.ops:
        if constants & written_storages(probe, op):
            raise UnsupportedError(
                f"the model changes a tensor in place ({op.node.target}) that is neither a "
                "parameter nor a buffer nor an input; register it as a buffer"
            )


def _why_no_gain(found: Plan, eager_peak_bytes: int, peak_bytes: int) -> str:
    """Empty if the order lowers the peak."""
    if peak_bytes > eager_peak_bytes:
        needs = f"{peak_bytes / MIB:.2f} MiB against {eager_peak_bytes / MIB:.2f}"
        return f"the captured step needs more than the eager loop ({needs}), which is kept"
    if found.peak_bytes < found.original_peak_bytes:
        return ""
    if found.status == "optimal" and found.bottleneck is not None:
        return f"order gains nothing: no order runs {found.bottleneck.op} with less"
    return "no better order was found within the budget"


def copied(batch: Sequence[Any]) -> tuple[Any, ...]:
    """Tensors of its own, the same values."""
    return tuple(pytree.tree_map_only(torch.Tensor, torch.clone, tuple(batch)))


def return_free_memory() -> None:
    """Give the system back what the copies took: what malloc keeps would hide the gain."""
    gc.collect()
    process = ctypes.CDLL(None)
    for name, arguments in _RELEASE.items():
        release = getattr(process, name, None)
        if release is not None:
            release(*arguments)


def _verify(
    world: World, captured: Captured, batch: Sequence[Any], updates: bool
) -> tuple[int, str, int, int]:
    """Eager peak, first difference after a step from the same state (or empty), our peak.

    And what the optimizer holds from then on: its first update makes most of it.
    """
    with torch.random.fork_rng(devices=[]):
        expected_world = world.copy()
        expected = expected_world.run_eagerly(expected_world.look(copied(batch)), updates)
        expected_random = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        actual_world = world.copy()
        actual = actual_world.run(captured, actual_world.look(copied(batch)))
        actual_random = torch.get_rng_state()
    difference = first_difference(
        {"the result": expected, "the random state": expected_random, **expected_world.contents()},
        {"the result": actual, "the random state": actual_random, **actual_world.contents()},
    )
    del actual_world, expected, actual
    with torch.random.fork_rng(devices=[]):
        batch = copied(batch)
        now = expected_world.look(batch)
        with measure_peak() as eager:
            expected_world.run_eagerly(now, updates)
        state_bytes = sum(
            value.nbytes
            for state in expected_world.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        )
        del expected_world, now
        scratch = world.copy()
        inputs = scratch.bind(captured, scratch.look(batch))
        with torch.no_grad(), measure_peak() as ours:
            captured.run(*inputs)
    return eager.peak_bytes, difference, ours.peak_bytes, state_bytes


def _hooks_peak(world: World, batch: Sequence[Any]) -> int | None:
    """The peak of the loop whose optimizer runs in backward hooks, in a settled step.

    None where that loop does something else: clipping by norm needs all gradients, and other
    processes need the gradient before the update.
    """
    if world.clipping.norm is not None or world.replicas is not None:
        return None
    with torch.random.fork_rng(devices=[]):
        scratch = world.copy()
        optimizers = {}
        for one in scratch.look(batch).trained.values():
            group = scratch.optimizer.param_groups[one.group]
            options = {key: value for key, value in group.items() if key != "params"}
            make: Callable[..., torch.optim.Optimizer] = type(scratch.optimizer)
            optimizer = make([{"params": [one.parameter], **options}])
            if one.parameter in scratch.optimizer.state:
                optimizer.state[one.parameter] = scratch.optimizer.state[one.parameter]
            optimizers[one.parameter] = optimizer

        def update(parameter: torch.Tensor) -> None:
            if world.clipping.value is not None:
                nn.utils.clip_grad_value_([parameter], world.clipping.value)
            optimizers[parameter].step()
            parameter.grad = None

        hooks = [
            parameter.register_post_accumulate_grad_hook(update)  # type: ignore[no-untyped-call]
            for parameter in optimizers
        ]

        def run() -> None:
            loss_of(scratch.objective(*values)).backward()

        values = copied(batch)
        run()
        with measure_peak() as memory:
            run()
        for hook in hooks:
            hook.remove()  # else parameters and hooks hold each other, unseen by the collector
    return memory.peak_bytes
