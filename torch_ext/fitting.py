"""What fits into a memory budget: the largest batch, image or sequence, before and after.

A budget is compared with everything that torch allocates for a call: parameters, inputs, and the
measured peak of activations. Sizes are searched with measured totals; what is told has been run.
"""

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch_ext.amounts import amount
from torch_ext.files import first_line
from torch_ext.input_spec import letter_of, make_inputs, with_size
from torch_ext.measuring import measure_peak
from torch_ext.optimizing import analyze, optimize
from torch_ext.planning import FORMAT

_MOST_GROWTH = 8  # of the size from one run to the next: an estimate from small sizes may be wrong
_INTERPOLATIONS = 8  # then the interval is halved, which ends for every curve
_LARGEST = 2**20
_FIRST_SIZES = 11  # 1, 2, 4, ... 1024: many networks refuse images of one pixel


class CapacityError(RuntimeError):
    """The search cannot go on; the message says how far it came."""


@dataclasses.dataclass(frozen=True)
class Usage:
    """What one call takes, in bytes."""

    parameter_bytes: int
    input_bytes: int
    peak_bytes: int  # of activations, measured

    @property
    def total_bytes(self) -> int:
        """What a budget is compared with."""
        return self.parameter_bytes + self.input_bytes + self.peak_bytes


Measure = Callable[[int], Usage]  # of a size


@dataclasses.dataclass(frozen=True)
class Fit:
    """The largest size that fits; 0: not even the smallest that runs does."""

    size: int
    tried: int  # that size, or the smallest that runs
    usage: Usage  # of `tried`
    next_total_bytes: int | None  # of the next size, which does not fit; None: there is no end


@dataclasses.dataclass(frozen=True)
class Capacity:
    """What fits before and after reordering.

    `needed`: what the largest size that fits before takes, before and after; without a letter, what
    the given input takes. So `needed[1]` is the smallest budget for the same work.
    """

    letter: str  # that stands for the size; empty if the input was given
    memory_budget: int | None
    before: Fit | None
    after: Fit | None
    needed: tuple[Usage, Usage]

    @property
    def saved_bytes(self) -> int:
        """By the same work."""
        return self.needed[0].total_bytes - self.needed[1].total_bytes

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"format": FORMAT, **dataclasses.asdict(self), "saved_bytes": self.saved_bytes}


def capacity(
    module: torch.nn.Module,
    input_specs: Sequence[str],
    memory_budget: int | None = None,
    *,
    step: int = 1,
    time_budget: float = 2.0,
) -> Capacity:
    """Find what fits into `memory_budget` bytes.

    `input_specs`: as on the command line, one letter in the place of a size: "Nx3x224x224:f32".
    Only multiples of `step` are tried. Without a letter: what the given input needs, before and
    after. The order is that of torch_ext.optimize for the largest size that fits before.
    Raises ValueError for bad specs, CapacityError if the search fails in the middle.
    """
    letter = letter_of(input_specs)
    if step < 1:
        raise ValueError(f"step must be at least 1, not {step}")
    if letter and memory_budget is None:
        raise ValueError(f"a letter needs a memory budget: which {letter} is to be found?")

    held_bytes: list[int] = []  # parameters, and the constants of frozen graphs

    def measured(program: torch.nn.Module, size: int) -> Usage:
        inputs = make_inputs(with_size(input_specs, size))
        if not held_bytes:
            held_bytes.append(analyze(module, inputs, time_budget=0).parameter_bytes)
        input_bytes = sum(tensor.untyped_storage().nbytes() for tensor in inputs)
        return Usage(held_bytes[0], input_bytes, _settled_peak(program, inputs))

    def reordered(size: int) -> Measure:
        inputs = make_inputs(with_size(input_specs, size))
        optimized, _ = optimize(module, inputs, time_budget=time_budget)
        return functools.partial(measured, optimized)

    return _capacity(letter, memory_budget, step, functools.partial(measured, module), reordered)


def training_capacity(
    model: torch.nn.Module,
    loss_fn: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    make_batch: Callable[[int], Sequence[Any]],
    memory_budget: int,
    *,
    step: int = 1,
    time_budget: float = 5.0,
) -> Capacity:
    """Find the largest batch with which a training step fits, as the eager loop and as ours.

    `make_batch(size)` gives `(*inputs, target)`; other arguments as of torch_ext.training_step.
    `parameter_bytes` has the optimizer's state in it. Model and optimizer stay as they are.
    Raises CapacityError if the search fails in the middle.
    """
    from torch_ext.training import training_step

    @functools.cache
    def usages(size: int) -> tuple[Usage, Usage]:
        copies = copy.deepcopy((model, loss_fn, optimizer))
        report = training_step(*copies, make_batch(size), time_budget=time_budget).report
        held = report.parameter_bytes + report.state_bytes
        peaks = report.measured_original_peak_bytes, report.measured_peak_bytes
        if peaks[0] is None or peaks[1] is None:
            raise RuntimeError(f"its memory was not measured: {report.reason}")
        before, after = (
            Usage(held, report.input_bytes, peak) for peak in peaks if peak is not None
        )
        return before, after

    return _capacity(
        "N", memory_budget, step, lambda size: usages(size)[0], lambda _: lambda n: usages(n)[1]
    )


