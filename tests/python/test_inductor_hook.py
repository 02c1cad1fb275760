"""torch_ext.inductor: our order among Inductor's, its caches, and what may be missing."""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import pathlib
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from test_cli import complains, run
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config, custom_graph_pass, memory
from torch._inductor.utils import fresh_cache

import torch_ext
from torch_ext.inductor import hook
from torch_ext.inductor.dump import read_dump, to_graph

ORIGINAL = memory.reorder_for_peak_memory


@pytest.fixture(scope="module", autouse=True)
def _one_cache_for_all():
    with fresh_cache():
        yield


@pytest.fixture(autouse=True)
def _log_and_nothing_left_behind(caplog):
    caplog.set_level(logging.INFO, "torch_ext")
    torch._dynamo.reset()
    yield
    assert memory.reorder_for_peak_memory is ORIGINAL
    assert config._pre_fusion_custom_pass is None
    assert not config.force_disable_caches


class Uneven(nn.Module):
    """Three branches of which each of Inductor's methods begins with a wrong one."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((4, 64), (64, 32), (64, 32), (64, 32), (32, 64), (64, 4), (32, 1))
        self.weights = nn.ParameterList(torch.randn(shape) for shape in shapes)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        a, b, c, d, e, f, g = self.weights
        x = x @ a
        first, second, third = x @ b, x @ c, x @ d
        return [y.T @ y for y in (first, second @ e @ f, third @ g)]


ROWS = torch.randn(256, 4, generator=torch.Generator().manual_seed(1))


def compiled_anew(model: Callable[..., object], *inputs: torch.Tensor) -> Callable[..., object]:
    """Compiled by Inductor without any cache; forgets what was compiled before."""
    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=False)
    with (
        config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        compiled(*inputs)
    return compiled


def peak_of(call: Callable[..., object], *inputs: torch.Tensor) -> int:
    with torch_ext.measure_peak() as measured:
        call(*inputs)
    return measured.peak_bytes


# --- the order ------------------------------------------------------------------------------------


def test_a_lower_peak_and_the_same_bits(caplog):
    model = Uneven()
    theirs = compiled_anew(model, ROWS)
    assert peak_of(theirs, ROWS) == 135_168
    expected = theirs(ROWS)
    with torch_ext.inductor.enabled():
        ours = compiled_anew(model, ROWS)
    assert "needs 135,168, ours 102,404, every order at least 102,404 bytes (opt" in caplog.text
    assert "ours is used" in caplog.text
    assert peak_of(ours, ROWS) == 102_404
    assert all(map(torch.equal, expected, ours(ROWS)))


def test_two_models_in_one_block(caplog):
    with torch_ext.inductor.enabled():
        a, b = compiled_anew(Uneven(), ROWS), torch.compile(Uneven())
        b(ROWS[:128])
    assert caplog.text.count("ours is used") == 2
    assert peak_of(a, ROWS) == 102_404


def test_nothing_to_gain_keeps_inductors_order(caplog):
    with torch_ext.inductor.enabled():
        compiled_anew(lambda x: x.T @ x, ROWS)
    assert "Inductor's is used" in caplog.text


def sort_and_top(x: torch.Tensor) -> list[torch.Tensor]:
    values, places = torch.sort(x @ x.T, 0)
    top, where = torch.topk(x.T @ values, 3)
    return [places.T @ places, top.T @ top, where + 1]


class Counting(nn.Module):
    """Writes to a buffer of its own, and to a temporary through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.T @ x
        y[0].add_(self.total[0])
        self.total.add_(y @ y)
        return y @ self.total


def trained(x: torch.Tensor) -> torch.Tensor:
    """Has a backward graph if there are gradients, with activations that it may free."""
    y = torch.tanh(x @ x.T) @ x
    return torch.var_mean(y, 0)[0].sum() + torch.relu(y @ x.T).sum()


