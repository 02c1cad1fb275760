"""Any other optimizer: one node per parameter, which runs the optimizer's own step for it alone.

So the update may come as soon as its gradient is there. It needs an optimizer that updates each
parameter as if there were no others; separable.py finds that out. Options and state stay where
they are and are read as the node runs. State is no input of the graph: nothing else in it may touch
the state of a parameter, and it is there before a graph is measured.
"""

import dataclasses
import inspect
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from torch_ext.fx.writing import Writing
from torch_ext.training.updates import (
    Emit,
    Operands,
    UnsupportedError,
    Update,
    known_update,
    require_plain,
)


@dataclasses.dataclass(frozen=True)
class OwnStep(Update):
    """The update of an optimizer of which only its own code knows what it does."""

    name: str  # of the optimizer's class
    draws_random_numbers: bool = False

    def structure(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        """Numbers may change from step to step; other options may choose another algorithm."""
        require_plain(group)
        return _choices(options_of(group))

    def settings(self, optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
        """As options, if they are attributes of the optimizer."""
        return _choices(attributes_of(optimizer))

    def finish(self, state: dict[str, Any]) -> None:
        """The step has changed all of it."""

    def emit(self, emit: Emit, group: Mapping[str, Any], of: Operands) -> dict[str, fx.Node]:
        """Add one node."""
        function = Writing(
            f"{self.name}_step",
            _update,
            written=2,  # the gradient: some decay or clip it in place
            draws_random_numbers=self.draws_random_numbers,
        )
        emit(function, of.parameter, of.gradient, of.step())
        return {}


def update_of(optimizer: torch.optim.Optimizer) -> Update:
    """How the optimizer updates a parameter. Raises UnsupportedError."""
    kind = type(optimizer)
    if issubclass(kind, torch.optim.SparseAdam):
        raise UnsupportedError(
            "SparseAdam takes sparse gradients only, which are unsupported; give "
            "nn.Embedding(sparse=False) and Adam"
        )
    if _needs_closure(kind):
        raise UnsupportedError(
            f"a step of {kind.__name__} needs a closure that computes the loss again, which a "
            "captured step has not; give an optimizer whose step() needs none"
        )
    return known_update(optimizer) or OwnStep(kind.__name__)


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group holds beside its parameters."""
    return {name: value for name, value in group.items() if name != "params"}


def attributes_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the optimizer keeps on itself, less its tables and what schedulers set."""
    left_out = ("param_groups", "state", "step", "_opt_called")
    return {name: value for name, value in vars(optimizer).items() if name not in left_out}


class StepAlone:
    """One step of an optimizer, made parameter by parameter, in any order.

    What a step sets beside a parameter and its state, options of groups and attributes of the
    optimizer (a count of steps, say), each update finds as it was before the step. What the last
    parameter's sets is there after `finish`: so a count grows by one, as in one step over all.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, group_of: Mapping[torch.Tensor, int]
    ) -> None:
        """`group_of`: of the parameters to update, in the optimizer's order."""
        self.optimizer = optimizer
        self.group_of = group_of
        self._groups = optimizer.param_groups
        self._tables = [*self._groups, vars(optimizer)]
        self._before = [dict(table) for table in self._tables]
        self._last_of = {index: parameter for parameter, index in group_of.items()}
        self._last = next(reversed(list(group_of)), None)
        self._after: dict[int, dict[str, Any]] = {}  # by the place of a table

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        """Let the optimizer's step see this parameter alone. Raises what that raises."""
        own = self.group_of[parameter]
        gradient_before, memory = parameter.grad, parameter.data
        try:
            for index, group in enumerate(self._groups):
                group["params"] = [parameter] if index == own else []
            parameter.grad = gradient
            # Not as an attribute of the optimizer, where schedulers put theirs.
            type(self.optimizer).step(self.optimizer)
            if parameter.data_ptr() != memory.data_ptr():
                # Assigned anew; the other nodes of the graph know the memory that it had.
                parameter.data = memory.copy_(parameter.data)
            for place, table in enumerate(self._tables):
                if self._last_of.get(place, self._last) is parameter:
                    self._after[place] = dict(table)
        finally:
            parameter.grad = gradient_before
            for table, before in zip(self._tables, self._before, strict=True):
                _fill(table, before)

    def finish(self) -> None:
        """After the last update: leave what a step over all parameters leaves."""
        for place, after in self._after.items():
            if "params" in self._before[place]:
                after["params"] = self._before[place]["params"]
            _fill(self._tables[place], after)


def _update(parameter: torch.Tensor, gradient: torch.Tensor, step: StepAlone) -> None:
    step.update(parameter, gradient)


def _fill(table: dict[str, Any], values: dict[str, Any]) -> None:
    is_same = len(table) == len(values) and all(map(operator.is_, table.values(), values.values()))
    if not is_same:
        table.clear()
        table.update(values)


def _needs_closure(kind: type[torch.optim.Optimizer]) -> bool:
    parameters = list(inspect.signature(kind.step).parameters.values())[1:]
    is_variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(one.default is one.empty and one.kind not in is_variadic for one in parameters)


def _choices(values: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple((name, _choice(values[name])) for name in sorted(values))


def _choice(value: Any) -> Any:
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, list | tuple):
        return tuple(map(_choice, value))
    return type(value)
