"""Names of a package that are imported on first use: importing the package stays cheap."""

import functools
import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any


def why_not_built() -> str:
    """Return one sentence if these are sources whose extension modules nobody built; else ''."""
    folder = pathlib.Path(__file__).parents[1]
    if any((folder / "torch_ext").glob("_sched.*.so")):
        return ""
    return (
        f"torch_ext in {folder} is not built: run `make build` there, or, if you have installed "
        "torch_ext, run Python in another folder"
    )


def importer(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package; `homes`: name -> the module that has it.

    A module whose name is empty is the name itself.
    """

    @functools.cache
    def get(name: str) -> Any:
        if name not in homes:
            if name in ("_sched", "_jit") and (why := why_not_built()):
                raise ImportError(why)
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        home = importlib.import_module(f"{package}.{homes[name] or name}")
        return getattr(home, name) if homes[name] else home

    return get
