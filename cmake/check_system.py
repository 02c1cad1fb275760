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


def install(packages: list[str]) -> str:
    """Install Debian packages where that is possible; return one sentence if it was not."""
    names = " ".join(packages)
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    command = [*root, "apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    if shutil.which("apt-get") is None or (root and shutil.which("sudo") is None):
        return f"these system packages are missing, please install them: {names}"
    print(f"installing {names}", file=sys.stderr)
    subprocess.run([*root, "apt-get", "update", "-q"], check=False, stdout=subprocess.DEVNULL)
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode != 0:
        return f"could not install {names}; please install them and try again"
    return ""


BROWSERS = "chromium-headless-shell chromium chromium-browser google-chrome-stable google-chrome"


def main() -> None:
    """Install what is missing, or exit with a sentence that names it.

    With the argument `browser`: a browser for tests, which can be done without.
    """
    if sys.argv[1:] == ["browser"]:
        is_missing = not any(map(shutil.which, BROWSERS.split()))
        if is_missing and (problem := install(["chromium-headless-shell"])):
            print(f"{problem} (else some tests are skipped)", file=sys.stderr)
        return
    missing = missing_packages()
    if missing and (problem := install(missing)):
        sys.exit(problem)


if __name__ == "__main__":
    main()
