"""What importing does, and the check of torch's version."""

import subprocess
import sys

import pytest
import torch

from torch_ext import _native, _sched


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )


def test_importing_is_silent_and_does_not_import_torch():
    result = run("import sys, torch_ext; assert 'torch' not in sys.modules; dir(torch_ext)")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_planning_does_not_import_torch():
    code = (
        "import sys, torch_ext; torch_ext.plan(torch_ext.Graph.from_text('graph 1\\n'));"
        "assert 'torch' not in sys.modules"
    )
    assert run(code).returncode == 0


def test_importing_registers_nothing():
    code = (
        "import torch; before = len(torch._C._jit_get_all_schemas()); import torch_ext._jit;"
        "assert len(torch._C._jit_get_all_schemas()) == before"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_an_unknown_name_is_an_attribute_error():
    import torch_ext

    with pytest.raises(AttributeError, match="no_such_name"):
        torch_ext.no_such_name  # noqa: B018


@pytest.mark.parametrize("installed", ["2.12.0", "3.13.0", "2.1.3"])
def test_another_minor_version_of_torch_says_what_to_run(installed):
    with pytest.raises(ImportError, match=r"rebuild it in torch_ext's folder: pip install"):
        _native.check_version("2.13.0+cpu", installed)


def test_a_patch_release_or_a_local_build_is_the_same_version():
    _native.check_version("2.13.0+cpu", "2.13.1")
    _native.check_version(_sched.built_for_torch, torch.__version__)
