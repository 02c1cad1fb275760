"""A neutral description of a program for the planner benchmark, and the judge of its orders.

Families write programs, peers and planner order them, and one plain simulator judges every order.
It shares no code with the planner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch_ext


@dataclass(frozen=True)
class Buffer:
    """One storage. `input`: alive from the start. `kept`: a result, never freed."""

    name: str
    size_bytes: int
    input: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Op:
    """One step. Buffers and earlier ops (`after`) are named by their number in the program."""

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    workspace_bytes: int = 0
    after: tuple[int, ...] = ()


class Program:
    """Ops in their original order, their buffers, and who depends on whom."""

    def __init__(
        self, name: str, family: str, buffers: Sequence[Buffer], ops: Sequence[Op]
    ) -> None:
        self.name, self.family = name, family
        self.buffers, self.ops = tuple(buffers), tuple(ops)
        self.producer: list[int | None] = [None] * len(buffers)
        self.users: list[list[int]] = [[] for _ in buffers]  # in the original order
        self.preds: list[list[int]] = []
        self.succs: list[list[int]] = [[] for _ in ops]
        for number, op in enumerate(ops):
            producers = (self.producer[b] for b in op.reads)
            self.preds.append(sorted({*op.after, *(p for p in producers if p is not None)}))
            for pred in self.preds[-1]:
                self.succs[pred].append(number)
            for buffer in dict.fromkeys(op.reads):
                self.users[buffer].append(number)
            for buffer in op.writes:
                self.producer[buffer] = number

    def names(self, order: Iterable[int]) -> list[str]:
        """The ops' names."""
        return [self.ops[number].name for number in order]

    def output_bytes(self, op: int) -> int:
        """The total size of what the op writes."""
        return sum(self.buffers[b].size_bytes for b in self.ops[op].writes)

    def to_graph(self) -> torch_ext.Graph:
        """The same program for the planner."""
        graph = torch_ext.Graph()
        for buffer in self.buffers:
            graph.add_buffer(buffer.name, buffer.size_bytes, input=buffer.input, kept=buffer.kept)
        for op in self.ops:
            graph.add_op(
                op.name,
                reads=[self.buffers[b].name for b in op.reads],
                writes=[self.buffers[b].name for b in op.writes],
                workspace_bytes=op.workspace_bytes,
                after=[self.ops[other].name for other in op.after],
            )
        return graph

    @classmethod
    def from_text(cls, name: str, family: str, text: str) -> Program:
        """Read the text format (docs/graph-format.md) of a graph that the planner accepts."""
        buffers: list[Buffer] = []
        ops: list[Op] = []
        buffer_numbers: dict[str, int] = {}
        op_numbers: dict[str, int] = {}
        for line in text.splitlines():
            tokens = _tokens(line)
            if tokens[:1] == ["buffer"]:
                buffer_numbers[tokens[1]] = len(buffers)
                buffers.append(
                    Buffer(tokens[1], int(tokens[2]), "input" in tokens[3:], "kept" in tokens[3:])
                )
            elif tokens[:1] == ["op"]:
                parts = _op_parts(tokens[2:])
                op_numbers[tokens[1]] = len(ops)
                ops.append(
                    Op(
                        tokens[1],
                        tuple(buffer_numbers[b] for b in parts["reads"]),
                        tuple(buffer_numbers[b] for b in parts["writes"]),
                        sum(int(size) for size in parts["workspace"]),
                        tuple(op_numbers[other] for other in parts["after"]),
                    )
                )
        return cls(name, family, buffers, ops)


def _tokens(line: str) -> list[str]:
    """The words of a line up to a comment, which starts a word."""
    words = line.split()
    comment = next((i for i, word in enumerate(words) if word.startswith("#")), len(words))
    return words[:comment]


def _op_parts(tokens: Sequence[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {"reads": [], "writes": [], "workspace": [], "after": []}
    current: list[str] = []
    for token in tokens:
        if token in parts:
            current = parts[token]
        else:
            current.append(token)
    return parts


def peak_bytes(program: Program, order: Sequence[str]) -> int:
    """The judge: the highest memory while any op runs, by the memory model of csrc/README.md.

    An op runs beside everything alive, with all its outputs and its workspace; then every buffer is
    freed that is not kept and that no op still has to read. Raises ValueError if the order is not a
    permutation of the ops, or runs an op before one that it depends on.
    """
    numbers = {op.name: number for number, op in enumerate(program.ops)}
    if len(order) != len(numbers) or set(order) != set(numbers):
        raise ValueError(f"{program.name}: the order is not a permutation of the ops")
    readers_left = [len(users) for users in program.users]
    done = [False] * len(program.ops)
    live = peak = sum(
        buffer.size_bytes
        for buffer, left in zip(program.buffers, readers_left, strict=True)
        if buffer.input and (left or buffer.kept)
    )
    for number in map(numbers.__getitem__, order):
        if not all(done[pred] for pred in program.preds[number]):
            raise ValueError(f"{program.name}: {program.ops[number].name} runs too early")
        op = program.ops[number]
        live += program.output_bytes(number)
        peak = max(peak, live + op.workspace_bytes)
        for buffer in set(op.reads):
            readers_left[buffer] -= 1
        for buffer in {*op.reads, *op.writes}:
            if not readers_left[buffer] and not program.buffers[buffer].kept:
                live -= program.buffers[buffer].size_bytes
        done[number] = True
    return peak


class Recorder:
    """Writes a program down step by step, in the order in which code would execute it."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []
        self._ops: list[Op] = []
        self._kept: set[int] = set()

    def input(self, size_bytes: int) -> int:
        """A buffer that the caller passes in."""
        self._buffers.append(Buffer(f"input{len(self._buffers)}", size_bytes, input=True))
        return len(self._buffers) - 1

    def ops(
        self,
        kind: str,
        reads: Sequence[int],
        sizes: Sequence[int],
        *,
        workspace_bytes: int = 0,
        after: Sequence[int] = (),
    ) -> list[int]:
        """An op with any number of outputs, which are returned."""
        name = f"{kind}_{len(self._ops)}"
        first = len(self._buffers)
        writes = tuple(range(first, first + len(sizes)))
        self._buffers += [Buffer(f"{name}.{i}", size) for i, size in enumerate(sizes)]
        self._ops.append(
            Op(name, tuple(dict.fromkeys(reads)), writes, workspace_bytes, tuple(after))
        )
        return list(writes)

    def op(
        self, kind: str, reads: Sequence[int], size_bytes: int, *, workspace_bytes: int = 0
    ) -> int:
        """An op with one output, which is returned."""
        (written,) = self.ops(kind, reads, [size_bytes], workspace_bytes=workspace_bytes)
        return written

    def last_op(self) -> int:
        """The number of the op recorded last."""
        return len(self._ops) - 1

    def size(self, buffer: int) -> int:
        """The size of a buffer in bytes."""
        return self._buffers[buffer].size_bytes

    def keep(self, *buffers: int) -> None:
        """These are results."""
        self._kept.update(buffers)

    def keep_unread(self) -> None:
        """Every buffer that no op reads is a result."""
        read = {buffer for op in self._ops for buffer in op.reads}
        self.keep(*(b for op in self._ops for b in op.writes if b not in read))

    def program(self, name: str, family: str) -> Program:
        """What was recorded."""
        buffers = [
            Buffer(b.name, b.size_bytes, b.input, number in self._kept)
            for number, b in enumerate(self._buffers)
        ]
        return Program(name, family, buffers, self._ops)
