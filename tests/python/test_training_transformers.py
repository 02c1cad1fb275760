"""A Trainer of transformers with captured steps: the losses and weights of the plain one."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
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
    trainer = kind(model, args, train_dataset=texts(make is gpt), **(options or {}))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, losses, rates, model.state_dict()


def require_same(make, tmp_path, options=None, **arguments):
    _, losses, rates, weights = trained(PlainTrainer, make, tmp_path / "plain", **arguments)
    found = trained(Trainer, make, tmp_path / "ours", options, **arguments)
    trainer, our_losses, our_rates, our_weights = found
    assert (our_losses, our_rates) == (losses, rates)
    assert len(losses) == 6
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
