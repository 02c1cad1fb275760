"""The registered pass as Python sees it; tests/cpp/jit/pass_test.cpp tests what it decides."""

import contextlib
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from kinds import DTYPES, named, sent_through

import torch_ext


def three_at_once(x: torch.Tensor) -> torch.Tensor:
    """Three large tensors are made before the first is used up."""
    a = x * 2
    b = x * 3
    c = x * 4
    return a.sum() + b.sum() + c.sum()


def traced() -> Callable[[torch.Tensor], torch.Tensor]:
    """A new one each time: scripted modules of one class share their graph, and so their plan."""
    function: Callable[[torch.Tensor], torch.Tensor] = torch.jit.trace(three_at_once, numbers())
    return function


def forked() -> torch.jit.ScriptModule:
    class Forked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.jit.wait(torch.jit.fork(three_at_once, x))

    module: torch.jit.ScriptModule = torch.jit.script(Forked())
    return module


def numbers() -> torch.Tensor:
    return torch.arange(1.0, 4097.0).reshape(16, 256)


def third_call(module: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, int]:
    with torch.no_grad():
        module(numbers())
        module(numbers())
        x = numbers()
        with torch_ext.measure_peak() as memory:
            result = module(x)
    return result, memory.peak_bytes


@pytest.fixture(autouse=True)
def left_disabled() -> Iterator[None]:
    yield
    torch_ext.disable()


def test_enable_and_disable() -> None:
    result, peak = third_call(traced())
    assert not torch_ext.is_enabled()
    torch_ext.enable()
    torch_ext.enable()  # again changes nothing
    assert torch_ext.is_enabled()
    ordered, lower = third_call(traced())
    torch_ext.disable()
    assert not torch_ext.is_enabled()
    assert torch.equal(ordered, result)
    assert lower < peak
    assert third_call(traced())[1] == peak


def test_enabled_puts_back_what_was_before() -> None:
    with torch_ext.enabled():
        assert torch_ext.is_enabled()
        with torch_ext.enabled("observe"):
            assert torch_ext.is_enabled()
        assert torch_ext.is_enabled()
    assert not torch_ext.is_enabled()
    with pytest.raises(RuntimeError), torch_ext.enabled():
        raise RuntimeError
    assert not torch_ext.is_enabled()


def test_observing_counts_and_moves_nothing() -> None:
    _, peak = third_call(traced())
    before = torch_ext.pass_stats()
    with torch_ext.enabled("observe"):
        assert third_call(traced())[1] == peak
    after = torch_ext.pass_stats()
    assert after["reordered"] == before["reordered"] + 1
    assert after["saved_bytes"] > before["saved_bytes"]


def test_stats_tell_what_was_seen_and_why_it_was_left_alone() -> None:
    before = torch_ext.pass_stats()
    with torch_ext.enabled():
        third_call(torch.jit.script(torch.nn.ReLU()))
    after = torch_ext.pass_stats()
    assert after["graphs_seen"] == before["graphs_seen"] + 1
    assert sum(after["left_alone"].values()) == sum(before["left_alone"].values()) + 1
    assert after["seconds"] > before["seconds"]
    assert "run twice" in after["note"]


def test_a_forked_body_is_ordered() -> None:
    result, peak = third_call(forked())
    with torch_ext.enabled():
        module = forked()
        third_call(module)  # the body is a graph of its own and is compiled by its second run
        ordered, lower = third_call(module)
    assert torch.equal(ordered, result)
    assert lower < peak


def test_decisions_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="torch_ext"), torch_ext.enabled():
        third_call(traced())
    assert any("->" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("option", "value"), [("mode", "guess"), ("time_budget", -1.0), ("learning_budget", math.nan)]
)
def test_bad_options_are_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        torch_ext.enable(**{option: value})  # type: ignore[arg-type]
    assert not torch_ext.is_enabled()


PROGRAM = """
import warnings
warnings.simplefilter("ignore")
import torch, torch_ext
torch_ext.enable()
print(torch_ext.is_enabled())
module = torch.jit.trace(lambda x: (x * 2).sum() + (x * 3).sum(), torch.ones(64, 64))
with torch.no_grad():
    for _ in range(3):
        module(torch.ones(64, 64))
print(torch_ext.pass_stats()["graphs_seen"])
"""


def run_program(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def test_the_environment_turns_it_off() -> None:
    assert run_program().stdout.split() == ["True", "1"]
    assert run_program(TORCH_EXT_DISABLE="1").stdout.split() == ["False", "0"]


def test_the_environment_asks_for_the_log() -> None:
    assert run_program().stderr == ""
    assert "left alone" in run_program(TORCH_EXT_LOG="info").stderr


def test_the_jit_has_its_own_log() -> None:
    assert "left alone" in run_program(PYTORCH_JIT_LOG_LEVEL=">pass").stderr


def test_tensors_of_every_kind_keep_their_bits() -> None:
    """The ops that take them are not run on stand-ins, which would end the process."""
    assert named(DTYPES, sent_through("pass"))


def test_modules_run_in_other_threads_meanwhile() -> None:
    expected = three_at_once(numbers())
    different: list[int] = []

    def work(modules: list[Callable[[torch.Tensor], torch.Tensor]]) -> None:
        for module in modules:
            result, _ = third_call(module)
            if not torch.equal(result, expected):
                different.append(1)

    torch_ext.enable()
    # torch may crash when several threads trace at once, so that is done before.
    threads = [
        threading.Thread(target=work, args=([traced() for _ in range(10)],)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with contextlib.suppress(RuntimeError):
            torch_ext.enable()
            torch_ext.disable()
    assert not different