@pytest.mark.parametrize(
    ("model", "holds"),
    [
        (Uneven(), lambda b: not b.is_input and not b.is_output),
        (sort_and_top, lambda b: b.allocated_bytes > 0 == b.freed_bytes),
        (Counting(), lambda b: b.allocated_bytes == b.freed_bytes == 0),
        (trained, lambda b: b.is_input),
    ],
)
def test_peaks_are_those_that_inductor_estimates(model, holds, monkeypatch, caplog):
    found, peaks = [], []

    def recording(nodes, name_to_buf, name_to_fused_node, graph_inputs, graph_outputs):
        theirs = ORIGINAL(nodes, name_to_buf, name_to_fused_node, graph_inputs, graph_outputs)
        inputs = memory.get_freeable_input_buf(nodes, graph_inputs)
        for order in (nodes, theirs):
            buffers, described = hook.describe(order, inputs, graph_outputs)
            found.extend(buffers)
            plan = torch_ext.plan(to_graph(buffers, described), time_budget=0)
            estimate, _ = memory.estimate_peak_memory(order, inputs, graph_outputs)
            peaks.append((plan.original_peak_bytes, estimate))
        return theirs

    with monkeypatch.context() as patched:
        patched.setattr(memory, "reorder_for_peak_memory", recording)
        with torch_ext.inductor.enabled():
            x = torch.randn(64, 4)
            with torch.set_grad_enabled(model is trained):
                loss = compiled_anew(model, x.requires_grad_(model is trained))(x)
                if model is trained:
                    loss.backward()
    assert any(holds(buffer) for buffer in found)
    assert len(peaks) == (4 if model is trained else 2)
    assert all(ours == theirs > 0 for ours, theirs in peaks)
    assert caplog.text.count("is used") == len(peaks) / 2


