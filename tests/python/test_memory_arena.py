"""Planned addresses: what calls take from an arena, and what they never do."""

import gc
import threading

import pytest
import torch
from models import Wide, traced_wide, wide_input

import torch_ext
from torch_ext._native import _jit
from torch_ext.memory.arena import MOST_RECORDINGS


def pinned_wide(**options):
    torch.manual_seed(0)
    module = Wide().eval()
    return torch_ext.pin_addresses(module, (wide_input(),), strict=True, **options), module


def only(reports):
    (report,) = reports.values()
    return report


@torch.no_grad()
def test_calls_are_served_with_the_same_bits():
    pinned, module = pinned_wide()
    x = wide_input()
    for _ in range(3):
        assert torch.equal(pinned(x), module(x))
    assert pinned.statistics.served == 3
    assert not pinned.statistics.deviated
    report = only(pinned.reports)
    assert report.arena_status == "optimal"
    assert report.outliving_bytes == 256 * 4 * 4
    assert pinned.statistics.served_blocks == 3 * report.num_blocks


@torch.no_grad()
def test_the_meter_sees_what_an_arena_serves():
    pinned, module = pinned_wide()
    x = wide_input()
    with torch_ext.measure_peak() as plain:
        module(x)
    with torch_ext.measure_peak() as served:
        pinned(x)
    assert pinned.statistics.served == 1
    assert served.peak_bytes == plain.peak_bytes
    assert served.end_bytes == plain.end_bytes


@torch.no_grad()
def test_the_profiler_sees_what_an_arena_serves():
    pinned, module = pinned_wide()

    def taken(function):
        with torch.profiler.profile(profile_memory=True) as profile:
            function(wide_input())
        return sorted((event.key, event.self_cpu_memory_usage) for event in profile.key_averages())

    assert taken(pinned) == taken(module)


@torch.no_grad()
def test_other_shapes_are_learned_up_to_a_number():
    torch.manual_seed(0)
    module = Wide().eval()
    pinned = torch_ext.pin_addresses(module, most_plans=2)
    for rows in (256, 128, 64):
        for _ in range(4):
            assert torch.equal(pinned(wide_input(rows)), module(wide_input(rows)))
    assert len(pinned.reports) == 2
    assert pinned.statistics.served == 2 * 2
    assert pinned.statistics.deviated == {"no plan for these inputs": 4}


@torch.no_grad()
def test_a_deviation_is_counted_and_changes_nothing():
    how_many = 2

    def function(x):
        for _ in range(how_many):
            x = x * 2
        return x + 1

    x = torch.ones(1000)
    pinned = torch_ext.pin_addresses(function, (x,))
    how_many = 4
    assert torch.equal(pinned(x), function(x))
    assert pinned.statistics.deviated == {"more blocks than planned": 1}
    how_many = 1
    assert torch.equal(pinned(x), function(x))
    strict = torch_ext.pin_addresses(function, (x,), strict=True)
    how_many = 3
    with pytest.raises(RuntimeError, match="deviated: more blocks than planned"):
        strict(x)


@torch.no_grad()
def test_what_outlives_its_call_is_never_overwritten():
    kept, wanted = [], 0

    def function(x):
        y = x * 2
        if len(kept) < wanted:
            kept.append(y)
        return (y + 1).sum()

    x = torch.arange(1000.0)
    pinned = torch_ext.pin_addresses(function, (x,))
    wanted = 3
    for number in range(6):
        pinned(x + number)
    assert pinned.statistics.deviated == {"a block that outlived the call": 3}
    assert len(kept) == 3
    for number, y in enumerate(kept):
        assert torch.equal(y, (x + number) * 2)


