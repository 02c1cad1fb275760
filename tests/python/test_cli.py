"""python -m torch_ext: files in, files out, exit codes."""

import ctypes.util
import itertools
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from models import traced_wide, wide_input
from test_planning import FORK, forward_and_backward
from torch import nn

import torch_ext

SPEC = "256x16:f32"


def run(*arguments, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch_ext", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def complains(result, code, *words):
    """One sentence on standard error, nothing on standard output."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("torch_ext: ")
    for word in words:
        assert str(word) in lines[0]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.save(traced_wide(), path, _extra_files={"note.txt": b"hello"})
    return path


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "graph.txt"
    path.write_text(FORK)
    return path


# --- plan ----------------------------------------------------------------------------------------


def test_plan_prints_one_json_object(graph):
    result = run("plan", graph, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    fields = json.loads(result.stdout)
    assert fields["peak_bytes"] == 12
    assert fields["status"] == "optimal"


def test_plan_for_people_and_the_order_to_a_file(graph, tmp_path):
    result = run("plan", graph, "-o", tmp_path / "order.txt")
    assert result.returncode == 0
    assert "no order needs less" in result.stdout
    assert (tmp_path / "order.txt").read_text() == "make_a\nuse_a\nmake_b\nuse_b\n"


def test_plan_exits_with_3_when_the_memory_budget_is_not_met(graph):
    assert run("plan", graph, "--memory-budget", "12").returncode == 0
    result = run("plan", graph, "--memory-budget", "11B", "--json")
    assert result.returncode == 3
    assert json.loads(result.stdout)["budget_met"] is False


def test_plan_runs_ops_again_where_a_memory_budget_asks_for_it(tmp_path):
    path = tmp_path / "chain.txt"
    path.write_text(forward_and_backward().to_text())
    budget = ("--memory-budget", "80B")
    result = run("plan", path, *budget, "--json", "-o", tmp_path / "order.txt")
    assert (result.returncode, result.stderr) == (0, "")
    fields = json.loads(result.stdout)
    assert fields["peak_bytes"] <= 80
    order = (tmp_path / "order.txt").read_text().splitlines()
    assert order == fields["order"]
    assert fields["repeats"][0]["name"] in order
    assert "ops that run again" in run("plan", path, *budget).stdout
    assert run("plan", path, *budget, "--levers", "order").returncode == 3
    missed = run("plan", path, "--memory-budget", "20B")
    assert missed.returncode == 3
    assert "no order and no repeats get below 40 B" in missed.stdout
    refused = run("plan", path, "--levers", "slice")
    assert refused.returncode == 2
    assert "must be of 'order', 'repeat', not 'slice'" in refused.stderr


def test_front_of_a_graph_imports_no_torch(tmp_path):
    path = tmp_path / "chain.txt"
    path.write_text(forward_and_backward().to_text())
    files = ("--html", tmp_path / "front.html", "--csv", tmp_path / "front.csv")
    result = run("front", path, "--points", "3", "--json", *files)
    assert (result.returncode, result.stderr) == (0, "")
    points = json.loads(result.stdout)["points"]
    assert 1 < len(points) <= 4
    assert len((tmp_path / "front.csv").read_text().splitlines()) == 1 + len(points)
    assert "<svg" in (tmp_path / "front.html").read_text(encoding="utf-8")
    code = (
        "import sys; from torch_ext.cli.front import run; import argparse; "
        f"run(argparse.Namespace(model={str(path)!r}, input=[], html=None, csv=None, force=False, "
        "points=1, time_budget=1.0, levers=None, json=True)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    path.write_text("graph 2\nop o mutates a\n")
    complains(run("front", path), 2, "line 2", "which it does not read")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("graph 1\nop a reads b\n", ["line 2", "unknown buffer 'b'"]),
        ("nonsense\n", ["line 1"]),
        ("", ["header"]),
    ],
)
def test_plan_names_the_line_of_a_mistake(text, words, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    complains(run("plan", path), 2, "bad.txt", *words)


def test_files_whose_names_are_no_text(graph, model, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/n\xff")
    os.rename(graph, odd)
    assert run("plan", odd, "-o", f"{odd}.order").returncode == 0
    assert pathlib.Path(f"{odd}.order").read_text().startswith("make_a")
    pathlib.Path(odd).write_text("nonsense")
    complains(run("plan", odd), 2, r"n\udcff: line 1")
    os.rename(model, odd)
    for command in (("analyze", odd), ("optimize", odd, "-o", "out.pt"), ("verify", odd, odd)):
        complains(run(*command), 2, r"UTF-8 can write, not", r"n\udcff")


def test_plan_of_no_file_and_of_no_text(tmp_path):
    complains(run("plan", tmp_path / "none.txt"), 2, "none.txt")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    complains(run("plan", tmp_path / "bytes"), 2, "UTF-8")
    complains(run("plan", tmp_path / ("n" * 300)), 2, "name too long")
    complains(run("plan", ""), 2, "is empty")
    complains(run("analyze", ""), 2, "is empty")
    complains(run("analyze", tmp_path / ("n" * 300)), 2, "no such file")


# --- optimize ------------------------------------------------------------------------------------


def test_optimize_writes_a_model_with_a_lower_peak(model, tmp_path):
    before = model.read_bytes()
    output = tmp_path / "out.pt"
    result = run("optimize", model, "-o", output, "--input", SPEC, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    fields = json.loads(result.stdout)
    assert fields["identical"]
    assert fields["measured_peak_bytes"] < fields["measured_original_peak_bytes"]
    assert model.read_bytes() == before
    x = wide_input()
    assert torch.equal(torch.jit.load(output)(x), torch.jit.load(model)(x))
    extra = {"note.txt": ""}
    torch.jit.load(output, _extra_files=extra)
    assert extra["note.txt"] == b"hello"
    verify = run("verify", model, output, "--input", SPEC, "--json")
    assert verify.returncode == 0
    assert json.loads(verify.stdout)["identical"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt", "out.pt"]


def test_optimize_for_people(model, tmp_path):
    result = run("optimize", model, "-o", tmp_path / "out.pt", "--input", SPEC)
    for words in (
        "% less",
        "no order and no overwriting needs less",
        "optimal",
        "bottleneck",
        "models.py:",
        "identical",
    ):
        assert words in result.stdout


def test_optimize_overwrites_its_input_only_if_asked_to(model):
    before = model.read_bytes()
    complains(run("optimize", model, "-o", model, "--input", SPEC), 2, model, "--force")
    assert model.read_bytes() == before
    assert run("optimize", model, "-o", model, "--input", SPEC, "--force").returncode == 0
    again = run("optimize", model, "-o", model, "--input", SPEC, "--json", "--force")
    assert json.loads(again.stdout)["moved_ops"] == 0


def test_no_gain_is_no_failure(tmp_path):
    module = torch.jit.trace(nn.Linear(16, 4), (wide_input(),), check_trace=False)
    torch.jit.save(module, tmp_path / "linear.pt")
    output = tmp_path / "out.pt"
    result = run("optimize", tmp_path / "linear.pt", "-o", output, "--input", SPEC)
    assert result.returncode == 0
    assert "no gain because" in result.stdout
    assert output.exists()


def test_scope_and_memory_budget(model, tmp_path):
    output = tmp_path / "out.pt"
    common = ("optimize", model, "-o", output, "--input", SPEC)
    assert run(*common, "--scope", "bottleneck").returncode == 0
    assert run(*common, "--memory-budget", "1GiB").returncode == 0
    output.unlink()
    result = run(*common, "--memory-budget", "1KiB")
    assert result.returncode == 3
    assert "is not met" in result.stderr
    assert output.exists()
    result = run(*common, "--memory-budget", "1KiB", "--levers", "order,repeat", "--json")
    assert result.returncode == 3
    levers = json.loads(result.stdout)["levers"]
    assert [use["name"] for use in levers] == ["order", "repeat"]
    assert "no repeats get below" in levers[1]["reason"]


def test_wrong_number_or_kind_of_inputs(model, tmp_path):
    output = tmp_path / "out.pt"
    complains(run("optimize", model, "-o", output), 2, "does not fit forward")
    complains(
        run("optimize", model, "-o", output, "--input", SPEC, "--input", SPEC),
        2,
        "does not fit forward",
    )
    complains(run("optimize", model, "-o", output, "--input", "3xx4:f32"), 2, "1x3x224x224:f32")
    complains(run("optimize", model, "-o", output, "--input", "3x4:f31"), 2, "f31")
    assert not output.exists()


def test_inputs_that_raise(model, tmp_path):
    complains(
        run("optimize", model, "-o", tmp_path / "out.pt", "--input", "256x17:f32"),
        1,
        "the model cannot be run",
        "shapes cannot be multiplied",
    )
    assert not (tmp_path / "out.pt").exists()


def test_files_that_are_no_models(model, tmp_path):
    output = tmp_path / "out.pt"
    for name, content in (("text.pt", b"hello"), ("short.pt", model.read_bytes()[:1000])):
        (tmp_path / name).write_bytes(content)
        complains(run("optimize", tmp_path / name, "-o", output), 2, name, "torch.jit.save")
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pt")
    complains(run("optimize", tmp_path / "weights.pt", "-o", output), 2, "no TorchScript code")
    with zipfile.ZipFile(tmp_path / "odd.pt", "w") as archive:
        archive.writestr("odd/code/x.py", "pass")
    complains(run("analyze", tmp_path / "odd.pt"), 2, "odd.pt")
    complains(run("analyze", tmp_path / "none.pt"), 2, "no such file")
    assert not output.exists()


def test_an_output_that_cannot_be_written(model, tmp_path):
    complains(
        run("optimize", model, "-o", tmp_path / "no" / "out.pt", "--input", SPEC), 1, "no folder"
    )
    complains(run("optimize", model, "-o", tmp_path, "--input", SPEC), 2, "it is a folder")
    complains(run("optimize", model, "-o", f"{tmp_path}/new/", "--input", SPEC), 2, "a folder")
    complains(run("optimize", model, "-o", "", "--input", SPEC), 2, "-o is empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt"]


COMMANDS = {
    "plan": ("-o",),
    "analyze": ("--html", "--trace", "--csv", "--graph", "--extract"),
    "optimize": ("-o", "--html", "--trace", "--csv"),
}


@pytest.mark.parametrize(
    ("command", "options"),
    [(c, pair) for c, options in COMMANDS.items() for pair in itertools.combinations(options, 2)],
    ids=str,
)
def test_two_outputs_in_one_file_are_told_before_the_work(command, options, tmp_path):
    (tmp_path / "link").symlink_to("out")
    needed = () if "-o" in options or command == "analyze" else ("-o", tmp_path / "out.pt")
    given = zip(options, (tmp_path / "out", tmp_path / "link"), strict=True)
    arguments = itertools.chain(*given, needed)
    no_model = tmp_path / "none.pt"  # which would be told next
    complains(run(command, no_model, *arguments), 2, *options, "one file")
    assert [p.name for p in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, option) for command, options in COMMANDS.items() for option in options],
)
def test_the_input_is_not_overwritten_unless_asked_for(command, option, tmp_path):
    (tmp_path / "input").write_text("no graph, no model")  # which would be told next
    os.link(tmp_path / "input", tmp_path / "again")
    needed = () if option == "-o" or command != "optimize" else ("-o", tmp_path / "out.pt")
    arguments = (command, tmp_path / "input", option, tmp_path / "again", *needed)
    complains(run(*arguments), 2, tmp_path / "again", option, "--force")
    complains(run(*arguments, "--force"), 2, "input")
    assert (tmp_path / "again").read_text() == "no graph, no model"


def test_with_force_the_input_is_overwritten_as_a_whole(graph):
    assert run("plan", graph, "-o", graph, "--force").returncode == 0
    assert graph.read_text() == "make_a\nuse_a\nmake_b\nuse_b\n"


def test_outputs_into_standard_output(graph, model, tmp_path):
    result = run("plan", graph, "-o", "/dev/stdout", "--json")
    assert result.stdout.startswith("make_a\nuse_a\nmake_b\nuse_b\n{")
    with (tmp_path / "both").open("w") as file:
        command = [sys.executable, "-m", "torch_ext", "plan", str(graph), "-o", "/dev/stdout"]
        subprocess.run(command, stdout=file, check=True)
    assert (tmp_path / "both").read_text().startswith("make_a\nuse_a\nmake_b\nuse_b\npeak memory ")
    outputs = ("--csv", "/dev/stdout", "--graph", "/dev/stdout")
    result = run("analyze", model, "--input", SPEC, *outputs)
    assert result.stdout.index("graph 1") < result.stdout.index("order,step,op")


def test_an_optimized_model_goes_into_a_pipe_and_through_a_link(model, tmp_path):
    pipe, link, target = (tmp_path / name for name in ("pipe", "link.pt", "target.pt"))
    os.mkfifo(pipe)
    link.symlink_to(target.name)
    received = tmp_path / "received.pt"
    with received.open("wb") as file, subprocess.Popen(["cat", pipe], stdout=file):
        result = run("optimize", model, "-o", pipe, "--html", link, "--input", SPEC)
    assert (result.returncode, result.stderr) == (0, "")
    assert pipe.is_fifo()
    assert torch.equal(torch.jit.load(received)(wide_input()), traced_wide()(wide_input()))
    assert link.is_symlink()
    assert "<title>model.pt" in target.read_text(encoding="utf-8")


def test_a_disk_that_is_full_leaves_nothing_behind(model, tmp_path):
    output = tmp_path / "out.pt"
    output.write_text("as it was")

    def small_files_only():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    result = run("optimize", model, "-o", output, "--input", SPEC, preexec_fn=small_files_only)
    assert result.returncode == 1, result.stderr
    assert "out.pt: cannot write" in result.stderr
    assert output.read_text() == "as it was"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt", "out.pt"]


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(1_000_000_000):
                x = torch.sin(x)
            return x

    torch.jit.save(torch.jit.script(Slow()), tmp_path / "slow.pt")
    command = ["-m", "torch_ext", "optimize", tmp_path / "slow.pt", "-o", tmp_path / "out.pt"]
    process = subprocess.Popen(
        [sys.executable, *map(str, command), "--input", "8:f32"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Jobs that a shell put into the background ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    maps = pathlib.Path(f"/proc/{process.pid}/maps")
    while "_jit" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == ("", "torch_ext: interrupted, nothing was written\n")
    assert [p.name for p in tmp_path.iterdir()] == ["slow.pt"]


# --- analyze, verify, doctor ---------------------------------------------------------------------


def test_analyze_writes_the_bottleneck_region_as_a_graph(model, tmp_path):
    region = tmp_path / "region.txt"
    result = run("analyze", model, "--input", SPEC, "--extract", region, "--json")
    assert result.returncode == 0
    fields = json.loads(result.stdout)
    planned = json.loads(run("plan", region, "--json").stdout)
    assert fields["peak_bytes"] <= planned["original_peak_bytes"] <= fields["original_peak_bytes"]
    assert planned["peak_bytes"] <= fields["peak_bytes"]
    assert planned["ops"] <= fields["ops"]


def test_verify_exits_with_4_when_outputs_differ(model, tmp_path):
    other = traced_wide()
    with torch.no_grad():
        next(iter(other.parameters())).add_(1)
    torch.jit.save(other, tmp_path / "other.pt")
    result = run("verify", model, tmp_path / "other.pt", "--input", SPEC)
    assert result.returncode == 4
    assert "values differ" in result.stdout


def test_optimize_keeps_planned_addresses_in_the_file(model, tmp_path):
    output = tmp_path / "out.pt"
    told = run("optimize", model, "-o", output, "--input", SPEC, "--json", "--addresses")
    fields = json.loads(told.stdout)
    assert fields["arena_bytes"] == fields["arena_bound_bytes"] > 0
    module = torch_ext.load(output)
    with torch.no_grad():
        assert torch.equal(module(wide_input()), torch.jit.load(model)(wide_input()))
    assert module.statistics.served == 1
    again = tmp_path / "again.pt"  # without the option the plan, which is of another file, is gone
    run("optimize", output, "-o", again, "--input", SPEC)
    assert isinstance(torch_ext.load(again), torch.jit.ScriptModule)


def test_doctor():
    result = run("doctor", "--json")
    assert result.returncode == 0, result.stdout
    told = json.loads(result.stdout)
    assert told["problem"] == ""
    assert told["arenas"]
    assert ("glibc's malloc keeps" in run("doctor").stdout) == (told["malloc"] == "glibc")


@pytest.mark.parametrize("library", ["jemalloc", "mimalloc", "tcmalloc_minimal"])
def test_doctor_names_a_preloaded_malloc(library):
    found = ctypes.util.find_library(library)
    if found is None:
        pytest.skip(f"{library} is not installed")
    result = run("doctor", "--json", env={**os.environ, "LD_PRELOAD": found})
    assert json.loads(result.stdout)["malloc"] == library.removesuffix("_minimal")


def test_usage_errors_exit_with_2():
    for arguments in ([], ["fly"], ["optimize", "model.pt"], ["plan", "g", "--time-budget", "-1"]):
        assert run(*arguments).returncode == 2


def test_a_closed_pipe_is_no_traceback(graph):
    command = f"{sys.executable} -m torch_ext plan {graph} --json | true"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(model, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    complains(run("optimize", model, "-o", folder / "out.pt", "--input", SPEC), 1, "permission")
