"""Names of an earlier version, for this release: they are in torch_ext.program.program now."""

import warnings
from typing import Any

from torch_ext.program import program

_NOW = {"LabelledBuffer": "Buffer", "LabelledGraph": "Program", "LabelledOp": "Op"}


def __getattr__(name: str) -> Any:
    if name not in _NOW:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"torch_ext.labels.{name} is torch_ext.program.program.{_NOW[name]} now",
        FutureWarning,
        stacklevel=2,
    )
    return getattr(program, _NOW[name])
