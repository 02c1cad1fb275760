"""What the environment says: `TORCH_EXT_LOG=info` or `debug`, and `TORCH_EXT_DISABLE=1`."""

import dataclasses
import logging
import os
from typing import Self

from torch_ext.program.plan import Plan


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What a record about a graph says in numbers, as its attribute `peaks`: bytes by our account.

    So a handler of the logger "torch_ext" learns what a compiler's user never gets to see.
    """

    original_peak_bytes: int
    peak_bytes: int
    lower_bound_bytes: int

    @classmethod
    def of(cls, found: Plan) -> Self:
        """Those of a plan, or of a report."""
        return cls(found.original_peak_bytes, found.peak_bytes, found.lower_bound_bytes)


def set_up_logging() -> None:
    """Let the logger "torch_ext" say what the environment asks it to say."""
    log = logging.getLogger("torch_ext")
    wanted = os.environ.get("TORCH_EXT_LOG", "").upper()
    if wanted in ("INFO", "DEBUG"):
        log.setLevel(wanted)
        if not log.hasHandlers():
            logging.basicConfig()


def is_disabled() -> bool:
    """Does the environment turn torch_ext off? As csrc/jit/pass.cpp reads it."""
    return os.environ.get("TORCH_EXT_DISABLE", "") not in ("", "0")
