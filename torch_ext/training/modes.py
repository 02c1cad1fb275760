"""What decides, besides its arguments, which kernels a step runs: modes of the thread or process.

They are part of a graph's key: under other modes the loop may run other kernels. Autocast holds for
forward pass and loss, as people write it; a captured graph has its casts as ops of their own. What
only some callers forget to leave, no_grad and inference mode, is switched off while a step runs.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch.nn.modules import module as modules
from torch.overrides import _get_current_function_mode_stack

_HOOKS_OF_ALL_MODULES = (
    modules._global_forward_pre_hooks,
    modules._global_forward_hooks,
    modules._global_backward_pre_hooks,
    modules._global_backward_hooks,
)


@dataclasses.dataclass(frozen=True)
class Autocast:
    """The caller's `with torch.autocast("cpu", ...)`."""

    dtype: torch.dtype
    caches_casts: bool


@dataclasses.dataclass(frozen=True)
class Modes:
    """Equal modes: the same ops run the same kernels."""

    autocast: Autocast | None
    switches: tuple[Any, ...]

    @classmethod
    def now(cls) -> Self:
        """Those of the calling thread. Done at every step: it has to be quick."""
        autocast = None
        if torch.is_autocast_enabled("cpu"):
            autocast = Autocast(torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled())
        cpu, choices = torch.backends.mkldnn, torch.backends.cuda
        return cls(
            autocast,
            (
                torch.get_default_dtype(),
                torch.get_num_threads(),
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
                torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
                torch.get_float32_matmul_precision(),
                *(cpu.enabled, cpu.deterministic, cpu.allow_tf32),
                # Which attention runs, on CPUs too.
                choices.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
                choices.math_sdp_enabled(),  # type: ignore[no-untyped-call]
                torch.backends.mha.get_fastpath_enabled(),
                # Checks of values; torch.compile switches them off for the whole process.
                torch.distributions.Distribution._validate_args,
                *_get_current_function_mode_stack(),  # type: ignore[no-untyped-call]
                *(hook for hooks in _HOOKS_OF_ALL_MODULES for hook in hooks.values()),
                torch._C._autograd._top_saved_tensors_default_hooks(True),
            ),
        )

    @contextlib.contextmanager
    def of_the_forward_pass(self) -> Iterator[None]:
        """For forward pass and loss, within `apart()`."""
        if self.autocast is None:
            yield
            return
        # A weight's cast is good for one step: the update changes the weight.
        torch.clear_autocast_cache()
        dtype, caches_casts = self.autocast.dtype, self.autocast.caches_casts
        try:
            with torch.autocast("cpu", dtype=dtype, cache_enabled=caches_casts):
                yield
        finally:
            torch.clear_autocast_cache()


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Within the block gradients are on, and autocast and inference mode off, as around a loop."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        yield


@contextlib.contextmanager
def of_a_graph() -> Iterator[None]:
    """For a captured graph: what is below autograd, as it was recorded.

    The grad mode stays on, for a kernel may ask for it: an LSTM's keeps no workspace for its
    backward pass without it.
    """
    with apart(), torch._C._AutoDispatchBelowAutograd():
        yield
