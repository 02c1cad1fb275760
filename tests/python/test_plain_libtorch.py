"""A file optimised here keeps its lower peak in a C++ program that has no torch_ext."""

import pathlib
import shutil
import subprocess
import sysconfig

import pytest
import torch
from models import traced_wide, wide_input

import torch_ext

SOURCE = pathlib.Path(__file__).parents[1] / "plain_libtorch"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    build = tmp_path_factory.mktemp("plain_libtorch")
    cmake = shutil.which("cmake", path=sysconfig.get_path("scripts")) or "cmake"
    torch_cmake = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (
        [cmake, "-S", str(SOURCE), "-B", str(build), torch_cmake],
        [cmake, "--build", str(build)],
    ):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    return build / "peak"


def run(program, path):
    result = subprocess.run(
        [program, path, "256", "16"], capture_output=True, text=True, check=True
    )
    peak, checksum = result.stdout.split()
    return int(peak), checksum


def test_a_plain_libtorch_program_sees_the_lower_peak(program, tmp_path):
    module = traced_wide()
    optimized, report = torch_ext.optimize(module, (wide_input(),))
    torch.jit.save(module, tmp_path / "before.pt")
    torch.jit.save(optimized, tmp_path / "after.pt")
    peak_before, checksum_before = run(program, tmp_path / "before.pt")
    peak_after, checksum_after = run(program, tmp_path / "after.pt")
    assert checksum_after == checksum_before
    assert peak_before == report.measured_original_peak_bytes
    assert peak_after == report.measured_peak_bytes
    assert peak_after <= peak_before / 2