class Random(nn.Module):
    """Matrix products, sorts and top values, each of something computed not long before."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        widths = [4]
        self.steps = []
        for _ in range(draw.randrange(8, 14)):
            source = draw.randrange(max(0, len(widths) - 4), len(widths))
            kind = draw.choice(("product", "product", "top", "sort"))
            width = draw.choice((1, 4, 16, 64)) if kind == "product" else widths[source]
            weight = torch.randn(widths[source], width)
            self.steps.append((kind, source, weight))
            widths.append(width)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        values, unread = [x], set()
        for kind, source, weight in self.steps:
            y = values[source]
            if kind == "product":
                y = y @ weight
            else:
                y, _ = torch.topk(y, len(y), 0) if kind == "top" else torch.sort(y, 0)
            unread = unread - {source} | {len(values)}
            values.append(y)
        return [values[place].T @ values[place] for place in sorted(unread)]


def test_random_programs_keep_their_bits(monkeypatch, caplog):
    monkeypatch.setattr(hook, "_LEAST_GAIN", 0)
    for seed in range(8):
        model = Random(seed)
        expected = compiled_anew(model, ROWS)(ROWS)
        with torch_ext.inductor.enabled():
            ours = compiled_anew(model, ROWS)
        assert all(map(torch.equal, expected, ours(ROWS))), seed
    assert caplog.text.count(" is used") == 8
    assert caplog.text.count("ours is used") >= 4


def test_a_graph_that_we_do_not_understand_is_left_alone(monkeypatch, caplog):
    def wrong(buffers, nodes):
        return to_graph(
            [dataclasses.replace(b, allocated_bytes=8, freed_bytes=8) for b in buffers], nodes
        )

    monkeypatch.setattr(hook, "to_graph", wrong)
    with torch_ext.inductor.enabled():
        run = compiled_anew(Uneven(), ROWS)
    assert re.search("is left alone: by our account .* bytes, by Inductor's 135,168", caplog.text)
    assert peak_of(run, ROWS) == 135_168


def test_an_error_of_ours_does_not_end_a_compilation(monkeypatch, caplog):
    monkeypatch.setattr(hook, "plan_graph", lambda *_, **__: 1 / 0)
    with torch_ext.inductor.enabled():
        run = compiled_anew(Uneven(), ROWS)
    assert "Inductor's order is kept, for planning failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert peak_of(run, ROWS) == 135_168


def test_kernels_of_cpp_are_parted(caplog):
    """Two kernels in a row free nothing in between, so a matrix product goes between them."""

    def model(x: torch.Tensor) -> list[torch.Tensor]:
        wide = torch.exp(x[:200, :1] - (x @ x.T).sum(0))
        return [wide @ x, x.T @ x]

    theirs = peak_of(compiled_anew(model, ROWS), ROWS)
    with torch_ext.inductor.enabled():
        ours = peak_of(compiled_anew(model, ROWS), ROWS)
    assert "with C++ kernels called together" in caplog.text
    assert ours < 0.6 * theirs


# --- where Inductor has no place for us -----------------------------------------------------------


@contextlib.contextmanager
def warned(*words: str):
    with pytest.warns(UserWarning, match="so Inductor's own order is used$") as record:
        yield
    [warning] = record
    assert warning.filename == __file__
    for word in words:
        assert word in str(warning.message)


@pytest.mark.parametrize(
    "name", ["reorder_for_peak_memory", "get_freeable_input_buf", "estimate_peak_memory"]
)
def test_a_function_that_is_missing_or_different_is_one_warning(name, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(memory, name, lambda nodes: nodes)
        with warned(f"torch._inductor.memory.{name}(nodes, "), torch_ext.inductor.enabled():
            assert getattr(memory, name)(1) == 1
        patched.delattr(memory, name)
        with warned(name), torch_ext.inductor.enabled():
            assert not hasattr(memory, name)


def test_a_setting_that_is_missing_breaks_nothing(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(hook, "_PASS", "_a_pass_of_the_future")
        with warned("torch._inductor.config._a_pass_of_the_future"), torch_ext.inductor.enabled():
            run = compiled_anew(Uneven(), ROWS)
    assert peak_of(run, ROWS) == 135_168


def test_reordering_turned_off_is_one_warning():
    with (
        config.patch(reorder_for_peak_memory=False),
        warned("torch._inductor.config.reorder_for_peak_memory is off"),
        torch_ext.inductor.enabled(),
    ):
        assert memory.reorder_for_peak_memory is ORIGINAL


def test_no_inductor_at_all(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "torch._inductor.memory", None)
        with warned("no Inductor that can be imported"), torch_ext.inductor.enabled():
            pass


def test_the_environment_turns_it_off(monkeypatch):
    monkeypatch.setenv("TORCH_EXT_DISABLE", "1")
    with torch_ext.inductor.enabled():
        assert memory.reorder_for_peak_memory is ORIGINAL


def test_a_budget_that_makes_no_sense():
    with pytest.raises(ValueError, match="time_budget"), torch_ext.inductor.enabled(time_budget=-1):
        pass


# --- blocks ---------------------------------------------------------------------------------------


def test_blocks_within_blocks():
    with torch_ext.inductor.enabled(time_budget=1):
        hook, outer = memory.reorder_for_peak_memory, config._pre_fusion_custom_pass
        with torch_ext.inductor.enabled(time_budget=3):
            assert memory.reorder_for_peak_memory is hook
            assert config._pre_fusion_custom_pass.time_budget == 3
            assert config._pre_fusion_custom_pass.before is None
        assert memory.reorder_for_peak_memory is hook
        assert config._pre_fusion_custom_pass is outer


def test_an_exception_ends_a_block():
    with pytest.raises(KeyError), torch_ext.inductor.enabled():
        raise KeyError


def test_a_hook_that_somebody_put_around_ours_stays():
    with torch_ext.inductor.enabled():
        ours = memory.reorder_for_peak_memory
        memory.reorder_for_peak_memory = around = functools.partial(ours)
    assert memory.reorder_for_peak_memory is around
    assert peak_of(compiled_anew(Uneven(), ROWS), ROWS) == 135_168
    memory.reorder_for_peak_memory = ours
    with torch_ext.inductor.enabled():
        assert memory.reorder_for_peak_memory is ours


def test_a_block_is_that_of_its_thread(caplog):
    inside, outside = threading.Event(), threading.Event()
    runs = []

    def without_a_block():
        inside.wait()
        with torch.no_grad():
            runs.append(compiled_anew(Uneven(), ROWS))
        outside.set()

    thread = threading.Thread(target=without_a_block)
    thread.start()
    with torch_ext.inductor.enabled():
        inside.set()
        outside.wait()
        assert memory.reorder_for_peak_memory is not ORIGINAL
    thread.join()
    assert caplog.text == ""
    assert peak_of(*runs, ROWS) == 135_168


def test_blocks_of_threads_may_overlap():
    first_is_open, second_is_open = threading.Event(), threading.Event()

    def first():
        with torch_ext.inductor.enabled():
            first_is_open.set()
            second_is_open.wait()

    thread = threading.Thread(target=first)
    thread.start()
    first_is_open.wait()
    with torch_ext.inductor.enabled():
        second_is_open.set()
        thread.join()
        assert memory.reorder_for_peak_memory is not ORIGINAL


# --- caches ---------------------------------------------------------------------------------------


def hits_and_misses(model: nn.Module) -> tuple[int, int, int]:
    """Of the cache of graphs, and hits of autograd's, when a model is compiled."""
    torch._dynamo.reset()
    counters.clear()
    torch.compile(model)(ROWS)
    inductor = counters["inductor"]
    return (
        inductor["fxgraph_cache_hit"],
        inductor["fxgraph_cache_miss"],
        counters["aot_autograd"]["autograd_cache_hit"],
    )


MISS = (0, 1, 0)


def is_hit(counts: tuple[int, int, int]) -> bool:
    """Autograd's cache asks that of graphs, without counting."""
    return counts == (0, 0, 1) or counts == (1, 0, 1)


