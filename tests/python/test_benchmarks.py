"""The machinery of the benchmarks: rows, failures, resuming, and a small model end to end."""

import argparse
import copy
import csv
import datetime
import os
import pathlib
import subprocess
import sys

import pytest
import torch

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "standard_models.py"


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def run_models(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", SCRIPT, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("# ")))


def test_models_writes_what_the_engine_promises_and_resumes(tmp_path):
    path = tmp_path / "models.csv"
    measured = "ours,orders,eager,resident"
    arguments = ("--models", "moe", "--measure", measured, "--pairs", 4, "--malloc", "glibc")
    done = run_models(*arguments, "--forms", "frozen", "--output", path)
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(path)
    assert (row["status"], row["identical"], row["remark"]) == ("optimal", "yes", "")
    assert float(row["measured after MiB"]) < 0.5 * float(row["measured before MiB"])
    assert float(row["lpmf MiB"]) >= float(row["bound MiB"])
    assert row["compile MiB"] == ""
    assert float(row["resident before MiB"]) > 100 < float(row["resident after MiB"])
    assert "# group: all, rows: 1, measured: 1" in path.read_text()
    assert "# resident memory under glibc\n" in path.read_text()

    done = run_models(*arguments, "--output", path, "--resume")
    assert done.returncode == 0, done.stderr
    assert read_rows(path)[0] == row
    assert [row["form"] for row in read_rows(path)] == ["frozen", "traced"]


def test_models_refuses_to_resume_what_was_measured_otherwise(tmp_path):
    path = tmp_path / "models.csv"
    arguments = ("--models", "moe", "--forms", "frozen", "--measure", "eager", "--output", path)
    assert run_models(*arguments).returncode == 0
    done = run_models(*arguments, "--resume", "--threads", 1)
    assert done.returncode == 2
    assert "threads: 1" in done.stderr


def test_a_failure_is_kept_in_the_file_and_ends_the_run_with_1(tmp_path):
    from results import Growing, Table

    path = tmp_path / "table.csv"
    growing = Growing(Table(("model", "peak"), []), path, ["date: today"])
    rows = {"a": {"peak": "1", "failures": []}, "b": {"failures": ["it rose"]}}
    growing.measure("models", [("a",), ("b",)], lambda task: rows[task[0]])

    later = Growing(Table(("model", "peak"), []), path, ["date: tomorrow"], resume=True)
    assert later.table.rows == [("a", "1"), ("b", "")]
    later.measure("models", [("b",), ("a",)], pytest.fail)
    with pytest.raises(SystemExit) as ended:
        later.end()
    assert ended.value.code == 1
    assert later.failed == ["b: it rose"]


def test_a_run_goes_on_after_midnight(tmp_path):
    from results import Growing, Table

    def begun(day, comments):
        path = tmp_path / f"bench-{day}.csv"
        return Growing(Table(("model", "peak"), []), path, comments, resume=True)

    today = datetime.date.today()
    earlier, yesterday = today - datetime.timedelta(2), today - datetime.timedelta(1)
    for day, commit, peak in ((earlier, "commit: a", "1"), (yesterday, "commit: b", "2")):
        growing = begun(day, [commit, f"date: {day}"])
        growing.measure("models", [("m",)], lambda task, peak=peak: {"peak": peak, "failures": []})

    resumed = begun(today, ["commit: a", f"date: {today}"])
    assert resumed.table.rows == [("m", "1")]
    resumed.measure("models", [("n",)], lambda task: {"peak": "3", "failures": []})
    assert begun(today, ["commit: c", f"date: {today}"]).table.rows == []
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        f"bench-{earlier}.csv",
        f"bench-{yesterday}.csv",
    ]
    assert len(read_rows(tmp_path / f"bench-{earlier}.csv")) == 2


@pytest.mark.parametrize(
    ("child", "remark", "failures"),
    [
        ("raise ValueError('wrong')", "fails: ValueError: wrong", 1),
        ("import os; os.kill(os.getpid(), 11)", "fails: exit code -11", 1),
        ("import os; os.kill(os.getpid(), 9)", "skipped: more memory than there is", 0),
        ("import time; time.sleep(60)", "skipped: more than 1 s", 0),
    ],
)
def test_a_child_that_ends_early_ends_its_row_only(tmp_path, child, remark, failures):
    from children import row_of

    script = tmp_path / "child.py"
    script.write_text(child)
    row = row_of(str(script), (), seconds=1)
    assert row["remark"] == remark
    assert len(row["failures"]) == failures


