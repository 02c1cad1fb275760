"""What generated programs call: custom ops, functions, submodules, an interface, a class.

Each does one thing that an order must respect; programs differ in how they put them together.
"""

import torch
from torch import Tensor, fx, nn

ON_PURPOSE = "on purpose:"  # begins the message of every exception a program raises itself

# All but bump_ and show leave out the alias annotation, so nothing may pass them; sneak is why.
LIBRARY = torch.library.Library("torch_ext_fuzz", "DEF")  # type: ignore[no-untyped-call]


def _sneak(x: Tensor) -> Tensor:
    x.add_(0.25)
    return x * 2


for _schema, _implementation in {
    "halve(Tensor x) -> Tensor": lambda x: x * 0.5,
    "bump_(Tensor(a!) x) -> Tensor(a!)": lambda x: x.add_(0.5),
    "sneak(Tensor x) -> Tensor": _sneak,
    "draw(Tensor x) -> Tensor": lambda x: x + torch.rand_like(x),
    "pass_on(Tensor x) -> Tensor": lambda x: x,
}.items():
    _name = LIBRARY.define(_schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


def _show(x: Tensor) -> Tensor:
    print(x[(0,) * x.dim()].item())
    return x


_name = LIBRARY.define("show(Tensor(a) x) -> Tensor(a)")  # type: ignore[no-untyped-call]
LIBRARY.impl(_name, _show, "CPU")  # type: ignore[no-untyped-call]
LIBRARY.impl(_name, lambda x: x, "Meta")  # type: ignore[no-untyped-call]
fx.node.has_side_effect(torch.ops.torch_ext_fuzz.show.default)


# --- functions: inlined when the program is prepared ----------------------------------------------


def bumped(x: Tensor) -> Tensor:
    x.add_(0.5)
    return x


def first_large(x: Tensor, y: Tensor) -> Tensor:
    if bool(x.sum() > y.sum()):
        return x
    y.mul_(0.5)
    return y


def checked(x: Tensor, limit: float) -> Tensor:
    if bool(x.sum() > limit):
        raise ValueError("on purpose: too large")
    return x * 0.5


def waves(x: Tensor) -> Tensor:
    y = x
    for i in range(3):
        y = torch.sin(y) + i
    return y


def damped(x: Tensor) -> Tensor:
    for _ in range(3):
        x.mul_(0.5)
    return x.sum()


def halved_copy(x: Tensor) -> tuple[Tensor]:
    return (x * 0.5,)


def raised_at_random(x: Tensor) -> tuple[Tensor]:
    return (x + torch.rand_like(x),)


def bumped_copy(x: Tensor) -> tuple[Tensor]:
    x.add_(0.5)
    return (x * 1.0,)


@torch.jit.ignore  # type: ignore[untyped-decorator]
def outside(x: Tensor) -> Tensor:
    """A call into Python, of which TorchScript knows nothing."""
    x.mul_(0.75)
    return x + 1


# --- submodules -----------------------------------------------------------------------------------


class Counting(nn.Module):
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x.mean())
        self.calls += 1
        return x + self.total


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Bumping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(0.5)


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.dropout(x, 0.5, True)


@torch.jit.interface
class Step(nn.Module):
    """Calls through an interface are never inlined."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[empty-body]
        pass


# --- a class --------------------------------------------------------------------------------------


@torch.jit.script
class Box:
    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.reads = 0

    def get(self) -> Tensor:
        self.reads += 1
        return self.value

    def put(self, value: Tensor) -> None:
        self.value = value

    def bump(self) -> None:
        self.value.add_(0.5)
