"""Other CMake projects build against what `cmake --install` installs, and need nothing else."""

import os
import pathlib
import re
import subprocess
import sysconfig

import pytest
import torch
from models import traced_wide, wide_input

import torch_ext

ROOT = pathlib.Path(__file__).parents[2]
CONSUMERS = ROOT / "tests" / "consumers"
TORCH_CMAKE = torch.utils.cmake_prefix_path
SCRIPTS = sysconfig.get_path("scripts")  # cmake and ninja of this environment come first

GRAPH = """\
graph 1
buffer x 1 input
buffer a 10
buffer b 10
buffer c 1 kept
buffer d 1 kept
op grow_a reads x writes a
op grow_b reads x writes b
op shrink_a reads a writes c
op shrink_b reads b writes d
"""


def execute(*command):
    changed = {
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums of other parts have other bits
    }
    environment = {**os.environ, **changed}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def output_of(*command):
    result = execute(*command)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def build_tree(tmp_path_factory):
    """A build of both libraries: that of `make build`, if any, where little is left to do."""
    build = ROOT / "build"
    if not (build / "CMakeCache.txt").exists():
        build = tmp_path_factory.mktemp("library")
        options = ("-DTORCH_EXT_PYTHON=OFF", f"-DCMAKE_PREFIX_PATH={TORCH_CMAKE}")
        output_of("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *options)
    output_of("cmake", "--build", str(build), "--target", "torch_ext_sched", "torch_ext_jit")
    return build


@pytest.fixture(scope="session")
def prefix(build_tree, tmp_path_factory):
    """Where the libraries are, moved after they were installed."""
    folder = tmp_path_factory.mktemp("prefix")
    installed = str(folder / "installed")
    output_of(
        *("cmake", "--install", str(build_tree)),
        *("--component", "development", "--prefix", installed),
    )
    return (folder / "installed").rename(folder / "moved")


def configure(name, build, *prefix_path, options=()):
    path = ";".join(map(str, prefix_path))
    return (
        *("cmake", "-S", str(CONSUMERS / name), "-B", str(build), "-G", "Ninja"),
        *(f"-DCMAKE_PREFIX_PATH={path}", *options),
    )


def libraries_of(program):
    return {line.split()[0] for line in output_of("ldd", str(program)).splitlines()}


def test_what_is_installed_names_no_folder_of_this_machine(build_tree, prefix):
    files = [path for path in prefix.rglob("*") if path.suffix in (".cmake", ".h")]
    assert files
    for path in files:
        text = path.read_text(encoding="utf-8")
        for folder in (ROOT, build_tree, TORCH_CMAKE, prefix.parent):
            assert str(folder) not in text, path


def test_installed_headers_include_no_others_of_ours(prefix):
    include = prefix / "include" / "torch_ext"
    headers = list(include.rglob("*.h"))
    assert {include / "sched" / "plan.h", include / "jit" / "optimize.h"} <= set(headers)
    for header in headers:
        for name in re.findall(r'#include "(.*)"', header.read_text(encoding="utf-8")):
            assert (include / name).exists(), f"{header} includes {name}"


def test_the_python_package_gets_its_modules_alone(build_tree, tmp_path):
    if build_tree != ROOT / "build":
        pytest.skip("needs `make build`")
    output_of("cmake", "--install", str(build_tree), "--prefix", str(tmp_path))
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert [str(path).split(".")[0] for path in files] == ["_jit", "_sched"]


def test_the_planner_needs_no_torch(prefix, tmp_path):
    options = ("-DCMAKE_DISABLE_FIND_PACKAGE_Torch=ON",)
    output_of(*configure("sched", tmp_path, prefix, options=options))
    output_of("cmake", "--build", str(tmp_path))
    program = tmp_path / "plan_graph"
    libraries = libraries_of(program)
    assert not [name for name in libraries if re.search("torch|c10|python", name)]

    graph = tmp_path / "graph.txt"
    graph.write_text(GRAPH, encoding="utf-8")
    *order, original, peak = output_of(str(program), str(graph)).splitlines()
    assert order == ["grow_a", "shrink_a", "grow_b", "shrink_b"]
    assert original == "original peak bytes: 21"
    assert peak == "peak bytes: 12 (optimal)"

    graph.write_text("graph 2\n", encoding="utf-8")
    refused = execute(str(program), str(graph))
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"{graph}: line 1: ")


