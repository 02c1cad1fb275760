"""Random training steps are those of the loop; `python -m tests.fuzz.training`."""

import os
import pathlib
import sys
import warnings

import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.fuzz.training import RULES, examine, examine_without  # noqa: E402

pytestmark = pytest.mark.usefixtures("with_gradients")

SCALE = float(os.environ.get("TORCH_EXT_TEST_SCALE", "1"))
PROGRAMS = max(1, int(10 * SCALE))
# The first program that notices that a rule is off: python -m tests.fuzz.training --rules
NOTICES = {
    "attributes": 2,
    "modes": 0,
    "memory": 77,
    "answers": 11,
    "state": 58,
    "gradients": 8,
}


@pytest.fixture(autouse=True)
def _without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_steps_are_those_of_the_loop(seed):
    outcome = examine(seed)
    assert not outcome.failure, f"seed {seed}: {outcome.failure}"


def test_every_rule_has_a_program():
    assert NOTICES.keys() == RULES.keys()


@pytest.mark.parametrize("rule", NOTICES)
def test_a_program_notices_that_a_rule_is_off(rule):
    assert not examine(NOTICES[rule]).failure
    assert examine_without(NOTICES[rule], rule).failure
