"""What a training step needs with other optimizers than those whose ops are in its graph.

One network (twelve linear layers of 1024 x 1024), one process per optimizer; AdamW is there to
compare with. Columns are those of training.py. Exits with 1 if a step differs.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import training
from children import ChildError, add_one, run_one
from measuring import steady
from results import Row, Table, add_output, add_resume, circumstances, grow_table, parse_options
from torch import Tensor

HEADER = (
    "optimizer",
    "eager MiB",
    "hooks MiB",
    "ours MiB",
    "bound MiB",
    "status",
    "identical",
    "time / eager",
    "spread",
    "capture s",
    "remark",
)
WORDS = ("optimizer", "status", "identical", "remark")


class Lion(torch.optim.Optimizer):
    """As a user writes one, of plain ops.

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms, 2023.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move by the sign of a mean of gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["mean"] = torch.zeros_like(parameter)
                    change = state["mean"].lerp(parameter.grad, 0.1).sign_()
                    parameter.sub_(change, alpha=group["lr"])
                    state["mean"].lerp_(parameter.grad, 0.01)


OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    kind.__name__: kind
    for kind in (
        torch.optim.AdamW,
        torch.optim.Adafactor,
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adadelta,
        torch.optim.Adamax,
        Lion,
    )
}


def _task(name: str) -> training.Task:
    torch.manual_seed(0)
    task = training.mlp(width=1024, batch=32)
    task.optimizer = OPTIMIZERS[name](task.model.parameters(), lr=1e-3)
    return task


def _row(key: Row, options: argparse.Namespace) -> dict[str, Any]:
    (name,) = key
    counts = ("--threads", str(options.threads), "--pairs", str(options.pairs))
    row = dict.fromkeys(HEADER, training.NONE) | {"remark": ""}
    try:
        found = run_one(__file__, (name,), *counts)
    except ChildError as error:
        return {**row, **error.row()}
    failures = [] if found["identical"] == "yes" else ["not identical"]
    return {**row, **found, "failures": failures}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: 1")
    parser.add_argument("--pairs", type=int, default=40, help="of timed steps; default: 40")
    add_resume(parser)
    add_one(parser, "OPTIMIZER")
    add_output(parser, "optimizers")
    return parse_options(parser)


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    steady(options.threads)
    if options.one:
        warnings.simplefilter("ignore")
        (name,) = options.one
        print(json.dumps(training.ours(lambda: _task(name), options.pairs)))
        return
    comments = [*circumstances(), f"threads: {options.threads}, pairs: {options.pairs}"]
    tasks = [(name,) for name in OPTIMIZERS]
    grow_table(
        Table(HEADER, [], WORDS),
        options,
        comments,
        "optimizers",
        tasks,
        lambda task: _row(task, options),
    )


if __name__ == "__main__":
    main()
