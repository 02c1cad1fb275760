"""Runs a program as it is and reordered, from the same state, and compares all that they do."""

import contextlib
import copy
import dataclasses
import functools
import io
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.jit._recursive import wrap_cpp_module

import torch_ext
from tests.fuzz.helpers import ON_PURPOSE
from tests.fuzz.source import Program
from torch_ext._native import _jit

RULES = ("mutation", "statistics", "random", "side_effect", "outlives", "unknown", "stateful")
CALLS = 3  # the executor profiles in the first, optimises in the second and is settled in the third
SHUFFLES = 3
_RANDOM_SEED = 1234
_ATTRIBUTES = ("last", "parts", "named", "count", "training")

Inputs = tuple[Any, ...]


class InvalidProgramError(Exception):
    """The program does not compile, fails by accident, or does not do the same thing twice."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A variant that does something else than the program."""

    variant: str
    difference: str

    @property
    def kind(self) -> tuple[str, str]:
        """What stays the same while a program is made smaller: not the place, not the numbers."""
        return self.variant.split(" ")[0], self.difference.split(": ")[-1]


@dataclasses.dataclass
class Verdict:
    """What the check of one program found."""

    variants: int = 0
    moved_by_optimize: bool = False
    moved_by_shuffle: bool = False
    refused: str = ""  # why the program may not be reordered at all
    failure: Failure | None = None


# --- running --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Call:
    """One call and everything it left behind."""

    inputs: Inputs
    state: tuple[Any, ...]
    output: Any
    error: str
    random_state: torch.Tensor
    printed: str


def run(module: torch.jit.ScriptModule, inputs: Inputs) -> list[Call]:
    """Each call has its own copy of the module's state and of the inputs."""
    return [_call(copy.deepcopy(module), copy.deepcopy(inputs)) for _ in range(CALLS)]


def _call(module: torch.jit.ScriptModule, inputs: Inputs) -> Call:
    output, error = None, ""
    torch.default_generator.manual_seed(_RANDOM_SEED)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            output = module(*inputs)
        except Exception as raised:
            error = _message(raised)
    random_state = torch.get_rng_state()
    return Call(inputs, _state(module), output, error, random_state, printed.getvalue())


def _message(error: Exception) -> str:
    """The last line: those before tell where it was raised, which changes with the order."""
    return str(error).strip().splitlines()[-1]


def _state(module: torch.jit.ScriptModule) -> tuple[Any, ...]:
    tensors = module.state_dict()
    attributes = [getattr(module, name) for name in _ATTRIBUTES if hasattr(module, name)]
    counting = [module.counting.calls] if hasattr(module, "counting") else []
    return (tensors, attributes, counting)


# --- comparing ------------------------------------------------------------------------------------


def difference(expected: Sequence[Call], actual: Sequence[Call]) -> str:
    """The first difference between two runs, its kind behind the last colon; empty if none."""
    for number, (a, b) in enumerate(zip(expected, actual, strict=True), start=1):
        if found := _Comparer().compare_calls(a, b):
            return f"call {number}: {found}"
    return ""


