"""Prints folder and version of the installed torch as a CMake list, without importing it."""

import importlib.metadata
import importlib.util
import pathlib
import sys

spec = importlib.util.find_spec("torch")
if spec is None or spec.origin is None:
    sys.exit("torch is not installed for this Python; install torch 2.13 first")
print(f"{pathlib.Path(spec.origin).parent};{importlib.metadata.version('torch')}")
