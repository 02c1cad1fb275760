"""Training graphs, op by op, for the planner benchmark: forward, backward, update.

Ops and what they save are those of torch's autograd: a convolution and a linear layer save their
input, ReLU its output, batch norm its input and statistics. Sizes are 4-byte floats. Weights, their
running statistics and the optimizer's state are not in the graph, gradients are; a gradient is
freed after its update. An update writes a weight, so it waits for the last op that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from program import Program, Recorder

FLOAT = 4


@dataclass(frozen=True)
class Tensor:
    """A buffer and its shape: a batch of channels x side x side, or of features (side 1)."""

    buffer: int
    channels: int
    side: int
    needs_gradient: bool = True


class TrainingRecorder(Recorder):
    """Records the forward pass and, for every step, how to go back through it."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self._batch = batch
        self._backward: list[Callable[[], None]] = []
        self._gradients: dict[int, int] = {}  # of activations: buffer -> gradient
        # Gradients of weights and the ops after which the weight may change, last layer first.
        self._parameters: list[tuple[int, list[int]]] = []

    def _bytes(self, channels: int, side: int = 1) -> int:
        return self._batch * channels * side * side * FLOAT

    def data(self, channels: int, side: int = 1) -> Tensor:
        """A batch of training data."""
        return Tensor(self.input(self._bytes(channels, side)), channels, side, False)

    def _new(self, kind: str, reads: Sequence[Tensor], channels: int, side: int) -> Tensor:
        buffer = self.op(kind, [x.buffer for x in reads], self._bytes(channels, side))
        return Tensor(buffer, channels, side)

    def _add_gradient(self, x: Tensor, gradient: int) -> None:
        if x.buffer in self._gradients:
            both = [self._gradients[x.buffer], gradient]
            gradient = self.op("accumulate", both, self.size(x.buffer))
        self._gradients[x.buffer] = gradient

    def _unary(self, kind: str, x: Tensor, channels: int, side: int, *, saves: str) -> Tensor:
        """An op without weights; `saves` "output" or "nothing" for its way back."""
        y = self._new(kind, [x], channels, side)

        def backward() -> None:
            reads = [self._gradients.pop(y.buffer)] + ([y.buffer] if saves == "output" else [])
            self._add_gradient(x, self.op(f"{kind}_grad", reads, self.size(x.buffer)))

        self._backward.append(backward)
        return y

    def _weighted(
        self, kind: str, x: Tensor, channels: int, side: int, weights: int, *, bias: bool
    ) -> Tensor:
        """A convolution or linear layer with that many weights."""
        y = self._new(kind, [x], channels, side)

        def backward() -> None:
            gradient = self._gradients.pop(y.buffer)
            reader = []
            if x.needs_gradient:
                back = self.op(f"{kind}_grad_input", [gradient], self.size(x.buffer))
                reader = [self.last_op()]
                self._add_gradient(x, back)
            of_weight = self.op(f"{kind}_grad_weight", [gradient, x.buffer], weights * FLOAT)
            self._parameters.append((of_weight, reader))
            if bias:
                of_bias = self.op(f"{kind}_grad_bias", [gradient], channels * FLOAT)
                self._parameters.append((of_bias, []))

        self._backward.append(backward)
        return y

    def linear(self, x: Tensor, features: int) -> Tensor:
        """A fully connected layer with bias; flattens its input."""
        weights = x.channels * x.side * x.side * features
        return self._weighted("linear", x, features, 1, weights, bias=True)

    def conv(self, x: Tensor, channels: int, kernel: int, stride: int = 1) -> Tensor:
        """A padded convolution without bias."""
        weights = x.channels * channels * kernel * kernel
        return self._weighted("conv", x, channels, -(-x.side // stride), weights, bias=False)

    def relu(self, x: Tensor) -> Tensor:
        """ReLU, not in place."""
        return self._unary("relu", x, x.channels, x.side, saves="output")

    def average_pool(self, x: Tensor, stride: int) -> Tensor:
        """Average pooling."""
        return self._unary("avg_pool", x, x.channels, x.side // stride, saves="nothing")

    def max_pool(self, x: Tensor, stride: int = 2) -> Tensor:
        """Max pooling, which saves 8-byte indices."""
        side = -(-x.side // stride)
        size = self._bytes(x.channels, side)
        pooled, indices = self.ops("max_pool", [x.buffer], [size, 2 * size])

        def backward() -> None:
            reads = [self._gradients.pop(pooled), indices]
            self._add_gradient(x, self.op("max_pool_grad", reads, self.size(x.buffer)))

        self._backward.append(backward)
        return Tensor(pooled, x.channels, side)

    def batch_norm(self, x: Tensor) -> Tensor:
        """Batch norm with the two updates of its running statistics."""
        per_channel = x.channels * FLOAT
        y, mean, deviation = self.ops(
            "bn", [x.buffer], [self.size(x.buffer), per_channel, per_channel]
        )
        for statistic in (mean, deviation):
            self.ops("update_running", [statistic], [])

        def backward() -> None:
            back, of_weight, of_bias = self.ops(
                "bn_grad",
                [self._gradients.pop(y), x.buffer, mean, deviation],
                [self.size(x.buffer), per_channel, per_channel],
            )
            self._add_gradient(x, back)
            self._parameters += [(of_weight, []), (of_bias, [])]

        self._backward.append(backward)
        return Tensor(y, x.channels, x.side)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """A sum; its gradient is that of both."""
        y = self._new("add", [a, b], a.channels, a.side)

        def backward() -> None:
            gradient = self._gradients.pop(y.buffer)
            self._add_gradient(a, gradient)
            self._add_gradient(b, gradient)

        self._backward.append(backward)
        return y

    def concat(self, parts: Sequence[Tensor]) -> Tensor:
        """Channels one after the other; the gradient is cut up again by copying."""
        y = self._new("concat", parts, sum(x.channels for x in parts), parts[0].side)

        def backward() -> None:
            gradient = self._gradients.pop(y.buffer)
            for x in parts:
                self._add_gradient(x, self.op("slice", [gradient], self.size(x.buffer)))

        self._backward.append(backward)
        return y

    def train(self, logits: Tensor, *, momentum: bool) -> None:
        """The loss, which is the result, then the backward pass, then one update per parameter.

        `momentum`: torch's SGD with weight decay and momentum, three ops; otherwise one.
        """
        labels = self.input(self._batch * 8)
        chances = self._new("log_softmax", [logits], logits.channels, 1)
        self.keep(self.op("nll_loss", [chances.buffer, labels], FLOAT))
        size = self.size(logits.buffer)
        picked = self.op("nll_loss_grad", [labels], size)
        self._add_gradient(logits, self.op("log_softmax_grad", [picked, chances.buffer], size))
        for backward in reversed(self._backward):
            backward()
        # The optimizer visits parameters in the order of the forward pass.
        for gradient, after in reversed(self._parameters):
            if momentum:
                decayed = self.op("weight_decay", [gradient], self.size(gradient))
                step = self.op("momentum", [decayed], self.size(gradient))
                self.ops("update", [step], [], after=after)
            else:
                self.ops("update", [gradient], [], after=after)


def mlp(depth: int, *, batch: int = 256) -> Program:
    """A multilayer perceptron whose widths fall from 1024 to 128, plain SGD."""
    record = TrainingRecorder(batch)
    x = record.data(784)
    for layer in range(depth):
        x = record.relu(record.linear(x, 1024 - 896 * layer // depth))
    record.train(record.linear(x, 10), momentum=False)
    return record.program(f"mlp_train_{depth}", "mlp")


def cnn(blocks: Sequence[Sequence[int]], *, batch: int = 32, side: int = 64) -> Program:
    """Blocks of convolution, batch norm, ReLU, each ended by max pooling; a VGG, plain SGD.

    Source: Simonyan and Zisserman, ICLR 2015, table 1, with the batch norm usual today.
    """
    record = TrainingRecorder(batch)
    x = record.data(3, side)
    for block in blocks:
        for channels in block:
            x = record.relu(record.batch_norm(record.conv(x, channels, 3)))
        x = record.max_pool(x)
    x = record.relu(record.linear(x, 512))
    record.train(record.linear(x, 10), momentum=False)
    layers = sum(len(block) for block in blocks)
    return record.program(f"cnn_train_{layers}", "cnn")


def resnet(name: str, blocks: Sequence[int], *, batch: int = 32) -> Program:
    """A bottleneck ResNet on ImageNet, SGD with momentum.

    Source: He et al., Deep Residual Learning, CVPR 2016, table 1; ResNet-200 and deeper: He et al.,
    Identity Mappings in Deep Residual Networks, ECCV 2016 (here in post-activation form).
    """
    record = TrainingRecorder(batch)
    x = record.relu(record.batch_norm(record.conv(record.data(3, 224), 64, 7, 2)))
    x = record.max_pool(x)
    for stage, count in enumerate(blocks):
        for block in range(count):
            stride = 2 if stage and not block else 1
            x = _bottleneck(record, x, 64 << stage, stride)
    record.train(record.linear(record.average_pool(x, x.side), 1000), momentum=True)
    return record.program(name, "resnet")


def _bottleneck(record: TrainingRecorder, x: Tensor, width: int, stride: int) -> Tensor:
    y = record.relu(record.batch_norm(record.conv(x, width, 1)))
    y = record.relu(record.batch_norm(record.conv(y, width, 3, stride)))
    y = record.batch_norm(record.conv(y, 4 * width, 1))
    if x.channels != 4 * width:
        x = record.batch_norm(record.conv(x, 4 * width, 1, stride))
    return record.relu(record.add(y, x))


def densenet(name: str, blocks: Sequence[int], *, growth: int = 32, batch: int = 32) -> Program:
    """A DenseNet-BC on ImageNet, every layer concatenating all before it, plain SGD.

    Source: Huang et al., Densely Connected Convolutional Networks, CVPR 2017, table 1.
    """
    record = TrainingRecorder(batch)
    x = record.conv(record.data(3, 224), 2 * growth, 7, 2)
    x = record.max_pool(record.relu(record.batch_norm(x)))
    for stage, layers in enumerate(blocks):
        features = [x]
        for _ in range(layers):
            y = record.concat(features) if len(features) > 1 else features[0]
            y = record.conv(record.relu(record.batch_norm(y)), 4 * growth, 1)
            features.append(record.conv(record.relu(record.batch_norm(y)), growth, 3))
        x = record.relu(record.batch_norm(record.concat(features)))
        if stage + 1 < len(blocks):
            x = record.average_pool(record.conv(x, x.channels // 2, 1), 2)
    record.train(record.linear(record.average_pool(x, x.side), 1000), momentum=False)
    return record.program(name, "densenet")
