"""The step that replaces forward, backward, optimizer.step() and zero_grad()."""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Iterator, Sequence
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
        self._last = self._graph(tuple(example_batch))

    @property
    def report(self) -> TrainingReport:
        """Of the graph that ran last, or was captured for the example."""
        return self._last.report

    def __call__(self, *batch: Any) -> Any:
        """Train on a batch `(*inputs, target)`; return what loss_fn returns, detached.

        An exception in the middle leaves some parameters updated and some not; a note says so.
        """
        key = self._key(batch)
        if key not in self._graphs:
            full = len(self._graphs) >= self._max_graphs
            if full or (self._on_new_shape == "eager" and self._graphs):
                result = self._world.run_eagerly(batch, *self._turn())
                self._advance()
                return result
        self._last = self._graph(batch, key)
        result = self._world.run(self._last.captured, batch)
        self._advance()
        return result

    def _turn(self) -> tuple[bool, bool]:
        """Are there gradients of earlier batches? Is it time for the update?"""
        return self._batches > 0, self._batches + 1 == self._accumulate

    def _advance(self) -> None:
        self._batches = (self._batches + 1) % self._accumulate

    def _key(self, batch: Sequence[Any]) -> Key:
        return (*self._turn(), *self._world.key(batch))

    def _graph(self, batch: Sequence[Any], key: Key | None = None) -> _Graph:
        key = key or self._key(batch)
        if key not in self._graphs:
            self._graphs[key] = _make_graph(self._world, batch, *self._turn(), self._time_budget)
        return self._graphs[key]


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
        return _World(objective, optimizer, self.clipping)

    # --- what decides which graph runs ------------------------------------------------------------

    def key(self, batch: Sequence[Any]) -> Key:
        """Equal keys: the same ops on the same shapes."""
        leaves, spec = pytree.tree_flatten(tuple(batch))
        parameters = [home[name] for home, name in self.parameter_homes.values()]
        return (
            spec,
            tuple(_description(leaf) for leaf in leaves),
            tuple(module.training for module in self.modules),
            tuple((p.dtype, p.requires_grad, p.shape, p.is_cpu) for p in parameters),
            tuple(self.update.structure(group) for group in self.optimizer.param_groups),
            tuple(
                (one.name, one.group, self._state_names(one)) for one in self.trained(parameters)
            ),
            tuple(self._number_keys(self.trained(parameters)).values()),
        )

    def trained(self, parameters: Sequence[nn.Parameter]) -> list[Trained]:
        """Parameters that an update may change."""
        names = {id(p): name for p, name in zip(parameters, self.parameter_homes, strict=True)}
        return [
            Trained(names[id(p)], p, index)
            for index, group in enumerate(self.optimizer.param_groups)
            for p in group["params"]
            if p.requires_grad and id(p) in names
        ]

    def parameters(self) -> list[nn.Parameter]:
        """In the order of their names."""
        return [home[name] for home, name in self.parameter_homes.values()]

    def _group(self, one: Trained) -> dict[str, Any]:
        group: dict[str, Any] = self.optimizer.param_groups[one.group]
        return group

    def _state_names(self, one: Trained) -> tuple[str, ...]:
        state = self.optimizer.state.get(one.parameter, {})
        return self.update.state_names(self._group(one), state)

    def _number_keys(self, trained: Sequence[Trained]) -> dict[str, str]:
        classes: dict[tuple[int, float], str] = {}
        return {
            one.name: classes.setdefault(
                (one.group, self.update.updates_done(self.optimizer.state.get(one.parameter, {}))),
                f"{one.group}_{len(classes)}",
            )
            for one in trained
        }

    # --- capturing and running --------------------------------------------------------------------

    def capture(self, batch: Sequence[Any], accumulated: bool, updates: bool) -> Captured:
        """The step as a graph. Changes buffers and the random state: call it on a copy."""
        trained = self.trained(self.parameters())
        return capture(
            self.objective,
            batch,
            trained,
            update=self.update,
            groups=self.optimizer.param_groups,
            states={one.name: self._state_names(one) for one in trained},
            number_keys=self._number_keys(trained),
            accumulated=accumulated,
            updates=updates,
            clipping=self.clipping,
        )

    def bind(self, captured: Captured, batch: Sequence[Any]) -> list[Any]:
        """What the graph's placeholders stand for now; makes empty optimizer states."""
        leaves = pytree.tree_leaves(tuple(batch))
        trained = {one.name: one for one in self.trained(self.parameters())}
        first_of = {}
        for name, number_key in self._number_keys(list(trained.values())).items():
            first_of.setdefault(number_key, trained[name])
        numbers = {
            number_key: self.update.numbers(
                self._group(one), self.optimizer.state.get(one.parameter, {})
            )
            for number_key, one in first_of.items()
        }
        for name in captured.updated:
            one = trained[name]
            state = self.optimizer.state[one.parameter]
            if not state:
                state.update(self.update.new_state(self._group(one), one.parameter))
        values: list[Any] = []
        for role in captured.inputs:
            if role.kind == "parameter":
                home, name = self.parameter_homes[role.name]
                values.append(home[name])
            elif role.kind == "buffer":
                home, name = self.buffer_homes[role.name]
                values.append(home[name])
            elif role.kind == "input":
                values.append(leaves[int(role.name)])
            elif role.kind == "gradient":
                values.append(trained[role.name].parameter.grad)
            elif role.kind == "state":
                values.append(self.optimizer.state[trained[role.name].parameter][role.item])
            else:
                values.append(numbers[role.name][role.item])
        return values

    def run(self, captured: Captured, batch: Sequence[Any]) -> Any:
        """One step through the graph."""
        inputs = self.bind(captured, batch)
        parameters = {name: home[key] for name, (home, key) in self.parameter_homes.items()}
        try:
            with torch.no_grad():
                outputs = captured.module(*inputs)
        except BaseException as error:
            error.add_note(
                "torch_ext: the step ended in the middle, some parameters are updated and some are "
                "not; load a checkpoint"
            )
            raise
        results = []
        for role, value in zip(captured.outputs, outputs, strict=True):
            if role.kind == "result":
                results.append(value)
            elif role.kind == "state":
                self.optimizer.state[parameters[role.name]][role.item] = value
            else:
                parameters[role.name].grad = value
        for name in captured.updated:
            self.update.finish(self.optimizer.state[parameters[name]])
            parameters[name].grad = None
        if captured.updated:
            self.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers ask
        return pytree.tree_unflatten(results, captured.result_spec)

    def run_eagerly(self, batch: Sequence[Any], accumulated: bool, updates: bool) -> Any:
        """The loop that the graph replaces."""
        result = self.objective(*batch)
        loss = result[0] if isinstance(result, tuple) else result
        loss.backward()
        result = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, result)
        if updates:
            parameters = [one.parameter for one in self.trained(self.parameters())]
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


