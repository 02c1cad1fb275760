"""The door of TorchScript: a scripted module, shuffled, optimized, in the pass, loaded."""

import contextlib
import copy
import functools
import io
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.jit._recursive import wrap_cpp_module
from torch.utils import _pytree as pytree

import torch_ext
from tests.fuzz.checking import (
    OVERWRITE_RULES,
    RANDOM_SEED,
    RULES,
    InvalidProgramError,
    Original,
    Verdict,
    bound_fault,
    message,
)
from tests.fuzz.comparing import Call, Comparer, difference
from tests.fuzz.source import Program
from torch_ext._native import _jit

CALLS = 3  # the executor profiles in the first, optimises in the second and is settled in the third
_ATTRIBUTES = ("last", "parts", "named", "count", "training")

Inputs = tuple[Any, ...]


# What an edited program may be called with and how, beside what it was planned for.
_MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "as doubles": contextlib.nullcontext,
    "of one row": contextlib.nullcontext,
    "transposed": contextlib.nullcontext,
    "with gradients": torch.enable_grad,
    "under autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def _given(mode: str, tensor: torch.Tensor) -> torch.Tensor:
    """What stands for the tensor in a mode."""
    if mode == "as doubles":
        return tensor.double()
    if mode == "of one row" and tensor.dim() == 2:
        return tensor[:1].clone()
    if mode == "transposed" and tensor.dim() == 2:
        return tensor.t().contiguous().t()
    if mode == "with gradients":
        return tensor.detach().requires_grad_()
    return tensor


def _run(module: torch.jit.ScriptModule, inputs: Inputs) -> list[Call]:
    """Each call has its own copy of the module's state and of the inputs."""
    return [_call(copy.deepcopy(module), copy.deepcopy(inputs)) for _ in range(CALLS)]


def _call(module: torch.jit.ScriptModule, inputs: Inputs) -> Call:
    output, error = None, ""
    torch.default_generator.manual_seed(RANDOM_SEED)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            output = module(*inputs)
        except Exception as raised:
            error = message(raised)
    random_state = torch.get_rng_state()
    return Call(inputs, _state(module), output, error, random_state, printed.getvalue())


def _state(module: torch.jit.ScriptModule) -> tuple[Any, ...]:
    tensors = module.state_dict()
    attributes = [getattr(module, name) for name in _ATTRIBUTES if hasattr(module, name)]
    counting = [module.counting.calls] if hasattr(module, "counting") else []
    return (tensors, attributes, counting)


