"""Model, loss and optimizer as a graph sees them."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch_ext.training.capturing import (
    Captured,
    Clipping,
    Ending,
    Objective,
    Trained,
    capture,
    loss_of,
)
from torch_ext.training.replicas import Replicas
from torch_ext.training.updates import UnsupportedError, Update, update_of

Key = tuple[Any, ...]
Homes = dict[str, tuple[dict[str, Any], str]]  # name -> a module's own table, and the key there


@dataclasses.dataclass(frozen=True)
class Now:
    """The state of things before a step, looked at once."""

    batch: tuple[Any, ...]
    leaves: list[Any]  # of the batch
    parameters: dict[str, nn.Parameter]
    trained: dict[str, Trained]
    accumulated: list[str]  # trained parameters that have a gradient already
    states: dict[str, tuple[str, ...]]  # of each trained parameter: tensors the update reads
    number_keys: dict[str, str]  # of each trained parameter: whose numbers its update shares
    key: Key  # equal keys: the same ops on the same shapes


class World:
    """Model, loss, optimizer: everything a step reads and writes, the user's or a copy."""

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        clipping: Clipping,
        replicas: Replicas | None = None,
    ) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.clipping = clipping
        self.replicas = replicas
        self.update: Update = update_of(optimizer)
        _require_no_hooks(objective, optimizer)
        self.modules = list(objective.modules())
        # Where parameters and buffers are found again, whatever is assigned there.
        self.parameter_homes = _homes(objective, "_parameters", objective.named_parameters())
        self.buffer_homes = _homes(objective, "_buffers", objective.named_buffers())
        if not self.parameter_homes:
            raise UnsupportedError("the model has no parameters, so there is nothing to train")

    def copy(self) -> Self:
        """A world of its own, from the same state."""
        objective, optimizer = copy.deepcopy((self.objective, self.optimizer))
        # Schedulers wrap `step` of the original, which the copy must not call.
        vars(optimizer).pop("step", None)
        pairs = zip(self.objective.parameters(), objective.parameters(), strict=True)
        for original, parameter in pairs:
            parameter.grad = copy.deepcopy(original.grad)
        return type(self)(objective, optimizer, self.clipping, self.replicas)

    def look(self, batch: Sequence[Any]) -> Now:
        """What decides which graph runs. Done at every step: it has to be quick."""
        batch = tuple(batch)
        leaves, spec = pytree.tree_flatten(batch)
        parameters = _found(self.parameter_homes)
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
        return Now(batch, leaves, parameters, trained, accumulated, states, number_keys, key)

    # --- capturing and running --------------------------------------------------------------------

    def capture(self, now: Now, updates: bool) -> Captured:
        """The step as a graph. Changes buffers and the random state: call it on a copy."""
        ending = Ending(
            list(now.trained.values()),
            now.accumulated,
            updates,
            self.clipping,
            self.replicas,
            self.update,
            self.optimizer.param_groups,
            now.states,
            now.number_keys,
        )
        return capture(self.objective, now.batch, ending)

    def bind(self, captured: Captured, now: Now) -> list[Any]:
        """What the graph's placeholders stand for now; makes empty optimizer states."""
        of_state = self.optimizer.state
        groups = self.optimizer.param_groups
        numbers = {}
        for name, key in now.number_keys.items():
            if key not in numbers:
                one = now.trained[name]
                state = of_state.get(one.parameter, {})
                options = self.update.options(groups[one.group])
                numbers[key] = self.update.numbers(options, self.update.updates_done(state))
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

    def run(self, captured: Captured, now: Now) -> Any:
        """One step through the graph."""
        self._sync_buffers()
        inputs = self.bind(captured, now)
        try:
            with torch.no_grad():
                outputs = captured.run(*inputs)
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

    def run_eagerly(self, now: Now, updates: bool) -> Any:
        """The loop that the graph replaces."""
        self._sync_buffers()
        result = self.objective(*now.batch)
        loss_of(result).backward()
        result = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, result)
        if updates:
            if self.replicas is not None:
                self.replicas.average(now.parameters)
            parameters = [one.parameter for one in now.trained.values()]
            if self.clipping.norm is not None:
                nn.utils.clip_grad_norm_(parameters, self.clipping.norm)
            if self.clipping.value is not None:
                nn.utils.clip_grad_value_(parameters, self.clipping.value)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return result

    def _sync_buffers(self) -> None:
        if self.replicas is not None:
            self.replicas.sync_buffers(self.objective.model)

    def contents(self) -> dict[str, Any]:
        """Everything that a step may change."""
        parameters = _found(self.parameter_homes)
        found = {**parameters, **_found(self.buffer_homes)}
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


def _homes(root: nn.Module, table: str, named: Iterator[tuple[str, Any]]) -> Homes:
    homes = {}
    for name, _ in named:
        path, _, key = name.rpartition(".")
        homes[name] = (getattr(root.get_submodule(path), table), key)
    return homes


def _found(homes: Homes) -> dict[str, Any]:
    return {name: home[key] for name, (home, key) in homes.items()}


def _description(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.is_cpu, leaf.requires_grad
    return type(leaf), leaf
