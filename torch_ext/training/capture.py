"""One training step as one flat graph: forward, loss, backward, clipping, update per parameter."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from torch_ext.attributes import path_of
from torch_ext.memory.arena import PinnedFunction
from torch_ext.training.labels import label_backward, label_update, mark_backward, module_paths
from torch_ext.training.modes import Modes
from torch_ext.training.questions import Answers, Questions
from torch_ext.training.randomness import random_state_in_graphs
from torch_ext.training.replicas import Replicas
from torch_ext.training.updates import Operands, UnsupportedError, Update

_aten = torch.ops.aten
_c10d = torch.ops._c10d_functional
LossFunction = Callable[..., Any]
Batch = tuple[Any, ...] | dict[str, Any]


class Objective(nn.Module):
    """Model and loss as one module, with the parameters of both."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction | None) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Batch) -> Any:
        """What loss_fn returns for a batch `(*inputs, target)` or a dict of the model's arguments.

        Of a dict loss_fn gets the model's result, and the dict too if it takes two arguments;
        without a loss_fn the loss is the result's `loss`.
        """
        if isinstance(batch, tuple):
            assert self.loss_fn is not None
            return self.loss_fn(self.model(*batch[:-1]), batch[-1])
        result = self.model(**batch)
        if self.loss_fn is None:
            return result.loss
        return self.loss_fn(result, batch) if _takes_two(self.loss_fn) else self.loss_fn(result)


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True


def loss_of(result: Any) -> Any:
    """What is minimised, of what loss_fn returns."""
    return result[0] if isinstance(result, tuple) else result


def require_strided(gradients: Mapping[str, torch.Tensor | None]) -> None:
    """Raise UnsupportedError for a sparse one. By the names of their parameters."""
    for name, gradient in gradients.items():
        if gradient is not None and gradient.layout != torch.strided:
            raise UnsupportedError(f"the gradient of {name} is sparse, which is unsupported")


@dataclasses.dataclass(frozen=True)
class Clipping:
    """What happens to gradients before the update, as torch.nn.utils.clip_grad_* do it."""

    norm: float | None = None
    value: float | None = None


@dataclasses.dataclass(frozen=True)
class Ending:
    """What follows the backward pass."""

    trained: Mapping[str, torch.Tensor]  # parameters that get a gradient
    # Of the optimizer's groups the one that updates a parameter, in the optimizer's order.
    group_of: Mapping[str, int]
    accumulated: Collection[str]  # parameters whose gradient is there already and is added to
    updates: bool  # else all gradients stay
    clipping: Clipping
    replicas: Replicas | None
    update: Update
    groups: Sequence[dict[str, Any]]  # of the optimizer
    states: dict[str, tuple[str, ...]]  # per parameter: state that is there; the rest is made
    number_keys: dict[str, str]  # per parameter: whose numbers its update shares


@dataclasses.dataclass(frozen=True)
class Role:
    """What a placeholder of the captured graph stands for."""

    kind: str  # "parameter", "buffer", "input", "gradient", "state", "number", "step", "result"
    name: str  # of the parameter or buffer; the index of an input; the group and step of a number
    item: str = ""  # of a state or a number


@dataclasses.dataclass(frozen=True)
class Captured:
    """A graph, what goes in, and what comes out: a tuple."""

    module: fx.GraphModule
    run: nn.Module  # runs the graph: `module` itself, or the same in TorchScript
    inputs: list[Role]
    outputs: list[
        Role
    ]  # "result" leaves first, then what is assigned anew: buffers, gradients, ...
    updated: dict[str, str]  # parameters that get an update -> whose numbers it shares
    result_spec: pytree.TreeSpec
    answers: Answers  # to what the step asks about its batch
    pinned: PinnedFunction[..., Any] | None = None  # `run` with planned addresses


