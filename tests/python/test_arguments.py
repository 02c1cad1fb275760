"""Arguments of public functions: text for amounts, and a sentence for whatever is wrong."""

import fractions
import functools
import math
import subprocess
import sys

import numpy
import pytest
import torch
from models import Wide, traced_wide, wide_input
from test_planning import FORK
from torch import nn

import torch_ext
import torch_ext.fx
from torch_ext.program.graph import region_tree, simulate

LETTER, SPECS = ["Nx16"], ["256x16"]


def fork():
    return torch_ext.Graph.from_text(FORK)


@functools.cache
def exported():
    return torch.export.export(Wide().eval(), (wide_input(),))


def enable(**options):
    torch_ext.enable(**options)
    torch_ext.disable()


def compile_with(**options):
    from torch_ext.fx.compile_backend import backend

    return backend(torch.fx.symbolic_trace(Wide()), [wide_input()], options=options)


def training_capacity(memory_budget="1KiB", **options):
    model = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.enable_grad():
        return torch_ext.training_capacity(
            model,
            nn.functional.mse_loss,
            optimizer,
            lambda size: (torch.ones(size, 64), torch.ones(size, 64)),
            memory_budget,
            **options,
        )


DOORS = {
    "optimize": lambda **options: torch_ext.optimize(traced_wide(), (wide_input(),), **options),
    "analyze": lambda **options: torch_ext.analyze(traced_wide(), (wide_input(),), **options),
    "plan": lambda **options: torch_ext.plan(fork(), **options),
    "fx.reorder": lambda **options: torch_ext.fx.reorder(exported(), wide_input(), **options),
    "fx.analyze": lambda **options: torch_ext.fx.analyze(exported(), wide_input(), **options),
    "capacity": lambda **options: torch_ext.capacity(traced_wide(), SPECS, **options),
    "training_capacity": training_capacity,
    "enable": enable,
    "enabled": lambda **options: torch_ext.enabled(**options).__enter__(),
    "inductor.enabled": lambda **options: torch_ext.inductor.enabled(**options).__enter__(),
    "backend": compile_with,
}
PLANNING = ("optimize", "analyze", "plan", "fx.reorder", "fx.analyze")
WITH_MEMORY = ("optimize", "plan", "fx.reorder", "capacity", "training_capacity")

NO_MEMORY = [
    *(-1, True, math.nan, 1.5, [1], 2**63, 2**80, b"1MiB", torch.tensor(5)),
    *("512 parsecs", "", "MiB", "-1", "512mib", "1e9", "9" * 400, "1 MiB\n"),
]
NO_SECONDS = [
    *("2", None, math.nan, math.inf, -1, -0.5, True, [1], 10**400, 1e7, 1 + 2j, b"2"),
    torch.tensor(1.0),
]


def refused(words=""):
    """One sentence, and not that of pybind."""
    return pytest.raises(ValueError, match=rf"\A(?!.*incompatible){words}[^\n]*\Z")


# --- doors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", WITH_MEMORY)
@pytest.mark.parametrize("value", ["1KiB", "1.5 KB", 2**10, numpy.int64(2**10)])
def test_memory_budgets_in_bytes_and_as_text(door, value):
    DOORS[door](memory_budget=value)


def test_a_budget_as_text_is_that_in_bytes():
    assert torch_ext.plan(fork(), memory_budget="12B").budget_met
    assert not torch_ext.plan(fork(), memory_budget="11B").budget_met
    report = torch_ext.optimize(traced_wide(), (wide_input(),), memory_budget="1KiB")[1]
    assert report.budget_met is False
    found = [torch_ext.capacity(traced_wide(), LETTER, budget) for budget in ("1MiB", 2**20)]
    assert found[0].memory_budget == found[1].memory_budget == 2**20
    assert found[0].after.size == found[1].after.size > 0


@pytest.mark.parametrize("door", WITH_MEMORY)
@pytest.mark.parametrize("value", NO_MEMORY, ids=repr)
def test_what_is_no_memory_budget(door, value):
    with refused("memory_budget.*(512MiB|more memory than there can be)"):
        DOORS[door](memory_budget=value)


@pytest.mark.parametrize("value", NO_MEMORY, ids=repr)
def test_what_is_no_limit(value):
    with refused("the limit.*(512MiB|more memory than there can be)"):
        torch_ext.assert_peak_below(value)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("value", NO_SECONDS, ids=repr)
def test_what_is_no_time_budget(door, value):
    with refused("time_budget must be a number of seconds between 0 and 1e6, not "):
        DOORS[door](time_budget=value)


@pytest.mark.parametrize("value", [0, 0.1, numpy.float32(0.1), fractions.Fraction(1, 10)])
def test_time_budgets(value):
    for door in ("optimize", "plan", "fx.analyze", "enable"):
        DOORS[door](time_budget=value)


