"""Random programs compute the same when they are reordered; `python -m tests.fuzz`."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest
from models import traced_wide, wide_input

import torch_ext
from torch_ext.program.plan import Reason

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.fuzz.checking import bound_fault  # noqa: E402
from tests.fuzz.programs import generate  # noqa: E402
from tests.fuzz.searching import DOORS, examine, search  # noqa: E402

SCALE = float(os.environ.get("TORCH_EXT_TEST_SCALE", "1"))

# The first program that notices that the rule is off: python -m tests.fuzz --rules --door DOOR
NOTICES = {
    "torchscript": {
        "mutation": 0,
        "statistics": 25,
        "random": 3,
        "side_effect": 23,
        "outlives": 110,
        "unknown": 5,
        "stateful": 15,
        "ours": 659,
        "others": 27,
        "apart": 8,
        "sizes": 243,
        "dtypes": 252,
        "strides": 34,
        "gradients": 27,
        "autocast": 64,
    },
    "fx": {
        "mutation": 1,
        "statistics": 4,
        "random": 12,
        "side_effect": 53,
        "outlives": 35,
        "unknown": 27,
    },
}


@pytest.mark.parametrize(("door", "count"), [("torchscript", 1000), ("fx", 300)])
def test_programs_compute_the_same_when_reordered(door, count):
    programs = max(1, int(count * SCALE))
    invalid = captured = moved_by_optimize = moved_by_shuffle = 0
    for outcome in search(range(programs), jobs=2, shrink_seconds=60, door=door):
        failure = outcome.verdict.failure
        assert failure is None, (
            f"seed {outcome.seed}, {failure.variant}: {failure.difference}\n{outcome.small_source}"
        )
        invalid += bool(outcome.invalid)
        captured += not outcome.verdict.refused
        moved_by_optimize += outcome.verdict.moved_by_optimize
        moved_by_shuffle += outcome.verdict.moved_by_shuffle
    assert invalid <= programs / 100
    assert captured >= programs / 2
    assert moved_by_optimize >= programs / 4
    assert moved_by_shuffle >= programs / 2


def test_every_rule_has_a_program():
    assert {door: tuple(rules) for door, rules in NOTICES.items()} == {
        name: door.rules for name, door in DOORS.items()
    }


@pytest.mark.parametrize(
    ("door", "rule"), [(door, rule) for door, rules in NOTICES.items() for rule in rules]
)
def test_a_program_notices_that_a_rule_is_off(door, rule):
    for _ in range(5):  # what a task does at the same time may hide it once
        [outcome] = search([NOTICES[door][rule]], [rule], door=door)
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


@pytest.mark.parametrize("door", DOORS)
def test_a_failing_program_is_made_small(door):
    seed = NOTICES[door]["random"]
    outcome = examine(seed, ["random"], shrink_seconds=20, door=door)
    assert outcome.verdict.failure is not None
    assert len(outcome.small_source) < len(generate(seed, door).source)


def test_some_programs_have_regions_of_autocast():
    sources = [generate(seed).source for seed in range(1000)]
    regions = [source for source in sources if "with torch.autocast(" in source]
    assert len(regions) >= 30
    assert any("enabled=False" in source for source in regions)
    assert any(source.count("with torch.autocast(") > 1 for source in regions)


def test_a_run_below_the_bound_is_a_fault():
    _, report = torch_ext.optimize(traced_wide(), (wide_input(),))
    bound = report.lower_bound_bytes
    assert bound > 0
    assert bound_fault(report) == ""
    assert bound_fault(dataclasses.replace(report, measured_peak_bytes=bound)) == ""
    below = dataclasses.replace(report, measured_peak_bytes=bound - 1)
    assert bound_fault(below).endswith(": bound")
    reasons = (Reason.of("below_bound", size_bytes=1, other_bytes=2),)
    told = dataclasses.replace(report, reasons=reasons, lower_bound_bytes=0)
    assert bound_fault(told).endswith(": bound")


@pytest.mark.parametrize(
    ("door", "module", "name"),
    [("torchscript", torch_ext, "optimize"), ("fx", torch_ext.fx, "reorder")],
)
def test_every_door_is_searched_for_runs_below_the_bound(door, module, name, monkeypatch):
    found = getattr(module, name)

    def boasts(*arguments, **options):
        result, report = found(*arguments, **options)
        return result, dataclasses.replace(report, lower_bound_bytes=report.peak_bytes + 2**40)

    monkeypatch.setattr(module, name, boasts)
    failures = [examine(seed, door=door).verdict.failure for seed in range(4)]
    assert "bound" in {failure.kind[1] for failure in failures if failure}


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
