"""Programs as lists of statements, which can be dropped one by one, and as modules that run."""

import dataclasses
import linecache
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tests.fuzz import helpers

_PRELUDE = """\
from typing import Dict, List, Optional, Tuple
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tests.fuzz.helpers import *
"""
_CLASS = """\
class Program(nn.Module):
    step: Step
    parts: List[Tensor]
    named: Dict[str, Tensor]

    def __init__(self) -> None:
        super().__init__()
"""
_FORWARD = """\
    def forward(self, x0: Tensor, x1: Tensor, xs: List[Tensor], n: int, flag: bool) -> Tuple[
        Tensor, Tensor, List[Tensor], Dict[str, Tensor], int
    ]:
"""
_FILE = "<program>"


@dataclasses.dataclass(frozen=True)
class Statement:
    """A line, the block below it if it opens one, and the simplest line that could replace it."""

    text: str
    body: tuple["Statement", ...] = ()
    simplest: str = ""

    def lines(self, indentation: str) -> Iterator[str]:
        yield indentation + self.text
        for statement in self.body:
            yield from statement.lines(indentation + "    ")


@dataclasses.dataclass(frozen=True)
class Program:
    """A module and the inputs of one call."""

    seed: int
    attributes: tuple[Statement, ...]
    forward: tuple[Statement, ...]
    inputs: tuple[Statement, ...]

    @property
    def source(self) -> str:
        def block(statements: tuple[Statement, ...], indentation: str) -> str:
            return "".join(line + "\n" for s in statements for line in s.lines(indentation))

        return (
            f"{_PRELUDE}\n\n{_CLASS}{block(self.attributes, ' ' * 8)}\n"
            f"{_FORWARD}{block(self.forward, ' ' * 8)}\n\n"
            f"def inputs():\n{block(self.inputs, ' ' * 4)}    return x0, x1, xs, n, flag\n"
        )

    @property
    def can_be_saved(self) -> bool:
        return f"{helpers.outside.__name__}(" not in self.source

    def instantiate(self) -> tuple[nn.Module, tuple[Any, ...]]:
        """A new module and inputs. Raises whatever Python raises."""
        source = self.source
        linecache.cache[_FILE] = (len(source), None, source.splitlines(keepends=True), _FILE)
        names: dict[str, Any] = {"__name__": "tests.fuzz.generated"}
        exec(compile(source, _FILE, "exec"), names)
        return names["Program"](), names["inputs"]()

    def compile(self) -> tuple[torch.jit.ScriptModule, tuple[Any, ...]]:
        """A new module that has not run yet, and inputs. Raises whatever TorchScript raises."""
        module, inputs = self.instantiate()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scripted: torch.jit.ScriptModule = torch.jit.script(module)
        return scripted, inputs
