"""Further networks whose order matters, as published code or ordinary user code writes them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import zoo
from torch import Tensor, nn
from torch.nn.functional import interpolate

# EfficientDet: Tan et al., EfficientDet: Scalable and Efficient Object Detection, CVPR 2020.


class SeparableBn(nn.Sequential):
    """A separable convolution, batch norm; Swish before it, if `swish`."""

    def __init__(self, channels: int, *, swish: bool) -> None:
        first: list[nn.Module] = [nn.SiLU()] if swish else []
        super().__init__(*first, zoo.SeparableConv(channels, 3), nn.BatchNorm2d(channels))


class Fusion(nn.Module):
    """Fast normalized fusion (section 3.3) of two or three maps of one size."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs))
        self.conv = SeparableBn(channels, swish=True)

    def forward(self, *maps: Tensor) -> Tensor:
        """The convolution of the weighted mean."""
        weight = torch.relu(self.weight)
        weight = weight / (weight.sum() + 1e-4)
        fused: Tensor = self.conv(sum(weight[i] * x for i, x in enumerate(maps)))
        return fused


class BiFpnLayer(nn.Module):
    """Top-down, then bottom-up over the levels (figure 2d)."""

    def __init__(self, levels: int, channels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(Fusion(2, channels) for _ in range(levels - 1))
        self.up = nn.ModuleList(
            Fusion(3 if level < levels - 2 else 2, channels) for level in range(levels - 1)
        )
        self.shrink = nn.MaxPool2d(3, 2, 1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the same sizes, from the finest to the coarsest."""
        middle = [maps[-1]]
        for x, fuse in zip(reversed(maps[:-1]), self.down, strict=True):
            middle.insert(0, fuse(x, interpolate(middle[0], scale_factor=2.0)))
        out = [middle[0]]
        for level, fuse in enumerate(self.up, start=1):
            inputs = [maps[level], self.shrink(out[-1])]
            if level < len(maps) - 1:
                inputs.insert(1, middle[level])
            out.append(fuse(*inputs))
        return out


class BiFpn(nn.Module):
    """The neck and the heads of EfficientDet-D0 on torchvision's EfficientNet-B0.

    Differences: nine anchors' classes and boxes come out as maps, without decoding; batch norms of
    the heads are shared by the levels.
    """

    def __init__(self, channels: int = 64, layers: int = 3, classes: int = 90) -> None:
        super().__init__()
        features: Any = zoo.torchvision_network("efficientnet_b0").features
        self.backbone = features[:8]
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, channels, 1), nn.BatchNorm2d(channels))
            for inputs in (40, 112, 320)
        )
        self.shrink = nn.MaxPool2d(3, 2, 1)
        self.layers = nn.ModuleList(BiFpnLayer(5, channels) for _ in range(layers))
        self.classes = self._head(channels, 9 * classes)
        self.boxes = self._head(channels, 9 * 4)

    @staticmethod
    def _head(channels: int, outputs: int) -> nn.Sequential:
        convolutions = (SeparableBn(channels, swish=False) for _ in range(3))
        hidden = [layer for conv in convolutions for layer in (conv, nn.SiLU())]
        return nn.Sequential(*hidden, nn.Conv2d(channels, outputs, 3, padding=1))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The classes of all levels, then the boxes of all levels."""
        features = []
        x = image
        for stage, block in enumerate(self.backbone):
            x = block(x)
            if stage in (3, 5, 7):  # strides 8, 16, 32
                features.append(x)
        maps = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for _ in range(2):
            maps.append(self.shrink(maps[-1]))
        for layer in self.layers:
            maps = layer(maps)
        return (*(self.classes(x) for x in maps), *(self.boxes(x) for x in maps))


# HRNet: Wang et al., Deep High-Resolution Representation Learning for Visual Recognition, TPAMI
# 2020.


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = zoo.ConvBnRelu(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both paths."""
        out: Tensor = self.relu(self.second(self.first(x)) + x)
        return out


class Exchange(nn.Module):
    """Parallel branches, then every branch fused with all others (section 3.2, figure 3)."""

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width) for _ in range(blocks))) for width in widths
        )
        self.paths: Any = nn.ModuleList(
            nn.ModuleList(self._path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )
        self.relu = nn.ReLU()

    @staticmethod
    def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:
            return nn.Sequential(
                nn.Conv2d(widths[source], widths[target], 1, bias=False),
                nn.BatchNorm2d(widths[target]),
                nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"),
            )
        steps: list[nn.Module] = [
            zoo.ConvBnRelu(widths[source], widths[source], stride=2)
            for _ in range(target - source - 1)
        ]
        last = nn.Conv2d(widths[source], widths[target], 3, 2, 1, bias=False)
        return nn.Sequential(*steps, last, nn.BatchNorm2d(widths[target]))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Target by target: the sum over all sources."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for paths in self.paths:
            parts = (path(x) for path, x in zip(paths, maps, strict=True))
            fused.append(self.relu(functools.reduce(torch.add, parts)))
        return fused


class HrNet(nn.Module):
    """HRNetV2-W18-Small: one exchange per stage, two blocks per branch, maps joined at the end.

    Difference: the first stage has basic blocks, not bottlenecks.
    """

    def __init__(self, width: int = 18, blocks: int = 2, classes: int = 19) -> None:
        super().__init__()
        widths = [width << level for level in range(4)]
        self.stem = nn.Sequential(
            zoo.ConvBnRelu(3, 64, 2), zoo.ConvBnRelu(64, 64, 2), BasicBlock(64)
        )
        self.enter = zoo.ConvBnRelu(64, width)
        self.open = nn.ModuleList(
            zoo.ConvBnRelu(source, target, 2)
            for source, target in zip([64, *widths[1:]], widths[1:], strict=False)
        )
        self.stages = nn.ModuleList(Exchange(widths[:count], blocks) for count in (2, 3, 4))
        total = sum(widths)
        self.head = nn.Sequential(
            nn.Conv2d(total, total, 1),
            nn.BatchNorm2d(total),
            nn.ReLU(),
            nn.Conv2d(total, classes, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """The logits of every class at a quarter of the resolution."""
        x = self.stem(image)
        maps = [self.enter(x)]
        for open_branch, stage in zip(self.open, self.stages, strict=True):
            maps = stage([*maps, open_branch(maps[-1] if len(maps) > 1 else x)])
        size = maps[0].shape[-2:]
        rest = [interpolate(x, size=size, mode="bilinear") for x in maps[1:]]
        logits: Tensor = self.head(torch.cat([maps[0], *rest], 1))
        return logits


# Recommenders, recurrent networks


def _mlp(*widths: int) -> nn.Sequential:
    pairs = itertools.pairwise(widths)
    return nn.Sequential(*(layer for a, b in pairs for layer in (nn.Linear(a, b), nn.ReLU())))


class Recommender(nn.Module):
    """Towers of tasks on gated experts.

    Source: Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts, KDD 2018, section 4.2 (figure 1c).
    """

    def __init__(self, inputs: int = 512, experts: int = 8, tasks: int = 6) -> None:
        super().__init__()
        self.experts = nn.ModuleList(_mlp(inputs, 512, 256) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(inputs, experts, bias=False) for _ in range(tasks))
        self.towers = nn.ModuleList(
            nn.Sequential(_mlp(256, 512, 128), nn.Linear(128, 1)) for _ in range(tasks)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """All experts, then all gates, then all mixtures, then all towers."""
        experts = torch.stack([expert(features) for expert in self.experts], 1)
        gates = [gate(features).softmax(-1).unsqueeze(-1) for gate in self.gates]
        mixed = [(gate * experts).sum(1) for gate in gates]
        return tuple(tower(x) for tower, x in zip(self.towers, mixed, strict=True))


class UnrolledLstm(nn.Module):
    """A stack of LSTM cells over the steps of a sequence, a label per step.

    `layer_major`: all steps of a layer before the next layer; else all layers of a step before the
    next step. Source: Sak et al., Long Short-Term Memory Recurrent Neural Network Architectures for
    Large Scale Acoustic Modeling, Interspeech 2014 (deep LSTM).
    """

    def __init__(
        self, *, layer_major: bool, layers: int = 4, width: int = 256, labels: int = 64
    ) -> None:
        super().__init__()
        self.layer_major = layer_major
        self.cells = nn.ModuleList(nn.LSTMCell(width, width) for _ in range(layers))
        self.label = nn.Linear(width, labels)

    def forward(self, sequence: Tensor) -> Tensor:
        """The labels of every step."""
        steps = list(sequence.unbind(1))
        zero = torch.zeros_like(steps[0])
        states = [(zero, zero) for _ in self.cells]
        if self.layer_major:
            for layer, cell in enumerate(self.cells):
                for step, x in enumerate(steps):
                    states[layer] = cell(x, states[layer])
                    steps[step] = states[layer][0]
        else:
            for step, x in enumerate(steps):
                for layer, cell in enumerate(self.cells):
                    states[layer] = cell(x, states[layer])
                    x = states[layer][0]
                steps[step] = x
        return torch.stack([self.label(x) for x in steps], 1)
