"""A pytest plugin: every command and example of the documents is an item that runs.

`make docs-test`. What a document takes for granted (a model, a file) is made in its folder first.
Python blocks run, and a block without a language right behind one is what it prints. Shell blocks
run, and such a block is what they print, up to the figures, which depend on the machine. C++ blocks
are compiled, lines of CMake blocks are those of programs that other tests build. Commands inside
sentences, and those that take long (make, benchmarks, cmake), are looked up: there must be such a
target, script, subcommand or option.
"""

import contextlib
import functools
import io
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser
from torch import nn
from torch.utils import cpp_extension

import torch_ext

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/*.md", "csrc/README.md", "benchmarks/README.md")
LANGUAGES = {"python", "bash", "cpp", "cmake", "graph", ""}
Namespace = dict[str, Any]

# --- what documents take for granted --------------------------------------------------------------

INCLUDES = """\
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>
#include <iostream>
#include <sstream>
"""
PARAMETERS = (
    "std::string path, std::string out_path, std::vector<c10::IValue> input, at::Tensor inputs, "
    "at::Tensor target, std::stringstream text, char** argv"
)
GRAPH = """\
graph 1
buffer x 1 input
buffer a 10
buffer b 10 kept
op first reads x writes a
op second reads a writes b
"""


class Branches(nn.Module):
    """Of an image; something to order, and cheap."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=4)
        self.branches = nn.ModuleList(nn.Conv2d(8, 16, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        grown = [torch.relu(branch(x)) for branch in self.branches]
        return torch.cat([g.amax((2, 3)) for g in grown], 1)


class MyModel(nn.Sequential):
    """A classifier of 64 features."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def _trained() -> Namespace:
    model = MyModel()
    return {
        "model": model,
        "loss_fn": nn.functional.cross_entropy,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }


def _batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 64), torch.randint(0, 10, (size,))


def _image_model() -> None:
    image = torch.randn(1, 3, 224, 224)
    torch.jit.trace(Branches(), image).save("model.pt")


def _of_command_line() -> None:
    _image_model()
    torch_ext.optimize(torch.jit.load("model.pt"), (torch.randn(1, 3, 224, 224),))[0].save("out.pt")
    pathlib.Path("graph.txt").write_text(GRAPH)


def _of_readme(names: Namespace) -> None:
    x, target = _batch(256)
    names |= _trained()
    names |= {"example_inputs": (x,), "x": x, "inputs": (x,), "example_batch": (x, target)}


class Gpt(nn.Module):
    """Called by names, with a loss in its result, as those of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 10)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        logits = self.words(input_ids)
        if not attention_mask.all():
            logits = logits * attention_mask[..., None]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), input_ids.flatten())
        return types.SimpleNamespace(loss=loss)


def _of_training(names: Namespace) -> None:
    import transformers

    words = torch.randint(0, 10, (4, 16))
    texts = [{"input_ids": words, "attention_mask": words >= least} for least in (0, 5)]
    names |= {"MyModel": MyModel, "loader": [_batch(32)] * 3, "gpt": Gpt(), "texts": texts}
    sizes = {"vocab_size": 50, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    names["causal_lm"] = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    names["dataset"] = [{"input_ids": row, "labels": row} for row in torch.randint(0, 50, (8, 8))]


def _of_capacity(names: Namespace) -> None:
    benchmarks = str(ROOT / "benchmarks")
    sys.path.insert(0, benchmarks)
    import zoo

    sys.path.remove(benchmarks)
    script, _ = zoo.traced(zoo.model("randwire_seed1"))
    script.save("model.pt")
    names |= _trained()
    names |= {
        "torch_ext": torch_ext,
        "module": torch.jit.trace(Branches(), torch.randn(1, 3, 224, 224)),
        "make_batch": _batch,
    }


def _of_doors(names: Namespace) -> None:
    x = torch.randn(32, 64)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 1), nn.Flatten(0))

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x).sum()

    names |= {"model": Loss(), "example_inputs": (x,), "x": x}
    code = (
        "import torch; torch._inductor.config.reorder_for_peak_memory_debug = True; "
        "torch.compile(lambda x: (x @ x).relu() @ x)(torch.randn(64, 64, requires_grad=True))"
    )
    settings = {"TORCH_TRACE": "folder", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | settings, check=True)


def _of_report(names: Namespace) -> None:
    import pytest

    from torch_ext.program.program import Buffer, Op, Program

    _image_model()
    graph = Program(
        (Op("relu", reads=("x",), writes=("y",)),),
        (Buffer("x", 8, is_input=True), Buffer("y", 8, kept=True)),
    )
    x, target = _batch(32)
    names |= _trained()
    names |= {"pytest": pytest, "torch_ext": torch_ext, "graph": graph}
    names |= {"network": names["model"], "x": x, "batch": (x, target)}


SETUPS: dict[str, Callable[[Namespace], None]] = {
    "README.md": _of_readme,
    "docs/command-line.md": lambda names: _of_command_line(),
    "docs/pass.md": lambda names: names.update(torch_ext=torch_ext, serve=lambda: None),
    "docs/training.md": _of_training,
    "docs/capacity.md": _of_capacity,
    "docs/doors.md": _of_doors,
    "docs/report.md": _of_report,
    "docs/managers.md": lambda names: _image_model(),
    "docs/managers.ja.md": lambda names: _image_model(),
}

# --- what is done with blocks and commands --------------------------------------------------------

OUTPUT = re.compile(r"```\n(.*?)```\n", re.DOTALL)
FIGURE = re.compile(r"\d[\d.,]*")


def _printed_next(example: Example) -> str | None:
    """The block without a language right behind this one."""
    match = OUTPUT.match(example.document.text[example.region.end :].lstrip("\n"))
    return match and match[1]


def _python(example: Example) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        PythonEvaluator()(example)
    expected = _printed_next(example)
    if expected is not None:
        assert printed.getvalue() == expected


def _shell(example: Example) -> None:
    printed = ""
    for line in example.parsed.splitlines():
        command = line.partition(" #")[0].strip()
        if not _looked_up(command):
            printed += _run(command)
    expected = _printed_next(example)
    if expected is not None:
        assert FIGURE.sub("#", printed) == FIGURE.sub("#", expected)


def _run(command: str) -> str:
    folder = str(pathlib.Path(sys.executable).parent)
    path = os.pathsep.join((folder, os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-euc", command], env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def _looked_up(command: str) -> bool:
    """Whether it is of a kind that is not run; then there is such a thing."""
    words = shlex.split(command)
    if words[0] == "make":
        # What the documents name must be a target, and not a file that happens to exist.
        known = re.findall(
            r"^([A-Za-z_-]+) *(?::|\?=)", (ROOT / "Makefile").read_text(), re.MULTILINE
        )
        assert {word.partition("=")[0] for word in words[1:]} <= set(known), command
    elif words[0] == "cmake":
        # Not of every folder: there are copies and builds of the tree in some.
        known = re.findall(r"\b(TORCH_EXT_\w+)", (ROOT / "CMakeLists.txt").read_text())
        assert set(re.findall(r"-D(TORCH_EXT_\w+)", command)) <= set(known), command
    elif command.startswith("python benchmarks/"):
        _check_options(ROOT / words[1], words[2:])
    elif command.startswith("python -m tests."):
        _check_options("-m", words[2:])
    else:
        return False
    return True


@functools.cache
def _help(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(command)} --help\n{done.stderr}"
    return done.stdout


def _check_options(script: pathlib.Path | str, words: list[str]) -> None:
    command = [str(script)]
    if script == "-m":
        command.append(words.pop(0))
        if command[1] == "torch_ext" and words and not words[0].startswith("-"):
            command.append(words.pop(0))
    told = _help(*command)
    for word in words:
        if word.startswith("-"):
            assert re.search(rf"(?<!\S){word.partition('=')[0]}\b", told), f"{command}: {word}"


def _inline(example: Example) -> None:
    command = example.parsed
    if not _looked_up(command):
        _check_options("-m", command.split()[2:])


def _cpp(example: Example) -> None:
    lines = example.parsed.splitlines()
    includes = [line for line in lines if line.startswith("#include")]
    body = [line for line in lines if line not in includes]
    source = "\n".join((INCLUDES, *includes, f"void Example({PARAMETERS}) {{", *body, "}", ""))
    folders = (ROOT / "csrc", *cpp_extension.include_paths())
    command = ["c++", "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    command += [f"-I{folder}" for folder in folders]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _cmake(example: Example) -> None:
    built = [path.read_text() for path in (ROOT / "tests/consumers").glob("*/CMakeLists.txt")]
    lines = example.parsed.splitlines()
    assert any(all(line in text.splitlines() for line in lines) for text in built)


