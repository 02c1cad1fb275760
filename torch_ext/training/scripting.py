"""Captured steps as TorchScript: run by its interpreter, and saved as a file that trains in C++."""

import copy
import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn

from torch_ext.arguments import FilePath
from torch_ext.files import first_line, save_model, without_jit_warnings
from torch_ext.training.capture import Captured, Role
from torch_ext.training.randomness import goes_back
from torch_ext.training.updates import UnsupportedError
from torch_ext.training.world import World


class ScriptedGraph(nn.Module):
    """A captured graph in TorchScript.

    Runs without the executor's optimisations, which would split and batch matrix products and so
    change bits; there is nothing else that they could do for a flat graph of ATen calls.
    """

    def __init__(self, captured: Captured) -> None:
        super().__init__()
        graph = copy.deepcopy(captured.module.graph)
        roles = iter(captured.inputs)
        for node in graph.nodes:
            if node.op == "placeholder":
                node.type = float if next(roles).kind == "number" else torch.Tensor
            elif isinstance(node.target, torch._ops.OpOverload):
                node.target = node.target.overloadpacket  # TorchScript chooses by the arguments
        module = fx.GraphModule(captured.module, graph)
        try:
            self.script = _scripted(module)
        except RuntimeError as error:
            raise UnsupportedError(
                f"the step cannot be written in TorchScript, use runtime='fx': {first_line(error)}"
            ) from error

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """What the captured graph returns."""
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            outputs: tuple[Any, ...] = self.script(*inputs)
        return outputs


def as_torchscript(captured: Captured) -> Captured:
    """The same step, run by TorchScript's interpreter. Raises UnsupportedError."""
    if goes_back(captured.module.graph):
        raise UnsupportedError(
            "the step goes back to earlier random numbers (checkpoint with dropout), which "
            "LibTorch alone cannot; use runtime='fx'"
        )
    return dataclasses.replace(captured, run=ScriptedGraph(captured))


def save_step(world: World, first: Captured, settled: Captured, path: FilePath) -> None:
    """Write a module whose `forward(*tensors of a batch)` trains it by one step.

    `first` runs as long as the optimizer has no state yet; it may be `settled` itself. Both are
    scripted. Raises what files.writing raises.
    """
    save_model(_TrainedFile(world, first, settled).module(), path, {})


class _Optimizer(nn.Module):
    groups: list[dict[str, float]]
    updates_done: list[float]


