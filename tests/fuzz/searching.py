"""Checks many programs in processes of their own: a crash is a finding, not the end."""

import collections
import contextlib
import dataclasses
import gc
import itertools
import multiprocessing
import warnings
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait

from tests.fuzz.checking import (
    SHUFFLES,
    Door,
    Failure,
    InvalidProgramError,
    NotForThisDoorError,
    Verdict,
    check,
    check_without,
)
from tests.fuzz.graphs import Captured
from tests.fuzz.programs import generate
from tests.fuzz.shrinking import shrink
from tests.fuzz.source import Program
from tests.fuzz.torchscript import Scripted

DOORS: dict[str, Door] = {"torchscript": Scripted, "fx": Captured}

_PROGRAMS_PER_PROCESS = 200  # TorchScript never forgets a module it has compiled
_SHUFFLES_TO_SHRINK = 10  # a smaller program has other orders, of which one must fail again


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was found out about the program of a seed."""

    seed: int
    verdict: Verdict = dataclasses.field(default_factory=Verdict)
    invalid: str = ""
    small_source: str = ""  # of a failing program that was made smaller


def examine(
    seed: int,
    without: Sequence[str] = (),
    shrink_seconds: float = 0.0,
    door: str = "torchscript",
) -> Outcome:
    """Check one program, in this process; make it small if it fails."""
    program = generate(seed, door)
    try:
        verdict = _check(door, program, without)
    except InvalidProgramError as error:
        return Outcome(seed, invalid=str(error))
    except NotForThisDoorError as error:
        return Outcome(seed, Verdict(refused=str(error)))
    source = ""
    if verdict.failure and shrink_seconds > 0:
        kind = verdict.failure.kind

        def fails(smaller: Program) -> bool:
            try:
                failure = _check(door, smaller, without, _SHUFFLES_TO_SHRINK).failure
            except (InvalidProgramError, NotForThisDoorError):
                return False
            return failure is not None and failure.kind == kind

        source = shrink(program, fails, shrink_seconds).source
    return Outcome(seed, verdict, small_source=source)


def _check(
    door: str, program: Program, without: Sequence[str], shuffles: int = SHUFFLES
) -> Verdict:
    if without:
        return check_without(DOORS[door], program, without, shuffles)
    return check(DOORS[door], program, shuffles)


# --- processes ------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    left: collections.deque[int]


def search(
    seeds: Iterable[int],
    without: Sequence[str] = (),
    *,
    jobs: int = 1,
    shrink_seconds: float = 0.0,
    door: str = "torchscript",
) -> Iterator[Outcome]:
    """The outcome of each seed, in their order."""
    context = multiprocessing.get_context("spawn")
    waiting = iter(seeds)
    again: list[list[int]] = []  # what crashed workers had not come to
    workers: dict[Connection, _Worker] = {}
    done: dict[int, Outcome] = {}
    order: collections.deque[int] = collections.deque()
    try:
        while True:
            while len(workers) < jobs:
                if again:
                    chunk = again.pop()
                else:
                    chunk = list(itertools.islice(waiting, _PROGRAMS_PER_PROCESS))
                    order.extend(chunk)
                if not chunk:
                    break
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_work,
                    args=(theirs, chunk, tuple(without), shrink_seconds, door),
                    daemon=True,
                )
                process.start()
                theirs.close()
                workers[ours] = _Worker(process, collections.deque(chunk))
            if not workers:
                return
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                worker = workers[connection]
                try:
                    outcome: Outcome = connection.recv()
                    assert outcome.seed == worker.left.popleft()
                    done[outcome.seed] = outcome
                except EOFError:
                    del workers[connection]
                    worker.process.join()
                    if worker.left:
                        seed = worker.left.popleft()
                        failure = Failure("crash", f"exit code {worker.process.exitcode}")
                        done[seed] = Outcome(seed, Verdict(failure=failure))
                        again.append(list(worker.left))
            while order and order[0] in done:
                yield done.pop(order.popleft())
            again = [chunk for chunk in again if chunk]
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.join()


def _work(
    connection: Connection,
    seeds: list[int],
    without: Sequence[str],
    shrink_seconds: float,
    door: str,
) -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with contextlib.suppress(BrokenPipeError):
        for number, seed in enumerate(seeds):
            connection.send(examine(seed, without, shrink_seconds, door))
            if number == 0:  # each measurement collects garbage, over all that is imported by now
                gc.collect()
                gc.freeze()
