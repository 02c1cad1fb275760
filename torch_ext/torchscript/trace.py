"""From a module of Python's to a trace of it: what the trace loses is told, not passed on."""

import contextlib
import copy
import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch_ext import attributes
from torch_ext.arguments import misfit
from torch_ext.files import without_jit_warnings
from torch_ext.tensors.compare import first_difference


@dataclasses.dataclass(frozen=True)
class Traced:
    """A trace, and what the module does that it does not do; empty if that is nothing."""

    module: torch.jit.ScriptModule
    loss: str


def trace(module: nn.Module, example: tuple[Any, ...], compare: bool) -> Traced:
    """Trace a module, which is afterwards as it was, attributes and buffers included.

    With `compare` both are called twice in a row: an attribute that forward writes is dropped by
    the trace, and an `if` on a value is fixed as the example took it. Raises ValueError for an
    example that does not fit, and whatever the module raises.
    """
    saved = attributes.Saved(module)
    try:
        with _quiet():
            traced: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
                module, copy.deepcopy(example), check_trace=False, strict=False
            )
    except (TypeError, RuntimeError):
        wrong = _untraceable(module, example)
        if wrong:
            raise ValueError(f"example 0 {wrong}") from None
        raise
    finally:
        saved.put_back()
    return Traced(traced, _loss(module, traced, example, saved) if compare else "")


def _untraceable(module: nn.Module, example: tuple[Any, ...]) -> str:
    """Why it cannot be traced with the module, if it is to blame; else empty."""
    wrong = misfit(module.forward, example)
    if wrong:
        return f"does not fit forward, {wrong}"
    for leaf in pytree.tree_leaves(example):
        if not isinstance(leaf, torch.Tensor):
            return (
                f"has a value of type {type(leaf).__name__}, and only tensors in tuples, lists and "
                "dicts can be traced: script the module with torch.jit.script first"
            )
    inferred = torch._C._jit_try_infer_type(example)
    return "" if inferred.success() else f"cannot be traced: {inferred.reason()}"


def _loss(
    module: nn.Module,
    traced: torch.jit.ScriptModule,
    example: tuple[Any, ...],
    saved: attributes.Saved,
) -> str:
    seen = [attributes.contents(module)]
    results = []
    for run in (module, traced):
        try:
            results.append(_called_twice(module, run, example, seen))
        finally:
            saved.put_back()
    difference = first_difference(*results)
    changed = attributes.changes(*seen[1:3])
    if difference and not changed:
        changed = attributes.changes(*seen[:2])  # what the first call alone has changed
    if changed:
        names = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        return f"the trace drops what forward writes to {names}; script the module to keep it"
    if difference:
        return (
            f"the trace does not do what the module does: {difference} differs; script the module "
            "if it has an `if` on values"
        )
    return ""


def _called_twice(
    module: nn.Module,
    run: Callable[..., Any],
    example: tuple[Any, ...],
    seen: list[dict[str, Any]],
) -> dict[str, Any]:
    """The results, and the buffers of `module` then, which both share."""
    results = {}
    with _quiet():
        for call in ("first", "second"):
            result = run(*copy.deepcopy(example))
            results[f"the result of the {call} call"] = pytree.tree_map_only(
                torch.Tensor, torch.clone, pytree.tree_leaves(result)
            )
            seen.append(attributes.contents(module))
        buffers = {f"buffer {name}": value.clone() for name, value in module.named_buffers()}
        return {**results, **buffers, "the random state": torch.get_rng_state()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without gradients, torch's warnings, print-out and random numbers that others would miss."""
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        without_jit_warnings(),
        torch.jit.optimized_execution(False),  # type: ignore[attr-defined]
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield
