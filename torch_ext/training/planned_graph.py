"""From the state of a world to a graph in its best order, verified: all on copies."""

import dataclasses
import itertools
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from torch_ext import attributes
from torch_ext.amounts import amount
from torch_ext.arguments import Planning, without
from torch_ext.files import first_line
from torch_ext.fx import repeats
from torch_ext.fx.overwritable import find_overwritable
from torch_ext.fx.planned import Planned, edited_module
from torch_ext.fx.probe import Probe, run_probe
from torch_ext.fx.program import labelled_program_of, written_storages
from torch_ext.fx.repeat import with_repeats
from torch_ext.fx.slice_trials import SliceTrials, Tried, why_not_tried
from torch_ext.fx.slices import Slicer
from torch_ext.fx.turns import seconds_in_turns
from torch_ext.memory.meter import measure_peak
from torch_ext.program.plan import (
    LeverPlan,
    LeverUse,
    Reason,
    plan_and_explain,
    plan_program,
)
from torch_ext.reporting.report import ProgramReport, described, held_to
from torch_ext.tensors.compare import first_difference
from torch_ext.training.capture import Batch, Captured, loss_of
from torch_ext.training.modes import apart, of_a_graph
from torch_ext.training.questions import Answers, users_line
from torch_ext.training.randomness import only_torchs_numbers
from torch_ext.training.scripting import as_torchscript
from torch_ext.training.updates import UnsupportedError
from torch_ext.training.world import Now, World

MIB = 2**20
Runtime = Literal["fx", "torchscript"]


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
class _Verified:
    """What running loop and graph side by side has shown."""

    refusal: str  # empty: all bits are equal
    eager_peak_bytes: int
    peak_bytes: int
    state_bytes: int  # that the optimizer holds from then on: its first update makes most of it


def make_graph(
    world: World, now: Now, updates: bool, runtime: Runtime, wanted: Planning
) -> PlannedGraph:
    """Capture, probe, plan, edit, verify: all on copies.

    Raises UnsupportedError for what the loop can do and a captured step cannot, and whatever the
    loop itself raises.
    """
    saved = attributes.Saved(world.objective)  # what functions reach is the same in all copies
    with torch.inference_mode(False):  # copies would be of its kind, which autograd refuses
        try:
            with only_torchs_numbers():
                return _made(world, now, updates, runtime, wanted)
        except UnsupportedError:
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
    with torch.random.fork_rng(devices=[]):
        scratch = world.copy()
        looked = scratch.look(copied(now.batch))
        if looked.key != now.key:
            raise UnsupportedError(f"a copy is not as the original: {looked.key.why_not(now.key)}")
        captured = scratch.capture(looked, updates)
        _require_own_constants(captured.module, world)
        if world.replicas is not None:
            world.replicas.require_same(captured.module.graph)
        inputs = scratch.bind(captured, looked)
        with of_a_graph():
            probe = run_probe(captured.module, inputs)
        _require_constants_kept(captured.module, probe, scratch)
        del scratch, looked, inputs
    maker = _Maker(world, captured, now, updates, runtime)
    free = without(wanted, "slice", "repeat")
    plain = maker.edited(captured.module, probe, free)
    if plain.verified.refusal and plain.found.overwrites:
        wanted = without(wanted, "overwrite")
        plain = maker.edited(captured.module, probe, without(free, "overwrite"))
    if plain.verified.refusal:
        raise UnsupportedError(plain.verified.refusal)
    best = maker.best(probe, wanted, plain)
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
    for node in best.captured.module.graph.nodes:
        if node.op != "placeholder":  # a saved step checks its inputs against the example's
            node.meta.clear()  # labels are in the report by now, and values take memory
    is_kept = all(_common(world, verified.peak_bytes <= verified.eager_peak_bytes))
    return PlannedGraph(best.captured if is_kept else None, captured.answers, report)


