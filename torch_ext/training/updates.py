"""The optimizers as nodes of a graph: for each parameter the ops of torch's for-loop, bit for bit.

Source: _single_tensor_sgd and _single_tensor_adam in torch/optim. What those compute with Python
numbers (rates, bias corrections) is computed outside the graph at every step and handed in, so a
learning rate that changes is no reason to capture again. What decides which ops run (is there a
weight decay, a momentum, ...) is part of a graph's key.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

Emit = Callable[..., fx.Node]  # an overload and its arguments -> the node that calls it
_aten = torch.ops.aten


class UnsupportedError(ValueError):
    """The step cannot be captured so that it stays equal bit for bit; the message says why."""


class Update(abc.ABC):
    """How one kind of optimizer changes one parameter of one group."""

    @abc.abstractmethod
    def structure(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        """What decides which ops run. Raises UnsupportedError."""

    @abc.abstractmethod
    def state_names(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[str, ...]:
        """Which tensors of a parameter's state the coming update reads and writes."""

    @abc.abstractmethod
    def new_state(self, group: Mapping[str, Any], parameter: torch.Tensor) -> dict[str, Any]:
        """What torch puts into an empty state before the first update."""

    @abc.abstractmethod
    def updates_done(self, state: Mapping[str, Any]) -> float:
        """As far as the numbers depend on it: parameters of a group that agree share them."""

    @abc.abstractmethod
    def numbers(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, float]:
        """The Python numbers of the coming update, by name."""

    @abc.abstractmethod
    def finish(self, state: dict[str, Any]) -> None:
        """What torch changes in the state besides tensors of the parameter's shape."""

    @abc.abstractmethod
    def emit(
        self,
        emit: Emit,
        group: Mapping[str, Any],
        parameter: fx.Node,
        gradient: fx.Node,
        state: Mapping[str, fx.Node],
        numbers: Mapping[str, fx.Node],
    ) -> dict[str, fx.Node]:
        """Add the ops; return state that is made anew, by name."""


def update_of(optimizer: torch.optim.Optimizer) -> Update:
    """The update rule of an optimizer. Raises UnsupportedError if there is none for its class."""
    kinds: dict[type, type[Update]] = {
        torch.optim.SGD: _Sgd,
        torch.optim.Adam: _Adam,
        torch.optim.AdamW: _Adam,
    }
    kind = kinds.get(type(optimizer))
    if kind is None:
        raise UnsupportedError(
            f"the optimizer is a {type(optimizer).__name__}; known are SGD, Adam and AdamW"
        )
    return kind()


def _require_plain(group: Mapping[str, Any]) -> None:
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


class _Sgd(Update):
    def structure(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        _require_plain(group)
        return (
            group["weight_decay"] != 0,
            group["momentum"] != 0,
            bool(group["nesterov"]),
            bool(group["maximize"]),
        )

    def state_names(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[str, ...]:
        # The first update makes the buffer.
        has_buffer = group["momentum"] != 0 and state.get("momentum_buffer") is not None
        return ("momentum_buffer",) if has_buffer else ()

    def new_state(self, group: Mapping[str, Any], parameter: torch.Tensor) -> dict[str, Any]:
        return {}

    def updates_done(self, state: Mapping[str, Any]) -> float:
        return 0.0

    def numbers(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, float]:
        return {
            "weight_decay": group["weight_decay"],
            "momentum": group["momentum"],
            "inflow": 1 - group["dampening"],
            "step": -group["lr"],
        }

    def finish(self, state: dict[str, Any]) -> None:
        pass

    def emit(
        self,
        emit: Emit,
        group: Mapping[str, Any],
        parameter: fx.Node,
        gradient: fx.Node,
        state: Mapping[str, fx.Node],
        numbers: Mapping[str, fx.Node],
    ) -> dict[str, fx.Node]:
        decays, has_momentum, nesterov, maximize = self.structure(group)
        made = {}
        if maximize:
            gradient = emit(_aten.neg.default, gradient)
        if decays:
            gradient = emit(_aten.add.Tensor, gradient, parameter, alpha=numbers["weight_decay"])
        if has_momentum:
            buffer = state.get("momentum_buffer")
            if buffer is None:
                buffer = made["momentum_buffer"] = emit(_aten.clone.default, gradient)
            else:
                emit(_aten.mul_.Tensor, buffer, numbers["momentum"])
                emit(_aten.add_.Tensor, buffer, gradient, alpha=numbers["inflow"])
            if nesterov:
                gradient = emit(_aten.add.Tensor, gradient, buffer, alpha=numbers["momentum"])
            else:
                gradient = buffer
        emit(_aten.add_.Tensor, parameter, gradient, alpha=numbers["step"])
        return made


class _Adam(Update):
    """Adam, and AdamW, which decays the weight instead of the gradient."""

    def structure(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        _require_plain(group)
        return (
            group["weight_decay"] != 0,
            bool(group["decoupled_weight_decay"]),
            bool(group["amsgrad"]),
            bool(group["maximize"]),
        )

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

    def numbers(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, float]:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        step = self.updates_done(state) + 1
        return {
            "weight_decay": group["weight_decay"],
            "shrink": 1 - lr * group["weight_decay"],
            "inflow1": 1 - beta1,
            "beta2": beta2,
            "inflow2": 1 - beta2,
            "root": (1 - beta2**step) ** 0.5,
            "eps": group["eps"],
            "step": -(lr / (1 - beta1**step)),
        }

    def finish(self, state: dict[str, Any]) -> None:
        state["step"] += 1

    def emit(
        self,
        emit: Emit,
        group: Mapping[str, Any],
        parameter: fx.Node,
        gradient: fx.Node,
        state: Mapping[str, fx.Node],
        numbers: Mapping[str, fx.Node],
    ) -> dict[str, fx.Node]:
        decays, decoupled, amsgrad, maximize = self.structure(group)
        if maximize:
            gradient = emit(_aten.neg.default, gradient)
        if decays and decoupled:
            emit(_aten.mul_.Tensor, parameter, numbers["shrink"])
        elif decays:
            gradient = emit(_aten.add.Tensor, gradient, parameter, alpha=numbers["weight_decay"])
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        emit(_aten.lerp_.Scalar, mean, gradient, numbers["inflow1"])
        emit(_aten.mul_.Tensor, square, numbers["beta2"])
        emit(_aten.addcmul_.default, square, gradient, gradient, value=numbers["inflow2"])
        if amsgrad:
            highest = state["max_exp_avg_sq"]
            emit(_aten.maximum.out, highest, square, out=highest)
            square = highest
        root = emit(_aten.sqrt.default, square)
        denominator = emit(_aten.div.Tensor, root, numbers["root"])
        emit(_aten.add_.Tensor, denominator, numbers["eps"])
        emit(_aten.addcdiv_.default, parameter, mean, denominator, value=numbers["step"])
        return {}
