"""Optimizers as nodes of a graph: for each parameter the ops of torch's for-loop, bit for bit.

Those of SGD, Adam and AdamW are here; of all others, one node stands for them (alone.py).

Source: _single_tensor_sgd and _single_tensor_adam in torch/optim. What those compute with Python
numbers (rates, bias corrections) is computed outside the graph at every step and handed in, so a
learning rate that changes is no reason to capture again; by functions that TorchScript can compile,
for files that train without Python. What decides which ops run (is there a
weight decay, a momentum, ...) is part of a graph's key.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

Emit = Callable[..., fx.Node]  # what is called and its arguments -> the node that calls it
Numbers = Callable[[dict[str, float], float], dict[str, float]]
_aten = torch.ops.aten


class UnsupportedError(ValueError):
    """The step cannot be captured so that it stays equal bit for bit; the message says why."""


@dataclasses.dataclass(frozen=True)
class Operands:
    """The nodes of one parameter's update."""

    parameter: fx.Node
    gradient: fx.Node
    state: Mapping[str, fx.Node]
    number: Callable[[str], fx.Node]  # by name
    step: Callable[[], fx.Node]  # of the optimizer, which update by update is made


def _no_numbers(group: dict[str, float], updates_done: float) -> dict[str, float]:
    return {}


