"""The structure of the package: no ring of imports, and one table of public names."""

import ast
import pathlib
import subprocess
import sys

import pytest

import torch_ext

ROOT = pathlib.Path(torch_ext.__file__).parent


def module_of(file: pathlib.Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in ROOT.rglob("*.py")}


def imports(name: str) -> set[str]:
    """All of ours that a module imports, inside of functions and for types alone included.

    Names of a package that are imported on first use stand as types in it, and do not count.
    """
    tree = ast.parse(MODULES[name].read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else str(node.module) for name in names}
    if "importer" in MODULES[name].read_text() and MODULES[name].name == "__init__.py":
        found = {one for one in found if one.startswith("torch_ext._")}
    return {one for one in found if one in MODULES and one != name}


def ring(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, in a ring; empty if there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    for name in sorted(graph):
        if found := visit(name, []):
            return found
    return []


def test_no_modules_import_each_other_in_a_ring():
    assert ring({name: imports(name) for name in MODULES}) == []


def test_a_ring_is_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert ring(graph) == ["b", "c"]


def test_rooms_know_only_what_is_below_them():
    below = {
        "torch_ext.program": {"amounts", "arguments", "columns", "program"},
        "torch_ext.reporting": {
            *("_version", "amounts", "arguments", "columns", "files", "program", "reporting"),
        },
    }
    for room, known in below.items():
        for name in MODULES:
            if name.startswith(f"{room}."):
                others = {one.split(".")[1] for one in imports(name) if one != "torch_ext"}
                assert others <= known, name


def test_every_public_name_is_there_once():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (types,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = [alias.asname for node in types.body for alias in node.names]
    assert sorted(typed) == sorted(torch_ext.__all__)
    assert all(getattr(torch_ext, name) is not None for name in torch_ext.__all__)


def test_old_names_work_and_say_what_is_new():
    from torch_ext import labels
    from torch_ext.program.program import Program

    with pytest.warns(FutureWarning, match=r"is torch_ext\.program\.program\.Program now"):
        assert labels.LabelledGraph is Program
    with pytest.raises(AttributeError):
        _ = labels.Luck


def test_importing_the_package_is_light():
    code = "import sys, torch_ext, torch_ext.planning; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