def capture(objective: Objective, batch: Batch, modes: Modes, ending: Ending) -> Captured:
    """Trace a step of `objective`, which is a copy: its buffers and the random state change.

    Raises UnsupportedError for what it knows that cannot be captured, and whatever else is raised.
    """
    parameters = dict(objective.named_parameters())
    buffers = dict(objective.named_buffers())
    leaves, spec = pytree.tree_flatten(batch)
    tensor_at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    roles = [
        *(Role("parameter", name) for name in parameters),
        *(Role("buffer", name) for name in buffers),
        *(Role("input", str(i)) for i in tensor_at),
    ]
    results: list[Role] = []  # what comes before the gradients
    result_spec: list[pytree.TreeSpec] = []
    questions = Questions(len(parameters) + len(buffers), len(tensor_at))

    def forward_and_backward(*flat: torch.Tensor) -> list[Any]:
        given = dict(zip((*parameters, *buffers), flat, strict=False))
        before = dict(given)
        all_leaves = list(leaves)
        for i, tensor in zip(tensor_at, flat[len(given) :], strict=True):
            all_leaves[i] = tensor
        with questions, modes.of_the_forward_pass():
            result = torch.func.functional_call(
                objective, given, (pytree.tree_unflatten(all_leaves, spec),)
            )
        loss = loss_of(result)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise UnsupportedError("loss_fn must return a tensor of one element, or a tuple of it")
        own = set(map(id, flat))
        for leaf in mark_backward(loss):
            if id(leaf) not in own:
                path = path_of(objective, leaf).removeprefix("model.")
                raise UnsupportedError(
                    f"the loss has a gradient for {path or 'a tensor'} of shape "
                    f"{list(leaf.shape)}, which is no parameter of model or loss_fn: register it "
                    "(nn.ModuleList, nn.Parameter), and give a loss_fn that uses modules as an "
                    "nn.Module that holds them"
                )
        with questions:
            gradients = torch.autograd.grad(
                loss, [given[name] for name in ending.trained], allow_unused=True
            )
        require_strided(dict(zip(ending.trained, gradients, strict=True)))
        values, structure = pytree.tree_flatten(result)
        result_spec.append(structure)
        assigned = [name for name in buffers if given[name] is not before[name]]
        results.extend(Role("result", str(i)) for i in range(len(values)))
        results.extend(Role("buffer", name) for name in assigned)
        values += (given[name] for name in assigned)
        detached = [r.detach() if isinstance(r, torch.Tensor) else r for r in values]
        return [*detached, *gradients]

    flat_inputs = [*parameters.values(), *buffers.values(), *(leaves[i] for i in tensor_at)]
    # One mode for all example values: make_fx gives each one of its own, with the whole stack.
    example_values = TracingContext(FakeTensorMode())
    with module_paths(objective.model), tracing(example_values), random_state_in_graphs():
        module = make_fx(forward_and_backward)(*flat_inputs)
    label_backward(module.graph)
    captured = _Builder(module, roles, results, result_spec[0]).add(ending, parameters)
    return dataclasses.replace(captured, answers=questions.answers())


