"""Modules with planned addresses, and their files."""

import copy
import subprocess
import sys

import pytest
import torch
from models import Wide, traced_wide, wide_input

import torch_ext
from torch_ext.files import UnreadableInputError, save_model
from torch_ext.torchscript.pinned import PLAN, PinnedModule

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture(name="no_grad")
def _no_grad():
    with torch.no_grad():
        yield


def test_optimize_plans_addresses_and_proves_them():
    module, report = torch_ext.optimize(traced_wide(), (wide_input(),), addresses=True)
    assert isinstance(module, PinnedModule)
    assert report.arena_status == "optimal"
    assert report.arena_bytes == report.arena_bound_bytes
    assert "arena" in str(report)
    assert report.to_dict()["arena_bytes"] == report.arena_bytes
    plain, without = torch_ext.optimize(traced_wide(), (wide_input(),))
    assert without.arena_bytes is without.arena_status is None
    for _ in range(4):
        assert torch.equal(module(wide_input()), plain(wide_input()))
    assert module.statistics.served >= 3


def test_each_example_has_a_plan():
    examples = [(wide_input(),), (wide_input(64),)]
    module, report = torch_ext.optimize(traced_wide(), examples, addresses=True)
    assert len(module.reports) == 2
    assert report.arena_bytes == max(one.arena_bytes for one in module.reports.values())


def test_a_file_keeps_the_plan_and_the_first_call_is_served(tmp_path):
    frozen = torch.jit.freeze(traced_wide())
    module, _ = torch_ext.optimize(frozen, (wide_input(),), addresses=True)
    path = tmp_path / "model.pt"
    torch_ext.save(module, path, {"note": b"kept"})
    loaded = torch_ext.load(path)
    assert isinstance(loaded, PinnedModule)
    assert torch.equal(loaded(wide_input()), frozen(wide_input()))
    assert (loaded.statistics.served, dict(loaded.statistics.deviated)) == (1, {})
    extra = {"note": ""}
    plain = torch.jit.load(path, _extra_files=extra)  # runs without torch_ext as any other
    assert torch.equal(plain(wide_input()), frozen(wide_input()))
    assert extra["note"] == b"kept"
    assert type(plain.code) is str
    assert loaded.code == plain.code


def test_a_process_that_loads_it_is_served_from_the_first_call(tmp_path):
    module, _ = torch_ext.optimize(torch.jit.freeze(traced_wide()), (wide_input(),), addresses=True)
    module.save(tmp_path / "model.pt")
    torch.save(wide_input(), tmp_path / "x.pt")
    code = (
        "import sys, torch, torch_ext\n"
        "module = torch_ext.load(sys.argv[1])\n"
        "with torch.no_grad(): module(torch.load(sys.argv[2]))\n"
        "print(module.statistics.served, module.statistics.deviated)"
    )
    command = [sys.executable, "-c", code, tmp_path / "model.pt", tmp_path / "x.pt"]
    assert subprocess.check_output(command, text=True) == "1 {}\n"


def test_a_file_without_a_plan_is_a_module(tmp_path):
    torch_ext.save(traced_wide(), tmp_path / "model.pt")
    assert isinstance(torch_ext.load(tmp_path / "model.pt"), torch.jit.ScriptModule)


def test_a_broken_plan_names_the_file_and_the_line(tmp_path):
    path = tmp_path / "model.pt"
    save_model(traced_wide(), path, {PLAN: b"arena 1\nplan 64 64 x\nten\n"})
    with pytest.raises(UnreadableInputError, match=r"model\.pt: its extra file .*: line 3: "):
        torch_ext.load(path)


def test_recording_changes_neither_state_nor_inputs_nor_random_numbers(capsys):
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            print("called")
            x += 1
            return torch.dropout(x * 2, 0.5, True).relu() + self.calls

    script = torch.jit.script(Counting())
    x = torch.zeros(100)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    module, _ = torch_ext.optimize(script, (x,), addresses=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.calls.item() == 0
    assert not x.any()
    assert capsys.readouterr().out == ""


def test_it_stands_for_the_module(tmp_path):
    module, _ = torch_ext.optimize(traced_wide(), (wide_input(),), addresses=True)
    assert module.__wrapped__ is module.module
    assert module.eval() is module
    assert module.train(False).double() is module
    module.float()
    module.training = False
    assert not module.module.training
    assert isinstance(module.grow, torch.jit.RecursiveScriptModule)  # a child, and no method
    torch.jit.save(module, tmp_path / "model.pt")
    assert isinstance(torch_ext.load(tmp_path / "model.pt"), PinnedModule)
    copied = copy.deepcopy(module)
    assert isinstance(copied, PinnedModule)
    assert copied.module is not module.module
    assert copied.to_text() == module.to_text()
    again, _ = torch_ext.optimize(module, (wide_input(),))
    assert isinstance(again, torch.jit.ScriptModule)
    assert torch_ext.verify(module, (wide_input(),)).identical


def test_a_module_that_can_be_called_once_has_no_plan(caplog):
    class Once(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [torch.ones(1)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 + self.parts.pop()

    module, report = torch_ext.optimize(torch.jit.script(Once()), (wide_input(),), addresses=True)
    assert report.arena_bytes is None
    assert "no addresses are planned for an example" in caplog.text
    assert torch.equal(module(wide_input()), wide_input() * 2 + 1)


def test_inputs_may_need_gradients():
    x = wide_input().requires_grad_() * 2
    _, report = torch_ext.optimize(traced_wide(), (x,), addresses=True)
    assert report.arena_bytes is not None


def test_an_eager_module_is_traced_first():
    torch.manual_seed(0)
    model = Wide().eval()
    module, _ = torch_ext.optimize(model, (wide_input(),), addresses=True)
    assert torch.equal(module(wide_input()), model(wide_input()))
