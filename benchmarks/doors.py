"""Every door on the same networks: the peak before and after, in bytes that the allocator saw.

One process per network and door; within it the program as the door finds it (`before`) and as it
leaves it (`after`) run side by side. Inference of the networks of zoo.py, and training steps of
training.py. The doors:

  torchscript    the traced network; torch_ext.optimize. Training: the step in TorchScript
  export         the exported program; torch_ext.fx.reorder. Training: the captured step as FX graph
  backend        torch.compile(backend="aot_eager"); backend="torch_ext"
  inductor       torch.compile; within torch_ext.inductor.enabled()
  plain layout   the same without Inductor's layout optimisation
  whole step     the captured step compiled by Inductor, and within enabled(): training only
  whole, plain   the same without layout optimisation

`estimate` and `bound` are by the account that the door goes by, of the graph with the highest peak;
a compiler's graphs count inputs that they may free, so they compare with each other and not with
measured peaks. `before = eager`, `after = before`: identical, or the largest difference in any
result or state of three runs, relative to the largest value there. `time` is the median of
pairs, after / before. Exits with 1 where a door breaks what it promises: another bit than before,
or a higher peak (Inductor's doors promise an estimate, not a peak).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import zoo
from children import add_one, row_of
from measuring import mib, settled_peak, time_ratios
from results import (
    Growing,
    Row,
    Table,
    add_output,
    add_resume,
    change,
    circumstances,
    parse_options,
)
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from training import TASKS, TRAINING, Task, compile_whole_step, make_task, whole_step

import torch_ext.fx
import torch_ext.inductor
from torch_ext import optimize, training_step
from torch_ext.logs import Peaks
from torch_ext.tensors.compare import same_bits

RUNS = 3  # that are compared
HEADER = (
    "program",
    "door",
    "eager MiB",
    "before MiB",
    "after MiB",
    "estimate before MiB",
    "estimate after MiB",
    "bound MiB",
    "before = eager",
    "after = before",
    "time",
    "spread",
    "remark",
)
WORDS = ("program", "door", "before = eager", "after = before", "remark")


@dataclasses.dataclass(frozen=True)
class Program:
    """Something to run, and what it changes."""

    run: Callable[[], Any]
    state: Callable[[], Any] = tuple


@dataclasses.dataclass(frozen=True)
class Passage:
    """A program before and after a door. Both have run once, for that is when compilers compile."""

    before: Program
    after: Program
    peaks: list[Peaks]  # of each graph
    reference: Program | None = None  # what `before` is compared with, if not the eager program


Door = Callable[[str], Passage]


# --- programs -------------------------------------------------------------------------------------


def _is_training(name: str) -> bool:
    return name.startswith(TRAINING)


def _task(name: str) -> Task:
    return make_task(name.removeprefix(TRAINING))


def _network(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = zoo.model(name)
    network = model.build().eval()
    return network, tuple(torch.randn(shape) for shape in model.input_shapes)


def _started(run: Callable[[], Any], state: Callable[[], Any] = tuple) -> Program:
    torch.manual_seed(0)
    run()
    return Program(run, state)


def _eager(name: str, wrap: Callable[[nn.Module], Any] = lambda network: network) -> Program:
    """The program as everybody writes it; `wrap`: what a compiler makes of the network."""
    if _is_training(name):
        task = _task(name)
        state = task.model.state_dict
        task.model = wrap(task.model)
        return _started(task.eager_step, state)
    network, inputs = _network(name)
    compiled = wrap(network)
    return _started(lambda: compiled(*inputs))


# --- doors ----------------------------------------------------------------------------------------


def _torchscript(name: str) -> Passage:
    if _is_training(name):
        return _step(name, "torchscript")
    script, inputs = zoo.traced(zoo.model(name))
    optimized, report = optimize(script, inputs)
    before = _started(lambda: script(*inputs))
    return Passage(before, _started(lambda: optimized(*inputs)), [Peaks.of(report)])


def _export(name: str) -> Passage:
    if _is_training(name):
        return _step(name, "fx")
    network, inputs = _network(name)
    program = torch.export.export(network, inputs)
    reordered, report = torch_ext.fx.reorder(program, inputs)
    before, after = program.module(), reordered.module()
    return Passage(
        _started(lambda: before(*inputs)), _started(lambda: after(*inputs)), [Peaks.of(report)]
    )


def _step(name: str, runtime: Literal["fx", "torchscript"]) -> Passage:
    task = _task(name)
    step = training_step(task.model, task.loss_fn, task.optimizer, task.batch, runtime=runtime)
    after = _started(lambda: step(*task.batch), task.model.state_dict)
    return Passage(_eager(name), after, [Peaks.of(step.report)])


def _backend(name: str) -> Passage:
    before = _eager(name, functools.partial(torch.compile, backend="aot_eager"))
    with _listening() as peaks:
        after = _eager(name, functools.partial(torch.compile, backend="torch_ext"))
    return Passage(before, after, peaks)


def _inductor(name: str) -> Passage:
    before = _eager(name, _compiled_by_inductor)
    with _listening() as peaks, torch_ext.inductor.enabled():
        after = _eager(name, _compiled_by_inductor)
    return Passage(before, after, peaks)


def _compiled_by_inductor(network: nn.Module) -> Any:
    inductor = torch._dynamo.lookup_backend("inductor")

    # A function of its own: else dynamo takes what it has compiled for an equal network.
    def compile_with(module: fx.GraphModule, inputs: Any) -> Any:
        return inductor(module, inputs)

    return torch.compile(network, backend=compile_with)


def _whole_step(name: str) -> Passage:
    def program(compile_step: Callable[..., Any]) -> Program:
        module, inputs = whole_step(_task(name))
        run = compile_step(module, inputs)
        return _started(torch.no_grad()(lambda: run(*inputs)), lambda: inputs)

    before = program(compile_whole_step)
    with _listening() as peaks, torch_ext.inductor.enabled():
        after = program(compile_whole_step)
    return Passage(before, after, peaks, reference=program(lambda module, _: module))


def _without_layout(door: Door, name: str) -> Passage:
    torch._inductor.config.layout_optimization = False
    return door(name)


DOORS: dict[str, Door] = {
    "torchscript": _torchscript,
    "export": _export,
    "backend": _backend,
    "inductor": _inductor,
    "plain layout": functools.partial(_without_layout, _inductor),
    "whole step": _whole_step,
    "whole, plain": functools.partial(_without_layout, _whole_step),
}
KEEP_BITS = ("torchscript", "export", "backend")
ONLY_TRAINING = ("whole step", "whole, plain")


@contextlib.contextmanager
def _listening() -> Iterator[list[Peaks]]:
    """What our planner says about each graph that is compiled."""
    heard: list[Peaks] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "peaks"):
                heard.append(record.peaks)

    log, listener = logging.getLogger("torch_ext"), Listener()
    log.setLevel(logging.INFO)
    log.addHandler(listener)
    try:
        yield heard
    finally:
        log.removeHandler(listener)


# --- one measurement, in a process of its own -----------------------------------------------------


def measure(name: str, door: str, pairs: int) -> dict[str, Any]:
    """One row as a dictionary of texts; `failures` are the promises broken."""
    torch._inductor.config.force_disable_caches = True  # what comes from there is not planned
    with contextlib.nullcontext() if _is_training(name) else torch.no_grad():
        eager, passage = _eager(name), DOORS[door](name)
        before, after = passage.before, passage.after
        changed = _differences(passage.reference or eager, before, after)
        peaks = [settled_peak(program.run) for program in (eager, before, after)]
        ratios = statistics.quantiles(time_ratios(before.run, after.run, pairs, math.inf), n=4)
    failures = []
    if door in KEEP_BITS and changed[1] != "identical":
        failures.append("another result than before")
    if door in KEEP_BITS and peaks[2] > peaks[1]:
        failures.append("a higher peak than before")
    estimates = [dataclasses.astuple(told) for told in passage.peaks]
    estimate = max(estimates, key=lambda told: told[0], default=(None, None, None))
    return {
        "eager MiB": mib(peaks[0]),
        "before MiB": mib(peaks[1]),
        "after MiB": mib(peaks[2]),
        "estimate before MiB": mib(estimate[0]),
        "estimate after MiB": mib(estimate[1]),
        "bound MiB": mib(estimate[2]),
        "before = eager": changed[0],
        "after = before": changed[1],
        "time": f"{ratios[1]:.3f}",
        "spread": f"{ratios[2] - ratios[0]:.3f}",
        "failures": failures,
    }


def _differences(*programs: Program) -> list[str]:
    """Of neighbours, in several runs."""
    largest: list[float | None] = [None] * (len(programs) - 1)
    for seed in range(1, 1 + RUNS):
        left = []
        for program in programs:
            torch.manual_seed(seed)
            left.append(pytree.tree_leaves((program.run(), program.state())))
        for index, (a, b) in enumerate(itertools.pairwise(left)):
            for one, other in zip(a, b, strict=True):
                found = _difference(torch.as_tensor(one), torch.as_tensor(other))
                if found is not None:
                    largest[index] = max(largest[index] or 0.0, found)
    return ["identical" if found is None else f"{found:.0e}" for found in largest]


def _difference(a: Tensor, b: Tensor) -> float | None:
    if same_bits(a, b):
        return None
    a, b = a.detach().double(), b.detach().double()
    found = ((a - b).abs().max() / a.abs().max()).item()
    return math.inf if math.isnan(found) else found


# --- all of them ----------------------------------------------------------------------------------


def _in_a_process(task: Row, options: argparse.Namespace) -> dict[str, Any]:
    counts = ("--threads", str(options.threads), "--pairs", str(options.pairs))
    row = row_of(__file__, task, *counts, seconds=options.seconds)
    return row if task[1] in KEEP_BITS else {**row, "failures": []}  # Inductor's own


def by_door(table: Table) -> Table:
    """A row per program, a column per door: the measured peaks before and after in MiB."""

    def cells_of(row: dict[str, str]) -> dict[str, str]:
        why_not, _, _ = row["remark"].partition(":")  # fails or skipped
        peaks = change(row["before MiB"], row["after MiB"])
        return {"eager": row["eager MiB"], row["door"]: peaks or why_not}

    return table.gather(["program"], ["eager", *DOORS], cells_of)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=lambda text: text.split(","), metavar="A,B,C")
    parser.add_argument(
        "--doors",
        type=lambda text: text.split("+"),
        default=list(DOORS),
        metavar="A+B",
        help="default: all",
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: 1")
    parser.add_argument("--pairs", type=int, default=10, help="of timed runs; default: 10")
    parser.add_argument("--seconds", type=float, default=900, help="per program and door")
    add_resume(parser)
    add_one(parser, "PROGRAM", "DOOR")
    add_output(parser, "doors")
    return parse_options(parser)


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.one:
        warnings.simplefilter("ignore")
        name, door = options.one
        print(json.dumps(measure(name, door, options.pairs)))
        return
    names = options.programs or [
        *(model.name for model in zoo.MODELS),
        *(f"{TRAINING}{name}" for name in TASKS),
    ]
    tasks = [
        (name, door)
        for name in names
        for door in options.doors
        if _is_training(name) or door not in ONLY_TRAINING
    ]
    comments = [*circumstances(), f"threads: {options.threads}, pairs: {options.pairs}"]
    growing = Growing(Table(HEADER, [], WORDS), options.output, comments, options.resume)
    growing.measure("doors", tasks, lambda task: _in_a_process(task, options))
    by_door(growing.table).show(options.markdown)
    growing.end()


if __name__ == "__main__":
    main()