class Own(custom_graph_pass.CustomSchedulerPass):
    def __init__(self, name: str | None) -> None:
        self.name = name
        self.calls = 0

    def __call__(self, nodes):
        self.calls += 1
        return nodes

    def uuid(self):
        return self.name


def test_caches_tell_our_order_from_inductors():
    model = Uneven()
    with fresh_cache():
        assert hits_and_misses(model) == MISS
        with torch_ext.inductor.enabled():
            assert hits_and_misses(model) == MISS
            assert is_hit(hits_and_misses(model))
            assert peak_of(torch.compile(model), ROWS) == 102_404
        assert is_hit(hits_and_misses(model))
        assert peak_of(torch.compile(model), ROWS) == 135_168
        with torch_ext.inductor.enabled(time_budget=3):
            assert hits_and_misses(model) == MISS
        with torch_ext.inductor.enabled():
            assert is_hit(hits_and_misses(model))


def test_a_pass_of_the_users_own_is_run_and_told_to_the_caches():
    model, own = Uneven(), Own("own")
    with fresh_cache(), torch_ext.inductor.enabled():
        assert hits_and_misses(model) == MISS
    with fresh_cache(), config.patch(_pre_fusion_custom_pass=own):
        with torch_ext.inductor.enabled():
            assert hits_and_misses(model) == MISS
            assert own.calls == 1
            assert is_hit(hits_and_misses(model))
        with config.patch(_pre_fusion_custom_pass=Own("other")), torch_ext.inductor.enabled():
            assert hits_and_misses(model) == MISS


@pytest.mark.parametrize("own", [Own(None), lambda nodes: nodes])
def test_with_a_pass_that_caches_cannot_know_they_are_off(own):
    model = Uneven()
    with fresh_cache(), config.patch(_pre_fusion_custom_pass=own), torch_ext.inductor.enabled():
        for _ in range(2):
            assert hits_and_misses(model) == (0, 0, 0)
        assert peak_of(torch.compile(model), ROWS) == 102_404


def test_where_caches_know_no_passes_they_are_off(monkeypatch):
    monkeypatch.delattr(custom_graph_pass, "CustomSchedulerPass")
    with fresh_cache(), torch_ext.inductor.enabled():
        for _ in range(2):
            assert hits_and_misses(Uneven()) == (0, 0, 0)


# --- the dump -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Uneven(), sort_and_top, Counting()])
def test_the_dump_holds_the_graph_of_the_hook(model, monkeypatch):
    graphs, dumps = [], []

    def recording(nodes, name_to_buf, name_to_fused_node, graph_inputs, graph_outputs):
        order = ORIGINAL(nodes, name_to_buf, name_to_fused_node, graph_inputs, graph_outputs)
        inputs = memory.get_freeable_input_buf(nodes, graph_inputs)
        buffers, described = hook.describe(nodes, inputs, graph_outputs)
        without_edges = [dataclasses.replace(node, after=()) for node in described]
        graphs.append(to_graph(buffers, without_edges).to_text())
        return order

    def keep(_, metadata_fn=dict, payload_fn=str, **__):
        if str(metadata_fn().get("name")).endswith("_fused"):
            dumps.append(payload_fn())

    with monkeypatch.context() as patched:
        patched.setattr(memory, "reorder_for_peak_memory", recording)
        patched.setattr(torch._logging, "trace_structured", keep)
        with config.patch(reorder_for_peak_memory_debug=True):
            compiled_anew(model, torch.randn(64, 4))
    assert [read_dump(dump, "dump").to_text() for dump in dumps] == graphs != []


def test_a_trace_log_is_planned_by_the_command_line(tmp_path):
    program = """
import torch, test_inductor_hook
torch._inductor.config.reorder_for_peak_memory_debug = True
torch.set_grad_enabled(False)
for model in (test_inductor_hook.Uneven(), lambda x: x.T @ x):
    torch.compile(model)(test_inductor_hook.ROWS)
"""
    environment = {
        "PYTHONPATH": str(pathlib.Path(__file__).parent),
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "TORCH_TRACE": str(tmp_path),
    }
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, **environment},
        check=True,
    )
    [log] = tmp_path.iterdir()
    complains(run("plan", log), 2, "holds 2 graphs", "--name", "_fused, model")
    name = re.findall(r"model__\w+", run("plan", log).stderr)[0]
    result = run("plan", log, "--name", name, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    fields = json.loads(result.stdout)
    assert fields["peak_bytes"] == 102_404
    assert fields["original_peak_bytes"] >= 135_168
