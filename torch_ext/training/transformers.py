"""Hugging Face transformers' Trainer, with whole steps captured: less memory, the same bits.

    from torch_ext.training.transformers import Trainer
    Trainer(model, args, train_dataset=..., step_options={"memory_budget": "2GiB"}).train()

Needs transformers and accelerate, which torch_ext does not require.
"""

import functools
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Trainer as _Trainer
from transformers import TrainerCallback

from torch_ext.training import training_step
from torch_ext.training.step import TrainingStep
from torch_ext.training.updates import UnsupportedError

if TYPE_CHECKING:
    from torch_ext.training.planned_graph import TrainingReport

_log = logging.getLogger("torch_ext")
_OWN_OPTIONS = ("accumulate", "clip_grad_norm", "clip_grad_value")  # the Trainer's arguments say


class Trainer(_Trainer):
    """A transformers.Trainer that makes each step as one graph; see torch_ext.training_step.

    Arguments are those of transformers.Trainer, and `step_options`: what training_step takes beside
    model, loss, optimizer, batch, accumulation and clipping, such as memory_budget, levers or
    addresses. Schedulers, callbacks, evaluation, checkpoints and logs are the Trainer's;
    `grad_norm` is in no log, as gradients are gone by then. The optimizer has to be one that
    training_step takes: `TrainingArguments(optim="adamw_torch")`, not the default, which is fused.
    `max_grad_norm`, 1.0 by default, keeps all gradients until the last one is there, which is much
    of what there is to gain: set it to 0 where training does without.

    The plain Trainer makes the steps that cannot be captured, and a warning says why: with gradient
    accumulation, several processes, label smoothing, a loss of the caller's, or a callback that
    looks at gradients. Raises ValueError for bad `step_options`.
    """

    def __init__(
        self,
        *args: Any,
        step_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._step_options = dict(step_options or {})
        if own := [name for name in _OWN_OPTIONS if name in self._step_options]:
            raise ValueError(
                f"step_options has {own[0]}; gradient_accumulation_steps and max_grad_norm of "
                "TrainingArguments are for that"
            )
        super().__init__(*args, **kwargs)
        self._forget()

    def _forget(self) -> None:
        self._step: TrainingStep | None = None
        self._is_captured = False  # the batch at hand was trained on by the step
        self._why_plain = ""

    @property
    def step_report(self) -> "TrainingReport | None":
        """Of the graph that ran last; None before the first step, or where none is captured."""
        return self._step.report if self._step else None

    @property
    def why_plain(self) -> str:
        """Why the plain Trainer makes the steps; empty if it does not."""
        return self._why_plain

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers.Trainer.train, which may make another model: each call captures anew."""
        self._forget()
        return super().train(*args, **kwargs)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Train on a batch: forward and backward pass, clipping and update. Returns the loss."""
        self._is_captured = False
        if not self._why_plain:
            try:
                loss = self._trained(model, inputs, num_items_in_batch)
            except UnsupportedError as error:  # nothing was written
                self._step, self._why_plain = None, str(error)
                _log.warning("the plain Trainer makes the training steps: %s", error)
            else:
                self._is_captured = True
                return loss
        plain: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        return plain

    def _trained(
        self, model: nn.Module, inputs: dict[str, Any], num_items: torch.Tensor | int | None
    ) -> torch.Tensor:
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        for one in (model, optimizer):
            if callable(getattr(one, "train", None)):  # some optimizers have two modes, too
                one.train()
        batch = self._prepare_inputs(inputs)
        if self.model_accepts_loss_kwargs and num_items is not None:
            batch = {**batch, "num_items_in_batch": torch.as_tensor(num_items)}
        with self.compute_loss_context_manager():
            if self._step is None:
                self._require_plain()
                norm = self.args.max_grad_norm
                self._step = training_step(
                    model,
                    _loss_of,
                    optimizer,
                    batch,
                    clip_grad_norm=norm if norm and norm > 0 else None,
                    **self._step_options,
                )
                self._leave_updates_to_the_step()
                _log.info("captured the training step: %s", self._step.report)
            loss: torch.Tensor = self._step(**batch)
            return loss

    def _require_plain(self) -> None:
        args, callbacks = self.args, self.callback_handler.callbacks
        looks = [
            type(one).__name__
            for one in callbacks
            if type(one).on_pre_optimizer_step is not TrainerCallback.on_pre_optimizer_step
        ]
        for is_used, what in (
            (args.gradient_accumulation_steps > 1, "gradient_accumulation_steps above 1"),
            (self.label_smoother is not None, "label_smoothing_factor"),
            (self.compute_loss_func is not None, "compute_loss_func"),
            (type(self).compute_loss is not _Trainer.compute_loss, "a compute_loss of its own"),
            (args.world_size > 1, "several processes"),
            (args.n_gpu > 0, "a GPU"),
            (looks, f"a callback that looks at gradients ({', '.join(looks)})"),
        ):
            if is_used:
                raise UnsupportedError(f"the Trainer has {what}, which its captured step has not")

    def _leave_updates_to_the_step(self) -> None:
        """The Trainer steps the optimizer once more, and some count that without gradients, too."""
        wrapper: Any = self.optimizer
        plain = wrapper.step

        @functools.wraps(plain)
        def step(*args: Any, **kwargs: Any) -> Any:
            if not self._is_captured:
                return plain(*args, **kwargs)
            wrapper._opt_called = True  # schedulers ask for it
            return None

        wrapper.step = step

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        plain: Any = super()._clip_grad_norm
        return None if self._is_captured else plain(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        plain: Any = super()._get_grad_norm
        return None if self._is_captured else plain(model, grad_norm=grad_norm)


def _loss_of(outputs: Any) -> torch.Tensor:
    """As Trainer.compute_loss reads it."""
    loss: torch.Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
    return loss