def _graph(example: Example) -> None:
    torch_ext.Graph.from_text(example.parsed)


# --- the plugin -----------------------------------------------------------------------------------

INLINE = re.compile(r"(?<!`)`((?:make |python benchmarks/|python -m )[^`\n]+)`(?!`)")
FENCE = re.compile(r"^```(.*)$", re.MULTILINE)


def _inline_commands(document: Document) -> Iterator[Region]:
    for match in INLINE.finditer(document.text):
        command = match[1].replace("...", "")
        yield Region(match.start(), match.end(), command, _inline)


def _languages(document: Document) -> Iterator[Region]:
    """No examples: what nobody here understands would be an example that nobody runs."""
    for language in FENCE.findall(document.text)[::2]:
        if language not in LANGUAGES:
            raise ValueError(f"{document.path}: nobody runs {language!r}")
    return iter(())


PATH, FOLDER = "__path__", "__folder__"  # in a document's namespace


def _setup(names: Namespace) -> None:
    path = pathlib.Path(names.pop(PATH)).relative_to(ROOT)
    names[FOLDER] = tempfile.mkdtemp()
    os.chdir(names[FOLDER])
    SETUPS.get(str(path), lambda names: None)(names)


def _teardown(names: Namespace) -> None:
    torch_ext.disable()
    os.chdir(ROOT)
    shutil.rmtree(names[FOLDER])


class _Document(Document):
    def __init__(self, text: str, path: str) -> None:
        super().__init__(text, path)
        self.namespace[PATH] = path


EVALUATORS = {"python": _python, "bash": _shell, "cpp": _cpp, "cmake": _cmake, "graph": _graph}
pytest_collect_file = Sybil(
    [
        *(CodeBlockParser(language, evaluator) for language, evaluator in EVALUATORS.items()),
        _inline_commands,
        _languages,
    ],
    path=str(ROOT),
    patterns=DOCUMENTS,
    setup=_setup,
    teardown=_teardown,
    document_types={".md": _Document},
).pytest()
