"""Optimising and analysing TorchScript modules."""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, overload

import torch

from torch_ext._native import _jit
from torch_ext.arguments import ALL_LEVERS, GRAPH_LEVERS, MemoryAmount, flag, planning
from torch_ext.program.plan import LeverPlan, Reason, joined, reasons_of
from torch_ext.reporting.arena import with_arena
from torch_ext.reporting.report import ProgramReport, Verification, described
from torch_ext.torchscript.pinned import PinnedModule, pin_module
from torch_ext.torchscript.trace import Traced, trace

ExampleInputs = tuple[Any, ...] | Sequence[tuple[Any, ...]] | torch.Tensor


@dataclasses.dataclass(frozen=True)
class ExamplePeaks:
    """The peaks of one example input."""

    original_peak_bytes: int
    peak_bytes: int
    input_bytes: int
    measured_original_peak_bytes: int | None
    measured_peak_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Report(ProgramReport):
    """What was found out about a module. Peaks are bytes of activations.

    With several examples the plan is that of the example with the highest peak; `examples` has all
    of them. Measured is in the real executor; compared are outputs, inputs, state, random state and
    print-out.
    """

    examples: tuple[ExamplePeaks, ...]


@dataclasses.dataclass(frozen=True)
class Optimized:
    """What optimize_verified found."""

    module: torch.jit.ScriptModule
    report: Report
    failed: bool  # a better order was found but failed verification
    pinned: PinnedModule | None = None  # the module with planned addresses


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What analyze_in_full found."""

    report: Report
    bottleneck_region: str  # in the text format


@overload
def optimize(
    module: torch.nn.Module,
    example_inputs: ExampleInputs,
    *,
    scope: str = ...,
    time_budget: float = ...,
    memory_budget: MemoryAmount | None = ...,
    levers: Iterable[str] | None = ...,
    op_seconds: Mapping[str, float] | None = ...,
    verify: bool = ...,
    addresses: Literal[False] = ...,
) -> tuple[torch.jit.ScriptModule, Report]: ...


@overload
def optimize(
    module: torch.nn.Module,
    example_inputs: ExampleInputs,
    *,
    scope: str = ...,
    time_budget: float = ...,
    memory_budget: MemoryAmount | None = ...,
    levers: Iterable[str] | None = ...,
    op_seconds: Mapping[str, float] | None = ...,
    verify: bool = ...,
    addresses: Literal[True],
) -> tuple[PinnedModule, Report]: ...


def optimize(
    module: torch.nn.Module,
    example_inputs: ExampleInputs,
    *,
    scope: str = "all",
    time_budget: float = 2.0,
    memory_budget: MemoryAmount | None = None,
    levers: Iterable[str] | None = None,
    op_seconds: Mapping[str, float] | None = None,
    verify: bool = True,
    addresses: bool = False,
) -> tuple[torch.jit.ScriptModule | PinnedModule, Report]:
    """Return the module, edited so that its peak of memory is lower, and a report.

    `module` is a ScriptModule (traced, scripted, frozen, loaded) or an nn.Module, which is traced.
    The result shares its parameters and buffers; the given module, its state, the inputs and the
    random state are not changed. `example_inputs`: a tuple of arguments, or a list of such tuples
    (one order for all). `scope="bottleneck"` moves ops only around the peak. `levers`: "order" puts
    ops into another order, "overwrite" lets them write over arguments that nobody needs any more;
    default: both, and with scope="bottleneck" order alone. "slice" also runs stretches of ops part
    by part: those that make the program fastest with no more memory, by times measured in turns.
    Slices are vouched for on machines like this one: see verify, and docs/slices.md.
    With `addresses` the module comes back as a PinnedModule, whose calls take their memory from an
    arena, planned for each example; torch_ext.save keeps the plan in the file (docs/resident.md).
    `memory_budget` (bytes, or text like "512MiB") stops as soon as it is met; where order and
    overwriting do not meet it, some ops run again ("repeat", docs/repeats.md), or slices with the
    least work do, whichever cost less, if they can, whatever time they take (unless `levers` say
    otherwise). `op_seconds`, of a report, are used for that instead of measured times. With
    `verify` both versions run and must be equal bit for bit, with a measured peak that is lower.
    Otherwise the original module comes back and `report.reason` says why.

    Raises ValueError for inputs that do not fit or other bad arguments, and whatever the module
    raises when it runs.
    """
    optimized = optimize_verified(
        module,
        example_inputs,
        scope=scope,
        time_budget=time_budget,
        memory_budget=memory_budget,
        levers=levers,
        op_seconds=op_seconds,
        verify=verify,
        addresses=addresses,
    )
    return optimized.pinned or optimized.module, optimized.report


def optimize_verified(
    module: torch.nn.Module,
    example_inputs: ExampleInputs,
    *,
    scope: str = "all",
    time_budget: float = 2.0,
    memory_budget: MemoryAmount | None = None,
    levers: Iterable[str] | None = None,
    op_seconds: Mapping[str, float] | None = None,
    verify: bool = True,
    addresses: bool = False,
) -> Optimized:
    """As optimize, with all that was found."""
    wanted = planning(
        scope, time_budget, memory_budget, levers, GRAPH_LEVERS, op_seconds, addresses
    )
    verify = flag(verify, "verify")
    examples = _examples(example_inputs)
    traced = _as_script(module, examples, verify)
    script = traced.module
    cpp_module, changed, failed, fields = _jit.optimize(
        script._c,
        examples,
        wanted.time_budget,
        wanted.memory_budget,
        wanted.scope,
        wanted.levers,
        verify,
        {op: round(seconds * 1e9) for op, seconds in (wanted.op_seconds or {}).items()},
    )
    if changed:
        from torch.jit._recursive import wrap_cpp_module

        script = wrap_cpp_module(cpp_module)  # type: ignore[no-untyped-call]
    report = _report(fields)
    if traced.loss:
        warnings.warn(traced.loss, UserWarning, stacklevel=3)
        reasons = (Reason.of("lossy_trace", detail=traced.loss), *report.reasons)
        report = dataclasses.replace(
            report, identical=False, reasons=reasons, reason=joined(reasons)
        )
    if not addresses:
        return Optimized(script, report, failed)
    pinned, heights = pin_module(script, examples)
    return Optimized(script, with_arena(report, heights), failed, pinned)


def analyze(
    module: torch.nn.Module,
    example_inputs: ExampleInputs,
    *,
    scope: str = "all",
    time_budget: float = 2.0,
    levers: Iterable[str] | None = None,
) -> Report:
    """Report what optimize could gain. Changes nothing and measures only the original."""
    return analyze_in_full(
        module, example_inputs, scope=scope, time_budget=time_budget, levers=levers
    ).report


def analyze_in_full(
    module: torch.nn.Module,
    example_inputs: ExampleInputs,
    *,
    scope: str = "all",
    time_budget: float = 2.0,
    levers: Iterable[str] | None = None,
) -> Analysis:
    """As analyze; also the region around the bottleneck."""
    wanted = planning(scope, time_budget, levers=levers, offered=ALL_LEVERS)
    examples = _examples(example_inputs)
    script = _as_script(module, examples, compare=False).module
    fields, region = _jit.analyze(
        script._c, examples, wanted.time_budget, wanted.scope, wanted.levers
    )
    return Analysis(_report(fields), region)


def verify(
    module: torch.jit.ScriptModule | PinnedModule, example_inputs: ExampleInputs
) -> Verification:
    """Compare a module that optimize edited with the original, which it holds, on this machine.

    Slices give the same bits where kernels are chosen as on the machine that made them, so check
    after loading a file somewhere else. `example_inputs`: as of optimize.

    Raises ValueError for inputs that do not fit, for what is no ScriptModule, and for a module that
    holds no original: ops of it are in another order at most, which gives the same bits everywhere.
    """
    if isinstance(module, PinnedModule):
        module = module.module
    if not isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"expected a ScriptModule that optimize returned, not {type(module).__name__}"
        )
    examples = _examples(example_inputs)
    difference, original, edited = _jit.compare_with_original(module._c, examples)
    return Verification(difference, max(original), max(edited))


def peak_with_gradients(
    module: torch.jit.ScriptModule, example_inputs: ExampleInputs
) -> int | None:
    """Measure a call with gradients enabled; None if no parameter requires them, or if it fails."""
    return _jit.peak_with_gradients(module._c, _examples(example_inputs)[0])


def compare(
    a: torch.jit.ScriptModule, b: torch.jit.ScriptModule, example_inputs: ExampleInputs
) -> tuple[str, list[int], list[int]]:
    """Run both on copies of the examples: first difference (empty if none), and measured peaks."""
    return _jit.compare(a._c, b._c, _examples(example_inputs))


def _examples(example_inputs: ExampleInputs) -> list[tuple[Any, ...]]:
    if isinstance(example_inputs, torch.Tensor):
        return [(example_inputs,)]
    examples = [example_inputs] if isinstance(example_inputs, tuple) else example_inputs
    if not isinstance(examples, list) or not examples:
        raise ValueError(
            "example_inputs must be a tuple of arguments or a non-empty list of such tuples, not "
            f"{type(example_inputs).__name__}"
        )
    for index, example in enumerate(examples):
        if not isinstance(example, tuple):
            raise ValueError(
                "example_inputs must be a tuple of arguments or a non-empty list of such tuples, "
                f"but example {index} is a {type(example).__name__}"
            )
    return examples


def _as_script(module: torch.nn.Module, examples: list[tuple[Any, ...]], compare: bool) -> Traced:
    if isinstance(module, PinnedModule):
        module = module.module
    if isinstance(module, torch.jit.ScriptModule):
        return Traced(module, "")
    if not isinstance(module, torch.nn.Module):
        raise ValueError(
            f"expected a torch.nn.Module or a ScriptModule, not {type(module).__name__}"
        )
    return trace(module, examples[0], compare)


def _report(fields: tuple[Any, ...]) -> Report:
    found, reasons, measured = fields
    return Report(
        **described(LeverPlan.from_fields(found), reasons_of(reasons)),
        **{**measured, "examples": tuple(ExamplePeaks(**one) for one in measured["examples"])},
    )
