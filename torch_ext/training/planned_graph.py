"""From the state of a world to a graph in its best order, verified: all on copies."""

import dataclasses
import itertools
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, TypeVar

import torch
from torch import fx
from torch.utils import _pytree as pytree

from torch_ext import _sched, attributes
from torch_ext.amounts import amount
from torch_ext.arguments import PLACE, Planning, without
from torch_ext.files import first_line
from torch_ext.fx.choice import best_of, why_failed
from torch_ext.fx.overwritable import Overwritable, find_overwritable
from torch_ext.fx.parting import where_above
from torch_ext.fx.planned import Planned, edited_module
from torch_ext.fx.probe import Probe, run_probe, tensors_of
from torch_ext.fx.program import labelled_program_of, written_storages
from torch_ext.fx.repeat import with_repeats
from torch_ext.fx.repeats import told
from torch_ext.fx.slice_trials import SliceTrials, Tried
from torch_ext.fx.slices import Slicer
from torch_ext.fx.timing import UnknownOpError, add_times
from torch_ext.fx.turns import seconds_in_turns
from torch_ext.memory.arena import PinnedFunction
from torch_ext.memory.meter import measure_peak
from torch_ext.program import repeats
from torch_ext.program.plan import (
    LeverPlan,
    Reason,
    RepeatPlan,
    left_out,
    plan_and_explain,
    plan_program,
    plan_repeats,
)
from torch_ext.reporting.arena import with_arena
from torch_ext.reporting.report import ProgramReport, described, held_to
from torch_ext.tensors.compare import first_difference
from torch_ext.training.alone import OwnStep
from torch_ext.training.capture import Batch, Captured
from torch_ext.training.modes import of_a_graph
from torch_ext.training.other_loops import loop_with_hooks
from torch_ext.training.questions import Answers, users_line
from torch_ext.training.randomness import only_torchs_numbers
from torch_ext.training.scripting import as_torchscript
from torch_ext.training.separable import settled
from torch_ext.training.updates import UnsupportedError
from torch_ext.training.world import Now, World

MIB = 2**20
Runtime = Literal["fx", "torchscript"]
_Made = TypeVar("_Made")


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
            f"bound of all orders of this step {mib(self.lower_bound_bytes)}"
        )
        hooks, ours = self.measured_hooks_peak_bytes, self.measured_peak_bytes
        if hooks is not None and ours is not None and hooks <= ours:
            line += " (backward hooks get as low)"
        if hooks is not None and hooks < self.lower_bound_bytes:
            line += " (backward hooks run other ops, of which the bound says nothing)"
        if self.repeats:
            line += f"; {len(self.repeats)} ops run again, for {self.extra_time()}"
        if self.budget_met is False:
            line += "; the budget is not met"
        return f"{line}; {self.reason}" if self.reason else line


@dataclasses.dataclass(frozen=True)
class PlannedGraph:
    """A captured graph in its new order; None if the eager loop needs less."""

    captured: Captured | None
    answers: Answers  # that a batch has to give
    report: TrainingReport


@dataclasses.dataclass(frozen=True)
class Verified:
    """What running loop and graph side by side has shown."""

    refusal: str  # empty: all bits are equal
    eager_peak_bytes: int
    peak_bytes: int
    state_bytes: int  # that the optimizer holds from then on: its first update makes most of it


def make_graph(
    world: World, now: Now, updates: bool, runtime: Runtime, wanted: Planning
) -> PlannedGraph:
    """Capture, probe, plan, edit, verify: all on copies. Raises as on_copies."""
    return on_copies(world, now, updates, lambda: _made(world, now, updates, runtime, wanted))


def on_copies(world: World, now: Now, updates: bool, work: Callable[[], _Made]) -> _Made:
    """Return what `work` makes of copies of the world, which stays as it is.

    Raises UnsupportedError for what the loop can do and a captured step cannot, and whatever the
    loop itself raises.
    """
    saved = attributes.Saved(world.objective)  # what functions reach is the same in all copies
    with torch.inference_mode(False):  # copies would be of its kind, which autograd refuses
        try:
            with only_torchs_numbers():
                return work()
        except (UnsupportedError, UnknownOpError):
            raise
        except Exception as error:
            if world.replicas is None:  # else the other processes would have to run it, too
                _run_loop(world, now, updates)  # raises what is no matter of capturing
            raise UnsupportedError(_cause(error)) from error
        finally:
            saved.put_back()


