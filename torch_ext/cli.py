"""The command line: files in, files out. See `python -m torch_ext --help`.

Exit codes: 0 done; 1 failed (running the model, writing the output); 2 usage, bad input spec,
unreadable input, or outputs that should not be asked for (a folder, two in one file, the input
without --force); 3 memory budget not met; 4 verification failed; 130 interrupted.
"""

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from torch_ext import __version__
from torch_ext.amounts import MIB, amount, parse_memory
from torch_ext.files import (
    UnreadableInputError,
    UnwritableOutputError,
    check_outputs,
    discard_unfinished,
    first_line,
    innermost_error,
    load_model,
    save_model,
    write_text,
)
from torch_ext.input_spec import letter_of, make_inputs, parse_input_spec
from torch_ext.planning import FORMAT, Plan, plan, read_graph
from torch_ext.progress import progress
from torch_ext.summaries import two_columns

if TYPE_CHECKING:
    import torch

    from torch_ext.optimizing import Report

MOST_KEPT_BYTES = 2**30
DONE, FAILED, BAD_INPUT, OVER_BUDGET, UNVERIFIED, INTERRUPTED = 0, 1, 2, 3, 4, 130


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    options = _parser().parse_args(arguments)
    try:
        code = _interruptible(lambda: options.run(options))
    except UnreadableInputError as error:
        code = _complain(str(error), BAD_INPUT)
    except ValueError as error:
        code = _complain(first_line(error), BAD_INPUT)
    except UnwritableOutputError as error:
        code = _complain(str(error), FAILED)
    except (RuntimeError, MemoryError) as error:
        code = _complain(_model_error(error), FAILED)
    except ImportError as error:
        code = _complain(first_line(error), FAILED)
    except KeyboardInterrupt:
        discard_unfinished()
        _complain("interrupted, nothing was written", INTERRUPTED)
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # a worker may still run inside torch
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except Exception as error:
        if type(error).__module__ != "torch.jit":  # there: a raise in the model
            raise
        code = _complain(_model_error(error), FAILED)
    sys.exit(code)


def _complain(message: str, code: int) -> int:
    print(f"torch_ext: {message}", file=sys.stderr)
    return code


def _model_error(error: BaseException) -> str:
    return f"the model cannot be run: {innermost_error(error)}"