class _Comparer:
    def __init__(self) -> None:
        self.storages_a: dict[int, int] = {}
        self.storages_b: dict[int, int] = {}

    def compare_calls(self, a: Call, b: Call) -> str:
        if a.error != b.error:
            return f"{a.error!r} became {b.error!r}: exception"
        if a.printed != b.printed:
            return f"{a.printed!r} became {b.printed!r}: print-out"
        if not torch.equal(a.random_state, b.random_state):
            return "random state"
        return (
            self.compare(a.inputs, b.inputs, "inputs")
            or self.compare(a.state, b.state, "state")
            or self.compare(a.output, b.output, "output")
        )

    def compare(self, a: Any, b: Any, where: str) -> str:
        if type(a) is not type(b):
            return f"{where}: type"
        if isinstance(a, torch.Tensor):
            return self.compare_tensors(a, b, where)
        if isinstance(a, dict):
            if list(a) != list(b):
                return f"{where}: keys"
            pairs = [(key, a[key], b[key]) for key in a]
        elif isinstance(a, list | tuple):
            if len(a) != len(b):
                return f"{where}: length"
            pairs = [(i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
        else:
            return "" if a == b else f"{where}: number"
        for key, x, y in pairs:
            if found := self.compare(x, y, f"{where}[{key!r}]"):
                return found
        return ""

    def compare_tensors(self, a: torch.Tensor, b: torch.Tensor, where: str) -> str:
        for name in ("dtype", "shape", "requires_grad"):
            if getattr(a, name) != getattr(b, name):
                return f"{where}: {name}"
        if (a.stride(), a.storage_offset()) != (b.stride(), b.storage_offset()):
            return f"{where}: strides"
        # The n-th storage met on one side must be the n-th met on the other.
        label = len(self.storages_a)
        seen_a = self.storages_a.setdefault(a.untyped_storage()._cdata, label)
        seen_b = self.storages_b.setdefault(b.untyped_storage()._cdata, label)
        if seen_a != seen_b:
            return f"{where}: aliasing"
        return "" if _same_bits(a, b) else f"{where}: values"


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.detach(), b.detach()
    if not a.is_floating_point():
        return torch.equal(a, b)
    if torch.equal(a.view(torch.int32), b.view(torch.int32)):
        return True
    nan = a.isnan()  # NaN equals NaN
    a, b = a.masked_fill(nan, 0), b.masked_fill(b.isnan(), 0)
    return torch.equal(nan, b.isnan() | nan) and torch.equal(
        a.view(torch.int32), b.view(torch.int32)
    )


# --- variants -------------------------------------------------------------------------------------


def check(program: Program, shuffles: int = SHUFFLES) -> Verdict:
    """Compares the program with every kind of reordered variant, up to the first failure."""
    verdict = Verdict()
    with _quiet():
        original = _Original(program)
        for variant, make in _variants(original, shuffles, verdict):
            verdict.variants += 1
            if found := make():
                original.require_determinism()
                verdict.failure = Failure(variant, found)
                break
    return verdict


def check_without(program: Program, without: Sequence[str], shuffles: int = SHUFFLES) -> Verdict:
    """Compares with random orders for which some rules are off.

    What fails with all rules too says nothing about these and does not count.
    """
    verdict = Verdict()
    with _quiet():
        original = _Original(program)
        verdict.failure = _shuffle_failure(original, shuffles, without, verdict)
        if verdict.failure:
            original.require_determinism()
            if _shuffle_failure(original, shuffles, (), verdict):
                verdict.failure = None
    return verdict


def _shuffle_failure(
    original: "_Original", shuffles: int, without: Sequence[str], verdict: Verdict
) -> Failure | None:
    for seed in range(shuffles):
        module = original.shuffled(seed, without, verdict)
        if module is None:
            break
        verdict.variants += 1
        if found := original.difference_to(module):
            return Failure(f"shuffle {seed} without {' '.join(without)}", found)
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


class _Original:
    """The program as it is: the module, and what its calls did."""

    def __init__(self, program: Program) -> None:
        self.program = program
        try:
            self.module, self.inputs = program.compile()
        except Exception as raised:
            raise InvalidProgramError(f"does not compile: {raised}") from raised
        self.calls = run(self.module, self.inputs)
        error = self.calls[0].error
        if error and ON_PURPOSE not in error:
            raise InvalidProgramError(f"fails by accident: {error}")

    def require_determinism(self) -> None:
        if found := self.difference_to(self.program.compile()[0]):
            raise InvalidProgramError(f"does not do the same thing twice: {found}")

    def difference_to(self, module: torch.jit.ScriptModule) -> str:
        return difference(self.calls, run(module, self.inputs))

    def shuffled(
        self, seed: int, without: Sequence[str], verdict: Verdict
    ) -> torch.jit.ScriptModule | None:
        """None if torch's alias analysis refuses the graph."""
        try:
            cpp_module = _jit.shuffle(self.module._c, seed, list(without))
        except RuntimeError as error:
            verdict.refused = str(error).splitlines()[0]
            return None
        module: torch.jit.ScriptModule = wrap_cpp_module(cpp_module)  # type: ignore[no-untyped-call]
        return module


def _variants(
    original: _Original, shuffles: int, verdict: Verdict
) -> Iterator[tuple[str, Callable[[], str]]]:
    """Names of variants, each with what tells its difference to the original."""
    chosen = random.Random(original.program.seed)
    orders = set()
    for seed in range(shuffles):
        module = original.shuffled(seed, (), verdict)
        if module is None:
            break
        orders.add(str(module.graph))
        verdict.moved_by_shuffle = len(orders) > 1
        yield f"shuffle {seed}", functools.partial(original.difference_to, module)
        if seed == 0 and original.program.can_be_saved and chosen.random() < 0.5:
            loaded = _saved_and_loaded(module)
            yield "loaded shuffle 0", functools.partial(original.difference_to, loaded)
    optimized: list[torch.jit.ScriptModule] = []
    yield "optimize", functools.partial(_check_optimize, original, verdict, optimized)
    for module in optimized:
        if original.program.can_be_saved:
            loaded = _saved_and_loaded(module)
            yield "loaded optimize", functools.partial(original.difference_to, loaded)
    yield "pass", functools.partial(_difference_in_the_pass, original)


def _check_optimize(
    original: _Original, verdict: Verdict, optimized: list[torch.jit.ScriptModule]
) -> str:
    """Also: nothing of the caller's changes, and the peak does not rise."""
    inputs, module = copy.deepcopy(original.inputs), copy.deepcopy(original.module)
    before = copy.deepcopy((inputs, _state(module)))
    torch.default_generator.manual_seed(_RANDOM_SEED)
    random_state = torch.get_rng_state()
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            result, report = torch_ext.optimize(module, inputs, time_budget=0.05)
    except Exception as raised:
        error, expected = _message(raised), original.calls[0].error
        return "" if error == expected else f"{expected!r} became {error!r}: exception"
    if printed.getvalue():
        return f"{printed.getvalue()!r} is shown while optimizing: print-out"
    if found := _Comparer().compare(before, (inputs, _state(module)), "the caller's"):
        return found
    if not torch.equal(random_state, torch.get_rng_state()):
        return "the caller's random state"
    peak, original_peak = report.measured_peak_bytes, report.measured_original_peak_bytes
    if peak is not None and original_peak is not None and peak > original_peak:
        return f"{original_peak} bytes became {peak}: peak"
    if report.identical is False:
        return f"{report.reason}: verification"
    if result is module:
        return ""
    verdict.moved_by_optimize = report.moved_ops > 0
    optimized.append(result)
    return original.difference_to(result)


def _difference_in_the_pass(original: _Original) -> str:
    module, _ = original.program.compile()  # its executor has not made its plan yet
    with torch_ext.enabled():
        return original.difference_to(module)


def _saved_and_loaded(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    loaded: torch.jit.ScriptModule = torch.jit.load(file)  # type: ignore[no-untyped-call]
    return loaded
