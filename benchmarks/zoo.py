"""The networks the benchmarks run, each as a TorchScript module with seeded random weights.

Two kinds: networks from torchvision, taken as they are, and small networks whose order of
execution matters, written here as published code or ordinary user code writes them. Nothing is
downloaded.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

IMAGE = (1, 3, 224, 224)


@dataclass(frozen=True)
class Model:
    """One network: how to build it, what to feed it, and whether it is frozen after tracing."""

    name: str
    build: Callable[[], nn.Module]
    input_shapes: tuple[tuple[int, ...], ...]
    freeze: bool
    note: str


# torchvision


def torchvision_network(name: str) -> nn.Module:
    """The classification or segmentation network of that name, without weights."""
    from torchvision import models

    options: dict[str, object] = {}
    if name in models.list_models(module=models.segmentation):
        options["weights_backbone"] = None
    elif name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    network: nn.Module = models.get_model(name, weights=None, **options)
    return network


def resnet50() -> nn.Module:
    """ResNet-50: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.1
    (table 1).
    """
    return torchvision_network("resnet50")


class SegmentationLogits(nn.Module):
    """The one tensor out of the dictionary that torchvision's segmentation networks return."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """The logits of every class, at the resolution of the image."""
        logits: Tensor = self.network(image)["out"]
        return logits


def deeplabv3_resnet50() -> nn.Module:
    """DeepLabv3: Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, 2017,
    section 3.3 (atrous spatial pyramid pooling), on ResNet-50.
    """
    return SegmentationLogits(torchvision_network("deeplabv3_resnet50"))


def swin_t() -> nn.Module:
    """Swin-T: Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows,
    ICCV 2021, section 3.
    """
    return torchvision_network("swin_t")


def vgg16() -> nn.Module:
    """VGG-16: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image
    Recognition, ICLR 2015, section 2 (configuration D).
    """
    return torchvision_network("vgg16")


def densenet121() -> nn.Module:
    """DenseNet-121: Huang et al., Densely Connected Convolutional Networks, CVPR 2017, section 3
    (table 1).
    """
    return torchvision_network("densenet121")


# Networks with freedom of order, as published code writes them


class SeparableConv(nn.Sequential):
    """A depthwise convolution followed by a pointwise one."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
        )


class RandWireNode(nn.Module):
    """The weighted sum of the inputs, then ReLU, separable convolution, batch norm."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs))
        self.relu = nn.ReLU()
        self.conv = SeparableConv(channels, 3)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The sum starts with the first input and takes the others in turn."""
        x = inputs[0]
        if len(inputs) > 1:
            x = torch.sigmoid(self.weight[0]) * x
            for i in range(1, len(inputs)):
                x = x + torch.sigmoid(self.weight[i]) * inputs[i]
        out: Tensor = self.bn(self.conv(self.relu(x)))
        return out


class RandWire(nn.Module):
    """One randomly wired stage on a strided stem, its nodes executed in the order of their index.

    Source: Xie et al., Exploring Randomly Wired Neural Networks for Image Recognition, ICCV 2019,
    section 3.2; the generator is Watts-Strogatz, WS(nodes, k, p) with edges from the smaller to the
    larger index. Differences: 1. the stem, not the input nodes, halves the resolution; 2. there is
    one stage and no classifier.
    """

    def __init__(
        self, seed: int, nodes: int = 32, k: int = 4, p: float = 0.75, channels: int = 64
    ) -> None:
        super().__init__()
        import networkx

        graph = networkx.connected_watts_strogatz_graph(nodes, k, p, seed=seed)
        self.inputs = [sorted(m for m in graph[n] if m < n) for n in range(nodes)]
        self.sinks = [n for n in range(nodes) if max(graph[n]) < n]
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.nodes = nn.ModuleList(
            RandWireNode(max(len(inputs), 1), channels) for inputs in self.inputs
        )

    def forward(self, image: Tensor) -> Tensor:
        """The mean of the sinks."""
        x = self.stem(image)
        results: list[Tensor] = []
        for node, inputs in zip(self.nodes, self.inputs, strict=True):
            results.append(node([results[i] for i in inputs] if inputs else [x]))
        out = results[self.sinks[0]]
        for sink in self.sinks[1:]:
            out = out + results[sink]
        return out / len(self.sinks)


class ReluConvBn(nn.Sequential):
    """The 1x1 convolution that brings a cell's input to the cell's number of filters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )


