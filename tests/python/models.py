"""Small modules with a known freedom of order."""

import torch
from torch import nn


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
