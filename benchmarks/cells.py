"""Networks of architecture search as modules, in the sizes published for ImageNet on phones.

The cells are those of networks.py, where their sources stand; the modules follow nasnet_utils.py
and pnasnet.py of TensorFlow's slim, and model.py of DARTS. Differences: padding is PyTorch's, and
there is no auxiliary head and no drop path.
"""

from __future__ import annotations

from networks import (
    AMOEBANET_NORMAL,
    AMOEBANET_REDUCTION,
    DARTS_NORMAL,
    DARTS_REDUCTION,
    NASNET_NORMAL,
    NASNET_REDUCTION,
    PNASNET,
    Cell,
)
from torch import Tensor, cat, nn

CLASSES = 1000


def _conv_bn(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def _relu_conv_bn(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), *_conv_bn(inputs, outputs, 1, stride))


def _separable(inputs: int, outputs: int, kernel: int, stride: int, dilation: int = 1) -> nn.Module:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, inputs, kernel, stride, padding, dilation, groups=inputs, bias=False),
        *_conv_bn(inputs, outputs),
    )


class FactorizedReduce(nn.Module):
    """Halves the side by two strided paths, the second on the image shifted by one.

    `pooled`: the code of NASNet pools with stride 2, then convolves; that of DARTS convolves with
    stride 2.
    """

    def __init__(self, inputs: int, outputs: int, *, pooled: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        stride = 1 if pooled else 2
        self.pool = nn.AvgPool2d(1, 2) if pooled else nn.Identity()
        self.left = nn.Conv2d(inputs, outputs // 2, 1, stride, bias=False)
        self.right = nn.Conv2d(inputs, outputs - outputs // 2, 1, stride, bias=False)
        self.shift = nn.ZeroPad2d((0, 1, 0, 1))
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Both paths, concatenated."""
        x = self.relu(x)
        left = self.left(self.pool(x))
        out: Tensor = self.bn(cat([left, self.right(self.pool(self.shift(x)[:, :, 1:, 1:]))], 1))
        return out


def _operation(name: str, inputs: int, channels: int, stride: int) -> nn.Module:
    """Separable convolutions are applied twice."""
    if name.startswith("sep"):
        kernel = int(name[3:])
        return nn.Sequential(
            _separable(inputs, channels, kernel, stride), _separable(channels, channels, kernel, 1)
        )
    if name.startswith("dil"):
        return _separable(inputs, channels, int(name[3:]), stride, dilation=2)
    if name == "conv7x1":
        return nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(inputs, channels, (1, 7), (1, stride), (0, 3), bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False),
            nn.BatchNorm2d(channels),
        )
    if name in ("avg", "max"):
        pool: nn.Module = nn.MaxPool2d(3, stride, 1)
        if name == "avg":
            pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        return pool if inputs == channels else nn.Sequential(pool, *_conv_bn(inputs, channels))
    if stride > 1 or inputs != channels:
        return _relu_conv_bn(inputs, channels, stride)
    return nn.Identity()


class SearchedCell(nn.Module):
    """Fits the two states before it, then adds pairs of operations on states to new states."""

    def __init__(
        self, cell: Cell, fit: list[nn.Module], widths: list[int], channels: int, stride: int
    ) -> None:
        super().__init__()
        self.cell, self.fit = cell, nn.ModuleList(fit)
        states = widths + [channels] * len(cell.pairs)
        self.operations = nn.ModuleList(
            _operation(name, states[state], channels, stride if state < 2 else 1)
            for pair in cell.pairs
            for name, state in (pair[:2], pair[2:])
        )
        self.channels = sum(states[i] for i in cell.concat)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The concatenation of those states that the cell names."""
        states = [fit(x) for fit, x in zip(self.fit, (first, second), strict=True)]
        for i, (_, left, _, right) in enumerate(self.cell.pairs):
            left_half = self.operations[2 * i](states[left])
            states.append(left_half + self.operations[2 * i + 1](states[right]))
        return cat([states[i] for i in self.cell.concat], 1)


class Searched(nn.Module):
    """A stem, cells that read the two outputs before them, and a classifier."""

    def __init__(self, stems: list[nn.Module], cells: list[SearchedCell], newest: int) -> None:
        super().__init__()
        self.stems, self.cells = nn.ModuleList(stems), nn.ModuleList(cells)
        self.newest = newest  # which of a cell's two inputs is the output of the cell before
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classify = nn.Linear(cells[-1].channels, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """The logits of the classes."""
        before = x = self.stems[0](image)
        for stem in self.stems[1:]:
            before, x = x, stem(x)
        for cell in self.cells:
            states = (before, x) if self.newest else (x, before)
            before, x = x, cell(*states)
        logits: Tensor = self.classify(self.head(x))
        return logits


def _slim(
    normal: Cell, reduction: Cell, *, cells: int, channels: int, stem: int, inserted: bool = True
) -> Searched:
    """`inserted`: reduction cells come between the normal ones; else normal cells are strided."""
    built: list[SearchedCell] = []
    widths, sides = [stem, stem], [2, 2]  # outputs so far; the stem is both inputs of the first

    def add(cell: Cell, channels: int, stride: int) -> None:
        before: nn.Module = nn.Identity()
        before_width = channels
        if not built:
            before_width = widths[-2]  # as it is
        elif sides[-2] != sides[-1]:
            before = FactorizedReduce(widths[-2], channels, pooled=True)
        elif widths[-2] != channels:
            before = _relu_conv_bn(widths[-2], channels)
        fit = [_relu_conv_bn(widths[-1], channels), before]
        built.append(SearchedCell(cell, fit, [channels, before_width], channels, stride))
        widths.append(built[-1].channels)
        sides.append(sides[-1] * stride)

    for divisor in (4, 2):
        add(reduction, channels // divisor, 2)
    for i in range(cells):
        stride = 1
        if i in (cells // 3, 2 * cells // 3):
            channels *= 2
            if inserted:
                add(reduction, channels, 2)
            else:
                stride = 2
        add(normal, channels, stride)
    convolution = nn.Conv2d(3, stem, 3, 2, bias=False)
    return Searched([nn.Sequential(convolution, nn.BatchNorm2d(stem))], built, newest=0)


def nasnet_mobile() -> Searched:
    """NASNet-A (4 @ 1056)."""
    return _slim(NASNET_NORMAL, NASNET_REDUCTION, cells=12, channels=44, stem=32)


def amoebanet_mobile() -> Searched:
    """AmoebaNet-A (4, 50)."""
    return _slim(AMOEBANET_NORMAL, AMOEBANET_REDUCTION, cells=12, channels=50, stem=32)


def pnasnet_mobile() -> Searched:
    """PNASNet-5 (3, 54)."""
    return _slim(PNASNET, PNASNET, cells=9, channels=54, stem=32, inserted=False)


def darts_imagenet(cells: int = 14, channels: int = 48) -> Searched:
    """DARTS-V2: 14 cells of 48 channels."""
    half = channels // 2
    stems: list[nn.Module] = [
        nn.Sequential(*_conv_bn(3, half, 3, 2), nn.ReLU(), *_conv_bn(half, channels, 3, 2)),
        nn.Sequential(nn.ReLU(), *_conv_bn(channels, channels, 3, 2)),
    ]
    built: list[SearchedCell] = []
    widths = [channels, channels]
    reduced = True
    for i in range(cells):
        reduction = i in (cells // 3, 2 * cells // 3)
        channels *= 2 if reduction else 1
        before: nn.Module = _relu_conv_bn(widths[-2], channels)
        if reduced:
            before = FactorizedReduce(widths[-2], channels, pooled=False)
        fit = [before, _relu_conv_bn(widths[-1], channels)]
        cell = DARTS_REDUCTION if reduction else DARTS_NORMAL
        built.append(SearchedCell(cell, fit, [channels, channels], channels, 2 if reduction else 1))
        widths.append(built[-1].channels)
        reduced = reduction
    return Searched(stems, built, newest=1)
