"""Finds the torch that is installed, without importing it.

As a script: prints its folder and version as a CMake list.
"""

import importlib.machinery
import importlib.metadata
import pathlib
import site
import sys
import sysconfig

OLDEST, NEWEST = (2, 11), (2, 14)  # that the sources fit
MISSING = (
    "torch is not installed for this Python; install it first, for CPUs by `pip install torch "
    "--index-url https://download.pytorch.org/whl/cpu`, then torch_ext by "
    "`pip install --no-build-isolation .`"
)


def locate() -> tuple[pathlib.Path, str] | None:
    """Return its folder and its version.

    pip builds in an environment of its own, which hides what the user has installed, and what is
    built has to fit that: so the folders of this Python are searched, too.
    """
    folders = [*sys.path, sysconfig.get_path("purelib"), site.getusersitepackages()]
    spec = importlib.machinery.PathFinder.find_spec("torch", folders)
    if spec is None or spec.origin is None:
        return None
    root = pathlib.Path(spec.origin).parent
    found = importlib.metadata.distributions(name="torch", path=[str(root.parent)])
    return next(((root, each.version) for each in found), None)


def minor(version: str) -> tuple[int, int]:
    """Return the version's first two numbers: extensions fit one minor version of torch."""
    first, second = version.split(".")[:2]
    return int(first), int(second)


def required() -> tuple[pathlib.Path, str]:
    """As locate; exits with one sentence if there is none that fits."""
    found = locate()
    if found is None:
        sys.exit(MISSING)
    if not OLDEST <= minor(found[1]) <= NEWEST:
        sys.exit(
            f"torch_ext is for torch {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}, and torch "
            f"{found[1]} is installed: install another one, or a newer torch_ext"
        )
    return found


if __name__ == "__main__":
    print(";".join(map(str, required())))
