"""`generate(seed)` writes a program out of typed values of known shapes.

Each program draws a few groups of statements and how often each occurs, so that some programs are
full of views, others of raises.
"""

import re

from tests.fuzz.source import Program, Statement
from tests.fuzz.statements import GRAPH_GROUPS, GROUPS
from tests.fuzz.writing import Container, Value, Writer


def generate(seed: int, door: str = "torchscript") -> Program:
    """The program of this number for this door: the same in every process."""
    g = Writer(seed, GROUPS if door == "torchscript" else {**GROUPS, **GRAPH_GROUPS})
    attributes = _attributes(g)
    inputs = _inputs(g)
    while g.budget > 0:
        g.one()
    g.emit(f"return {g.results(last=True)}")
    forward = tuple(g.statements)
    text = "\n".join(line for statement in forward for line in statement.lines(""))
    used = tuple(a for name, a in attributes.items() if re.search(rf"self\.{name}\b", text))
    return Program(seed, used, forward, inputs)


def _attributes(g: Writer) -> dict[str, Statement]:
    r, c = g.rows, g.columns
    for name, shape in {
        "self.p": (r, c),
        "self.b": (r, c),
        "self.last": (r, c),
        "self.weight": (c, c),
        "self.mean": (c,),
        "self.var": (c,),
    }.items():
        # A network's weights and statistics keep their meaning: only layers write to them.
        g.tensors.append(
            Value(
                name,
                shape,
                roots=g.new_root(),
                writable=name not in ("self.weight", "self.mean", "self.var"),
                assignable=name == "self.last",
                uses=1,
            )
        )
    g.lists.append(Container("self.parts", (r, c), g.new_root(), 2, block=0))
    g.dicts.append(Container("self.named", (r, c), g.new_root(), 2, block=0))
    step = g.random.choice(("Doubling", "Bumping", "Counting", "Drawing"))
    attributes = {
        "p": f"nn.Parameter(torch.arange({r * c}.0).reshape({r}, {c}).sin())",
        "last": f"torch.full([{r}, {c}], 0.5)",
        "parts": f"[torch.full([{r}, {c}], 0.25), torch.full([{r}, {c}], -0.25)]",
        "named": f'{{"a": torch.ones([{r}, {c}]), "b": torch.zeros([{r}, {c}])}}',
        "count": "1",
        "weight": f"nn.Parameter(torch.arange({c * c}.0).reshape({c}, {c}).cos() / {c})",
        "kernel": "nn.Parameter(torch.arange(9.0).reshape(1, 1, 3, 3).sin())",
        "norm": f"nn.BatchNorm1d({c})",
        "counting": "Counting()",
        "step": f"{step}()",
    }
    buffers = {
        "b": f"torch.arange({r * c}.0).reshape({r}, {c}).cos()",
        "mean": f"torch.zeros({c})",
        "var": f"torch.ones({c})",
    }
    return {
        **{name: Statement(f"self.{name} = {text}") for name, text in attributes.items()},
        **{
            name: Statement(f'self.register_buffer("{name}", {text})')
            for name, text in buffers.items()
        },
    }


def _inputs(g: Writer) -> tuple[Statement, ...]:
    """Two tensors, which may be the same memory, a list, a number, a flag."""
    r, c = g.rows, g.columns
    kind = g.random.choice(("new", "new", "same", "view", "expanded"))
    second = {
        "new": _normal(g),
        "same": "x0",
        "view": f"x0.view({r}, {c})",
        "expanded": f"torch.linspace(-1.0, 1.0, {c}).expand({r}, {c})",
    }[kind]
    root = g.new_root()
    other = set(root) if kind in ("same", "view") else g.new_root()
    plain = kind != "expanded"
    g.tensors.append(Value("x0", (r, c), roots=set(root)))
    g.tensors.append(Value("x1", (r, c), roots=other, writable=plain, contiguous=plain))
    g.lists.append(Container("xs", (r, c), root | g.new_root(), 2, block=0))
    g.ints += ["n", "self.count"]
    g.bools.append("flag")
    return (
        Statement(f"x0 = {_normal(g)}"),
        Statement(f"x1 = {second}"),
        Statement(f"xs = [{'x0' if g.chance(0.3) else 'x0 * 0.5'}, x0 + 1.0]"),
        Statement(f"n = {g.random.randrange(1, 5)}"),
        Statement(f"flag = {g.chance(0.5)}"),
    )


def _normal(g: Writer) -> str:
    generator = f"torch.Generator().manual_seed({g.random.randrange(100)})"
    return f"torch.randn({g.rows}, {g.columns}, generator={generator})"
