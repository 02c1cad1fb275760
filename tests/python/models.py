"""Small modules with a known freedom of order."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Run = Callable[..., Tensor]


class Wide(nn.Module):
    """Four branches written stage by stage: order can at least halve the peak."""

    def __init__(self, branches: int = 4) -> None:
        super().__init__()
        self.grow = nn.ModuleList(nn.Linear(16, 512) for _ in range(branches))
        self.shrink = nn.ModuleList(nn.Linear(512, 4) for _ in range(branches))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grown = [torch.relu(layer(x)) for layer in self.grow]
        shrunk = [layer(g) for layer, g in zip(self.shrink, grown, strict=True)]
        return torch.stack(shrunk).sum(0)


class Scripted(nn.Module):
    """As Wide with two branches, in words that torch.jit.script knows."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 512)
        self.b = nn.Linear(16, 512)
        self.c = nn.Linear(512, 4)
        self.d = nn.Linear(512, 4)

    def stretch(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.exp(self.a(x)), torch.exp(self.b(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.stretch(x)
        return self.c(a) + self.d(b)


def wide_input(rows: int = 256) -> torch.Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(1))


def traced_wide(branches: int = 4) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    module = Wide(branches).eval()
    with torch.no_grad():
        return torch.jit.trace(module, (wide_input(),), check_trace=False)


class Attention(torch.nn.Module):
    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, rows, width = x.shape
        parts = self.qkv(x).reshape(batch, rows, 3, self.heads, width // self.heads)
        parts = parts.permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        mixed = torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-2, -1)), -1), v)
        return x + self.out(mixed.transpose(1, 2).reshape(batch, rows, width))


def attention() -> torch.nn.Module:
    torch.manual_seed(0)
    return Attention().eval()


# --- with stretches that run in parts -------------------------------------------------------------


class Convolutions(nn.Module):
    """Rows with halos, padding, strides, changes in place and a residual.

    Which of their parts keep their bits is up to the machine; those of the last line do anywhere,
    and there the peak is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu_(self.first(x))
        y = torch.relu_(self.second(y).add_(y))
        z = self.third(y).repeat(1, 24, 1, 1)
        return (torch.relu(z * 2) + torch.neg(z)).amax(1)


class Layer(nn.Module):
    """Rows of products: parts of rows may have other bits, parts of columns have not."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 512)
        self.down = nn.Linear(512, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


class Elementwise(nn.Module):
    """Same bits in whatever parts: no machine forbids them."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.repeat(1, 4) + 1
        y = torch.relu(y * 2) + torch.neg(y)
        return (y * y).sum(1)


class Lists(nn.Module):
    """A cat in parts needs its list in parts."""

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(x.repeat(1, 1, 8))
        b = torch.tanh(a)
        return torch.cat([a, b, a + b], 2).sum(2)


class Changed(nn.Module):
    """What is changed in place is read again later, under its old name."""

    def forward(self, x: Tensor) -> Tensor:
        a = x.repeat(1, 8) * 2
        b = torch.neg(a)
        a.add_(1)
        c = torch.relu(b) * a
        return c.sum(1)


class WindowAttention(nn.Module):
    """Inside of windows of an image; the mask, written into zeros, is cut into windows as well."""

    def __init__(self, windows: int, side: int, width: int) -> None:
        super().__init__()
        self.sizes = (windows, side, windows, side)
        self.project = nn.Linear(width, width)
        self.join = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        windows, side = self.sizes[:2]
        mask = x.new_zeros(x.shape[:2])
        mask[:side] = 1
        mask = mask.view(self.sizes).permute(0, 2, 1, 3).reshape(-1, side * side)
        mask = (mask.unsqueeze(1) - mask.unsqueeze(2)) * 9
        y = x.roll((-1, -1), (0, 1)).view(*self.sizes, -1)
        y = self.project(y.permute(0, 2, 1, 3, 4).reshape(-1, side * side, x.shape[-1]))
        y = self.join((y @ y.transpose(1, 2) + mask).softmax(-1) @ y)
        y = y.view(windows, windows, side, side, -1).permute(0, 2, 1, 3, 4)
        x = x + y.reshape(x.shape)
        return x + self.down(nn.functional.gelu(self.up(x)))


class Masked(nn.Module):
    """A mask of zeros hides how products are summed up."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 256, bias=False)
        self.down = nn.Linear(256, 64, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.relu(self.down(torch.relu(self.up(x * mask))))


class Residual(nn.Module):
    """What is read in parts is read again by the op that reads the result."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            wide = torch.relu(x * self.scales)
            x = torch.hypot(x, wide.amax(0))  # runs whole
        return x.sum(1)


class ChannelsLast(nn.Module):
    """What ops make of such an image has its strides, in parts as well."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 3, 1, 2) * 2
        return (torch.relu(y) + torch.neg(y)) * y


class Dense(nn.Module):
    """Lists of tensors that differ in the number of channels."""

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for _ in range(2):
            features.append(torch.relu(torch.cat(features, 1) * 2).amax(1, keepdim=True) + x)
        return torch.cat(features, 1).amax(1)


def image(batch: int = 1) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 8, 48, 48)


class Maxima(nn.Module):
    """Rows that need those beside them; a maximum has the same bits by any kernel."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = -torch.nn.functional.max_pool2d(x, 3, stride=1, padding=1)
        return torch.nn.functional.max_pool2d(x, 2)


class ChangedByOthers(nn.Module):
    """Changes in place by operators that mind runs, of values that are older and newer."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = y * 2
        a = x.relu().add_(y, alpha=0.3)
        b = a.tanh().sub_(z, alpha=0.7).add_(a, alpha=1.1)
        return torch.sigmoid(b) * 2 + z


def check_changes(original: Run, inputs: Sequence[Tensor], edited: Callable[[int], Run]) -> None:
    """However the original is edited, by a seed, it makes the same and changes no input."""
    before = [value.clone() for value in inputs]
    expected = original(*before)
    for seed in range(20):
        made = edited(seed)(*inputs)
        assert torch.equal(made, expected), seed
        assert made.stride() == expected.stride(), seed
        assert made.dtype == expected.dtype, seed
        assert all(map(torch.equal, inputs, before)), seed


class ChangedExcitation(nn.Module):
    """Its few numbers are changed in place, by others that are older."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(8, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        images = torch.exp(x)
        numbers = (2 * images.mean((2, 3), keepdim=True)).add_(self.bias, alpha=0.3)
        return (images * torch.sigmoid(numbers)).amax((2, 3))


class Excitation(nn.Module):
    """Images, each with a few numbers of its own, as in a squeeze-and-excite block."""

    def forward(self, x: Tensor) -> Tensor:
        images = torch.exp(x)
        numbers = torch.nn.functional.silu(2 * images.mean((2, 3), keepdim=True), inplace=True)
        return (images * torch.sigmoid(numbers)).amax((2, 3))


SLICEABLE = {
    "rows": (Convolutions(), (image(),)),
    "batch": (Convolutions(), (image(3),)),
    "elements": (Elementwise(), (torch.randn(32, 256),)),
    "channels last": (ChannelsLast(), (torch.randn(1, 24, 24, 8),)),
    "dense": (Dense(), (torch.randn(1, 8, 24, 24),)),
    "excitation": (Excitation(), (torch.randn(8, 6, 32, 32),)),
}