@torch.no_grad()
def test_threads_have_an_arena_each():
    pinned, module = pinned_wide()
    x = wide_input()
    expected = module(x)
    wrong = []

    def work():
        for _ in range(50):
            if not torch.equal(pinned(x), expected):
                wrong.append(1)

    threads = [threading.Thread(target=torch.no_grad()(work)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pinned.statistics.served == 200


def test_training_of_a_pinned_loop_has_the_same_bits():
    def trained(pin):
        torch.manual_seed(0)
        model = Wide()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(x):
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        run = torch_ext.pin_addresses(step) if pin else step
        with torch.enable_grad():
            losses = [run(wide_input()) for _ in range(6)]
        return losses, list(model.parameters()), run

    losses, parameters, _ = trained(pin=False)
    pinned_losses, pinned_parameters, run = trained(pin=True)
    for a, b in zip(losses + parameters, pinned_losses + pinned_parameters, strict=True):
        assert torch.equal(a, b)
    assert run.statistics.served >= 2


@torch.no_grad()
def test_pinned_calls_nest():
    inner, _ = pinned_wide()
    served = inner.statistics.served
    outer = torch_ext.pin_addresses(lambda x: inner(x) * 2, (wide_input(),), strict=True)
    outer(wide_input())
    assert outer.statistics.served == 1
    assert inner.statistics.served == served


@torch.no_grad()
def test_an_exception_ends_the_call():
    pinned, module = pinned_wide()
    hook = module.shrink[-1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pinned(wide_input())
    hook.remove()
    gc.collect()
    assert torch.equal(pinned(wide_input()), module(wide_input()))
    assert pinned.statistics.served >= 1


def test_calls_that_never_allocate_alike_have_no_plan(caplog):
    count = 0

    def function(x):
        nonlocal count
        count += 1
        return torch.cat([x] * count).sum()

    pinned = torch_ext.pin_addresses(function, (torch.ones(10),))
    assert count == MOST_RECORDINGS
    assert not pinned.reports
    assert "no two allocated alike" in caplog.text


@torch.no_grad()
def test_statistics_of_the_process():
    before = torch_ext.arena_statistics()
    pinned, _ = pinned_wide()
    pinned(wide_input())
    after = torch_ext.arena_statistics()
    assert after.served == before.served + 1
    assert after.reserved_bytes >= only(pinned.reports).arena_bytes
    assert after.arenas >= 1


@torch.no_grad()
def test_a_scripted_module_is_served():
    module = torch.jit.freeze(traced_wide())
    pinned = torch_ext.pin_addresses(module, (wide_input(),), strict=True)
    assert torch.equal(pinned(wide_input()), module(wide_input()))
    assert pinned.statistics.served == 1


@torch.no_grad()
def test_kinds_of_calls_are_told_by_what_may_lead_another_way():
    x = torch.ones(2, 3)
    told = {
        "Float[2,3]": (x,),
        "Float[3,2]/[1,3]": (x.t(),),
        "Long[2,3]": (x.long(),),
        "Float[2,3] (Float[2,3] 3 None) True Double String": (x, (x, 3, None), True, 0.5, "a"),
        "Float/Sparse": (x.to_sparse(),),
        "Float/SparseCsr": (x.to_sparse_csr(),),
        "ndarray:float32:(2, 3)": (x.numpy(),),
        "Int": (10**5000,),
    }
    for text, args in told.items():
        assert _jit.signature(args, {}) == text
    assert _jit.signature((), {"b": x, "a": 1}) == _jit.signature((), {"a": 1, "b": x})
    with torch.enable_grad():
        assert _jit.signature((x,), {}) == "Float[2,3] with gradients"
    assert "\n" not in _jit.signature((), {"a\nb": "c\nd"})


def test_arguments_without_a_kind_are_no_obstacle():
    endless = []
    endless.append(endless)
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    pinned = torch_ext.pin_addresses(len)
    assert pinned(endless) == 1
    assert torch_ext.pin_addresses(lambda x: x.is_nested)(nested)


@torch.no_grad()
def test_kinds_that_come_once_leave_room_for_others():
    pinned = torch_ext.pin_addresses(lambda x, step: x * 2 + 1)
    for step in range(200):
        pinned(torch.ones(10), step)
    for _ in range(3):
        pinned(torch.ones(10), 7)
    assert pinned.statistics.served == 1


@torch.no_grad()
def test_another_behaviour_is_learned_anew():
    calls = 0

    def function(x):
        nonlocal calls
        calls += 1
        return x * 2 + 1 if calls <= 2 else ((x * 2 + 1) * 3).sum()

    pinned = torch_ext.pin_addresses(function)
    for _ in range(20):
        pinned(torch.ones(1000))
    assert pinned.statistics.served > 0
    assert sum(pinned.statistics.deviated.values()) == 8


@torch.no_grad()
def test_threads_learn_together():
    pinned = torch_ext.pin_addresses(lambda x: (x * 2 + 1).sum(), most_plans=2)
    for size in (1000, 2000):
        x = torch.ones(size)
        threads = [
            threading.Thread(target=torch.no_grad()(lambda x=x: [pinned(x) for _ in range(20)]))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pinned.learn(x)
    assert len(pinned.reports) == 2
    assert not pinned._learning


@torch.no_grad()
def test_the_environment_leaves_calls_to_malloc(monkeypatch):
    pinned, module = pinned_wide()
    monkeypatch.setenv("TORCH_EXT_DISABLE", "1")
    for _ in range(20):
        assert torch.equal(pinned(wide_input()), module(wide_input()))
    assert pinned.statistics.deviated == {"disabled": 20}
    monkeypatch.delenv("TORCH_EXT_DISABLE")
    pinned(wide_input())
    assert pinned.statistics.served == 1


def test_methods_can_be_decorated():
    class Model:
        @torch_ext.pin_addresses
        def run(self, x):
            return x * 2 + 1

    with torch.no_grad():
        assert torch.equal(Model().run(torch.ones(3)), torch.full((3,), 3.0))


def test_bad_arguments():
    with pytest.raises(ValueError, match="something to call, not int"):
        torch_ext.pin_addresses(3)
    with pytest.raises(ValueError, match="a tuple of arguments, not Tensor"):
        torch_ext.pin_addresses(torch.relu, torch.ones(3))
    with pytest.raises(ValueError, match="most_plans must be"):
        torch_ext.pin_addresses(torch.relu, most_plans=0)