def _make_graph(
    world: _World, batch: Sequence[Any], accumulated: bool, updates: bool, time_budget: float
) -> _Graph:
    """Capture, probe, plan, reorder, verify: all on copies."""
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        scratch = world.copy()
        captured = scratch.capture(_copied(batch), accumulated, updates)
        probe = run_probe(captured.module, scratch.bind(captured, _copied(batch)))
        del scratch
    found = plan(to_graph(probe), time_budget=time_budget)
    reorder(captured.module, probe, found.order)
    eager, difference, peak_bytes = _verify(world, captured, batch, accumulated, updates)
    if difference:
        raise UnsupportedError(
            f"the captured step does not do what the loop does: {difference} differs"
        )
    report = TrainingReport(
        **{field.name: getattr(found, field.name) for field in dataclasses.fields(Plan)},
        measured_original_peak_bytes=eager,
        measured_hooks_peak_bytes=_hooks_peak(world, batch) if updates and not accumulated else None,
        measured_peak_bytes=peak_bytes,
        identical=True,
        threads=torch.get_num_threads(),
        parameter_bytes=sum(p.nbytes for p in world.parameters()),
        input_bytes=sum(
            leaf.nbytes for leaf in pytree.tree_leaves(batch) if isinstance(leaf, torch.Tensor)
        ),
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


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def _verify(
    world: _World, captured: Captured, batch: Sequence[Any], accumulated: bool, updates: bool
) -> tuple[int, str, int]:
    """Eager peak, first difference after a step from the same state (or empty), our peak."""
    with _same_random_numbers():
        expected_world = world.copy()
        expected = expected_world.run_eagerly(_copied(batch), accumulated, updates)
        expected_random = torch.get_rng_state()
    with _same_random_numbers():
        actual_world = world.copy()
        actual = actual_world.run(captured, _copied(batch))
        actual_random = torch.get_rng_state()
    difference = _first_difference(
        {"the result": expected, "the random state": expected_random, **expected_world.contents()},
        {"the result": actual, "the random state": actual_random, **actual_world.contents()},
    )
    del actual_world, expected, actual
    with _same_random_numbers():
        batch = _copied(batch)
        with measure_peak() as memory:
            expected_world.run_eagerly(batch, accumulated, updates)
        del expected_world
        scratch = world.copy()
        inputs = scratch.bind(captured, batch)
        with torch.no_grad(), measure_peak() as ours:
            captured.module(*inputs)
    return memory.peak_bytes, difference, ours.peak_bytes


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
    with _same_random_numbers():
        scratch = world.copy()
        optimizers = {}
        for one in scratch.trained(scratch.parameters()):
            group = scratch.optimizer.param_groups[one.group]
            options = {key: value for key, value in group.items() if key != "params"}
            optimizer = type(scratch.optimizer)([{"params": [one.parameter], **options}])
            if one.parameter in scratch.optimizer.state:
                optimizer.state[one.parameter] = scratch.optimizer.state[one.parameter]
            optimizers[one.parameter] = optimizer

        def update(parameter: torch.Tensor) -> None:
            if world.clipping.value is not None:
                nn.utils.clip_grad_value_([parameter], world.clipping.value)
            optimizers[parameter].step()
            parameter.grad = None

        for parameter in optimizers:
            parameter.register_post_accumulate_grad_hook(update)

        def run() -> None:
            result = scratch.objective(*copied)
            (result[0] if isinstance(result, tuple) else result).backward()

        copied = _copied(batch)
        run()
        with measure_peak() as memory:
            run()
    return memory.peak_bytes
