"""A compiled graph without gradients that is edited in its first call.

Slices and repeats are chosen by trying and timing, on real values, which a compiler does not have.
The first call has them: it plans, verifies and times, and so takes as long as torch_ext.fx.reorder.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from torch_ext.arguments import Planning
from torch_ext.fx.optimize import reorder
from torch_ext.fx.overwritable import is_symbolic
from torch_ext.logs import Peaks

MIB = 2**20
_log = logging.getLogger("torch_ext")

Run = Callable[[list[Any]], Any]


class EditedAtFirstCall:
    """Calls a graph with slices or repeats, or the one without where these are not for the call.

    A graph with slices raises with another number of threads than it was cut for. Sizes, strides
    and dtypes are the compiler's to ask for: it compiles again for others.
    """

    _boxed_call = True  # torch hands over a list, which is emptied

    def __init__(self, module: fx.GraphModule, wanted: Planning, compile_graph: Any) -> None:
        """`compile_graph`: makes a function of one list of a graph, without either."""
        self._module = module
        self._wanted = wanted
        self._compile = compile_graph
        self._plain: Run | None = None
        self._edited: Run | None = None
        self._threads = 0  # of the first call

    def __call__(self, inputs: list[Any]) -> Any:
        """Run the graph."""
        if not self._threads:
            self._threads = torch.get_num_threads()
            self._edit(inputs)
        if self._edited is not None and torch.get_num_threads() == self._threads:
            return self._edited(inputs)
        if self._plain is None:
            self._plain = self._compile(self._module, edits=True)
        return self._plain(inputs)

    def _edit(self, inputs: list[Any]) -> None:
        wanted = self._wanted
        try:
            edited, report = reorder(
                self._module,
                inputs,
                time_budget=wanted.time_budget,
                memory_budget=wanted.memory_budget,
                levers=wanted.levers,
            )
        except Exception as error:
            _log.warning("a graph stays as it is: %s: %s", type(error).__name__, error)
            return
        if not report.slices and not report.repeats:
            reasons = (use.reason for use in report.levers if use.name in ("slice", "repeat"))
            why = "; ".join(filter(None, reasons)) or report.reason
            _log.info("a graph stays as it is: %s", why)
            return
        self._edited = self._compile(edited, edits=False)
        _log.info(
            "a graph with %d slices and %d ops that run again: %.2f MiB, was %.2f",
            len(report.slices),
            len(report.repeats),
            report.peak_bytes / MIB,
            report.original_peak_bytes / MIB,
            extra={"peaks": Peaks.of(report)},
        )


def has_symbolic_inputs(module: fx.GraphModule) -> bool:
    """Are numbers or sizes of inputs symbols, so that other calls have others?"""
    return any(
        isinstance(node.meta.get("val"), torch.SymInt) or is_symbolic(node)
        for node in module.graph.find_nodes(op="placeholder")
    )
