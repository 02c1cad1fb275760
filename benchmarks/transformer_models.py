"""Transformers built from their configurations with random weights; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

WORDS = 128


class FirstResult(nn.Module):
    """A model of keyword arguments as one of tensors, without cache: what can be traced."""

    def __init__(self, model: nn.Module, names: Sequence[str], **options: bool) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.options = {"return_dict": False, **options}

    def forward(self, *inputs: Tensor) -> Tensor:
        """The first of the model's results."""
        first: Tensor = self.model(**dict(zip(self.names, inputs, strict=True)), **self.options)[0]
        return first


def library() -> Any:
    """The package of that name."""
    import transformers

    return transformers


def _text(model: str, *names: str, **sizes: int) -> Callable[[int], tuple[nn.Module, Any]]:
    """A model of words; `sizes` where they differ from the configuration's defaults."""

    def build(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        kind = getattr(library(), model)
        network = kind(kind.config_class(attn_implementation="eager", **sizes))
        words = tuple(torch.randint(0, 1000, (batch, WORDS)) for _ in names)
        return FirstResult(network, names, use_cache=False), words

    return build


def _vit(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    made = library()
    network = made.ViTModel(made.ViTConfig(attn_implementation="eager"))
    return FirstResult(network, ["pixel_values"]), (torch.randn(batch, 3, 224, 224),)


def _whisper_encoder(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    made = library()
    network = made.WhisperModel(made.WhisperConfig(attn_implementation="eager")).encoder
    return FirstResult(network, ["input_features"]), (torch.randn(batch, 80, 3000),)


SMALL = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
# Base sizes, the defaults, but for the last two. Mixtral multiplies tokens in groups, one for each
# expert, so what is traced routes other tokens rightly too.
MODELS: dict[str, Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "bert": _text("BertModel", "input_ids"),
    "gpt2": _text("GPT2LMHeadModel", "input_ids"),
    "t5": _text("T5Model", "input_ids", "decoder_input_ids"),
    "vit": _vit,
    "whisper_encoder": _whisper_encoder,
    "llama": _text("LlamaForCausalLM", "input_ids", intermediate_size=1376, **SMALL),
    "mixtral": _text("MixtralForCausalLM", "input_ids", intermediate_size=1024, **SMALL),
}
