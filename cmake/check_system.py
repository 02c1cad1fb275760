"""Checks that the system has what PyPI cannot give, and installs it on Debian where it may."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig


def missing_packages() -> list[str]:
    """Debian packages whose content is not on this machine."""
    include = pathlib.Path(sysconfig.get_paths()["include"])
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted = {
        "g++": shutil.which("g++") is not None or shutil.which("c++") is not None,
        "make": shutil.which("make") is not None,
        "libgtest-dev": any(
            pathlib.Path(root, "include/gtest/gtest.h").exists() for root in ("/usr", "/usr/local")
        ),
        f"python{version}-dev": (include / "Python.h").exists(),
        f"python{version}-venv": importable("ensurepip"),
    }
    return [package for package, present in wanted.items() if not present]


def importable(module: str) -> bool:
    """Whether this Python has the module."""
    return subprocess.run([sys.executable, "-c", f"import {module}"], check=False).returncode == 0


def main() -> None:
    """Install what is missing, or exit with a sentence that names it."""
    missing = missing_packages()
    if not missing:
        return
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    command = [*root, "apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
    if shutil.which("apt-get") is None or (root and shutil.which("sudo") is None):
        sys.exit(f"these system packages are missing, please install them: {' '.join(missing)}")
    print(f"installing {' '.join(missing)}", file=sys.stderr)
    subprocess.run([*root, "apt-get", "update", "-q"], check=False, stdout=subprocess.DEVNULL)
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode != 0:
        sys.exit(f"could not install {' '.join(missing)}; please install them and try again")


if __name__ == "__main__":
    main()
