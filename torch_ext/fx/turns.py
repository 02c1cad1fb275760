"""Times of two programs, measured in turns, so that what slows the machine slows both."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

_UNSETTLED, _FEWEST, _MOST = 2, 3, 7
_ENOUGH_SECONDS = 4.0  # what takes that long varies little


def seconds_in_turns(
    runs: tuple[Callable[..., Any], Callable[..., Any]], inputs: Callable[[], Sequence[Any]]
) -> tuple[float, float]:
    """Return the seconds of a call of each: the median of three to seven.

    Two calls before them are not counted.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(_UNSETTLED + _MOST):
        if turn >= _UNSETTLED + _FEWEST and sum(map(sum, seconds)) > _ENOUGH_SECONDS:
            break
        for which in (0, 1) if turn % 2 else (1, 0):
            given = inputs()
            start = time.perf_counter()
            runs[which](*given)
            seconds[which].append(time.perf_counter() - start)
    first, second = (statistics.median(times[_UNSETTLED:]) for times in seconds)
    return first, second