class _TrainedFile:
    """Puts together what a file needs: parameters, optimizer state, numbers, graphs, and code."""

    def __init__(self, world: World, first: Captured, settled: Captured) -> None:
        self.world = world
        self.first = first
        self.settled = settled
        self.now = world.look(())
        self.root = _new_root()
        # The numbers that updates share: key -> the group of the optimizer, updates done.
        self.paces: dict[str, tuple[int, float]] = {}
        for name, key in settled.updated.items():
            done = world.update.updates_done(self._state(name))
            self.paces[key] = (self.now.group_of[name], done)

    def module(self) -> torch.jit.ScriptModule:
        self._add_values()
        self.root.settled = self.settled.run.script
        if self.first is not self.settled:
            self.root.first = self.first.run.script
        self.root.is_first = self.first is not self.settled
        scripted = _scripted(self.root)
        numbers_of = self.world.update.numbers  # noqa: F841  # the source below speaks of it
        scripted.define(self._source())
        return scripted

    def _add_values(self) -> None:
        """Parameters and buffers under their own names, optimizer state under `optimizer`."""
        objective = self.world.objective
        placed: dict[int, nn.Parameter] = {}
        for name, parameter in objective.named_parameters(remove_duplicate=False):
            own = placed.setdefault(id(parameter), nn.Parameter(parameter.detach(), False))
            holder, leaf = self._holder(name)
            holder.register_parameter(leaf, own)
        for name, buffer in objective.named_buffers(remove_duplicate=False):
            holder, leaf = self._holder(name)
            holder.register_buffer(leaf, buffer)
        optimizer = _Optimizer()
        self.root.add_module("optimizer", optimizer)
        optimizer.groups = [
            self.world.update.options(group) for group in self.world.optimizer.param_groups
        ]
        optimizer.updates_done = [done for _, done in self.paces.values()]
        for role in self._states():
            holder, leaf = self._holder(_state_path(role))
            value = self._state(role.name).get(role.item)
            holder.register_buffer(leaf, torch.empty(0) if value is None else value)

    def _holder(self, path: str) -> tuple[nn.Module, str]:
        *parents, leaf = path.split(".")
        holder: nn.Module = self.root
        for name in parents:
            if name not in holder._modules:
                holder.add_module(name, nn.Module())
            holder = holder.get_submodule(name)
        return holder, leaf

    def _states(self) -> Iterable[Role]:
        roles = (*self.settled.inputs, *self.first.outputs)
        return dict.fromkeys(role for role in roles if role.kind == "state")

    def _state(self, name: str) -> dict[str, Any]:
        parameter = self.now.trained[name]
        group = self.world.optimizer.param_groups[self.now.group_of[name]]
        state = self.world.optimizer.state.get(parameter)
        return state or self.world.update.new_state(group, parameter)

    # --- the code ---------------------------------------------------------------------------------

    def _source(self) -> str:
        tensors = [
            (f"batch_{role.name}", node)
            for role, node in _placeholders(self.settled)
            if role.kind == "input"
        ]
        lines = [f"def forward(self, {', '.join(f'{name}: Tensor' for name, _ in tensors)}):"]
        for name, node in tensors:
            lines += _checks(name, node.meta["val"])
        for index, (group, _) in enumerate(self.paces.values()):
            options, done = f"self.optimizer.groups[{group}]", "self.optimizer.updates_done"
            lines.append(f"    numbers_{index} = numbers_of({options}, {done}[{index}])")
        if self.first is self.settled:
            lines += self._call("    ", "settled", self.settled)
        else:
            lines += ["    if self.is_first:", "        self.is_first = False"]
            lines += self._call("        ", "first", self.first)
            lines += ["    else:", *self._call("        ", "settled", self.settled)]
        for index in range(len(self.paces)):
            done = f"self.optimizer.updates_done[{index}]"
            lines.append(f"    {done} = {done} + 1.0")
        results = [f"result_{r.name}" for r in self.settled.outputs if r.kind == "result"]
        lines.append(f"    return {', '.join(results)}")
        lines += [
            "def set_lr(self, lr: float, group: int):",
            '    self.optimizer.groups[group]["lr"] = lr',
        ]
        return "\n".join(lines) + "\n"

    def _call(self, indent: str, name: str, captured: Captured) -> Sequence[str]:
        arguments = ", ".join(self._argument(captured, role) for role in captured.inputs)
        lines = [f"out = self.{name}({arguments})"]
        for index, role in enumerate(captured.outputs):
            if role.kind == "result":
                lines.append(f"result_{role.name} = out[{index}]")
            else:
                path = role.name if role.kind == "buffer" else _state_path(role)
                holder, _, leaf = path.rpartition(".")
                lines.append(f"{_expression(holder)}.{leaf} = out[{index}]")
        return [indent + line for line in lines]

    def _argument(self, captured: Captured, role: Role) -> str:
        if role.kind in ("parameter", "buffer"):
            return _expression(role.name)
        if role.kind == "input":
            return f"batch_{role.name}"
        if role.kind == "state":
            return _expression(_state_path(role))
        # Graphs may share numbers in other ways: a parameter that is in both tells which is which.
        parameter = next(name for name, key in captured.updated.items() if key == role.name)
        index = list(self.paces).index(self.settled.updated[parameter])
        return f'numbers_{index}["{role.item}"]'


def _new_root() -> Any:
    """Of a class of its own: TorchScript knows modules of one class by one type, and a type keeps
    the first code that it is given.
    """

    class Root(nn.Module):
        is_first: bool

    return Root()


def _scripted(module: nn.Module) -> torch.jit.ScriptModule:
    with without_jit_warnings(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*instance-level annotations.*", UserWarning)
        scripted: torch.jit.ScriptModule = torch.jit.script(module)
        return scripted


def _placeholders(captured: Captured) -> Iterable[tuple[Role, fx.Node]]:
    nodes = (n for n in captured.module.graph.nodes if n.op == "placeholder")
    return zip(captured.inputs, nodes, strict=True)


def _state_path(role: Role) -> str:
    return f"optimizer.state.{role.name}.{role.item}"


def _expression(path: str) -> str:
    """How TorchScript reads an attribute whose names may be numbers."""
    expression = "self"
    for name in path.split("."):
        expression = f'getattr({expression}, "{name}")'
    return expression


def _checks(name: str, example: torch.Tensor) -> Sequence[str]:
    """The graph holds for these sizes only: means divide by them."""
    sizes, strides = list(example.shape), list(example.stride())
    told = f"{name} must be {example.dtype} of sizes {sizes} and strides {strides}"
    same = f"{name}.size() == {sizes} and {name}.stride() == {strides}"
    return [f'    assert {name}.dtype == {example.dtype} and {same}, "{told}, as the example was"']
