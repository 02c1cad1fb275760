"""What is packed, what it asks for, and what is said where it cannot be built or imported."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest

import torch_ext

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git tells what is packed")


def run(
    *command: object, folder: pathlib.Path, python: object = sys.executable, **variables: str
) -> subprocess.CompletedProcess[str]:
    words, environment = [str(python), *map(str, command)], {**os.environ, **variables}
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def sources() -> list[pathlib.Path]:
    """What the repository holds."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True)
    return [path for line in listed.splitlines() if (path := ROOT / line).exists()]


@pytest.fixture
def clone(tmp_path):
    """The sources, unbuilt."""
    for path in sources():
        target = tmp_path / "clone" / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path / "clone"


@pytest.fixture
def without_torch(tmp_path):
    """An interpreter for which there is no torch."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


def test_the_source_distribution_is_complete(clone, tmp_path):
    packed = run("setup.py", "-q", "sdist", "-d", tmp_path, folder=clone)
    assert packed.returncode == 0, packed.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {pathlib.PurePath(name).parts[1:] for name in file.getnames()}
        about = file.extractfile(f"{archive.name.removesuffix('.tar.gz')}/PKG-INFO").read().decode()
    held = {path.relative_to(ROOT).parts for path in sources()}
    assert {path for path in held - names if path[0] not in (".ci", ".gitignore")} == set()
    assert "Requires-Dist: torch<2.15,>=2.11" in about
    assert "License-Expression: BSD-3-Clause" in about


def test_what_is_built_requires_the_torch_that_it_is_built_for(clone):
    torch = ".".join(importlib.metadata.version("torch").split(".")[:2])
    labelled = {"TORCH_EXT_LOCAL_VERSION": "1"}
    for label, variables in (("", {}), (f"+torch{torch}", labelled)):
        about = run("setup.py", "-q", "--version", folder=clone, **variables)
        assert about.stdout.strip() == torch_ext.__version__ + label, about
    run("setup.py", "-q", "egg_info", folder=clone)
    required = (clone / "torch_ext.egg-info" / "requires.txt").read_text()
    assert f"torch=={torch}.*" in required


def test_the_torch_of_the_environment_is_found_where_pip_hides_it():
    """In an isolated build it is not on sys.path, and what is built has to fit it all the same."""
    hide = "import sys; sys.path = [p for p in sys.path if not p.endswith('-packages')]"
    code = f"{hide}; sys.path.insert(0, 'cmake'); import locate_torch; print(locate_torch.locate())"
    found = run("-c", code, folder=ROOT)
    assert "site-packages/torch" in found.stdout, found


def test_without_torch_one_sentence_says_what_to_type(clone, without_torch):
    built = run("cmake/locate_torch.py", folder=clone, python=without_torch)
    assert built.returncode != 0
    assert built.stderr.startswith("torch is not installed for this Python; install it first")
    assert built.stderr.count("\n") == 1


def test_sources_that_nobody_built_say_so(clone):
    for command in (
        ("-c", "import torch_ext; torch_ext.optimize"),
        ("-c", "from torch_ext.training import training_step"),
        ("-m", "torch_ext", "doctor"),
    ):
        failed = run(*command, folder=clone)
        assert failed.returncode != 0
        assert f"torch_ext in {clone} is not built: run `make build` there" in failed.stderr


def test_a_folder_of_that_name_is_no_obstacle(tmp_path):
    """As where a clone lies: an editable install is found all the same."""
    (tmp_path / "torch_ext").mkdir()
    imported = run("-c", "import torch_ext; print(torch_ext.optimize)", folder=tmp_path)
    assert imported.returncode == 0, imported.stderr


def test_all_documents_for_the_public_are_there():
    for name in ("LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "SECURITY.md"):
        assert (ROOT / name).read_text()
