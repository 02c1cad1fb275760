"""The writer of a program: what is alive, what is known of it, how a statement is added.

What is known of a value (may it be written to, what may share its memory) keeps programs valid: no
op fails by accident, no result depends on memory that nobody wrote or on the speed of a thread.
"""

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from tests.fuzz.source import Statement

Shape = tuple[int, ...]

UNARY = ("sin", "cos", "tanh", "sigmoid", "relu", "abs", "neg")


@dataclasses.dataclass(eq=False)
class Value:
    """A tensor: an expression that gives it, and what is known of it."""

    name: str
    shape: Shape
    kind: str = "float"  # or int, bool
    roots: set[int] = dataclasses.field(default_factory=set)  # what it may share memory with
    writable: bool = True  # no two elements are the same memory
    contiguous: bool = True
    assignable: bool = False  # a local name, which may get another value
    uses: int = 0


@dataclasses.dataclass(eq=False)
class Container:
    """A list of float tensors of one shape, or a dict of such with the keys a, b, ..."""

    name: str
    shape: Shape
    roots: set[int]
    length: int  # at least
    block: int  # where it was made: elsewhere its length is not followed
    writable: bool = True
    contiguous: bool = True
    frozen: bool = False  # is being iterated over


class Impossible(Exception):  # noqa: N818
    """A statement does not find what it needs."""


Kind = Callable[["Writer"], None]  # writes one statement, or a few that belong together
Groups = Mapping[str, Sequence[tuple[float, Kind]]]  # kinds and how often each occurs


