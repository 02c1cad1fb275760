"""Inductor's scheduler nodes in an order of lower peak memory.

Just before Inductor generates code it tries three heuristic orders and takes the one of the lowest
estimated peak (`torch._inductor.memory.reorder_for_peak_memory`). Within `enabled` our planner adds
one more. Inductor's own estimate judges, and ours, which also knows which kernels become one call
(inductor_calls): our order is taken only if by that it is lower, by 0.1 % at least, and not higher
by Inductor's.

What is compiled so has a key of its own in Inductor's caches. A custom pass in Inductor's
configuration, which does nothing else, does two jobs: it adds our key to the cache, and its
presence turns our ordering on, per thread and per compilation. One switch, so the two cannot
disagree.

Environment: `TORCH_EXT_DISABLE=1` turns `enabled` into a no-op; `TORCH_EXT_LOG=info` logs each
decision through the logger "torch_ext".
"""

import contextlib
import functools
import hashlib
import importlib
import inspect
import logging
import pathlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from torch_ext import _sched
from torch_ext._version import __version__
from torch_ext.arguments import planning, seconds
from torch_ext.inductor.calls import Calls
from torch_ext.inductor.dump import Buffer, Node, to_graph
from torch_ext.logs import Peaks, is_disabled, set_up_logging
from torch_ext.program.plan import plan_graph

Order = list[Any]  # of torch._inductor.scheduler.BaseSchedulerNode

_log = logging.getLogger("torch_ext")

# Of the peak. What no account knows may cost as much: reuse in place, gradients that the caller
# hands over, scratch memory.
_LEAST_GAIN = 0.001

_HOOK = "reorder_for_peak_memory"
_PASS = "_pre_fusion_custom_pass"
_CACHES_OFF = "force_disable_caches"
_NEEDED = {  # functions of torch._inductor.memory, and the parameters that we rely on
    _HOOK: ("nodes", "name_to_buf", "name_to_fused_node", "graph_inputs", "graph_outputs"),
    "get_freeable_input_buf": ("nodes", "graph_inputs"),
    "estimate_peak_memory": ("nodes", "name_to_freeable_input_buf", "graph_outputs"),
}


@contextlib.contextmanager
def enabled(*, time_budget: float = 2.0) -> Iterator[None]:
    """Let our order compete in whatever this thread compiles with Inductor within the block.

    A backward graph is compiled when it first runs: keep the block open until then. `time_budget`
    is for planning, in seconds per graph. Where Inductor has no place for us there is one
    UserWarning, and it compiles as always. Raises ValueError if it is not between 0 and 1e6.
    """
    time_budget = seconds(time_budget, "time_budget")
    set_up_logging()
    missing = _missing()
    if missing and not is_disabled():
        warnings.warn(f"{missing}, so Inductor's own order is used", stacklevel=3)
    if missing or is_disabled():
        yield
        return
    with _hooked(), _config().patch(_changes(time_budget)):
        yield


def _config() -> Any:
    return importlib.import_module("torch._inductor.config")


def _missing() -> str:
    """What Inductor lacks for our order to be taken, as the beginning of a sentence, or nothing."""
    try:
        memory, config = importlib.import_module("torch._inductor.memory"), _config()
    except ImportError as error:
        return f"torch {torch.__version__} has no Inductor that can be imported ({error})"
    for name, parameters in _NEEDED.items():
        function = getattr(memory, name, None)
        if (
            not callable(function)
            or not {*parameters} <= inspect.signature(function).parameters.keys()
        ):
            expected = f"torch._inductor.memory.{name}({', '.join(parameters)})"
            return f"torch {torch.__version__} has no {expected}"
    for name in (_PASS, _CACHES_OFF):
        if not hasattr(config, name):
            return f"torch {torch.__version__} has no torch._inductor.config.{name}"
    if not getattr(config, _HOOK, True):
        return f"torch._inductor.config.{_HOOK} is off"
    return ""


# --- what tells the caches, and the hook ----------------------------------------------------------


class _Mark:
    """A custom pass of Inductor's scheduler that does nothing but call the user's own, if any."""

    def __init__(self, time_budget: float, before: Callable[[Order], Order] | None) -> None:
        self.time_budget = time_budget
        self.before = before

    def __call__(self, nodes: Order) -> Order:
        """Inductor calls it before it fuses."""
        return nodes if self.before is None else self.before(nodes)

    def uuid(self) -> object:
        """What belongs to the key of a cached graph: whatever our order depends on."""
        before = None if self.before is None else self.before.uuid()  # type: ignore[attr-defined]
        return "torch_ext", __version__, _planner_hash(), self.time_budget, before