class Update(abc.ABC):
    """How one kind of optimizer changes one parameter of one group."""

    @abc.abstractmethod
    def structure(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        """What decides which ops run. Raises UnsupportedError."""

    def settings(self, optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
        """What decides it beside the groups."""
        return ()

    def state_names(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[str, ...]:
        """Which tensors of a parameter's state the coming update is given."""
        return ()

    def new_state(self, group: Mapping[str, Any], parameter: torch.Tensor) -> dict[str, Any]:
        """What torch puts into an empty state before the first update."""
        return {}

    def updates_done(self, state: Mapping[str, Any]) -> float:
        """As far as the numbers depend on it: parameters of a group that agree share them."""
        return 0.0

    # The numbers of the coming update, by name: from a group's options and the updates done.
    numbers: Numbers = staticmethod(_no_numbers)

    def options(self, group: Mapping[str, Any]) -> dict[str, float]:
        """What the numbers depend on, by name."""
        return {}

    @abc.abstractmethod
    def finish(self, state: dict[str, Any]) -> None:
        """What torch changes in the state besides tensors of the parameter's shape."""

    @abc.abstractmethod
    def emit(self, emit: Emit, group: Mapping[str, Any], of: Operands) -> dict[str, fx.Node]:
        """Add the ops; return state that is made anew, by name."""


class _Known(Update):
    """One whose ops are written here."""

    def structure(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        require_plain(group)
        return (group["weight_decay"] != 0, bool(group["maximize"]), *self._choices(group))

    @abc.abstractmethod
    def _choices(self, group: Mapping[str, Any]) -> tuple[bool, ...]:
        """What else decides which ops run."""

    def emit(self, emit: Emit, group: Mapping[str, Any], of: Operands) -> dict[str, fx.Node]:
        gradient = of.gradient
        if group["maximize"]:
            gradient = emit(_aten.neg.default, gradient)
        if group["weight_decay"] != 0 and not group.get("decoupled_weight_decay"):
            decay = of.number("weight_decay")
            gradient = emit(_aten.add.Tensor, gradient, of.parameter, alpha=decay)
        return self._emit_change(emit, group, dataclasses.replace(of, gradient=gradient))

    @abc.abstractmethod
    def _emit_change(
        self, emit: Emit, group: Mapping[str, Any], of: Operands
    ) -> dict[str, fx.Node]:
        """As emit, with the sign and the weight decay in the gradient."""


def known_update(optimizer: torch.optim.Optimizer) -> Update | None:
    """The update of an optimizer whose ops are written here."""
    kinds: dict[type, type[Update]] = {
        torch.optim.SGD: _Sgd,
        torch.optim.Adam: _Adam,
        torch.optim.AdamW: _Adam,
    }
    kind = kinds.get(type(optimizer))
    return None if kind is None else kind()


def require_plain(group: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for options of a group that no step can be captured with."""
    for option in ("foreach", "fused", "capturable", "differentiable"):
        if group.get(option):
            raise UnsupportedError(
                f"the optimizer has {option}=True, whose bits differ from the for-loop's; "
                f"construct it with {option}=False"
            )
    for name, value in group.items():
        values = value if isinstance(value, tuple) else (value,)
        if name != "params" and any(isinstance(one, torch.Tensor) for one in values):
            raise UnsupportedError(f"the optimizer's {name} is a tensor; give it as a number")


def _sgd_numbers(group: dict[str, float], updates_done: float) -> dict[str, float]:
    return {
        "weight_decay": group["weight_decay"],
        "momentum": group["momentum"],
        "inflow": 1.0 - group["dampening"],
        "step": -group["lr"],
    }


def _adam_numbers(group: dict[str, float], updates_done: float) -> dict[str, float]:
    step = updates_done + 1.0
    return {
        "weight_decay": group["weight_decay"],
        "shrink": 1.0 - group["lr"] * group["weight_decay"],
        "inflow1": 1.0 - group["beta1"],
        "beta2": group["beta2"],
        "inflow2": 1.0 - group["beta2"],
        "root": (1.0 - group["beta2"] ** step) ** 0.5,
        "eps": group["eps"],
        "step": -(group["lr"] / (1.0 - group["beta1"] ** step)),
    }


class _Sgd(_Known):
    numbers = staticmethod(_sgd_numbers)

    def _choices(self, group: Mapping[str, Any]) -> tuple[bool, ...]:
        return group["momentum"] != 0, bool(group["nesterov"])

    def state_names(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[str, ...]:
        # The first update makes the buffer.
        has_buffer = group["momentum"] != 0 and state.get("momentum_buffer") is not None
        return ("momentum_buffer",) if has_buffer else ()

    def options(self, group: Mapping[str, Any]) -> dict[str, float]:
        names = ("lr", "weight_decay", "momentum", "dampening")
        return {name: float(group[name]) for name in names}

    def finish(self, state: dict[str, Any]) -> None:
        pass

    def _emit_change(
        self, emit: Emit, group: Mapping[str, Any], of: Operands
    ) -> dict[str, fx.Node]:
        made = {}
        change = of.gradient
        if group["momentum"] != 0:
            buffer = of.state.get("momentum_buffer")
            if buffer is None:
                buffer = made["momentum_buffer"] = emit(_aten.clone.default, change)
            else:
                emit(_aten.mul_.Tensor, buffer, of.number("momentum"))
                emit(_aten.add_.Tensor, buffer, change, alpha=of.number("inflow"))
            if group["nesterov"]:
                change = emit(_aten.add.Tensor, change, buffer, alpha=of.number("momentum"))
            else:
                change = buffer
        emit(_aten.add_.Tensor, of.parameter, change, alpha=of.number("step"))
        return made


class _Adam(_Known):
    """Adam, and AdamW, which decays the weight instead of the gradient."""

    numbers = staticmethod(_adam_numbers)

    def _choices(self, group: Mapping[str, Any]) -> tuple[bool, ...]:
        return bool(group["decoupled_weight_decay"]), bool(group["amsgrad"])

    def state_names(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if group["amsgrad"] else ())

    def new_state(self, group: Mapping[str, Any], parameter: torch.Tensor) -> dict[str, Any]:
        zeros = {
            name: torch.zeros_like(parameter, memory_format=torch.preserve_format)
            for name in self.state_names(group, {})
        }
        kind = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        return {"step": torch.tensor(0.0, dtype=kind), **zeros}

    def updates_done(self, state: Mapping[str, Any]) -> float:
        return float(state["step"]) if state else 0.0

    def options(self, group: Mapping[str, Any]) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        plain = {name: float(group[name]) for name in ("lr", "weight_decay", "eps")}
        return {**plain, "beta1": float(beta1), "beta2": float(beta2)}

    def finish(self, state: dict[str, Any]) -> None:
        state["step"] += 1

    def _emit_change(
        self, emit: Emit, group: Mapping[str, Any], of: Operands
    ) -> dict[str, fx.Node]:
        if group["weight_decay"] != 0 and group["decoupled_weight_decay"]:
            emit(_aten.mul_.Tensor, of.parameter, of.number("shrink"))
        gradient = of.gradient
        mean, square = of.state["exp_avg"], of.state["exp_avg_sq"]
        emit(_aten.lerp_.Scalar, mean, gradient, of.number("inflow1"))
        emit(_aten.mul_.Tensor, square, of.number("beta2"))
        emit(_aten.addcmul_.default, square, gradient, gradient, value=of.number("inflow2"))
        if group["amsgrad"]:
            highest = of.state["max_exp_avg_sq"]
            emit(_aten.maximum.out, highest, square, out=highest)
            square = highest
        root = emit(_aten.sqrt.default, square)
        denominator = emit(_aten.div.Tensor, root, of.number("root"))
        emit(_aten.add_.Tensor, denominator, of.number("eps"))
        emit(_aten.addcdiv_.default, of.parameter, mean, denominator, value=of.number("step"))
        return {}
