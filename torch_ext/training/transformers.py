"""Hugging Face transformers' Trainer, with whole steps captured: less memory, the same bits.

    from torch_ext.training.transformers import Trainer
    Trainer(model, args, train_dataset=..., memory_budget="2GiB").train()

Needs transformers and accelerate, which torch_ext does not require.
"""

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Trainer as _Trainer

from torch_ext.training import training_step
from torch_ext.training.step import TrainingStep
from torch_ext.training.updates import UnsupportedError

if TYPE_CHECKING:
    from torch_ext.training.planned_graph import TrainingReport

_log = logging.getLogger("torch_ext")


class Trainer(_Trainer):
    """A transformers.Trainer that makes each step as one graph; see torch_ext.training_step.

    Arguments are those of transformers.Trainer, and `step_options`: what training_step takes beside
    model, loss, optimizer, batch and clipping, such as memory_budget, levers or addresses.
    Schedulers, callbacks, evaluation, checkpoints and logs are the Trainer's; `grad_norm` is in no
    log, for gradients are gone when it is asked for. The optimizer has to be one that
    training_step takes: `TrainingArguments(optim="adamw_torch")`, not the default, which is fused.
    `max_grad_norm`, 1.0 by default, keeps all gradients until the last one is there, which is much
    of what there is to gain: set it to 0 where training does without.

    A step that cannot be captured is made by the plain Trainer, with a warning that says why; so
    are all of a training with gradient accumulation, label smoothing or a loss of the caller's.
    """

    def __init__(
        self,
        *args: Any,
        step_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._step_options = dict(step_options or {})
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

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Train on a batch: forward and backward pass, clipping and update. Returns the loss."""
        batch = self._prepare_inputs(inputs)
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            batch = {**batch, "num_items_in_batch": torch.as_tensor(num_items_in_batch)}
        model.train()
        with self.compute_loss_context_manager():
            step = self._captured(model, batch)
            self._is_captured = step is not None
            if step is not None:
                loss: torch.Tensor = step(**batch)
                return loss
        plain: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        return plain

    def _captured(self, model: nn.Module, batch: dict[str, Any]) -> TrainingStep | None:
        if self._step is None and not self._why_plain:
            # accelerate wraps it
            optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
            try:
                self._require_plain_loss()
                self._step = training_step(
                    model,
                    None,
                    optimizer,
                    batch,
                    clip_grad_norm=self.args.max_grad_norm or None,
                    **self._step_options,
                )
            except UnsupportedError as error:
                self._why_plain = str(error)
                _log.warning("the plain Trainer makes the training steps: %s", error)
            else:
                _log.info("captured the training step: %s", self._step.report)
        return self._step

    def _require_plain_loss(self) -> None:
        args = self.args
        for is_used, what in (
            (args.gradient_accumulation_steps > 1, "gradient_accumulation_steps above 1"),
            (self.label_smoother is not None, "label_smoothing_factor"),
            (self.compute_loss_func is not None, "compute_loss_func"),
            (type(self).compute_loss is not _Trainer.compute_loss, "a compute_loss of its own"),
            (args.n_gpu > 0, "a GPU"),
        ):
            if is_used:
                raise UnsupportedError(f"the Trainer has {what}, which its captured step has not")

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        plain: Any = super()._clip_grad_norm
        return None if self._is_captured else plain(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        plain: Any = super()._get_grad_norm
        return None if self._is_captured else plain(model, grad_norm=grad_norm)
