"""Random TorchScript programs compute the same when they are reordered; `python -m tests.fuzz`."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.fuzz.checking import RULES  # noqa: E402
from tests.fuzz.programs import generate  # noqa: E402
from tests.fuzz.searching import examine, search  # noqa: E402

PROGRAMS = max(1, int(1000 * float(os.environ.get("TORCH_EXT_TEST_SCALE", "1"))))

# The first program that notices that the rule is off: python -m tests.fuzz --rules
NOTICES = {
    "mutation": 0,
    "statistics": 116,
    "random": 26,
    "side_effect": 49,
    "outlives": 23,
    "unknown": 76,
    "stateful": 186,
}


def test_programs_compute_the_same_when_reordered():
    invalid = moved_by_optimize = moved_by_shuffle = 0
    for outcome in search(range(PROGRAMS), jobs=2, shrink_seconds=60):
        failure = outcome.verdict.failure
        assert failure is None, (
            f"seed {outcome.seed}, {failure.variant}: {failure.difference}\n{outcome.small_source}"
        )
        invalid += bool(outcome.invalid)
        moved_by_optimize += outcome.verdict.moved_by_optimize
        moved_by_shuffle += outcome.verdict.moved_by_shuffle
    assert invalid <= PROGRAMS / 100
    assert moved_by_optimize >= PROGRAMS / 4
    assert moved_by_shuffle >= PROGRAMS / 2


def test_every_rule_has_a_program():
    assert tuple(NOTICES) == RULES


@pytest.mark.parametrize("rule", RULES)
def test_a_program_notices_that_a_rule_is_off(rule):
    for _ in range(5):  # what a task does at the same time may hide it once
        [outcome] = search([NOTICES[rule]], [rule])
        assert not outcome.invalid
        if outcome.verdict.failure is not None:
            return
    pytest.fail("no shuffle gives another result")


def test_a_seed_gives_the_same_program_in_every_process():
    code = "from tests.fuzz.programs import generate; print(generate(7).source, end='')"
    command = [sys.executable, "-c", code]
    for hash_seed in "1", "2":
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        other = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert other.stdout == generate(7).source


def test_a_failing_program_is_made_small():
    outcome = examine(NOTICES["random"], ["random"], shrink_seconds=20)
    assert outcome.verdict.failure is not None
    assert len(outcome.small_source) < len(generate(NOTICES["random"]).source)


def test_a_search_goes_on_where_it_stopped(tmp_path):
    def run(count):
        state = str(tmp_path / "state.json")
        return subprocess.run(
            [sys.executable, "-m", "tests.fuzz", "--count", str(count), "--state", state],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    assert run(2).stdout.startswith("2 programs")
    assert run(5).stdout.startswith("5 programs")
    assert run(5).returncode == 0
