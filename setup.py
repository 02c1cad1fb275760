"""Builds the two extension modules with CMake, which alone knows the sources.

A wheel serves one minor version of torch, that which is installed where it is built, and requires
it. TORCH_EXT_LOCAL_VERSION=1 in the environment puts it into the wheel's version, too, for wheels
that lie beside each other (cmake/build_wheels.py). A source distribution serves them all.
"""

import os
import pathlib
import subprocess
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "cmake"))

from locate_torch import NEWEST, OLDEST, locate, minor, required  # noqa: E402


class CMakeBuild(build_ext):  # type: ignore[misc]
    """Configures once, builds what changed, and installs both modules at once."""

    def run(self) -> None:
        """Build and install into torch_ext/ (in place) or the wheel's folder."""
        torch_root, _ = required()
        target = ROOT if self.inplace else pathlib.Path(self.build_lib).resolve()
        build = ROOT / "build" if self.inplace else pathlib.Path(self.build_temp).resolve()
        scripts = pathlib.Path(sysconfig.get_path("scripts"))
        build.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
        configure = [
            "cmake",
            *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja(scripts)}",
            f"-DCMAKE_PREFIX_PATH={torch_root}/share/cmake",
            f"-DPython3_EXECUTABLE={sys.executable}",
        ]
        with open(build / "configure.log", "w", encoding="utf-8") as log:
            configured = subprocess.run(configure, env=environment, stdout=log, stderr=log)
        if configured.returncode != 0:
            sys.exit((build / "configure.log").read_text(encoding="utf-8"))
        for module in ("_sched", "_jit"):
            subprocess.run(
                ["cmake", "--build", str(build), "--target", module], check=True, env=environment
            )
        subprocess.run(
            ["cmake", "--install", str(build), "--prefix", str(target / "torch_ext")],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
        )


def ninja(scripts: pathlib.Path) -> str:
    """Path of the ninja of this environment, else whatever the shell finds."""
    own = scripts / "ninja"
    return str(own) if own.exists() else "ninja"


def version() -> str:
    """Of the package, which alone knows it."""
    namespace: dict[str, str] = {}
    exec((ROOT / "torch_ext" / "_version.py").read_text(encoding="utf-8"), namespace)
    return namespace["__version__"]


def for_torch() -> tuple[str, str]:
    """Version and requirement of what is built."""
    found = None if "sdist" in sys.argv else locate()
    if found is None:
        (first, oldest), (_, newest) = OLDEST, NEWEST
        return version(), f"torch>={first}.{oldest},<{first}.{newest + 1}"
    first, second = minor(found[1])
    label = f"+torch{first}.{second}" if os.environ.get("TORCH_EXT_LOCAL_VERSION") == "1" else ""
    return f"{version()}{label}", f"torch=={first}.{second}.*"


VERSION, TORCH = for_torch()
setup(
    version=VERSION,
    install_requires=[TORCH, "rich>=13"],
    ext_modules=[Extension("torch_ext._sched", []), Extension("torch_ext._jit", [])],
    cmdclass={"build_ext": CMakeBuild},
)
