"""The registered pass beside optimize: peaks of the third call, and what enabling it costs.

One process per network, so that nothing has been learned before it; the network is traced anew for
every variant, for a module keeps the plan of its second call. Cost: `cold` is what the pass adds
when nothing has been learned yet, in settled calls of the network; `warm` is the time of the first
two calls with the pass over that without it, the median of pairs. Exits with 1 if a result differs
or a peak is higher than without the pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import zoo
from children import add_one, row_of
from measuring import mib
from results import Growing, Table, add_output, circumstances, parse_options

from torch_ext import disable, enabled, measure_peak, optimize, pass_stats

HEADER = (
    "model",
    "original MiB",
    "optimize MiB",
    "pass MiB",
    "pass / optimize",
    "after disable MiB",
    "identical",
    "cold calls",
    "warm ratio",
)
WORDS = ("model", "identical")


@dataclass(frozen=True)
class Calls:
    """Three calls of a network that was traced for them."""

    result: tuple[torch.Tensor, ...]
    peak_bytes: int  # of the third
    first_two_seconds: float
    third_seconds: float


def call_three_times(model: zoo.Model) -> Calls:
    """Profile, compile, and measure."""
    script, inputs = zoo.traced(model)
    with torch.no_grad():
        start = time.perf_counter()
        script(*inputs)
        script(*inputs)
        first_two = time.perf_counter() - start
        start = time.perf_counter()
        with measure_peak() as memory:
            result = script(*inputs)
        third = time.perf_counter() - start
    results = result if isinstance(result, tuple) else (result,)
    return Calls(results, memory.peak_bytes, first_two, third)


def measure(name: str, pairs: int) -> dict[str, Any]:
    """One row as a dictionary of texts; `failures` are the promises broken."""
    model = zoo.model(name)
    before = call_three_times(model)
    script, inputs = zoo.traced(model)
    _, report = optimize(script, inputs)
    optimized_bytes = report.measured_peak_bytes or report.peak_bytes
    seconds = pass_stats()["seconds"]
    with enabled():
        after = call_three_times(model)
    cold_calls = (pass_stats()["seconds"] - seconds) / before.third_seconds
    ratios = []
    for pair in range(pairs):
        times: dict[bool, float] = {}
        for on in (False, True) if pair % 2 else (True, False):
            if on:
                with enabled():
                    times[on] = call_three_times(model).first_two_seconds
            else:
                times[on] = call_three_times(model).first_two_seconds
        ratios.append(times[True] / times[False])
    disable()
    afterwards = call_three_times(model)
    identical = all(map(torch.equal, before.result, after.result))
    failures = []
    if not identical:
        failures.append("another result with the pass")
    if after.peak_bytes > before.peak_bytes:
        failures.append("a higher peak with the pass")
    if afterwards.peak_bytes != before.peak_bytes:
        failures.append("after disable not what it was")
    return {
        "original MiB": mib(before.peak_bytes),
        "optimize MiB": mib(optimized_bytes),
        "pass MiB": mib(after.peak_bytes),
        "pass / optimize": f"{after.peak_bytes / optimized_bytes:.3f}",
        "after disable MiB": mib(afterwards.peak_bytes),
        "identical": "yes" if identical else "NO",
        "cold calls": f"{cold_calls:.2f}",
        "warm ratio": f"{statistics.median(ratios):.3f}",
        "failures": failures,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="A,B,C")
    parser.add_argument("--threads", type=int, default=2, help="of torch; default: 2")
    parser.add_argument("--pairs", type=int, default=10, help="of runs; default: 10")
    add_one(parser, "MODEL")
    add_output(parser, "passes")
    return parse_options(parser)


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(measure(options.one[0], options.pairs)))
        return
    names = options.models or [model.name for model in zoo.MODELS]
    counts = ("--threads", str(options.threads), "--pairs", str(options.pairs))
    comments = [*circumstances(), f"threads: {options.threads}, pairs: {options.pairs}"]
    growing = Growing(Table(HEADER, [], WORDS), options.output, comments)
    growing.measure(
        "networks", [(name,) for name in names], lambda task: row_of(__file__, task, *counts)
    )
    growing.table.show(options.markdown)
    growing.end()


if __name__ == "__main__":
    main()
