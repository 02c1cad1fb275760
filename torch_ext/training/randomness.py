"""Random numbers of captured steps.

torch's random state as ops of a graph: checkpointing draws a dropout mask twice, for it keeps the
state of the forward pass and goes back to it for its second run. As calls of Python's these would
be lost in a graph, and the masks would differ. Numbers of Python's and NumPy's own generators are
constants to a graph, so a step that draws any is refused.
"""

import contextlib
import random
import sys
import unittest.mock
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from torch_ext.training.updates import UnsupportedError

_NAMESPACE = "torch_ext"
_ops = torch.library.Library(_NAMESPACE, "DEF")  # type: ignore[no-untyped-call]  # kept for ever
_define: Any = _ops.define
_implement: Any = _ops.impl
for _schema in ("get_random_state() -> Tensor", "set_random_state(Tensor state) -> ()"):
    # The tag keeps these ops in line with all that draw random numbers.
    _define(_schema, tags=(torch.Tag.nondeterministic_seeded,))
_implement("get_random_state", torch.get_rng_state, "CompositeExplicitAutograd")
_implement("set_random_state", torch.set_rng_state, "CompositeExplicitAutograd")

GET, SET = (
    torch.ops.torch_ext.get_random_state.default,
    torch.ops.torch_ext.set_random_state.default,
)


@contextlib.contextmanager
def random_state_in_graphs() -> Iterator[None]:
    """Within the block what reads or sets the CPU's random state is traced."""
    with contextlib.ExitStack() as stack:
        for module in (torch, torch.random):
            for name, op in (("get_rng_state", GET), ("set_rng_state", SET)):
                stack.enter_context(unittest.mock.patch.object(module, name, op))
        yield


def goes_back(graph: fx.Graph) -> bool:
    """Does the graph set the random state? LibTorch alone has no such op."""
    return any(node.target in (GET, SET) for node in graph.nodes)


@contextlib.contextmanager
def only_torchs_numbers() -> Iterator[None]:
    """Raise UnsupportedError if the block draws others; their generators are put back.

    That is then the cause, whatever else the block has to refuse.
    """
    numpy: Any = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = None if numpy is None else numpy.random.get_state(legacy=False)

    def require_none_drawn() -> None:
        generator = ""
        if random.getstate() != python_state:
            generator = "Python's random"
        elif numpy is not None and repr(numpy.random.get_state(legacy=False)) != repr(numpy_state):
            generator = "numpy.random"
        if generator:
            raise UnsupportedError(
                f"the step draws from {generator}, of which a captured step would repeat the same "
                "numbers; draw from torch's generator, or outside of the step"
            )

    try:
        yield
        require_none_drawn()
    except UnsupportedError:
        require_none_drawn()
        raise
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
