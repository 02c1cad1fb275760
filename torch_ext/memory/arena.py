"""Planned addresses: what a call allocates lies where a plan says, and malloc is left alone."""

import dataclasses
import functools
import logging
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar

from torch_ext._native import _jit
from torch_ext.arguments import count, flag, seconds
from torch_ext.memory.meter import no_collections
from torch_ext.memory.process import return_free_memory

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
SERVED, DISABLED, NO_MEMORY = "served", "disabled", "no memory for an arena"
# A call settles within three: executors profile, optimise, and then do the same each time.
MOST_RECORDINGS = 8
TIME_BUDGET = 1.0  # seconds of planning
MOST_PLANS = 8  # kinds of calls
MOST_LEARNING = 64  # kinds of calls that are remembered until another one is like them
MOST_DEVIATIONS = 8  # in a row, of one kind: its plan is of another behaviour

_log = logging.getLogger("torch_ext")


@dataclasses.dataclass(frozen=True)
class ArenaReport:
    """The arena of one kind of call; sizes count rounded up to 64 bytes."""

    arena_bytes: int  # its height, which the process holds between calls
    arena_bound_bytes: int  # no placement of blocks that live as these do is lower
    num_blocks: int  # served in each call
    outliving_bytes: int  # of blocks that outlive the call: results, which malloc serves

    @property
    def arena_status(self) -> str:
        """'optimal' if no placement is lower, else 'feasible'."""
        return "optimal" if self.arena_bytes == self.arena_bound_bytes else "feasible"


@dataclasses.dataclass
class _Learning:
    """What is known of a kind of calls that has no plan yet."""

    last: "_jit.Recorder | None" = None
    recordings: int = 0
    is_planned: bool = False  # at this moment, in some thread


@dataclasses.dataclass(frozen=True)
class ArenaStatistics:
    """How calls went.

    `deviated` counts calls by the reason why malloc served their first block that was not as
    planned, and all blocks after it.
    """

    served: int  # calls that went as planned
    deviated: Mapping[str, int]
    served_blocks: int
    served_bytes: int
    arenas: int = 0  # of the process, and the addresses that they hold
    reserved_bytes: int = 0


def arena_statistics() -> ArenaStatistics:
    """Return the counts of all calls of this process that have planned addresses."""
    fields = _jit.arena_statistics()
    return dataclasses.replace(
        _statistics(fields), arenas=fields["arenas"], reserved_bytes=fields["reserved_bytes"]
    )


