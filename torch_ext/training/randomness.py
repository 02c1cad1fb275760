"""The random state as ops of a graph.

Checkpointing draws a dropout mask twice: it keeps the state of the forward pass and goes back to it
for its second run. As calls of Python's these would be lost in a graph, and the masks would differ.
"""

import contextlib
import unittest.mock
from collections.abc import Iterator

import torch

_ops = torch.library.Library("torch_ext", "DEF")  # noqa: TOR901  # for the life of the process
for _schema in ("get_random_state() -> Tensor", "set_random_state(Tensor state) -> ()"):
    # The tag keeps these ops in line with all that draw random numbers.
    _ops.define(_schema, tags=(torch.Tag.nondeterministic_seeded,))
_ops.impl("get_random_state", torch.get_rng_state, "CompositeExplicitAutograd")
_ops.impl("set_random_state", torch.set_rng_state, "CompositeExplicitAutograd")

GET, SET = torch.ops.torch_ext.get_random_state.default, torch.ops.torch_ext.set_random_state.default


@contextlib.contextmanager
def random_state_in_graphs() -> Iterator[None]:
    """Within the block what reads or sets the CPU's random state is traced."""
    with contextlib.ExitStack() as stack:
        for module in (torch, torch.random):
            for name, op in (("get_rng_state", GET), ("set_rng_state", SET)):
                stack.enter_context(unittest.mock.patch.object(module, name, op))
        yield
