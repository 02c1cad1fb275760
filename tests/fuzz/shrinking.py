"""Makes a failing program small: drops and simplifies statements while it fails in the same way."""

import dataclasses
import time
from collections.abc import Callable, Iterator

from tests.fuzz.source import Program, Statement

Block = tuple[Statement, ...]


def shrink(program: Program, fails: Callable[[Program], bool], seconds: float = 60.0) -> Program:
    """The smallest program met that still `fails`; most candidates are invalid and do not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for candidate in _smaller(program):
            if time.monotonic() > deadline:
                break
            if fails(candidate):
                program = candidate
                break
        else:
            break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    for block in _smaller_blocks(program.forward):
        yield dataclasses.replace(program, forward=block)
    for block in _smaller_blocks(program.attributes):
        yield dataclasses.replace(program, attributes=block)


def _smaller_blocks(block: Block) -> Iterator[Block]:
    half = len(block) // 2
    while half > 1:
        for start in range(len(block) - half, -1, -half):
            yield block[:start] + block[start + half :]
        half //= 2
    for i in reversed(range(len(block))):
        before, statement, after = block[:i], block[i], block[i + 1 :]
        yield before + after
        if statement.body:
            yield before + statement.body + after
            counts = statement.text.startswith("while ")  # its first statement: else it may not end
            for body in _smaller_blocks(statement.body):
                if body and not (counts and body[0] != statement.body[0]):
                    yield (*before, dataclasses.replace(statement, body=body), *after)
        for text in _simpler(statement):
            yield (*before, dataclasses.replace(statement, text=text, simplest=""), *after)


def _simpler(statement: Statement) -> Iterator[str]:
    if statement.simplest and statement.simplest != statement.text:
        yield statement.simplest
    if statement.text.startswith("return "):
        yield from _shorter_lists(statement.text)


def _shorter_lists(text: str) -> Iterator[str]:
    """Texts with fewer elements in the list that is returned."""
    start, end = text.index(", [") + 3, text.rindex("], {")
    elements = text[start:end].split(", ")
    if len(elements) > 1:
        for i in range(len(elements)):
            rest = elements[:i] + elements[i + 1 :]
            yield f"{text[:start]}{', '.join(rest)}{text[end:]}"
