"""Programs of torch.fx, graph modules and exported ones alike: state, inputs, running them."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from torch_ext._native import _jit
from torch_ext.arguments import misfit
from torch_ext.fx.effects import is_barrier, written_arguments
from torch_ext.fx.probe import tensors_of
from torch_ext.fx.turns import seconds_in_turns
from torch_ext.memory.meter import measure_peak, no_collections
from torch_ext.tensors.compare import first_difference, same_numbers

Graphs = fx.GraphModule | ExportedProgram
_Copied = TypeVar("_Copied")
_Program = TypeVar("_Program", bound=Graphs)


def graph_module_of(program: Graphs) -> fx.GraphModule:
    """Return the module with the graph, which is not to be called for an exported program."""
    return program.graph_module if isinstance(program, ExportedProgram) else program


def state_of(program: Graphs) -> dict[str, Any]:
    """Return parameters, buffers and constants, by name."""
    if isinstance(program, ExportedProgram):
        return {**program.state_dict, **program.constants}
    names = [str(node.target) for node in program.graph.nodes if node.op == "get_attr"]
    values = {name: _attribute(program, name) for name in names}
    return {n: v.state_dict() if isinstance(v, nn.Module) else v for n, v in values.items()}


def _attribute(module: fx.GraphModule, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _user_inputs(program: Graphs) -> list[fx.Node]:
    """The placeholders of what the caller gives."""
    nodes = [n for n in graph_module_of(program).graph.nodes if n.op == "placeholder"]
    if isinstance(program, fx.GraphModule):
        return nodes
    specs = program.graph_signature.input_specs
    return [n for n, s in zip(nodes, specs, strict=True) if s.kind == InputKind.USER_INPUT]


def _leaves(program: Graphs, given: Sequence[Any]) -> list[Any]:
    """What the caller gives, as it comes to these placeholders."""
    if isinstance(program, fx.GraphModule):
        return list(program.graph.process_inputs(*given))
    return pytree.tree_leaves(tuple(given))


def flat_inputs(program: Graphs, given: Sequence[Any]) -> list[Any]:
    """Return what the placeholders stand for."""
    if isinstance(program, fx.GraphModule):
        return _leaves(program, given)
    leaves = iter(_leaves(program, given))
    state = state_of(program)
    flat = []
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            flat.append(next(leaves))
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            flat.append(state[str(spec.target)])
        elif spec.kind == InputKind.TOKEN:  # only its place in a chain of effects matters
            flat.append(torch.empty(0))
        else:
            raise ValueError(f"input '{spec.arg.name}' is a {spec.kind.name}: not supported")
    return flat


def with_own_state(program: _Program) -> _Program:
    """Return it with state of its own if it may write to that; running it must change nothing."""
    module = graph_module_of(program)
    writes = any(
        is_barrier(node) or any(True for _ in written_arguments(node))
        for node in module.graph.nodes
        if node.op.startswith("call_")
    )
    if isinstance(program, ExportedProgram):
        signature = program.graph_signature  # `.module()` writes what the graph only returns
        writes |= bool(signature.buffers_to_mutate or signature.user_inputs_to_mutate)
    return deepcopy(program, state_of(program)) if writes else program


def deepcopy(value: _Copied, tensors: Any) -> _Copied:
    """Return a deep copy of a value that holds the tensors: torch cannot copy all kinds of them."""
    rare = [tensor for tensor in tensors_of(tensors) if _is_rare(tensor)]
    copies = zip(map(id, rare), _jit.copied(rare), strict=True)
    return copy.deepcopy(value, dict(copies))


def _is_rare(tensor: torch.Tensor) -> bool:
    if type(tensor) is not torch.Tensor:
        return False
    is_strided = tensor.layout is torch.strided and not tensor.is_nested
    is_as_stored = not tensor.is_conj() and not tensor.is_neg()
    return not (is_strided and is_as_stored and _jit.has_stand_in(tensor.dtype))


def _runnable(program: Graphs) -> Callable[..., Any]:
    if isinstance(program, fx.GraphModule):
        return program
    module: Callable[..., Any] = program.module()
    return module


def checked_arguments(
    program: Graphs, example_inputs: Sequence[Any] | torch.Tensor
) -> tuple[Any, ...]:
    """Return those of a call. Raises ValueError if the program is none, or does not take them."""
    if not isinstance(program, fx.GraphModule | ExportedProgram):
        kind = type(program).__name__
        raise ValueError(f"program must be an fx.GraphModule or an ExportedProgram, not {kind}")
    given = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs
    if not isinstance(given, tuple | list):
        raise ValueError(f"example_inputs must be a tuple of arguments, not {type(given).__name__}")
    wrong = _misfit(program, tuple(given))
    if wrong:
        raise ValueError(f"example_inputs do not fit the program, {wrong}")
    return tuple(given)


def _misfit(program: Graphs, given: tuple[Any, ...]) -> str:
    """What the program takes, if that is something else; else empty."""
    nodes = _user_inputs(program)
    if isinstance(program, ExportedProgram):
        args, kwargs = pytree.tree_unflatten(nodes, program.call_spec.in_spec)
        if kwargs:
            return f"which takes {kwargs} by name: export it with all by position"
        if _paths(args) != _paths(given):
            return f"which takes {args}"
    elif wrong := misfit(program.forward, given):
        return wrong
    values = _leaves(program, given)
    if len(values) != len(nodes):
        return f"which takes {len(nodes)} values, {nodes}: there are {len(values)}"
    for node, value in zip(nodes, values, strict=True):
        takes_tensor = isinstance(node.meta.get("val"), torch.Tensor)
        if takes_tensor and not isinstance(value, torch.Tensor):
            return (
                f"which takes a tensor as {node.name}: it is a value of type {type(value).__name__}"
            )
    return ""


def _paths(arguments: tuple[Any, ...]) -> set[str]:
    """Where values stand in nested ones."""
    return {pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(arguments)[0]}


def measured(program: Graphs, given: tuple[Any, ...]) -> tuple[dict[str, Any], int]:
    """Return all that a run leaves behind, and its peak; on copies, after a first run."""
    with torch.random.fork_rng(devices=[]):
        _runnable(with_own_state(program))(*deepcopy(given, given))
    with torch.random.fork_rng(devices=[]), no_collections():
        scratch = with_own_state(program)
        run, inputs = _runnable(scratch), deepcopy(given, given)
        with measure_peak() as memory:
            result = run(*inputs)
        left = {
            "a result": result,
            "an input": inputs,
            "the state": state_of(scratch),
            "the random state": torch.get_rng_state(),
        }
    return left, memory.peak_bytes


class Baseline:
    """What the original program does, run once."""

    def __init__(self, program: Graphs, given: tuple[Any, ...]) -> None:
        self.program = program
        self.given = given

    @property
    def peak_bytes(self) -> int:
        """As measured."""
        return self._run[1]

    def compared(self, edited: Graphs) -> tuple[str, int]:
        """Return the first difference of the edited program, and its measured peak."""
        actual, peak_bytes = measured(edited, self.given)
        return first_difference(self._run[0], actual), peak_bytes

    def is_same_elsewhere(self, edited: Graphs, given: tuple[Any, ...]) -> bool:
        """Whether the edited one does the same with other inputs, if the original takes them.

        They may make no sense for it, a variance below zero: what is no number then may be any.
        """
        try:
            expected, _ = measured(self.program, given)
        except Exception:
            return True
        try:
            actual, _ = measured(edited, given)
        except Exception:
            return False
        return not first_difference(expected, actual, same=same_numbers)

    def seconds(self, a: Graphs, b: Graphs) -> tuple[float, float]:
        """Return the seconds of a call of each, measured in turns, on copies."""
        runs = [_runnable(with_own_state(program)) for program in (a, b)]
        with torch.random.fork_rng(devices=[]), no_collections():
            return seconds_in_turns(
                (runs[0], runs[1]), lambda: list(deepcopy(self.given, self.given))
            )

    @functools.cached_property
    def _run(self) -> tuple[dict[str, Any], int]:
        return measured(self.program, self.given)