def _made(
    world: World, now: Now, updates: bool, runtime: Runtime, wanted: Planning
) -> PlannedGraph:
    start = time.perf_counter()
    maker = Maker.of(world, now, updates, runtime)
    world, now = maker.world, maker.now
    plain, wanted = maker.plain(wanted)
    best = maker.best(wanted, plain)
    found, reasons, verified = best.found, best.reasons, best.verified
    plan, refuted = held_to(found.plan, (verified.peak_bytes,))
    found = dataclasses.replace(found, plan=plan)
    if verified.peak_bytes > verified.eager_peak_bytes:
        why = Reason.of(
            "loop_is_lower",
            size_bytes=verified.peak_bytes,
            other_bytes=verified.eager_peak_bytes,
        )
        reasons = (why,)
    one_batch = updates and now.group_of.keys().isdisjoint(now.accumulated)
    hooks_peak_bytes = _hooks_peak(world, now) if one_batch else None
    report = TrainingReport(
        **described(found, (*refuted, *reasons)),
        measured_original_peak_bytes=verified.eager_peak_bytes,
        measured_hooks_peak_bytes=hooks_peak_bytes,
        measured_peak_bytes=verified.peak_bytes,
        identical=True,
        threads=torch.get_num_threads(),
        parameter_bytes=sum(
            tensor.nbytes
            for tensor in itertools.chain(world.objective.parameters(), world.objective.buffers())
        ),
        input_bytes=sum(tensor.nbytes for tensor in now.tensors),
        state_bytes=verified.state_bytes,
        capture_seconds=time.perf_counter() - start,
    )
    if PLACE in wanted.levers:
        best, heights = maker.pinned(best)
        report = with_arena(report, heights)
    for node in best.captured.module.graph.nodes:
        if node.op != "placeholder":  # a saved step checks its inputs against the example's
            node.meta.clear()  # labels are in the report by now, and values take memory
    is_kept = all(_common(world, verified.peak_bytes <= verified.eager_peak_bytes))
    return PlannedGraph(best.captured if is_kept else None, maker.captured.answers, report)


