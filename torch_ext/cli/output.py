"""What commands print, and their exit codes."""

import json
import sys
from typing import Any

from torch_ext.amounts import amount
from torch_ext.program.plan import Plan

DONE, FAILED, BAD_INPUT, OVER_BUDGET, UNVERIFIED, INTERRUPTED = 0, 1, 2, 3, 4, 130


def complain(message: str, code: int) -> int:
    """Say what went wrong on standard error; return the code."""
    print(f"torch_ext: {message}", file=sys.stderr)
    return code


def print_json(fields: dict[str, Any]) -> None:
    """Print one object on standard output."""
    print(json.dumps(fields))


def print_result(result: Plan, as_json: bool) -> None:
    """Print a plan or report, for people or as JSON."""
    if as_json:
        print_json(result.to_dict())
    else:
        print(result)


def budget_code(result: Plan) -> int:
    """Return the exit code; say so if the memory budget is not met."""
    if result.budget_met is False:
        return complain(
            f"the memory budget is not met, the best found is {amount(result.peak_bytes)}",
            OVER_BUDGET,
        )
    return DONE
