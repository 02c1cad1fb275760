"""Inference graphs of published networks, op by op, for the planner benchmark.

Sizes are those of activations in 4-byte floats; weights are not in the graph. Every op has an
output of its own: nothing is done in place, and views (slices, reshapes) are left out.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import networkx
from program import Program, Recorder

FLOAT = 4


@dataclass(frozen=True)
class Image:
    """Feature maps of batch size 1: a buffer and its shape, channels x side x side."""

    buffer: int
    channels: int
    side: int


class ImageRecorder(Recorder):
    """Records ops on feature maps."""

    def image(self, channels: int, side: int) -> Image:
        """An input image."""
        return Image(self.input(channels * side * side * FLOAT), channels, side)

    def map(self, kind: str, reads: Sequence[Image], channels: int, side: int) -> Image:
        """An op that writes feature maps."""
        size = channels * side * side * FLOAT
        return Image(self.op(kind, [x.buffer for x in reads], size), channels, side)

    def like(self, kind: str, *reads: Image) -> Image:
        """An op whose output has the shape of its first input."""
        return self.map(kind, reads, reads[0].channels, reads[0].side)

    def strided(self, kind: str, x: Image, channels: int, stride: int) -> Image:
        """A convolution or pooling with padding: the side is divided by the stride, rounded up."""
        return self.map(kind, [x], channels, -(-x.side // stride))

    def concat(self, parts: Sequence[Image]) -> Image:
        """The parts' channels one after the other."""
        return self.map("concat", parts, sum(x.channels for x in parts), parts[0].side)

    def conv_bn(self, x: Image, channels: int, stride: int = 1) -> Image:
        """Convolution, batch norm."""
        return self.like("bn", self.strided("conv", x, channels, stride))

    def relu_conv_bn(self, x: Image, channels: int, stride: int = 1) -> Image:
        """ReLU, convolution, batch norm."""
        return self.conv_bn(self.like("relu", x), channels, stride)

    def separable(self, x: Image, channels: int, stride: int = 1) -> Image:
        """ReLU, depthwise convolution, pointwise convolution, batch norm."""
        x = self.strided("depthwise", self.like("relu", x), x.channels, stride)
        return self.like("bn", self.map("pointwise", [x], channels, x.side))

    def classify(self, x: Image, classes: int) -> None:
        """Global pooling and the logits, which are the result."""
        pooled = self.op("pool", [x.buffer], x.channels * FLOAT)
        self.keep(self.op("linear", [pooled], classes * FLOAT))