@dataclasses.dataclass(frozen=True)
class Edited:
    """A captured graph as planned, run beside the loop."""

    captured: Captured
    found: LeverPlan
    reasons: tuple[Reason, ...]
    verified: Verified


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes edited graphs of a captured one, which stays as it is."""

    world: World  # with state for an optimizer that runs its own step
    captured: Captured
    probe: Probe  # of the captured graph
    now: Now
    updates: bool
    runtime: Runtime

    @classmethod
    def of(cls, world: World, now: Now, updates: bool, runtime: Runtime) -> Self:
        """Capture and probe. Raises UnsupportedError for what no graph can do."""
        if updates and isinstance(world.update, OwnStep):
            world = settled(world, copied(now.batch))
            now = world.look(now.batch)
        with torch.random.fork_rng(devices=[]):
            scratch = world.copy()
            looked = scratch.look(copied(now.batch))
            if looked.key != now.key:
                raise UnsupportedError(
                    f"a copy is not as the original: {looked.key.why_not(now.key)}"
                )
            captured = scratch.capture(looked, updates)
            _require_own_constants(captured.module, world)
            if world.replicas is not None:
                world.replicas.require_same(captured.module.graph)
            inputs = scratch.bind(captured, looked)
            with of_a_graph():
                probe = run_probe(captured.module, inputs)
            _require_constants_kept(captured.module, probe, scratch)
        return cls(world, captured, probe, now, updates, runtime)

    def plain(self, wanted: Planning) -> tuple[Edited, Planning]:
        """Return the graph with the levers that cost no time, and what else may be done to it.

        Raises UnsupportedError if it does not do what the loop does.
        """
        free = without(wanted, "slice", "repeat")
        plain = self.edited(self.captured.module, self.probe, free)
        if plain.verified.refusal and plain.found.overwrites:
            wanted = without(wanted, "overwrite")
            plain = self.edited(self.captured.module, self.probe, without(free, "overwrite"))
        if plain.verified.refusal:
            raise UnsupportedError(plain.verified.refusal)
        return plain, wanted

    def edited(self, module: fx.GraphModule, probe: Probe, wanted: Planning) -> Edited:
        """Plan and edit a copy of the module, which the probe is of, and run it."""
        uses = self._uses(probe, wanted)
        found, reasons = plan_and_explain(labelled_program_of(probe, uses), wanted)
        found = _common(self.world, found)[0]
        # The graph asks nothing: the key that it is found by has the number of threads.
        planned = Planned(module, probe, uses, found, reasons)
        captured = self._with(edited_module(planned, asks=False))
        verified = _verify(self.world, captured, self.now, self.updates)
        refusal = next(filter(None, _common(self.world, verified.refusal)), "")
        return Edited(captured, found, reasons, dataclasses.replace(verified, refusal=refusal))

    def best(self, wanted: Planning, plain: Edited) -> Edited:
        """Return the graph with levers that cost time which is best (choice.py), or `plain`."""
        best, found = best_of(
            wanted,
            plain,
            lambda: self.repeated(wanted, plain),
            lambda: self.sliced(without(wanted, "repeat"), plain),
        )
        return dataclasses.replace(best, found=found)

    def repeated(self, wanted: Planning, plain: Edited) -> Edited:
        """Run ops again where that meets the budget, or return the plain graph, and why."""
        try:
            return self._repeated(wanted, plain)
        except Exception as error:
            if self.world.replicas is not None:  # the others wait
                raise
            found = left_out(plain.found, "repeat", why_failed("repeats", error))
            return dataclasses.replace(plain, found=found)

    def _repeated(self, wanted: Planning, plain: Edited) -> Edited:
        if found := repeats.not_needed(plain.found, wanted.memory_budget):
            return dataclasses.replace(plain, found=found)
        chosen = plan_repeats(*self.timed(wanted, plain), wanted)
        chosen = _common(self.world, chosen)[0]
        if chosen.peak_bytes >= plain.found.plan.peak_bytes:
            return dataclasses.replace(plain, found=repeats.given_up(plain.found, chosen))
        edited, why = self.run_again(chosen, wanted, plain)
        if why:
            return dataclasses.replace(plain, found=repeats.given_up(plain.found, chosen, why))
        found = told(plain.found, edited.found, chosen)
        return dataclasses.replace(edited, found=found, reasons=())

    def timed(self, wanted: Planning, plain: Edited) -> tuple[_sched.Program, list[str]]:
        """Return the program of the captured graph with the times of its ops, and an order of it.

        `plain`: the graph without repeats, whose order it is.
        """
        with torch.random.fork_rng(devices=[]), of_a_graph():
            add_times(self.probe, self.captured.module, self.inputs, wanted.op_seconds)
        names = {op.name for op in self.probe.ops}
        order = [name for name in plain.found.plan.order if name in names]
        return labelled_program_of(self.probe, self._uses(self.probe, wanted)), order

    def run_again(self, chosen: RepeatPlan, wanted: Planning, plain: Edited) -> tuple[Edited, str]:
        """Return the graph with those repeats, and why it is not to be used; else empty."""
        with torch.random.fork_rng(devices=[]), of_a_graph():
            module = with_repeats(self.captured.module, self.probe, chosen.runs)
            probe = run_probe(module, self.inputs())
        edited = self.edited(module, probe, without(wanted, "slice", "repeat"))
        peak_bytes = edited.found.plan.peak_bytes
        why = edited.verified.refusal
        # The thread of a collective lets go of a gradient a little late: not exactly as planned.
        is_exact = self.world.replicas is None
        most_bytes = peak_bytes if is_exact else plain.verified.peak_bytes
        if not why and edited.verified.peak_bytes > most_bytes:
            with torch.random.fork_rng(devices=[]), of_a_graph():
                where = where_above(edited.captured.module, self.inputs(), edited.found)
            why = (
                f"a step with repeats was planned to take {amount(peak_bytes)} and takes "
                f"{amount(edited.verified.peak_bytes)}; {where}"
            )
        if not why and peak_bytes >= plain.found.plan.peak_bytes:
            why = "repeats do not lower the peak"
        return edited, next(filter(None, _common(self.world, why)), "")

    def sliced(self, wanted: Planning, plain: Edited) -> Edited:
        """Try slices, and return the best graph, or the plain one, with what was found out."""
        if self.world.replicas is not None:  # their times differ, and all have to do the same
            why = "slices are chosen by times, and processes that train together need the same"
            return dataclasses.replace(plain, found=left_out(plain.found, "slice", why))
        try:
            return self._sliced(wanted, plain)
        except Exception as error:
            found = left_out(plain.found, "slice", why_failed("slices", error))
            return dataclasses.replace(plain, found=found)

    def _sliced(self, wanted: Planning, plain: Edited) -> Edited:
        trials, best = self.try_slices(wanted, plain)
        if best is None:
            return dataclasses.replace(plain, found=trials.told_of_none())
        edited: Edited = best.program
        return dataclasses.replace(edited, found=best.found, reasons=())

    def try_slices(self, wanted: Planning, plain: Edited) -> tuple[SliceTrials, Tried | None]:
        """Return all that was tried, and the best of it if any is good."""
        ordering = without(wanted, "overwrite", "slice")
        order = plan_program(labelled_program_of(self.probe), ordering)
        ordered = Planned(self.captured.module, self.probe, (), order, ())
        with of_a_graph():
            slicer = Slicer(edited_module(ordered, asks=False), self.inputs)

            def attempt(module: fx.GraphModule) -> Tried | None:
                return self._tried(module, without(wanted, "slice", PLACE), plain)

            trials = SliceTrials(slicer, plain.found, wanted, attempt)
            return trials, trials.best()

    def _tried(self, module: fx.GraphModule, wanted: Planning, plain: Edited) -> Tried | None:
        with torch.random.fork_rng(devices=[]):
            probe = run_probe(module, self.inputs())
        sliced = self.edited(module, probe, wanted)
        peak_bytes = sliced.verified.peak_bytes
        _, refuted = held_to(sliced.found.plan, (peak_bytes,))
        is_lower = sliced.found.plan.peak_bytes < plain.found.plan.peak_bytes
        if sliced.verified.refusal or refuted or not is_lower:
            return None
        if peak_bytes > plain.verified.peak_bytes:
            return None
        return Tried(sliced, sliced.found, peak_bytes, self.seconds_in_turns(plain, sliced))

    def _with(self, module: fx.GraphModule) -> Captured:
        captured = dataclasses.replace(self.captured, module=module, run=module)
        return as_torchscript(captured) if self.runtime == "torchscript" else captured

    def pinned(self, edited: Edited) -> tuple[Edited, list[int]]:
        """Return the graph with planned addresses, and the heights of its arenas in bytes.

        Processes that train together would have to run it equally often: there it has none.
        """
        if self.world.replicas is not None:
            return edited, []
        pinned: PinnedFunction[..., Any] = PinnedFunction(
            edited.captured.run, signature=lambda args, named: "step"
        )
        with torch.random.fork_rng(devices=[]), of_a_graph():
            learned = pinned.learn(*self.inputs())
        captured = dataclasses.replace(edited.captured, pinned=pinned)
        heights = [] if learned is None else [learned.arena_bytes]
        return dataclasses.replace(edited, captured=captured), heights

    def _uses(self, probe: Probe, wanted: Planning) -> list[Overwritable]:
        return find_overwritable(probe) if "overwrite" in wanted.levers else []

    def inputs(self) -> list[Any]:
        """What the placeholders of the captured graph stand for: a copy of the world."""
        scratch = self.world.copy()
        return scratch.bind(self.captured, scratch.look(copied(self.now.batch)))

    def seconds_in_turns(self, a: Edited, b: Edited) -> tuple[float, float]:
        """Return the seconds of a step of each."""
        with torch.random.fork_rng(devices=[]), of_a_graph():
            inputs = self.inputs()  # which steps change as they do in training
            return seconds_in_turns((a.captured.run, b.captured.run), lambda: inputs)


def _run_loop(world: World, now: Now, updates: bool) -> None:
    """One step of the loop, on a copy."""
    with torch.random.fork_rng(devices=[]):
        scratch = world.copy()
        scratch.run_eagerly(scratch.look(copied(now.batch)), updates)


# What torch says where the loop runs and tracing does not, and what helps.
_CAUSES = {
    "use_reentrant=True": "checkpoint with use_reentrant=True; give use_reentrant=False",
    "dynamo-optimized": "a function that torch.compile compiled; give the function that it wraps",
    "Inference tensors": "a tensor that was made in inference mode; clone it outside of it",
}


def _cause(error: Exception) -> str:
    text = str(error)
    for sign, cause in _CAUSES.items():
        if sign in text:
            return f"the step cannot be captured with {cause}"
    where = users_line(traceback.extract_tb(error.__traceback__))
    told = f"{type(error).__name__}: {first_line(error)}"
    return f"the loop runs, but the step cannot be captured, at {where}: {told}"


def _common(world: World, value: Any) -> list[Any]:
    """The value of every process that trains the model: all do the same with them."""
    return [value] if world.replicas is None else world.replicas.gathered(value)


def _require_own_constants(module: fx.GraphModule, world: World) -> None:
    """Functions are not copied: what one has of the model in its closure is the model's own."""
    names = {
        tensor.untyped_storage()._cdata: name.removeprefix("model.")
        for name, tensor in world.contents().items()
        if isinstance(tensor, torch.Tensor)
    }
    for node in module.graph.nodes:
        if node.kwargs.get("generator") is not None:
            raise UnsupportedError(
                f"{node.target} draws from a generator of its own; draw from torch's default one"
            )
        value = getattr(module, str(node.target)) if node.op == "get_attr" else None
        if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata in names:
            raise UnsupportedError(
                "a function (loss_fn, a hook, a forward that was replaced) uses "
                f"{names[value.untyped_storage()._cdata]} through a variable of its own, which is "
                "the same in all copies; make it a method of the model, or an nn.Module that "
                "holds what it uses"
            )