class Scripted(Original):
    """A scripted module."""

    rules = (*RULES, *OVERWRITE_RULES)

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        try:
            self.module, self.inputs = program.compile()
        except Exception as raised:
            raise InvalidProgramError(f"does not compile: {raised}") from raised
        self.calls = _run(self.module, self.inputs)
        self.require_expected(self.calls[0].error)

    def difference_to(self, variant: torch.jit.ScriptModule) -> str:
        return difference(self.calls, _run(variant, self.inputs))

    def made_again(self) -> torch.jit.ScriptModule:
        return self.program.compile()[0]

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

    def _difference_in_modes(self, variant: torch.jit.ScriptModule) -> str:
        """Calls that the program itself does not take say nothing."""
        for mode in _MODES:
            if mode == "of one row" and "resize_" in self.program.source:
                continue  # to more than there is: memory that nobody wrote to
            expected = self._call_in_mode(mode, self.module)
            if expected.error:
                continue
            if found := Comparer().compare_calls(expected, self._call_in_mode(mode, variant)):
                again = [self._call_in_mode(mode, self.made_again()) for _ in range(10)]
                if any(Comparer().compare_calls(expected, call) for call in again):
                    continue  # not even to itself: it reads memory that nobody wrote to, or the
                    # executor runs in advance, once, what does not say that it draws
                return f"{mode}: {found}"
        return ""

    def _call_in_mode(self, mode: str, module: torch.jit.ScriptModule) -> Call:
        given = functools.partial(_given, mode)
        inputs = pytree.tree_map_only(torch.Tensor, given, copy.deepcopy(self.inputs))
        with _MODES[mode]():
            return _call(copy.deepcopy(module), inputs)

    def difference_to_edited(self, variant: torch.jit.ScriptModule) -> str:
        return self.difference_to(variant) or self._difference_in_modes(variant)

    def _shuffled_by(
        self, shuffle: Callable[..., Any], seed: int, *options: object
    ) -> torch.jit.ScriptModule | None:
        """The module with edits at random; None if the program raises."""
        if self.calls[0].error:
            return None
        torch.default_generator.manual_seed(RANDOM_SEED)
        cpp_module = shuffle(self.module._c, copy.deepcopy(self.inputs), seed, *options)
        module: torch.jit.ScriptModule = wrap_cpp_module(cpp_module)  # type: ignore[no-untyped-call]
        return module

    def edited(self, seed: int, without: Sequence[str]) -> torch.jit.ScriptModule | None:
        """With overwrites."""
        return self._shuffled_by(_jit.shuffle_overwriting, seed, list(without))

    def sliced(self, seed: int) -> torch.jit.ScriptModule | None:
        """With slices."""
        return self._shuffled_by(_jit.shuffle_slicing, seed)

    def repeating(self, seed: int) -> torch.jit.ScriptModule | None:
        """With repeats."""
        return self._shuffled_by(_jit.shuffle_repeating, seed)

    def variants(self, shuffles: int, verdict: Verdict) -> Iterator[tuple[str, Callable[[], str]]]:
        chosen = random.Random(self.program.seed)
        orders = set()
        for seed in range(shuffles):
            module = self.shuffled(seed, (), verdict)
            if module is None:
                break
            orders.add(str(module.graph))
            verdict.moved_by_shuffle = len(orders) > 1
            yield f"shuffle {seed}", functools.partial(self.difference_to, module)
            if seed == 0 and self.program.can_be_saved and chosen.random() < 0.5:
                loaded = _saved_and_loaded(module)
                yield "loaded shuffle 0", functools.partial(self.difference_to, loaded)
            differs = self.difference_to_edited if seed == 0 else self.difference_to
            if edited := self.edited(seed, ()):
                yield f"overwriting {seed}", functools.partial(differs, edited)
            if sliced := self.sliced(seed):
                yield f"slicing {seed}", functools.partial(differs, sliced)
            if repeating := self.repeating(seed):
                yield f"repeating {seed}", functools.partial(differs, repeating)
        optimized: list[torch.jit.ScriptModule] = []
        yield "optimize", functools.partial(self._check_optimize, verdict, optimized, {})
        if chosen.random() < 0.25:
            least = {"memory_budget": 1, "levers": ("order", "overwrite", "repeat")}
            yield (
                "optimize to the least",
                functools.partial(self._check_optimize, verdict, optimized, least),
            )
        if chosen.random() < 0.25:
            yield (
                "optimize with addresses",
                functools.partial(self._check_optimize, verdict, optimized, {"addresses": True}),
            )
        for module in optimized:
            if self.program.can_be_saved:
                loaded = _saved_and_loaded(module)
                yield "loaded optimize", functools.partial(self.difference_to, loaded)
        yield "pass", self._difference_in_the_pass

    def _check_optimize(
        self, verdict: Verdict, optimized: list[torch.jit.ScriptModule], wanted: dict[str, Any]
    ) -> str:
        """Also: nothing of the caller's changes, and the peak does not rise."""
        inputs, module = copy.deepcopy(self.inputs), copy.deepcopy(self.module)
        before = copy.deepcopy((inputs, _state(module)))
        torch.default_generator.manual_seed(RANDOM_SEED)
        random_state = torch.get_rng_state()
        try:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                result, report = torch_ext.optimize(module, inputs, time_budget=0.05, **wanted)
        except Exception as raised:
            error, expected = message(raised), self.calls[0].error
            return "" if error == expected else f"{expected!r} became {error!r}: exception"
        if printed.getvalue():
            return f"{printed.getvalue()!r} is shown while optimizing: print-out"
        if found := Comparer().compare(before, (inputs, _state(module)), "the caller's"):
            return found
        if not torch.equal(random_state, torch.get_rng_state()):
            return "the caller's random state"
        peak, original_peak = report.measured_peak_bytes, report.measured_original_peak_bytes
        if peak is not None and original_peak is not None and peak > original_peak:
            return f"{original_peak} bytes became {peak}: peak"
        if report.identical is False:
            return f"{report.reason}: verification"
        if found := bound_fault(report):
            return found
        if result is module:
            return ""
        verdict.moved_by_optimize |= report.moved_ops > 0
        optimized.append(result)
        return self.difference_to(result)

    def _difference_in_the_pass(self) -> str:
        module, _ = self.program.compile()  # its executor has not made its plan yet
        with torch_ext.enabled():
            return self.difference_to(module)


def _saved_and_loaded(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    loaded: torch.jit.ScriptModule = torch.jit.load(file)  # type: ignore[no-untyped-call]
    return loaded