class PinnedFunction(Generic[Arguments, Result]):
    """See pin_addresses."""

    def __init__(
        self,
        function: Callable[Arguments, Result],
        *,
        strict: bool = False,
        time_budget: float = TIME_BUDGET,
        most_plans: int = MOST_PLANS,
        pool: "_jit.ArenaPool | None" = None,
        signature: Callable[[tuple[Any, ...], dict[str, Any]], str] = _jit.signature,
    ) -> None:
        functools.update_wrapper(self, function, updated=())
        self.__wrapped__: Callable[Arguments, Result]
        self._strict = strict
        self._time_budget = time_budget
        self._most_plans = most_plans
        self._pool = pool or _jit.ArenaPool()
        self._signature = signature  # what tells kinds of calls apart
        self._lock = threading.Lock()  # of what follows
        self._learning: dict[str, _Learning] = {}  # by signature, the latest last
        self._in_a_row: dict[str, int] = {}  # calls of a kind that deviated
        self.reports: dict[str, ArenaReport] = {}  # by signature

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Call the function. The first calls of a new kind are recorded until two are alike."""
        try:
            signature = self._signature(args, kwargs)
        except ValueError:  # arguments that have none
            return self.__wrapped__(*args, **kwargs)
        if not self._pool.has(signature) and self._may_record(signature):
            return self._learn(signature, *args, **kwargs)
        guard = _jit.ArenaGuard(self._pool, signature)
        try:
            result = self.__wrapped__(*args, **kwargs)
        finally:
            guard.stop()
        if not guard.is_nested:
            self._see(signature, guard.outcome)
        return result

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        """Bind it, where it stands for a method."""
        return self if owner is None else types.MethodType(self, owner)

    @property
    def statistics(self) -> ArenaStatistics:
        """How the calls of this function went, the recorded ones aside."""
        return _statistics(self._pool.statistics)

    def to_text(self) -> str:
        """Return the plans of all kinds of calls, for files."""
        return self._pool.to_text()

    def learn(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> ArenaReport | None:
        """Call the function until two calls allocate alike and plan them; None if none do."""
        signature = self._signature(args, kwargs)
        with no_collections():
            for _ in range(MOST_RECORDINGS):
                if signature in self.reports:
                    break
                self._learn(signature, *args, **kwargs)
        return self.reports.get(signature)

    def _see(self, signature: str, outcome: str) -> None:
        """Forget a plan that calls deviate from again and again: it is learned anew."""
        if outcome == DISABLED:
            return
        if outcome == SERVED:
            self._in_a_row.pop(signature, None)
        elif outcome != NO_MEMORY and self._pool.has(signature):
            with self._lock:
                count = self._in_a_row.get(signature, 0) + 1
                self._in_a_row[signature] = count
                if count == MOST_DEVIATIONS:
                    self._pool.erase(signature)
                    self.reports.pop(signature, None)
                    del self._in_a_row[signature]
        if self._strict and outcome != SERVED:
            raise RuntimeError(f"a call with planned addresses deviated: {outcome}")

    def _may_record(self, signature: str) -> bool:
        with self._lock:
            known = self._learning.get(signature)
            if known is None:
                return len(self._pool.signatures) < self._most_plans
            return not known.is_planned and known.recordings < MOST_RECORDINGS

    def _learn(self, signature: str, *args: Any, **kwargs: Any) -> Result:
        try:
            recorder = _jit.Recorder()
        except RuntimeError:  # within a call that is recorded or served itself
            return self.__wrapped__(*args, **kwargs)
        try:
            result = self.__wrapped__(*args, **kwargs)
        finally:
            recorder.stop()
        with self._lock:
            if self._pool.has(signature):  # another thread was first
                return result
            known = self._learning.pop(signature, _Learning())
            self._learning[signature] = known
            while len(self._learning) > MOST_LEARNING:  # kinds that come once, as of step counters
                del self._learning[next(iter(self._learning))]
            is_settled = known.last is not None and recorder.is_like(known.last)
            known.last = recorder
            known.recordings += 1
            if not is_settled or known.is_planned:
                return result
            known.is_planned = True
        report = self._plan(signature, recorder)
        with self._lock:
            self.reports[signature] = report
            self._learning.pop(signature, None)
        return_free_memory()  # what malloc served so far, and will not be asked for again
        return result

    def _plan(self, signature: str, recorder: "_jit.Recorder") -> ArenaReport:
        height, bound = self._pool.plan(signature, recorder, self._time_budget)
        blocks = recorder.blocks
        outliving = [size for size, _, death in blocks if death is None]
        report = ArenaReport(height, bound, len(blocks) - len(outliving), sum(outliving))
        _log.info("planned the addresses of %d blocks: %s", report.num_blocks, report)
        return report


def pin_addresses(
    function: Callable[Arguments, Result],
    inputs: tuple[Any, ...] | None = None,
    *,
    strict: bool = False,
    time_budget: float = TIME_BUDGET,
    most_plans: int = MOST_PLANS,
) -> PinnedFunction[Arguments, Result]:
    """Return the function with planned addresses: its calls take their memory from an arena.

    `function` is anything that computes with tensors in the thread that calls it: a module, a
    compiled or exported one, a training step. With `inputs`, its arguments, it is called until two
    calls allocate alike; without, and for other shapes later, the first calls are recorded as they
    come, for at most `most_plans` kinds of arguments. Each kind has an arena as high as its blocks
    need, planned for `time_budget` seconds of work at most; calls at the same time have one each,
    and what no call uses serves the next, whichever function it is of. Results and all else that
    outlives a call are malloc's. A call that allocates otherwise than recorded is served by malloc
    from there on and counted; with `strict` it raises RuntimeError afterwards. After eight of them
    in a row the kind is recorded anew. Bits never change. TORCH_EXT_DISABLE=1 in the environment
    leaves all calls to malloc.

    Raises ValueError for bad arguments, and whatever the function raises.
    """
    if not callable(function):
        raise ValueError(f"expected something to call, not {type(function).__name__}")
    if inputs is not None and not isinstance(inputs, tuple):
        raise ValueError(f"inputs must be a tuple of arguments, not {type(inputs).__name__}")
    pinned = PinnedFunction(
        function,
        strict=flag(strict, "strict"),
        time_budget=seconds(time_budget, "time_budget"),
        most_plans=count(most_plans, "most_plans"),
    )
    if inputs is not None and pinned.learn(*inputs) is None:  # type: ignore[call-arg]
        _log.warning(
            "no addresses are planned: in %d calls no two allocated alike", MOST_RECORDINGS
        )
    return pinned


def _statistics(fields: Mapping[str, Any]) -> ArenaStatistics:
    calls = dict(fields["calls"])
    served = calls.pop(SERVED)
    deviated = {reason: count for reason, count in calls.items() if count}
    return ArenaStatistics(served, deviated, fields["served_blocks"], fields["served_bytes"])
