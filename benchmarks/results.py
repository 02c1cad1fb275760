"""Tables of a benchmark: printed, as Markdown, and as CSV with the machine and the versions."""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import multiprocessing.pool
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table as RichTable

FOLDER = pathlib.Path(__file__).resolve().parent

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A header and rows of text; columns of words go to the left, figures to the right."""

    header: Row
    rows: list[Row]
    words: Collection[str] = ()

    def records(self) -> list[dict[str, str]]:
        """The rows by the names of their columns."""
        return [dict(zip(self.header, row, strict=True)) for row in self.rows]

    def select(self, columns: Sequence[str]) -> Table:
        """These columns, in this order."""
        rows = [tuple(record[column] for column in columns) for record in self.records()]
        return Table(tuple(columns), rows, self.words)

    def without_empty_columns(self) -> Table:
        """What was measured."""
        columns = zip(self.header, *self.rows, strict=True)
        return self.select([name for name, *cells in columns if any(cells)])

    def with_rows_of(self, other: Table) -> Table:
        """Both, of the same columns."""
        return Table(self.header, [*self.rows, *other.select(self.header).rows], self.words)

    def gather(
        self,
        keys: Sequence[str],
        columns: Sequence[str],
        cells_of: Callable[[dict[str, str]], dict[str, str]],
    ) -> Table:
        """A row per value of `keys`; its records fill `columns`, and no cell is filled twice."""
        gathered: dict[Row, dict[str, str]] = {}
        for record in self.records():
            row = gathered.setdefault(tuple(record[key] for key in keys), {})
            for column, cell in cells_of(record).items():
                row[column] = row.get(column) or cell
        rows = [
            (*key, *(row.get(column, "") for column in columns)) for key, row in gathered.items()
        ]
        return Table((*keys, *columns), rows, keys)

    def print(self) -> None:
        """For a person."""
        shown = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for name in self.header:
            justify: Literal["left", "right"] = "left" if name in self.words else "right"
            shown.add_column(name.replace(" ", "\n"), justify=justify, no_wrap=True)
        for row in self.rows:
            shown.add_row(*row)
        Console(width=1000).print(shown)  # never cut: a narrow terminal wraps, no figure is lost

    def markdown(self) -> str:
        """For the documents."""
        rules = tuple("---" if name in self.words else "---:" for name in self.header)
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.header, rules, *self.rows))

    def show(self, as_markdown: bool) -> None:
        """Print it, for people or for whoever writes documents."""
        if as_markdown:
            print(self.markdown(), end="\n\n")
        else:
            self.print()


def change(before: str, after: str) -> str:
    """The text of one cell; empty if nothing was measured."""
    return before if before == after else f"{before} → {after}"


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


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line; of a parser with --output and --one, whose children write nothing."""
    options = parser.parse_args()
    if not options.one:
        check_output(parser, options.output)
    return options


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


def read_csv(path: pathlib.Path, words: Collection[str] = ()) -> tuple[list[str], Table]:
    """The comments and the table that `write_csv` wrote. Raises OSError, or ValueError."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    header, *rows = csv.reader(line for line in lines if not line.startswith("# "))
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"{path} has rows that do not fit its header")
    return comments, Table(tuple(header), [tuple(row) for row in rows], words)


def dated(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """The results of the benchmark of that name in a folder, the newest last."""
    return sorted(folder.glob(f"{name}-[0-9][0-9][0-9][0-9]-??-??.csv"))


def latest(name: str) -> pathlib.Path:
    """The newest results of the benchmark of that name. Raises ValueError if there are none."""
    found = dated(FOLDER / "results", name)
    if not found:
        raise ValueError(f"no results of {name} in {FOLDER / 'results'}; run its benchmark")
    return found[-1]


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Argument --resume."""
    parser.add_argument("--resume", action="store_true", help="keep the rows that OUTPUT has")


class Growing:
    """A table that grows by a row per task; after each the CSV is whole, and can be resumed.

    The first columns are the task itself; what was wrong stands in the CSV's comments.
    Resumed, it takes over what an earlier run found; the exit code is 2 if that ran otherwise. An
    output named by today goes on in the newest file of that name that fits: a run of many hours
    does not begin again at midnight.
    """

    def __init__(
        self, table: Table, output: pathlib.Path, comments: Sequence[str], resume: bool = False
    ) -> None:
        self.table = table
        self.failed: list[str] = []
        self._output, self._comments = output, comments
        if resume:
            self._resume()

    def _resume(self) -> None:
        if not self._output.exists():
            self._output = self._begun_before() or self._output
        if not self._output.exists():
            return
        try:
            comments, table = read_csv(self._output)
            self._check(comments, table)
        except ValueError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        mark = "failed: "
        self.failed += [line.removeprefix(mark) for line in comments if line.startswith(mark)]
        self.table.rows.extend(table.rows)

    def _begun_before(self) -> pathlib.Path | None:
        name, today, _ = self._output.name.rpartition(f"-{datetime.date.today()}.csv")
        if not today:
            return None
        for path in reversed(dated(self._output.parent, name)):
            with contextlib.suppress(ValueError):
                self._check(*read_csv(path))
                return path
        return None

    def _check(self, comments: Sequence[str], table: Table) -> None:
        remedy = "move it away or choose another --output"
        if table.header != self.table.header:
            raise ValueError(f"{self._output} has other columns; {remedy}")
        for comment in self._comments:
            if comment not in comments and not comment.startswith("date: "):
                raise ValueError(f"{self._output} was not made with {comment}; {remedy}")

    def measure(
        self,
        what: str,
        tasks: Iterable[Row],
        measure: Callable[[Row], dict[str, Any]],
        jobs: int = 1,
    ) -> None:
        """A row for each task that has none yet; `failures` in what `measure` returns are kept."""
        rows = self.table.rows
        left = [task for task in tasks if all(row[: len(task)] != task for row in rows)]
        terminal = Console(stderr=True)
        with multiprocessing.pool.ThreadPool(jobs) as pool:
            found = zip(left, pool.imap(measure, left), strict=True)
            for task, values in track(
                found, what, len(left), console=terminal, disable=not terminal.is_terminal
            ):
                self.failed += [f"{', '.join(task)}: {told}" for told in values["failures"]]
                cells = (values.get(column, "") for column in self.table.header[len(task) :])
                rows.append((*task, *cells))
                self.write()

    def write(self, *totals: str) -> None:
        """The CSV as it is now."""
        failed = (f"failed: {told}" for told in self.failed)
        write_csv(self._output, (*self._comments, *failed, *totals), self.table)

    def end(self) -> NoReturn:
        """Tell what failed; the exit code is 1 if anything did."""
        for told in self.failed:
            print(f"failed: {told}", file=sys.stderr)
        sys.exit(1 if self.failed else 0)


def circumstances() -> list[str]:
    """The commit, the machine, the version of torch and the date."""
    capability = torch.backends.cpu.get_cpu_capability()  # kernels, and their scratch memory
    return [
        f"commit: {_commit()}",
        f"machine: {_cpu_model()} ({capability}), {os.cpu_count()} cores",
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


def grow_table(
    table: Table,
    options: argparse.Namespace,
    comments: Sequence[str],
    what: str,
    tasks: Iterable[Row],
    measure: Callable[[Row], dict[str, Any]],
) -> NoReturn:
    """Measure a row for each task, as --output and --resume ask for it, show all, and exit."""
    growing = Growing(table, options.output, comments, options.resume)
    growing.measure(what, tasks, measure)
    growing.table.show(options.markdown)
    growing.end()
