"""README.md and docs: their figures are those of benchmarks/results, and a wrong one is noticed."""

import pathlib
import re
import sys

import pytest

from tests import documents as examples

ROOT = pathlib.Path(__file__).parents[2]
BENCHMARKS = str(ROOT / "benchmarks")


@pytest.fixture(scope="module")
def documents():
    sys.path.insert(0, BENCHMARKS)
    import documents

    yield documents
    sys.path.remove(BENCHMARKS)


def test_the_documents_say_what_the_results_say(documents):
    assert documents.stale() == []


def test_the_results_keep_what_the_documents_promise(documents, monkeypatch):
    assert documents.broken_promises() == []
    table = documents._table("models-quick")
    worse = {"measured after MiB": "1000", "status": "feasible", "error %": "2"}
    row = tuple(
        worse.get(key, value) for key, value in zip(table.header, table.rows[0], strict=True)
    )
    broken = documents.Table(table.header, [row], ("model",))
    monkeypatch.setattr(documents, "_table", lambda name: broken)
    of_one_run = [line for line in documents.broken_promises() if line.startswith("models-quick")]
    assert len(of_one_run) == 3


def test_a_changed_figure_and_a_changed_picture_are_noticed(documents, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    for name in documents.PICTURES:
        (tmp_path / name).write_bytes((ROOT / "docs/memory.png").read_bytes())
    text = (ROOT / "docs/training.md").read_text()
    (tmp_path / "docs/training.md").write_text(text.replace("| 257.98 |", "| 250.98 |"))
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    found = documents.stale()
    assert found[0] == "docs/training.md: block 'training' is not what the results say"
    pictures = [name for name in documents.PICTURES if name != "docs/memory.png"]
    assert [line.partition(" is not")[0] for line in found[1:]] == pictures


def test_blocks_must_be_known_and_not_begin_a_line(documents):
    with pytest.raises(documents.StaleError, match="no block 'luck'"):
        documents.filled("a <!--luck--><!--/-->")
    with pytest.raises(documents.StaleError, match="must not begin a line"):
        documents.filled("text\n<!--models-count--><!--/--> models")
    made = documents.filled("of <!--models-count-->1,000<!--/--> models")
    assert re.fullmatch(r"of <!--models-count-->\d+<!--/--> models", made)
    assert documents.filled(made) == made


@pytest.mark.parametrize(
    "command",
    [
        "make coffee",
        "cmake -S . -B build -DTORCH_EXT_COFFEE=ON",
        "python benchmarks/planner.py --coffee",
        "python -m tests.fuzz --coffee",
    ],
)
def test_a_command_that_is_not_there_is_noticed(command):
    with pytest.raises(AssertionError):
        examples._looked_up(command)


def test_every_document_is_looked_at():
    tracked = {ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("csrc/**/*.md")}
    tracked |= set(ROOT.glob("benchmarks/*.md"))
    matched = {path for pattern in examples.DOCUMENTS for path in ROOT.glob(pattern)}
    assert matched == tracked


def test_every_script_of_the_benchmarks_has_its_place():
    text = (ROOT / "benchmarks/README.md").read_text()
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(re.findall(r"`(\w+\.py)`", text)) == scripts


def test_links_lead_somewhere():
    for pattern in examples.DOCUMENTS:
        for path in ROOT.glob(pattern):
            for link in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
                assert ":" in link or (path.parent / link).exists(), f"{path}: {link}"