def test_what_cannot_be_traced_says_so_and_is_measured_eagerly():
    import standard_models as models
    import suite

    class Named(torch.nn.Module):
        def forward(self, x):
            return {"doubled": 2 * x}

    case = suite.Case("named", "test", lambda batch: (Named(), (torch.ones(batch, 2**18),)))
    subject = suite.Subject(case, 1, "traced")
    row = models.measure(subject, ["ours", "eager"], argparse.Namespace(pairs=4))
    assert row["remark"].startswith("cannot be traced: ")
    assert row["eager MiB"] == "1.00"
    assert row["failures"] == []
    assert "status" not in row


def test_joules_are_the_packages_energy_over_the_calls(tmp_path):
    from measuring import joules

    assert joules(lambda: None, power=tmp_path) is None
    meter = tmp_path / "intel-rapl:0"
    meter.mkdir()
    energy = meter / "energy_uj"
    energy.write_text("900000")
    (meter / "max_energy_range_uj").write_text("1000000")

    def run() -> None:  # uses 0.25 J; the meter starts again at 1 J
        energy.write_text(str((int(energy.read_text()) + 250_000) % 1_000_000))

    assert joules(run, seconds=0, power=tmp_path) == pytest.approx(0.25)


def test_the_suite_has_every_family_of_torchvision():
    import suite
    import torchvision_models

    assert len(suite.TORCHVISION) >= 45
    assert set(suite.QUICK) <= set(suite.CASES)
    families = {name.split("_")[0].rstrip("0123456789") for name in torchvision_models.all_names()}
    assert families == {name.split("_")[0].rstrip("0123456789") for name in suite.TORCHVISION}


def test_totals_count_each_row_by_its_own_gain():
    from results import Table
    from standard_models import totals

    columns = ("group", "measured before MiB", "measured after MiB", "status", "error %")
    rows = [
        ("a", "10.00", "10.00", "optimal", "0.00"),
        ("a", "10.00", "9.60", "optimal", "0.00"),
        ("b", "10.00", "4.00", "feasible", "2.00"),
        ("b", "", "", "", ""),
    ]
    found = {row["group"]: row for row in totals(Table(columns, rows)).records()}
    counted = ("rows", "measured", "none", "to 5 %", "to 20 %", "more", "largest %", "optimal")
    assert [found["a"][column] for column in counted] == ["2", "2", "1", "1", "0", "0", "4.0", "2"]
    assert [found["b"][column] for column in counted] == ["2", "1", "0", "0", "0", "1", "60.0", "0"]
    assert [found["all"][column] for column in counted[:6]] == ["4", "3", "1", "1", "0", "1"]
    assert found["all"]["within 1 %"] == "2"


def test_doors_notice_a_bit_that_differs():
    from doors import Program, _differences

    def program(*results: float) -> Program:
        left = iter(results)
        return Program(lambda: torch.tensor(next(left)), lambda: [torch.ones(2)])

    same = program(1.0, 2.0, 4.0), program(1.0, 2.0, 4.0), program(1.0, 2.0, 5.0)
    assert _differences(*same) == ["identical", "2e-01"]
    assert _differences(program(0.0, 0.0, 0.0), program(-0.0, 0.0, 0.0)) != ["identical"]


def test_inductor_applies_the_learning_rate_of_a_whole_step():
    import training

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    batch = (torch.randn(5, 8), torch.randint(0, 4, (5,)))
    with torch.enable_grad():
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        task = training.Task(network, torch.nn.functional.cross_entropy, optimizer, batch)
        module, inputs = training.whole_step(task)
    left_by_fx = copy.deepcopy(inputs)
    compiled = training.compile_whole_step(module, inputs)
    torch.testing.assert_close(compiled(*inputs), module(*left_by_fx))
    torch.testing.assert_close(inputs, left_by_fx)


