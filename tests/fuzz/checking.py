"""Compares a program with every reordered variant of it, by whichever door it comes in.

A door is a way for programs to get in: `torchscript` and `graphs`, each with the variants it makes.
"""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from tests.fuzz.helpers import ON_PURPOSE
from tests.fuzz.source import Program
from torch_ext.reporting.report import ProgramReport, held_to

RULES = ("mutation", "statistics", "random", "side_effect", "outlives", "unknown", "stateful")
# Of csrc/jit/overwrite_rules.h, but for `whole` and `bases`, of which no bit tells.
OVERWRITE_RULES = (
    "ours",
    "others",
    "apart",
    "sizes",
    "dtypes",
    "strides",
    "gradients",
    "autocast",
)
SHUFFLES = 3
RANDOM_SEED = 1234


class InvalidProgramError(Exception):
    """The program does not compile, fails by accident, or does not do the same thing twice."""


class NotForThisDoorError(Exception):
    """The program cannot come in here."""


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


class Original(abc.ABC):
    """The program as it is behind a door, and what its calls did."""

    rules: Sequence[str] = RULES  # that its programs notice

    def __init__(self, program: Program) -> None:
        self.program = program

    @abc.abstractmethod
    def difference_to(self, variant: Any) -> str:
        """The first difference, its kind behind the last colon; empty if there is none."""

    @abc.abstractmethod
    def made_again(self) -> Any:
        """The program itself, as a variant."""

    @abc.abstractmethod
    def shuffled(self, seed: int, without: Sequence[str], verdict: Verdict) -> Any:
        """An order at random that the rules allow; None if there can be none."""

    def edited(self, seed: int, without: Sequence[str]) -> Any:
        """The same with as many edits as can be done together, if there can be an order."""
        raise NotImplementedError(f"{type(self).__name__} has no rules of edits")

    def difference_to_edited(self, variant: Any) -> str:
        """The same as difference_to, and in calls unlike those that were planned for."""
        return self.difference_to(variant)

    @abc.abstractmethod
    def variants(self, shuffles: int, verdict: Verdict) -> Iterator[tuple[str, Callable[[], str]]]:
        """Names of variants, each with what tells its difference to the original."""

    def require_expected(self, error: str) -> None:
        """Only what programs raise themselves is compared."""
        if error and ON_PURPOSE not in error:
            raise InvalidProgramError(f"fails by accident: {error}")

    def require_determinism(self) -> None:
        """A difference means nothing if the program differs from itself."""
        if found := self.difference_to(self.made_again()):
            raise InvalidProgramError(f"does not do the same thing twice: {found}")


Door = type[Original]


def check(door: Door, program: Program, shuffles: int = SHUFFLES) -> Verdict:
    """Compares the program with every kind of reordered variant, up to the first failure."""
    verdict = Verdict()
    with _quiet():
        original = door(program)
        for variant, make in original.variants(shuffles, verdict):
            verdict.variants += 1
            if found := make():
                original.require_determinism()
                verdict.failure = Failure(variant, found)
                break
    return verdict


def check_without(
    door: Door, program: Program, without: Sequence[str], shuffles: int = SHUFFLES
) -> Verdict:
    """Compares with random orders for which some rules are off.

    What fails with all rules too says nothing about these and does not count.
    """
    verdict = Verdict()
    edits = not set(without).isdisjoint(OVERWRITE_RULES)
    with _quiet():
        original = door(program)
        verdict.failure = _shuffle_failure(original, shuffles, without, verdict, edits)
        if verdict.failure:
            original.require_determinism()
            if _shuffle_failure(original, shuffles, (), verdict, edits):
                verdict.failure = None
    return verdict


def _shuffle_failure(
    original: Original, shuffles: int, without: Sequence[str], verdict: Verdict, edits: bool
) -> Failure | None:
    for seed in range(shuffles):
        variant = original.shuffled(seed, () if edits else without, verdict)
        if variant is not None and edits:  # else it may not be edited either
            variant = original.edited(seed, without)
        if variant is None:
            break
        verdict.variants += 1
        difference = original.difference_to_edited if edits else original.difference_to
        if found := difference(variant):
            return Failure(f"shuffle {seed} without {' '.join(without)}", found)
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


def bound_fault(report: ProgramReport) -> str:
    """The proven bound against what was measured; empty if no run needed less.

    A door that found it out itself has a program that is not what it planned: a fault as well.
    """
    measured = (report.measured_original_peak_bytes, report.measured_peak_bytes)
    _, refuted = held_to(report, measured)
    told = [reason for reason in (*report.reasons, *refuted) if reason.kind == "below_bound"]
    return f"{told[0].text}: bound" if told else ""


def message(error: Exception) -> str:
    """The last line: those before tell where it was raised, which changes with the order."""
    return str(error).strip().splitlines()[-1]