def _interruptible(work: Callable[[], int]) -> int:
    """Run `work` in a thread of its own, so that Ctrl-C gets through while torch computes."""
    outcome: list[int | BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


# --- commands ----------------------------------------------------------------------------------


def _run_plan(options: argparse.Namespace) -> int:
    check_outputs({"-o": options.output}, options.graph, options.force)
    try:
        with progress("planning"):
            result = plan(
                read_graph(options.graph, options.name),
                time_budget=options.time_budget,
                memory_budget=options.memory_budget,
            )
    except OSError as error:
        raise UnreadableInputError(f"{options.graph}: {error.strerror}") from None
    if options.output is not None:
        write_text(options.output, "".join(f"{op}\n" for op in result.order))
    _print_result(result, options.json)
    return _budget_code(result)


def _run_analyze(options: argparse.Namespace) -> int:
    for spec in options.input:
        parse_input_spec(spec)
    outputs = {**_outputs(options), "--graph": options.graph, "--extract": options.extract}
    check_outputs(outputs, options.model, options.force)
    from torch_ext.measuring import resident_bytes
    from torch_ext.optimizing import analyze_in_full

    process_bytes = resident_bytes()
    module, _ = load_model(options.model)
    with progress("probing and planning"):
        analysis = analyze_in_full(
            module,
            make_inputs(options.input),
            scope=options.scope,
            time_budget=options.time_budget,
        )
    if options.graph is not None:
        write_text(options.graph, analysis.report.graph.to_graph().to_text())
    if options.extract is not None:
        write_text(options.extract, analysis.bottleneck_region)
    _write_outputs(options, analysis.report, module, process_bytes)
    _print_result(analysis.report, options.json)
    return DONE


def _run_optimize(options: argparse.Namespace) -> int:
    for spec in options.input:
        parse_input_spec(spec)
    outputs = {"-o": options.output, **_outputs(options)}
    check_outputs(outputs, options.model, options.force)
    from torch_ext.measuring import resident_bytes
    from torch_ext.optimizing import optimize_verified

    process_bytes = resident_bytes()
    module, extra_files = load_model(options.model)
    with progress("probing, planning and verifying"):
        optimized = optimize_verified(
            module,
            make_inputs(options.input),
            scope=options.scope,
            time_budget=options.time_budget,
            memory_budget=options.memory_budget,
        )
    report = optimized.report
    if optimized.failed:
        _print_result(report, options.json)
        return _complain(f"{report.reason}; nothing was written", UNVERIFIED)
    save_model(optimized.module, options.output, extra_files)
    _write_outputs(options, report, module, process_bytes)
    _print_result(report, options.json)
    return _budget_code(report)


def _run_verify(options: argparse.Namespace) -> int:
    for spec in options.input:
        parse_input_spec(spec)
    from torch_ext.optimizing import compare

    a, b = load_model(options.a)[0], load_model(options.b)[0]
    with progress("running both"):
        difference, peaks_a, peaks_b = compare(a, b, make_inputs(options.input))
    result = {
        "format": FORMAT,
        "identical": not difference,
        "difference": difference,
        "measured_peak_bytes_a": peaks_a[0],
        "measured_peak_bytes_b": peaks_b[0],
    }
    if options.json:
        _print_json(result)
    else:
        rows = [
            ("outputs", difference or "identical"),
            (f"measured peak of {options.a}", amount(peaks_a[0])),
            (f"measured peak of {options.b}", amount(peaks_b[0])),
        ]
        print(two_columns(rows))
    return UNVERIFIED if difference else DONE


def _run_capacity(options: argparse.Namespace) -> int:
    letter_of(options.input)  # complain before torch is imported
    from torch_ext import capacity_text, fitting

    price = None
    if options.price_per_gib_hour is not None:
        price = capacity_text.Price(options.price_per_gib_hour, options.replicas)
    module, _ = load_model(options.model)
    try:
        with progress("looking for the largest size"):
            found = fitting.capacity(
                module,
                options.input,
                options.memory_budget,
                step=options.step,
                time_budget=options.time_budget,
            )
    except fitting.CapacityError as error:
        return _complain(str(error), FAILED)
    if options.json:
        saving = None if price is None else price.yearly(found.saved_bytes)
        _print_json({**found.to_dict(), "saved_per_year": saving})
    else:
        print(two_columns(capacity_text.rows(found, price)))
        print(f"\n{capacity_text.sentence(found, options.lang, price)}")
    if found.fits:
        return DONE
    return _complain("it does not fit into the memory budget", OVER_BUDGET)


def _run_doctor(options: argparse.Namespace) -> int:
    from torch_ext import _sched

    facts: dict[str, Any] = {
        "format": FORMAT,
        "torch_ext": __version__,
        "python": sys.version.split()[0],
        "built_for_torch": _sched.built_for_torch,
    }
    problem = ""
    try:
        import torch

        facts["torch"] = torch.__version__
        facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        facts["threads"] = torch.get_num_threads()
        from torch_ext.measuring import malloc_name, measure_peak

        with measure_peak() as memory:
            tensor = torch.empty(MIB, dtype=torch.uint8)
        facts["measured_bytes_of_1_mib"] = memory.peak_bytes
        facts["malloc"] = malloc_name()
        del tensor
        if memory.peak_bytes != MIB:
            problem = "the allocator's reports do not reach torch_ext"
    except ImportError as error:
        problem = first_line(error)
    facts["problem"] = problem
    if options.json:
        _print_json(facts)
    else:
        rows = [(key, str(value)) for key, value in facts.items() if key != "format"]
        print(two_columns(rows))
        if facts.get("malloc") == "glibc":
            print("\nglibc's malloc keeps what was freed: the memory of the process may not show a")
            print("gain. Preload jemalloc, mimalloc or tcmalloc; see docs/resident.md.")
    return FAILED if problem else DONE


def _outputs(options: argparse.Namespace) -> dict[str, str | None]:
    """Those that show what was found, by their options."""
    return {"--html": options.html, "--trace": options.trace, "--csv": options.csv}


def _write_outputs(
    options: argparse.Namespace,
    report: "Report",
    module: "torch.jit.ScriptModule",
    process_bytes: int | None,
) -> None:
    if not any(_outputs(options).values()):
        return
    from torch_ext.optimizing import peak_with_gradients
    from torch_ext.reporting import Findings, to_csv, to_html, to_trace

    with progress("writing the report"):
        gradient_peak_bytes = None
        # A call with gradients keeps about all buffers, which may be more than there is.
        if options.html and sum(buffer.bytes for buffer in report.graph.buffers) <= MOST_KEPT_BYTES:
            gradient_peak_bytes = peak_with_gradients(module, make_inputs(options.input))
        inputs = tuple(options.input)
        findings = Findings(
            report.graph,
            report,
            os.path.basename(options.model),
            inputs,
            process_bytes,
            gradient_peak_bytes,
        )
        for path, convert in (
            (options.html, to_html),
            (options.trace, to_trace),
            (options.csv, to_csv),
        ):
            if path:
                write_text(path, convert(findings))


def _budget_code(result: Plan) -> int:
    if result.budget_met is False:
        return _complain(
            f"the memory budget cannot be met, the best found is {amount(result.peak_bytes)}",
            OVER_BUDGET,
        )
    return DONE


# --- output ------------------------------------------------------------------------------------


def _print_json(fields: dict[str, Any]) -> None:
    print(json.dumps(fields))


def _print_result(result: Plan, as_json: bool) -> None:
    if as_json:
        _print_json(result.to_dict())
    else:
        print(result)


# --- arguments ---------------------------------------------------------------------------------


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError("must be between 0 and 1e6 seconds")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 10**9:
        raise argparse.ArgumentTypeError("must be between 1 and 1e9")
    return value


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number like 0.005") from None
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError("must be between 0 and 1e9")
    return value


def _memory(text: str) -> int:
    try:
        return parse_memory(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torch_ext",
        description="Lowers the peak memory of a TorchScript model by reordering its operations.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 memory budget not met, "
        "4 verification failed, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"torch_ext {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        return sub

    def with_model(sub: argparse.ArgumentParser, *names: str) -> None:
        for name in names or ("model",):
            sub.add_argument(name, help="a TorchScript file")

    def with_inputs(sub: argparse.ArgumentParser, more: str = "") -> None:
        sub.add_argument(
            "--input",
            action="append",
            default=[],
            metavar="SHAPE[:TYPE]",
            help="an example argument of forward, e.g. 1x3x224x224:f32 or 1x128:i64, filled with "
            "the same random numbers every time (integers: 0 and 1); repeat for more arguments"
            + (f"; {more}" if more else ""),
        )

    def with_budget(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--time-budget",
            type=_seconds,
            default=2.0,
            metavar="SECONDS",
            help="for planning, as counted work: slower machines take longer; default: 2",
        )

    def with_target(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--memory-budget", type=_memory, metavar="SIZE", help="stop when met, e.g. 512MiB"
        )

    def with_scope(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--scope",
            choices=("all", "bottleneck"),
            default="all",
            help="bottleneck: move ops only around the peak",
        )

    def with_outputs(sub: argparse.ArgumentParser) -> None:
        for option, text in (
            ("--html", "write a page that shows what was found; opens in any browser"),
            ("--trace", "write memory over the ops for Perfetto or chrome://tracing"),
            ("--csv", "write memory over the ops as a table"),
        ):
            sub.add_argument(option, metavar="FILE", help=text)

    def with_force(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--force", action="store_true", help="let an output take the place of the input"
        )

    sub = command("plan", _run_plan, "plan a bare graph, or one from Inductor (imports no torch)")
    sub.add_argument(
        "graph",
        help="a graph in the text format, as Inductor dumps it, or a log of TORCH_TRACE",
    )
    sub.add_argument("--name", default="", help="which graph, where a log holds several")
    sub.add_argument("-o", "--output", metavar="FILE", help="write the order, an op per line")
    with_budget(sub)
    with_target(sub)
    with_force(sub)

    sub = command("analyze", _run_analyze, "report what could be gained; changes nothing")
    with_model(sub)
    with_inputs(sub)
    with_budget(sub)
    with_scope(sub)
    with_outputs(sub)
    sub.add_argument("--graph", metavar="FILE", help="write the whole graph as text")
    sub.add_argument(
        "--extract",
        metavar="FILE",
        help="write the region around the original order's peak as a graph in the text format",
    )
    with_force(sub)

    sub = command("optimize", _run_optimize, "write the model in an order of lower peak memory")
    with_model(sub)
    sub.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="the TorchScript file to write"
    )
    with_inputs(sub)
    with_budget(sub)
    with_scope(sub)
    with_outputs(sub)
    with_target(sub)
    with_force(sub)

    sub = command("verify", _run_verify, "run two models and compare what they do, bit for bit")
    with_model(sub, "a", "b")
    with_inputs(sub)

    sub = command(
        "capacity", _run_capacity, "find what fits into a memory budget, before and after"
    )
    with_model(sub)
    with_inputs(sub, "one letter may stand for a size: Nx3x224x224:f32")
    with_budget(sub)
    sub.add_argument(
        "--memory-budget",
        type=_memory,
        metavar="SIZE",
        help="for parameters, inputs and activations together, e.g. 512MiB",
    )
    sub.add_argument(
        "--step", type=_positive, default=1, metavar="K", help="try only multiples of K; default: 1"
    )
    sub.add_argument(
        "--price-per-gib-hour",
        type=_price,
        metavar="PRICE",
        help="tell what the saved memory costs in a year, in any currency",
    )
    sub.add_argument("--replicas", type=_positive, default=1, help="that run all year; default: 1")
    sub.add_argument("--lang", choices=("en", "ja"), default="en", help="of the last sentence")

    command("doctor", _run_doctor, "check the installation")
    return parser