def _settled_peak(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    """Of a second call: the first may still compile."""
    module = copy.deepcopy(module)  # a call may change buffers
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        module(*inputs)
        with measure_peak() as memory:
            module(*inputs)
    return memory.peak_bytes


def _capacity(
    letter: str,
    memory_budget: int | None,
    step: int,
    before: Measure,
    after: Callable[[int], Measure],  # of the program that is reordered for a size
) -> Capacity:
    if not letter or memory_budget is None:
        return Capacity("", memory_budget, None, None, (before(1), after(1)(1)))
    original = _Search(letter, memory_budget, step, before)
    first = original.run(step)
    reordered = _Search(letter, memory_budget, step, after(first.tried))
    second = reordered.run(first.tried)
    needed = original.usage(first.tried), reordered.usage(first.tried)
    return Capacity(letter, memory_budget, first, second, needed)


class _Search:
    """For the largest size whose total is within the budget; totals are taken to grow with it."""

    def __init__(self, letter: str, budget: int, step: int, measure: Measure) -> None:
        self._letter = letter
        self._budget = budget
        self._step = step
        self._measure = measure
        self._usages: dict[int, Usage] = {}

    def usage(self, size: int) -> Usage:
        """Measured once."""
        if size not in self._usages:
            self._usages[size] = self._measure(size)
        return self._usages[size]

    def run(self, start: int) -> Fit:
        """Begin at `start`, or at the first size above it with which the model can be run."""
        size = self._first(start)
        fits: int | None = None
        too_large: int | None = None
        while too_large is None or fits is None or too_large - fits > self._step:
            if self._tried(size).total_bytes <= self._budget:
                fits = size
            elif fits is None:
                return Fit(0, size, self.usage(size), None)
            else:
                too_large = size
            if fits == _LARGEST - _LARGEST % self._step:
                return Fit(fits, fits, self.usage(fits), None)
            size = self._next(fits, too_large)
        return Fit(fits, fits, self.usage(fits), self.usage(too_large).total_bytes)

    def _first(self, start: int) -> int:
        for doublings in range(_FIRST_SIZES):
            try:
                self.usage(start << doublings)
                return start << doublings
            except (RuntimeError, ValueError) as error:
                if doublings == 0:
                    first_error = error
        raise first_error

    def _tried(self, size: int) -> Usage:
        try:
            return self.usage(size)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise CapacityError(
                f"{self._so_far()}; with {self._letter} = {size} the model cannot be run "
                f"({first_line(error)}); --step tries multiples only"
            ) from error

    def _so_far(self) -> str:
        fitting = [n for n, used in self._usages.items() if used.total_bytes <= self._budget]
        largest = max(fitting, default=0)
        return f"{self._letter} = {largest} fits" if largest else "nothing was found that fits"

    def _next(self, fits: int, too_large: int | None) -> int:
        """Where a line through the two nearest sizes meets the budget."""
        most = fits * _MOST_GROWTH if too_large is None else too_large - self._step
        most = min(most, _LARGEST)
        if len(self._usages) > _INTERPOLATIONS and too_large is not None:
            return self._rounded((fits + too_large) // 2, fits, most)
        others = sorted(self._usages.keys() - {fits}, key=lambda size: abs(size - fits))
        guess = fits + self._step if not others else most
        if others:
            total = self.usage(fits).total_bytes
            slope = (self.usage(others[0]).total_bytes - total) / (others[0] - fits)
            if slope > 0:
                guess = fits + int((self._budget - total) / slope)
                self._require_memory(total + slope * (min(guess, most) - fits))
        return self._rounded(guess, fits, most)

    def _rounded(self, guess: int, fits: int, most: int) -> int:
        guess -= guess % self._step
        return max(fits + self._step, min(guess, most - most % self._step))

    def _require_memory(self, expected_bytes: float) -> None:
        available_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if expected_bytes > available_bytes:
            raise CapacityError(
                f"{self._so_far()}; the next run would take {amount(int(expected_bytes))} and this "
                f"machine has {amount(available_bytes)} free: choose a smaller budget"
            )
