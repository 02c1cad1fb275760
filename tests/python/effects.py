"""An operator with an effect whose order counts: torch hands a token from call to call."""

import torch
from torch._higher_order_ops.effects import EffectType

said: list[str] = []


@torch.library.custom_op("torch_ext_test_effects::say", mutates_args=())
def say(x: torch.Tensor, text: str) -> torch.Tensor:
    said.append(text)
    return x.sum()


@say.register_fake
def _(x: torch.Tensor, text: str) -> torch.Tensor:
    return x.new_empty(())


say.register_effect(EffectType.ORDERED)