def test_mallocs_that_are_not_here_are_refused_with_a_remedy(monkeypatch, capsys):
    import mallocs

    assert mallocs.environment("glibc") == {}
    monkeypatch.setattr(mallocs.ctypes.util, "find_library", lambda name: f"lib{name}.so.9")
    assert mallocs.environment("tcmalloc") == {"LD_PRELOAD": "libtcmalloc_minimal.so.9"}

    monkeypatch.setattr(mallocs.ctypes.util, "find_library", lambda name: None)
    parser = argparse.ArgumentParser()
    mallocs.add_malloc(parser, mallocs.best_for_resident())
    assert parser.parse_args([]).malloc == "glibc"
    for malloc, told in (("jemalloc", "not installed; install it"), ("hoard", "there are: glibc")):
        with pytest.raises(SystemExit):
            parser.parse_args(["--malloc", malloc])
        assert told in capsys.readouterr().err

    monkeypatch.setenv("LD_PRELOAD", "libnowhere.so")
    with pytest.raises(RuntimeError, match=r"libnowhere\.so was not preloaded"):
        mallocs.check_preloaded()


def test_resident_sums_up_what_processes_show():
    import resident
    from results import Table

    def row(program, malloc, *figures):
        return (program, malloc, *figures, "")

    table = Table(
        resident.HEADER,
        [
            row("a", "glibc", "30.00", "10.00", "200.00", "195.00", "4.00", "1.00", "1.00"),
            row("b", "glibc", "20.00", "20.00", "100.00", "105.00", "6.00", "1.00", "4.00"),
            row("a", "jemalloc", "30.00", "10.00", "180.00", "160.00", "1.00", "0.50", "0.50"),
            ("b", "jemalloc", *[""] * 7, "fails: no"),
            row("training c", "glibc", "9.00", "3.00", "90.00", "80.00", "9.00", "1.00", "9.00"),
        ],
    )
    nothing = dict.fromkeys(resident.WAYS, "")
    assert resident.by_malloc(table).records() == [
        {"program": "a", "allocated": "30 → 10"}
        | nothing
        | {"glibc": "200 → 195", "jemalloc": "180 → 160"},
        {"program": "b", "allocated": "20 → 20"}
        | nothing
        | {"glibc": "100 → 105", "jemalloc": "fails: no"},
        {"program": "training c", "allocated": "9 → 3"} | nothing | {"glibc": "90 → 80"},
    ]
    assert resident.shown(table).rows == [
        ("glibc", "25 %", "4.0", "200", "195", "1.00", "1.00"),
        ("jemalloc", "100 %", "1.0", "180", "160", "0.50", "0.50"),
    ]


def test_rows_of_two_files_keep_their_columns():
    from results import Table

    table = Table(("model", "MiB"), [("a", "1")], ("model",))
    both = table.with_rows_of(Table(("MiB", "model"), [("2", "b")]))
    assert both == Table(("model", "MiB"), [("a", "1"), ("b", "2")], ("model",))


def test_models_are_a_row_each_and_what_was_measured_apart_is_joined():
    import standard_models as models
    from results import Table

    def record(**cells):
        return tuple({"model": "net", "batch": "1", **cells}.get(c, "") for c in models.HEADER)

    peaks = {"measured before MiB": "9.00", "measured after MiB": "7.00"}
    orders = {"lpmf MiB": "10.00", "bfs MiB": "8.00", "dfs MiB": "9.00"}
    table = Table(
        models.HEADER,
        [
            record(form="traced", remark="cannot be traced: why", **{"eager MiB": "11.00"}),
            record(form="frozen", remark="compile: no", time="1.01", **peaks, **orders),
            record(form="frozen", **{"compile plain MiB": "5.00"}),
        ],
    )
    (told,) = models.by_model(table).records()
    assert told == dict.fromkeys(told, "") | {
        "model": "net",
        "batch": "1",
        "traced": "cannot be traced",
        "frozen": "9.00 → 7.00",
        "eager": "11.00",
        "Inductor's orders": "8.00",
        "`compile plain`": "5.00",
        "time": "1.01",
    }


def test_doors_tell_what_was_not_measured():
    import doors
    from results import Table

    def row(door, *peaks, remark=""):
        return ("net", door, *peaks, *[""] * 7, remark)

    table = Table(
        doors.HEADER,
        [
            row("export", "9.00", "8.00", "7.00"),
            row("backend", "9.00", "8.00", "8.00"),
            row("inductor", "", "", "", remark="fails: no"),
            row("plain layout", "", "", "", remark="skipped: more than 1 s"),
        ],
    )
    (told,) = doors.by_door(table).records()
    assert told == dict.fromkeys(told, "") | {
        "program": "net",
        "eager": "9.00",
        "export": "8.00 → 7.00",
        "backend": "8.00",
        "inductor": "fails",
        "plain layout": "skipped",
    }
