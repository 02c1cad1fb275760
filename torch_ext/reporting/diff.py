"""Two orders of the same ops, compared as a reader would: what stayed, what went where."""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Block:
    """Ops that stand next to each other in both orders.

    A block that moved appears twice in a diff, as "from" at its old place and as "to" at its new.
    """

    kind: Literal["same", "from", "to"]
    old: int  # step of the first op in the old order
    new: int
    ops: int


def diff(old: Sequence[str], new: Sequence[str]) -> list[Block]:
    """Return the blocks from top to bottom; as few ops as possible are said to have moved."""
    old_step = {op: step for step, op in enumerate(old)}
    new_step = {op: step for step, op in enumerate(new)}
    steps = [old_step[op] for op in new]  # by new step
    stayed = _longest_increasing(steps)
    blocks: list[Block] = []

    def add(kind: Literal["same", "from", "to"], old_at: int, new_at: int) -> None:
        last = blocks[-1] if blocks else None
        if last is not None and (kind, old_at, new_at) == (
            last.kind,
            last.old + last.ops,
            last.new + last.ops,
        ):
            blocks[-1] = dataclasses.replace(last, ops=last.ops + 1)
        else:
            blocks.append(Block(kind, old_at, new_at, 1))

    at_old = at_new = 0
    while at_old < len(old) or at_new < len(new):
        if at_old < len(old) and at_old not in stayed:
            add("from", at_old, new_step[old[at_old]])
            at_old += 1
        elif at_new < len(new) and steps[at_new] not in stayed:
            add("to", steps[at_new], at_new)
            at_new += 1
        else:
            add("same", at_old, at_new)
            at_old, at_new = at_old + 1, at_new + 1
    return blocks


def _longest_increasing(values: Sequence[int]) -> set[int]:
    """The values of a longest increasing subsequence of distinct values; patience sorting."""
    tops: list[int] = []  # the least last value of a subsequence of each length
    before: dict[int, int | None] = {}
    for value in values:
        pile = bisect.bisect_left(tops, value)
        before[value] = tops[pile - 1] if pile else None
        tops[pile : pile + 1] = [value]
    kept: set[int] = set()
    last = tops[-1] if tops else None
    while last is not None:
        kept.add(last)
        last = before[last]
    return kept
