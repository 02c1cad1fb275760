"""torch_ext.assert_peak_below: context manager, decorator, pytest marker."""

import pathlib
import subprocess
import sys

import pytest
import torch

import torch_ext
from torch_ext.amounts import parse_memory

MIB = 2**20


def take(size_bytes):
    return torch.empty(size_bytes, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("4096", 4096), ("1B", 1), ("1.5 GiB", 3 * 2**29), ("2KB", 2000), ("1MB", 10**6)],
)
def test_amounts(text, size_bytes):
    assert parse_memory(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1mb", "1e3", "1 TiB", "512MiB "])
def test_what_is_no_amount(text):
    with pytest.raises(ValueError, match="not an amount of memory like 512MiB"):
        torch_ext.assert_peak_below(text)


def test_a_block_within_its_limit():
    with torch_ext.assert_peak_below("2MiB"):
        take(MIB)
    with torch_ext.assert_peak_below(MIB):
        take(MIB)


def test_a_block_above_its_limit_names_both_amounts():
    limit = torch_ext.assert_peak_below("2MiB")
    for _ in range(2):
        with pytest.raises(AssertionError) as caught, limit:
            take(3 * MIB)
        assert "3,145,728 bytes (3.00 MiB)" in str(caught.value)
        assert "2,097,152 bytes (2.00 MiB)" in str(caught.value)


def test_a_limit_may_be_used_within_itself():
    limit = torch_ext.assert_peak_below("2MiB")

    def takes_and_limits() -> None:
        take(3 * MIB)
        with limit:
            take(MIB)

    with pytest.raises(AssertionError, match="3,145,728 bytes"), limit:
        takes_and_limits()


def test_what_the_block_raises_goes_through():
    @torch_ext.assert_peak_below("1MiB")
    def fails() -> None:
        take(3 * MIB)
        raise KeyError

    with pytest.raises(KeyError):
        fails()


def test_a_function_is_measured_each_time():
    @torch_ext.assert_peak_below("2MiB")
    def grow(mib: int, again: bool = False) -> int:
        """Grows."""
        if again:
            return grow(mib)
        take(mib * MIB)
        return mib

    assert (grow.__name__, grow.__doc__) == ("grow", "Grows.")
    assert grow(1) == 1
    assert grow(1, again=True) == 1
    with pytest.raises(AssertionError):
        grow(3)
    assert grow(2) == 2


def test_functions_that_work_later_are_refused():
    async def later():
        pass

    def one_by_one():
        yield 1

    for function in (later, one_by_one):
        with pytest.raises(TypeError, match="inside it"):
            torch_ext.assert_peak_below("1MiB")(function)


# --- the marker ----------------------------------------------------------------------------------


def run_pytest(folder: pathlib.Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *options,
        "test_it.py",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_marker(tmp_path):
    result = run_pytest(
        tmp_path,
        """
import pytest, torch, unittest

@pytest.fixture
def big():
    return torch.empty(8 * 2**20, dtype=torch.uint8)

@pytest.mark.peak_below("2MiB")
def test_low(big):
    torch.empty(2**20, dtype=torch.uint8)

@pytest.mark.peak_below("2MiB")
def test_high():
    torch.empty(3 * 2**20, dtype=torch.uint8)

@pytest.mark.peak_below("2 miles")
def test_wrong():
    pass

@pytest.mark.peak_below()
def test_without_an_amount():
    pass

@pytest.mark.peak_below("2MiB")
class TestOld(unittest.TestCase):
    def test_high_as_well(self):
        torch.empty(3 * 2**20, dtype=torch.uint8)
""",
        "--strict-markers",
    )
    assert "peak_below takes one amount, as in peak_below('512MiB')" in result.stdout
    assert "4 failed, 1 passed" in result.stdout, result.stdout + result.stderr
    assert "3,145,728 bytes (3.00 MiB), allowed are 2,097,152 bytes (2.00 MiB)" in result.stdout
    assert "'2 miles' is not an amount of memory" in result.stdout


def test_a_session_without_the_marker_imports_nothing_heavy(tmp_path):
    result = run_pytest(
        tmp_path,
        """
import sys

def test_light():
    loaded = {name for name in sys.modules if name.split(".")[0] in ("torch", "torch_ext")}
    own = ("_lazy", "_version", "pytest_plugin")
    assert loaded <= {"torch_ext", *(f"torch_ext.{name}" for name in own)}
""",
    )
    assert result.returncode == 0, result.stdout


def test_the_marker_is_listed(tmp_path):
    result = run_pytest(tmp_path, "", "--markers")
    assert "@pytest.mark.peak_below(amount): " in result.stdout
