"""The step that replaces forward, backward, optimizer.step() and zero_grad()."""

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch_ext.fx.ordering import reorder, to_graph
from torch_ext.fx.probing import run_probe
from torch_ext.measuring import measure_peak
from torch_ext.planning import Plan, plan
from torch_ext.training.capturing import (
    Captured,
    Clipping,
    LossFunction,
    Objective,
    Trained,
    capture,
)
from torch_ext.training.updates import UnsupportedError, Update, update_of


@dataclasses.dataclass(frozen=True)
class TrainingReport(Plan):
    """What was found out about a step. Peaks are bytes above the start of the step, gradients in.

    `original_peak_bytes` is that of the captured graph in its own order; `measured_*` are the
    allocator's, of the eager loop, of the same loop with the optimizer in backward hooks (None
    where hooks cannot do it), and of this step.
    """

    measured_original_peak_bytes: int | None
    measured_hooks_peak_bytes: int | None
    measured_peak_bytes: int | None
    identical: bool | None
    threads: int
    parameter_bytes: int
    input_bytes: int
    state_bytes: int
    capture_seconds: float
    reason: str

    def __str__(self) -> str:
        def mib(size_bytes: int | None) -> str:
            return "-" if size_bytes is None else f"{size_bytes / 2**20:.2f}"

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
class _Graph:
    """A captured graph in its new order."""

    captured: Captured
    report: TrainingReport


Key = tuple[Any, ...]


