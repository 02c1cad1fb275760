"""A graph together with what its ops and buffers are called in the user's program.

Whatever the door, this is what reports and advice are made of. Needs no torch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from torch_ext.program.graph import Graph


@dataclasses.dataclass(frozen=True)
class Op:
    """An op, and where in the program it comes from. Unknown labels are empty."""

    name: str
    kind: str = ""  # of the operator, without its overload: "aten::relu"
    source: str = ""  # "file:line" of the user's program
    module_path: str = ""  # "layer1.0.conv1"
    workspace_bytes: int = 0
    reads: tuple[str, ...] = ()  # buffers
    writes: tuple[str, ...] = ()
    after: tuple[str, ...] = ()  # ops that must run first, those included that made an input
    # Values: a view is a value of its own in the buffer of what it views. Advice needs them.
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    constants: Mapping[str, bool | int | float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A buffer, and what a tensor in it looks like."""

    name: str
    bytes: int
    shape: tuple[int, ...] = ()
    dtype: str = ""
    is_input: bool = False
    kept: bool = False


@dataclasses.dataclass(frozen=True)
class Overwrite:
    """An op that writes its result over an argument which dies with it. All are names."""

    op: str
    result: str  # a buffer, as the argument
    argument: str


@dataclasses.dataclass(frozen=True)
class Hoist:
    """An op that finds an argument copied by an op of its own, instead of copying it itself."""

    op: str
    copy: str  # the op that copies, and the buffer it makes
    argument: str  # a value
    bytes: int  # of the copy


@dataclasses.dataclass(frozen=True)
class Slice:
    """A stretch of ops that runs part by part. All are names."""

    name: str  # the op that stands for it
    ops: tuple[str, ...]  # of the original program, in their order
    result: str  # the last value that is made in parts
    shape: tuple[int, ...]  # of it
    dimension: int  # of it, which is cut into parts
    parts: int

    def __str__(self) -> str:
        size = self.shape[self.dimension]
        return (
            f"{self.ops[0]} to {self.ops[-1]} ({len(self.ops)} ops), along dimension "
            f"{self.dimension} of {list(self.shape)}, up to {-(-size // self.parts)} of {size}"
        )


@dataclasses.dataclass(frozen=True)
class Repeat:
    """A second or later run of an op, whose first result was let go."""

    name: str  # "NAME/2"
    op: str  # NAME
    seconds: float  # of a run of it
    module_path: str
    source: str

    def __str__(self) -> str:
        where = " ".join(filter(None, (self.module_path, self.source)))
        return f"{self.name} ({self.seconds * 1e3:.2f} ms)" + (f", {where}" if where else "")


@dataclasses.dataclass(frozen=True)
class Program:
    """Ops in their original order, and the buffers between them."""

    ops: tuple[Op, ...]
    buffers: tuple[Buffer, ...]

    def to_graph(self) -> Graph:
        """Return the bare graph, for planning and simulating."""
        graph = Graph()
        for buffer in self.buffers:
            graph.add_buffer(buffer.name, buffer.bytes, input=buffer.is_input, kept=buffer.kept)
        for op in self.ops:
            graph.add_op(
                op.name,
                reads=op.reads,
                writes=op.writes,
                workspace_bytes=op.workspace_bytes,
                after=op.after,
            )
        return graph

    def of_memory(self) -> Self:
        """Return the graph without ops that touch no memory, as those that read an attribute.

        Required precedences are kept. An op that joins several others stays: without it
        each of these would be tied to all that follow.
        """
        ops: list[Op] = []
        stand_ins: dict[str, tuple[str, ...]] = {}  # what to wait for instead of an op left out
        for op in self.ops:
            waits = (each for name in op.after for each in stand_ins.get(name, (name,)))
            after = tuple(dict.fromkeys(waits))
            if op.reads or op.writes or op.workspace_bytes or len(after) > 1:
                ops.append(dataclasses.replace(op, after=after))
            else:
                stand_ins[op.name] = after
        return dataclasses.replace(self, ops=tuple(ops))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Build it from the dict that the extension module returns."""

        def frozen(entry: Mapping[str, Any]) -> dict[str, Any]:
            return {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}

        return cls(
            ops=tuple(Op(**frozen(op)) for op in fields["ops"]),
            buffers=tuple(Buffer(**frozen(buffer)) for buffer in fields["buffers"]),
        )