class Writer:
    """A program as far as it is written: its statements, and the values that are alive."""

    def __init__(self, seed: int, groups: Groups) -> None:
        self.random = random.Random(seed)
        self.statements: list[Statement] = []
        self.tensors: list[Value] = []
        self.lists: list[Container] = []
        self.dicts: list[Container] = []
        self.ints: list[str] = []
        self.bools: list[str] = []
        self.locals: list[str] = []  # the ints and bools that may be assigned to
        self.kept: list[str] = []  # what is returned in any case
        self.locked: set[int] = set()  # memory that a task may be reading
        self.task_runs = False
        self.names = 0
        self.roots = 0
        self.blocks = [0]
        self.loops = 0
        self.autocasts = 0
        self.budget = self.random.choice((6, 10, 16, 25))
        self.rows, self.columns = self.random.choice(
            ((2, 3), (4, 4), (4, 6), (8, 8), (16, 8), (16, 64), (64, 64))
        )
        chosen = {"arithmetic", *self.random.sample(sorted(groups), self.random.randint(3, 9))}
        self.metadata = "metadata" in chosen
        self.kinds: list[Kind] = []
        self.weights: list[float] = []
        for group in sorted(chosen):
            factor = self.random.choice((0.5, 1.0, 2.0))
            for weight, kind in groups[group]:
                self.kinds.append(kind)
                self.weights.append(weight * factor)

    # --- drawing ----------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def number(self) -> str:
        return self.random.choice(("0.5", "-0.5", "0.25", "1.5", "2.0", "-1.0"))

    def pick(
        self,
        *shapes: Shape,
        rank: int | None = None,
        kind: str = "float",
        writable: bool = False,
        assignable: bool = False,
        contiguous: bool = False,
    ) -> Value:
        """A value that is alive, more often one of the last, more often one not used yet."""
        candidates = [
            v
            for v in self.tensors
            if v.kind == kind
            and (not shapes or v.shape in shapes)
            and (rank is None or len(v.shape) == rank)
            and (not writable or (v.writable and v.roots.isdisjoint(self.locked)))
            and (not assignable or v.assignable)
            and (not contiguous or (v.contiguous and not self.metadata))
        ]
        if not shapes and kind == "float" and not assignable:
            candidates += [
                v
                for v in self.elements()
                if (rank is None or len(v.shape) == rank)
                and (not writable or (v.writable and v.roots.isdisjoint(self.locked)))
                and (not contiguous or (v.contiguous and not self.metadata))
            ]
        if not candidates:
            raise Impossible
        weights = [(1 + i) * (3 if v.uses == 0 else 1) for i, v in enumerate(candidates)]
        value = self.random.choices(candidates, weights)[0]
        value.uses += 1
        return value

    def elements(self) -> Iterator[Value]:
        """Some element of each list and dict."""
        for container in self.lists + self.dicts:
            if container.length == 0:
                continue
            at = self.random.randrange(container.length)
            key = str(at) if container in self.lists else f'"{"abcd"[at]}"'
            name = f"{container.name}[{key}]"
            yield Value(
                name,
                container.shape,
                roots=container.roots,
                writable=container.writable,
                contiguous=container.contiguous,
            )

    def matrix(self, writable: bool = False, contiguous: bool = False) -> Value:
        return self.pick(rank=2, writable=writable, contiguous=contiguous)

    def some_list(self, changes: bool = False, shape: Shape | None = None) -> Container:
        candidates = [
            c
            for c in self.lists
            if not (changes and (c.frozen or not c.roots.isdisjoint(self.locked)))
            and (shape is None or c.shape == shape)
        ]
        if not candidates:
            raise Impossible
        return self.random.choice(candidates)

    def fresh_text(self, shape: Shape) -> str:
        """An expression of new memory."""
        try:
            v = self.pick(shape)
        except Impossible:
            return f"torch.full({list(shape)}, {self.number()})"
        choice = self.random.randrange(4)
        if choice == 0:
            return f"{v.name} * {self.number()}"
        if choice == 1:
            return f"torch.{self.random.choice(UNARY)}({v.name})"
        if choice == 2:
            return f"{v.name}.clone()"
        return f"{v.name} {self.random.choice('+-')} {self.pick(shape).name}"

    def operand(self, target: Value) -> str:
        """What may be the second operand of a write: never overlaps the target in part."""
        choice = self.random.random()
        if choice < 0.3:
            return self.number()
        if self.loops == 0 and choice < 0.7:
            with contextlib.suppress(Impossible):
                v = self.pick(target.shape, ())
                if v.roots.isdisjoint(target.roots) or v is target:
                    return v.name
        return f"({self.fresh_text(target.shape)})"

    def condition(self) -> str:
        choice = self.random.randrange(6)
        if choice == 0 and self.bools:
            return f"{self.random.choice(('', 'not '))}{self.random.choice(self.bools)}"
        if choice == 1:
            return f"{self.random.choice(self.ints)} > {self.random.randrange(5)}"
        if choice == 2 and self.lists:
            return f"len({self.random.choice(self.lists).name}) > {self.random.randrange(4)}"
        if choice == 3:
            return self.random.choice(("self.training", "n % 2 == 1"))
        v = self.pick()
        return f"bool({v.name}.{self.random.choice(('sum', 'mean'))}() > {self.number()})"

    def require_no_task(self) -> None:
        """A task that nobody waits for outlives the module, and TorchScript does not survive it."""
        if self.task_runs:
            raise Impossible

    # --- writing ----------------------------------------------------------------------------------

    def emit(self, text: str, simplest: str = "") -> None:
        self.statements.append(Statement(text, simplest=simplest))
        self.budget -= 1

    def new_name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def new_root(self) -> set[int]:
        self.roots += 1
        return {self.roots}

    def fresh(self, text: str, shape: Shape, kind: str = "float") -> Value:
        """A new value in new memory; at times under the name of an old one."""
        old = [v for v in self.tensors if v.assignable and (v.shape, v.kind) == (shape, kind)]
        if old and self.chance(0.2):
            v = self.random.choice(old)
            self.assign(v, text, self.new_root())
            return v
        return self.define(text, Value("", shape, kind, self.new_root()))

    def define(self, text: str, value: Value) -> Value:
        value.name = self.new_name("v")
        value.assignable = True
        self.emit(f"{value.name} = {self._in_float32(value, text)}", simplest_line(value))
        self.tensors.append(value)
        return value

    def _in_float32(self, value: Value, text: str) -> str:
        """What has a name has the dtype that all ops accept together."""
        return f"({text}).float()" if self.autocasts and value.kind == "float" else text

    def assign(self, value: Value, text: str, roots: set[int]) -> None:
        self.emit(f"{value.name} = {self._in_float32(value, text)}")
        value.roots = value.roots | roots if len(self.blocks) > 1 else roots
        value.uses = 0

    def view(self, of: Value, text: str, shape: Shape, *, overlaps: bool = False) -> Value:
        """A value in the memory of another. Nothing is said of strides: not contiguous."""
        return self.define(
            text,
            Value("", shape, of.kind, set(of.roots), of.writable and not overlaps, False),
        )

    def alias(self, of: Value, text: str) -> Value:
        return self.define(
            text, Value("", of.shape, of.kind, set(of.roots), of.writable, of.contiguous)
        )

    def new_int(self, text: str) -> None:
        name = self.new_name("i")
        self.emit(f"{name} = {text}", f"{name} = 1")
        self.ints.append(name)
        self.locals.append(name)

    def new_bool(self, text: str) -> None:
        name = self.new_name("b")
        self.emit(f"{name} = {text}", f"{name} = True")
        self.bools.append(name)
        self.locals.append(name)

    @contextlib.contextmanager
    def block(self, header: str, loop: bool = False) -> Iterator[None]:
        pools: list[list[object]] = [
            self.tensors,  # type: ignore[list-item]
            self.lists,  # type: ignore[list-item]
            self.dicts,  # type: ignore[list-item]
            self.ints,  # type: ignore[list-item]
            self.bools,  # type: ignore[list-item]
            self.locals,  # type: ignore[list-item]
        ]
        lengths = [len(pool) for pool in pools]
        outer, self.statements = self.statements, []
        self.names += 1
        self.blocks.append(self.names)
        self.loops += loop
        yield
        self.carry_out(lengths[0])
        self.loops -= loop
        self.blocks.pop()
        body = tuple(self.statements) or (Statement("pass"),)
        self.statements = outer
        self.statements.append(Statement(header, body))
        for pool, length in zip(pools, lengths, strict=True):
            del pool[length:]

    @contextlib.contextmanager
    def autocast(self, enabled: bool) -> Iterator[None]:
        """A region that computes products in another dtype."""
        options = "dtype=torch.bfloat16" + ("" if enabled else ", enabled=False")
        self.autocasts += 1
        with self.block(f'with torch.autocast("cpu", {options}):'):
            yield
        self.autocasts -= 1

    def carry_out(self, outer: int) -> None:
        """What a block computed is used outside of it, or nobody would notice."""
        inner = [v for v in self.tensors[outer:] if v.uses == 0 and v.kind == "float"][-2:]
        for v in inner:
            targets = [t for t in self.tensors[:outer] if t.assignable and t.kind == "float"]
            same = [t for t in targets if t.shape == v.shape]
            if same and self.chance(0.5):
                t = self.random.choice(same)
                self.assign(t, f"{t.name} + {v.name}", self.new_root())
            elif targets:
                t = self.random.choice(targets)
                self.assign(t, f"{t.name} + {v.name}.sum()", self.new_root())

    def body(self, most: int) -> None:
        for _ in range(self.random.randint(1, most)):
            self.one()

    def one(self) -> None:
        """One statement, or a few that belong together."""
        for _ in range(20):
            kind = self.random.choices(self.kinds, self.weights)[0]
            with contextlib.suppress(Impossible):
                kind(self)
                return

    def results(self, last: bool = False) -> str:
        """What is returned: two tensors, a list, a dict, a number."""
        first, second = self.pick().name, self.pick().name
        seen = [self.pick().name]
        if last:
            seen += self.kept
            for v in self.tensors:
                if v.uses == 0 or self.chance(0.2):
                    seen.append(f"{v.name}.to(torch.float32).sum()")
        self.random.shuffle(seen)
        values = f'{{"a": {self.pick().name}, "b": {self.pick().name}}}'
        return f"{first}, {second}, [{', '.join(seen)}], {values}, {self.random.choice(self.ints)}"


def simplest(value: Value) -> str:
    if value.kind == "float":
        return f"torch.ones({list(value.shape)})"
    dtype = {"int": "torch.int64", "bool": "torch.bool"}[value.kind]
    return f"torch.ones({list(value.shape)}, dtype={dtype})"


def simplest_line(value: Value) -> str:
    return f"{value.name} = {simplest(value)}"
