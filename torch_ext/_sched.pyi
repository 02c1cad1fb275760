from collections.abc import Callable, Mapping, Sequence
from typing import Any

built_for_torch: str

class GraphBuilder:
    def __init__(self) -> None: ...
    def add_buffer(self, name: str, size_bytes: int, *, input: bool, kept: bool) -> None: ...
    def add_op(
        self,
        name: str,
        *,
        reads: list[str],
        writes: list[str],
        workspace_bytes: int,
        after: list[str],
        nanoseconds: int,
        once: bool,
        mutates: list[str],
    ) -> None: ...
    def to_text(self) -> str: ...
    def program(self) -> Program: ...

class Effects:
    def __init__(
        self,
        *,
        undeclared: str = ...,
        is_stateful: bool = ...,
        changes_metadata: bool = ...,
        draws_random_numbers: bool = ...,
        has_side_effect: bool = ...,
        is_collective: bool = ...,
        writes_outside: bool = ...,
        is_apart_again: bool = ...,
        runs_once: bool = ...,
    ) -> None: ...

class Program:
    def __init__(self) -> None: ...
    def add_buffer(
        self, name: str, size_bytes: int, *, kept: bool, shape: list[int], dtype: str
    ) -> None: ...
    def add_op(
        self,
        name: str,
        kind: str,
        *,
        inputs: list[str],
        outputs: list[str],
        makers: list[int],
        reads: list[int],
        writes: list[int],
        aliases: list[int],
        mutates: list[int],
        workspace_bytes: int,
        nanoseconds: int,
        effects: Effects,
    ) -> None: ...
    def add_overwritable(self, op: int, result: int, argument: int) -> None: ...
    def add_copyable(
        self,
        op: int,
        value: str,
        *,
        makers: list[int],
        reads: list[int],
        is_read_beside: bool,
        size_bytes: int,
        dtype: str,
    ) -> None: ...
    def add_conflict(
        self,
        earlier: int,
        later: int,
        *,
        by_statistics: bool,
        is_inside: bool,
        is_left_alone: bool,
    ) -> None: ...
    def add_tensor(
        self,
        value: str,
        *,
        shape: Sequence[int],
        strides: Sequence[int],  # none: those of a new tensor
        dtype: str,
        buffer: int,
        fills_buffer: bool,
    ) -> None: ...
    def add_slicings(
        self,
        op: int,
        tensors: Sequence[tuple[str, Sequence[str]]],
        constants: Mapping[str, bool | int | float | list[int]],
    ) -> None: ...
    def slicing(self, op: int, dimension: int) -> Slicing | None: ...
    def set_results(self, values: Sequence[str]) -> None: ...
    def set_threads(self, threads: int) -> None: ...
    def label(self, op: int, source: str, module_path: str) -> None: ...
    def fields(self) -> dict[str, Any]: ...
    def after(self, without: list[str]) -> list[list[int]]: ...
    def shuffled(self, seed: int) -> tuple[list[int], list[int], list[int]]: ...
    def plan(
        self,
        time_budget: float,
        memory_budget: int | None,
        scope: str,
        levers: Sequence[str],
        explain: bool,
    ) -> tuple[dict[str, Any], list[dict[str, str]]]: ...
    def op_nanoseconds(self) -> dict[str, int]: ...
    def repeatable(self) -> list[str]: ...
    def with_repeats(self, runs: Sequence[str]) -> Program: ...
    def plan_repeats(
        self, order: Sequence[str], *, memory_budget: int, time_budget: float, overwrite: bool
    ) -> dict[str, Any]: ...
    def plan_repeat_front(
        self, order: Sequence[str], *, count: int, time_budget: float, overwrite: bool
    ) -> list[dict[str, Any]]: ...

class OverwritingForm:
    oper: str
    overload: str
    argument: str
    form: str
    form_overload: str
    target: str
    shaped: list[str]
    typed: list[str]
    dtype: str
    no: str
    adds_no: str
    rest_like: str
    broadcasts: bool
    keeps_layout: bool

def overwriting_forms() -> list[OverwritingForm]: ...

class Need:
    @property
    def dimension(self) -> int: ...
    def of(self, begin: int, end: int, size: int) -> tuple[int, int] | None: ...
    def padded(self, begin: int, end: int, size: int) -> tuple[int, int, int, int]: ...