@dataclasses.dataclass(frozen=True)
class _Edited:
    """A captured graph as planned, run beside the loop."""

    captured: Captured
    found: LeverPlan
    reasons: tuple[Reason, ...]
    verified: _Verified


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Makes edited graphs of a captured one, which stays as it is."""

    world: World
    captured: Captured
    now: Now
    updates: bool
    runtime: Runtime

    def edited(self, module: fx.GraphModule, probe: Probe, wanted: Planning) -> _Edited:
        """Plan and edit a copy of the module, which the probe is of, and run it."""
        uses = find_overwritable(probe) if "overwrite" in wanted.levers else []
        found, reasons = plan_and_explain(labelled_program_of(probe, uses), wanted)
        found = _common(self.world, found)[0]
        # The graph asks nothing: the key that it is found by has the number of threads.
        planned = Planned(module, probe, uses, found, reasons)
        captured = self._with(edited_module(planned, asks=False))
        verified = _verify(self.world, captured, self.now, self.updates)
        refusal = next(filter(None, _common(self.world, verified.refusal)), "")
        return _Edited(captured, found, reasons, dataclasses.replace(verified, refusal=refusal))

    def best(self, probe: Probe, wanted: Planning, plain: _Edited) -> _Edited:
        """Try the levers that cost time, and return the cheapest graph that meets the budget.

        If none does, return the one with the lowest peak. Without a budget only slices are tried,
        which may save time.
        """
        tried = []
        if "repeat" in wanted.levers:
            tried.append(self.repeated(probe, wanted, plain))
        if "slice" in wanted.levers and not (tried and _is_cheap(tried[-1])):
            tried.append(self.sliced(probe, without(wanted, "repeat"), plain))
        if not tried:
            return plain
        best = tried[-1] if wanted.memory_budget is None else min(tried, key=_cost)
        best = _with_levers_of(best, tried)
        if {"slice", "repeat"} <= set(wanted.levers):  # no floor is proven of both together
            best = dataclasses.replace(
                best, found=dataclasses.replace(best.found, floor_bytes=None)
            )
        return best

    def repeated(self, probe: Probe, wanted: Planning, plain: _Edited) -> _Edited:
        """Run ops again where that meets the budget, or return the plain graph, and why."""
        try:
            return self._repeated(probe, wanted, plain)
        except Exception as error:
            if self.world.replicas is not None:  # the others wait
                raise
            why = f"trying repeats failed: {type(error).__name__}: {first_line(error)}"
            return dataclasses.replace(plain, found=repeats.left_out(plain.found, why))

    def _repeated(self, probe: Probe, wanted: Planning, plain: _Edited) -> _Edited:
        if wanted.memory_budget is None:
            why = Reason.of("no_budget").text
            return dataclasses.replace(plain, found=repeats.left_out(plain.found, why))
        if plain.found.plan.peak_bytes <= wanted.memory_budget:
            return dataclasses.replace(plain, found=repeats.left_out(plain.found, ""))
        module = self.captured.module
        uses = find_overwritable(probe) if "overwrite" in wanted.levers else []
        with torch.random.fork_rng(devices=[]), of_a_graph():
            inputs = self._inputs()
            chosen = repeats.choose(module, probe, uses, inputs, plain.found, wanted)
            chosen = _common(self.world, chosen)[0]
            if chosen.peak_bytes >= plain.found.plan.peak_bytes:
                why = repeats.why_missed(plain.found, chosen, chosen.peak_bytes).text
                return dataclasses.replace(plain, found=repeats.left_out(plain.found, why, chosen))
            module = with_repeats(module, probe, chosen.runs)
            again = run_probe(module, inputs)
        edited = self.edited(module, again, without(wanted, "slice", "repeat"))
        peak_bytes = edited.found.plan.peak_bytes
        why = edited.verified.refusal
        # The thread of a collective lets go of a gradient a little late: not exactly as planned.
        is_exact = self.world.replicas is None
        most_bytes = peak_bytes if is_exact else plain.verified.peak_bytes
        if not why and edited.verified.peak_bytes > most_bytes:
            why = (
                f"a step with repeats was planned to take {amount(peak_bytes)} and takes "
                f"{amount(edited.verified.peak_bytes)}"
            )
        if not why and peak_bytes >= plain.found.plan.peak_bytes:
            why = "repeats do not lower the peak"
        why = next(filter(None, _common(self.world, why)), "")
        if why:
            return dataclasses.replace(plain, found=repeats.left_out(plain.found, why, chosen))
        found = repeats.told(plain.found, edited.found, chosen, probe)
        return dataclasses.replace(edited, found=found, reasons=())

    def sliced(self, probe: Probe, wanted: Planning, plain: _Edited) -> _Edited:
        """Try slices, and return the best graph, or the plain one, with what was found out."""
        if self.world.replicas is not None:  # their times differ, and all have to do the same
            return _without_slices(
                plain, "slices are chosen by times, and processes that train together need the same"
            )
        try:
            return self._sliced(probe, wanted, plain)
        except Exception as error:
            return _without_slices(plain, why_not_tried(error))

    def _sliced(self, probe: Probe, wanted: Planning, plain: _Edited) -> _Edited:
        ordering = without(wanted, "overwrite", "slice")
        order = plan_program(labelled_program_of(probe), ordering)
        ordered = Planned(self.captured.module, probe, (), order, ())
        with of_a_graph():
            slicer = Slicer(edited_module(ordered, asks=False), self._inputs)

            def attempt(module: fx.GraphModule) -> Tried | None:
                return self._tried(module, without(wanted, "slice"), plain)

            trials = SliceTrials(slicer, plain.found, wanted, attempt)
            best = trials.best()
        if best is None:
            return dataclasses.replace(plain, found=trials.told_of_none())
        edited: _Edited = best.program
        return dataclasses.replace(edited, found=best.found, reasons=())

    def _tried(self, module: fx.GraphModule, wanted: Planning, plain: _Edited) -> Tried | None:
        with torch.random.fork_rng(devices=[]):
            probe = run_probe(module, self._inputs())
        sliced = self.edited(module, probe, wanted)
        peak_bytes = sliced.verified.peak_bytes
        _, refuted = held_to(sliced.found.plan, (peak_bytes,))
        is_lower = sliced.found.plan.peak_bytes < plain.found.plan.peak_bytes
        if sliced.verified.refusal or refuted or not is_lower:
            return None
        if peak_bytes > plain.verified.peak_bytes:
            return None
        seconds = self._seconds_in_turns(plain.captured.run, sliced.captured.run)
        return Tried(sliced, sliced.found, peak_bytes, seconds)

    def _with(self, module: fx.GraphModule) -> Captured:
        captured = dataclasses.replace(self.captured, module=module, run=module)
        return as_torchscript(captured) if self.runtime == "torchscript" else captured

    def _inputs(self) -> list[Any]:
        scratch = self.world.copy()
        return scratch.bind(self.captured, scratch.look(copied(self.now.batch)))

    def _seconds_in_turns(self, a: nn.Module, b: nn.Module) -> tuple[float, float]:
        with torch.random.fork_rng(devices=[]), of_a_graph():
            inputs = self._inputs()  # which steps change as they do in training
            return seconds_in_turns((a, b), lambda: inputs)


# Of the time of a call: repeats that cost less are taken without a look at slices.
_CHEAP = 0.02


def _is_cheap(edited: _Edited) -> bool:
    times = edited.found.times
    is_met = bool(edited.found.plan.budget_met)
    return is_met and (times is None or times.extra_seconds <= _CHEAP * times.call_seconds)


def _cost(edited: _Edited) -> tuple[float, ...]:
    """What is lower is better: seconds where the budget is met, and bytes where it is not."""
    found = edited.found
    if found.plan.budget_met is False:
        return 1, found.plan.peak_bytes
    return 0, sum(use.extra_seconds for use in found.levers)


def _with_levers_of(best: _Edited, tried: Sequence[_Edited]) -> _Edited:
    """Say of the levers that were tried, and are not in the best graph, why they are not."""
    levers = {use.name: use for use in best.found.levers}
    for other in tried:
        for use in other.found.levers:
            if use.name not in levers:
                why = use.reason or "another lever does better"
                levers[use.name] = LeverUse.left_out(use.name, best.found.plan.peak_bytes, why)
    times = best.found.times
    for other in tried:
        if times is None and other.found.times is not None:
            times = dataclasses.replace(other.found.times, extra_seconds=0.0)
    found = dataclasses.replace(best.found, levers=tuple(levers.values()), times=times)
    return dataclasses.replace(best, found=found)


def _without_slices(plain: _Edited, why: str) -> _Edited:
    use = LeverUse.left_out("slice", plain.found.plan.peak_bytes, why)
    levers = (*plain.found.levers, use)
    return dataclasses.replace(plain, found=dataclasses.replace(plain.found, levers=levers))


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


def _verify(world: World, captured: Captured, now: Now, updates: bool) -> _Verified:
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
        state_bytes = sum(
            value.nbytes
            for state in loop.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        )
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
    return _Verified(refusal, last.eager_peak_bytes, last.peak_bytes, state_bytes)


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
    """The peak of the loop whose optimizer runs in backward hooks, in a settled step.

    None where that loop does something else: clipping by norm needs all gradients, and other
    processes need the gradient before the update.
    """
    if world.clipping.norm is not None or world.replicas is not None:
        return None
    with torch.random.fork_rng(devices=[]):
        scratch = world.copy()
        optimizers: dict[torch.Tensor, torch.optim.Optimizer] = {}
        looked = scratch.look(copied(now.batch))
        for name, index in looked.group_of.items():
            parameter, group = looked.trained[name], scratch.optimizer.param_groups[index]
            options = {key: value for key, value in group.items() if key != "params"}
            make: Callable[..., torch.optim.Optimizer] = type(scratch.optimizer)
            optimizer = make([{"params": [parameter], **options}])
            if parameter in scratch.optimizer.state:
                optimizer.state[parameter] = scratch.optimizer.state[parameter]
            optimizers[parameter] = optimizer

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
            with apart():
                with looked.modes.of_the_forward_pass():
                    loss = loss_of(scratch.objective(looked.batch))
                loss.backward()

        def state_count() -> int:
            return sum(len(state) for one in optimizers.values() for state in one.state.values())

        settled = False
        while not settled:
            before = state_count()
            with measure_peak() as memory:
                run()
            settled = state_count() == before
        for hook in hooks:
            hook.remove()  # else parameters and hooks hold each other, unseen by the collector
    return memory.peak_bytes
