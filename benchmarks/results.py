"""Tables of a benchmark: printed, as Markdown, and as CSV with the machine and the versions."""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import pathlib
import platform
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

FOLDER = pathlib.Path(__file__).resolve().parent

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A header and rows of text; columns of words go to the left, figures to the right."""

    header: Row
    rows: list[Row]
    words: Collection[str] = ()

    def print(self) -> None:
        """For a person."""
        shown = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for name in self.header:
            justify: Literal["left", "right"] = "left" if name in self.words else "right"
            shown.add_column(name.replace(" ", "\n"), justify=justify, no_wrap=True)
        for row in self.rows:
            shown.add_row(*row)
        Console(width=1000).print(shown)  # never cut: a narrow terminal wraps, no figure is lost

    def print_markdown(self) -> None:
        """For the README."""
        rules = tuple("---" if name in self.words else "---:" for name in self.header)
        for row in (self.header, rules, *self.rows):
            print(f"| {' | '.join(row)} |")
        print()


def is_predicted(predicted_bytes: int, measured_bytes: int) -> bool:
    """Is a measured peak within 1 % of the predicted one, or so small that pages blur it?"""
    return abs(predicted_bytes - measured_bytes) <= max(0.01 * measured_bytes, 64 * 2**10)


def add_output(parser: argparse.ArgumentParser, name: str) -> None:
    """Arguments --output and --markdown of the benchmark of that name."""
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        metavar="CSV",
        default=FOLDER / "results" / f"{name}-{datetime.date.today()}.csv",
        help=f"default: benchmarks/results/{name}-DATE.csv",
    )
    parser.add_argument("--markdown", action="store_true", help="print a table for the README")


def check_output(parser: argparse.ArgumentParser, path: pathlib.Path) -> None:
    """Complain before the work, not after it, and make the folder."""
    if path.is_dir():
        parser.error(f"{path} is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{path.parent}: {error.strerror}")


def write_csv(path: pathlib.Path, comments: Iterable[str], table: Table) -> None:
    """All or nothing: an interrupted run leaves an earlier file as it was."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            file.writelines(f"# {comment}\n" for comment in comments)
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table.header)
            writer.writerows(table.rows)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_csv(path: pathlib.Path, header: Row) -> list[dict[str, str]]:
    """The rows of an earlier run, to be resumed; none if there was none.

    Raises ValueError if the file is of another table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(line for line in file if not line.startswith("# "))
            rows = list(lines)
    except FileNotFoundError:
        return []
    if tuple(lines.fieldnames or ()) != header:
        raise ValueError(f"{path} has other columns; move it away or choose another --output")
    return rows


def circumstances() -> list[str]:
    """The commit, the machine, the version of torch and the date."""
    return [
        f"commit: {_commit()}",
        f"machine: {_cpu_model()}, {os.cpu_count()} cores",
        f"torch: {torch.__version__}",
        f"date: {datetime.date.today()}",
    ]


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", "-C", FOLDER, *arguments), capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_model() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
