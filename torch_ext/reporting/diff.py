"""Two orders of the same ops, compared as a reader would: what stayed, what went where."""

import bisect
import dataclasses
from collections import deque
from collections.abc import Collection, Sequence
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


def diff(old: Sequence[str], new: Sequence[str], left_out: Collection[str] = ()) -> list[Block]:
    """Return the blocks from top to bottom; as few ops as possible are said to have moved.

    What is left out counts as a step and is in no block.
    """
    old_step = {op: step for step, op in enumerate(old) if op not in left_out}
    new_step = {op: step for step, op in enumerate(new) if op not in left_out}
    stayed = _longest_increasing([old_step[op] for op in new_step])
    blocks: list[Block] = []

    def add(kind: Literal["same", "from", "to"], op: str) -> None:
        old_at, new_at = old_step[op], new_step[op]
        last = blocks[-1] if blocks else None
        if last is not None and (kind, old_at, new_at) == (
            last.kind,
            last.old + last.ops,
            last.new + last.ops,
        ):
            blocks[-1] = dataclasses.replace(last, ops=last.ops + 1)
        else:
            blocks.append(Block(kind, old_at, new_at, 1))

    from_old, from_new = deque(old_step), deque(new_step)
    while from_old or from_new:
        if from_old and old_step[from_old[0]] not in stayed:
            add("from", from_old.popleft())
        elif from_new and old_step[from_new[0]] not in stayed:
            add("to", from_new.popleft())
        else:
            add("same", from_old.popleft())
            from_new.popleft()
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