@pytest.mark.parametrize("door", PLANNING)
@pytest.mark.parametrize("value", ["some", None, 1, b"all", ["all"], torch.ones(3)], ids=repr)
def test_what_is_no_scope(door, value):
    with refused("scope must be 'all' or 'bottleneck', not "):
        DOORS[door](scope=value)


@pytest.mark.parametrize("door", ["optimize", "fx.reorder"])
@pytest.mark.parametrize("value", ["no", "", None, 2, [True], 0.0, torch.ones(3)], ids=repr)
def test_what_is_no_flag(door, value):
    with refused("verify must be True or False, not "):
        DOORS[door](verify=value)


@pytest.mark.parametrize("value", [False, 0, numpy.bool_(False)])
def test_flags(value):
    _, report = DOORS["optimize"](verify=value)
    assert report.identical is None


@pytest.mark.parametrize("value", [None, "both", 1, ["reorder"], torch.ones(3)], ids=repr)
def test_what_is_no_mode(value):
    with refused("mode must be 'reorder' or 'observe', not "):
        torch_ext.enable(value)
    assert not torch_ext.is_enabled()


@pytest.mark.parametrize("value", NO_SECONDS, ids=repr)
def test_what_is_no_learning_budget(value):
    with refused("learning_budget must be a number of seconds"):
        torch_ext.enable(learning_budget=value)
    assert not torch_ext.is_enabled()


@pytest.mark.parametrize("value", [0, -1, "1", 1.5, True, None, 2**80], ids=repr)
def test_what_is_no_step(value):
    with refused("step must be a whole number between 1 and 1000000000, not "):
        torch_ext.capacity(traced_wide(), LETTER, "1MiB", step=value)


@pytest.mark.parametrize("value", ["256x16", 3, None, b"256x16"], ids=repr)
def test_what_are_no_input_specs(value):
    with refused("input_specs must be a list of str, not "):
        torch_ext.capacity(traced_wide(), value)
    with refused("what is in input_specs must be a str"):
        torch_ext.capacity(traced_wide(), ["256x16", value and 3])


# --- bare graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["4", True, 2.0, None, 2**63, 2**70, -1, -(2**70)], ids=repr)
def test_what_is_no_size(value):
    graph = torch_ext.Graph()
    with refused("size_bytes of buffer 'a' must be a whole number of bytes, not negative"):
        graph.add_buffer("a", value)
    with refused("workspace_bytes of op 'o' must be a whole number of bytes, not negative"):
        graph.add_op("o", workspace_bytes=value)
    with refused("nanoseconds of op 'o' must be a whole number, not negative"):
        graph.add_op("o", nanoseconds=value)
    assert graph.to_text() == "graph 1\n"


@pytest.mark.parametrize("value", [3, None, b"a", "\ud800", ["a"]], ids=repr)
def test_what_is_no_name(value):
    graph = torch_ext.Graph()
    with refused("the name of a buffer must be a str"):
        graph.add_buffer(value, 1)
    with refused("the name of an op must be a str"):
        graph.add_op(value)
    with refused("a graph must be a str"):
        torch_ext.Graph.from_text(value)


@pytest.mark.parametrize("value", ["ab", b"ab", 3, None], ids=repr)
def test_what_are_no_names(value):
    graph = torch_ext.Graph()
    graph.add_buffer("a", 1)
    graph.add_buffer("b", 1)
    for option in ("reads", "writes", "after", "mutates"):
        with refused(f"{option} of op 'o' must be a list of str, not "):
            graph.add_op("o", **{option: value})
        with refused(f"what is in {option} of op 'o' must be a str"):
            graph.add_op("o", **{option: ["a", 3]})
    with refused("without must be a list of str, not "):
        torch_ext.plan(fork(), without=value)
    with refused("order must be a list of str, not "):
        simulate(fork(), value)


@pytest.mark.parametrize("value", ["no", None, 2, [1]], ids=repr)
def test_what_is_no_flag_of_a_buffer(value):
    for option in ("input", "kept"):
        with refused(f"{option} of buffer 'a' must be True or False, not "):
            torch_ext.Graph().add_buffer("a", 1, **{option: value})
    with refused("once of op 'o' must be True or False, not "):
        torch_ext.Graph().add_op("o", once=value)


@pytest.mark.parametrize("value", [3, None, b"graph.txt", "", "a\0b", "\ud800", [1]], ids=repr)
def test_what_is_no_path_of_a_graph(value):
    with refused("the path of a graph "):
        torch_ext.plan(value)
    for function in (region_tree, lambda graph: simulate(graph, [])):
        with refused("graph must be a torch_ext.Graph, not "):
            function(value)


def test_checking_needs_no_torch():
    code = "import sys, torch_ext.arguments, torch_ext.files; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
