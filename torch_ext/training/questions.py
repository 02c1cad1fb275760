"""What a program asks about values of its batch: an `if` on a mask, a length, a number of tokens.

A graph holds for the answers that it was captured with. So each question is kept, as ops that
compute from the batch alone what was asked for, and asked again before a step: other answers need
another graph. Booleans, integers and sizes may be asked for; they repeat. What depends on a
parameter, an activation or a random number is not known before the step, and is refused.
"""

import dataclasses
import operator
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch.fx.experimental import proxy_tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from torch_ext.fx.program import OUR_FOLDER, TORCH_FOLDER
from torch_ext.training.modes import of_a_graph
from torch_ext.training.updates import UnsupportedError

_aten = torch.ops.aten
_LIBRARY = os.path.dirname(os.__file__)
_MOST_VALUES = 4096  # of a tensor whose whole content is asked for

# Functions that read the content of an argument where tracing does not see it, and which argument.
# Of packed sequences it is how many go on; else a state is there, which holds no integers.
_READS = {
    torch.Tensor.tolist: 0,
    torch.Tensor.numpy: 0,
    torch.Tensor.__array__: 0,
    torch.Tensor.tensor_split: 1,
    torch.tensor_split: 1,
    torch._VF._pack_padded_sequence: 1,
    torch._VF._pad_packed_sequence: 1,
    torch._VF.lstm: 1,
    torch._VF.gru: 1,
    torch._VF.rnn_tanh: 1,
    torch._VF.rnn_relu: 1,
}