class SeparableTwice(nn.Sequential):
    """NASNet's separable convolution: ReLU, separable convolution, batch norm, all of it twice."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(
            nn.ReLU(),
            SeparableConv(channels, kernel),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            SeparableConv(channels, kernel),
            nn.BatchNorm2d(channels),
        )


class NasNetCell(nn.Module):
    """The normal cell of NASNet-A: five sums of two branches, concatenated with the adjusted
    h_prev as in the published code.
    """

    def __init__(self, inputs: int, inputs_prev: int, filters: int) -> None:
        super().__init__()
        self.adjust_prev = ReluConvBn(inputs_prev, filters)
        self.adjust = ReluConvBn(inputs, filters)
        self.left0 = SeparableTwice(filters, 5)
        self.right0 = SeparableTwice(filters, 3)
        self.left1 = SeparableTwice(filters, 5)
        self.right1 = SeparableTwice(filters, 3)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.left4 = SeparableTwice(filters, 3)

    def forward(self, h: Tensor, h_prev: Tensor) -> Tensor:
        """The concatenation of six tensors, from the two outputs before it."""
        h_prev = self.adjust_prev(h_prev)
        h = self.adjust(h)
        sum0 = self.left0(h) + self.right0(h_prev)
        sum1 = self.left1(h_prev) + self.right1(h_prev)
        sum2 = self.pool(h) + h_prev
        sum3 = self.pool(h_prev) + self.pool(h_prev)
        sum4 = self.left4(h) + h
        return torch.cat([h_prev, sum0, sum1, sum2, sum3, sum4], dim=1)


class NasNet(nn.Module):
    """Six NASNet-A normal cells of 32 filters on a strided stem, in the usual published order.

    Source: Zoph et al., Learning Transferable Architectures for Scalable Image Recognition,
    CVPR 2018, figure 4 and appendix A.4 (separable convolutions applied twice, 1x1 convolutions to
    fit the number of filters). Difference: there are no reduction cells.
    """

    def __init__(self, cells: int = 6, filters: int = 32, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, filters, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(filters)
        )
        widths = [filters, filters] + [6 * filters] * cells
        self.cells = nn.ModuleList(
            NasNetCell(width, width_prev, filters)
            for width_prev, width in itertools.pairwise(widths[:-1])
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)
        )

    def forward(self, image: Tensor) -> Tensor:
        """The logits of the classes."""
        h_prev = h = self.stem(image)
        for cell in self.cells:
            h_prev, h = h, cell(h, h_prev)
        logits: Tensor = self.head(h)
        return logits


class TwoConvs(nn.Sequential):
    """UNet's block: convolution, batch norm, ReLU in place, twice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class UNetPlusPlus(nn.Module):
    """UNet++ without deep supervision, executed column by column from the top.

    Source: Zhou et al., UNet++: A Nested U-Net Architecture for Medical Image Segmentation, DLMIA
    2018, section 3.1; x[i, j] is the paper's X^(i,j): level i, position j along the skip pathway.
    The order is (0,0), (1,0), ..., (4,0), then (0,1), (1,1), ..., (3,1), and so on to (0,4).
    """

    def __init__(self, depth: int = 4, base: int = 16, classes: int = 1) -> None:
        super().__init__()
        self.depth = depth
        width = [base << level for level in range(depth + 1)]
        blocks = {"0_0": TwoConvs(3, width[0])}
        for i in range(1, depth + 1):
            blocks[f"{i}_0"] = TwoConvs(width[i - 1], width[i])
        for j in range(1, depth + 1):
            for i in range(depth - j + 1):
                blocks[f"{i}_{j}"] = TwoConvs(j * width[i] + width[i + 1], width[i])
        self.blocks = nn.ModuleDict(blocks)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.final = nn.Conv2d(width[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """The mask, from the last node of the top level."""
        x = {(0, 0): self.blocks["0_0"](image)}
        for i in range(1, self.depth + 1):
            x[i, 0] = self.blocks[f"{i}_0"](self.pool(x[i - 1, 0]))
        for j in range(1, self.depth + 1):
            for i in range(self.depth - j + 1):
                skips = [x[i, k] for k in range(j)]
                x[i, j] = self.blocks[f"{i}_{j}"](torch.cat([*skips, self.up(x[i + 1, j - 1])], 1))
        mask: Tensor = self.final(x[0, self.depth])
        return mask


# Networks written with list comprehensions: every step for all branches before the next step


class MixtureOfExperts(nn.Module):
    """A densely gated mixture of experts: every expert sees every token.

    Source: Shazeer et al., Outrageously Large Neural Networks: The Sparsely-Gated
    Mixture-of-Experts Layer, ICLR 2017, sections 2 and 2.1 (softmax gating); the experts have the
    sizes of appendix C.1: width 512, one hidden layer of 1024 ReLU units.
    """

    def __init__(self, experts: int = 8, width: int = 512, hidden: int = 1024) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
            for _ in range(experts)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """All outputs, then all weighted outputs, then their sum."""
        gates = torch.softmax(self.gate(tokens), dim=-1)
        outputs = [expert(tokens) for expert in self.experts]
        weighted = [gates[:, i : i + 1] * out for i, out in enumerate(outputs)]
        mixed: Tensor = functools.reduce(torch.add, weighted)
        return mixed


class ConvBnRelu(nn.Sequential):
    """A 3x3 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class Classifier(nn.Sequential):
    """Global average pooling, then a linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Ensemble(nn.Module):
    """Eight small networks on one image, their predictions averaged.

    Source: Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using
    Deep Ensembles, NIPS 2017, section 2.4.
    """

    def __init__(self, members: int = 8, channels: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(
                ConvBnRelu(3, channels // 2, stride=2),
                ConvBnRelu(channels // 2, channels),
                ConvBnRelu(channels, channels),
            )
            for _ in range(members)
        )
        self.heads = nn.ModuleList(Classifier(channels, classes) for _ in range(members))

    def forward(self, image: Tensor) -> Tensor:
        """All feature maps, then all logits, then the mean probabilities."""
        features = [member(image) for member in self.members]
        logits = [head(f) for head, f in zip(self.heads, features, strict=True)]
        return torch.stack(logits).softmax(dim=-1).mean(dim=0)


class SixHeads(nn.Module):
    """Six tasks on one trunk, the heads written stage by stage.

    Source: Ruder, An Overview of Multi-Task Learning in Deep Neural Networks, 2017, section 3.1
    (hard parameter sharing).
    """

    def __init__(self, heads: int = 6, channels: int = 128, classes: int = 10) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.trunk = nn.Sequential(
            ConvBnRelu(3, quarter, stride=2), ConvBnRelu(quarter, half, stride=2)
        )
        self.first = nn.ModuleList(ConvBnRelu(half, channels) for _ in range(heads))
        self.second = nn.ModuleList(ConvBnRelu(channels, half) for _ in range(heads))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.ModuleList(nn.Linear(half, classes) for _ in range(heads))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """One tensor of logits per task."""
        shared = self.trunk(image)
        first = [conv(shared) for conv in self.first]
        second = [conv(f) for conv, f in zip(self.second, first, strict=True)]
        pooled = [self.pool(f).flatten(1) for f in second]
        return tuple(linear(f) for linear, f in zip(self.classify, pooled, strict=True))


MODELS: tuple[Model, ...] = (
    Model("resnet50", resnet50, (IMAGE,), True, "residual chain"),
    Model("deeplabv3_resnet50", deeplabv3_resnet50, (IMAGE,), True, "five parallel branches"),
    Model("swin_t", swin_t, (IMAGE,), True, "windowed attention"),
    Model("vgg16", vgg16, (IMAGE,), True, "a chain, no freedom"),
    Model("densenet121", densenet121, (IMAGE,), True, "dense concatenations"),
    Model(
        "randwire_seed0", functools.partial(RandWire, 0), (IMAGE,), True, "random graph, 32 nodes"
    ),
    Model(
        "randwire_seed1", functools.partial(RandWire, 1), (IMAGE,), True, "random graph, 32 nodes"
    ),
    Model("nasnet_a", NasNet, (IMAGE,), True, "six normal cells"),
    Model("unetpp", UNetPlusPlus, ((1, 3, 128, 128),), True, "nested skip pathways"),
    Model("moe", MixtureOfExperts, ((512, 512),), True, "a list of eight experts' outputs"),
    Model("ensemble", Ensemble, (IMAGE,), True, "a list of eight members' feature maps"),
    Model("six_heads", SixHeads, (IMAGE,), True, "six heads, stage by stage"),
)


def model(name: str) -> Model:
    """The model of that name. Raises KeyError, naming the known ones, when there is none."""
    for candidate in MODELS:
        if candidate.name == name:
            return candidate
    known = ", ".join(candidate.name for candidate in MODELS)
    raise KeyError(f"no model named {name!r}; there are: {known}")


def traced(model: Model) -> tuple[torch.jit.ScriptModule, tuple[Tensor, ...]]:
    """The traced (and, if the model says so, frozen) network and its inputs, equal on every call.

    Seeds torch's global generator with 0.
    """
    torch.manual_seed(0)
    network = model.build().eval()
    inputs = tuple(torch.randn(shape) for shape in model.input_shapes)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
        script: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
            network, inputs, check_trace=False
        )
        if model.freeze:
            script = torch.jit.freeze(script)
    return script, inputs


def main() -> None:
    """Traces and runs every model once; prints its name, its number of nodes, its output shapes."""
    for entry in MODELS:
        script, inputs = traced(entry)
        with torch.no_grad():
            result = script(*inputs)
        outputs = result if isinstance(result, tuple) else (result,)
        nodes = sum(1 for _ in script.inlined_graph.nodes())
        shapes = " ".join("x".join(map(str, output.shape)) for output in outputs)
        print(f"{entry.name:20} {nodes:5} nodes  {shapes}", flush=True)


if __name__ == "__main__":
    main()