class _Builder:
    """Adds the second half of a step to the graph of forward and backward."""

    def __init__(
        self,
        module: fx.GraphModule,
        roles: list[Role],
        results: list[Role],
        result_spec: pytree.TreeSpec,
    ) -> None:
        self.module = module
        self.graph = module.graph
        self.roles = roles
        self.results = results
        self.result_spec = result_spec
        self.placeholders: dict[Role, fx.Node] = dict(
            zip(roles, (n for n in self.graph.nodes if n.op == "placeholder"), strict=True)
        )
        [self.output] = [node for node in self.graph.nodes if node.op == "output"]

    def add(self, ending: Ending, parameters: dict[str, nn.Parameter]) -> Captured:
        """Accumulate, clip, update; what remains becomes the graph's output."""
        values = self.output.args[0]
        count = len(self.results)
        gradients = {
            name: node
            for name, node in zip(ending.trained, values[count:], strict=True)
            if node is not None
        }
        self._separate(gradients, parameters)
        for name in ending.accumulated:
            total = self._input(Role("gradient", name))
            if name in gradients:
                self._emit(_aten.add_.Tensor, total, gradients[name])
            gradients[name] = total
        # As the loop clips them: in the order of the model's parameters.
        gradients = {name: gradients[name] for name in ending.trained if name in gradients}
        new = gradients.keys() - set(ending.accumulated)
        kept: dict[Role, fx.Node] = {}
        updated = {}
        if ending.updates and ending.replicas is not None:
            self._average(gradients, ending)
        if ending.updates:
            self._clip(gradients, ending)
        for name in ending.group_of if ending.updates else ():  # as the loop updates them
            if name in gradients:
                kept |= self._update(ending, name, gradients[name])
                updated[name] = ending.number_keys[name]
        for name, gradient in gradients.items():
            if name in new and name not in updated:
                kept[Role("gradient", name)] = gradient
        self.output.args = ((*values[:count], *kept.values()),)
        self.graph.lint()
        self.module.recompile()
        outputs = [*self.results, *kept]
        return Captured(
            self.module,
            self.module,
            self.roles,
            outputs,
            updated,
            self.result_spec,
            Answers(None, ()),
        )

    def _update(self, ending: Ending, name: str, gradient: fx.Node) -> dict[Role, fx.Node]:
        """Add the update of one parameter; return the state that it makes anew."""
        key = ending.number_keys[name]
        operands = Operands(
            self._input(Role("parameter", name)),
            gradient,
            {item: self._input(Role("state", name, item)) for item in ending.states[name]},
            lambda item: self._input(Role("number", key, item)),
            lambda: self._input(Role("step", "")),
        )

        def emit(target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
            node = self._emit(target, *args, **kwargs)
            label_update(node, name.removeprefix("model."))
            return node

        made = ending.update.emit(emit, ending.groups[ending.group_of[name]], operands)
        return {Role("state", name, item): node for item, node in made.items()}

    def _input(self, role: Role) -> fx.Node:
        if role not in self.placeholders:
            last = self.placeholders[self.roles[-1]]
            with self.graph.inserting_after(last):
                name = f"{role.kind}_{len(self.roles)}"
                self.placeholders[role] = self.graph.placeholder(name)
            self.roles.append(role)
        return self.placeholders[role]

    def _emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        with self.graph.inserting_before(self.output):
            node: fx.Node = self.graph.call_function(target, args, kwargs)
            return node

    def _separate(self, gradients: dict[str, fx.Node], parameters: dict[str, nn.Parameter]) -> None:
        """Gradients get memory of their own where autograd would give it to them.

        AccumulateGrad copies what is shared, and what has other strides than its parameter.
        """
        seen: set[fx.Node] = set()
        for name, node in gradients.items():
            if node in seen or not _same_layout(node.meta["val"], parameters[name]):
                like = self.placeholders[Role("parameter", name)]
                copy = self._emit(_aten.empty_like.default, like)
                gradients[name] = self._emit(_aten.copy_.default, copy, node)
            seen.add(node)

    def _average(self, gradients: dict[str, fx.Node], ending: Ending) -> None:
        """See Replicas.average; collectives in the order in which the first graph has gradients."""
        replicas = ending.replicas
        assert replicas is not None
        for name in ending.trained:
            if name not in gradients:
                raise UnsupportedError(
                    f"parameter {name} gets no gradient, which processes cannot average; freeze it"
                )
        if not replicas.reduced:
            place = {node: index for index, node in enumerate(self.graph.nodes)}
            replicas.reduced = sorted(gradients, key=lambda name: place[gradients[name]])
        for name in replicas.reduced:
            own = self._emit(_aten.mul_.Tensor, gradients[name], replicas.share)
            total = self._emit(_c10d.all_reduce_.default, own, "sum", replicas.group_name)
            gradients[name] = self._emit(_c10d.wait_tensor.default, total)

    def _clip(self, gradients: dict[str, fx.Node], ending: Ending) -> None:
        """Source: torch/nn/utils/clip_grad.py. The norm needs all gradients before any update."""
        clipping = ending.clipping
        if clipping.norm is not None and gradients:
            if len({ending.trained[name].dtype for name in gradients}) > 1:
                raise UnsupportedError(
                    "clip_grad_norm over gradients of several dtypes adds them up in an order of "
                    "its own; give one dtype, or clip_grad_value"
                )
            norms = [
                self._emit(_aten.linalg_vector_norm.default, gradient, 2.0)
                for gradient in gradients.values()
            ]
            total = self._emit(
                _aten.linalg_vector_norm.default, self._emit(_aten.stack.default, norms), 2.0
            )
            total = self._emit(_aten.add.Tensor, total, 1e-6)
            factor = self._emit(
                _aten.mul.Tensor, self._emit(_aten.reciprocal.default, total), clipping.norm
            )
            factor = self._emit(_aten.clamp.default, factor, None, 1.0)
            for gradient in gradients.values():
                self._emit(_aten.mul_.Tensor, gradient, factor)
        if clipping.value is not None:
            for gradient in gradients.values():
                self._emit(_aten.clamp_.default, gradient, -clipping.value, clipping.value)


def _same_layout(gradient: torch.Tensor, parameter: torch.Tensor) -> bool:
    """Does autograd keep the gradient as it is? The stride of a dimension of one does not count."""
    strides = zip(gradient.stride(), parameter.stride(), gradient.shape, strict=True)
    return all(a == b or size == 1 for a, b, size in strides)
