"""What fits into a memory budget: the largest batch, image or sequence, before and after.

A budget is compared with everything that torch allocates for a call: parameters, inputs, and the
measured peak of activations. Sizes are searched with measured totals; what is told has been run.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch_ext.amounts import amount
from torch_ext.arguments import MemoryAmount, count, limit, memory_bytes, seconds, texts
from torch_ext.files import innermost_error
from torch_ext.input_spec import leads, letter_of, make_inputs, with_size
from torch_ext.memory.meter import measure_peak
from torch_ext.memory.process import available_bytes
from torch_ext.program.plan import FORMAT
from torch_ext.torchscript.optimize import analyze, optimize

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
    next_total_bytes: int | None  # of the next size, which does not fit; None if nothing is known
    next_error: str = ""  # what the model says to the next size, if it cannot be run
    next_is_slow: bool = False  # it would fit, and takes more time than it may


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
    reason: str = ""  # why reordering gains nothing, else empty
    is_batch: bool = False  # the letter counts what is done at a time
    with_repeats: Fit | None = None  # where ops may run again
    extra_time: float = 0.0  # of that size: part of the time of all ops, each run once

    @property
    def fits(self) -> bool:
        """Is there work that fits into the budget, after reordering?"""
        if self.after is not None:
            return self.after.size > 0
        return self.memory_budget is None or self.needed[1].total_bytes <= self.memory_budget

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
    memory_budget: MemoryAmount | None = None,
    *,
    step: int = 1,
    time_budget: float = 2.0,
) -> Capacity:
    """Find what fits into `memory_budget`: bytes, or text like "512MiB".

    `input_specs`: as on the command line, one letter in the place of a size: "Nx3x224x224:f32".
    Only multiples of `step` are tried. Without a letter: what the given input needs, before and
    after. The order is that of torch_ext.optimize for the largest size that fits before.
    Raises ValueError for bad specs or arguments, CapacityError if the search fails in the middle.
    """
    input_specs = texts(input_specs, "input_specs")
    letter = letter_of(input_specs)
    step, time_budget = count(step, "step"), seconds(time_budget, "time_budget")
    budget = None if memory_budget is None else memory_bytes(memory_budget, "memory_budget")
    if letter and budget is None:
        raise ValueError(f"a letter needs a memory budget: which {letter} is to be found?")

    held_bytes: list[int] = []  # parameters, and the constants of frozen graphs

    def measured(program: torch.nn.Module, size: int) -> Usage:
        inputs = make_inputs(with_size(input_specs, size))
        if not held_bytes:
            held_bytes.append(analyze(module, inputs, time_budget=0).parameter_bytes)
        input_bytes = sum(tensor.untyped_storage().nbytes() for tensor in inputs)
        return Usage(held_bytes[0], input_bytes, _settled_peak(program, inputs))

    def reordered(size: int) -> tuple[Measure, str]:
        inputs = make_inputs(with_size(input_specs, size))
        optimized, report = optimize(module, inputs, time_budget=time_budget)
        return functools.partial(measured, optimized), report.reason

    found = _capacity(letter, budget, step, functools.partial(measured, module), reordered)
    return dataclasses.replace(found, is_batch=letter == "N" and leads(letter, input_specs))


def training_capacity(
    model: torch.nn.Module,
    loss_fn: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    make_batch: Callable[[int], Sequence[Any]],
    memory_budget: MemoryAmount,
    *,
    step: int = 1,
    time_budget: float = 5.0,
    most_extra_time: float = 0.0,
) -> Capacity:
    """Find the largest batch with which a training step fits, as the eager loop and as ours.

    `make_batch(size)` gives `(*inputs, target)`; other arguments as of torch_ext.training_step.
    `parameter_bytes` has the optimizer's state in it. With `most_extra_time`, 0.1 for a tenth of
    the time of all ops, `with_repeats` is the largest batch that fits if ops run again for so long
    at most, and `extra_time` what they take then. Model and optimizer stay as they are.
    Raises ValueError for bad arguments, CapacityError if the search fails in the middle.
    """
    from torch_ext.fx.probe import tensors_of
    from torch_ext.training import training_step

    step, time_budget = count(step, "step"), seconds(time_budget, "time_budget")
    budget = memory_bytes(memory_budget, "memory_budget")
    most_extra = limit(most_extra_time, "most_extra_time") or 0.0

    @functools.cache
    def usages(size: int) -> tuple[Usage, Usage, str]:
        copies = copy.deepcopy((model, loss_fn, optimizer))
        report = training_step(*copies, make_batch(size), time_budget=time_budget).report
        held = report.parameter_bytes + report.state_bytes
        eager, ours = report.measured_original_peak_bytes, report.measured_peak_bytes
        if eager is None or ours is None:
            raise RuntimeError(f"its memory was not measured: {report.reason}")
        before, after = (  # where the loop needs less, it is the loop that runs
            Usage(held, report.input_bytes, peak) for peak in (eager, min(eager, ours))
        )
        return before, after, report.reason

    def reordered(size: int) -> tuple[Measure, str]:
        return lambda n: usages(n)[1], usages(size)[2]

    found = _capacity("N", budget, step, lambda size: usages(size)[0], reordered)
    found = dataclasses.replace(found, is_batch=True)
    if not most_extra:
        return found
    assert found.after is not None
    held = found.needed[0].parameter_bytes
    extra_times: dict[int, float] = {}

    def repeated(size: int) -> Usage:
        batch = tuple(make_batch(size))
        given = sum(tensor.nbytes for tensor in tensors_of(batch))
        copies = copy.deepcopy((model, loss_fn, optimizer))
        report = training_step(
            *copies,
            batch,
            time_budget=time_budget,
            memory_budget=max(0, budget - held - given),
            levers=("order", "overwrite", "repeat"),
        ).report
        if report.measured_peak_bytes is None:
            raise RuntimeError(f"its memory was not measured: {report.reason}")
        extra_times[size] = (report.extra_seconds or 0.0) / (report.call_seconds or 1.0)
        return Usage(held, given, report.measured_peak_bytes)

    search = _Search("N", budget, step, repeated, lambda size: extra_times[size] <= most_extra)
    largest = search.run(found.after.tried)
    if largest.size < found.after.size:  # as measured, times differ a little
        return dataclasses.replace(found, with_repeats=found.after)
    extra_time = extra_times[largest.tried] if largest.size else 0.0
    return dataclasses.replace(found, with_repeats=largest, extra_time=extra_time)


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
    after: Callable[[int], tuple[Measure, str]],  # of the program that is reordered for a size
) -> Capacity:
    if not letter or memory_budget is None:
        measure, reason = after(1)
        return Capacity("", memory_budget, None, None, (before(1), measure(1)), reason)
    original = _Search(letter, memory_budget, step, before)
    first = original.run(step)
    try:
        measure, reason = after(first.tried)
        reordered = _Search(letter, memory_budget, step, measure)
        second = reordered.run(first.tried)
        needed = original.usage(first.tried), reordered.usage(first.tried)
    except Exception as error:  # whatever the model raises
        found = f"{letter} = {first.size}" if first.size else "nothing"
        raise CapacityError(
            f"before reordering {found} fits; after it: {innermost_error(error)}"
        ) from error
    if second.size < first.size:  # the original order is always a candidate
        second, needed = first, (needed[0], needed[0])
    return Capacity(letter, memory_budget, first, second, needed, reason)


class _Search:
    """For the largest size whose total is within the budget; totals are taken to grow with it.

    So is the trouble with sizes: those that cannot be run are taken to be the smallest and the
    largest ones. Where some in between cannot be run, the search gives up.
    """

    def __init__(
        self,
        letter: str,
        budget: int,
        step: int,
        measure: Measure,
        is_allowed: Callable[[int], bool] | None = None,
    ) -> None:
        """`is_allowed`: what else is asked of a size that was measured.

        Then programs are made for the budget, so totals tell nothing of the largest size.
        """
        self._letter = letter
        self._budget = budget
        self._step = step
        self._measure = measure
        self._is_allowed = is_allowed
        self._usages: dict[int, Usage] = {}
        self._errors: dict[int, Exception] = {}

    def usage(self, size: int) -> Usage:
        """Measured once."""
        if size not in self._usages:
            self._usages[size] = self._measure(size)
        return self._usages[size]

    def run(self, start: int) -> Fit:
        """Begin at `start`, or at the first size above it with which the model can be run."""
        first = self._first(start)
        if not self._fitting():
            first = self._smallest(first)
        if not self._fitting():
            return Fit(0, first, self.usage(first), None)
        fits = max(self._fitting())
        beyond = min((n for n in self._usages if n > fits), default=None)
        while beyond is None or beyond - fits > self._step:
            if fits >= _LARGEST - _LARGEST % self._step:
                return Fit(fits, fits, self.usage(fits), None)
            size = self._next(fits, beyond)
            if self._can_run(size) and self._fits(size):
                fits = size
            else:
                beyond = size
        if beyond in self._usages and self.usage(beyond).total_bytes <= self._budget:
            return Fit(fits, fits, self.usage(fits), None, next_is_slow=True)
        if beyond in self._usages:
            return Fit(fits, fits, self.usage(fits), self.usage(beyond).total_bytes)
        self._require_limit(fits, beyond)
        return Fit(fits, fits, self.usage(fits), None, self._told(beyond))

    def _fitting(self) -> set[int]:
        return set(filter(self._fits, self._usages))

    def _fits(self, size: int) -> bool:
        is_within = self.usage(size).total_bytes <= self._budget
        return is_within and (self._is_allowed is None or self._is_allowed(size))

    def _can_run(self, size: int) -> bool:
        if size in self._errors:
            return False
        try:
            self.usage(size)
        except Exception as error:  # whatever the model raises
            if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
                raise CapacityError(
                    f"{self._so_far()}; {self._letter} = {size} takes more than this machine has: "
                    "choose a smaller budget"
                ) from error
            self._errors[size] = error
            return False
        return True

    def _first(self, start: int) -> int:
        for doublings in range(_FIRST_SIZES):
            if self._can_run(start << doublings):
                return start << doublings
        raise self._errors[start]

    def _smallest(self, runs: int) -> int:
        """The smallest size that runs, between the last that did not and the first that did."""
        fails = max((size for size in self._errors if size < runs), default=0)
        while runs - fails > self._step and fails:
            size = (fails + runs) // 2 // self._step * self._step
            if self._can_run(size):
                runs = size
            else:
                fails = size
        return runs

    def _require_limit(self, fits: int, fails: int) -> None:
        """Some models cannot be run with odd sizes only: then nothing is known of the largest."""
        free_bytes = available_bytes()
        for size in (fits + 2 * self._step, 2 * fits, 3 * fits):
            expected_bytes = size / fits * self.usage(fits).total_bytes
            if free_bytes is not None and expected_bytes > free_bytes:
                return
            if size > fails and self._can_run(size):
                raise CapacityError(
                    f"{self._letter} = {fits} fits; with {self._letter} = {fails} the model cannot "
                    f"be run, with {size} it can, so that nothing can be searched "
                    f"({self._told(fails)}): try multiples only, with --step"
                )

    def _told(self, size: int) -> str:
        return innermost_error(self._errors[size])

    def _so_far(self) -> str:
        largest = max(self._fitting(), default=0)
        return f"{self._letter} = {largest} fits" if largest else "nothing was found that fits"

    def _next(self, fits: int, beyond: int | None) -> int:
        """Where a line through the two nearest sizes meets the budget, or in the middle."""
        most = fits * _MOST_GROWTH if beyond is None else beyond - self._step
        most = min(most, _LARGEST)
        runs = len(self._usages) + len(self._errors)
        is_line = self._is_allowed is None and runs <= _INTERPOLATIONS
        if beyond is not None and (not is_line or beyond in self._errors):
            return self._rounded((fits + beyond) // 2, fits, most)
        if self._is_allowed is not None:
            return self._rounded(2 * fits, fits, most)
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
        free_bytes = available_bytes()
        if free_bytes is not None and expected_bytes > free_bytes:
            raise CapacityError(
                f"{self._so_far()}; the next run would take {amount(int(expected_bytes))} and this "
                f"machine has {amount(free_bytes)} free: choose a smaller budget"
            )