# --- networks of architecture search ------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """The genotype of a cell: pairs of (operation, state), each pair added to form a new state.

    States 0 and 1 are the cell's inputs; `concat` names the states that form the output.
    """

    pairs: tuple[tuple[str, int, str, int], ...]
    concat: tuple[int, ...]


# The first four follow nasnet_utils.py: state 0 is the last cell's output, 1 that of the cell
# before. Zoph et al., Learning Transferable Architectures, CVPR 2018, appendix A.4, figure 7.
NASNET_NORMAL = Cell(
    (
        ("sep5", 0, "sep3", 1),
        ("sep5", 1, "sep3", 1),
        ("avg", 0, "skip", 1),
        ("avg", 1, "avg", 1),
        ("sep3", 0, "skip", 0),
    ),
    (1, 2, 3, 4, 5, 6),
)
NASNET_REDUCTION = Cell(
    (
        ("sep5", 0, "sep7", 1),
        ("max", 0, "sep7", 1),
        ("avg", 0, "sep5", 1),
        ("skip", 3, "avg", 2),
        ("sep3", 2, "max", 0),
    ),
    (3, 4, 5, 6),
)
# Real et al., Regularized Evolution for Image Classifier Architecture Search, AAAI 2019, figure 5.
AMOEBANET_NORMAL = Cell(
    (
        ("avg", 1, "max", 0),
        ("sep3", 1, "sep5", 2),
        ("sep3", 1, "avg", 3),
        ("sep3", 0, "skip", 0),
        ("skip", 1, "avg", 0),
    ),
    (4, 5, 6),
)
AMOEBANET_REDUCTION = Cell(
    (
        ("avg", 1, "sep3", 0),
        ("max", 1, "sep7", 2),
        ("sep7", 1, "avg", 0),
        ("max", 1, "max", 0),
        ("conv7x1", 1, "sep3", 5),
    ),
    (3, 4, 6),
)
# Liu et al., Progressive Neural Architecture Search, ECCV 2018, figure 1. One cell for both uses.
PNASNET = Cell(
    (
        ("sep5", 1, "max", 1),
        ("sep7", 0, "max", 0),
        ("sep5", 0, "sep3", 0),
        ("sep3", 4, "max", 0),
        ("sep3", 1, "skip", 0),
    ),
    (2, 3, 4, 5, 6),
)
# Liu et al., DARTS, ICLR 2019, the second-order cells. State 0 is the output of the cell before the
# last one, as in the published code.
DARTS_NORMAL = Cell(
    (
        ("sep3", 0, "sep3", 1),
        ("sep3", 0, "sep3", 1),
        ("sep3", 1, "skip", 0),
        ("skip", 0, "dil3", 2),
    ),
    (2, 3, 4, 5),
)
DARTS_REDUCTION = Cell(
    (
        ("max", 0, "max", 1),
        ("skip", 2, "max", 1),
        ("max", 0, "skip", 2),
        ("skip", 2, "max", 1),
    ),
    (2, 3, 4, 5),
)


class CellRecorder(ImageRecorder):
    """Records cells in the order in which the published code calls their operations."""

    def factorized_reduce(self, x: Image, channels: int, *, pooled: bool) -> Image:
        """Halves the side by two strided paths on shifted images, after a ReLU.

        `pooled`: the code of NASNet pools with stride 2, then convolves; that of DARTS convolves
        with stride 2. The padded copy of NASNet's second path is an op of its own.
        """
        x = self.like("relu", x)
        if pooled:
            left = self.strided("pool", x, x.channels, 2)
            left = self.strided("conv", left, channels // 2, 1)
            right = self.strided("pool", self.like("pad", x), x.channels, 2)
            right = self.strided("conv", right, channels // 2, 1)
        else:
            left = self.strided("conv", x, channels // 2, 2)
            right = self.strided("conv", x, channels // 2, 2)
        return self.like("bn", self.concat([left, right]))

    def operation(self, name: str, x: Image, channels: int, stride: int) -> Image:
        """One operation of a pair. Separable convolutions are applied twice."""
        if name.startswith("sep"):
            return self.separable(self.separable(x, channels, stride), channels)
        if name.startswith("dil"):
            return self.separable(x, channels, stride)
        if name == "conv7x1":
            x = self.relu_conv_bn(x, channels, stride)
            return self.relu_conv_bn(x, channels)
        if name in ("avg", "max"):
            pooled = self.strided(f"{name}_pool", x, x.channels, stride)
            return pooled if x.channels == channels else self.conv_bn(pooled, channels)
        if stride > 1 or x.channels != channels:
            return self.relu_conv_bn(x, channels, stride)
        return x

    def pairs(self, cell: Cell, states: list[Image], channels: int, stride: int) -> Image:
        """All pairs of a cell and its output; only operations on the cell's inputs are strided."""
        for left, left_state, right, right_state in cell.pairs:
            halves = [
                self.operation(name, states[state], channels, stride if state < 2 else 1)
                for name, state in ((left, left_state), (right, right_state))
            ]
            states.append(self.like("add", *halves))
        return self.concat([states[i] for i in cell.concat])

    def nasnet_cell(
        self, cell: Cell, last: Image, before: Image | None, channels: int, stride: int
    ) -> Image:
        """A cell as nasnet_utils.py builds it: first fit the older input, then the newer one."""
        if before is None:
            before = last
        elif before.side != last.side:
            before = self.factorized_reduce(before, channels, pooled=True)
        elif before.channels != channels:
            before = self.relu_conv_bn(before, channels)
        return self.pairs(cell, [self.relu_conv_bn(last, channels), before], channels, stride)

    def darts_cell(
        self, last: Image, before: Image, channels: int, *, reduction: bool, reduction_before: bool
    ) -> Image:
        """A cell as DARTS' model.py builds it."""
        if reduction_before:
            before = self.factorized_reduce(before, channels, pooled=False)
        else:
            before = self.relu_conv_bn(before, channels)
        last = self.relu_conv_bn(last, channels)
        cell = DARTS_REDUCTION if reduction else DARTS_NORMAL
        return self.pairs(cell, [before, last], channels, 2 if reduction else 1)


