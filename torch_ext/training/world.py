"""Model, loss and optimizer as a graph sees them."""

import copy
import dataclasses
import enum
import itertools
from collections.abc import Collection, Iterator
from typing import Any, Self

import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils import _pytree as pytree

from torch_ext.attributes import Watch, may_return, plain_values, tensors_in_a_graph
from torch_ext.training.alone import OwnStep, StepAlone, attributes_of, options_of, update_of
from torch_ext.training.capture import (
    Batch,
    Captured,
    Clipping,
    Ending,
    Objective,
    capture,
    loss_of,
)
from torch_ext.training.modes import Modes, apart, of_a_graph
from torch_ext.training.replicas import Replicas
from torch_ext.training.updates import UnsupportedError, Update

Homes = dict[str, tuple[dict[str, Any], str]]  # name -> a module's own table, and the key there
# What a batch may hold besides tensors: it is part of a graph's key.
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, enum.Enum)


@dataclasses.dataclass(frozen=True)
class Key:
    """Equal keys: the same ops on the same shapes, but for answers about the batch's values."""

    era: int  # of modules and their attributes
    modes: Modes
    batch: tuple[Any, ...]
    training: tuple[bool, ...]
    parameters: tuple[Any, ...]
    buffers: tuple[Any, ...]
    groups: tuple[Any, ...]
    states: tuple[Any, ...]
    paces: tuple[str, ...]
    accumulated: tuple[str, ...]

    def why_not(self, other: "Key") -> str:
        """What is different, for people; empty if nothing is."""
        told = {
            "era": "modules, tied parameters or attributes of the model have changed",
            "modes": "it is called under another autocast or thread count, or other such modes",
            "batch": "the batch has another shape or dtype, or holds other numbers "
            "(drop_last=True of a DataLoader or on_new_shape='eager' avoids it)",
            "training": "train() or eval() was called",
            "parameters": "parameters have another dtype or layout, or were frozen or unfrozen",
            "buffers": "buffers have another shape, dtype or layout",
            "groups": "the optimizer's groups have changed",
            "states": "the optimizer's state or groups have changed",
            "paces": "the optimizer's state or groups have changed",
            "accumulated": "other parameters have a gradient already",
        }
        if len(self.batch) == len(other.batch):
            pairs = zip(self.batch, other.batch, strict=True)
            if all(a == b or _are_numbers(a, b) for a, b in pairs):
                told["batch"] = "a number or text of the batch is another; give it as a tensor"
        fields = (name for name in told if getattr(self, name) != getattr(other, name))
        return "; ".join(dict.fromkeys(told[name] for name in fields))


def _are_numbers(*entries: Any) -> bool:
    """Entries of a batch in keys: of one kind, and not of tensors or of its structure?"""
    kinds = {entry[:1] if isinstance(entry, tuple) else () for entry in entries}
    return len(kinds) == 1 and kinds.isdisjoint({(), (torch.Tensor,)})


