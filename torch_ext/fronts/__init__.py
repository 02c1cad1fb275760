"""How little memory a program needs for how much time. Imports torch for what torch runs."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch_ext.arguments import FilePath
from torch_ext.planning import graph_front
from torch_ext.program.graph import Graph
from torch_ext.reporting.front import Front

if TYPE_CHECKING:
    from torch_ext.fronts.measured import Program


def front(
    program: "Program | Graph | FilePath",
    example_inputs: Any = None,
    *,
    points: int | None = None,
    time_budget: float = 2.0,
    levers: Iterable[str] | None = None,
) -> Front:
    """Return the front of a program: its peak memory against the time of a call.

    `program`: what torch_ext.optimize or torch_ext.fx.reorder takes, `example_inputs`: its
    arguments. The first point has the edits that cost no time, the others run stretches of ops part
    by part, as small as it takes (the lever "slice"), which may be faster, too, or some ops again
    (the lever "repeat"). All were run beside the program and have its bits. `floor_bytes` is
    proven: no order and no use of these levers gets below; `extra_seconds_bound` is where `levers`
    have no slices. `others` has the program as it is written. Give the `peak_bytes` of a point to
    torch_ext.optimize as `memory_budget` to have a program like it.

    Or `program` is a bare Graph, or a file of one, which has no `example_inputs` and is not run.
    The first point has the ops in their best order, the others run some again (the lever "repeat"),
    for `points` budgets (10) from there down to the floor; `extra_seconds_bound` is proven. Give
    the `peak_bytes` of a point to torch_ext.plan as `memory_budget`.

    `levers`: without "slice" or "repeat" there is one point. `time_budget`: seconds to plan each
    program. Raises ValueError for bad arguments, and whatever the program raises.
    """
    if isinstance(program, Graph | str | os.PathLike):
        if example_inputs is not None:
            raise ValueError("a graph is not run: leave example_inputs out")
        count = 10 if points is None else points
        return graph_front(program, points=count, time_budget=time_budget, levers=levers)
    if points is not None:
        raise ValueError("points is for graphs: of a program all that was tried is shown")
    from torch_ext.fronts.measured import measured_front

    return measured_front(program, example_inputs, time_budget, levers)
