"""python -m tests.fuzz: searches for a program that reordering makes compute something else."""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

from tests.fuzz.checking import OVERWRITE_RULES, RULES
from tests.fuzz.searching import DOORS, Outcome, search

_PROGRAMS_PER_RULE = 10_000
_SHRINK_SECONDS = 60.0


@dataclasses.dataclass
class _Totals:
    programs: int = 0
    variants: int = 0
    failures: int = 0
    invalid: int = 0
    refused: int = 0
    moved_by_optimize: int = 0
    moved_by_shuffle: int = 0

    def add(self, outcome: Outcome) -> None:
        verdict = outcome.verdict
        self.programs += 1
        self.variants += verdict.variants
        self.failures += verdict.failure is not None
        self.invalid += bool(outcome.invalid)
        self.refused += bool(verdict.refused)
        self.moved_by_optimize += verdict.moved_by_optimize
        self.moved_by_shuffle += verdict.moved_by_shuffle

    def __str__(self) -> str:
        return (
            f"{self.programs} programs, {self.variants} variants, {self.failures} failures; "
            f"{self.invalid} invalid, {self.refused} refused; moved by optimize: "
            f"{self.moved_by_optimize}, by shuffle: {self.moved_by_shuffle}"
        )


class _Progress:
    """What a search has done, kept in a file if it is to be resumed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.path: pathlib.Path | None = options.state
        self.search = {"door": options.door, "start": options.start, "without": options.without}
        self.next: int = options.start
        self.totals = _Totals()
        self.saved_at = time.monotonic()
        if self.path is not None and self.path.exists():
            state = json.loads(self.path.read_text())
            if {key: state.get(key) for key in self.search} != self.search:
                raise SystemExit(f"{self.path} is of another search: {state}")
            self.next = state["next"]
            self.totals = _Totals(**state["totals"])

    def add(self, outcome: Outcome) -> None:
        self.totals.add(outcome)
        self.next = outcome.seed + 1
        if outcome.verdict.failure or time.monotonic() > self.saved_at + 5:
            self.save()

    def save(self) -> None:
        if self.path is None:
            return
        state: dict[str, Any] = {**self.search, "next": self.next}
        state["totals"] = dataclasses.asdict(self.totals)
        folder = self.path.absolute().parent
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
            json.dump(state, file)
        os.replace(file.name, self.path)
        self.saved_at = time.monotonic()


def _show(outcome: Outcome) -> None:
    failure = outcome.verdict.failure
    if outcome.invalid:
        print(f"seed {outcome.seed}: invalid program: {outcome.invalid[-300:]}", flush=True)
    if failure:
        print(f"seed {outcome.seed}, {failure.variant}: {failure.difference}", flush=True)
        print(outcome.small_source, flush=True)


def _run(options: argparse.Namespace) -> int:
    progress = _Progress(options)
    seeds = range(progress.next, options.start + options.count)
    deadline = time.monotonic() + options.seconds
    on_terminal = sys.stderr.isatty()
    for outcome in search(
        seeds,
        options.without,
        jobs=options.jobs,
        shrink_seconds=_SHRINK_SECONDS,
        door=options.door,
    ):
        progress.add(outcome)
        if on_terminal:
            print(f"\r\x1b[K{progress.totals}", end="", file=sys.stderr, flush=True)
        _show(outcome)
        if (options.without and outcome.verdict.failure) or time.monotonic() > deadline:
            break
    progress.save()
    if on_terminal:
        print("\r\x1b[K", end="", file=sys.stderr)
    print(progress.totals)
    return 1 if progress.totals.failures else 0


def _run_rules(options: argparse.Namespace) -> int:
    """Which program first notices that a rule is off?"""
    unnoticed = 0
    print(f"{'rule off':12} {'first seed':>10} {'programs':>8}  difference")
    for rule in DOORS[options.door].rules:
        seeds = itertools.islice(itertools.count(options.start), _PROGRAMS_PER_RULE)
        programs, found = 0, None
        for outcome in search(seeds, [rule], jobs=options.jobs, door=options.door):
            programs += 1
            if outcome.verdict.failure:
                found = outcome
                break
        if found is None or found.verdict.failure is None:
            unnoticed += 1
            print(f"{rule:12} {'none':>10} {programs:8}", flush=True)
        else:
            failure = found.verdict.failure
            print(f"{rule:12} {found.seed:10} {programs:8}  {failure.difference}", flush=True)
    return 1 if unnoticed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--door", choices=DOORS, default="torchscript", help="how the programs come in"
    )
    parser.add_argument("--count", type=int, default=1000, help="how many programs")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after that long")
    parser.add_argument("--state", type=pathlib.Path, help="go on where this file says, keep it up")
    parser.add_argument(
        "--without",
        action="append",
        choices=(*RULES, *OVERWRITE_RULES),
        default=[],
        help="switch a rule off and stop at the first program that notices",
    )
    parser.add_argument(
        "--rules", action="store_true", help="for each rule: which program notices that it is off"
    )
    options = parser.parse_args()
    return _run_rules(options) if options.rules else _run(options)


if __name__ == "__main__":
    sys.exit(main())