def test_the_optimiser_needs_no_python(prefix, tmp_path):
    output_of(*configure("jit", tmp_path, prefix, TORCH_CMAKE))
    output_of("cmake", "--build", str(tmp_path))
    program = tmp_path / "optimize_model"
    libraries = libraries_of(program)
    assert [name for name in libraries if name.startswith("libtorch_cpu")]
    assert not [name for name in libraries if "python" in name]

    before, after = tmp_path / "before.pt", tmp_path / "after.pt"
    module = traced_wide()
    torch.jit.save(module, before)
    lines = output_of(str(program), str(before), str(after), "256x16").splitlines()
    printed = dict(line.split(": ") for line in lines)
    assert printed["outputs"] == printed["outputs of the original inside"] == "identical"
    original, peak = int(printed["original peak bytes"]), int(printed["peak bytes"])
    assert 0 < peak <= original / 2
    assert printed["graphs reordered by the pass"] == "1"

    ordered = torch_ext.analyze(module, (wide_input(),), levers=["order"])  # as the pass does
    assert int(printed["bytes saved by the pass"]) == original - ordered.peak_bytes
    assert torch.equal(torch.jit.load(after)(wide_input()), module(wide_input()))


def test_a_server_has_planned_addresses(prefix, tmp_path):
    output_of(*configure("arena", tmp_path, prefix, TORCH_CMAKE))
    output_of("cmake", "--build", str(tmp_path))
    program = tmp_path / "serve_model"
    assert not [name for name in libraries_of(program) if "python" in name]

    model = tmp_path / "model.pt"
    frozen = torch.jit.freeze(traced_wide())
    module, report = torch_ext.optimize(frozen, (wide_input(),), addresses=True)
    torch_ext.save(module, model)
    lines = output_of(str(program), str(model), "256x16", "3").splitlines()
    printed = dict(line.split(": ") for line in lines)
    assert printed == {
        "served": "30",
        "arena bytes": str(report.arena_bytes),
        "different outputs": "0",
    }
    lines = output_of(str(program), str(model), "64x16", "1").splitlines()
    assert "no plan for these inputs: 10" in lines


def test_a_saved_step_trains_with_libtorch_alone(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batch = (torch.randn(16, 32), torch.randint(0, 10, (16,)))
    loss_fn = torch.nn.functional.cross_entropy
    steps = 6
    with torch.enable_grad():
        step = torch_ext.training_step(model, loss_fn, optimizer, batch, runtime="torchscript")
        step.save(tmp_path / "step.pt")
        expected = []
        for number in range(steps):
            if number == steps // 2:
                optimizer.param_groups[0]["lr"] = 0.002
            loss = loss_fn(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            expected.append(loss.item())
    torch.save(batch, tmp_path / "batch.pt")

    output_of(*configure("train", tmp_path / "build", TORCH_CMAKE))
    output_of("cmake", "--build", str(tmp_path / "build"))
    program = tmp_path / "build" / "train_model"
    assert not [name for name in libraries_of(program) if re.search("python|torch_ext", name)]
    files = [tmp_path / name for name in ("step.pt", "batch.pt", "trained.pt")]
    losses = output_of(program, files[0], files[1], str(steps), "0.002", files[2]).splitlines()
    assert [float.fromhex(loss) for loss in losses] == expected
    trained = torch.jit.load(files[2]).model.state_dict()
    assert trained.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_another_version_of_torch_is_refused(prefix, tmp_path):
    other = tmp_path / "Torch"
    other.mkdir()
    (other / "TorchConfig.cmake").write_text("set(Torch_FOUND TRUE)\n", encoding="utf-8")
    (other / "TorchConfigVersion.cmake").write_text(
        'set(PACKAGE_VERSION "1.0.0")\nset(PACKAGE_VERSION_COMPATIBLE TRUE)\n', encoding="utf-8"
    )
    refused = execute(*configure("jit", tmp_path / "build", prefix, tmp_path))
    assert refused.returncode != 0
    assert re.search(r"built\s+with\s+torch\s+\S+,\s+found\s+1\.0\.0", refused.stderr)
