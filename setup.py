"""Builds the two extension modules with CMake, which alone knows the sources."""

import os
import pathlib
import subprocess
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).parent.resolve()


class CMakeBuild(build_ext):  # type: ignore[misc]
    """Configures once, builds what changed, and installs both modules at once."""

    def run(self) -> None:
        """Build and install into torch_ext/ (in place) or the wheel's folder."""
        facts = subprocess.run(
            [sys.executable, str(ROOT / "cmake" / "locate_torch.py")],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        torch_root = facts.stdout.split(";")[0]
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


setup(
    ext_modules=[Extension("torch_ext._sched", []), Extension("torch_ext._jit", [])],
    cmdclass={"build_ext": CMakeBuild},
)
