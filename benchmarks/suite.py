"""The standard models: every family of torchvision, transformers, and networks with freedom."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import branching
import cells
import torch
import transformer_models
import zoo
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]

TORCHVISION = """
    alexnet convnext_tiny convnext_base densenet121 densenet161 densenet169 densenet201
    efficientnet_b0 efficientnet_b3 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
    mnasnet1_0 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_x_3_2gf
    regnet_y_400mf regnet_y_3_2gf resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d
    resnext101_32x8d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x2_0 squeezenet1_0
    squeezenet1_1 swin_t swin_s swin_v2_t vgg11 vgg13_bn vgg16 vgg19_bn vit_b_16 vit_b_32 vit_l_32
    wide_resnet50_2 wide_resnet101_2 deeplabv3_mobilenet_v3_large deeplabv3_resnet50
    deeplabv3_resnet101 fcn_resnet50 fcn_resnet101 lraspp_mobilenet_v3_large
""".split()
QUICK = """
    resnet50 densenet121 googlenet mobilenet_v3_large swin_t vgg16 deeplabv3_resnet50
    bert gpt2 llama mixtral randwire_seed0 nasnet_a nasnet_a_mobile amoebanet_a pnasnet darts bifpn
    unetpp hrnet moe ensemble six_heads recommender lstm_steps lstm_layers
""".split()


@dataclass(frozen=True)
class Case:
    """A model: what builds it and its inputs, of which batch sizes."""

    name: str
    group: str
    build: Callable[[int], tuple[nn.Module, Inputs]]
    batches: tuple[int, ...] = (1,)


class Subject:
    """A case in one batch size and form, built when first needed and equal in every process."""

    def __init__(self, case: Case, batch: int, form: str) -> None:
        self.case, self.batch, self.form = case, batch, form

    @functools.cached_property
    def _built(self) -> tuple[nn.Module, Inputs]:
        torch.manual_seed(0)
        network, inputs = self.case.build(self.batch)
        return network.eval(), inputs

    @property
    def network(self) -> nn.Module:
        """In evaluation mode."""
        return self._built[0]

    @property
    def inputs(self) -> Inputs:
        """Of the network."""
        return self._built[1]

    @functools.cached_property
    def script(self) -> torch.jit.ScriptModule:
        """The network `traced`, or traced and `frozen`."""
        return self.frozen() if self.form == "frozen" else self.traced()

    def traced(self) -> torch.jit.ScriptModule:
        """A new module."""
        script: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
            self.network, self.inputs, check_trace=False
        )
        return script

    def frozen(self) -> torch.jit.ScriptModule:
        """A new module."""
        script: torch.jit.ScriptModule = torch.jit.freeze(self.traced())
        return script


def _torchvision(name: str, batch: int) -> tuple[nn.Module, Inputs]:
    network = zoo.torchvision_network(name)
    side = 299 if name == "inception_v3" else 224
    if name.startswith(("deeplabv3", "fcn", "lraspp")):
        network = zoo.SegmentationLogits(network)
    return network, (torch.randn(batch, 3, side, side),)


def _of_zoo(model: zoo.Model, batch: int) -> tuple[nn.Module, Inputs]:
    return model.build(), tuple(torch.randn(shape) for shape in model.input_shapes)


def _lstm(layer_major: bool) -> nn.Module:
    return branching.UnrolledLstm(layer_major=layer_major)


LSTM_INPUT = ((64, 24, 256),)
FREE = (
    *zoo.MODELS,
    zoo.Model("nasnet_a_mobile", cells.nasnet_mobile, (zoo.IMAGE,), True, "12 cells"),
    zoo.Model("amoebanet_a", cells.amoebanet_mobile, (zoo.IMAGE,), True, "12 cells"),
    zoo.Model("pnasnet", cells.pnasnet_mobile, (zoo.IMAGE,), True, "9 cells"),
    zoo.Model("darts", cells.darts_imagenet, (zoo.IMAGE,), True, "14 cells"),
    zoo.Model("bifpn", branching.BiFpn, ((1, 3, 256, 256),), True, "five levels, two heads"),
    zoo.Model("hrnet", branching.HrNet, (zoo.IMAGE,), True, "four resolutions"),
    zoo.Model("recommender", branching.Recommender, ((512, 512),), True, "six towers"),
    zoo.Model("lstm_steps", lambda: _lstm(False), LSTM_INPUT, True, "step by step"),
    zoo.Model("lstm_layers", lambda: _lstm(True), LSTM_INPUT, True, "layer by layer"),
)


def _cases() -> list[Case]:
    cases = [
        Case(name, "torchvision", functools.partial(_torchvision, name), (1, 8))
        for name in TORCHVISION
    ]
    cases += [
        Case(name, "transformers", build, (1, 8))
        for name, build in transformer_models.MODELS.items()
    ]
    cases += [
        Case(model.name, "freedom", functools.partial(_of_zoo, model))
        for model in FREE
        if model.name not in TORCHVISION
    ]
    return cases


CASES = {case.name: case for case in _cases()}