@functools.cache
def _planner_hash() -> str:
    """Of all that decides on an order: what is in this folder, and the core."""
    files = [*sorted(pathlib.Path(__file__).parent.glob("*.py")), pathlib.Path(_sched.__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _changes(time_budget: float) -> dict[str, object]:
    """What a block changes in Inductor's configuration."""
    before = getattr(_config(), _PASS)
    if isinstance(before, _Mark):  # of a block around this one
        before = before.before
    passes = importlib.import_module("torch._inductor.custom_graph_pass")
    kind = getattr(passes, "CustomSchedulerPass", None)
    if kind and (before is None or (isinstance(before, kind) and before.uuid() is not None)):
        return {_PASS: type("_KnownMark", (_Mark, kind), {})(time_budget, before)}
    # The caches ask no pass of this kind for its key, or the user's own has none.
    return {_PASS: _Mark(time_budget, before), _CACHES_OFF: True}


_lock = threading.Lock()
_blocks = 0  # that are open, in all threads
_installed: Any = None


@contextlib.contextmanager
def _hooked() -> Iterator[None]:
    """Have Inductor call `_reorder`; several blocks may be open, in any order and thread."""
    global _blocks, _installed
    memory = importlib.import_module("torch._inductor.memory")
    with _lock:
        _blocks += 1
        original = getattr(memory, _HOOK)
        if _blocks == 1 and original is not _installed:
            _installed = functools.wraps(original)(functools.partial(_reorder, memory, original))
            setattr(memory, _HOOK, _installed)
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            # If somebody has put another function around ours it stays: without a block, ours only
            # passes on.
            if _blocks == 0 and getattr(memory, _HOOK) is _installed:
                setattr(memory, _HOOK, _installed.__wrapped__)


# --- the order ------------------------------------------------------------------------------------


def _reorder(
    memory: Any,
    original: Callable[..., Order],
    nodes: Order,
    name_to_buf: Any,
    name_to_fused_node: Any,
    graph_inputs: Any,
    graph_outputs: Any,
    *rest: Any,
    **options: Any,
) -> Order:
    """In place of Inductor's function of the same parameters: its order, or ours if that is lower.

    The original has left behind, at nodes and buffers, what it knows of their memory.
    """
    theirs = original(
        nodes, name_to_buf, name_to_fused_node, graph_inputs, graph_outputs, *rest, **options
    )
    mark = getattr(_config(), _PASS)
    if not isinstance(mark, _Mark):
        return theirs
    try:
        inputs = memory.get_freeable_input_buf(nodes, graph_inputs)

        def estimate(order: Order) -> int:
            return int(memory.estimate_peak_memory(order, inputs, graph_outputs)[0])

        graph = describe(theirs, inputs, graph_outputs)
        return _lower(theirs, *graph, estimate, mark.time_budget)
    except Exception:  # whatever it is, a compilation must not end because of us
        _log.warning("Inductor's order is kept, for planning failed", exc_info=True)
        return theirs


def _lower(
    theirs: Order,
    buffers: Sequence[Buffer],
    nodes: Sequence[Node],
    estimate: Callable[[Order], int],
    time_budget: float,
) -> Order:
    from functorch.compile import (  # type: ignore[import-untyped]
        get_graph_being_compiled,
    )

    title = f"Inductor's graph {get_graph_being_compiled()} of {len(theirs)} nodes"
    place = {node.name: index for index, node in enumerate(nodes)}
    calls = Calls(buffers, nodes)

    def in_order(way: Sequence[Node]) -> Order:
        return [theirs[place[node.name]] for node in way]

    def needs(way: Sequence[Node]) -> tuple[int, int]:
        return estimate(in_order(way)), calls.peak(way)[0]

    found = plan_graph(to_graph(buffers, nodes), planning("all", time_budget))
    planned = [nodes[place[name]] for name in found.order]
    before = needs(nodes)
    if (before[0], needs(planned)[0]) != (found.original_peak_bytes, found.peak_bytes):
        peaks = f"{found.original_peak_bytes:,} bytes, by Inductor's {before[0]:,}"
        _log.info("%s is left alone: by our account the peak is %s", title, peaks)
        return theirs
    ways = [calls.part(planned, time_budget), planned]
    if not all(map(_is_possible, ways)):
        raise RuntimeError(f"{title}: our order does not keep what must run first")

    def is_lower(way: Sequence[Node]) -> bool:
        estimated, by_calls = needs(way)
        return estimated <= before[0] and by_calls < before[1] * (1 - _LEAST_GAIN)

    lower = [way for way in ways if is_lower(way)]
    after = needs((lower or ways)[0])
    _log.info(
        "%s: its best order needs %s, ours %s, every order at least %s bytes (%s); %s is used",
        title,
        _said(before),
        _said(after),
        f"{found.lower_bound_bytes:,}",
        "optimal" if after[0] == found.lower_bound_bytes else "feasible",
        "ours" if lower else "Inductor's",
        extra={"peaks": Peaks(before[1], (after if lower else before)[1], found.lower_bound_bytes)},
    )
    return in_order(lower[0]) if lower else theirs


def _is_possible(order: Sequence[Node]) -> bool:
    done: set[str] = set()
    for node in order:
        if not done.issuperset(node.after):
            return False
        done.add(node.name)
    return True


def _said(peaks: tuple[int, int]) -> str:
    estimated, by_calls = peaks
    more = f" ({by_calls:,} with C++ kernels called together)" if by_calls != estimated else ""
    return f"{estimated:,}{more}"


def describe(order: Order, inputs: Any, outputs: Any) -> tuple[list[Buffer], list[Node]]:
    """Buffers and nodes of a graph for which Inductor has prepared its planning of memory."""
    buffers = []
    for name, buffer in inputs.items():
        size_bytes = int(buffer.mpi_buffer.size_free)
        buffers.append(Buffer(name, size_bytes, size_bytes, True, name in outputs))
    nodes = []
    for node in order:
        made = {buffer.get_name(): buffer.mpi_buffer for buffer in node.get_outputs()}
        for name, memory in made.items():
            sizes = int(memory.size_alloc), int(memory.size_free)
            buffers.append(Buffer(name, *sizes, False, name in outputs))
        reads = tuple(buffer.get_name() for buffer in node.mpi_node.pred_buffers)
        after = tuple(earlier.get_name() for earlier in node.mpi_node.pred_nodes)
        nodes.append(Node(node.get_name(), tuple(made), reads, after, _is_kernel(node)))
    return buffers, nodes


def _is_kernel(node: Any) -> bool:
    """Does the C++ backend call it together with its neighbours?"""
    device = node.get_device()
    if device is None or device.type != "cpu":
        return False
    backend = getattr(_config(), "cpu_backend", "cpp")
    return backend == "cpp" and not (node.is_extern() or node.is_template())