class Slicing:
    @property
    def needs(self) -> list[tuple[str, Need]]: ...
    @property
    def sizes(self) -> str: ...
    @property
    def sizes_place(self) -> int: ...
    @property
    def size(self) -> str: ...
    @property
    def padding(self) -> str: ...
    @property
    def padding_place(self) -> int: ...
    @property
    def changes_argument(self) -> bool: ...
    @property
    def may_be_view(self) -> bool: ...
    def argument_of(
        self, need: Need, begin: int, end: int, size: int
    ) -> tuple[int, int, int, int] | None: ...

class Stretch:
    @property
    def ops(self) -> list[int]: ...
    @property
    def dimension(self) -> int: ...
    @property
    def part_size(self) -> int: ...

class PartOp:
    @property
    def op(self) -> int: ...
    @property
    def dimension(self) -> int: ...
    @property
    def parts(self) -> list[tuple[int, int]]: ...  # as others read them
    @property
    def computed(self) -> list[tuple[int, int]]: ...  # less rows that are kept
    @property
    def overwrites(self) -> str: ...  # an argument; empty: none
    @property
    def is_placed(self) -> bool: ...
    @property
    def keeps_rows(self) -> bool: ...

class SlicedStretch:
    @property
    def ahead(self) -> list[int]: ...
    @property
    def behind(self) -> list[int]: ...
    @property
    def ops(self) -> list[PartOp]: ...
    @property
    def results(self) -> list[str]: ...

class SliceFacts:
    def __init__(self, program: Program) -> None: ...
    def learn(self, op: PartOp, *, keeps_bits: bool, workspace_bytes: int) -> None: ...

class Choice:
    @property
    def peak_bytes(self) -> int: ...
    @property
    def stretches(self) -> list[Stretch]: ...

class SliceTrial:
    def __init__(
        self,
        *,
        peak_bytes: int,
        measured_peak_bytes: int,
        slices: int,
        seconds: float,
        seconds_without: float,
        meets_budget: bool,
    ) -> None: ...

def sliced(program: Program, stretch: Stretch, facts: SliceFacts) -> SlicedStretch | None: ...
def slice_targets(peak_bytes: int, budget_bytes: int | None) -> list[int | None]: ...
def choose_stretches(
    program: Program,
    order: Sequence[int],
    facts: SliceFacts,
    targets: Sequence[int | None],
    learn: Callable[[list[Stretch]], None],
) -> list[Choice]: ...
def random_stretches(
    program: Program,
    order: Sequence[int],
    facts: SliceFacts,
    seed: int,
    learn: Callable[[list[Stretch]], None],
) -> list[Stretch]: ...
def best_choice(
    choices: Sequence[Choice],
    budget_bytes: int | None,
    attempt: Callable[[list[Stretch]], SliceTrial | None],
) -> int | None: ...
def why_no_slices(
    trials: Sequence[SliceTrial], has_budget: bool, obstacles: str
) -> dict[str, str]: ...
def slice_obstacles(program: Program, facts: SliceFacts, choices: Sequence[Choice]) -> str: ...
def floor_bytes(program: Program) -> int: ...
def sliceable_operators() -> list[str]: ...
def slicing_of(
    oper: str,
    shapes: Mapping[str, Sequence[int]],
    constants: Mapping[str, bool | int | float | Sequence[int]],
    result: Sequence[int],
    dimension: int,
) -> Slicing | None: ...
def reason(
    kind: str, *, detail: str = ..., size_bytes: int = ..., other_bytes: int = ...
) -> dict[str, str]: ...
def unit_for(size_bytes: int) -> str: ...
def in_unit(size_bytes: int, unit: str) -> str: ...
def parse_text(text: str, file: str) -> GraphBuilder: ...
def plan(
    builder: GraphBuilder,
    time_budget: float,
    memory_budget: int | None,
    scope: str,
    levers: Sequence[str],
    without: Sequence[str],
) -> dict[str, Any]: ...
def arena_bound_bytes(builder: GraphBuilder, time_budget: float) -> int: ...
def plan_addresses(
    lifetimes: list[tuple[int, int, int]], time_budget: float, enough_bytes: int
) -> tuple[int, int]: ...
def place_along(
    builder: GraphBuilder, order: list[str], time_budget: float
) -> list[tuple[str, bool, int, int, int, int]]: ...
def simulate(builder: GraphBuilder, order: list[str]) -> list[dict[str, Any]]: ...
def region_tree(builder: GraphBuilder) -> tuple[list[str], list[dict[str, Any]]]: ...