class TrainingStep:
    """See training_step."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        optimizer: torch.optim.Optimizer,
        example_batch: Sequence[Any],
        *,
        clip_grad_norm: float | None,
        clip_grad_value: float | None,
        accumulate: int,
        on_new_shape: Literal["capture", "eager"],
        max_graphs: int,
        time_budget: float,
    ) -> None:
        self._world = _World(
            Objective(model, loss_fn), optimizer, Clipping(clip_grad_norm, clip_grad_value)
        )
        self._accumulate = accumulate
        self._on_new_shape = on_new_shape
        self._max_graphs = max_graphs
        self._time_budget = time_budget
        self._graphs: dict[Key, _Graph] = {}
        self._batches = 0  # since the last update
        now = self._world.look(example_batch)
        self._last = self._add_graph((self._updates(), *now.key), now)
        self._add_second_graph(now)

    @property
    def report(self) -> TrainingReport:
        """Of the graph that ran last, or was captured for the example."""
        return self._last.report

    def __call__(self, *batch: Any) -> Any:
        """Train on a batch `(*inputs, target)`; return what loss_fn returns, detached.

        An exception in the middle leaves some parameters updated and some not; a note says so.
        """
        now = self._world.look(batch)
        key = (self._updates(), *now.key)
        graph = self._graphs.get(key)
        if graph is None and self._may_capture(key):
            graph = self._add_graph(key, now)
        if graph is None:
            result = self._world.run_eagerly(batch, self._updates())
        else:
            self._last = graph
            result = self._world.run(graph.captured, now)
        self._batches = (self._batches + 1) % self._accumulate
        return result

    def _add_second_graph(self, first: "_Now") -> None:
        """Where the first update makes state, all later steps run another graph: make it now."""
        if not self._updates():
            return
        with torch.random.fork_rng(devices=[]):
            later = self._world.copy()
            later.run_eagerly(_copied(first.batch), updates=True)
        now = later.look(first.batch)
        key = (True, *now.key)
        if key not in self._graphs:
            self._last = self._graphs[key] = _make_graph(later, now, True, self._time_budget)

    def _updates(self) -> bool:
        """Does the coming batch end with an update?"""
        return self._batches + 1 == self._accumulate

    def _may_capture(self, key: Key) -> bool:
        """Is it the same batch in another role, or a new one that may have a graph?"""
        is_new = all(known[1] != key[1] for known in self._graphs)
        return len(self._graphs) < self._max_graphs and not (
            is_new and self._on_new_shape == "eager"
        )

    def _add_graph(self, key: Key, now: "_Now") -> _Graph:
        graph = self._graphs[key] = _make_graph(
            self._world, now, self._updates(), self._time_budget
        )
        return graph


@dataclasses.dataclass(frozen=True)
class _Now:
    """The state of things before a step, looked at once."""

    batch: tuple[Any, ...]
    leaves: list[Any]  # of the batch
    parameters: dict[str, nn.Parameter]
    trained: dict[str, Trained]
    accumulated: list[str]  # trained parameters that have a gradient already
    states: dict[str, tuple[str, ...]]  # of each trained parameter: tensors the update reads
    number_keys: dict[str, str]  # of each trained parameter: whose numbers its update shares
    key: Key  # equal keys: the same ops on the same shapes


class _World:
    """Model, loss, optimizer: everything a step reads and writes, the user's or a copy."""

    def __init__(
        self, objective: Objective, optimizer: torch.optim.Optimizer, clipping: Clipping
    ) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.clipping = clipping
        self.update: Update = update_of(optimizer)
        _require_no_hooks(objective, optimizer)
        self.modules = list(objective.modules())
        # Where parameters and buffers are found again, whatever is assigned there.
        self.parameter_homes = _homes(objective, "_parameters", objective.named_parameters())
        self.buffer_homes = _homes(objective, "_buffers", objective.named_buffers())
        if not self.parameter_homes:
            raise UnsupportedError("the model has no parameters, so there is nothing to train")

    def copy(self) -> "_World":
        """A world of its own, from the same state."""
        objective, optimizer = copy.deepcopy((self.objective, self.optimizer))
        # Schedulers wrap `step` of the original, which the copy must not call.
        vars(optimizer).pop("step", None)
        pairs = zip(self.objective.parameters(), objective.parameters(), strict=True)
        for original, parameter in pairs:
            parameter.grad = copy.deepcopy(original.grad)
        return _World(objective, optimizer, self.clipping)

    def look(self, batch: Sequence[Any]) -> _Now:
        """What decides which graph runs. Done at every step: it has to be quick."""
        batch = tuple(batch)
        leaves, spec = pytree.tree_flatten(batch)
        parameters = {name: home[key] for name, (home, key) in self.parameter_homes.items()}
        names = {id(parameter): name for name, parameter in parameters.items()}
        trained, states, number_keys = {}, {}, {}
        accumulated = []
        classes: dict[tuple[int, float], str] = {}
        for index, group in enumerate(self.optimizer.param_groups):
            for parameter in group["params"]:
                name = names.get(id(parameter))
                if name is None or not parameter.requires_grad:
                    continue
                state = self.optimizer.state.get(parameter, {})
                trained[name] = Trained(name, parameter, index)
                if parameter.grad is not None:
                    accumulated.append(name)
                states[name] = self.update.state_names(group, state)
                pace = (index, self.update.updates_done(state))
                number_keys[name] = classes.setdefault(pace, f"{index}_{len(classes)}")
        key = (
            (spec, *map(_description, leaves)),
            tuple(module.training for module in self.modules),
            tuple((p.dtype, p.requires_grad, p.shape, p.is_cpu) for p in parameters.values()),
            tuple(self.update.structure(group) for group in self.optimizer.param_groups),
            tuple(states.items()),
            tuple(number_keys.values()),
            tuple(accumulated),
        )
        return _Now(batch, leaves, parameters, trained, accumulated, states, number_keys, key)

    # --- capturing and running --------------------------------------------------------------------

    def capture(self, now: _Now, updates: bool) -> Captured:
        """The step as a graph. Changes buffers and the random state: call it on a copy."""
        return capture(
            self.objective,
            now.batch,
            list(now.trained.values()),
            update=self.update,
            groups=self.optimizer.param_groups,
            states=now.states,
            number_keys=now.number_keys,
            accumulated=now.accumulated,
            updates=updates,
            clipping=self.clipping,
        )

    def bind(self, captured: Captured, now: _Now) -> list[Any]:
        """What the graph's placeholders stand for now; makes empty optimizer states."""
        of_state = self.optimizer.state
        groups = self.optimizer.param_groups
        numbers = {}
        for name, key in now.number_keys.items():
            if key not in numbers:
                one = now.trained[name]
                state = of_state.get(one.parameter, {})
                numbers[key] = self.update.numbers(groups[one.group], state)
        for name in captured.updated:
            one = now.trained[name]
            state = of_state[one.parameter]
            if not state:
                state.update(self.update.new_state(groups[one.group], one.parameter))
        values: list[Any] = []
        for role in captured.inputs:
            if role.kind == "parameter":
                values.append(now.parameters[role.name])
            elif role.kind == "buffer":
                home, name = self.buffer_homes[role.name]
                values.append(home[name])
            elif role.kind == "input":
                values.append(now.leaves[int(role.name)])
            elif role.kind == "gradient":
                values.append(now.parameters[role.name].grad)
            elif role.kind == "state":
                values.append(of_state[now.parameters[role.name]][role.item])
            else:
                values.append(numbers[role.name][role.item])
        return values

    def run(self, captured: Captured, now: _Now) -> Any:
        """One step through the graph."""
        inputs = self.bind(captured, now)
        try:
            with torch.no_grad():
                outputs = captured.module(*inputs)
        except BaseException as error:
            error.add_note(
                "torch_ext: the step ended in the middle, some parameters may be updated and some "
                "not; load a checkpoint"
            )
            raise
        results = []
        for role, value in zip(captured.outputs, outputs, strict=True):
            if role.kind == "result":
                results.append(value)
            elif role.kind == "state":
                self.optimizer.state[now.parameters[role.name]][role.item] = value
            else:
                now.parameters[role.name].grad = value
        for name in captured.updated:
            self.update.finish(self.optimizer.state[now.parameters[name]])
            now.parameters[name].grad = None
        if captured.updated:
            self.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers ask
        return pytree.tree_unflatten(results, captured.result_spec)

    def run_eagerly(self, batch: Sequence[Any], updates: bool) -> Any:
        """The loop that the graph replaces."""
        result = self.objective(*batch)
        loss = result[0] if isinstance(result, tuple) else result
        loss.backward()
        result = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, result)
        if updates:
            parameters = [one.parameter for one in self.look(batch).trained.values()]
            if self.clipping.norm is not None:
                nn.utils.clip_grad_norm_(parameters, self.clipping.norm)
            if self.clipping.value is not None:
                nn.utils.clip_grad_value_(parameters, self.clipping.value)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return result

    def contents(self) -> dict[str, Any]:
        """Everything that a step may change."""
        parameters = {name: home[key] for name, (home, key) in self.parameter_homes.items()}
        buffers = {name: home[key] for name, (home, key) in self.buffer_homes.items()}
        found: dict[str, Any] = {**parameters, **buffers}
        for name, parameter in parameters.items():
            found[f"{name}.grad"] = parameter.grad
            for item, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{name} {item}"] = value
        return found