def _require_constants_kept(module: fx.GraphModule, probe: Probe, scratch: World) -> None:
    """A constant of the graph was taken from the copy: writes to it would not reach the model."""
    constants = {
        storage: node
        for node in probe.first
        if node.op == "get_attr"
        for storage in probe.values[node]
    }
    for op in probe.ops:
        for storage in constants.keys() & written_storages(op):
            tensor = getattr(module, str(constants[storage].target))
            path = attributes.path_of(scratch.objective, tensor).removeprefix("model.")
            raise UnsupportedError(
                f"the model changes {path or 'a tensor'} in place ({op.node.target}), which is "
                "neither a parameter nor a buffer nor an input; register it as a buffer"
            )


def copied(batch: Batch) -> Batch:
    """Tensors of its own, the same values and layouts."""
    copy: Batch = pytree.tree_map_only(torch.Tensor, _copied, batch)
    return copy


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A clone would be dense where a slice of a larger tensor is not."""
    if tensor.is_conj():
        return _copied(tensor.conj()).conj()
    if tensor.is_neg():
        return torch._neg_view(_copied(torch._neg_view(tensor)))
    if not tensor.numel():
        return tensor.detach().clone()
    reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.detach().as_strided((reach,), (1,), tensor.storage_offset()).clone()
    return memory.as_strided(tensor.shape, tensor.stride(), 0)


def _rolled(batch: Batch) -> Batch:
    """Another batch of the same layouts and, likely, of the same kind: the samples moved on by one.

    What a graph has frozen of its batch shows with another one.
    """

    def roll(tensor: torch.Tensor) -> torch.Tensor:
        moved = _copied(tensor)
        if tensor.ndim and not torch._debug_has_internal_overlap(tensor):
            moved.copy_(tensor.roll(1, 0))
        return moved

    other: Batch = pytree.tree_map_only(torch.Tensor, roll, batch)
    return other


def _verify(world: World, captured: Captured, now: Now, updates: bool) -> Verified:
    """Run loop and graph side by side, from the same state, for two steps, and measure both.

    What a graph has frozen of the state shows in the second step, what it has frozen of the batch
    shows with another batch. Peaks are those of a settled step.
    """
    with torch.random.fork_rng(devices=[]):
        loop, graph = world.copy(), world.copy()
        seen = [attributes.contents(loop.objective)]
        last = _step_of_both(loop, graph, captured, now.batch, updates)
        seen.append(attributes.contents(loop.objective))
        made = set(dict(loop.objective.named_buffers())) - set(
            dict(world.objective.named_buffers())
        )
        second = None
        others = (now.batch,) if world.replicas else (_rolled(now.batch), now.batch)
        for batch in () if last.difference else others:
            looked = graph.look(batch)
            if looked.key != now.key or not captured.answers.hold(looked.tensors):
                continue
            try:
                last = second = _step_of_both(loop, graph, captured, batch, updates)
                break
            except _LoopError:  # this order of the samples does not suit the program
                loop = graph.copy()
                seen[-1] = attributes.contents(loop.objective)
        if second is None:  # later steps run another graph
            last = dataclasses.replace(
                _measured_apart(world, loop, captured, now, updates), difference=last.difference
            )
        seen.append(attributes.contents(loop.objective))
        state = list(loop.optimizer.state.values())
        state_bytes = sum(tensor.nbytes for tensor in tensors_of(state))
    changed = attributes.changes(*seen[1:])
    if not changed and last.difference:  # what the first step alone has changed may be why
        changed = attributes.changes(*seen[:2])
    refusal = ""
    if made:
        names = ", ".join(name.removeprefix("model.") for name in sorted(made))
        refusal = f"the first step makes the buffer {names}; call the model once before"
    elif changed:
        refusal = _why_stateful(changed)
    elif last.difference:
        refusal = f"the captured step does not do what the loop does: {last.difference} differs"
    return Verified(refusal, last.eager_peak_bytes, last.peak_bytes, state_bytes)


class _LoopError(Exception):
    """The loop itself raised."""


@dataclasses.dataclass(frozen=True)
class _Both:
    """A step of the loop and one of the graph."""

    difference: str  # the first, or empty
    eager_peak_bytes: int
    peak_bytes: int


def _step_of_both(
    loop: World, graph: World, captured: Captured, batch: Batch, updates: bool
) -> _Both:
    """Run both on copies of a batch. Raises _LoopError."""
    batches = copied(batch), copied(batch)
    looked = loop.look(batches[0])
    random_state = torch.get_rng_state()
    try:
        with measure_peak() as eager:
            expected = loop.run_eagerly(looked, updates)
    except Exception as error:
        raise _LoopError from error
    random_states = [torch.get_rng_state()]
    torch.set_rng_state(random_state)
    looked = graph.look(batches[1])
    with measure_peak() as ours:
        actual = graph.run(captured, looked)
    random_states.append(torch.get_rng_state())
    left = [
        {"the result": result, "the random state": state, "the batch": given, **of.contents()}
        for result, state, given, of in zip(
            (expected, actual), random_states, batches, (loop, graph), strict=True
        )
    ]
    return _Both(first_difference(*left), eager.peak_bytes, ours.peak_bytes)


def _measured_apart(
    world: World, loop: World, captured: Captured, now: Now, updates: bool
) -> _Both:
    """The loop after its first step, the graph with the state that it will have made."""
    looked = loop.look(copied(now.batch))
    with measure_peak() as eager:
        loop.run_eagerly(looked, updates)
    scratch = world.copy()
    inputs = scratch.bind(captured, scratch.look(copied(now.batch)))
    with of_a_graph(), measure_peak() as ours:
        captured.run(*inputs)
    return _Both("", eager.peak_bytes, ours.peak_bytes)


def _why_stateful(changed: Sequence[str]) -> str:
    names = ", ".join(name.removeprefix("model.") for name in changed[:3])
    more = ", ..." if len(changed) > 3 else ""
    return (
        "a step changes what is no parameter and no buffer, which a captured step does not: "
        f"{names}{more}; register modules (nn.ModuleList), parameters and tensors "
        "(register_buffer), and keep anything else outside of the model"
    )


def _hooks_peak(world: World, now: Now) -> int | None:
    """The peak of the loop with hooks in a settled step; None where it does something else."""
    with torch.random.fork_rng(devices=[]):
        scratch = world.copy()
        loop = loop_with_hooks(scratch, scratch.look(copied(now.batch)))
        if loop is None:
            return None
        try:
            return loop.settled_peak()
        finally:
            loop.remove()