@dataclasses.dataclass(frozen=True)
class Answers:
    """The questions of a captured graph, and the answers that it holds for."""

    questions: fx.GraphModule | None  # the tensors of a batch -> answers; None: there are none
    answers: tuple[Any, ...]

    def hold(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Does this batch give the same answers? Where a question raises, it does not."""
        if self.questions is None:
            return True
        try:
            with of_a_graph():
                given: tuple[Any, ...] = self.questions(*tensors)
        except Exception:
            return False
        return given == self.answers


class Questions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects what a function asks while make_fx traces it: to be entered in that function."""

    def __init__(self, first_of_batch: int, tensors_in_batch: int) -> None:
        """`first_of_batch`: how many arguments of the function come before those of the batch."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._first_of_batch = first_of_batch
        self._reads = _Reads(self)
        self._graph = fx.Graph()
        self._batch = [self._graph.placeholder(f"batch_{i}") for i in range(tensors_in_batch)]
        self._constants = nn.Module()
        self._copies: dict[fx.Node, fx.Node] = {}
        self._asked: dict[str, tuple[fx.Node, Any]] = {}
        self._storages: dict[fx.Node, int] = {}  # of the value of a node
        self._writes: dict[int, list[fx.Node]] = {}  # of a storage: the nodes that wrote to it

    def __enter__(self) -> "Questions":
        super().__enter__()  # type: ignore[no-untyped-call]
        self._reads.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._reads.__exit__(*error)  # type: ignore[no-untyped-call]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def answers(self) -> Answers:
        """All questions, each once."""
        if not self._asked:
            return Answers(None, ())
        self._graph.output(tuple(node for node, _ in self._asked.values()))
        module = fx.GraphModule(self._constants, self._graph)
        return Answers(module, tuple(answer for _, answer in self._asked.values()))

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.data_dependent_output in op.tags:
            return self.ask(op, *args)
        if op is _aten.index.Tensor:
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self.ask(_count, index)
        elif op is _aten.masked_select.default:
            self.ask(_count, args[1])
        elif op is _aten._ctc_loss.Tensor:
            for lengths in args[2:4]:
                self.ask(_content, lengths)
        elif torch.Tag.dynamic_output_shape in op.tags:
            self.ask(_shapes, op, args, kwargs)
        self._note_storages((args, kwargs))
        result = op(*args, **kwargs)
        self._note_storages(result)
        if op._schema.is_mutable:
            self._note_writes(op, args, kwargs)
        return result

    def ask(self, question: Callable[..., Any], *args: Any) -> Any:
        """Answer a question about traced tensors, and keep it. Raises UnsupportedError."""
        with proxy_tensor.disable_proxy_modes_tracing():
            answer = question(*args)
        arguments = pytree.tree_map_only(torch.Tensor, _node_of, args)
        nodes = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, fx.Node)]
        before = _ancestors(nodes)
        for node in before:
            self._copy(node, before)
        if all(node.op != "placeholder" for node in before):
            return answer  # always the same
        if isinstance(answer, float | complex):
            _refuse("the batch, a fraction, which hardly ever repeats")
        copies = fx.node.map_arg(arguments, self._copies.__getitem__)
        key = f"{question} {copies}"
        if key not in self._asked:
            self._asked[key] = self._graph.call_function(question, copies), answer
        return answer

    def _note_storages(self, value: Any) -> None:
        for storage, node in _traced(value):
            self._storages[node] = storage

    def _note_writes(self, op: Any, args: Any, kwargs: Any) -> None:
        """Called after the op: a tensor that it wrote to goes by the op's node from then on."""
        names = (argument.name for argument in op._schema.arguments)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for argument in op._schema.arguments:
            if argument.is_write:
                for storage, node in _traced(given.get(argument.name)):
                    self._writes.setdefault(storage, []).append(node)

    def _copy(self, node: fx.Node, before: Sequence[fx.Node]) -> None:
        """Take a node over into our graph, if what it gives follows from the batch alone."""
        writers = self._writes.get(self._storages.get(node, 0), ())
        is_given = node.op in ("placeholder", "get_attr")
        if any(is_given or writer not in before for writer in writers):
            _refuse("a tensor that is written to before")
        if node in self._copies:
            return
        if node.op == "placeholder":
            position = [one for one in node.graph.nodes if one.op == "placeholder"].index(node)
            if position < self._first_of_batch:
                _refuse("a tensor that is computed from parameters or buffers")
            self._copies[node] = self._batch[position - self._first_of_batch]
            return
        if node.op == "get_attr":
            value = getattr(_tracer().root, str(node.target))
            setattr(self._constants, str(node.target), value)
        elif not _is_pure(node):
            _refuse("a random number, or of the result of an op that is not torch's own")
        self._copies[node] = self._graph.node_copy(node, self._copies.__getitem__)


class _Reads(TorchFunctionMode):
    """Asks for what functions read behind the back of tracing."""

    def __init__(self, questions: Questions) -> None:
        super().__init__()
        self._questions = questions
        self._told: list[torch.Tensor] = []  # follow from what was asked already

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        position = _READS.get(function)
        if position is not None and position < len(args):
            read = args[position]
            if isinstance(read, torch.Tensor) and not any(read is told for told in self._told):
                is_whole = position == 0
                if is_whole or not (read.is_floating_point() or read.is_complex()):
                    self._questions.ask(_content, read)
        result = function(*args, **(kwargs or {}))
        if function == torch._VF._pack_padded_sequence:
            self._told.append(result[1])
        return result


# --- questions ------------------------------------------------------------------------------------


def _count(mask: torch.Tensor) -> int:
    return int(torch.count_nonzero(mask))


def _shapes(op: Callable[..., Any], args: Any, kwargs: Any) -> list[torch.Size]:
    return [tensor.shape for tensor in pytree.tree_leaves(op(*args, **kwargs))]


def _content(tensor: torch.Tensor) -> Any:
    if tensor.numel() > _MOST_VALUES or tensor.is_floating_point() or tensor.is_complex():
        return float("nan")  # nothing that would repeat
    return tensor.tolist()


# --- tracing --------------------------------------------------------------------------------------


def users_line(frames: traceback.StackSummary) -> str:
    """The innermost line that is neither torch's nor ours, nor of Python's library."""
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith((TORCH_FOLDER, OUR_FOLDER))
        and os.path.dirname(frame.filename) not in (_LIBRARY, "")  # "": <string>
    ]
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else "unknown"


def _refuse(tensor: str) -> NoReturn:
    frames = traceback.extract_stack()
    remedy = ""
    if any(os.path.join("torch", "distributions") in frame.filename for frame in frames):
        remedy = "; give distributions validate_args=False"
    raise UnsupportedError(
        f"the step depends on the value of {tensor} (an `if`, .item() or a mask as index), which "
        f"is not known before the step: {users_line(frames)}{remedy}"
    )


def _tracer() -> Any:
    mode = proxy_tensor.get_proxy_mode()
    assert mode is not None
    return mode.tracer


def _node_of(tensor: torch.Tensor) -> fx.Node | None:
    """The node that made a traced tensor; None for a constant."""
    slot = proxy_tensor.get_proxy_slot(tensor, _tracer(), None)
    return None if slot is None else slot.proxy.node


def _traced(value: Any) -> Iterator[tuple[int, fx.Node]]:
    """The storages of all traced tensors in a value, and their nodes."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
            node = _node_of(leaf)
            if node is not None:
                yield leaf.untyped_storage()._cdata, node


def _ancestors(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """These and all nodes that they depend on, in their order."""
    found: set[fx.Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return [node for node in nodes[0].graph.nodes if node in found] if nodes else []


def _is_pure(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten":
        return False
    return torch.Tag.nondeterministic_seeded not in op.tags
