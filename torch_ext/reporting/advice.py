"""Changes of the program that would help where order cannot.

Each rule looks for a pattern in the graph, changes the graph as the program could be changed, and
has it planned again. Changes that do not lower the peak are dropped. The estimates are
conservative: the changed graph is planned with a small budget, and partial results are counted as
if none could share memory.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from torch_ext.arguments import planning
from torch_ext.program.plan import plan_graph
from torch_ext.program.program import Buffer, Op, Program
from torch_ext.reporting.findings import Findings

SECONDS = 0.5  # for each rule
LEAST_SHARE = 0.01  # of the peak; less is not worth a change

CONVOLUTIONS = {f"aten::{name}" for name in "_convolution convolution conv1d conv2d conv3d".split()}
# The value is whether the op computes statistics of the batch, as its argument or its name says;
# None if neither does.
NORMS: dict[str, Callable[[Op], object]] = {
    "aten::batch_norm": lambda op: op.constants.get("training"),
    "aten::native_batch_norm": lambda op: op.constants.get("training"),
    "aten::_native_batch_norm_legit_no_training": lambda _: False,
}
JOINS = {"aten::cat", "aten::concat", "aten::stack"}
REDUCTIONS = {
    f"aten::{name}"
    for name in "sum mean amax amin max min prod any all logsumexp norm linalg_vector_norm".split()
}
# What reduces each channel by itself: tensors joined at their channels can be reduced one by one.
POOLS = {f"aten::adaptive_{kind}_pool2d" for kind in ("avg", "max")}
IMAGES, CHANNELS = 4, {1, -3}  # dimensions; which of them
# What makes of a tensor another with the same elements.
SAME_DIMENSIONS = {
    f"aten::{name}" for name in "unsqueeze squeeze transpose permute t contiguous".split()
}
SAME_ELEMENTS = SAME_DIMENSIONS | {"aten::view", "aten::reshape", "aten::flatten"}
# What asks for shape or type and for no element.
ASKS_SHAPE = {f"aten::{name}" for name in "size dim len new_zeros new_ones new_empty".split()}
# What torch can write to its first argument.
IN_PLACE = {
    f"aten::{name}"
    for name in """
        add sub mul div relu relu6 hardtanh leaky_relu elu selu celu silu mish hardswish hardsigmoid
        sigmoid tanh exp clamp clamp_min clamp_max threshold masked_fill dropout neg abs sqrt
    """.split()
}


@dataclasses.dataclass(frozen=True)
class Advice:
    """A change of the program, and its worth."""

    title: str
    text: str
    saves_bytes: int
    where: tuple[str, ...]  # ops
    is_measured: bool = False


@dataclasses.dataclass(frozen=True)
class Change:
    """A graph as it would be, and which ops make it possible."""

    graph: Program
    where: tuple[str, ...]


def find_advice(findings: Findings) -> tuple[Advice, ...]:
    """Return what would help, the most first."""
    if not findings.graph.ops:
        return ()
    base_bytes = min(findings.plan.peak_bytes, _planned_peak(findings.graph))
    found = []
    for rule, title, text in RULES:
        change = rule(findings.graph)
        if change is None:
            continue
        saves_bytes = base_bytes - _planned_peak(change.graph)
        if saves_bytes > LEAST_SHARE * base_bytes:
            found.append(Advice(title, text, saves_bytes, change.where))
    found += _without_gradients(findings)
    return tuple(sorted(found, key=lambda advice: -advice.saves_bytes))


def _planned_peak(graph: Program) -> int:
    return plan_graph(graph.to_graph(), planning("all", SECONDS)).peak_bytes


def _without_gradients(findings: Findings) -> Iterable[Advice]:
    """What gradients cost was measured by the door, if the program may compute them."""
    with_bytes, without_bytes = findings.gradient_peak_bytes, findings.measured_original_bytes
    if with_bytes is None or without_bytes is None:
        return
    if with_bytes <= (1 + LEAST_SHARE) * without_bytes:
        return
    yield Advice(
        "Call it under torch.no_grad()",
        "Unless you do already: the parameters require gradients, so a plain call keeps "
        "activations for a backward pass. All other numbers here are without gradients.",
        with_bytes - without_bytes,
        (),
        is_measured=True,
    )


# --- looking at a graph ---------------------------------------------------------------------------


class _Links:
    """Who makes and who uses what."""

    def __init__(self, graph: Program) -> None:
        self.buffers = {buffer.name: buffer for buffer in graph.buffers}
        self.maker = {value: op for op in graph.ops for value in op.outputs}
        self.writer = {buffer: op for op in graph.ops for buffer in op.writes}
        self.readers: dict[str, list[Op]] = {name: [] for name in self.buffers}
        self.users: dict[str, list[Op]] = {}
        for op in graph.ops:
            for buffer in op.reads:
                self.readers[buffer].append(op)
            for value in op.inputs:
                self.users.setdefault(value, []).append(op)

    def made_by(self, op: Op, argument: int = 0) -> Op | None:
        """The op that made an argument."""
        return self.maker.get(op.inputs[argument]) if argument < len(op.inputs) else None

    def buffer_of(self, value: str) -> Buffer | None:
        """The buffer that holds a value and nothing else that its op made."""
        op = self.maker.get(value)
        if op is None or len(op.writes) != 1 or len(op.outputs) != 1:
            return None
        return self.buffers[op.writes[0]]

    def viewed(self, value: str) -> str:
        """The value that a view shows, or the value itself."""
        op = self.maker.get(value)
        while op is not None and op.kind in SAME_ELEMENTS and not op.writes and op.inputs:
            value = op.inputs[0]
            op = self.maker.get(value)
        return value

    def list_of(self, join: Op) -> Op | None:
        """The op that made the list that is joined; torch.fx has none."""
        made = self.made_by(join)
        return made if made is not None and made.kind == "prim::ListConstruct" else None

    def parts(self, join: Op) -> list[Buffer] | None:
        """The buffers that are joined; None if these are not all, or others hold them in order."""
        made = self.list_of(join) or join
        parts = [part for value in made.inputs if (part := self.buffer_of(self.viewed(value)))]
        known = [value for value in (*made.inputs, *join.inputs) if value in self.maker]
        makers = {self.maker[value].name for value in known}
        if len(parts) < max(2, len(made.inputs)) or not {*made.after, *join.after} <= makers:
            return None
        return parts


def _changed(
    graph: Program,
    instead: Mapping[str, Sequence[Op]],
    *,
    cut: Collection[str] = (),
    shared: Mapping[str, str] | None = None,
) -> Program:
    """The graph with other ops instead of some, at the same place.

    Who came after an op that is gone comes after what that op came after, unless it is in `cut`.
    `shared`: buffers that are no more, and which holds their content.
    """
    shared = shared or {}
    stand_ins: dict[str, tuple[str, ...]] = {}
    ops: list[Op] = []
    for op in graph.ops:
        new = instead.get(op.name, (op,))
        own = {each.name for each in new}
        for each in new:
            after = [a for name in each.after for a in stand_ins.get(name, (name,))]
            reads = dict.fromkeys(shared.get(buffer, buffer) for buffer in each.reads)
            writes = tuple(buffer for buffer in each.writes if buffer not in shared)
            ops.append(
                dataclasses.replace(
                    each, after=tuple(dict.fromkeys(after)), reads=tuple(reads), writes=writes
                )
            )
        if new and own != {op.name}:
            stand_ins[op.name] = tuple(each.name for each in new)
        elif not new:
            before = [] if op.name in cut else op.after
            stand_ins[op.name] = tuple(a for name in before for a in stand_ins.get(name, (name,)))
    written = {buffer for op in ops for buffer in op.writes}
    kept = {shared.get(b.name, b.name) for b in graph.buffers if b.kept}
    buffers = [
        dataclasses.replace(buffer, kept=buffer.name in kept)
        for buffer in graph.buffers
        if buffer.is_input or buffer.name in written
    ]
    return Program(tuple(ops), tuple(buffers))


# --- rules ----------------------------------------------------------------------------------------


def fold_norms(graph: Program) -> Change | None:
    """Batch norms that compute with running statistics, behind a convolution that only they read.

    Folded, the convolution writes what the norm would have written.
    """
    return _folded(graph, training=False)


def stop_training(graph: Program) -> Change | None:
    """Batch norms that compute statistics of the batch, where nothing is trained.

    With running statistics they could be folded.
    """
    if any("_backward" in op.kind for op in graph.ops):
        return None
    return _folded(graph, training=True)


def _folded(graph: Program, training: bool) -> Change | None:
    links = _Links(graph)
    instead: dict[str, list[Op]] = {}
    where = []
    for norm in graph.ops:
        if norm.kind not in NORMS or NORMS[norm.kind](norm) is not training or not norm.writes:
            continue
        convolution = links.made_by(norm)
        if convolution is None or convolution.kind not in CONVOLUTIONS:
            continue
        before = links.buffer_of(norm.inputs[0])
        after = max((links.buffers[name] for name in norm.writes), key=lambda b: b.bytes)
        if before is None or before.kept or before.bytes != after.bytes:
            continue
        if [op.name for op in links.readers[before.name]] != [norm.name]:
            continue
        instead[convolution.name] = [dataclasses.replace(convolution, writes=(after.name,))]
        instead[norm.name] = []
        where.append(norm.name)
    return Change(_changed(graph, instead), tuple(where)) if where else None


def reduce_early(graph: Program) -> Change | None:
    """Tensors that are joined only to be reduced.

    Instead each is reduced as soon as it is there, into one result; a partial result is scratch.
    """
    links = _Links(graph)
    instead: dict[str, list[Op]] = {}
    where = []
    for join in graph.ops:
        if join.kind not in JOINS or len(join.writes) != 1:
            continue
        joined, parts = links.buffers[join.writes[0]], links.parts(join)
        readers = links.readers[joined.name]
        reductions = [op for op in readers if _reduces_parts(op, join, joined)]
        # Where dimensions are mixed, what is reduced together may lie in several parts.
        views = [op for op in readers if not op.writes and op.kind in SAME_DIMENSIONS]
        if parts is None or joined.kept or len(reductions) != 1 or len(views) + 1 < len(readers):
            continue
        reduction = reductions[0]
        result_bytes = sum(links.buffers[buffer].bytes for buffer in reduction.writes)
        if not 0 < result_bytes < joined.bytes:
            continue
        instead[reduction.name] = _reduced_parts(links, reduction, parts, result_bytes)
        gone = [op for op in (links.list_of(join), join, *views) if op is not None]
        instead |= {op.name: [] for op in gone}
        where.append(reduction.name)
    cut = [name for name, ops in instead.items() if not ops]
    return Change(_changed(graph, instead, cut=cut), tuple(where)) if where else None


def _reduces_parts(op: Op, join: Op, joined: Buffer) -> bool:
    of_channels = len(joined.shape) == IMAGES and join.constants.get("dim") in CHANNELS
    pools_join = op.kind in POOLS and op.inputs[:1] == join.outputs
    return op.kind in REDUCTIONS or (pools_join and of_channels)


def _reduced_parts(
    links: _Links, reduction: Op, parts: Sequence[Buffer], result_bytes: int
) -> list[Op]:
    steps: list[Op] = []
    for i, part in enumerate(parts):
        reads = (part.name,) if i == 0 else (part.name, *reduction.writes)
        after = (links.writer[part.name].name, *(step.name for step in steps[:1]))
        steps.append(
            dataclasses.replace(
                reduction,
                name=f"{reduction.name}/{i}",
                reads=reads,
                writes=() if i else reduction.writes,
                workspace_bytes=reduction.workspace_bytes + (result_bytes if i else 0),
                after=after,
            )
        )
    return steps


def stack_less(graph: Program) -> Change | None:
    """Steps that are stacked only to be taken one by one again, as between two layers.

    Instead each step is handed on as it is.
    """
    links = _Links(graph)
    instead: dict[str, list[Op]] = {}
    where = []
    for stack in graph.ops:
        if stack.kind != "aten::stack" or len(stack.writes) != 1:
            continue
        parts, whole = links.parts(stack), links.buffers[stack.writes[0]]
        if parts is None or whole.kept:
            continue
        handed_on = _handed_on(links, stack, parts, instead)
        if handed_on is None:
            continue
        gone = [op for op in (links.list_of(stack), stack) if op is not None]
        instead |= handed_on | {op.name: [] for op in gone}
        where.append(stack.name)
    cut = [name for name, ops in instead.items() if not ops]
    return Change(_changed(graph, instead, cut=cut), tuple(where)) if where else None


def _handed_on(
    links: _Links,
    stack: Op,
    parts: Sequence[Buffer],
    instead: Mapping[str, Sequence[Op]],
) -> dict[str, list[Op]] | None:
    """All readers of a stack with the parts that they read; None if one reads all of it.

    `instead`: what other stacks have made of them.
    """
    part_of: dict[str, Buffer] = {}  # by value
    whole = {*stack.outputs}  # values
    found: dict[str, list[Op]] = {}
    for reader in links.readers[stack.writes[0]]:
        op = next(iter(instead.get(reader.name, [reader])), reader)
        index = op.constants.get("index")
        if op.kind in ASKS_SHAPE:
            rest = tuple(buffer for buffer in op.reads if buffer != stack.writes[0])
            found[op.name] = [dataclasses.replace(op, reads=rest)]
            continue
        if whole.intersection(op.inputs):
            if op.writes:
                return None
            if op.kind == "aten::slice" and _is_whole(op):
                whole.update(op.outputs)
                after: tuple[str, ...] = ()
            elif op.kind == "aten::select" and _same_dim(op, stack) and isinstance(index, int):
                if not -len(parts) <= index < len(parts):
                    return None
                part_of |= dict.fromkeys(op.outputs, parts[index])
                after = (links.writer[parts[index].name].name,)
            elif op.kind == "aten::unbind" and _same_dim(op, stack):
                unpack = links.users.get(op.outputs[0], [])
                if len(unpack) != 1 or len(unpack[0].outputs) != len(parts):
                    return None
                part_of |= zip(unpack[0].outputs, parts, strict=True)
                found[unpack[0].name] = []
                after = ()
            else:
                return None
            reads = tuple(part.name for v in op.outputs if (part := part_of.get(v)))
            found[op.name] = [dataclasses.replace(op, reads=reads, after=after)] if reads else []
            continue
        if op.name in found:
            continue
        read = [part for value in op.inputs if (part := part_of.get(value))]
        if not read:
            return None
        if not op.writes:
            part_of |= dict.fromkeys(op.outputs, read[0])
        others = [buffer for buffer in op.reads if buffer != stack.writes[0]]
        reads = tuple(dict.fromkeys([*others, *(part.name for part in read)]))
        after = (*op.after, *(links.writer[part.name].name for part in read))
        found[op.name] = [dataclasses.replace(op, reads=reads, after=after)]
    return found or None


def _same_dim(op: Op, stack: Op) -> bool:
    return op.constants.get("dim") == stack.constants.get("dim") is not None


def _is_whole(slice_op: Op) -> bool:
    constants = slice_op.constants
    return constants.get("start", 0) == 0 and constants.get("end", 2**63 - 1) == 2**63 - 1


def write_in_place(graph: Program) -> Change | None:
    """Results that could take the place of an argument nobody else reads."""
    links = _Links(graph)
    shared: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for op in graph.ops:
        if op.kind not in IN_PLACE or len(op.writes) != 1 or not op.inputs:
            continue
        old, new = links.buffer_of(op.inputs[0]), links.buffers[op.writes[0]]
        if (
            old is None
            or old.kept
            or [reader.name for reader in links.readers[old.name]] != [op.name]
        ):
            continue
        if (old.bytes, old.shape, old.dtype) != (new.bytes, new.shape, new.dtype):
            continue
        shared[new.name] = shared.get(old.name, old.name)
        sizes[op.name] = new.bytes
    if not shared:
        return None
    where = sorted(sizes, key=lambda name: -sizes[name])
    return Change(_changed(graph, {}, shared=shared), tuple(where))


def update_early(graph: Program) -> Change | None:
    """Gradients that are results of the graph, so that all wait for the last.

    An update within the graph uses each up at once.
    """
    links = _Links(graph)
    backward = {op.name for op in graph.ops if "_backward" in op.kind}
    for op in graph.ops:
        if not backward.isdisjoint(op.after):
            backward.add(op.name)
    gradients = {
        buffer.name
        for buffer in graph.buffers
        if buffer.kept
        and buffer.name in links.writer
        and links.writer[buffer.name].name in backward
    }
    if len(gradients) < 2:
        return None
    buffers = tuple(
        dataclasses.replace(buffer, kept=buffer.kept and buffer.name not in gradients)
        for buffer in graph.buffers
    )
    largest = sorted(gradients, key=lambda name: (-links.buffers[name].bytes, name))
    where = dict.fromkeys(links.writer[buffer].name for buffer in largest)
    return Change(Program(graph.ops, buffers), tuple(where))


RULES: tuple[tuple[Callable[[Program], Change | None], str, str], ...] = (
    (
        fold_norms,
        "Freeze the model",
        "torch.jit.freeze folds a batch norm in inference into the convolution before it, so that "
        "two results become one. Outputs may change in the last places.",
    ),
    (
        stop_training,
        "Switch to inference and freeze",
        "Batch norms compute statistics of the batch here, as in training. If that is not meant, "
        "and they keep running statistics: after model.eval() torch.jit.freeze folds them into the "
        "convolutions before them. Outputs change.",
    ),
    (
        reduce_early,
        "Reduce the parts, then join them",
        "These tensors are joined only to be reduced. Reduced one by one, none has to wait for the "
        "others. Sums may change in the last places.",
    ),
    (
        stack_less,
        "Run all layers for one step before the next step",
        "The steps of a layer are stacked only to be taken one by one again. In a time-major loop "
        "each step is handed on, and the stack is not needed.",
    ),
    (
        write_in_place,
        "Write in place",
        "Nobody else reads the argument of these operations, so their results could take its "
        "place: inplace=True, or the variant with an underscore. Not where gradients are needed.",
    ),
    (
        update_early,
        "Update in the same step",
        "The gradients are results, so all of them wait for the last. With the optimizer in the "
        "graph (torch_ext.training_step) each is used up at once.",
    ),
)