def _require_no_hooks(objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise UnsupportedError("the optimizer has step hooks, which a captured step cannot call")
    for name, parameter in objective.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise UnsupportedError(
                f"parameter {name} has gradient hooks, which a captured step cannot call"
            )
        if parameter.is_complex():
            raise UnsupportedError(f"parameter {name} is complex; only real ones are supported")
        if not parameter.is_cpu:
            raise UnsupportedError(f"parameter {name} is on {parameter.device}; only CPU works")


def _homes(
    root: nn.Module, table: str, named: Iterator[tuple[str, Any]]
) -> dict[str, tuple[dict[str, Any], str]]:
    homes = {}
    for name, _ in named:
        path, _, key = name.rpartition(".")
        homes[name] = (getattr(root.get_submodule(path), table), key)
    return homes


def _description(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.is_cpu, leaf.requires_grad
    return type(leaf), leaf


# --- making a graph -------------------------------------------------------------------------------


def _make_graph(world: _World, now: _Now, updates: bool, time_budget: float) -> _Graph:
    """Capture, probe, plan, reorder, verify: all on copies."""
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        scratch = world.copy()
        looked = scratch.look(_copied(now.batch))
        captured = scratch.capture(looked, updates)
        probe = run_probe(captured.module, scratch.bind(captured, looked))
        del scratch, looked
    found = plan(to_graph(probe), time_budget=time_budget)
    reorder(captured.module, probe, found.order)
    eager_peak_bytes, difference, peak_bytes = _verify(world, captured, now.batch, updates)
    if difference:
        raise UnsupportedError(
            f"the captured step does not do what the loop does: {difference} differs"
        )
    one_batch = updates and not now.accumulated
    report = TrainingReport(
        **{field.name: getattr(found, field.name) for field in dataclasses.fields(Plan)},
        measured_original_peak_bytes=eager_peak_bytes,
        measured_hooks_peak_bytes=_hooks_peak(world, now.batch) if one_batch else None,
        measured_peak_bytes=peak_bytes,
        identical=True,
        threads=torch.get_num_threads(),
        parameter_bytes=sum(p.nbytes for p in world.objective.parameters()),
        input_bytes=sum(leaf.nbytes for leaf in now.leaves if isinstance(leaf, torch.Tensor)),
        state_bytes=sum(
            value.nbytes
            for state in world.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ),
        capture_seconds=time.perf_counter() - start,
        reason="",
    )
    return _Graph(captured, report)


def _copied(batch: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(pytree.tree_map_only(torch.Tensor, torch.clone, tuple(batch)))


def _verify(
    world: _World, captured: Captured, batch: Sequence[Any], updates: bool
) -> tuple[int, str, int]:
    """Eager peak, first difference after a step from the same state (or empty), our peak."""
    with torch.random.fork_rng(devices=[]):
        expected_world = world.copy()
        expected = expected_world.run_eagerly(_copied(batch), updates)
        expected_random = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        actual_world = world.copy()
        actual = actual_world.run(captured, actual_world.look(_copied(batch)))
        actual_random = torch.get_rng_state()
    difference = _first_difference(
        {"the result": expected, "the random state": expected_random, **expected_world.contents()},
        {"the result": actual, "the random state": actual_random, **actual_world.contents()},
    )
    del actual_world, expected, actual
    with torch.random.fork_rng(devices=[]):
        batch = _copied(batch)
        with measure_peak() as eager:
            expected_world.run_eagerly(batch, updates)
        del expected_world
        scratch = world.copy()
        inputs = scratch.bind(captured, scratch.look(batch))
        with torch.no_grad(), measure_peak() as ours:
            captured.module(*inputs)
    return eager.peak_bytes, difference, ours.peak_bytes


def _first_difference(expected: dict[str, Any], actual: dict[str, Any]) -> str:
    if expected.keys() != actual.keys():
        return f"{sorted(expected.keys() ^ actual.keys())[0]} (only one has it)"
    for name, value in expected.items():
        leaves, other = pytree.tree_leaves(value), pytree.tree_leaves(actual[name])
        if len(leaves) != len(other) or not all(map(_same_bits, leaves, other)):
            return name
    return ""


def _same_bits(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    if not isinstance(b, torch.Tensor) or (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    a, b = a.detach().contiguous(), b.detach().contiguous()
    return torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))


def _hooks_peak(world: _World, batch: Sequence[Any]) -> int | None:
    """The peak of the loop whose optimizer runs in backward hooks, in a settled step.

    None where that loop does something else: clipping by norm needs all gradients.
    """
    if world.clipping.norm is not None:
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

        for parameter in optimizers:
            parameter.register_post_accumulate_grad_hook(update)  # type: ignore[no-untyped-call]

        def run() -> None:
            result = scratch.objective(*copied)
            (result[0] if isinstance(result, tuple) else result).backward()

        copied = _copied(batch)
        run()
        with measure_peak() as memory:
            run()
    return memory.peak_bytes
