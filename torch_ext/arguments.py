"""Arguments of public functions: one check for each kind, which says what would be right.

What is wrong must not reach the extension modules, whose complaints are about C++. Needs no torch.
All raise ValueError with one sentence.
"""

import dataclasses
import inspect
import numbers
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch_ext.amounts import parse_memory

FilePath = str | os.PathLike[str]
MemoryAmount = int | str  # bytes, or text like "512MiB"
# Kinds of edits that keep all bits (csrc/program/levers). Slices and repeats are tried by running,
# which not all doors do; repeats cost time, and are for doors that take a memory budget.
LEVERS = ("order", "overwrite")
ALL_LEVERS = (*LEVERS, "slice")
GRAPH_LEVERS = (*ALL_LEVERS, "repeat")
PLACE = "place"  # the lever that `addresses` asks for: of orders of equal peak, a lower arena
BARE_LEVERS = ("order", "repeat")  # of graphs of which nobody knows what their ops compute

_MOST_BYTES = _MOST_NANOSECONDS = 2**63 - 1
_MOST_SECONDS = 10**6


def file_path(value: FilePath, name: str) -> str:
    """The text of a path. Whether something is there is another question."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a path as str or os.PathLike, not {_shown(value)}")
    if not text:
        raise ValueError(f"{name} is empty; give the path of a file")
    if "\0" in text or not _is_encodable(text, os.fsencode):
        raise ValueError(f"{name} {_shown(text)} has a character that no path can have")
    return text


def memory_bytes(value: MemoryAmount, name: str) -> int:
    """An amount of memory in bytes."""
    if isinstance(value, str):
        try:
            return parse_memory(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if not _is_whole(value) or not 0 <= value <= _MOST_BYTES:
        raise ValueError(
            f"{name} must be bytes between 0 and 2^63 - 1, or text like '512MiB', not "
            f"{_shown(value)}"
        )
    return int(value)


def size_bytes(value: int, name: str) -> int:
    """The size of a buffer, which is no text."""
    if not _is_whole(value) or not 0 <= value <= _MOST_BYTES:
        raise ValueError(
            f"{name} must be a whole number of bytes, not negative and below 2^63, not "
            f"{_shown(value)}"
        )
    return int(value)


def nanoseconds(value: int, name: str) -> int:
    """What an op takes; the core minds how long all of them do."""
    if not _is_whole(value) or not 0 <= value <= _MOST_NANOSECONDS:
        raise ValueError(
            f"{name} must be a whole number, not negative and below 2^63, not {_shown(value)}"
        )
    return int(value)


def seconds(value: float, name: str) -> float:
    """A time budget."""
    if not _is_number(value) or not 0 <= value <= _MOST_SECONDS:
        raise ValueError(
            f"{name} must be a number of seconds between 0 and 1e6, not {_shown(value)}"
        )
    return float(value)


def limit(value: float | None, name: str) -> float | None:
    """A number that is not negative, and may be infinite, or None."""
    if value is None:
        return None
    if not _is_number(value) or not value >= 0:
        raise ValueError(f"{name} must be a number from 0 on, or None, not {_shown(value)}")
    return float(value)


def count(value: int, name: str, least: int = 1, most: int = 10**9) -> int:
    """A whole number within bounds."""
    if not _is_whole(value) or not least <= value <= most:
        raise ValueError(
            f"{name} must be a whole number between {least} and {most}, not {_shown(value)}"
        )
    return int(value)


def flag(value: bool, name: str) -> bool:
    """True or False, 1 or 0, or those of numpy, whose class has either name."""
    is_bit = _is_whole(value) and value in (0, 1)
    if not is_bit and type(value).__name__ not in ("bool", "bool_"):
        raise ValueError(f"{name} must be True or False, not {_shown(value)}")
    return bool(value)


def choice(value: str, name: str, choices: Sequence[str]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, not {_shown(value)}")
    return value


def text(value: str, name: str) -> str:
    """Text that can be written as UTF-8."""
    if not isinstance(value, str) or not _is_encodable(value):
        raise ValueError(f"{name} must be a str that UTF-8 can write, not {_shown(value)}")
    return value


def texts(values: Iterable[str], name: str) -> list[str]:
    """Several of them. One alone is a mistake: its letters would be taken for texts."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a list of str, not {_shown(values)}")
    return [text(value, f"what is in {name}") for value in values]


def misfit(function: Callable[..., Any], given: tuple[Any, ...]) -> str:
    """What a function takes, and why not these by position; empty if it does, or does not say."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return ""
    try:
        signature.bind(*given)
    except TypeError as error:
        return f"which takes {' '.join(str(signature).split())}: {error}"
    return ""


@dataclasses.dataclass(frozen=True)
class Planning:
    """What a planner is told, checked."""

    scope: str
    time_budget: float  # seconds
    memory_budget: int | None  # bytes
    levers: tuple[str, ...]
    op_seconds: Mapping[str, float] | None = None  # how long each op takes; None: to be measured


def planning(
    scope: str,
    time_budget: float,
    memory_budget: MemoryAmount | None = None,
    levers: Iterable[str] | None = ("order",),
    offered: tuple[str, ...] = LEVERS,
    op_seconds: Mapping[str, float] | None = None,
    addresses: bool = False,
) -> Planning:
    """What all doors to the planner are asked for.

    `levers`: None are those that cost no time; with a budget, all that the door has.
    """
    scope = choice(scope, "scope", ("all", "bottleneck"))
    if levers is None:
        free = tuple(lever for lever in LEVERS if lever in offered)
        levers = free if memory_budget is None else offered
        levers = levers if scope == "all" else ("order",)
    names = lever_names(levers, "levers", offered)
    return Planning(
        scope,
        seconds(time_budget, "time_budget"),
        None if memory_budget is None else memory_bytes(memory_budget, "memory_budget"),
        (*names, PLACE) if flag(addresses, "addresses") else names,
        None if op_seconds is None else _times(op_seconds, "op_seconds"),
    )


def without(wanted: Planning, *levers: str) -> Planning:
    """The same without those levers."""
    left = tuple(lever for lever in wanted.levers if lever not in levers)
    return dataclasses.replace(wanted, levers=left)


def lever_names(
    values: Iterable[str], name: str, offered: tuple[str, ...] = LEVERS
) -> tuple[str, ...]:
    """Names of levers, in any sequence, each once."""
    names = texts(values, name)
    unknown = [value for value in names if value not in offered]
    if unknown or not names:
        wrong = f"not {_shown(unknown[0])}" if unknown else "and there are none"
        raise ValueError(f"{name} must be of {', '.join(map(repr, offered))}, {wrong}")
    return tuple(lever for lever in offered if lever in names)


def _times(values: Mapping[str, float], name: str) -> dict[str, float]:
    """How long ops take, by their names."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} must be a dict of seconds by the names of ops, as in a report")
    return {op: seconds(took, f"{name} of {_shown(op)}") for op, took in values.items()}


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_encodable(value: str, encode: Callable[[str], bytes] = str.encode) -> bool:
    try:
        encode(value)
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """Short, and on one line."""
    return " ".join(reprlib.repr(value).split())
