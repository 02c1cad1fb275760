"""Measurements in processes of their own: a crash or too much memory ends one row, not the run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


class ChildError(Exception):
    """A child that failed; its exit code, and as text its last line on standard error."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def row(self) -> dict[str, Any]:
        """The row of a benchmark, whose failure it is."""
        told = f"fails: {str(self)[:120]}"
        return {"remark": told, "failures": [told]}


def add_one(parser: argparse.ArgumentParser, *metavar: str) -> None:
    """Argument --one: what only a child is started with."""
    parser.add_argument("--one", nargs=len(metavar), metavar=metavar, help=argparse.SUPPRESS)


def run_one(
    script: str,
    one: Sequence[str],
    *options: str,
    seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON object that `script --one ...` prints last; `environment` is added to ours.

    Raises ChildError, or subprocess.TimeoutExpired after `seconds`.
    """
    command = [sys.executable, "-W", "ignore", script, "--one", *one, *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode != 0:
        told = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ChildError(done.returncode, told[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row_of(
    script: str,
    one: Sequence[str],
    *options: str,
    seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """As run_one, but a child that ends without a result leaves a `remark`.

    Too much time or memory is no failure; all else is one of the row's `failures`.
    """
    try:
        return run_one(script, one, *options, seconds=seconds, environment=environment)
    except subprocess.TimeoutExpired:
        return {"remark": f"skipped: more than {seconds:.0f} s", "failures": []}
    except ChildError as error:
        if error.exit_code == -signal.SIGKILL:
            return {"remark": "skipped: more memory than there is", "failures": []}
        return error.row()
