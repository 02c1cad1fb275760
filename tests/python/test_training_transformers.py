"""A Trainer of transformers with captured steps: the losses and weights of the plain one."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    TrainerCallback,
    TrainingArguments,
)
from transformers import Trainer as PlainTrainer

from torch_ext.training.transformers import Trainer

pytestmark = pytest.mark.usefixtures("with_gradients")
WORDS, TOKENS, TEXTS = 200, 16, 12


def gpt():
    config = GPT2Config(vocab_size=WORDS, n_positions=TOKENS, n_embd=32, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config)


def bert():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=WORDS, intermediate_size=64, num_labels=3, **sizes)
    return BertForSequenceClassification(config)


def texts(is_gpt: bool):
    torch.manual_seed(1)
    words = torch.randint(0, WORDS, (TEXTS, TOKENS))
    return [
        {"input_ids": row, "labels": row if is_gpt else torch.tensor(number % 3)}
        for number, row in enumerate(words)
    ]


def trained(kind, make, folder, options=None, **arguments):
    torch.manual_seed(0)
    model = make()
    defaults = {"optim": "adamw_torch", "per_device_train_batch_size": 4, "num_train_epochs": 2}
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        **{**defaults, **arguments},
    )
    options = {"train_dataset": texts(make is gpt), **(options or {})}
    if kind is PlainTrainer:
        options.pop("step_options", None)
    if optimizer := options.pop("optimizer", None):
        options["optimizers"] = (optimizer(model.parameters()), None)
    trainer = kind(model, args, **options)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, losses, rates, model.state_dict()


def require_same(make, tmp_path, options=None, **arguments):
    plain = trained(PlainTrainer, make, tmp_path / "plain", options, **arguments)
    _, losses, rates, weights = plain
    found = trained(Trainer, make, tmp_path / "ours", options, **arguments)
    trainer, our_losses, our_rates, our_weights = found
    assert (our_losses, our_rates) == (losses, rates)
    assert losses
    for name, weight in weights.items():
        assert torch.equal(weight, our_weights[name]), name
    return trainer


@pytest.mark.parametrize("make", [gpt, bert])
@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_losses_and_weights_are_those_of_the_plain_trainer(make, norm, tmp_path):
    trainer = require_same(make, tmp_path, max_grad_norm=norm)
    report = trainer.step_report
    assert not trainer.why_plain
    assert report.identical
    assert report.peak_bytes < report.measured_original_peak_bytes


class Counting(torch.optim.Optimizer):
    """Counts its steps in its groups, and trains by the count."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1e-2, "steps": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=group["lr"] / group["steps"])


def test_an_optimizer_that_counts_steps_counts_each_once(tmp_path):
    trainer = require_same(bert, tmp_path, {"optimizer": Counting}, max_grad_norm=0.0)
    assert not trainer.why_plain
    assert trainer.optimizer.optimizer.param_groups[0]["steps"] == 6


def test_evaluation_and_a_shorter_last_batch_are_as_in_the_plain_trainer(tmp_path):
    options = {"eval_dataset": texts(False)[:4], "train_dataset": texts(False)[:10]}
    trainer = require_same(bert, tmp_path, options, eval_strategy="steps", eval_steps=2)
    assert not trainer.why_plain
    assert any("eval_loss" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize("norm", [-1.0, 0.5])
def test_each_training_captures_anew(norm, tmp_path):
    def again(kind, folder):
        trainer, *_ = trained(kind, bert, tmp_path / folder, max_grad_norm=0.0)
        trainer.args.max_grad_norm = norm
        trainer.train()
        return trainer

    plain, ours = again(PlainTrainer, "plain"), again(Trainer, "ours")
    assert not ours.why_plain
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, ours.model.state_dict()[name]), name


class Zeroing(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.zero_grad()


def test_callbacks_that_look_at_gradients_have_them(tmp_path):
    trainer = require_same(bert, tmp_path, {"callbacks": [Zeroing()]})
    assert "Zeroing" in trainer.why_plain


def test_what_stops_later_is_trained_by_the_plain_trainer(tmp_path):
    class Hooking(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.classifier.weight.register_hook(lambda gradient: gradient * 2)

    trainer = require_same(bert, tmp_path, {"callbacks": [Hooking()]})
    assert trainer.why_plain


def test_options_that_are_the_trainers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        trained(Trainer, bert, tmp_path, {"step_options": {"accumulate": 2}})


def test_a_budget_is_met(tmp_path):
    step_bytes = require_same(gpt, tmp_path, max_grad_norm=0.0).step_report.peak_bytes
    options = {"step_options": {"memory_budget": int(0.9 * step_bytes)}}
    assert require_same(gpt, tmp_path, options, max_grad_norm=0.0).step_report.budget_met


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"optim": "adamw_torch_fused"}, "fused"),
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, "accumulation"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing"),
    ],
)
def test_what_is_not_captured_is_trained_by_the_plain_trainer(arguments, why, tmp_path, caplog):
    trainer = require_same(bert, tmp_path, **arguments)
    assert why in trainer.why_plain
    assert why in caplog.text
    assert trainer.step_report is None