@dataclasses.dataclass(frozen=True)
class Now:
    """The state of things before a step, looked at once."""

    batch: Batch
    leaves: list[Any]  # of the batch
    modes: Modes
    parameters: dict[str, nn.Parameter]
    trained: dict[str, nn.Parameter]  # those that get a gradient
    # Of the optimizer's groups the one that updates a parameter, in the optimizer's order.
    group_of: dict[str, int]
    accumulated: list[str]  # trained parameters that have a gradient already
    states: dict[str, tuple[str, ...]]  # of each updated parameter: tensors the update reads
    number_keys: dict[str, str]  # of each updated parameter: whose numbers its update shares
    why_no_graph: str  # where only the loop itself does what the loop does; else empty
    key: Key

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Those of the batch."""
        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]


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
        self._eras: dict[tuple[Any, ...], int] = {}  # attributes that a graph was captured with
        self._watch: Watch | None = None  # a copy lives too short to be watched
        self._look_around()
        if not self.parameter_homes:
            raise UnsupportedError("the model has no parameters, so there is nothing to train")

    def copy(self) -> Self:
        """A world of its own, from the same state, in the same era. Raises UnsupportedError."""
        memo: dict[int, Any] = {}
        for tensor in tensors_in_a_graph(self.objective):
            memo[id(tensor)] = tensor.detach().clone()
        try:
            objective, optimizer = copy.deepcopy((self.objective, self.optimizer), memo)
            if isinstance(self.update, OwnStep):  # torch's own copying leaves attributes out
                own = attributes_of(self.optimizer)
                left = {name: value for name, value in own.items() if name not in vars(optimizer)}
                vars(optimizer).update(copy.deepcopy(left, memo))
        except Exception as error:
            raise UnsupportedError(
                "model, loss and optimizer cannot be copied, on which a step is captured and "
                f"verified: {type(error).__name__}: {error}"
            ) from error
        # Schedulers wrap `step` of the original, which the copy must not call.
        vars(optimizer).pop("step", None)
        pairs = zip(self.objective.parameters(), objective.parameters(), strict=True)
        for original, parameter in pairs:
            parameter.grad = copy.deepcopy(original.grad)
        world = type(self)(objective, optimizer, self.clipping, self.replicas)
        world._watch, world.era, world.update = None, self.era, self.update
        return world

    def _look_around(self) -> None:
        """Find modules, parameters, buffers and attributes; the same ones make the same era.

        Raises UnsupportedError for what a step cannot call.
        """
        for name, tensor in itertools.chain(
            self.objective.named_parameters(), self.objective.named_buffers()
        ):
            if nn.parameter.is_lazy(tensor):
                raise UnsupportedError(f"{name} has no shape yet; call the model once before")
        self._watch = Watch(self.objective)
        self.modules = list(self.objective.modules())
        for name, module in self.objective.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise UnsupportedError(
                    f"{name} is TorchScript, whose parameters cannot be followed; give the module "
                    "that it was made from"
                )
            if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
                raise UnsupportedError(
                    f"{name} is compiled by torch.compile; give the module that it wraps, for a "
                    "captured step has the bits of eager kernels"
                )
        # Where parameters and buffers are found again, whatever is assigned there.
        self.parameter_homes = _homes(
            self.objective, "_parameters", self.objective.named_parameters()
        )
        self.buffer_homes = _homes(self.objective, "_buffers", self.objective.named_buffers())
        self.era = self._eras.setdefault(self._watch.signature, len(self._eras))

    def past_eras(self) -> set[int]:
        """Eras that cannot come again, for something of them is gone."""
        return {era for signature, era in self._eras.items() if not may_return(signature)}

    def look(self, batch: Batch) -> Now:
        """What decides which graph runs. Done at every step: it has to be quick.

        Raises UnsupportedError for what no graph can hold.
        """
        if self._watch is not None and not self._watch.is_unchanged():
            self._look_around()
        leaves, spec = pytree.tree_flatten(batch)
        described = (spec, *map(_description, leaves))
        modes = Modes.now()
        parameters = _found(self.parameter_homes)
        _require_no_hooks(self.optimizer, parameters)
        index_of, why_no_graph = self._groups(parameters)
        if self._shares_memory(leaves):
            why_no_graph = "parameters, buffers or inputs share memory without being one tensor"
        if any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves):
            why_no_graph = "a tensor of the batch requires a gradient (detach it)"
        if torch.is_anomaly_enabled():
            why_no_graph = "autograd looks for anomalies"
        trained = {name: one for name, one in parameters.items() if one.requires_grad}
        accumulated = [name for name, one in trained.items() if one.grad is not None]
        group_of, states, number_keys = {}, {}, {}
        classes: dict[tuple[int, float], str] = {}
        names = {id(parameter): name for name, parameter in trained.items()}
        for identity, index in index_of.items():
            if identity in names:
                name = names[identity]
                group_of[name] = index
                state = self.optimizer.state.get(trained[name], {})
                group = self.optimizer.param_groups[index]
                states[name] = self.update.state_names(group, state)
                pace = (index, self.update.updates_done(state))
                number_keys[name] = classes.setdefault(pace, f"{index}_{len(classes)}")
        key = Key(
            era=self.era,
            modes=modes,
            batch=described,
            training=tuple(module.training for module in self.modules),
            parameters=tuple(map(_look_of, parameters.values())),
            buffers=tuple(map(_look_of, _found(self.buffer_homes).values())),
            groups=(
                *(self.update.structure(group) for group in self.optimizer.param_groups),
                self.update.settings(self.optimizer),
            ),
            states=tuple((name, group_of[name], items) for name, items in states.items()),
            paces=tuple(number_keys.values()),
            accumulated=tuple(accumulated),
        )
        return Now(
            *(batch, leaves, modes, parameters, trained, group_of, accumulated, states),
            *(number_keys, why_no_graph, key),
        )

    def _groups(self, parameters: dict[str, nn.Parameter]) -> tuple[dict[int, int], str]:
        """The group of each parameter by its id, and why only the loop can update them, if so."""
        index_of: dict[int, int] = {}
        why_no_graph = ""
        known = set(map(id, parameters.values()))
        for index, group in enumerate(self.optimizer.param_groups):
            for parameter in group["params"]:
                index_of[id(parameter)] = index
                is_ours = id(parameter) in known and parameter.requires_grad
                if not is_ours and parameter.grad is not None:
                    why_no_graph = "the optimizer uses a gradient that the step does not make"
        return index_of, why_no_graph

    def _shares_memory(self, leaves: list[Any]) -> bool:
        """Do parameters or buffers begin at one address, or inputs where one of these does?

        A copy does not share it, so what was captured on copies would not hold.
        """
        owned = itertools.chain(
            _found(self.parameter_homes).values(), _found(self.buffer_homes).values()
        )
        addresses = [address for one in owned if (address := one.data_ptr())]  # 0: it is empty
        known = set(addresses)
        given = (leaf.data_ptr() for leaf in leaves if isinstance(leaf, torch.Tensor))
        return len(known) < len(addresses) or not known.isdisjoint(given)

    # --- capturing and running --------------------------------------------------------------------

    def capture(self, now: Now, updates: bool) -> Captured:
        """The step as a graph. Changes buffers and the random state: call it on a copy."""
        for name, parameter in now.parameters.items():
            if parameter.is_complex():
                raise UnsupportedError(f"parameter {name} is complex; only real ones are supported")
            if not parameter.is_cpu:
                raise UnsupportedError(f"parameter {name} is on {parameter.device}; only CPU works")
        ending = Ending(
            now.trained,
            now.group_of,
            now.accumulated,
            updates,
            self.clipping,
            self.replicas,
            self.update,
            self.optimizer.param_groups,
            now.states,
            now.number_keys,
        )
        with apart():
            return capture(self.objective, now.batch, now.modes, ending)

    def bind(self, captured: Captured, now: Now) -> list[Any]:
        """What the graph's placeholders stand for now; makes empty optimizer states."""
        of_state = self.optimizer.state
        groups = self.optimizer.param_groups
        numbers = {}
        for name, key in now.number_keys.items():
            if key not in numbers:
                state = of_state.get(now.trained[name], {})
                options = self.update.options(groups[now.group_of[name]])
                numbers[key] = self.update.numbers(options, self.update.updates_done(state))
        for name in captured.updated:
            parameter = now.trained[name]
            if not of_state.get(parameter):
                new = self.update.new_state(groups[now.group_of[name]], parameter)
                if new:
                    of_state[parameter].update(new)
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
            elif role.kind == "step":
                values.append(self.step_alone(now, captured.updated))
            else:
                values.append(numbers[role.name][role.item])
        return values

    def step_alone(self, now: Now, updated: Collection[str]) -> StepAlone:
        """A step of the optimizer over these parameters, to be made one by one."""
        group_of: dict[torch.Tensor, int] = {
            now.trained[name]: index for name, index in now.group_of.items() if name in updated
        }
        return StepAlone(self.optimizer, group_of)

    def run(self, captured: Captured, now: Now) -> Any:
        """One step through the graph."""
        with apart():
            self._sync_buffers()
            inputs = self.bind(captured, now)
        try:
            with of_a_graph():
                outputs = (captured.pinned or captured.run)(*inputs)
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
            elif role.kind == "buffer":
                home, name = self.buffer_homes[role.name]
                home[name] = value
            else:
                now.parameters[role.name].grad = value
        for role, value in zip(captured.inputs, inputs, strict=True):
            if role.kind == "step":
                value.finish()
        for name in captured.updated:
            if state := self.optimizer.state.get(now.parameters[name]):
                self.update.finish(state)
            now.parameters[name].grad = None
        if captured.updated:
            self.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers ask
        return pytree.tree_unflatten(results, captured.result_spec)

    def run_eagerly(self, now: Now, updates: bool) -> Any:
        """The loop that the graph replaces."""
        with apart():
            self._sync_buffers()
            result = self.backward(now)
            result = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, result)
            if updates:
                if self.replicas is not None:
                    self.replicas.average(now.parameters)
                parameters = list(now.trained.values())
                if self.clipping.norm is not None:
                    nn.utils.clip_grad_norm_(parameters, self.clipping.norm)
                if self.clipping.value is not None:
                    nn.utils.clip_grad_value_(parameters, self.clipping.value)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return result

    def backward(self, now: Now) -> Any:
        """Forward and backward pass of the loop, within `apart()`. Returns what loss_fn returns."""
        with now.modes.of_the_forward_pass():
            result = self.objective(now.batch)
        loss_of(result).backward()
        return result

    def _sync_buffers(self) -> None:
        if self.replicas is not None:
            self.replicas.sync_buffers(self.objective.model)

    def contents(self) -> dict[str, Any]:
        """Everything that a step may change, but for attributes."""
        parameters = _found(self.parameter_homes)
        known = set(map(id, parameters.values()))
        for index, group in enumerate(self.optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                if id(parameter) not in known:
                    parameters[f"parameter {place} of the optimizer's group {index}"] = parameter
        found = {**parameters, **_found(self.buffer_homes)}
        for name, parameter in parameters.items():
            found[f"{name}.grad"] = parameter.grad
            for item, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{name} {item}"] = value
        return {**found, **self._set_by_steps()}

    def _set_by_steps(self) -> dict[str, Any]:
        """What the optimizer keeps besides the state of parameters."""
        state = self.optimizer.state.items()
        held = {
            "the optimizer": attributes_of(self.optimizer),
            "the optimizer's state": {k: v for k, v in state if not isinstance(k, torch.Tensor)},
        }
        for index, group in enumerate(self.optimizer.param_groups):
            held[f"the optimizer's group {index}"] = options_of(group)
        return {
            f"{owner}{path}": value
            for owner, owned in held.items()
            for path, value in plain_values(owned).items()
        }


def _require_no_hooks(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]
) -> None:
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    if any(hooks):
        raise UnsupportedError("the optimizer has step hooks, which a captured step cannot call")
    own = vars(optimizer)
    is_step_replaced = "step" in own and not hasattr(own["step"], "_wrapped_by_lr_sched")
    if is_step_replaced or "zero_grad" in own:
        raise UnsupportedError(
            "the optimizer's step or zero_grad was replaced, which a captured step cannot call"
        )
    for name, parameter in parameters.items():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise UnsupportedError(
                f"parameter {name} has gradient hooks, which a captured step cannot call"
            )


def _homes(root: nn.Module, table: str, named: Iterator[tuple[str, Any]]) -> Homes:
    homes = {}
    for name, _ in named:
        path, _, key = name.rpartition(".")
        homes[name] = (getattr(root.get_submodule(path), table), key)
    return homes


def _found(homes: Homes) -> dict[str, Any]:
    return {name: home[key] for name, (home, key) in homes.items()}


def _look_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.requires_grad, tensor.shape, tensor.stride()


def _description(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        if leaf.layout is not torch.strided:
            raise UnsupportedError(
                f"the batch holds a tensor of layout {leaf.layout}; only strided"
            )
        return type(leaf), *_look_of(leaf), leaf.is_cpu, leaf.is_conj(), leaf.is_neg()
    if isinstance(leaf, _PLAIN):
        return type(leaf), repr(leaf)  # -0.0 is equal to 0.0, and nan to nothing
    raise UnsupportedError(
        f"the batch holds a {type(leaf).__name__}, whose content may change unseen; give tensors, "
        "numbers and texts, in tuples, lists and dicts"
    )
