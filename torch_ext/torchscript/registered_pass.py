"""The registered pass: every TorchScript graph that torch compiles is ordered first.

Environment: `TORCH_EXT_DISABLE=1` turns every use into a no-op; `TORCH_EXT_LOG=info` or `debug`
explains each decision through the logger "torch_ext".
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, Literal

from torch_ext._native import _jit
from torch_ext.arguments import choice, seconds
from torch_ext.logs import set_up_logging

Mode = Literal["reorder", "observe"]

_log = logging.getLogger("torch_ext")


def enable(
    mode: Mode = "reorder", *, time_budget: float = 0.2, learning_budget: float = 1.0
) -> None:
    """Order graphs from now on, when the executor optimises them: in the second call of a module.

    Modules that have run twice already keep the plan they have. mode="observe" moves nothing and
    only logs and counts what would be gained. `time_budget` is for planning and `learning_budget`
    for running ops once to learn their scratch memory, in seconds per graph.
    Call it before other threads run modules: torch's list of passes has no lock.
    Raises ValueError for another mode, or budgets that are not between 0 and 1e6 seconds.
    """
    _jit.enable_pass(*_options(mode, time_budget, learning_budget))


def disable() -> None:
    """Leave graphs alone from now on. Modules that were ordered keep their order."""
    _jit.disable_pass()


def is_enabled() -> bool:
    """Is the pass enabled?"""
    return _jit.is_pass_enabled()


@contextlib.contextmanager
def enabled(
    mode: Mode = "reorder", *, time_budget: float = 0.2, learning_budget: float = 1.0
) -> Iterator[None]:
    """Enable the pass for a block and put back what was before."""
    was_enabled = _jit.ScopedPass(*_options(mode, time_budget, learning_budget))
    try:
        yield
    finally:
        del was_enabled


def pass_stats() -> dict[str, Any]:
    """Return what the pass did since the process began.

    `graphs_seen`, `reordered` (in observe mode: would have been), `proven`, `left_alone` (reason ->
    graphs), `saved_bytes` (of peaks, by estimate), `guessed_sizes` (tensors whose type does not
    tell their size), `ops_not_run` (whose scratch memory is unknown), `seconds`, and `note`.
    """
    return {
        **_jit.pass_stats(),
        "note": "modules that had run twice before the pass was enabled are not in these numbers",
    }


def _options(mode: Mode, time_budget: float, learning_budget: float) -> tuple[bool, float, float]:
    observe = choice(mode, "mode", ("reorder", "observe")) == "observe"
    budgets = seconds(time_budget, "time_budget"), seconds(learning_budget, "learning_budget")
    set_up_logging()
    _jit.set_pass_logger(
        lambda is_detail, message: _log.log(
            logging.DEBUG if is_detail else logging.INFO, "%s", message
        )
    )
    return observe, *budgets
