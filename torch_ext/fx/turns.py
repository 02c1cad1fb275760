"""Times of two programs, measured in turns, so that what slows the machine slows both."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

_UNSETTLED, _TURNS = 2, 7


def seconds_in_turns(
    runs: tuple[Callable[..., Any], Callable[..., Any]], inputs: Callable[[], Sequence[Any]]
) -> tuple[float, float]:
    """Return the seconds of a call of each: the median of seven, after two that are not counted."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(_UNSETTLED + _TURNS):
        for which in (0, 1) if turn % 2 else (1, 0):
            given = inputs()
            start = time.perf_counter()
            runs[which](*given)
            seconds[which].append(time.perf_counter() - start)
    first, second = (statistics.median(times[_UNSETTLED:]) for times in seconds)
    return first, second