def nasnet_like(
    name: str,
    normal: Cell,
    reduction: Cell,
    *,
    side: int,
    cells: int,
    channels: int,
    stem: int,
    inserted: bool = True,
) -> Program:
    """NASNet, AmoebaNet or PNASNet as nasnet.py and pnasnet.py of TensorFlow's slim build them.

    `stem`: channels of the first convolution; a side above 32 means the ImageNet stem with two
    reducing cells. `inserted`: reduction cells come between the normal ones (NASNet, AmoebaNet);
    otherwise the normal cells at those places are strided (PNASNet).
    """
    record = CellRecorder()
    imagenet = side > 32
    image = record.image(3, side)
    # The convolution of the ImageNet stem has stride 2 and no padding.
    x = record.map("conv", [image], stem, (side - 1) // 2 if imagenet else side)
    x = record.like("bn", x)
    outputs: list[Image | None] = [None, x]
    if imagenet:
        for divisor in (4, 2):
            x = record.nasnet_cell(reduction, x, outputs[-2], channels // divisor, 2)
            outputs.append(x)
    for i in range(cells):
        stride = 1
        if i in (cells // 3, 2 * cells // 3):
            channels *= 2
            if inserted:
                x = record.nasnet_cell(reduction, x, outputs[-2], channels, 2)
                outputs.append(x)
            else:
                stride = 2
        x = record.nasnet_cell(normal, x, outputs[-2], channels, stride)
        outputs.append(x)
    record.classify(record.like("relu", x), 1000 if imagenet else 10)
    return record.program(name, "nas")


def darts(name: str, *, imagenet: bool) -> Program:
    """DARTS-V2 as published: 20 cells of 36 channels on CIFAR, 14 of 48 on ImageNet."""
    record = CellRecorder()
    if imagenet:
        cells, channels = 14, 48
        x = record.conv_bn(record.image(3, 224), channels // 2, 2)
        before = record.conv_bn(record.like("relu", x), channels, 2)
        x = record.relu_conv_bn(before, channels, 2)
    else:
        cells, channels = 20, 36
        before = x = record.conv_bn(record.image(3, 32), 3 * channels)
    reduction_before = imagenet
    for i in range(cells):
        reduction = i in (cells // 3, 2 * cells // 3)
        channels *= 2 if reduction else 1
        before, x = (
            x,
            record.darts_cell(
                x, before, channels, reduction=reduction, reduction_before=reduction_before
            ),
        )
        reduction_before = reduction
    record.classify(x, 1000 if imagenet else 10)
    return record.program(name, "nas")


def randwire(nodes: int, seed: int, *, imagenet: bool, channels: int = 78) -> Program:
    """Three random stages WS(nodes, 4, 0.75).

    Source: Xie et al., Exploring Randomly Wired Neural Networks for Image Recognition, ICCV 2019,
    sections 3.2 and 3.3: the small regime, or for CIFAR the same without the strides of the stem
    and of the first stage. Nodes run in the order of their index; a node sums its weighted inputs,
    then ReLU, separable convolution, batch norm; a stage's result is the mean of its sinks.
    """
    record = ImageRecorder()
    if imagenet:
        x = record.conv_bn(record.image(3, 224), channels // 2, 2)
        x = record.relu_conv_bn(x, channels, 2)
    else:
        x = record.conv_bn(record.image(3, 32), channels)
    for stage in range(3):
        graph = networkx.connected_watts_strogatz_graph(nodes, 4, 0.75, seed=3 * seed + stage)
        stride = 2 if stage or imagenet else 1
        x = _random_stage(record, graph, x, channels << stage, stride)
    record.classify(record.relu_conv_bn(x, 1280), 1000 if imagenet else 10)
    setting = "imagenet" if imagenet else "cifar"
    return record.program(f"randwire_{setting}_{nodes}_{seed}", "randwire")


def _random_stage(
    record: ImageRecorder, graph: networkx.Graph, x: Image, channels: int, stride: int
) -> Image:
    results: list[Image] = []
    for node in sorted(graph):
        inputs = [results[other] for other in sorted(graph[node]) if other < node]
        if inputs:
            results.append(record.separable(_weighted_sum(record, inputs), channels))
        else:
            results.append(record.separable(x, channels, stride))
    sinks = [results[node] for node in sorted(graph) if max(graph[node]) < node]
    return record.like("mean", functools.reduce(functools.partial(record.like, "add"), sinks))


def _weighted_sum(record: ImageRecorder, inputs: Sequence[Image]) -> Image:
    if len(inputs) == 1:
        return inputs[0]
    total = record.like("scale", inputs[0])
    for x in inputs[1:]:
        total = record.like("add", total, record.like("scale", x))
    return total


# --- recurrent networks -------------------------------------------------------------------------


def _lstm_step(record: Recorder, x: int, state: Sequence[int], size: int) -> list[int]:
    """Hochreiter and Schmidhuber 1997 with forget gates, as torch.nn.LSTMCell computes it."""
    h, c = state
    gates = [record.op("linear_x", [x], 4 * size), record.op("linear_h", [h], 4 * size)]
    total = record.op("add", gates, 4 * size)
    i, f, o = (record.op("sigmoid", [total], size) for _ in range(3))
    g = record.op("tanh", [total], size)
    kept = record.op("mul", [f, c], size)
    c = record.op("add", [kept, record.op("mul", [i, g], size)], size)
    return [record.op("mul", [o, record.op("tanh", [c], size)], size), c]


def _gru_step(record: Recorder, x: int, state: Sequence[int], size: int) -> list[int]:
    """Cho et al. 2014, as torch.nn.GRUCell computes it."""
    (h,) = state
    from_x, from_h = record.op("linear_x", [x], 3 * size), record.op("linear_h", [h], 3 * size)
    r, z = (
        record.op("sigmoid", [record.op("add", [from_x, from_h], size)], size) for _ in range(2)
    )
    reset = record.op("mul", [r, from_h], size)
    n = record.op("tanh", [record.op("add", [from_x, reset], size)], size)
    difference = record.op("sub", [h, n], size)
    return [record.op("add", [n, record.op("mul", [z, difference], size)], size)]


def recurrent(
    kind: Literal["lstm", "gru"],
    layers: int,
    steps: int,
    *,
    layer_major: bool,
    every_step: bool,
    hidden: int = 512,
    batch: int = 16,
) -> Program:
    """An unrolled stack. `layer_major`: all steps of a layer before the next layer, with the
    embedding of every token first; otherwise all layers of a step before the next step.
    `every_step`: logits for every step (tagging), otherwise for the last one (classification).
    """
    size = batch * hidden * FLOAT
    step_function, states = (_lstm_step, 2) if kind == "lstm" else (_gru_step, 1)
    record = Recorder()
    tokens = record.input(batch * steps * 8)
    state = [[record.op("zeros", [], size) for _ in range(states)] for _ in range(layers)]

    def embed() -> int:
        return record.op("embedding", [tokens], size)

    def cell(layer: int, x: int) -> int:
        state[layer] = step_function(record, x, state[layer], size)
        return state[layer][0]

    def head(x: int) -> None:
        record.keep(record.op("logits", [x], batch * 32 * FLOAT))

    if layer_major:
        sequence = [embed() for _ in range(steps)]
        for layer in range(layers):
            sequence = [cell(layer, x) for x in sequence]
        for x in sequence if every_step else sequence[-1:]:
            head(x)
    else:
        for step in range(steps):
            x = functools.reduce(lambda x, layer: cell(layer, x), range(layers), embed())
            if every_step or step == steps - 1:
                head(x)
    loops = "layers" if layer_major else "steps"
    heads = "all" if every_step else "last"
    return record.program(f"{kind}_{layers}x{steps}_{loops}_{heads}", kind)


# --- branches written step by step --------------------------------------------------------------


def mixture_of_experts(layers: int, experts: int, tokens: int = 512, width: int = 512) -> Program:
    """Transformer feed-forward layers as densely gated experts, every step for all of them.

    Source: Shazeer et al., Outrageously Large Neural Networks, ICLR 2017, sections 2 and 2.1.
    """
    record = Recorder()
    size = tokens * width * FLOAT
    x = record.input(size)
    for _ in range(layers):
        normed = record.op("layer_norm", [x], size)
        scores = record.op("gate", [normed], tokens * experts * FLOAT)
        gates = record.op("softmax", [scores], tokens * experts * FLOAT)
        up = [record.op("linear", [normed], 4 * size) for _ in range(experts)]
        active = [record.op("relu", [hidden], 4 * size) for hidden in up]
        down = [record.op("linear", [hidden], size) for hidden in active]
        weighted = [record.op("mul", [gates, out], size) for out in down]
        mixed = functools.reduce(lambda a, b: record.op("add", [a, b], size), weighted)
        x = record.op("residual", [x, mixed], size)
    record.keep(x)
    return record.program(f"moe_{layers}x{experts}", "moe")


def switch_layer(experts: int, tokens: int = 4096, width: int = 512) -> Program:
    """A sparsely gated layer: tokens are sent to experts, which differ in their share of them.

    Source: Fedus et al., Switch Transformers, JMLR 2022, section 2.1. Shares fall as 1 / rank.
    """
    record = Recorder()
    x = record.input(tokens * width * FLOAT)
    scores = record.op("router", [x], tokens * experts * FLOAT)
    gates, chosen = record.ops("top_1", [scores], [tokens * FLOAT, tokens * 8])
    ranks = range(1, experts + 1)
    shares = [round(tokens / rank / sum(1 / r for r in ranks)) for rank in ranks]
    rows = [share * width * FLOAT for share in shares]
    sent = [record.op("index_select", [x, chosen], size) for size in rows]
    up = [record.op("linear", [s], 4 * size) for s, size in zip(sent, rows, strict=True)]
    active = [record.op("gelu", [hidden], record.size(hidden)) for hidden in up]
    down = [record.op("linear", [a], size) for a, size in zip(active, rows, strict=True)]
    out = record.op("zeros", [], tokens * width * FLOAT)
    for part in down:
        out = record.op("index_add", [out, part, chosen], tokens * width * FLOAT)
    record.keep(record.op("mul", [out, gates], tokens * width * FLOAT))
    return record.program(f"switch_{experts}", "moe")


def towers(name: str, widths: Sequence[Sequence[int]], *, shared: bool, side: int = 56) -> Program:
    """Convolutional towers, each stage of all towers before the next stage.

    `widths` has the channels of every tower's stages; `shared`: one trunk feeds all towers,
    otherwise each has an image of its own (camera views). Results are concatenated.
    Source: Su et al., Multi-view Convolutional Neural Networks, ICCV 2015, section 3.
    """
    record = ImageRecorder()
    trunk = record.conv_bn(record.image(3, 2 * side), 64, 2) if shared else None
    tips = [trunk or record.conv_bn(record.image(3, 2 * side), 64, 2) for _ in widths]
    for stage in itertools.zip_longest(*widths, fillvalue=0):  # a shorter tower has no such stage
        pairs = list(zip(tips, stage, strict=True))
        convolved = [record.strided("conv", x, c, 1) if c else x for x, c in pairs]
        pairs = list(zip(convolved, stage, strict=True))
        tips = [record.like("relu", x) if c else x for x, c in pairs]
    pooled = [record.op("pool", [x.buffer], x.channels * FLOAT) for x in tips]
    joined = record.op("concat", pooled, sum(record.size(x) for x in pooled))
    record.keep(record.op("linear", [joined], 1000 * FLOAT))
    return record.program(name, "towers")
