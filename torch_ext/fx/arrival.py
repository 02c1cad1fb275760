"""Where the gradients of the results arrive in a joint graph of forward and backward pass."""

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class Arrival:
    """Gives the gradients, which are no inputs of the forward pass.

    User code runs here. It draws random numbers, and writes to what it holds or frees that. So
    nothing may pass, and what runs again behind reads nothing of it.
    """

    lasting: frozenset[str]  # parameters and constants, which user code neither frees nor writes to

    @property
    def __name__(self) -> str:
        return "arrive"

    def __call__(self, *gradients: torch.Tensor) -> list[torch.Tensor]:
        """Return memory like that of the gradients."""
        return [torch.empty_like(gradient) for gradient in gradients]
